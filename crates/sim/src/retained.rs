//! What of a journal's history has to be there: a checkpoint that could be opened can be until retention takes it, and
//! retention takes what is older than the window, or what the limits leave no room for. No clock, no peer, no restart and
//! no repair takes any.

use crate::spoilt::Spoilt;
use journal::{CheckpointFacts, CheckpointQuery, Clock, Journal, Kept, Settings, Upkeep};
use std::collections::{BTreeMap, BTreeSet};
use types::{ByteRange, Checkpoint, CheckpointKind, Monotonic, WriteSeq};

/// Bytes of footers and merged runs that a turn of upkeep may add before it looks at the limits.
const INDEX_BYTES: u64 = 128 << 10;

/// All of a disk.
const EVERYTHING: ByteRange = ByteRange::new(0, u64::MAX);

/// The checkpoints of one journal, as far as they were seen.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    seen: BTreeMap<WriteSeq, Seen>,
    /// The newest state there was to fail over to.
    newest: Option<WriteSeq>,
    /// A turn of upkeep has come near the hard limit, and everything gives way to that.
    gives_way: bool,
    /// A turn has come to its end: what it left stays until the next one.
    has_kept_up: bool,
    /// Turns in which a tag held what else was due.
    held_by_tags: u64,
}

#[derive(Debug)]
struct Seen {
    /// Before this it was not there, and so is no older.
    since: Monotonic,
    is_tagged: bool,
    may_go: bool,
    is_gone: bool,
}

/// What holds history in a turn of upkeep.
#[derive(Debug)]
struct Turn {
    now: Monotonic,
    settings: Settings,
    /// It may be this many before it is looked at.
    bytes: u64,
}

impl Turn {
    fn is_over(&self, limit: u64) -> bool {
        limit > 0 && self.bytes > limit
    }

    fn hard_is_near(&self) -> bool {
        self.is_over(self.settings.bytes_hard / 16 * 15)
    }

    fn wants_room(&self) -> bool {
        match self.settings.bytes_soft {
            0 => self.hard_is_near(),
            soft => self.is_over(soft),
        }
    }

    fn is_old(&self, seen: &Seen) -> bool {
        self.now.since(seen.since) >= self.settings.history
    }

    fn is_held_by_its_tag(&self, seen: &Seen) -> bool {
        seen.is_tagged && self.now.since(seen.since) < self.settings.tagged_history && !self.hard_is_near()
    }
}

impl Retained {
    /// A turn of upkeep, while images hold these cuts; what it did, unless something hindered it.
    pub(crate) fn keep_up(
        &mut self,
        journal: &Journal,
        images: &[WriteSeq],
        how: &Upkeep<'_>,
    ) -> Option<Kept> {
        let Clock::Monotonic(now) = how.clock else { panic!("no label makes history older") };
        self.before_turn(now, journal, images);
        let kept = journal.keep_up(how).ok()?;
        for damage in &kept.damage {
            assert!(damage.pieces.is_some(), "damage costs more than it has damaged: {damage:?}");
            // It may be what was to be failed over to.
            self.newest = None;
        }
        self.has_kept_up = true;
        Some(kept)
    }

    /// What of the history the next turn may take.
    fn before_turn(&mut self, now: Monotonic, journal: &Journal, images: &[WriteSeq]) {
        let status = journal.status();
        let bytes = status.journal_bytes / 4 * 5 + INDEX_BYTES;
        let turn = Turn { now, settings: status.settings, bytes };
        let tags = self.seen.iter().filter(|(_, seen)| !seen.may_go && turn.is_held_by_its_tag(seen));
        let tag = tags.map(|(cut, _)| *cut).min();
        let pins = journal.pins().into_iter().map(|pin| pin.cut).chain(images.iter().copied());
        let held = pins.chain(tag).min();
        let mut behind = self.seen.range(tag.unwrap_or(WriteSeq::MAX)..).filter(|(_, seen)| !seen.is_gone);
        let is_due = |seen: &Seen| turn.is_old(seen) || turn.wants_room();
        self.held_by_tags += u64::from(held == tag && behind.any(|(_, seen)| is_due(seen)));
        for seen in self.seen.range_mut(..held.unwrap_or(WriteSeq::MAX)).map(|(_, seen)| seen) {
            seen.may_go |= is_due(seen);
        }
        self.gives_way |= turn.hard_is_near();
        self.has_kept_up = false;
    }

