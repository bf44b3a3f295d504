//! VMs that an agent of before December 2026 has started and that run on: as root, and with files of theirs in the guests'
//! folder itself, `KEY.log` and `KEY.qmp`. They are seen and can be stopped; nothing else is done with them.

use super::processes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What such an agent may have started by a key.
#[derive(Debug)]
pub(super) struct OlderGuest {
    /// Held locked for as long as its process runs.
    pub(super) log: PathBuf,
    /// What its process was started with.
    monitor: String,
}

impl OlderGuest {
    pub(super) fn new(guests: &Path, key: &str) -> Self {
        let socket = guests.join(format!("{key}.qmp")).display().to_string().replace(',', ",,");
        Self { log: guests.join(format!("{key}.log")), monitor: format!("unix:{socket},server=on") }
    }

    /// Whether something still runs by it.
    pub(super) fn runs(&self) -> bool {
        // Of a guest of now that has this key the same is a folder.
        let log = File::options().append(true).open(&self.log);
        let locked = log.ok().map(|log| flock(&log, FlockOperation::NonBlockingLockExclusive));
        locked == Some(Err(Errno::WOULDBLOCK))
    }

    /// Whether a process is it, where something runs by it.
    pub(super) fn is(&self, pid: u32) -> bool {
        let words = processes::words_of(pid);
        words.windows(self.monitor.len()).any(|window| window == self.monitor.as_bytes())
    }
}
