//! What the clocks of the recovery side say at one time.

use journal::{Clock, Upkeep};
use types::{Monotonic, WallTime};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Monotonic,
    pub(crate) wall: WallTime,
}

impl Moment {
    /// A turn of upkeep at it. What the wall clock says makes nothing older.
    pub(crate) fn upkeep(self, entropy: [u8; 16]) -> Upkeep<'static> {
        Upkeep { clock: Clock::Monotonic(self.now), ..Upkeep::plain(self.wall, entropy) }
    }
}
