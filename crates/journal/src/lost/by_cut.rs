//! What is lost as of each cut, counted once for all cuts: who lists checkpoints asks of every one.

use super::looks;
use super::piece::LostPiece;
use std::collections::BTreeMap;
use types::WriteSeq;

/// What is lost from a cut on, up to the next such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    cut: WriteSeq,
    bytes: u64,
    lost_from: Option<WriteSeq>,
}

/// Bytes that are lost, and from where on, by cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ByCut {
    steps: Vec<Step>,
}

impl ByCut {
    /// Goes through the cuts at which one of them begins or ends. The same byte counts once, though pieces that became one
    /// may have it in common with others.
    pub(super) fn of(pieces: &[LostPiece]) -> Self {
        let mut places: Vec<_> = pieces
            .iter()
            .flat_map(|piece| [piece.range.start, piece.range.end()].map(|at| (piece.disk, at)))
            .collect();
        places.sort_unstable();
        places.dedup();
        let place_of = |place| places.binary_search(&place).expect("it is one of them");
        let lens = places.windows(2).map(|two| if two[0].0 == two[1].0 { two[1].1 - two[0].1 } else { 0 });
        let mut covered = Covered::new(&lens.collect::<Vec<_>>());
        let mut changes: Vec<(WriteSeq, bool, &LostPiece)> = Vec::with_capacity(pieces.len() * 2);
        for piece in pieces {
            changes.push((piece.from, true, piece));
            changes.extend(piece.until.map(|until| (until, false, piece)));
        }
        changes.sort_unstable_by_key(|(cut, begins, _)| (*cut, *begins));
        let mut begun: BTreeMap<WriteSeq, usize> = BTreeMap::new();
        let mut steps: Vec<Step> = Vec::new();
        for (cut, begins, piece) in changes {
            looks::count();
            let [first, past] = [piece.range.start, piece.range.end()].map(|at| place_of((piece.disk, at)));
            covered.change(first, past, begins);
            let count = begun.entry(piece.from).or_default();
            *count = if begins { *count + 1 } else { *count - 1 };
            if *count == 0 {
                begun.remove(&piece.from);
            }
            let step = Step { cut, bytes: covered.len(), lost_from: begun.keys().next().copied() };
            match steps.last_mut().filter(|last| last.cut == cut) {
                Some(last) => *last = step,
                None => steps.push(step),
            }
        }
        Self { steps }
    }

    fn at(&self, cut: WriteSeq) -> Option<&Step> {
        looks::count();
        let past = self.steps.partition_point(|step| step.cut <= cut);
        self.steps.get(past.checked_sub(1)?)
    }

    /// From where on pieces of a cut are lost; none where all of it is there.
    pub(crate) fn lost_from(&self, cut: WriteSeq) -> Option<WriteSeq> {
        self.at(cut)?.lost_from
    }

    /// How many bytes are lost as of a cut.
    pub(crate) fn bytes_at(&self, cut: WriteSeq) -> u64 {
        self.at(cut).map_or(0, |step| step.bytes)
    }
}

/// A line in parts, each covered so many times, as a tree over halves of it.
struct Covered {
    /// How long all parts up to each are together.
    ends: Vec<u64>,
    /// How often the whole of a half is covered, and how much of it is.
    halves: Vec<(usize, u64)>,
}

impl Covered {
    fn new(lens: &[u64]) -> Self {
        let halves = vec![(0, 0); lens.len().next_power_of_two() * 2];
        let sums = lens.iter().scan(0, |sum, len| {
            *sum += len;
            Some(*sum)
        });
        Self { ends: std::iter::once(0).chain(sums).collect(), halves }
    }

    /// How much is covered.
    fn len(&self) -> u64 {
        self.halves[1].1
    }

    /// Covers the parts from `first` up to `past` once more, or once less.
    fn change(&mut self, first: usize, past: usize, more: bool) {
        self.change_within(1, (0, self.halves.len() / 2), (first, past), more);
    }

    /// Of the half `at`, which has the parts from `low` up to `high`; how much of it is in total.
    fn change_within(
        &mut self,
        at: usize,
        (low, high): (usize, usize),
        (first, past): (usize, usize),
        more: bool,
    ) {
        if past <= low || high <= first {
            return;
        }
        if first <= low && high <= past {
            let times = &mut self.halves[at].0;
            *times = if more { *times + 1 } else { *times - 1 };
        } else {
            let middle = low.midpoint(high);
            self.change_within(at * 2, (low, middle), (first, past), more);
            self.change_within(at * 2 + 1, (middle, high), (first, past), more);
        }
        self.halves[at].1 = match (self.halves[at].0, high - low) {
            (0, 1) => 0,
            (0, _) => self.halves[at * 2].1 + self.halves[at * 2 + 1].1,
            (_, _) => self.end(high) - self.end(low),
        };
    }

    fn end(&self, parts: usize) -> u64 {
        self.ends[parts.min(self.ends.len() - 1)]
    }
}
