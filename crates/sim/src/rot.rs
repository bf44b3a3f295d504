//! What rots at any time, in whole runs: pages of segments, open ones too, of their indexes, of replicas and their checksums, of
//! one of two copies; and the scrub, which comes by step by step while everything goes on.
//!
//! Two things that are there to tell of each other do not rot at once (an index and what it tells of, a block and its
//! checksum), nor does the footer of a segment in which a batch has rotted before: that costs more, and has tests of its own.

use crate::decayed::{Rotten, opening_may_miss, segments};
use crate::moment::Moment;
use crate::recovery::RecoveryVm;
use crate::rng::Rng;
use crate::store::{Decay, SimStore};
use batch::Form;
use journal::{MANIFESTS, Manifest, Opened, ScrubPlace, SegmentInfo};
use std::collections::{BTreeMap, BTreeSet};
use types::{ByteRange, WriteSeq};

const PAGE_BYTES: u64 = 4096;
const REPLICA: &str = "replica/vda.raw";
const SUMS: &str = "replica/vda.sums";

/// A round of the scrub.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    pub(crate) place: Option<ScrubPlace>,
    /// So much had rotted when it began.
    pub(crate) rotted: u64,
    /// A fold was under way in the meantime.
    pub(crate) beside_a_fold: bool,
}

/// What an opening may find.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// The redo log may end, or miss something, from here on.
    pub(crate) redo: Option<WriteSeq>,
    pub(crate) undo: bool,
    /// The words for what was told in cuts before.
    known: BTreeSet<String>,
}

impl Expected {
    pub(crate) fn of(store: &SimStore) -> Self {
        let [redo, undo] = opening_may_miss(store);
        let known = written_down(store).into_keys().collect();
        Self { redo, undo: undo.is_some(), known }
    }

    /// The same, after an opening that has failed: it may have written down what it had found, and what is written down already
    /// no later one tells.
    pub(crate) fn after(self, failed: Option<Self>) -> Self {
        let Some(failed) = failed else { return self };
        let redo = self.redo.into_iter().chain(failed.redo).min();
        Self { redo, undo: self.undo || failed.undo, known: failed.known }
    }

    /// What was found is no more than what rotted where there is no index yet. From where on cuts may be gone.
    pub(crate) fn judge(&self, opened: &Opened, store: &SimStore, told: WriteSeq) -> Option<WriteSeq> {
        let before = written_down(store).into_iter().filter(|(what, _)| !self.known.contains(what));
        let found: BTreeSet<WriteSeq> =
            opened.damage.iter().map(|one| one.from).chain(before.map(|(_, from)| from)).collect();
        for from in &found {
            let is_expected = self.undo || self.redo.is_some_and(|redo| *from >= redo);
            assert!(is_expected, "damage without cause from {from} on: {:?}", opened.damage);
        }
        let durable = opened.journal.status().last_seq;
        let is_there = durable >= told || self.redo.is_some_and(|from| durable >= from.previous());
        assert!(is_there, "invariant_acked_is_never_lost: {durable} is left of {told}");
        found.into_iter().chain((durable < told).then(|| durable.next())).min()
    }
}

/// The damage that a journal's manifest tells of in cuts, and from where on.
fn written_down(store: &SimStore) -> BTreeMap<String, WriteSeq> {
    let damage = Manifest::load(store).into_iter().flat_map(|manifest| manifest.damage);
    let in_cuts = damage.filter(|one| !one.in_pieces);
    in_cuts.map(|one| (one.what, WriteSeq::from_raw(one.from_seq))).collect()
}

fn any_decay(rng: &mut Rng, other: impl FnOnce(&mut Rng) -> Option<Vec<u8>>) -> Decay {
    match rng.below(4) {
        0 | 1 => Decay::Flip(rng.below(PAGE_BYTES) as usize),
        2 => Decay::Unread,
        _ => Decay::Holds(other(rng).unwrap_or_else(|| vec![0; PAGE_BYTES as usize])),
    }
}

impl RecoveryVm {
    /// Something rots, somewhere; what.
    pub(crate) fn decay(&mut self, rng: &mut Rng) -> Option<String> {
        let manifest = Manifest::load(&self.store).ok()?;
        self.spoilt().decayed.applied = WriteSeq::from_raw(manifest.applied);
        match rng.below(8) {
            0..4 => self.decay_log(&manifest, rng),
            4 | 5 => self.decay_replica(&manifest, rng),
            6 => self.decay_index(rng),
            _ => self.decay_copy(rng),
        }
    }

