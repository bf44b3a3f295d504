//! The life of each kept VM's journal, decided by [`joint::life`]: its stream, turns of upkeep that take their time, images
//! that stay, a journal that has failed, and moves to another folder, with the agent killed in the middle.
//!
//! What holds: whoever has a lease has the journal that is open, and whoever has taken the folder has it for himself.

use crate::recovery::RecoveryVm;
use crate::store::SimStore;
use joint::life::{LeaseId, Life, Use};
use journal::Journal;
use std::sync::Arc;

/// A failover has one image of a VM.
pub(super) const IMAGE: u64 = 0;
/// A journal's life, and those that use it. All of it is gone with the agent, but how far a move is.
#[derive(Debug, Default)]
pub(super) struct Lived {
    pub(super) life: Life<u64>,
    pub(super) stream: Option<LeaseId>,
    pub(super) upkeep: Option<Upkeep>,
    pub(super) moving: Option<Move>,
}

#[derive(Debug)]
pub(super) struct Upkeep {
    pub(super) lease: LeaseId,
    pub(super) journal: Arc<Journal>,
    pub(super) left: u64,
}

/// A move, as it is written down.
#[derive(Debug)]
pub(super) enum Move {
    /// Whoever uses the journal is waited for.
    Waits,
    /// So many files were copied.
    Copies { target: SimStore, done: usize },
    /// It lies in its new folder; the old one is to be removed.
    Removes,
}

impl Lived {
    /// Takes the journal into use at once, where it is open.
    pub(super) fn opens(&mut self, recovery: &mut RecoveryVm) {
        if self.life.begin().is_err() {
            return;
        }
        recovery.reopen();
        self.opened(recovery);
    }

    /// It was opened, or made, or could not be.
    pub(super) fn opened(&mut self, recovery: &RecoveryVm) {
        if recovery.journal.is_none() {
            return self.life.not_opened();
        }
        for image in self.life.opened() {
            self.life.bound(&image);
        }
    }

    pub(super) fn crash(&mut self) {
        let moving = self.moving.take().filter(|moving| matches!(moving, Move::Removes));
        *self = Self { moving, ..Self::default() };
    }

    pub(super) fn end_stream(&mut self) {
        if let Some(lease) = self.stream.take() {
            self.life.give_back(lease);
        }
    }

    /// An image that is open stays, and one that is not does not.
    pub(super) fn follow_images(&mut self, any: bool) {
        let stays = self.life.images().next().is_some();
        if any && !stays {
            let Ok(lease) = self.life.lease(Use::Image) else { return };
            self.life.stay(lease, IMAGE).expect("nobody moves it just now");
            self.life.give_back(lease);
        } else if stays && !any {
            self.life.leave(&IMAGE);
        }
    }
}
