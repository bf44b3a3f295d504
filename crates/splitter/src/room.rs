//! How much a buffer may hold, which may change while something lies in it.

/// How many bytes a buffer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    now: u64,
    wanted: u64,
}

impl Room {
    pub(crate) fn of(bytes: u64) -> Self {
        Self { now: bytes, wanted: bytes }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.now
    }

    /// What lies in it already has room.
    pub(crate) fn want(&mut self, bytes: u64, buffered: u64) {
        (self.now, self.wanted) = (bytes.max(buffered), bytes);
    }

    pub(crate) fn shrink_to(&mut self, buffered: u64) {
        self.now = self.now.min(buffered.max(self.wanted));
    }
}