    /// Damage was found. It takes no checkpoint; what it has touched is nothing to fail over to.
    pub(crate) fn damaged(&mut self, spoilt: &Spoilt) {
        self.newest = self.newest.filter(|newest| !spoilt.may_be_lost(EVERYTHING, *newest));
    }

    /// What could not be read when it was opened has cost the cuts from here on.
    pub(crate) fn may_be_gone_from(&mut self, from: WriteSeq) {
        self.seen.range_mut(from..).for_each(|(_, seen)| seen.may_go = true);
        self.newest = self.newest.filter(|newest| *newest < from);
    }

    /// The journal as it is after whatever has happened.
    pub(crate) fn follow(&mut self, now: Monotonic, journal: &Journal, leaves_out: bool) {
        let mut there = BTreeSet::new();
        for checkpoint in all_checkpoints(journal) {
            let is_tagged = checkpoint.kind == CheckpointKind::Tagged;
            there.insert(checkpoint.cut);
            let seen = self.seen.entry(checkpoint.cut);
            let seen = seen.or_insert(Seen { since: now, is_tagged, may_go: false, is_gone: false });
            seen.may_go &= !self.has_kept_up;
        }
        let gone = |(cut, seen): &(&WriteSeq, &Seen)| !seen.may_go && !there.contains(cut);
        if let Some((cut, _)) = self.seen.iter().find(gone) {
            panic!("invariant_history_goes_only_by_retention: checkpoint {cut}");
        }
        for (cut, seen) in &mut self.seen {
            seen.is_gone = !there.contains(cut);
        }
        let newest = journal.newest_consistent(WriteSeq::MAX);
        if !std::mem::take(&mut self.gives_way) {
            // Where writes are left out, only checkpoints are consistent once more than the tail is.
            let is_kept =
                if leaves_out { newest.is_some() || self.newest.is_none() } else { newest >= self.newest };
            assert!(is_kept, "invariant_there_is_something_to_fail_over_to: {newest:?} of {:?}", self.newest);
        }
        self.newest = newest;
    }

    /// Checkpoints that retention has taken, and how often a tag held it back.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.seen.values().filter(|seen| seen.is_gone).count() as u64, self.held_by_tags)
    }

    /// Whatever is younger than thinning begins at, and every tag, is in the list that is shown.
    pub(crate) fn invariant_thinning_takes_nothing_young_and_no_tag(
        &self,
        now: Monotonic,
        journal: &Journal,
    ) {
        let thinning = journal.status().settings.thinning;
        let query = CheckpointQuery { thinned: true, limit: usize::MAX, ..CheckpointQuery::default() };
        let shown = journal.checkpoints(&query).rows;
        let shown: Vec<WriteSeq> = shown.iter().map(|facts| facts.checkpoint.cut).collect();
        let all: Vec<WriteSeq> = all_checkpoints(journal).iter().map(|checkpoint| checkpoint.cut).collect();
        assert!(shown.iter().all(|cut| all.contains(cut)), "a thinned list shows what is not there");
        for cut in &all {
            let seen = &self.seen[cut];
            let stays = seen.is_tagged || now.since(seen.since) <= thinning.all;
            assert!(
                !stays || shown.contains(cut),
                "invariant_thinning_takes_nothing_young_and_no_tag: checkpoint {cut}"
            );
        }
    }
}

/// Every checkpoint that is listed.
pub(crate) fn all_checkpoints(journal: &Journal) -> Vec<Checkpoint> {
    all_facts(journal).into_iter().map(|facts| facts.checkpoint).collect()
}

/// The same, with what is known of each.
pub(crate) fn all_facts(journal: &Journal) -> Vec<CheckpointFacts> {
    let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    let found = journal.checkpoints(&query);
    assert!(found.unread.is_empty(), "{:?}", found.unread);
    found.rows
}
