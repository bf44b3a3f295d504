//! Tests whose threads take turns by a seed.

use shuttle::scheduler::{PctScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Room for a thread's stack: what is not optimized takes more of it.
const STACK_BYTES: usize = 1 << 20;
/// Who takes more turns than this does not end.
const TURNS_MAX: usize = 10_000_000;
/// About so many turns in a row a thread has, by the seed: where all have few they meet everywhere, where one has many
/// another stands for long at one place.
const IN_A_ROW: [u64; 4] = [1, 8, 100, 2000];
/// A scheduler that gives threads priorities has so many points at which they change...
const CHANGES: usize = 3;
/// ...and learns from a first run how long one is.
const RUNS_BY_PRIORITY: usize = 4;

/// Plays `body` once for each seed, by which it is drawn whose turn it is; every fifth seed a few times, with priorities.
///
/// # Panics
/// Where a thread panics, or all of them wait for each other; the seed is said then.
pub fn play(seeds: std::ops::Range<u64>, body: impl Fn(u64) + Send + Sync + Clone + 'static) {
    for seed in seeds {
        let named = NameOnPanic(seed);
        match IN_A_ROW.get((seed % 5) as usize) {
            Some(&in_a_row) => run(Turns::new(seed, in_a_row), seed, body.clone()),
            None => {
                run(PctScheduler::new_from_seed(seed, CHANGES, RUNS_BY_PRIORITY), seed, body.clone());
            }
        }
        std::mem::forget(named);
    }
}

fn run(scheduler: impl Scheduler + 'static, seed: u64, body: impl Fn(u64) + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(TURNS_MAX);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || body(seed));
}

/// Whose turn it is, by chance: mostly whose it was before.
struct Turns {
    state: u64,
    in_a_row: u64,
    has_run: bool,
}

impl Turns {
    fn new(seed: u64, in_a_row: u64) -> Self {
        Self { state: seed, in_a_row, has_run: false }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

impl Scheduler for Turns {
    fn new_execution(&mut self) -> Option<Schedule> {
        (!std::mem::replace(&mut self.has_run, true)).then(|| Schedule::new(self.state))
    }

    fn next_task(&mut self, ready: &[&Task], current: Option<TaskId>, gives_way: bool) -> Option<TaskId> {
        let goes_on = ready.iter().map(|task| task.id()).find(|id| Some(*id) == current);
        match goes_on {
            Some(current) if !gives_way && self.below(self.in_a_row) != 0 => Some(current),
            _ => Some(ready[self.below(ready.len() as u64) as usize].id()),
        }
    }

    /// SplitMix64.
    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        eprintln!("violated by seed {}", self.0);
    }
}

/// The seeds to play: as many as the environment's `HOLDFAST_INTERLEAVINGS` says, or `usual`.
///
/// # Panics
/// Where it says something else than a number.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let said = std::env::var("HOLDFAST_INTERLEAVINGS").ok();
    0..said.map_or(usual, |said| said.parse().expect("HOLDFAST_INTERLEAVINGS is a number of seeds"))
}
