//! What happens, one event after the other.

use super::kept::admit;
use super::{GroupVm, GroupWorld, Guest, Protected};
use crate::link::Connection;
use crate::local_disk::SimDisk;
use crate::moment::Moment;
use crate::rng::Rng;
use crate::summary::Summary;
use crate::world::NameOnPanic;
use joint::promise::Promises;
use journal::Mode;
use replication::{ReceiverEvent, SenderEvent};
use splitter::{OnTimeout, SyncPolicy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use types::{GroupCounter, Monotonic, RunNumber, WallTime, WriteSeq};

const GUESTS: u64 = 3;
const EVENTS: u64 = 1600;
const LOOK_EVERY: u64 = 200;
const THREAD_STEPS: u64 = 9;

/// Plays one seed of a group whose members come and go.
///
/// # Panics
/// Where an invariant does not hold; the seed is said before.
pub fn run_group(seed: u64, tell: bool) -> Summary {
    let named = NameOnPanic(seed);
    let mut world = GroupWorld::new(seed, tell);
    for event in 0..EVENTS {
        world.step();
        world.check(event % LOOK_EVERY == LOOK_EVERY - 1);
    }
    world.rest();
    std::mem::forget(named);
    world.summary
}

fn policy(seed: u64) -> Option<SyncPolicy> {
    let on_timeout = if seed % 8 == 6 { OnTimeout::Hold } else { OnTimeout::Degrade };
    seed.is_multiple_of(2).then_some(SyncPolicy { timeout: Duration::ZERO, on_timeout })
}

impl GroupWorld {
    fn new(seed: u64, tell: bool) -> Self {
        std::panic::set_hook(Box::new(move |info| eprintln!("seed {seed}: {info}")));
        let mut rng = Rng::new(seed ^ 0x6_7209);
        let guests = (1..=GUESTS).map(|number| {
            let size = (3 + rng.below(5)) * 65_536 + 512 * rng.below(128);
            Guest { name: format!("web-{number}"), disk: SimDisk::new(size, &mut rng) }
        });
        let guests = guests.collect();
        let mut world = Self {
            now: Monotonic(Duration::from_secs(1)),
            run: 1,
            counter: Arc::new(GroupCounter::new(WriteSeq::before_run(RunNumber(1)))),
            guests,
            vms: Vec::new(),
            named: 0,
            group: 1,
            promises: Promises::default(),
            sync: policy(seed),
            network_up: true,
            site: super::site::Site::default(),
            taken: BTreeMap::new(),
            promised: WriteSeq::ZERO,
            calm: [1, 3, 10, 40][rng.below(4) as usize],
            rng,
            tell,
            summary: Summary::default(),
        };
        world.protect(0);
        world.protect(1);
        world
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.rng.below(40)));
        self.clear();
        let Some(vm) = self.any_vm() else { return self.come_and_go() };
        self.run_threads();
        self.play_images(vm);
        self.go_on_with_lives();
        if self.rng.one_in(20) {
            self.lie(vm);
        }
        match self.rng.below(1000) {
            0..150 => self.guest_write(vm),
            150..480 => self.deliver(vm),
            480..730 => self.append(vm),
            730..870 => self.tick(vm),
            870..905 => self.checkpoint(),
            905..914 => self.open_or_keep_up(vm),
            914..915 => self.begin_move(vm),
            915..920 => self.vms[vm].pair.source.flush(self.rng.one_in(2)),
            920..935 => self.come_and_go(),
            935..940 => self.play_failover(),
            fault if self.rng.one_in(self.calm) => self.fault(fault - 940, vm),
            _ => {}
        }
    }

    fn fault(&mut self, what: u64, vm: usize) {
        match what {
            0..20 => self.cut_link(vm),
            20..28 => self.network_up = !self.network_up,
            28..34 => {
                let power = self.rng.one_in(2);
                self.crash_sources(power);
            }
            34..44 => self.crash_recovery(),
            44..48 => self.sender(vm, SenderEvent::Resync),
            48..54 => {
                let left = self.rng.one_in(2).then(|| self.rng.below(4));
                self.summary.failed_syncs += 1;
                self.vms[vm].pair.recovery.store.fail_sync_after(left);
            }
            _ => self.now = self.now.plus(Duration::from_secs(self.rng.below(8))),
        }
    }

    fn guest_write(&mut self, at: usize) {
        let vm = &mut self.vms[at];
        if vm.protected == Protected::Yes && vm.pair.source.guest_write(&mut self.rng) {
            self.summary.writes += 1;
            self.sender(at, SenderEvent::Tick);
        } else if self.rng.one_in(40) {
            self.vms[at].pair.source.time_out();
        }
    }

    pub(super) fn sender(&mut self, at: usize, event: SenderEvent) {
        let GroupVm { pair, link, wants, .. } = &mut self.vms[at];
        pair.source.run(self.now, event, link, wants, &mut |_| {});
        let asks = pair.source.agent.as_mut().is_some_and(|agent| std::mem::take(&mut agent.asks_others));
        if asks {
            let others = self.vms.iter_mut().enumerate().filter(|(other, _)| *other != at);
            others.for_each(|(_, other)| other.pair.source.want_watermark());
        }
    }

    pub(super) fn run_threads(&mut self) {
        for vm in 0..self.vms.len() {
            for _ in 0..self.rng.below(THREAD_STEPS) {
                if let Some(event) = self.vms[vm].pair.source.step_of_a_thread(&mut self.rng) {
                    self.sender(vm, event);
                }
            }
        }
    }

    pub(super) fn receiver(&mut self, at: usize, event: ReceiverEvent) {
        let others = self.others_kept(at);
        let (site, now) = (&self.site, self.now);
        let GroupVm { pair, record, lived, link, .. } = &mut self.vms[at];
        pair.recovery.run_with(now, event, link, &mut |recovery, hello| {
            admit((recovery, &mut *lived), record, (site, &others), hello)
        });
    }

    pub(super) fn deliver(&mut self, at: usize) {
        for _ in 0..1 + self.rng.below(4) {
            let Some(link) = &mut self.vms[at].link else { return };
            if self.rng.one_in(2) {
                if let Some(message) = link.to_receiver.receive() {
                    self.receiver(at, ReceiverEvent::Received(message));
                }
            } else if let Some(message) = link.to_sender.receive() {
                self.sender(at, SenderEvent::Received(message));
            }
        }
    }

    pub(super) fn append(&mut self, at: usize) {
        let wall = WallTime(self.now.0.as_micros() as i64);
        let GroupVm { pair, link, .. } = &mut self.vms[at];
        pair.recovery.append(self.now, wall, link, &mut self.rng);
    }

    pub(super) fn tick(&mut self, at: usize) {
        self.tell_departure(at);
        if std::mem::take(&mut self.vms[at].wants) {
            if self.network_up {
                self.vms[at].link = Some(Connection::default());
                // Whoever streams lets go before another may.
                self.vms[at].lived.end_stream();
                self.vms[at].pair.recovery.accept(self.now);
                self.sender(at, SenderEvent::LinkUp);
            } else {
                self.sender(at, SenderEvent::LinkLost);
            }
        }
        self.sender(at, SenderEvent::Tick);
        self.receiver(at, ReceiverEvent::Tick);
    }

    /// A kept journal that is closed is opened, by itself, also where nobody comes for it.
    pub(super) fn open(&mut self, at: usize) {
        let GroupVm { pair, lived, record, .. } = &mut self.vms[at];
        if record.is_some() {
            lived.opens(&mut pair.recovery);
        }
    }

    fn open_or_keep_up(&mut self, at: usize) {
        self.open(at);
        self.begin_upkeep(at);
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now: self.now, wall: WallTime(self.now.0.as_micros() as i64) }
    }

    pub(super) fn keep_up(&mut self, at: usize) {
        let how = self.moment().upkeep(self.rng.sixteen());
        let recovery = &mut self.vms[at].pair.recovery;
        let Some(journal) = recovery.journal.clone() else { return };
        let mut settings = journal.status().settings;
        if self.rng.one_in(4) {
            settings.mode = if self.rng.one_in(2) { Mode::Rollback } else { Mode::RollForward };
        }
        journal.set(settings);
        let before = journal.status().applied;
        if let Some(kept) = recovery.keep_up(&how) {
            self.summary.folds += u64::from(kept.applied > before);
            self.summary.merges += kept.merges as u64;
        }
    }

    pub(super) fn cut_link(&mut self, at: usize) {
        if self.vms[at].link.take().is_some() {
            self.summary.links_cut += 1;
            self.sender(at, SenderEvent::LinkLost);
        }
    }

    pub(super) fn crash_recovery(&mut self) {
        let power = self.rng.one_in(2);
        self.say(if power { "the recovery side loses power" } else { "the recovery side's agent is killed" });
        self.summary.recovery_crashes += 1;
        self.summary.power_losses += u64::from(power);
        for at in 0..self.vms.len() {
            let vm = &mut self.vms[at];
            vm.pair.recovery.crash(power, &mut self.rng);
            vm.lived.crash();
            self.cut_link(at);
            self.open(at);
        }
    }
}
