//! When something rots in a whole run, and when the scrub comes by.

use crate::rng::Rng;
use crate::rot::*;
use crate::world::World;

impl World {
    /// A step of what rots, and of the scrub.
    pub(crate) fn play_rot(&mut self) {
        let Some(mut rng) = self.rots.take() else { return };
        let vm = rng.below(self.pairs.len() as u64) as usize;
        if rng.one_in(90) {
            let what = self.pairs[vm].recovery.decay(&mut rng);
            self.summary.rotten += u64::from(what.is_some());
            what.iter().for_each(|what| self.say(&format!("of {vm} rots {what}")));
        }
        if rng.one_in(24) && self.moves(vm) {
            self.scrub_some(vm, &mut rng);
        }
        self.rots = Some(rng);
    }

    fn scrub_some(&mut self, vm: usize, rng: &mut Rng) {
        let moment = self.moment();
        let Some(found) = self.pairs[vm].recovery.scrub_some(moment, rng) else { return };
        self.summary.rot_found += found as u64;
        if found > 0 {
            self.say(&format!("the scrub finds {found} damages of {vm}"));
            self.pairs[vm].recovery.stop_soon(rng);
        }
    }

    /// At rest nothing is rotten that was not found.
    pub(crate) fn scrub_all(&mut self, vm: usize) {
        let Some(mut rng) = self.rots.take() else { return };
        let moment = self.moment();
        let recovery = &mut self.pairs[vm].recovery;
        recovery.reopen();
        recovery.round = Round::default();
        for _ in 0..2 {
            while let Some(found) = recovery.scrub_some(moment, &mut rng) {
                self.summary.rot_found += found as u64;
                if recovery.round.place.is_none() {
                    break;
                }
            }
        }
        self.rots = Some(rng);
    }
}
