//! One seed played: what happens is drawn by chance, one event after the other.

use crate::invariants::*;
use crate::link::Connection;
use crate::recovery::RecoveryVm;
use crate::rng::Rng;
use crate::source::SourceVm;
use joint::promise::Promises;
use journal::{Clock, Mode, Upkeep};
use replication::wire::{Refusal, Refuse};
use replication::{ReceiverEvent, SenderEvent, State};
use splitter::{OnTimeout, SyncPolicy};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use types::{
    Checkpoint, CheckpointId, CheckpointKind, Epoch, GroupCounter, Monotonic, RunNumber, WallTime, WriteSeq,
};

const EVENTS: u64 = 2500;
const VMS: u8 = 2;
/// Heavy comparisons are made this often, and at the end.
const LOOK_EVERY: u64 = 250;
const REST_ROUNDS: u32 = 20_000;

/// What a run went through.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub writes: u64,
    pub checkpoints_compared: u64,
    pub links_cut: u64,
    pub source_crashes: u64,
    pub recovery_crashes: u64,
    pub power_losses: u64,
    pub failovers: u64,
    pub folds: u64,
    pub merges: u64,
    pub full_disks: u64,
    pub failed_syncs: u64,
    pub half_open: u64,
    pub clock_jumps: u64,
    pub verifications: u64,
    pub batches_spilled: u64,
    pub writes_left_out: u64,
    /// Times a guest was told of writes because the other side had them.
    pub promises: u64,
    pub blocks_found_to_differ: u64,
    pub source_power_losses: u64,
    pub pages_spoilt: u64,
    pub damages: u64,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        self.writes += other.writes;
        self.checkpoints_compared += other.checkpoints_compared;
        self.links_cut += other.links_cut;
        self.source_crashes += other.source_crashes;
        self.recovery_crashes += other.recovery_crashes;
        self.power_losses += other.power_losses;
        self.failovers += other.failovers;
        self.folds += other.folds;
        self.merges += other.merges;
        self.full_disks += other.full_disks;
        self.failed_syncs += other.failed_syncs;
        self.half_open += other.half_open;
        self.clock_jumps += other.clock_jumps;
        self.verifications += other.verifications;
        self.batches_spilled += other.batches_spilled;
        self.writes_left_out += other.writes_left_out;
        self.promises += other.promises;
        self.blocks_found_to_differ += other.blocks_found_to_differ;
        self.source_power_losses += other.source_power_losses;
        self.pages_spoilt += other.pages_spoilt;
        self.damages += other.damages;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} guest writes, {} checkpoints compared in full, {} links cut, {} crashes of the source, \
             {} of the recovery side, {} losses of power, {} failovers, {} folds, {} merges, \
             {} full disks, {} failed syncs, {} losses of power at the source, {} verifications, \
             {} blocks found to differ, {} batches spilled, {} writes left out, {} promises in synchronous mode, {} links half open, {} clock jumps, \
             {} pages spoilt, {} damages contained",
            self.writes,
            self.checkpoints_compared,
            self.links_cut,
            self.source_crashes,
            self.recovery_crashes,
            self.power_losses,
            self.failovers,
            self.folds,
            self.merges,
            self.full_disks,
            self.failed_syncs,
            self.source_power_losses,
            self.verifications,
            self.blocks_found_to_differ,
            self.batches_spilled,
            self.writes_left_out,
            self.promises,
            self.half_open,
            self.clock_jumps,
            self.pages_spoilt,
            self.damages
        )
    }
}

struct World {
    rng: Rng,
    now: Monotonic,
    run: u32,
    counter: Arc<GroupCounter>,
    pairs: Vec<Pair>,
    /// What the VMs may promise their guests.
    promises: Promises,
    links: Vec<Option<Connection>>,
    wants: Vec<bool>,
    network_up: bool,
    /// Where each journal stood when its group failed over.
    fenced_at: Option<Vec<WriteSeq>>,
    summary: Summary,
    /// How far the clocks of the protected and of the recovery side are off, in microseconds.
    skew: [i64; 2],
    /// The link is slow in this run: writes wait for it, and checkpoints are rare.
    slow: bool,
    /// What lies in the journals changes by itself in this run.
    spoils: bool,
    /// One in so many faults that are drawn happens.
    calm: u64,
    tell: bool,
}

