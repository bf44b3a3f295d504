//! The lives of a group's journals as they are played: streams, turns of upkeep, images, failures and moves come and go, by
//! the dice.

use super::lives::*;
use super::{GroupVm, GroupWorld};
use crate::store::SimStore;
use joint::life::{Reason, State, Task, Use};
use journal::{Journal, Store};
use replication::ReceiverEvent;
use replication::wire::{Refusal, Refuse};
use std::sync::Arc;

/// A turn of upkeep takes fewer events than this.
const UPKEEP_EVENTS: u64 = 12;

impl GroupWorld {
    /// Each journal's life goes on.
    pub(super) fn go_on_with_lives(&mut self) {
        for at in 0..self.vms.len() {
            self.fail_or_close(at);
            self.go_on_with_upkeep(at, false);
            if self.rng.one_in(3) {
                self.go_on_with_move(at);
            }
            let GroupVm { lived, pair, record, .. } = &mut self.vms[at];
            if pair.recovery.is_streamless() {
                lived.end_stream();
            }
            lived.follow_images(!pair.recovery.images.is_empty());
            let is_open = matches!(lived.life.state(), State::Open | State::Closing(_));
            assert_eq!(is_open, pair.recovery.journal.is_some(), "{record:?} {:?}", lived.life.state());
        }
    }

    /// A journal that has failed is closed once nobody uses it, and opened again from what its disk has.
    fn fail_or_close(&mut self, at: usize) {
        let GroupVm { lived, pair, .. } = &mut self.vms[at];
        if std::mem::take(&mut pair.recovery.has_failed) {
            let _ = lived.life.close(Reason::Failed);
        }
        if !matches!(lived.life.state(), State::Closing(_)) {
            return;
        }
        if lived.stream.is_some() && self.rng.one_in(3) {
            let refuse = Refuse { why: Refusal::Busy, detail: "the journal is closed".into() };
            self.receiver(at, ReceiverEvent::Stopped(refuse));
            self.vms[at].pair.recovery.end_stream();
        }
        let GroupVm { lived, pair, .. } = &mut self.vms[at];
        if lived.life.state() == State::Closing(Reason::Failed) && lived.life.may_close() {
            pair.recovery.close();
            lived.life.closed();
            self.summary.lives_ended += 1;
        }
    }

    /// A turn of upkeep begins; it comes to its end some events later.
    pub(super) fn begin_upkeep(&mut self, at: usize) {
        let left = self.rng.below(UPKEEP_EVENTS);
        let GroupVm { lived, pair, .. } = &mut self.vms[at];
        if lived.upkeep.is_some() {
            return;
        }
        let Ok(lease) = lived.life.lease(Use::Upkeep) else { return };
        let journal = pair.recovery.journal.clone().expect("who has a lease has a journal");
        lived.upkeep = Some(Upkeep { lease, journal, left });
    }

    fn go_on_with_upkeep(&mut self, at: usize, hurries: bool) {
        let lived = &mut self.vms[at].lived;
        let Some(upkeep) = &mut lived.upkeep else { return };
        upkeep.left = upkeep.left.saturating_sub(1);
        if upkeep.left > 0 && !hurries {
            return;
        }
        let Some(Upkeep { lease, journal, .. }) = lived.upkeep.take() else { return };
        self.invariant_a_lease_is_of_the_journal_that_is_open(at, &journal);
        self.keep_up(at);
        self.vms[at].lived.life.give_back(lease);
    }

    fn invariant_a_lease_is_of_the_journal_that_is_open(&self, at: usize, journal: &Arc<Journal>) {
        let is_it = self.vms[at].pair.recovery.journal.as_ref().is_some_and(|now| Arc::ptr_eq(now, journal));
        assert!(is_it, "invariant_a_lease_is_of_the_journal_that_is_open: {:?}", self.vms[at].lived);
    }

    /// Somebody has a journal moved.
    pub(super) fn begin_move(&mut self, at: usize) {
        let GroupVm { lived, pair, record, .. } = &mut self.vms[at];
        if record.is_none() || lived.moving.is_some() || !pair.recovery.images.is_empty() {
            return;
        }
        if lived.life.close(Reason::Taken(Task::Move)).is_ok() {
            lived.moving = Some(Move::Waits);
            let is_taken = lived.life.state() == State::Taken(Task::Move);
            self.say(&format!("{} is to be moved, closed: {is_taken}", self.vms[at].id()));
        }
    }

    fn go_on_with_move(&mut self, at: usize) {
        let gives_up = self.rng.one_in(40);
        let GroupVm { lived, pair, .. } = &mut self.vms[at];
        let recovery = &mut pair.recovery;
        let Some(moving) = lived.moving.take() else { return };
        lived.moving = match (moving, lived.life.state()) {
            (Move::Waits, State::Closing(_)) if lived.life.may_close() => {
                recovery.close();
                lived.life.closed();
                Some(Move::Waits)
            }
            (Move::Waits, State::Closing(_)) if gives_up => {
                lived.life.give_up_closing();
                None
            }
            (Move::Waits, State::Closing(_)) => Some(Move::Waits),
            (Move::Waits, _) => Some(Move::Copies { target: SimStore::new(), done: 0 }),
            (Move::Copies { .. }, _) if gives_up => {
                lived.life.give_folder_back();
                None
            }
            (Move::Copies { target, done }, _) => match recovery.store.names().get(done) {
                Some(name) => {
                    copy(&recovery.store, &target, name);
                    Some(Move::Copies { target, done: done + 1 })
                }
                None => {
                    target.sync_folder().expect("a disk that works");
                    recovery.store = target;
                    lived.life.give_folder_back();
                    self.summary.moves += 1;
                    Some(Move::Removes)
                }
            },
            // Only once it was opened in its new folder.
            (Move::Removes, State::Open) => None,
            (Move::Removes, _) => Some(Move::Removes),
        };
    }

    /// At rest nothing is under way.
    pub(super) fn end_lives(&mut self) {
        for at in 0..self.vms.len() {
            self.go_on_with_upkeep(at, true);
        }
    }
}

/// A file is copied, and the copy made durable.
fn copy(from: &SimStore, to: &SimStore, name: &str) {
    let content = from.content(name).expect("it has a name");
    let file = to.open(name, true).expect("a disk that works");
    file.write_at(0, &content).and_then(|()| file.sync_data()).expect("a disk that works");
}
