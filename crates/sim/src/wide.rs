//! What only wide runs play, drawn from numbers of its own: so that seeds of before stay what they were.

use crate::image_model::DiskModel;
use crate::images::Below;
use crate::invariants::{invariant_pinned_cuts_stay, invariant_words_of_a_tag_stay};
use crate::rng::Rng;
use crate::world::World;
use journal::CheckpointQuery;
use std::time::Duration;
use types::{CheckpointKind, WriteSeq};

/// What a wide run has beside the rest.
#[derive(Debug)]
pub(crate) struct Wide {
    rng: Rng,
    /// One in so many steps does something with an image.
    images: u64,
}

impl Wide {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x77_1de0);
        let images = [4, 8, 40][rng.below(3) as usize];
        Self { rng, images }
    }
}

impl World {
    /// A step of what only wide runs play.
    pub(crate) fn play_wide(&mut self) {
        let Some(mut wide) = self.wide.take() else { return };
        let vm = wide.rng.below(self.pairs.len() as u64) as usize;
        let moves = self.moves(vm);
        if wide.rng.one_in(wide.images) && moves {
            self.play_images(&mut wide.rng, vm);
        }
        if wide.rng.one_in(60) && moves {
            self.pin_or_unpin(&mut wide.rng, vm);
        }
        for pair in &mut self.pairs {
            pair.recovery.stands_still = pair.recovery.stands_still.saturating_sub(1);
        }
        if wide.rng.one_in(12 * self.calm) {
            self.trouble_disk(&mut wide.rng, vm);
        }
        let dies = self.pairs.iter().any(|pair| pair.recovery.store.is_dead());
        if dies && wide.rng.one_in(2) {
            self.summary.killed_within += 1;
            self.crash_recovery();
        }
        self.wide = Some(wide);
    }

    /// A person tags a checkpoint now and then.
    pub(crate) fn kind_of_checkpoint(&mut self) -> CheckpointKind {
        let tagged = self.wide.as_mut().is_some_and(|wide| wide.rng.one_in(8));
        self.summary.tags += u64::from(tagged);
        if tagged { CheckpointKind::Tagged } else { CheckpointKind::Automatic }
    }

    /// A disk of the recovery side fills up, forgets, stands still, or its agent is killed in the middle of something.
    fn trouble_disk(&mut self, rng: &mut Rng, vm: usize) {
        let recovery = &mut self.pairs[vm].recovery;
        let store = recovery.store.clone();
        match rng.below(8) {
            0..3 => {
                let room = rng.one_in(2).then(|| store.used_bytes() + rng.below(300 << 10));
                self.summary.filled_up += u64::from(room.is_some());
                store.limit_capacity(room);
                self.say(&format!("files of {vm} may take up {room:?}"));
            }
            3..5 => {
                store.evict();
                recovery.images.evict();
            }
            5 => {
                store.die_after(Some(rng.below(60)));
                self.say(&format!("the agent of {vm} is about to be killed"));
            }
            6 => store.fail_sync_after(rng.one_in(2).then(|| rng.below(6))),
            _ => {
                recovery.stands_still = 1 + rng.below(200);
                self.summary.stood_still += 1;
                self.now = self.now.plus(Duration::from_secs(rng.below(60)));
                self.say(&format!("the disk of {vm} stands still"));
            }
        }
    }

    fn pin_or_unpin(&mut self, rng: &mut Rng, vm: usize) {
        let recovery = &mut self.pairs[vm].recovery;
        let Some(journal) = recovery.journal.clone().filter(|_| !self.spoils) else { return };
        if recovery.pins.len() < 3 && rng.one_in(2) {
            let Some(cut) = any_cut(&journal, rng) else { return };
            match journal.pin("a person", cut, None) {
                Ok(id) => {
                    self.summary.pins += 1;
                    recovery.pins.push((id, cut));
                }
                Err(error) => assert!(recovery.store.is_impaired(), "{cut} cannot be pinned: {error:?}"),
            }
        } else if let Some((id, _)) = recovery.pins.pop() {
            let unpinned = journal.unpin(|pin| pin.id == id);
            assert!(unpinned.is_ok() || recovery.store.is_impaired(), "a pin cannot be taken away");
        }
    }

    /// Everything that only wide runs have is looked at.
    pub(crate) fn check_wide(&mut self) {
        for pair in &mut self.pairs {
            invariant_pinned_cuts_stay(pair);
            invariant_words_of_a_tag_stay(pair);
            self.summary.image_reads += pair.recovery.images.compare_all();
        }
    }

    /// At rest: images that could not be served are now; half of the runs end without any, and none with one that reads
    /// through damage, which every fold waits for.
    pub(crate) fn rest_wide(&mut self) {
        let Some(mut wide) = self.wide.take() else { return };
        for pair in &mut self.pairs {
            let recovery = &mut pair.recovery;
            let journal = recovery.journal.clone().expect("at rest the journal is open");
            recovery.images.serve_waiting(&journal);
            recovery.images.assert_all_served();
            if wide.rng.one_in(2) || recovery.images.read_through_damage() {
                recovery.images.close_all(&journal, &recovery.store);
            }
        }
        self.wide = Some(wide);
    }

    fn play_images(&mut self, rng: &mut Rng, vm: usize) {
        let moment = self.moment();
        let recovery = &mut self.pairs[vm].recovery;
        let Some(journal) = recovery.journal.clone() else { return };
        if recovery.images.has_room() && rng.one_in(12) {
            return self.open_image(rng, vm);
        }
        let below =
            Below { journal: &journal, store: &recovery.store, retained: &mut recovery.retained, moment };
        recovery.images.play(below, rng, &mut self.summary);
    }

    fn open_image(&mut self, rng: &mut Rng, vm: usize) {
        let pair = &mut self.pairs[vm];
        let Some(journal) = pair.recovery.journal.clone() else { return };
        let Some(cut) = any_cut(&journal, rng) else { return };
        let mut guest = pair.source.playback(&pair.initial);
        let torn = guest.up_to(cut);
        let model = DiskModel::new(guest.content, &torn);
        let writable = !rng.one_in(4);
        let opened = pair.recovery.images.open(&journal, &pair.recovery.store, (cut, writable), model);
        self.summary.images_opened += u64::from(opened);
        self.say(&format!("an image of {vm} at {cut}, writable: {writable}, opened: {opened}"));
    }
}

/// A cut that can be opened: a checkpoint, or the newest.
fn any_cut(journal: &journal::Journal, rng: &mut Rng) -> Option<WriteSeq> {
    let all = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    let found = journal.checkpoints(&all).rows;
    let mut cuts: Vec<WriteSeq> = found.into_iter().map(|facts| facts.checkpoint.cut).collect();
    cuts.extend(journal.newest_consistent(WriteSeq::MAX));
    (!cuts.is_empty()).then(|| cuts[rng.below(cuts.len() as u64) as usize])
}
