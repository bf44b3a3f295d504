//! Containing damage: what was found is written down, reading it fails, and the source is asked for what is lost of the
//! newest state. Nothing is thrown away: what can be read stays, at every cut.
//!
//! Where it is known which bytes are lost as of which cuts (`appraise.rs`), that is all it costs, and their blocks are asked
//! for (`again.rs`). That demand is the pieces themselves: it stands as long as they do, which is until something lies over
//! them, and whatever else the stream brings meanwhile is taken.
//!
//! Where it is not known, or where most of the disks would come again, everything is to be compared: of the former the cuts
//! from there on cannot be opened until the source's sync has drained. This demand too stands until it is met. How traffic
//! could write it over, if it were no more than what the stream says of itself: (1) a scrub finds damage, and the stream's incarnation is forgotten, so that the source may
//! not resume; (2) before its connection is closed its next batch comes, and brings the incarnation with it; (3) the
//! source resumes, and what was lost never comes again. So the demand is a field of its own, in the manifest too, and
//! while it stands nothing is taken but a stream that begins anew, on a connection that was told of it.

mod words;

use crate::again;
use crate::append::Appender;
use crate::cover::LogKind;
use crate::extent::REGION_BYTES;
use crate::fold::FoldError;
use crate::lost::{Lost, LostPiece};
use crate::manifest::{DamageEntry, DiskEntry, Manifest};
use crate::payload;
use crate::read::Reads;
use crate::state::State;
use crate::timeline::Timeline;
use crate::view::View;
use crate::writer::Takes;
use std::collections::BTreeSet;
use std::io;
use threads::sync::{Mutex, MutexGuard};
use types::{ByteRange, DiskIndex, WriteSeq};
use words::{costless_as_one, in_bounded_words};

pub(crate) use words::Spoilt;

/// What was found wrong, and that it was contained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where, and what is wrong.
    pub what: String,
    /// Cuts from here on miss something, until the source has sent it again or it was written over.
    pub from: WriteSeq,
    /// The index knows what lay there, so that reading it fails instead of showing older bytes.
    pub indexed: bool,
    /// What of it was not known to be lost; none where that cannot be told, and no later cut can be opened.
    pub pieces: Option<Vec<LostPiece>>,
}

impl Damage {
    /// How many bytes are lost, of all cuts together; none where that cannot be told.
    pub fn lost_bytes(&self) -> Option<u64> {
        self.pieces.as_ref().map(|pieces| pieces.iter().map(|piece| piece.range.len).sum())
    }

    /// Of which nobody knows what it held: cuts from `from` on may miss writes.
    pub(crate) fn of_cuts(what: String, from: WriteSeq, indexed: bool) -> Self {
        Self { what, from, indexed, pieces: None }
    }

    fn of_pieces(what: String, pieces: Vec<LostPiece>) -> Self {
        let from = pieces.iter().map(|piece| piece.from).min().unwrap_or(WriteSeq::MAX);
        Self { what, from, indexed: true, pieces: Some(pieces) }
    }

    /// Whether it was found before, and costs no more than was contained then. What was made good stays where it lies
    /// until retention drops it, and is found each time somebody looks: newer cuts do not need it.
    ///
    /// What no index knows any more has cost more than as long as one did: (1) the tables of a batch rot, its index knows
    /// what it held, and it is contained; (2) its source sends what is lost, and nothing for what that index says are
    /// zeroes; (3) the index rots, and is made again without them. Only what was compared without is made good without.
    pub(crate) fn is_known(&self, manifest: &Manifest) -> bool {
        let is_it = |entry: &&DamageEntry| entry.what == self.what;
        let known = manifest.damage.iter().find(is_it);
        known.is_some_and(|entry| self.indexed || !(entry.indexed || entry.in_pieces))
    }

    /// Whether something of the newest state is lost by it.
    pub fn is_of_newest_state(&self) -> bool {
        self.pieces.as_ref().is_none_or(|pieces| pieces.iter().any(|piece| piece.until.is_none()))
    }

    /// Says what is lost: from where on the source must compare what it has then. None where nothing of the newest state is,
    /// or only some blocks of it that it is asked for. That goes through all that is lost.
    pub(crate) fn demand(&self, timeline: &mut Timeline, disks: &[DiskEntry]) -> Demand {
        self.lose(timeline);
        let sizes = disks.iter().map(|disk| disk.size_bytes);
        let is_all = || self.pieces.is_none() || again::is_most(timeline.lost(), sizes);
        let demand = Demand((self.is_of_newest_state() && is_all()).then_some(self.from));
        demand.tell(timeline);
        demand
    }

    fn lose(&self, timeline: &mut Timeline) {
        match &self.pieces {
            None => timeline.open_gap(self.from),
            Some(pieces) => drop(timeline.lose(pieces.clone())),
        }
    }

    /// Says what is lost, and what was found that the source must compare for it.
    fn tell(&self, demand: Demand, timeline: &mut Timeline) {
        self.lose(timeline);
        demand.tell(timeline);
    }

