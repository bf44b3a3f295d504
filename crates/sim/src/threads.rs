//! What the agent has done beside a stream, by threads of their own: each takes its next step when chance has it, so that
//! the stream goes on, begins anew or loses its link between any two.

use crate::rng::Rng;
use crate::spill::SimSpill;
use batch::Batch;
use joint::outbox::{Spilling, Written};
use joint::source::{SourceCore, hash};
use joint::spill::Spill;
use replication::SenderEvent;
use splitter::copy_some_blocks;
use types::{WallTime, WriteSeq};

/// Batches that are spilled in one go at most.
const SPILL_BATCHES: u32 = 4;

pub(crate) struct Threads {
    pub(crate) copies: bool,
    pub(crate) hashes: bool,
    pub(crate) tidies: bool,
    spills: Spills,
    spill: Option<SimSpill>,
    pub(crate) spilled_batches: u64,
    /// Marks written into the spill that stand for writes.
    pub(crate) writes_left_out: u64,
}

/// Where the thread that spills is.
enum Spills {
    Idle,
    Begins { left: u32 },
    Writes { left: u32, spilling: Spilling },
    Ends { left: u32, written: Written },
}

impl Threads {
    pub(crate) fn new(spill: Option<SimSpill>) -> Self {
        Self {
            copies: false,
            hashes: false,
            tidies: false,
            spills: Spills::Idle,
            spill,
            spilled_batches: 0,
            writes_left_out: 0,
        }
    }

    pub(crate) fn spill(&mut self) {
        assert!(matches!(self.spills, Spills::Idle), "one spilling at a time");
        self.spills = Spills::Begins { left: SPILL_BATCHES };
    }

    pub(crate) fn are_idle(&self) -> bool {
        !self.copies && !self.hashes && !self.tidies && matches!(self.spills, Spills::Idle)
    }

    /// What lies in the spill; none where it cannot be read.
    pub(crate) fn spilled_after(&self, after: WriteSeq) -> Option<Batch> {
        self.spill.as_ref().expect("what was spilled is somewhere").next_after(after).ok()?
    }

    /// One of those that have something to do takes a step. What it says once it is done.
    pub(crate) fn step(&mut self, core: &mut SourceCore, rng: &mut Rng) -> Option<SenderEvent> {
        match rng.below(4) {
            0 if std::mem::take(&mut self.copies) => {
                let taken = copy_some_blocks(core.capture(), core.disks()).expect("a disk that works");
                Some(SenderEvent::CopyDone { taken })
            }
            1 if std::mem::take(&mut self.hashes) => {
                let compare = hash(core.capture(), core.disks()).expect("a disk that works");
                Some(SenderEvent::Hashed(compare))
            }
            2 if std::mem::take(&mut self.tidies) => {
                core.outbox().tidy();
                core.tidied();
                None
            }
            3 => self.step_of_spilling(core),
            _ => None,
        }
    }

    fn step_of_spilling(&mut self, core: &SourceCore) -> Option<SenderEvent> {
        let outbox = core.outbox();
        self.spills = match std::mem::replace(&mut self.spills, Spills::Idle) {
            Spills::Idle => return None,
            Spills::Begins { left: 0 } => return Some(SenderEvent::Spilled),
            Spills::Begins { left } => match outbox.begin_spill(WallTime(0)) {
                Some(spilling) => Spills::Writes { left, spilling },
                None => return Some(SenderEvent::Spilled),
            },
            Spills::Writes { left, spilling } => Spills::Ends { left, written: outbox.write_spill(spilling) },
            Spills::Ends { left, written } => {
                if !outbox.end_spill(&written) {
                    return Some(SenderEvent::Spilled);
                }
                self.spilled_batches += 1;
                self.writes_left_out += written.left_out as u64;
                Spills::Begins { left: left - 1 }
            }
        };
        None
    }
}
