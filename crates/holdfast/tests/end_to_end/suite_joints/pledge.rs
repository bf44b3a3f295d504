//! A synchronous VM whose writer counts what was acknowledged, and what of that was promised.
//!
//! Its writes are numbers at one place, one after the other. While its mode is `sync`, each that is acknowledged is at the
//! recovery side, and with it all before: nothing but a sync or a pause ends that mode where writes are held, so that from
//! a look that shows it until the next kill of its agent it stays.

use super::ledger::Writer;
use lab::{NbdClient, Site, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where on the disk the number stands.
const PLACE: u64 = 8192;

pub(super) struct Pledge {
    shared: Arc<Shared>,
}

struct Shared {
    over: AtomicBool,
    acknowledged: AtomicU64,
}

/// Writes from here on are promised.
pub(super) struct Promised {
    from: u64,
}

impl Pledge {
    pub(super) fn begin(socket: &str) -> Self {
        let shared = Arc::new(Shared { over: AtomicBool::new(false), acknowledged: AtomicU64::new(0) });
        let (of_thread, mut writer) = (shared.clone(), Writer::new(socket, "log"));
        std::thread::spawn(move || {
            for number in 1u64.. {
                let sector = number.to_le_bytes().repeat(64);
                if !writer.write(PLACE, &sector, &of_thread.over) {
                    return;
                }
                of_thread.acknowledged.store(number, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { shared }
    }

    fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits a little for the mode in which everything is promised; none where it does not come.
    pub(super) fn promised(&self, first: &Site) -> Option<Promised> {
        let mode = || {
            let row = first.protected("pledge")?;
            Ok((row["mode"] == "sync").then_some(()))
        };
        wait_until("synchronous mode", Duration::from_secs(10), mode).ok()?;
        Some(Promised { from: self.acknowledged() })
    }

    /// What the recovery side must have: asked for once the agent is dead, and none where nothing was written since.
    pub(super) fn due(&self, promised: &Promised) -> Option<u64> {
        let acknowledged = self.acknowledged();
        // The first may have been acknowledged just before the look.
        (acknowledged > promised.from + 1).then_some(acknowledged)
    }

    /// The newest number that the recovery side has.
    pub(super) fn kept(&self, recovery: &Site) -> anyhow::Result<u64> {
        let image = recovery.ask(&["image", "open", "--vm", "pledge", "--at", "latest"])?;
        let mut sector = [0; 512];
        let read = NbdClient::connect(image["socket"].as_str().unwrap_or_default(), "log")
            .and_then(|mut client| client.read(PLACE, &mut sector));
        recovery.ask(&["image", "close", image["id"].as_str().unwrap_or_default()])?;
        read?;
        let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap());
        assert!((0..512).step_by(8).all(|at| word(at) == word(0)), "a sector of several writes");
        Ok(word(0))
    }
}

impl Drop for Pledge {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}