    pub(crate) fn decay_log(&mut self, manifest: &Manifest, rng: &mut Rng) -> Option<String> {
        let form = if rng.one_in(3) { Form::Undo } else { Form::Stream };
        let all = segments(manifest, form);
        let (info, name, before) = all.get(rng.below(all.len() as u64 + 1) as usize)?.clone();
        let pages = self.store.len_of(&name)? / PAGE_BYTES;
        let any_page = |rng: &mut Rng| {
            let content = self.store.truth(&name)?;
            let at = (rng.below(pages) * PAGE_BYTES) as usize;
            content.get(at..at + PAGE_BYTES as usize).map(<[u8]>::to_vec)
        };
        let (how, page) = (any_decay(rng, any_page), rng.below(pages));
        let is_index = info.sealed.as_ref().is_some_and(|sealed| page >= sealed.bytes / PAGE_BYTES);
        let has_others = self.is_unfound(Rotten::Log) || self.is_unfound(Rotten::Replica);
        let of_index = is_index && (has_others || self.has_rotten_batches(&info, &name));
        // Of an open one somebody would have to know what comes in later.
        let both_headers =
            info.sealed.is_none() && page < 2 && self.store.rotten_pages(&name).contains(&(1 - page));
        let beside = of_index || (!is_index && self.is_unfound(Rotten::Index));
        if beside || both_headers || !self.store.decay(&name, page, &how) {
            return None;
        }
        self.images.spoil();
        match is_index {
            true => self.spoilt().decayed.costless(Rotten::Index),
            false => self.spoilt().decayed.log(&self.store, &name, form, before, page),
        }
        Some(format!("page {page} of {name}, {how:?}"))
    }

    pub(crate) fn decay_replica(&mut self, manifest: &Manifest, rng: &mut Rng) -> Option<String> {
        let is_sums = rng.one_in(3);
        let (name, other) = if is_sums { (SUMS, Rotten::Replica) } else { (REPLICA, Rotten::Sums) };
        // What a checksum says that the disk does not give just now is not known, and the block is believed.
        if !is_sums && self.store.cannot_be_read(SUMS) {
            return None;
        }
        let is_written = manifest.retired_below.max(manifest.before_images_upto) > manifest.applied;
        let is_summed = manifest.disks[0].summed_below == manifest.disks[0].size_bytes;
        if is_written || !is_summed || self.is_unfound(other) || self.is_unfound(Rotten::Index) {
            return None;
        }
        let page = rng.below(self.store.len_of(name)?.div_ceil(PAGE_BYTES));
        let how = any_decay(rng, |_| None);
        // A page of zeroes among the checksums says that there are zeroes.
        if (is_sums && matches!(how, Decay::Holds(_))) || !self.store.decay(name, page, &how) {
            return None;
        }
        if is_sums {
            self.spoilt().decayed.costless(Rotten::Sums);
        } else {
            self.images.spoil();
            let size = manifest.disks[0].size_bytes;
            let start = page * PAGE_BYTES;
            let images = crate::decayed::before_images(&self.store, manifest);
            let block = ByteRange::new(start, PAGE_BYTES.min(size - start));
            self.spoilt().decayed.block(block, images.into_iter());
        }
        Some(format!("page {page} of {name}, {how:?}"))
    }

    pub(crate) fn decay_index(&mut self, rng: &mut Rng) -> Option<String> {
        let runs: Vec<String> =
            self.store.names().into_iter().filter(|name| name.starts_with("run-")).collect();
        let name = runs.get(rng.below(runs.len() as u64 + 1) as usize)?;
        let page = rng.below(1 + self.store.len_of(name)? / PAGE_BYTES);
        let how = any_decay(rng, |_| None);
        let has_others = self.is_unfound(Rotten::Log) || self.is_unfound(Rotten::Replica);
        if has_others || self.is_footer_of_rotten(name)? || !self.store.decay(name, page, &how) {
            return None;
        }
        self.images.spoil();
        self.spoilt().decayed.costless(Rotten::Index);
        Some(format!("page {page} of {name}, {how:?}"))
    }

    /// Whether something of a sealed segment has rotted, found or not, that its footer tells of.
    fn has_rotten_batches(&self, info: &SegmentInfo, name: &str) -> bool {
        let pages = info.sealed.as_ref().map_or(0, |sealed| sealed.bytes / PAGE_BYTES);
        self.store.rotten_pages(name).iter().any(|page| *page < pages)
    }

