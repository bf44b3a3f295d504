//! The front ends' figures: a guest's writes through Holdfast, beside QEMU's own servers on the same file.
//!
//! Each round every target serves the same preallocated file in turn, with direct I/O, and takes every workload.
//! NBD clients are fio's; vhost-user clients are the `blkio` crate's driver, in a process of its own.

mod generator;
mod scale;
mod targets;

use crate::Run;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result};
use generator::Sample;
pub(crate) use generator::run as run_generator;
use targets::{Holdfast, Journal, Protection, Qemu, RunningVm};

const IMAGE_BYTES: u64 = 2 << 30;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    name: &'static str,
    random: bool,
    block_bytes: u64,
    depth: u64,
}

const fn workload(name: &'static str, random: bool, block_bytes: u64, depth: u64) -> Workload {
    Workload { name, random, block_bytes, depth }
}

const RANDOM_ONE: Workload = workload("4 KiB random, depth 1", true, 4 << 10, 1);
const RANDOM_MANY: Workload = workload("4 KiB random, depth 32", true, 4 << 10, 32);
const STREAMED: Workload = workload("128 KiB sequential, depth 8", false, 128 << 10, 8);
const STREAMED_LARGE: Workload = workload("1 MiB sequential, depth 8", false, 1 << 20, 8);

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    run.sections(&[("nbd", nbd), ("vhost", vhost), ("tap", tap), ("scale", scale::scale)])
}

/// Samples of one target, by workload and round.
struct Samples {
    workloads: &'static [Workload],
    rounds: Vec<Vec<Sample>>,
}

impl Samples {
    fn new(workloads: &'static [Workload]) -> Self {
        Self { workloads, rounds: Vec::new() }
    }

    /// One round against a socket. `settled` is called before each workload.
    fn measure(
        &mut self,
        run: &Run,
        sample: impl Fn(&Workload, f64) -> Result<Sample>,
        settled: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let seconds = if run.quick { 0.5 } else { 2.0 };
        let mut round = Vec::new();
        for workload in self.workloads {
            settled()?;
            round.push(sample(workload, seconds).with_context(|| format!("measure {}", workload.name))?);
        }
        self.rounds.push(round);
        Ok(())
    }

    fn all(&self, workload: &Workload, value: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let at = self.workloads.iter().position(|other| other == workload).expect("one that was measured");
        self.rounds.iter().map(|round| value(&round[at])).collect()
    }

    /// This target's writes a second beside another's.
    fn against(&self, other: &Samples, title: &str, workload: &Workload, goal: Goal) -> Figure {
        let rate = |samples: &Samples| samples.all(workload, |sample| sample.per_second);
        let name = format!("{title}: {}", workload.name);
        Figure::against(&name, &rate(self), &rate(other), "writes/s", goal)
    }
}

/// In which order targets are measured: each round another begins, since a disk may be fast for a while only.
fn turns(round: usize, targets: usize) -> impl Iterator<Item = usize> {
    (0..targets).map(move |at| (at + round) % targets)
}

fn nbd(run: &Run) -> Result<Vec<Figure>> {
    const WORKLOADS: &[Workload] = &[RANDOM_ONE, RANDOM_MANY, STREAMED];
    let image = targets::preallocated(&run.folder, IMAGE_BYTES)?;
    let protections = [
        (Protection::Paused, "NBD, paused: the bitmap only", None),
        (Protection::Replicated(Journal::InMemory), "NBD, replicated, journal in memory", Some(1.2)),
    ];
    let mut ours = protections.map(|_| Samples::new(WORKLOADS));
    let [mut of_disk, mut of_qemu_nbd, mut of_daemon] = [(); 3].map(|()| Samples::new(WORKLOADS));
    for round in 0..run.rounds() {
        let sample = |workload: &Workload, seconds| generator::on_file(&image, workload, seconds);
        of_disk.measure(run, sample, || Ok(()))?;
        for turn in turns(round, 2 + protections.len()) {
            if let Some((protection, ..)) = protections.get(turn) {
                let target = Holdfast::start(&run.folder, &image, *protection)?;
                let uri = target.nbd_uri()?;
                let sample = |workload: &Workload, seconds| generator::over_nbd(&uri, workload, seconds);
                ours[turn].measure(run, sample, || target.wait_until_drained())?;
                continue;
            }
            let (target, samples) = if turn == protections.len() {
                (Qemu::nbd(&run.folder, &image)?, &mut of_qemu_nbd)
            } else {
                (Qemu::daemon_nbd(&run.folder, &image)?, &mut of_daemon)
            };
            let uri = target.nbd_uri();
            let sample = |workload: &Workload, seconds| generator::over_nbd(&uri, workload, seconds);
            samples.measure(run, sample, || Ok(()))?;
        }
    }
    let mut figures = Vec::new();
    for ((_, title, goal), samples) in protections.iter().zip(&ours) {
        for workload in WORKLOADS {
            let goal = goal.filter(|_| workload.depth > 1).map_or(Goal::None, Goal::AtLeast);
            for (peer, others) in [("qemu-nbd", &of_qemu_nbd), ("the storage daemon", &of_daemon)] {
                figures.push(samples.against(others, &format!("{title}, beside {peer}"), workload, goal));
            }
            let title = format!("{title}, beside the disk alone");
            figures.push(samples.against(&of_disk, &title, workload, Goal::None));
        }
    }
    Ok(figures)
}