    /// Writes it down, and what is demanded for it. The open segment is sealed already, so that the gaps in the manifest are
    /// those of its end.
    pub(crate) fn record(&self, demand: Demand, manifest: &mut Manifest) {
        if demand.0.is_some() {
            forget_incarnation(manifest);
        }
        let is_known = self.is_known(manifest);
        let more = None;
        let (what, from_seq, indexed) = (self.what.clone(), self.from.raw(), self.indexed);
        let in_pieces = self.pieces.is_some();
        let entry = DamageEntry { what, from_seq, to_seq: None, indexed, in_pieces, more };
        match manifest.damage.iter_mut().find(|known| known.what == self.what) {
            None => manifest.damage.push(entry),
            // It is to be made good once more.
            Some(known) if is_known && self.pieces.is_some() => known.to_seq = None,
            Some(_) if is_known => {}
            Some(known) => *known = entry,
        }
        words::bound(manifest);
    }
}

/// From where on the source must compare what it has, if it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand(Option<WriteSeq>);

impl Demand {
    fn tell(self, timeline: &mut Timeline) {
        if let Some(from) = self.0 {
            timeline.demand_resync(from);
        }
    }
}

/// Without an incarnation the source cannot resume, whatever program reads this next.
fn forget_incarnation(manifest: &mut Manifest) {
    let newest = manifest.redo.segments.iter_mut().rev().find_map(|segment| segment.sealed.as_mut());
    newest.map_or(&mut manifest.base, |sealed| &mut sealed.point).incarnation = None;
}

/// What is contained and nobody has told yet: a step that has contained something and fails then returns its error alone,
/// and what is known already is no news to the next one. The source would not be asked for it as long as its stream stands.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<Vec<Damage>>);

impl Untold {
    fn lock(&self) -> MutexGuard<'_, Vec<Damage>> {
        self.0.lock().expect("a panic aborts the process")
    }

    /// This is told now.
    pub(crate) fn tell(&self, damage: &[Damage]) {
        self.lock().retain(|untold| !damage.contains(untold));
    }

    /// All of it, to be told.
    pub(crate) fn take(&self) -> Vec<Damage> {
        std::mem::take(&mut *self.lock())
    }
}

/// Who contains damage that is found while the journal is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Containing<'a> {
    pub(crate) state: &'a State,
    pub(crate) reads: &'a Reads,
    pub(crate) appender: &'a Appender,
    pub(crate) untold: &'a Untold,
}

