//! A part of a fold: the regions of one turn, one after the other or by several threads.

use super::error::FoldError;
use super::regions::{Region, Regions};
use crate::extent::REGION_BYTES;
use crate::page::PageBuf;
use crate::run::RunError;
use threads::sync::Mutex;
use threads::sync::atomic::{AtomicBool, Ordering};
use threads::sync::mpsc::{Receiver, sync_channel};
use types::limits::FOLD_STEP_BYTES;

/// The regions of one turn: from where the turn before has ended, until there is enough to write.
pub(crate) struct Part<'a> {
    pub(crate) regions: Regions,
    pub(crate) from: u64,
    pub(crate) makes_holes: &'a AtomicBool,
    /// Bytes that the regions so far cost.
    pub(crate) spent: u64,
    /// Where the next turn begins, once this one has ended before the last region.
    pub(crate) next: Option<u64>,
}

impl Part<'_> {
    pub(crate) fn next(&mut self) -> Result<Option<Region>, RunError> {
        while let Some(region) = self.regions.next()? {
            if region.place() < self.from {
                continue;
            }
            if self.spent >= FOLD_STEP_BYTES {
                self.next = Some(region.place());
                return Ok(None);
            }
            // A hole costs the disk no more than a region of bytes does.
            let most = if self.makes_holes.load(Ordering::Relaxed) { REGION_BYTES } else { u64::MAX };
            self.spent += region.range.len.min(most);
            return Ok(Some(region));
        }
        Ok(None)
    }
}

/// Folds regions in several threads; the first error ends all.
pub(crate) fn fold_in_threads(
    regions: &mut Part<'_>,
    threads: usize,
    fold: &(impl Fn(&Region, &mut PageBuf) -> Result<(), FoldError> + Sync),
) -> Result<(), FoldError> {
    let (send, receive) = sync_channel::<Region>(threads * 2);
    let receive = Mutex::new(receive);
    let failed = Mutex::new(None);
    let work = || {
        let mut buf = PageBuf::zeroed(REGION_BYTES as usize);
        while let Some(region) = next_of(&receive) {
            if failed.lock().expect("a panic aborts the process").is_some() {
                continue; // The rest is taken off the channel, so that nobody waits for room in it.
            }
            if let Err(error) = fold(&region, &mut buf) {
                failed.lock().expect("a panic aborts the process").get_or_insert(error);
            }
        }
    };
    let fed = threads::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
        let fed = loop {
            match regions.next() {
                Ok(Some(region)) => send.send(region).expect("the threads live as long as the channel"),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            if failed.lock().expect("a panic aborts the process").is_some() {
                break Ok(());
            }
        };
        drop(send);
        fed
    });
    fed?;
    match failed.into_inner().expect("a panic aborts the process") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn next_of(receive: &Mutex<Receiver<Region>>) -> Option<Region> {
    receive.lock().expect("a panic aborts the process").recv().ok()
}
