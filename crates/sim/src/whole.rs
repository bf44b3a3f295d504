//! What only whole runs play, drawn from numbers of its own: windows and limits so small that history goes all the time,
//! clocks that jump by a year, disks on which nothing moves at all, files that cannot be read for a while, one of two copies
//! that rots.

use crate::invariants::invariant_nothing_acknowledged_rests_on_what_was_not_synced;
use crate::rng::Rng;
use crate::store::SimStore;
use crate::whole_draw::{Whole, any_settings};
use crate::world::World;
use journal::{MANIFESTS, Settings};
use std::time::Duration;

const YEAR_MICROS: i64 = 365 * 86_400 * 1_000_000;

impl World {
    /// A step of what only whole runs play.
    pub(crate) fn play_whole(&mut self) {
        let Some(mut whole) = self.whole.take() else { return };
        let vm = whole.rng.below(self.pairs.len() as u64) as usize;
        for pair in &mut self.pairs {
            pair.source.stands_still = pair.source.stands_still.saturating_sub(1);
        }
        if whole.rng.one_in(20 * self.calm) {
            self.trouble_whole(&mut whole, vm);
        }
        if whole.rng.one_in(60) {
            let pair = &self.pairs[vm];
            let look = || invariant_nothing_acknowledged_rests_on_what_was_not_synced(pair);
            pair.recovery.store.spared(look);
        }
        let keeps_up = whole.rng.one_in(20);
        self.whole = Some(whole);
        if keeps_up && self.moves(vm) {
            self.keep_up(vm);
        }
    }

    fn trouble_whole(&mut self, whole: &mut Whole, vm: usize) {
        let rng = &mut whole.rng;
        let pair = &mut self.pairs[vm];
        match rng.below(8) {
            0 => {
                let side = rng.below(2) as usize;
                self.skew[side] += if rng.one_in(2) { YEAR_MICROS } else { -YEAR_MICROS };
                self.summary.clock_jumps += 1;
                self.say(&format!("the clock of side {side} jumps by a year"));
            }
            1 => {
                pair.source.stands_still = 1 + rng.below(200);
                self.summary.stood_still += 1;
                self.now = self.now.plus(Duration::from_secs(rng.below(60)));
                self.say(&format!("the guest's disk of {vm} stands still"));
            }
            2 => {
                whole.settings = any_settings(rng);
                self.say(&format!("the operator sets {:?}", whole.settings));
                for pair in &mut self.pairs {
                    pair.recovery.set(whole.settings);
                }
            }
            3..6 => {
                let names = pair.recovery.store.names();
                let any =
                    (rng.one_in(2) && !names.is_empty()).then(|| rng.below(names.len() as u64) as usize);
                let name = any.map(|at| names[at].as_str()).filter(|name| pair.recovery.may_hide(name));
                self.summary.unreadable += u64::from(name.is_some());
                match self.rots {
                    Some(_) => pair.recovery.hide(name),
                    None => pair.recovery.store.cannot_read(name),
                }
                self.say(&format!("of {vm} {name:?} cannot be read"));
            }
            // Where anything rots at any time copies do, too.
            _ if self.rots.is_some() => {}
            _ => {
                if let Some(name) = pair.recovery.rot_a_copy(rng) {
                    self.summary.copies_rotten += 1;
                    self.say(&format!("{name} of {vm} rots"));
                }
            }
        }
    }

    /// Whether anything goes on on the recovery side's disk of a VM.
    pub(crate) fn moves(&self, vm: usize) -> bool {
        self.whole.is_none() || self.pairs[vm].recovery.stands_still == 0
    }

    pub(crate) fn check_whole(&mut self) {
        if self.whole.is_none() {
            return;
        }
        for pair in &self.pairs {
            if let Some(journal) = &pair.recovery.journal {
                pair.recovery.retained.invariant_thinning_takes_nothing_young_and_no_tag(self.now, journal);
            }
        }
    }

    /// At rest the journals take whatever comes.
    pub(crate) fn lift_limits(&mut self) {
        let Some(whole) = &mut self.whole else { return };
        whole.settings = Settings { bytes_soft: 0, bytes_hard: 0, ..whole.settings };
        for pair in &mut self.pairs {
            pair.source.stands_still = 0;
            pair.recovery.set(whole.settings);
        }
    }
}

impl crate::recovery::RecoveryVm {
    fn set(&mut self, settings: Settings) {
        self.settings = settings;
        if let Some(journal) = &self.journal {
            journal.set(Settings { mode: journal.status().settings.mode, ..settings });
        }
    }

    /// A byte of one of two copies rots, where the other one is the same, on the disk too.
    fn rot_a_copy(&mut self, rng: &mut Rng) -> Option<String> {
        let mut pairs = vec![MANIFESTS.map(str::to_owned)];
        for name in self.store.names().into_iter().filter(|name| name.starts_with("checkpoints-")) {
            let pair = [name.clone(), format!("{name}-2")];
            pairs.extend(self.store.names().contains(&pair[1]).then_some(pair));
        }
        let pair = &pairs[rng.below(pairs.len() as u64) as usize];
        let name = &pair[rng.below(2) as usize];
        let whole = self.store.content(name)?;
        let synced = self.store.fork_of_what_is_synced();
        let is_twice =
            |store: &SimStore| pair.iter().all(|copy| store.content(copy).as_ref() == Some(&whole));
        let at = rng.below(1 + whole.len() as u64);
        ([&self.store, &synced].into_iter().all(is_twice) && self.store.rot(name, at)).then(|| name.clone())
    }
}
