//! One seed played: what happens is drawn by chance, one event after the other.

use crate::invariants::*;
use crate::link::Connection;
use crate::moment::Moment;
use crate::recovery::{RecoveryVm, SETTINGS};
use crate::rng::Rng;
use crate::source::SourceVm;
use crate::summary::Summary;
use crate::whole_draw::Whole;
use crate::wide::Wide;
use joint::promise::Promises;
use journal::Mode;
use replication::{ReceiverEvent, SenderEvent};
use splitter::{OnTimeout, SyncPolicy};
use std::sync::Arc;
use std::time::Duration;
use types::{
    Checkpoint, CheckpointId, CheckpointKind, GroupCounter, Monotonic, RunNumber, WallTime, WriteSeq,
};

const EVENTS: u64 = 2500;
pub(crate) const VMS: u8 = 2;
/// Heavy comparisons are made this often, and at the end.
const LOOK_EVERY: u64 = 250;
/// Fewer than this many steps are taken by the threads of a VM's agent between two events.
const THREAD_STEPS: u64 = 9;

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Monotonic,
    pub(crate) run: u32,
    pub(crate) counter: Arc<GroupCounter>,
    pub(crate) pairs: Vec<Pair>,
    /// What the VMs may promise their guests.
    pub(crate) promises: Promises,
    pub(crate) links: Vec<Option<Connection>>,
    pub(crate) wants: Vec<bool>,
    pub(crate) network_up: bool,
    /// Where each journal stood when its group failed over.
    pub(crate) fenced_at: Option<Vec<WriteSeq>>,
    pub(crate) summary: Summary,
    /// How far the clocks of the protected and of the recovery side are off, in microseconds.
    pub(crate) skew: [i64; 2],
    /// The link is slow in this run: writes wait for it, and checkpoints are rare.
    pub(crate) slow: bool,
    /// What lies in the journals changes by itself in this run.
    pub(crate) spoils: bool,
    /// One in so many faults that are drawn happens.
    pub(crate) calm: u64,
    tell: bool,
    /// What only wide runs play.
    pub(crate) wide: Option<Wide>,
    /// What only whole runs play.
    pub(crate) whole: Option<Whole>,
    /// Numbers of their own for what rots at any time, in runs in which anything does.
    pub(crate) rots: Option<Rng>,
}

/// Plays one seed.
///
/// # Panics
/// Where an invariant does not hold; the seed is said before.
pub fn run(seed: u64, tell: bool) -> Summary {
    play(seed, World::new(seed, tell, None, None))
}

/// Plays one seed with all that the product does: what [`run`] plays, and images, pins and tags.
///
/// # Panics
/// As [`run`].
pub fn run_wide(seed: u64, tell: bool) -> Summary {
    play(seed, World::new(seed, tell, Some(Wide::new(seed)), None))
}

/// Plays one seed with what [`run_wide`] plays, and with limits, windows, clocks and disks as bad as they come.
///
/// # Panics
/// As [`run`].
pub fn run_whole(seed: u64, tell: bool) -> Summary {
    play(seed, World::new(seed, tell, Some(Wide::new(seed)), Some(Whole::new(seed))))
}