    /// Whether a run is the footer, made again, of such a segment.
    fn is_footer_of_rotten(&self, run: &str) -> Option<bool> {
        let manifest = Manifest::load(&self.store).ok()?;
        let is_it = |info: &SegmentInfo| {
            let file = info.sealed.as_ref().and_then(|sealed| sealed.footer.as_ref()?.file);
            file.is_some_and(|number| run.ends_with(&format!("-{number:08}")))
        };
        let mut all = [Form::Stream, Form::Undo].into_iter().flat_map(|form| segments(&manifest, form));
        Some(all.any(|(info, name, _)| is_it(&info) && self.has_rotten_batches(&info, &name)))
    }

    /// One of two copies, where the other one is the same, on the disk too.
    pub(crate) fn decay_copy(&mut self, rng: &mut Rng) -> Option<String> {
        let mut pairs = vec![MANIFESTS.map(str::to_owned)];
        for name in self.store.names().into_iter().filter(|name| name.starts_with("checkpoints-")) {
            let pair = [name.clone(), format!("{name}-2")];
            pairs.extend(self.store.names().contains(&pair[1]).then_some(pair));
        }
        let pair = &pairs[rng.below(pairs.len() as u64) as usize];
        let at = rng.below(2) as usize;
        let (name, other) = (&pair[at], &pair[1 - at]);
        let whole = self.store.truth(name)?;
        let is_good = |store: &SimStore| {
            store.content(other).as_ref() == Some(&whole) && store.rotten_pages(other).is_empty()
        };
        let page = rng.below(1 + whole.len() as u64 / PAGE_BYTES);
        let how = any_decay(rng, |_| None);
        let is_good = [&self.store, &self.store.fork_of_what_is_synced()].into_iter().all(is_good);
        if !is_good || !self.store.decay(name, page, &how) {
            return None;
        }
        self.spoilt().decayed.costless(Rotten::Copy);
        Some(format!("page {page} of {name}, {how:?}"))
    }

    /// Whether the disk may not give a file just now: no checksums that tell of what has rotted.
    pub(crate) fn may_hide(&self, name: &str) -> bool {
        name != SUMS || !self.is_unfound(Rotten::Replica)
    }

    /// The disk does not give a file from now on, and gives all others. Whoever changes a checksum while it does not give those
    /// beside it has it on the disk that they are not known, as if they had rotted, until the scrub has come by.
    pub(crate) fn hide(&self, name: Option<&str>) {
        if self.store.cannot_be_read(SUMS) || name == Some(SUMS) {
            self.spoilt().decayed.costless(Rotten::Sums);
        }
        self.store.cannot_read(name);
    }

    /// Whether some of the newest state of a range may be lost, and no scrub has come by.
    pub(crate) fn is_lost_unseen(&self, range: ByteRange) -> bool {
        let spoilt = self.spoilt();
        spoilt.decayed.has_unfound() && spoilt.may_be_lost(range, WriteSeq::MAX)
    }

    pub(crate) fn is_unfound(&self, what: Rotten) -> bool {
        self.spoilt().decayed.is_unfound(what)
    }

    /// Where the replica stands now.
    pub(crate) fn note_applied(&mut self) {
        if let Some(journal) = &self.journal {
            self.spoilt().decayed.applied = journal.status().applied;
        }
    }

    /// A step of the scrub; how much damage it found. None where something hindered it.
    pub(crate) fn scrub_some(&mut self, moment: Moment, rng: &mut Rng) -> Option<usize> {
        let journal = self.journal.clone()?;
        if self.round.place.is_none() {
            let rotted = self.spoilt().decayed.count();
            self.round = Round { rotted, ..Round::default() };
        }
        let step = match journal.scrub(self.round.place, &moment.upkeep(rng.sixteen())) {
            Ok(step) => step,
            Err(error) => {
                assert!(self.store.is_impaired(), "a scrub that nothing hinders fails: {error:?}");
                return None;
            }
        };
        let manifest = Manifest::load(&self.store).ok();
        self.round.beside_a_fold |= manifest.is_none_or(|manifest| {
            manifest.retired_below.max(manifest.before_images_upto) > manifest.applied
        });
        for damage in &step.damage {
            assert!(damage.pieces.is_some(), "damage costs more than it has damaged: {damage:?}");
        }
        assert!(step.lost.is_empty() || self.store.has_unreadable(), "checkpoints are lost: {:?}", step.lost);
        self.note_applied();
        self.note_damage();
        self.round.place = step.place;
        if step.place.is_none() {
            let of_replicas = !self.round.beside_a_fold;
            self.spoilt().decayed.found(self.round.rotted, of_replicas);
        }
        Some(step.damage.len())
    }
}
