//! What the driver does from time to time: bounds, trust, regions to cool, and its row for the operator.

use super::{Driver, UPKEEP_INTERVAL};
use crate::clock;
use crate::link::TurnedAway;
use crate::source::bounds::Seen;
use crate::source::stream_status::StreamStatus;
use crate::source::verify::Verification;
use replication::{Link as LinkState, SenderEvent, State};
use tokio::task::block_in_place;
use types::Monotonic;
use types::limits::WINDOW_BYTES;

impl Driver {
    pub(super) fn on_tick(&mut self) {
        let now = clock::now();
        self.watch_bounds(now);
        self.place.tick();
        self.send_what_is_granted();
        self.rejoin_sync();
        if now.since(self.upkeep_at) >= UPKEEP_INTERVAL {
            self.upkeep_at = now;
            self.cool_regions();
            self.source.tell_unreadable(&self.vm);
            self.retry.now_and_then(now, &self.vm);
            self.check_trust();
        }
        if let Some(verification) = &mut self.verification {
            let status = self.vm.capture().status();
            let well =
                self.core.sender().state() == State::Journaling && self.core.sender().link() == LinkState::Up;
            verification.follow(&status, well, &self.vm.name());
        }
        self.core.push(SenderEvent::Tick);
    }

    fn cool_regions(&self) {
        let vm = self.vm.clone();
        tokio::task::spawn_blocking(move || {
            let flush = || vm.disks().iter().try_for_each(|disk| disk.sync());
            if let Err(error) = vm.capture().cool_regions(flush) {
                tracing::warn!(vm = vm.name(), %error, "the dirty-region log keeps more regions than it has to");
            }
        });
    }

    /// Ends a connection to a peer that is not trusted any more.
    fn check_trust(&mut self) {
        let Some(peer) = &self.link.peer else { return };
        if let Err(error) = block_in_place(|| peer.check(&self.source.pki)) {
            self.drop_link();
            self.note_lost(Some(TurnedAway::Here), format!("{error:#}"), "link ended");
        }
    }

    fn watch_bounds(&mut self, now: Monotonic) {
        let policy = self.vm.policy();
        let cause = self.last_error.clone();
        if let Some(taken_at) = self.vm.group().newest_complete(self.vm.id()) {
            self.fresh.complete_at(taken_at);
        }
        self.fresh.save_sometimes(&self.source.state, &self.vm.record(), self.source.boot_id);
        let seen = Seen {
            state: self.core.sender().state(),
            fresh: self.fresh,
            link_up: self.core.sender().link() == LinkState::Up,
            fenced: self.vm.record().fenced,
            on_fenced: policy.on_fenced,
            last_ack: self.core.sender().last_ack(),
            sync: self.vm.capture().status().sync,
            turned_away: self.turned_away,
            cause,
        };
        let stops = self.bounds.watch(now, &policy, &seen, &self.vm.name(), &self.source.alerts);
        if stops {
            self.core.push(SenderEvent::Bounds { exceeded: true });
        }
    }

    pub(super) fn publish(&mut self) {
        let written = self.vm.capture().status().write_bytes;
        let saturated = self.core.sender().in_flight_bytes() * 2 >= WINDOW_BYTES;
        if let Some((bytes, took)) = self.rates.follow(clock::now(), written, saturated) {
            self.chooser.note_link(bytes, took);
        }
        let spill = self.core.outbox().view();
        let ack = self.core.sender().last_ack();
        let state = self.core.sender().state();
        *self.vm.lock_status() = StreamStatus {
            state: self.shown_state().to_owned(),
            reason: state.reason(),
            link: self.core.sender().link().name().to_owned(),
            last_error: self.last_error.clone(),
            durable: self.core.sender().acked(),
            journal_bytes: ack.map_or(0, |ack| ack.journal_bytes),
            history_seconds: ack.map_or(0, |ack| ack.history_seconds),
            sent_bytes: self.rates.sent_bytes,
            sent_bytes_per_second: self.rates.sent_per_second,
            write_bytes_per_second: self.rates.written_per_second,
            sync_total_bytes: self.sync_total_bytes,
            rpo_now: self.fresh.age(clock::now()),
            rpo_exceeded: self.bounds.rpo_exceeded(),
            history_exceeded: self.bounds.history_exceeded(),
            clock_skew_seconds: self.clock_skew_seconds,
            spill_bytes: spill.bytes,
            spill_bytes_max: spill.bytes_max,
            verify: self.verification.as_ref().map(Verification::to_api),
        };
    }
}
