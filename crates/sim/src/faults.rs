//! What goes wrong in a run: links, power, disks, clocks, and what operators do meanwhile.

use crate::world::{VMS, World};
use replication::SenderEvent;
use std::time::Duration;
use types::{Epoch, RunNumber, WriteSeq};

impl World {
    pub(crate) fn fault(&mut self, what: u64, vm: usize) {
        match what {
            0..20 => self.cut_link(vm),
            20..28 => self.network_up = !self.network_up,
            28..33 => {
                let power = self.rng.one_in(2);
                self.crash_sources(power);
            }
            33..43 => self.crash_recovery(),
            43..51 => self.pause_or_resume(vm),
            51..56 => self.failover_or_rollback(),
            56..64 => self.fill_disk(vm),
            64..70 => self.fail_sync(vm),
            70..72 => self.verify(vm),
            72..73 => self.sender(vm, SenderEvent::Resync),
            73..75 => self.half_open(vm),
            75..76 => self.pairs[vm].source.rot_spill(&mut self.rng),
            76..77 => self.jump_clock(),
            _ => self.now = self.now.plus(Duration::from_secs(self.rng.below(8))),
        }
    }

    pub(crate) fn cut_link(&mut self, vm: usize) {
        if self.links[vm].take().is_some() {
            self.say(&format!("link of {vm} is cut"));
            self.summary.links_cut += 1;
            self.sender(vm, SenderEvent::LinkLost);
        }
    }

    pub(crate) fn crash_sources(&mut self, power: bool) {
        self.say(if power { "the source's host loses power" } else { "the source's agent is killed" });
        self.summary.source_crashes += 1;
        self.summary.source_power_losses += u64::from(power);
        // Above everything of the run that ends, below everything of the next.
        let between = WriteSeq::before_run(RunNumber(self.run + 1));
        for vm in 0..usize::from(VMS) {
            self.links[vm] = None;
            self.wants[vm] = false;
            self.take_counts(vm);
            match power {
                true => self.pairs[vm].source.lose_power(between, &mut self.rng),
                false => self.pairs[vm].source.agent = None,
            }
        }
        self.start_sources();
    }

    /// Somebody sets a clock, by up to two hours in either direction.
    pub(crate) fn jump_clock(&mut self) {
        self.summary.clock_jumps += 1;
        let side = self.rng.below(2) as usize;
        self.skew[side] += self.rng.below(4 * 3_600_000_000) as i64 - 2 * 3_600_000_000;
        self.say(&format!("the clock of side {side} is off by {} s now", self.skew[side] / 1_000_000));
    }

    /// Both sides are compared while everything goes on.
    pub(crate) fn verify(&mut self, vm: usize) {
        if let Some(agent) = &self.pairs[vm].source.agent
            && !agent.capture().status().gap_open
        {
            self.summary.verifications += 1;
            splitter::verify_everything(agent.capture(), agent.disks());
        }
    }

    /// Nothing more arrives in one direction, and nobody is told.
    pub(crate) fn half_open(&mut self, vm: usize) {
        if let Some(link) = &mut self.links[vm] {
            self.summary.half_open += 1;
            let pipe = if self.rng.one_in(2) { &mut link.to_sender } else { &mut link.to_receiver };
            pipe.black_hole();
        }
    }

    pub(crate) fn crash_recovery(&mut self) {
        let power = self.rng.one_in(2);
        self.say(if power { "the recovery side loses power" } else { "the recovery side's agent is killed" });
        self.summary.recovery_crashes += 1;
        self.summary.power_losses += u64::from(power);
        for vm in 0..usize::from(VMS) {
            self.pairs[vm].recovery.crash(power, &mut self.rng);
            self.cut_link(vm);
            if self.moves(vm) {
                self.pairs[vm].recovery.reopen();
            }
        }
    }

    pub(crate) fn pause_or_resume(&mut self, vm: usize) {
        let paused = !self.pairs[vm].source.paused;
        self.say(&format!("{vm} paused: {paused}"));
        self.pairs[vm].source.paused = paused;
        self.sender(vm, if paused { SenderEvent::Pause } else { SenderEvent::Resume });
    }

    pub(crate) fn failover_or_rollback(&mut self) {
        let journals: Vec<_> = self.pairs.iter().filter_map(|pair| pair.recovery.journal.clone()).collect();
        if journals.len() < self.pairs.len() || (0..self.pairs.len()).any(|vm| !self.moves(vm)) {
            return;
        }
        if self.fenced_at.take().is_some() {
            self.say("rolled back");
            for pair in &mut self.pairs {
                pair.recovery.fence = pair.recovery.fence.map(|(epoch, _)| (epoch, true));
            }
            return;
        }
        let epoch =
            journals.iter().map(|journal| journal.status().epoch).max().unwrap_or(Epoch::FIRST).next();
        if journals.iter().any(|journal| journal.fence(epoch, Duration::ZERO).is_err()) {
            return; // A disk that fails just now; the operator would try again.
        }
        self.summary.failovers += 1;
        self.say(&format!("failed over, epoch {epoch}"));
        for pair in &mut self.pairs {
            pair.recovery.fence = Some((epoch, false));
        }
        self.fenced_at = Some(journals.iter().map(|journal| journal.status().last_seq).collect());
    }

    /// What is found to be damaged is contained, and the stream begins anew: not at once, for whoever streams goes on
    /// until it is told.
    pub(crate) fn spoil(&mut self, vm: usize) {
        let moment = self.moment();
        let Some(found) = self.pairs[vm].recovery.spoil(moment, &mut self.rng) else { return };
        self.say(&format!("a page of {vm} is spoilt: {found} damages"));
        self.summary.pages_spoilt += 1;
        self.summary.damages += found as u64;
        if found > 0 {
            self.pairs[vm].recovery.stop_soon(&mut self.rng);
        }
    }

    pub(crate) fn fill_disk(&mut self, vm: usize) {
        self.summary.full_disks += 1;
        let room = self.rng.one_in(2).then(|| self.rng.below(300 << 10));
        self.pairs[vm].recovery.store.limit_room(room);
        self.say(&format!("disk of {vm} has room for {room:?}"));
    }

    pub(crate) fn fail_sync(&mut self, vm: usize) {
        self.summary.failed_syncs += 1;
        let left = self.rng.one_in(2).then(|| self.rng.below(4));
        self.pairs[vm].recovery.store.fail_sync_after(left);
        self.say(&format!("disk of {vm} fails a sync after {left:?}"));
    }
}
