//! Order and authority: the write sequence of a group on a host, and the epoch of a group.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a [`WriteSeq`] that count within one run of the agent; the bits above hold the run.
const COUNT_BITS: u32 = 40;

/// How often the agent has started on its state folder. Kept on disk and raised, durably, before the
/// first write of a run, so that the sequences of a later run are always above those of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunNumber(pub u32);

impl RunNumber {
    /// The largest run a sequence has room for: 24 bits.
    pub const MAX: RunNumber = RunNumber((1 << 24) - 1);
}

/// A write's place in the order of its group on its host. Drawn at local completion (DESIGN §3.2).
///
/// The high 24 bits are the run of the agent that drew it, the low 40 count within the run. It prints
/// as `run-count`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WriteSeq(u64);

impl WriteSeq {
    /// Below every write.
    pub const ZERO: WriteSeq = WriteSeq(0);
    /// Above every write.
    pub const MAX: WriteSeq = WriteSeq(u64::MAX);
    /// The last one that a recovery side may lift a counter here to. Half of all runs are left above it: what is drawn
    /// from there on is still far from what an honest peer refuses to hear.
    pub const LIFT_MAX: WriteSeq = WriteSeq::before_run(RunNumber(1 << 23));
    /// The last one that hosts of a site may agree on for a cut: above all that a recovery side can bring about, and
    /// still a quarter of all runs away from what is refused.
    pub const CUT_MAX: WriteSeq = WriteSeq::before_run(RunNumber(3 << 22));
    /// The last one that is heard at all, from a peer or a file. Nothing lifts a counter near to it.
    pub const FOREIGN_MAX: WriteSeq = WriteSeq::before_run(RunNumber::MAX);

    /// The sequence as it stands in files and messages.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The sequence as it stands in files and messages.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The place just before the first write of `run`.
    pub const fn before_run(run: RunNumber) -> Self {
        Self((run.0 as u64) << COUNT_BITS)
    }

    /// The run of the agent that it is of.
    pub const fn run(self) -> RunNumber {
        RunNumber((self.0 >> COUNT_BITS) as u32)
    }

    /// The place just before this one; zero stays zero.
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The place just after this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for WriteSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0 >> COUNT_BITS, self.0 & ((1 << COUNT_BITS) - 1))
    }
}

impl fmt::Debug for WriteSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{self}")
    }
}

impl std::str::FromStr for WriteSeq {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, count) = text.split_once('-').ok_or(())?;
        let run: u32 = run.parse().map_err(drop)?;
        let count: u64 = count.parse().map_err(drop)?;
        if run > RunNumber::MAX.0 || count >= 1 << COUNT_BITS {
            return Err(());
        }
        Ok(Self(((run as u64) << COUNT_BITS) | count))
    }
}

/// The one counter of a group on a host. Every VM of the group draws from it under its own sequencer
/// lock, so a write that depends on another, also in another VM, always gets a higher number.
#[derive(Debug)]
pub struct GroupCounter(AtomicU64);

impl GroupCounter {
    /// A counter that has just reached `at`.
    pub const fn new(at: WriteSeq) -> Self {
        Self(AtomicU64::new(at.0))
    }

    /// Draws the next sequence. To be called under the VM's sequencer lock.
    ///
    /// # Panics
    /// At the end of all numbers, which nothing lifts a counter near to.
    pub fn draw(&self) -> WriteSeq {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        assert!(before < u64::MAX - 1, "a counter came to its end");
        WriteSeq(before + 1)
    }

    /// The highest sequence drawn so far.
    pub fn last(&self) -> WriteSeq {
        WriteSeq(self.0.load(Ordering::SeqCst))
    }

    /// Draws exactly `seq`, for a cut that several hosts agree on.
    ///
    /// # Errors
    /// Where it has been reached already, or is above [`WriteSeq::CUT_MAX`]: the highest sequence drawn so far.
    pub fn draw_exactly(&self, seq: WriteSeq) -> Result<(), WriteSeq> {
        if seq > WriteSeq::CUT_MAX {
            return Err(self.last());
        }
        let before = self.0.fetch_max(seq.0, Ordering::SeqCst);
        if before < seq.0 { Ok(()) } else { Err(WriteSeq(before)) }
    }

    /// Lifts the counter to at least `floor`: a journal that has seen higher numbers is obeyed.
    ///
    /// # Panics
    /// Above [`WriteSeq::FOREIGN_MAX`]: whoever takes a number from a peer checks it before it is used.
    pub fn raise(&self, floor: WriteSeq) {
        assert!(floor <= WriteSeq::FOREIGN_MAX, "a counter is lifted to {floor}");
        self.0.fetch_max(floor.0, Ordering::SeqCst);
    }
}

/// The authority number of a group. Whoever holds the higher one is right; a lower one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a group that has never failed over.
    pub const FIRST: Epoch = Epoch(1);
    /// The highest that is heard at all, from a peer. Nothing lifts an epoch near to it.
    pub const FOREIGN_MAX: Epoch = Epoch(1 << 48);
    /// The highest that a peer may lift an epoch here to: failovers without number are left above it that an honest
    /// peer still hears.
    pub const LIFT_MAX: Epoch = Epoch(1 << 47);
    /// The highest that a protected side may greet with: above all that it can honestly be lifted to, and so far below
    /// what is heard at all that each failover still finds one to mint.
    pub const GREETING_MAX: Epoch = Epoch(3 << 46);

    /// The epoch a failover mints.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_is_above_every_write_of_an_earlier_one() {
        let counter = GroupCounter::new(WriteSeq::before_run(RunNumber(3)));
        let first = counter.draw();
        assert_eq!(first.to_string(), "3-1");
        assert_eq!("3-1".parse(), Ok(first));
        assert!(WriteSeq::before_run(RunNumber(4)) > WriteSeq::from_raw((4 << 40) - 1));
    }

    #[test]
    fn raising_a_counter_never_lowers_it() {
        let counter = GroupCounter::new(WriteSeq::from_raw(10));
        counter.raise(WriteSeq::from_raw(5));
        assert_eq!(counter.last(), WriteSeq::from_raw(10));
        counter.raise(WriteSeq::from_raw(50));
        assert_eq!(counter.draw(), WriteSeq::from_raw(51));
        assert_eq!(counter.draw_exactly(WriteSeq::from_raw(51)), Err(WriteSeq::from_raw(51)));
        assert_eq!(counter.draw_exactly(WriteSeq::from_raw(60)), Ok(()));
        assert_eq!(counter.draw(), WriteSeq::from_raw(61));
    }

    #[test]
    fn no_agreed_cut_brings_a_counter_near_its_end() {
        let counter = GroupCounter::new(WriteSeq::from_raw(10));
        for far in [WriteSeq::MAX, WriteSeq::MAX.previous(), WriteSeq::FOREIGN_MAX, WriteSeq::CUT_MAX.next()]
        {
            assert_eq!(counter.draw_exactly(far), Err(WriteSeq::from_raw(10)));
        }
        counter.raise(WriteSeq::FOREIGN_MAX);
        assert!(counter.draw() > WriteSeq::FOREIGN_MAX);
        assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
    }
}