fn vhost(run: &Run) -> Result<Vec<Figure>> {
    const WORKLOADS: &[Workload] = &[RANDOM_ONE, RANDOM_MANY, STREAMED, STREAMED_LARGE];
    let image = targets::preallocated(&run.folder, IMAGE_BYTES)?;
    let mut of_daemon = Samples::new(WORKLOADS);
    let protections = [
        (Protection::Paused, "vhost-user, paused: the bitmap only", 0.95),
        (Protection::Replicated(Journal::InMemory), "vhost-user, replicated, journal in memory", 0.90),
        (Protection::Replicated(Journal::OnDisk), "vhost-user, replicated, journal on the same disk", 0.0),
    ];
    let mut ours = protections.map(|_| Samples::new(WORKLOADS));
    for round in 0..run.rounds() {
        for turn in turns(round, 1 + protections.len()) {
            let Some(at) = turn.checked_sub(1) else {
                let target = Qemu::daemon_vhost_user(&run.folder, &image)?;
                let socket = target.socket().to_owned();
                let sample = |workload: &Workload, seconds| {
                    generator::over_vhost_user_patiently(&socket, workload, seconds)
                };
                of_daemon.measure(run, sample, || Ok(()))?;
                continue;
            };
            let target = Holdfast::start(&run.folder, &image, protections[at].0)?;
            let socket = target.vhost_user_socket()?;
            let sample =
                |workload: &Workload, seconds| generator::over_vhost_user(&socket, workload, seconds);
            ours[at].measure(run, sample, || target.wait_until_drained())?;
        }
    }
    let mut figures = Vec::new();
    for ((_, title, goal), samples) in protections.iter().zip(&ours) {
        for workload in WORKLOADS {
            let goal = if *goal > 0.0 { Goal::AtLeast(*goal) } else { Goal::None };
            figures.push(samples.against(&of_daemon, title, workload, goal));
        }
        let added = |value: fn(&Sample) -> f64| -> Vec<f64> {
            let pairs = samples.all(&RANDOM_ONE, value).into_iter().zip(of_daemon.all(&RANDOM_ONE, value));
            pairs.map(|(ours, theirs)| ours - theirs).collect()
        };
        let (p50, p99) = (added(|sample| sample.p50_micros), added(|sample| sample.p99_micros));
        let goal = if *goal > 0.0 { Goal::AtMost(15.0) } else { Goal::None };
        figures.push(Figure::alone(&format!("{title}: added at depth 1, p50"), &p50, "µs", goal));
        figures.push(Figure::alone(&format!("{title}: added at depth 1, p99"), &p99, "µs", Goal::None));
    }
    Ok(figures)
}

/// What a tap costs a VM that runs on its own image, beside the same VM without one.
fn tap(run: &Run) -> Result<Vec<Figure>> {
    const WORKLOADS: &[Workload] = &[RANDOM_ONE, RANDOM_MANY, STREAMED];
    let image = targets::preallocated(&run.folder, IMAGE_BYTES)?;
    let [mut with, mut without] = [(); 2].map(|()| Samples::new(WORKLOADS));
    for _ in 0..run.rounds() {
        let vm = RunningVm::start(&run.folder, &image)?;
        let socket = vm.socket().to_owned();
        let sample = |workload: &Workload, seconds| generator::over_vhost_user(&socket, workload, seconds);
        without.measure(run, sample, || Ok(()))?;
        let target = Holdfast::tap(&run.folder, &vm)?;
        with.measure(run, sample, || target.wait_until_drained())?;
    }
    let mut figures = Vec::new();
    for workload in WORKLOADS {
        figures.push(with.against(&without, "tapped, journal in memory", workload, Goal::None));
        for (name, value) in [("p50", (|s| s.p50_micros) as fn(&Sample) -> f64), ("p99", |s| s.p99_micros)] {
            let name = format!("tapped: {}, {name}", workload.name);
            let (ours, theirs) = (with.all(workload, value), without.all(workload, value));
            figures.push(Figure::against(&name, &ours, &theirs, "µs", Goal::None));
        }
    }
    Ok(figures)
}
