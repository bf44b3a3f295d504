//! What a whole run draws: numbers of its own, and windows and limits of journals, as small as they come.

use crate::recovery::SETTINGS;
use crate::rng::Rng;
use journal::{Settings, Thinning};
use std::time::Duration;

/// What a whole run has beside the rest.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) rng: Rng,
    pub(crate) settings: Settings,
}

impl Whole {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0000_3a01_e000);
        let settings = any_settings(&mut rng);
        Self { rng, settings }
    }

    /// What the operator has set of the journals.
    pub(crate) fn settings(&self) -> Settings {
        self.settings
    }
}

pub(crate) fn any_settings(rng: &mut Rng) -> Settings {
    let of = |rng: &mut Rng, seconds: [u64; 4]| Duration::from_secs(seconds[rng.below(4) as usize]);
    let bytes_hard = [0, 0, 512 << 10, 1 << 20, 3 << 20][rng.below(5) as usize];
    let bytes_soft = if rng.one_in(2) { 0 } else { 256 << 10 };
    let all = of(rng, [0, 4, 20, 86_400]);
    Settings {
        history: of(rng, [10, 25, 80, 3600]),
        bytes_soft,
        bytes_hard,
        thinning: Thinning { all, minutely: all + of(rng, [0, 60, 300, 86_400]) },
        tagged_history: of(rng, [0, 20, 90, 7200]),
        let_go: None,
        is_locked: false,
        ..SETTINGS
    }
}