/// Plays one seed.
///
/// # Panics
/// Where an invariant does not hold; the seed is said before.
pub fn run(seed: u64, tell: bool) -> Summary {
    let named = NameOnPanic(seed);
    let mut world = World::new(seed, tell);
    for event in 0..EVENTS {
        world.step();
        world.check(event % LOOK_EVERY == LOOK_EVERY - 1);
    }
    world.rest();
    std::mem::forget(named);
    world.summary
}

/// Says the seed if the run does not get to its end.
pub(crate) struct NameOnPanic(pub(crate) u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        eprintln!("violated by seed {}: cargo xtask sim --seed {0}", self.0);
    }
}

/// A quarter of the runs are in synchronous mode. A write has waited for too long when chance says so.
fn policy(seed: u64) -> Option<SyncPolicy> {
    let on_timeout = if seed % 8 == 6 { OnTimeout::Hold } else { OnTimeout::Degrade };
    (seed % 4 == 2).then_some(SyncPolicy { timeout: Duration::ZERO, on_timeout })
}

impl World {
    fn new(seed: u64, tell: bool) -> Self {
        std::panic::set_hook(Box::new(move |info| eprintln!("seed {seed}: {info}")));
        let mut rng = Rng::new(seed);
        let mut pairs = Vec::new();
        for number in 1..=VMS {
            let size = (4 + rng.below(12)) * 65_536 + 512 * rng.below(128);
            let source = SourceVm::new(number, size, policy(seed), &mut rng);
            let initial = source.disk.content();
            pairs.push(Pair { source, recovery: RecoveryVm::new(), initial });
        }
        let calm = [1, 3, 10, 40][rng.below(4) as usize];
        let mut world = Self {
            calm,
            slow: seed % 4 == 3,
            spoils: seed % 8 == 5,
            rng,
            now: Monotonic(Duration::from_secs(1)),
            run: 0,
            counter: Arc::new(GroupCounter::new(WriteSeq::ZERO)),
            promises: Promises::default(),
            links: (0..VMS).map(|_| None).collect(),
            wants: vec![false; VMS.into()],
            pairs,
            network_up: true,
            skew: [0; 2],
            fenced_at: None,
            summary: Summary::default(),
            tell,
        };
        world.start_sources();
        world
    }

    fn say(&self, what: &str) {
        if self.tell {
            eprintln!("{:9.3} {what}", self.now.0.as_secs_f64());
        }
    }

