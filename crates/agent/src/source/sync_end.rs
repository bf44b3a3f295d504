//! When a sync has really ended: not when its last block is in the buffer, but when that is durable at the recovery
//! side. Until then nothing newer can be opened there, and nobody is told that it could.

use types::WriteSeq;

/// The end of the last sync, on its way.
#[derive(Debug, Default)]
pub(super) struct SyncEnd {
    pending: Option<(WriteSeq, &'static str)>,
}

impl SyncEnd {
    /// A sync, by its state's name, has put all it had into the buffer, which reaches to `last`.
    pub(super) fn closed(&mut self, last: WriteSeq, name: &'static str) {
        self.pending = Some((last, name));
    }

    /// The stream begins anew: what was on its way will not arrive as such.
    pub(super) fn restarted(&mut self) {
        self.pending = None;
    }

    /// The recovery side has everything up to here; true where nothing of a sync is on its way any more.
    pub(super) fn acknowledged(&mut self, acked: WriteSeq) -> bool {
        if self.pending.is_some_and(|(last, _)| last <= acked) {
            self.pending = None;
        }
        self.pending.is_none()
    }

    /// The state to show while a sync's end is on its way.
    pub(super) fn name(&self) -> Option<&'static str> {
        self.pending.map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_ends_once_all_of_it_is_durable() {
        let seq = WriteSeq::from_raw;
        let mut end = SyncEnd::default();
        assert!(end.acknowledged(seq(0)));
        end.closed(seq(7), "initial-sync");
        assert!(!end.acknowledged(seq(6)));
        assert_eq!(end.name(), Some("initial-sync"));
        assert!(end.acknowledged(seq(7)));
        assert_eq!(end.name(), None);
        end.closed(seq(9), "bitmap-sync");
        end.restarted();
        assert_eq!(end.name(), None);
    }
}
