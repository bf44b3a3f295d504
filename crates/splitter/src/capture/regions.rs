//! The sequencer and the dirty-region log: what is set before a region is written to, and what is cleared after.

use super::Capture;
use crate::on_the_way::Place;
use crate::region_log::Regions;
use std::io;
use types::limits::RUNS_A_TURN;

impl Capture {
    /// Sets regions in the log, on the disk. Writers to other regions do not wait for that.
    pub(super) fn heat(&self, regions: &[Regions]) -> io::Result<()> {
        let mut log = self.lock_regions();
        log.set(regions)?;
        self.lock().dirty.heated(regions);
        Ok(())
    }

    /// Clears from the region log what has been equal on both sides for a while. `flush` makes everything
    /// that was written to the local disks so far durable.
    ///
    /// # Errors
    /// As the disks say; what is not cleared stays set, which is never wrong.
    pub fn cool_regions(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut dirty = self.lock().dirty.begin_to_cool();
        let mut from = Some(Place::default());
        while let Some(place) = from {
            from = self.lock().dirty.gather_on_the_way(&mut dirty, place, RUNS_A_TURN);
            self.inner.give_way();
        }
        let candidates = self.lock().dirty.candidates(&dirty);
        if candidates.is_empty() {
            return Ok(());
        }
        flush()?;
        // 0. What has become dirty since the begin, in whatever turn, has touched its region: it is not cooled.
        // 1. Whoever writes to a candidate from here on finds it hot, and says so: it is not cooled.
        // 2. Once it is cold, a writer sets it again, and for that waits until this has cleared it.
        let mut log = self.lock_regions();
        let (cooled, acked) = {
            let mut inner = self.lock();
            (inner.dirty.cool(candidates), inner.released)
        };
        log.clear(&cooled, acked)
    }
}