fn play(seed: u64, mut world: World) -> Summary {
    let named = NameOnPanic(seed);
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

/// In half of the whole runs something rots at any time: not in synchronous mode, which promises nothing then.
fn rots(seed: u64) -> bool {
    matches!(seed % 8, 1 | 3 | 4 | 7)
}

impl World {
    fn new(seed: u64, tell: bool, wide: Option<Wide>, whole: Option<Whole>) -> Self {
        std::panic::set_hook(Box::new(move |info| eprintln!("seed {seed}: {info}")));
        let mut rng = Rng::new(seed);
        let mut pairs = Vec::new();
        for number in 1..=VMS {
            let size = (4 + rng.below(12)) * 65_536 + 512 * rng.below(128);
            let source = SourceVm::new(number, size, policy(seed), &mut rng);
            let initial = source.disk.content();
            let settings = whole.as_ref().map_or(SETTINGS, Whole::settings);
            pairs.push(Pair { source, recovery: RecoveryVm::new(settings), initial });
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
            wide,
            rots: (whole.is_some() && rots(seed)).then(|| Rng::new(seed ^ 0x000d_eca7)),
            whole,
        };
        world.start_sources();
        world
    }

    pub(crate) fn say(&self, what: &str) {
        if self.tell {
            eprintln!("{:9.3} {what}", self.now.0.as_secs_f64());
        }
    }

    pub(crate) fn start_sources(&mut self) {
        self.run += 1;
        self.counter = Arc::new(GroupCounter::new(WriteSeq::before_run(RunNumber(self.run))));
        for pair in &mut self.pairs {
            pair.source.start_agent(&self.counter, self.now, &mut self.rng);
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.rng.below(40)));
        self.tell_streams();
        self.play_wide();
        self.play_whole();
        self.play_rot();
        self.run_threads();
        let vm = self.rng.below(VMS.into()) as usize;
        match self.rng.below(1000) {
            0..150 => self.guest_write(vm),
            150..500 if self.sends() => self.deliver(vm),
            500..750 => self.append(vm),
            750..880 if self.sends() => self.tick(vm),
            880..910 => self.checkpoint(),
            150..500 | 750..880 => {}
            910..918 if self.moves(vm) => self.keep_up(vm),
            918..920 if self.spoils && self.moves(vm) => self.spoil(vm),
            910..918 => {}
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

    pub(crate) fn sender(&mut self, vm: usize, event: SenderEvent) {
        let mut wants = self.wants[vm];
        let source = &mut self.pairs[vm].source;
        source.run(self.now, event, &mut self.links[vm], &mut wants, &mut |_| {});
        self.wants[vm] = wants;
        let asks = source.agent.as_mut().is_some_and(|agent| std::mem::take(&mut agent.asks_others));
        if asks {
            self.pairs.iter_mut().enumerate().filter(|(at, _)| *at != vm).for_each(|(_, other)| {
                other.source.want_watermark();
            });
        }
    }

    /// What is done beside the streams goes on by a few steps.
    pub(crate) fn run_threads(&mut self) {
        for vm in 0..usize::from(VMS) {
            for _ in 0..self.rng.below(THREAD_STEPS) {
                if let Some(event) = self.pairs[vm].source.step_of_a_thread(&mut self.rng) {
                    self.sender(vm, event);
                }
            }
        }
    }

    pub(crate) fn receiver(&mut self, vm: usize, event: ReceiverEvent) {
        self.pairs[vm].recovery.run(self.now, event, &mut self.links[vm]);
    }

    pub(crate) fn deliver(&mut self, vm: usize) {
        for _ in 0..1 + self.rng.below(4) {
            let Some(link) = &mut self.links[vm] else { return };
            if self.rng.one_in(2) {
                if self.pairs[vm].recovery.stands_still > 0 {
                    continue;
                }
                if let Some(message) = link.to_receiver.receive() {
                    self.receiver(vm, ReceiverEvent::Received(message));
                }
            } else if let Some(message) = link.to_sender.receive() {
                self.sender(vm, SenderEvent::Received(message));
            }
        }
    }

    pub(crate) fn append(&mut self, vm: usize) {
        if self.pairs[vm].recovery.stands_still > 0 {
            return;
        }
        let wall = self.wall(1);
        self.pairs[vm].recovery.append(self.now, wall, &mut self.links[vm], &mut self.rng);
    }

    pub(crate) fn tick(&mut self, vm: usize) {
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
        self.sender(vm, SenderEvent::Tick);
        if self.pairs[vm].recovery.stands_still == 0 {
            self.receiver(vm, ReceiverEvent::Tick);
        }
    }

    /// A cut of the group, as the agent takes it.
    fn checkpoint(&mut self) {
        let kind = self.kind_of_checkpoint();
        let agents: Option<Vec<_>> = self.pairs.iter().map(|pair| pair.source.agent.as_ref()).collect();
        let Some(agents) = agents else { return };
        if agents.iter().any(|agent| agent.capture().status().gap_open) {
            return;
        }
        let cut = self.counter.draw();
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind,
            taken_at: self.wall(0),
            members: VMS.into(),
            tag: if kind == CheckpointKind::Tagged { words_of(cut) } else { String::new() },
        };
        for agent in agents {
            if agent.capture().mark_checkpoint(&checkpoint).is_none() {
                return self.say(&format!("there is no room for checkpoint {cut}"));
            }
        }
        self.say(&format!("checkpoint {cut}"));
    }

    pub(crate) fn keep_up(&mut self, vm: usize) {
        let Some(journal) = self.pairs[vm].recovery.journal.clone() else { return };
        let mut settings = journal.status().settings;
        let bytes_soft = if self.rng.one_in(2) { 0 } else { 1 + self.rng.below(2 << 20) };
        settings.bytes_soft = self.whole.as_ref().map_or(bytes_soft, |whole| whole.settings().bytes_soft);
        if self.rng.one_in(4) {
            settings.mode = if self.rng.one_in(2) { Mode::Rollback } else { Mode::RollForward };
        }
        journal.set(settings);
        let before = journal.status().applied;
        let how = self.moment().upkeep(self.rng.sixteen());
        // A full or failing disk may hinder it; nothing is lost then.
        if let Some(kept) = self.pairs[vm].recovery.keep_up(&how) {
            self.summary.folds += u64::from(kept.applied > before);
            self.summary.merges += kept.merges as u64;
            self.say(&format!("{vm} keeps up: {kept:?}"));
        }
    }

    /// Streams that damage was found under some time ago hear of it.
    fn tell_streams(&mut self) {
        for vm in 0..usize::from(VMS) {
            let Some(event) = self.pairs[vm].recovery.hears_of_damage() else { continue };
            self.say(&format!("the stream of {vm} hears of its damage: {event:?}"));
            let is_stopped = matches!(event, ReceiverEvent::Stopped(_));
            self.receiver(vm, event);
            if is_stopped {
                self.cut_link(vm);
            }
        }
    }

    /// Each guest is told of its writes as far as its VM may promise them.
    pub(crate) fn answer_guests(&mut self) {
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

    pub(crate) fn moment(&self) -> Moment {
        Moment { now: self.now, wall: self.wall(1) }
    }

    /// What the clock of the protected side (0) or the recovery side (1) says. Nothing may depend on it but
    /// labels and how much history is kept.
    pub(crate) fn wall(&self, side: usize) -> WallTime {
        WallTime(self.now.0.as_micros() as i64 + self.skew[side])
    }

    /// Everything that holds after each event is asked for, where every file can be read.
    pub(crate) fn check(&mut self, in_full: bool) {
        let stores: Vec<_> = self.pairs.iter().map(|pair| pair.recovery.store.clone()).collect();
        stores[0].spared(|| stores[1].spared(|| self.check_all(in_full)));
    }

    fn check_all(&mut self, in_full: bool) {
        self.answer_guests();
        invariant_what_was_promised_is_at_the_other_side(&self.pairs);
        for pair in &mut self.pairs {
            pair.recovery.note_applied();
            invariant_history_goes_only_by_retention(pair, self.now);
            invariant_memory_is_bounded(pair);
        }
        for (at, pair) in self.pairs.iter().enumerate() {
            invariant_checkpoint_never_precedes_its_writes(pair);
            invariant_one_writer_per_epoch(pair, self.fenced_at.as_ref().map(|all| all[at]));
            if in_full {
                let (all, damaged) = invariant_image_at_checkpoint_equals_guest_disk_then(pair);
                self.summary.checkpoints_compared += all;
                self.summary.damaged_checkpoints += damaged;
                invariant_dirty_marks_cover_every_unsent_block(pair);
            }
        }
        if in_full {
            self.check_wide();
            self.check_whole();
            invariant_tail_is_one_moment(&self.pairs);
        }
    }
}