    fn start_sources(&mut self) {
        self.run += 1;
        self.counter = Arc::new(GroupCounter::new(WriteSeq::before_run(RunNumber(self.run))));
        for pair in &mut self.pairs {
            pair.source.start_agent(&self.counter, self.now, &mut self.rng);
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.rng.below(40)));
        self.stop_streams();
        let vm = self.rng.below(VMS.into()) as usize;
        match self.rng.below(1000) {
            0..150 => self.guest_write(vm),
            150..500 if self.sends() => self.deliver(vm),
            500..750 => self.append(vm),
            750..880 if self.sends() => self.tick(vm),
            880..910 => self.checkpoint(),
            150..500 | 750..880 => {}
            910..918 => self.keep_up(vm),
            918..920 if self.spoils => self.spoil(vm),
            918..922 => self.pairs[vm].source.flush(self.rng.one_in(2)),
            // How often anything goes wrong is drawn once for the whole run.
            fault if self.rng.one_in(self.calm) => self.fault(fault - 922, vm),
            _ => {}
        }
    }

    fn guest_write(&mut self, vm: usize) {
        if !self.pairs[vm].source.guest_write(&mut self.rng) {
            if self.rng.one_in(40) {
                self.say(&format!("the guest of {vm} has waited for too long"));
                self.pairs[vm].source.time_out();
            }
            return;
        }
        self.summary.writes += 1;
        if !self.slow {
            self.sender(vm, SenderEvent::Tick);
        }
    }

    /// Whether the link carries anything now.
    fn sends(&self) -> bool {
        !self.slow || self.summary.writes % 64 < 24
    }

    fn fault(&mut self, what: u64, vm: usize) {
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

    fn sender(&mut self, vm: usize, event: SenderEvent) {
        let mut wants = self.wants[vm];
        let source = &mut self.pairs[vm].source;
        source.run(self.now, event, &mut self.links[vm], &mut wants, &mut |_| {});
        self.wants[vm] = wants;
    }

    fn receiver(&mut self, vm: usize, event: ReceiverEvent) {
        self.pairs[vm].recovery.run(self.now, event, &mut self.links[vm]);
    }

    fn deliver(&mut self, vm: usize) {
        for _ in 0..1 + self.rng.below(4) {
            let Some(link) = &mut self.links[vm] else { return };
            if self.rng.one_in(2) {
                if let Some(message) = link.to_receiver.receive() {
                    self.receiver(vm, ReceiverEvent::Received(message));
                }
            } else if let Some(message) = link.to_sender.receive() {
                self.sender(vm, SenderEvent::Received(message));
            }
        }
    }

    fn append(&mut self, vm: usize) {
        let wall = self.wall(1);
        self.pairs[vm].recovery.append(self.now, wall, &mut self.links[vm], &mut self.rng);
    }

    fn tick(&mut self, vm: usize) {
        if self.wants[vm] {
            self.wants[vm] = false;
            if self.network_up {
                self.links[vm] = Some(Connection::default());
                self.pairs[vm].recovery.accept(self.now);
                self.sender(vm, SenderEvent::LinkUp);
            } else {
                self.sender(vm, SenderEvent::LinkLost);
            }
        }
        self.pairs[vm].source.tell_watermark();
        self.sender(vm, SenderEvent::Tick);
        self.receiver(vm, ReceiverEvent::Tick);
    }

    /// A cut of the group, as the agent takes it.
    fn checkpoint(&mut self) {
        let agents: Option<Vec<_>> = self.pairs.iter().map(|pair| pair.source.agent.as_ref()).collect();
        let Some(agents) = agents else { return };
        if agents.iter().any(|agent| agent.capture.status().gap_open) {
            return;
        }
        let cut = self.counter.draw();
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: CheckpointKind::Automatic,
            taken_at: self.wall(0),
            members: VMS.into(),
            tag: String::new(),
        };
        for agent in agents {
            agent.capture.mark_checkpoint(&checkpoint).expect("no gap is open");
        }
        self.say(&format!("checkpoint {cut}"));
    }

    fn cut_link(&mut self, vm: usize) {
        if self.links[vm].take().is_some() {
            self.say(&format!("link of {vm} is cut"));
            self.summary.links_cut += 1;
            self.sender(vm, SenderEvent::LinkLost);
        }
    }

    fn crash_sources(&mut self, power: bool) {
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

    /// What an agent counted, before it is gone.
    fn take_counts(&mut self, vm: usize) {
        if let Some(agent) = &self.pairs[vm].source.agent {
            self.summary.blocks_found_to_differ += agent.differing;
            self.summary.batches_spilled += agent.spilled_batches;
            self.summary.writes_left_out += agent.writes_left_out;
        }
    }

    /// What the clock of the protected side (0) or the recovery side (1) says. Nothing may depend on it but
    /// labels and how much history is kept.
    fn wall(&self, side: usize) -> WallTime {
        WallTime(self.now.0.as_micros() as i64 + self.skew[side])
    }

    /// Somebody sets a clock, by up to two hours in either direction.
    fn jump_clock(&mut self) {
        self.summary.clock_jumps += 1;
        let side = self.rng.below(2) as usize;
        self.skew[side] += self.rng.below(4 * 3_600_000_000) as i64 - 2 * 3_600_000_000;
        self.say(&format!("the clock of side {side} is off by {} s now", self.skew[side] / 1_000_000));
    }

    /// Both sides are compared while everything goes on.
    fn verify(&mut self, vm: usize) {
        if let Some(agent) = &self.pairs[vm].source.agent
            && !agent.capture.status().gap_open
        {
            self.summary.verifications += 1;
            splitter::verify_everything(&agent.capture, &agent.disks);
        }
    }

    /// Nothing more arrives in one direction, and nobody is told.
    fn half_open(&mut self, vm: usize) {
        if let Some(link) = &mut self.links[vm] {
            self.summary.half_open += 1;
            let pipe = if self.rng.one_in(2) { &mut link.to_sender } else { &mut link.to_receiver };
            pipe.black_hole();
        }
    }

    fn crash_recovery(&mut self) {
        let power = self.rng.one_in(2);
        self.say(if power { "the recovery side loses power" } else { "the recovery side's agent is killed" });
        self.summary.recovery_crashes += 1;
        self.summary.power_losses += u64::from(power);
        for vm in 0..usize::from(VMS) {
            self.pairs[vm].recovery.crash(power, &mut self.rng);
            self.cut_link(vm);
            self.pairs[vm].recovery.reopen();
        }
    }

    fn keep_up(&mut self, vm: usize) {
        let Some(journal) = self.pairs[vm].recovery.journal.clone() else { return };
        let mut settings = journal.status().settings;
        settings.bytes_soft = if self.rng.one_in(2) { 0 } else { 1 + self.rng.below(2 << 20) };
        if self.rng.one_in(4) {
            settings.mode = if self.rng.one_in(2) { Mode::Rollback } else { Mode::RollForward };
        }
        journal.set(settings);
        let before = journal.status().applied;
        // A full or failing disk may hinder it; nothing is lost then.
        let plain = Upkeep::plain(self.wall(1), self.rng.sixteen());
        // What clocks say makes nothing older.
        let how = Upkeep { clock: Clock::Monotonic(self.now), ..plain };
        if let Ok(kept) = journal.keep_up(&how) {
            self.summary.folds += u64::from(kept.applied > before);
            self.summary.merges += kept.merges as u64;
            self.say(&format!("{vm} keeps up: {kept:?}"));
        }
    }

    fn pause_or_resume(&mut self, vm: usize) {
        let paused = !self.pairs[vm].source.paused;
        self.say(&format!("{vm} paused: {paused}"));
        self.pairs[vm].source.paused = paused;
        self.sender(vm, if paused { SenderEvent::Pause } else { SenderEvent::Resume });
    }

    fn failover_or_rollback(&mut self) {
        let journals: Vec<_> = self.pairs.iter().filter_map(|pair| pair.recovery.journal.clone()).collect();
        if journals.len() < self.pairs.len() {
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
        if journals.iter().any(|journal| journal.raise_epoch(epoch).is_err()) {
            return; // A disk that fails just now; the operator would try again.
        }
        self.summary.failovers += 1;
        self.say(&format!("failed over, epoch {epoch}"));
        for pair in &mut self.pairs {
            pair.recovery.fence = Some((epoch, false));
        }
        self.fenced_at = Some(journals.iter().map(|journal| journal.status().last_seq).collect());
    }

    /// Streams that damage was found under some time ago are closed.
    fn stop_streams(&mut self) {
        for vm in 0..usize::from(VMS) {
            if self.pairs[vm].recovery.is_stopped_now() {
                self.say(&format!("the stream of {vm} is stopped for its damage"));
                let refuse = Refuse { why: Refusal::Busy, detail: "damage".into() };
                self.receiver(vm, ReceiverEvent::Stopped(refuse));
                self.cut_link(vm);
            }
        }
    }

    /// What is found to be damaged is contained, and the stream begins anew: not at once, for whoever streams goes on
    /// until it is told.
    fn spoil(&mut self, vm: usize) {
        let wall = self.wall(1);
        let Some(found) = self.pairs[vm].recovery.spoil(wall, &mut self.rng) else { return };
        self.say(&format!("a page of {vm} is spoilt: {found} damages"));
        self.summary.pages_spoilt += 1;
        self.summary.damages += found as u64;
        if found > 0 {
            self.pairs[vm].recovery.stop_soon(&mut self.rng);
        }
    }

    fn fill_disk(&mut self, vm: usize) {
        self.summary.full_disks += 1;
        let room = self.rng.one_in(2).then(|| self.rng.below(300 << 10));
        self.pairs[vm].recovery.store.limit_room(room);
        self.say(&format!("disk of {vm} has room for {room:?}"));
    }

    fn fail_sync(&mut self, vm: usize) {
        self.summary.failed_syncs += 1;
        let left = self.rng.one_in(2).then(|| self.rng.below(4));
        self.pairs[vm].recovery.store.fail_sync_after(left);
        self.say(&format!("disk of {vm} fails a sync after {left:?}"));
    }

    /// Each guest is told of its writes as far as its VM may promise them.
    fn answer_guests(&mut self) {
        for pair in &mut self.pairs {
            match pair.source.standing() {
                Some(standing) => self.promises.note(pair.source.vm, standing),
                None => self.promises.left(pair.source.vm),
            };
        }
        for pair in &mut self.pairs {
            pair.source.follow_others(self.promises.others(pair.source.vm));
            let before = pair.source.promised;
            pair.source.answer_guest();
            self.summary.promises += u64::from(pair.source.promised > before);
        }
    }

    fn check(&mut self, in_full: bool) {
        self.answer_guests();
        invariant_what_was_promised_is_at_the_other_side(&self.pairs);
        for (at, pair) in self.pairs.iter().enumerate() {
            invariant_checkpoint_never_precedes_its_writes(pair);
            invariant_one_writer_per_epoch(pair, self.fenced_at.as_ref().map(|all| all[at]));
            if in_full {
                self.summary.checkpoints_compared +=
                    invariant_image_at_checkpoint_equals_guest_disk_then(pair) as u64;
                invariant_dirty_marks_cover_every_unsent_block(pair);
            }
        }
        if in_full {
            invariant_tail_is_one_moment(&self.pairs);
        }
    }

    /// Everything is mended, nobody writes any more: both sides come to be equal.
    fn rest(&mut self) {
        self.say("comes to rest");
        self.network_up = true;
        self.fenced_at = None;
        for pair in &mut self.pairs {
            pair.recovery.store.limit_room(None);
            pair.recovery.store.fail_sync_after(None);
            pair.recovery.fence = pair.recovery.fence.map(|(epoch, _)| (epoch, true));
        }
        for vm in 0..usize::from(VMS) {
            self.cut_link(vm);
            if self.pairs[vm].source.paused {
                self.pause_or_resume(vm);
            }
        }
        for _ in 0..REST_ROUNDS {
            self.now = self.now.plus(Duration::from_millis(50));
            for vm in 0..usize::from(VMS) {
                self.tick(vm);
                self.deliver(vm);
                self.append(vm);
            }
            self.answer_guests();
            if (0..usize::from(VMS)).all(|vm| self.is_at_rest(vm)) {
                break;
            }
        }
        for vm in 0..usize::from(VMS) {
            assert!(self.is_at_rest(vm), "{vm} does not come to rest: {:?}", self.state_of(vm));
            invariant_at_rest_both_sides_are_equal(&self.pairs[vm]);
            self.take_counts(vm);
        }
        self.check(true);
        for vm in 0..usize::from(VMS) {
            let entropy = self.rng.sixteen();
            invariant_nothing_keeps_old_history_from_going(&self.pairs[vm], self.wall(1), entropy);
        }
        self.check(true);
    }

    fn state_of(&self, vm: usize) -> Option<State> {
        self.pairs[vm].source.agent.as_ref().map(|agent| agent.sender.state())
    }

    fn is_at_rest(&self, vm: usize) -> bool {
        let pair = &self.pairs[vm];
        let link_is_quiet = self.links[vm]
            .as_ref()
            .is_some_and(|link| link.to_receiver.is_empty() && link.to_sender.is_empty());
        let Some(agent) = &pair.source.agent else { return false };
        let status = agent.capture.status();
        let sent =
            status.released == status.last && status.buffered_bytes == 0 && status.unsettled_blocks == 0;
        let told = agent.unanswered.iter().all(|(seq, _)| agent.capture.may_acknowledge(*seq));
        agent.sender.state() == State::Journaling && sent && told && link_is_quiet && pair.recovery.is_idle()
    }
}