impl Containing<'_> {
    /// Contains damage of which it is not known which bytes it costs, and with it changes the manifest, and what of it
    /// readers look at: one is never there without the other. Then the stream must be closed, so that the source learns that
    /// it has to send everything again.
    pub(crate) fn cuts_with(
        &self,
        damage: &[Damage],
        change: impl FnOnce(&mut Manifest),
        show: impl FnOnce(&mut View),
    ) -> io::Result<()> {
        let mut writer = self.appender.lock_writer();
        self.appender.seal_redo(&mut writer)?;
        self.record(damage, &mut writer.takes, change, show)
    }

    /// Contains damage that was found together, with one change of the manifest, as of what was durable at `seen`; what of it
    /// was not known yet, of many places in bounded words. Where something of the newest state is lost the stream must be
    /// told.
    pub(crate) fn pieces(&self, found: Vec<Spoilt>, seen: WriteSeq) -> Result<Vec<Damage>, FoldError> {
        let news = in_bounded_words(self.news(costless_as_one(found)));
        if news.is_empty() {
            return Ok(Vec::new());
        }
        // Nothing comes in meanwhile.
        let mut writer = self.appender.lock_writer();
        self.appender.seal_redo(&mut writer).map_err(FoldError::Manifest)?;
        let mut timeline = self.state.read_shared().timeline.clone();
        let mut damage = Vec::new();
        for Spoilt { what, pieces } in news {
            let pieces = self.written_over_since(pieces, seen)?;
            damage.push(Damage::of_pieces(what, timeline.lose(pieces)));
        }
        self.record(&damage, &mut writer.takes, |_| {}, |_| {}).map_err(FoldError::Manifest)?;
        Ok(damage)
    }

    /// What of it is news: by its bytes and cuts, and not by its words. What was made good may be damaged once more, in the
    /// same words as before, and what is known is no news in others.
    fn news(&self, mut found: Vec<Spoilt>) -> Vec<Spoilt> {
        let (mut timeline, manifest, pins) = {
            let shared = self.state.read_shared();
            (shared.timeline.clone(), shared.manifest.clone(), shared.pinned().collect::<BTreeSet<_>>())
        };
        // An image may have been opened before its cut could not be any more.
        let is_held = |piece: &LostPiece| {
            pins.range(piece.from..).next().is_some_and(|pin| piece.until.is_none_or(|until| *pin < until))
        };
        found.retain(|Spoilt { what, pieces }| {
            let known = manifest.damage.iter().find(|entry| entry.what == *what);
            let fresh = timeline.lose(pieces.clone());
            let is_nothing_new = match known {
                None => fresh.is_empty() && !pieces.is_empty(),
                Some(entry) if entry.in_pieces => fresh.is_empty(),
                // What is needed by no other cuts than those.
                Some(_) => {
                    let is_needed =
                        |piece: &LostPiece| !timeline.misses(piece.from, piece.until) || is_held(piece);
                    !fresh.iter().any(is_needed)
                }
            };
            !is_nothing_new
        });
        found
    }

    /// Demands that everything is compared, where something of the newest state is lost and that was not demanded for it;
    /// whether that demand stands.
    pub(crate) fn everything(&self) -> Result<bool, FoldError> {
        let mut writer = self.appender.lock_writer();
        if self.state.read_shared().timeline.is_lost_anew() {
            self.appender.seal_redo(&mut writer).map_err(FoldError::Manifest)?;
            let mut timeline = self.state.read_shared().timeline.clone();
            timeline.demand_resync_for_lost();
            let changed = self.state.change_manifest(
                |manifest| {
                    timeline.write_to(manifest);
                    forget_incarnation(manifest);
                },
                |shared, manifest| {
                    shared.timeline.demand_resync_for_lost();
                    shared.set_manifest(manifest, |_| {});
                },
            );
            changed.map_err(FoldError::Manifest)?;
            writer.takes = Takes::NothingMore;
        }
        Ok(self.state.read_shared().timeline.must_resync().is_some())
    }

    /// Pieces after what has become durable since `seen`.
    fn written_over_since(
        &self,
        pieces: Vec<LostPiece>,
        seen: WriteSeq,
    ) -> Result<Vec<LostPiece>, FoldError> {
        let last = self.state.read_shared().timeline.last_seq;
        let mut left = Lost::default();
        left.add(pieces);
        if last > seen {
            for (disk, part) in regions_of(&left) {
                for write in self.reads.extents_between(LogKind::Redo, (disk, part), (seen, last))? {
                    let both = write.range.intersection(part);
                    both.into_iter().for_each(|range| left.write_over(disk, range, write.seq));
                }
            }
        }
        Ok(left.pieces())
    }

    fn record(
        &self,
        damage: &[Damage],
        takes: &mut Takes,
        change: impl FnOnce(&mut Manifest),
        show: impl FnOnce(&mut View),
    ) -> io::Result<()> {
        let (mut timeline, known) = {
            let shared = self.state.read_shared();
            (shared.timeline.clone(), shared.manifest.clone())
        };
        // Before anything is locked that others wait for.
        let demands = damage.iter().map(|damage| (damage, damage.demand(&mut timeline, &known.disks)));
        let demands: Vec<(&Damage, Demand)> = demands.collect();
        self.state.change_manifest(
            |manifest| {
                timeline.write_to(manifest);
                demands.iter().for_each(|(damage, demand)| damage.record(*demand, manifest));
                change(manifest);
            },
            |shared, manifest| {
                demands.iter().for_each(|(damage, demand)| damage.tell(*demand, &mut shared.timeline));
                shared.set_manifest(manifest, show);
            },
        )?;
        if demands.iter().any(|(_, demand)| demand.0.is_some()) {
            // Whoever streams now does not know of it.
            *takes = Takes::NothingMore;
        }
        self.untold.lock().extend_from_slice(damage);
        payload::forget(self.state.uid);
        Ok(())
    }
}

/// The part of each region around what of it is lost of the newest state.
fn regions_of(lost: &Lost) -> Vec<(DiskIndex, ByteRange)> {
    let mut regions: Vec<(DiskIndex, ByteRange)> = Vec::new();
    for piece in lost.newest() {
        for part in piece.range.split_at_multiples(REGION_BYTES) {
            let is_of_it = |last: &&mut (DiskIndex, ByteRange)| {
                last.0 == piece.disk && last.1.start / REGION_BYTES == part.start / REGION_BYTES
            };
            match regions.last_mut().filter(is_of_it) {
                Some((_, last)) => last.len = part.end() - last.start,
                None => regions.push((piece.disk, part)),
            }
        }
    }
    regions
}

/// Writes down that damage was made good: nothing of the newest state is lost any more.
pub(crate) fn settle(state: &State) -> io::Result<()> {
    let made_good = {
        let shared = state.read_shared();
        let waiting = shared.manifest.damage.iter().any(|damage| damage.to_seq.is_none());
        let is_whole = !shared.timeline.is_gap_open() && !shared.timeline.lost().is_of_newest();
        (waiting && is_whole).then(|| shared.timeline.last_seq.raw())
    };
    let Some(upto) = made_good else { return Ok(()) };
    state.change_manifest_alone(|manifest| {
        for damage in manifest.damage.iter_mut().filter(|damage| damage.to_seq.is_none()) {
            damage.to_seq = Some(upto);
        }
    })
}

#[cfg(test)]
mod tests;
