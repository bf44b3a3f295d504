//! A VM whose synchronous mode is switched off and on, a writer to it that counts what was acknowledged and a guest on it
//! that reports what is durable; and what of that was promised.
//!
//! The writer's writes are numbers at one place, one after the other. While the mode is `sync`, what is acknowledged is at
//! the recovery side, and with it all before: nothing but a sync or a pause ends that mode where writes are held, so that
//! from a look that shows it until the next kill of its agent it stays.

use super::ledger::{Writer, last_tick};
use lab::{Console, NbdClient, Site, Ticks, check_file_system, copy_image, read_file, wait_until};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where on the disk the number stands.
const PLACE: u64 = 8192;

pub(super) struct Pledge {
    shared: Arc<Shared>,
    console: PathBuf,
    /// As it was protected last.
    pub(super) in_sync: bool,
}

struct Shared {
    over: AtomicBool,
    /// The writer is to be away, and is.
    rests: AtomicBool,
    is_away: AtomicBool,
    acknowledged: AtomicU64,
}

/// Writes from here on are promised.
pub(super) struct Promised {
    from: u64,
}

/// What the recovery side must have, or has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// The writer's newest number.
    pub(super) number: u64,
    /// The guest's newest record.
    pub(super) tick: u64,
}

impl Pledge {
    pub(super) fn begin(socket: &str, console: PathBuf) -> Self {
        let shared = Arc::new(Shared {
            over: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            is_away: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        });
        let (of_thread, socket) = (shared.clone(), socket.to_owned());
        std::thread::spawn(move || of_thread.write(&socket));
        Self { shared, console, in_sync: true }
    }

    /// Lets the writer go away, and waits until it has.
    pub(super) fn rest(&self) {
        self.shared.rests.store(true, Ordering::SeqCst);
        wait_until("the writer to go away", Duration::from_secs(60), || {
            Ok(self.shared.is_away.load(Ordering::SeqCst).then_some(()))
        })
        .unwrap();
    }

    pub(super) fn go_on(&self) {
        self.shared.rests.store(false, Ordering::SeqCst);
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits a little for the mode in which everything is promised; none where it does not come.
    pub(super) fn promised(&self, first: &Site) -> Option<Promised> {
        if !self.in_sync {
            return None;
        }
        let mode = || {
            let row = first.protected("pledge")?;
            Ok((row["mode"] == "sync").then_some(()))
        };
        wait_until("synchronous mode", Duration::from_secs(4), mode).ok()?;
        Some(Promised { from: self.acknowledged() })
    }

    /// What the recovery side must have: asked for once the agent is dead, and none where nothing was written since.
    pub(super) fn due(&self, promised: &Promised) -> Option<Kept> {
        let number = self.acknowledged();
        let tick = last_tick(&mut Console::new(&self.console));
        // The first may have been acknowledged just before the look.
        (number > promised.from + 1).then_some(Kept { number, tick })
    }

    /// What the newest state at the recovery side has; the guest's disk is copied to a file.
    pub(super) fn kept(&self, recovery: &Site, copy: &Path) -> anyhow::Result<Kept> {
        let image = recovery.ask(&["image", "open", "--vm", "pledge", "--at", "latest"])?;
        let socket = image["socket"].as_str().unwrap_or_default();
        let mut sector = [0; 512];
        let read = NbdClient::connect(socket, "log").and_then(|mut client| client.read(PLACE, &mut sector));
        let copied = copy_image(socket, "vda", copy);
        recovery.ask(&["image", "close", image["id"].as_str().unwrap_or_default()])?;
        read?;
        copied?;
        let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap());
        assert!((0..512).step_by(8).all(|at| word(at) == word(0)), "a sector of several writes");
        assert!(check_file_system(copy)?, "e2fsck finds something wrong with the promised image");
        let ticks = Ticks::parse(&read_file(copy, "/ticks").unwrap_or_default());
        assert_eq!(ticks.violations, 0, "records of the guest up to {} are wrong", ticks.last);
        Ok(Kept { number: word(0), tick: ticks.last })
    }
}

impl Shared {
    fn write(&self, socket: &str) {
        let mut writer = Writer::new(socket, "log");
        for number in 1u64.. {
            if self.rests.load(Ordering::SeqCst) {
                writer = Writer::new(socket, "log");
                self.is_away.store(true, Ordering::SeqCst);
                while self.rests.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                self.is_away.store(false, Ordering::SeqCst);
            }
            if !writer.write(PLACE, &number.to_le_bytes().repeat(64), &self.over) {
                return;
            }
            self.acknowledged.store(number, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pledge {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}
