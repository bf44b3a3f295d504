//! What is written down of a stream, and said of it in the log: its state, its epoch, who has taken over, and whether it is
//! paused.

use super::Driver;
use crate::clock;
use crate::source::record::{FencedAt, ProtectionRecord};
use joint::membership::FirstSync;
use replication::wire::ClockAnswer;
use replication::{Failure, Link as LinkState, SenderEvent, State};
use tokio::task::block_in_place;
use types::{Epoch, WallTime};

impl Driver {
    pub(super) fn on_pause(&mut self, paused: bool) {
        self.note("pause", |record| record.paused = paused);
        self.core.push(if paused { SenderEvent::Pause } else { SenderEvent::Resume });
    }

    pub(super) fn on_change(&mut self, from: State, to: State) {
        tracing::info!(vm = self.vm.name(), from = from.name(), to = to.name(), why = to.reason(), "state");
        if to.is_syncing() {
            self.sync_total_bytes = self.to_sync_bytes();
            if matches!(self.vm.first_sync(), FirstSync::NotBegun | FirstSync::Greeted) {
                self.note_first_sync(FirstSync::Running);
            }
        }
        self.note_fenced(from, to);
        if to.is_syncing() || to == State::Journaling {
            self.note_peer_agent();
        }
        if to == State::Journaling {
            self.last_error = None;
        }
        if to == (State::Failed { why: Failure::BoundExceeded }) {
            let why =
                "the protection was stopped because a bound is exceeded; `holdfast vm resume` lets it go on";
            self.last_error = Some(why.into());
        }
    }

    /// Whoever has taken the stream is the one that it is for: not where that is another by an operator's word, who may have
    /// said so, or where to connect to, while this connection stands.
    fn note_peer_agent(&self) {
        let Some(peer) = &self.link.peer else { return };
        let record = self.vm.record();
        if record.peer_agent.is_some() || !self.place.is_at(&record.peer) {
            return;
        }
        let noted = block_in_place(|| self.vm.note_peer_agent(&self.source.state, &peer.name));
        if let Err(error) = noted {
            let (vm, error) = (record.name, format!("{error:#}"));
            tracing::error!(vm, error, "which agent it is protected to is not recorded");
        }
    }

    /// Another side's authority is known until that side says that it has given it back.
    fn note_fenced(&self, from: State, to: State) {
        let fenced = match (from, to) {
            (_, State::Fenced { epoch }) => Some(epoch.0),
            (State::Fenced { .. }, State::Tracking { .. }) => None,
            (_, _) if self.core.sender().link() == LinkState::Up => None,
            (_, _) => return,
        };
        let now = FencedAt { boot_id: self.source.boot_id, up_milliseconds: clock::up_time().milliseconds() };
        let noted = self.vm.note_fenced(&self.source.state, fenced, now);
        self.tell_noted("that it is fenced", noted);
    }

    /// Notes something in the VM's record. Where it cannot be written down it holds all the same.
    fn note(&self, what: &str, change: impl FnOnce(&mut ProtectionRecord)) {
        let noted = self.vm.note(&self.source.state, |record| {
            change(record);
            true
        });
        self.tell_noted(what, noted);
    }

    fn tell_noted(&self, what: &str, noted: anyhow::Result<bool>) {
        if let Err(error) = noted {
            tracing::error!(vm = self.vm.name(), error = format!("{error:#}"), "{what} is not recorded");
        }
    }

    pub(super) fn note_clock(&mut self, answer: &ClockAnswer) {
        self.clock_skew_seconds = Some(skew_seconds(answer, clock::wall()));
    }

    pub(super) fn adopt_epoch(&mut self, epoch: Epoch) {
        tracing::info!(vm = self.vm.name(), %epoch, "epoch");
        self.note("epoch", |record| record.epoch = epoch.0);
    }
}

/// How far the peer's clock is ahead of this host's, as it says: its clock is taken to have been read half way between
/// asking and hearing. Both of its times may be any.
fn skew_seconds(answer: &ClockAnswer, heard_at: WallTime) -> f64 {
    let [asked_at, says, heard_at] = [answer.asked_at, answer.says, heard_at].map(|time| i128::from(time.0));
    (says - (asked_at + heard_at) / 2) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_says_what_cannot_be_is_only_far_off() {
        let of = |asked_at, says| {
            let answer = ClockAnswer { asked_at: WallTime(asked_at), says: WallTime(says) };
            skew_seconds(&answer, WallTime(5_000_000))
        };
        assert_eq!(of(3_000_000, 9_000_000), 5.0);
        assert_eq!(of(3_000_000, 2_000_000), -2.0);
        assert!(of(i64::MAX, i64::MIN) < -1e13 && of(i64::MIN, i64::MAX) > 1e13);
    }
}
