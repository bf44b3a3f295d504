//! Retention: how much history is kept, what holds it back, and what the limits will leave.

use crate::age::micros;
use crate::cover::LogKind;
use crate::fold::FoldError;
use crate::journal::{Journal, Mode, Settings, Shared};
use crate::timeline::Timeline;
use crate::undo::UndoWriter;
use crate::upkeep::{Kept, Upkeep};
use std::time::Duration;
use types::WriteSeq;
use types::limits::{FOLD_SEGMENTS_MAX, HISTORY_SECONDS_RANGE, JOURNAL_BYTES_RANGE};

/// Settings that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("history of {seconds} s is out of range: use {} to {}", HISTORY_SECONDS_RANGE.0, HISTORY_SECONDS_RANGE.1)]
    History { seconds: u64 },
    #[error("{name} of {bytes} bytes is out of range: use {} to {}, or 0 for none", JOURNAL_BYTES_RANGE.0, JOURNAL_BYTES_RANGE.1)]
    Bytes { name: &'static str, bytes: u64 },
    #[error("the soft limit of {soft} bytes is above the hard limit of {hard}: make it smaller")]
    SoftAboveHard { soft: u64, hard: u64 },
    #[error(
        "thinning keeps all up to {all:?} and then one a minute up to {minutely:?}: the second must be longer"
    )]
    Thinning { all: Duration, minutely: Duration },
}

impl Settings {
    /// Settings with which nothing is folded and nothing refused: for whoever only looks or repairs.
    pub fn for_repair() -> Self {
        Self {
            history: Duration::from_secs(HISTORY_SECONDS_RANGE.1),
            bytes_soft: 0,
            bytes_hard: 0,
            segment_bytes: types::limits::SEGMENT_BYTES_DEFAULT,
            mode: Mode::RollForward,
            thinning: crate::checkpoints::Thinning::default(),
            tagged_history: Duration::ZERO,
        }
    }

    /// Checks what an operator has set.
    ///
    /// # Errors
    /// [`SettingsError`] naming the allowed range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let seconds = self.history.as_secs();
        if !(HISTORY_SECONDS_RANGE.0..=HISTORY_SECONDS_RANGE.1).contains(&seconds) {
            return Err(SettingsError::History { seconds });
        }
        for (name, bytes) in [("bytes_soft", self.bytes_soft), ("bytes_hard", self.bytes_hard)] {
            if bytes != 0 && !(JOURNAL_BYTES_RANGE.0..=JOURNAL_BYTES_RANGE.1).contains(&bytes) {
                return Err(SettingsError::Bytes { name, bytes });
            }
        }
        if self.bytes_hard != 0 && self.bytes_soft > self.bytes_hard {
            return Err(SettingsError::SoftAboveHard { soft: self.bytes_soft, hard: self.bytes_hard });
        }
        let (all, minutely) = (self.thinning.all, self.thinning.minutely);
        if all > minutely {
            return Err(SettingsError::Thinning { all, minutely });
        }
        Ok(())
    }
}

/// A sealed segment that may go, oldest first.
#[derive(Debug, Clone, Copy)]
struct Unit {
    last_seq: WriteSeq,
    /// None while it is not known how old it is.
    aged_from: Option<i64>,
    bytes: u64,
}

impl Shared {
    /// The lowest cut that a pin holds.
    pub(crate) fn lowest_pin(&self) -> Option<WriteSeq> {
        let kept = self.manifest.pins.iter().map(|pin| WriteSeq::from_raw(pin.cut));
        self.image_pins.values().copied().chain(kept).min()
    }

    /// The lowest cut a tag holds.
    fn lowest_tag(&self) -> Option<WriteSeq> {
        let cuts = self.manifest.tags.iter().map(|tag| WriteSeq::from_raw(tag.cut));
        cuts.filter(|cut| self.age_of(*cut) < self.settings.tagged_history).min()
    }

    /// Sealed segments in the order they may go: before-images first, then, in roll-forward mode, redo.
    fn units(&self) -> Vec<Unit> {
        let of = |kind: LogKind| {
            self.manifest.log(kind).segments.iter().map_while(|segment| {
                let sealed = segment.sealed.as_ref()?;
                let footer = sealed.footer.as_ref()?;
                Some(Unit {
                    last_seq: WriteSeq::from_raw(sealed.point.last_seq),
                    aged_from: sealed.aged_from,
                    bytes: sealed.bytes + footer.bytes,
                })
            })
        };
        let mut units: Vec<Unit> = of(LogKind::Undo).collect();
        if self.settings.mode == Mode::RollForward {
            units.extend(of(LogKind::Redo));
        }
        units
    }

    /// Up to where history is to go, if any of it is. What is `last_good` goes only where the hard limit leaves
    /// the stream no room.
    fn due(&self, last_good: Option<WriteSeq>) -> Option<WriteSeq> {
        let settings = &self.settings;
        let horizon = self.age.now.saturating_sub(micros(settings.history));
        let mut bytes = self.journal_bytes();
        let hard_is_near = settings.bytes_hard > 0 && bytes > settings.bytes_hard / 16 * 15;
        let gives_way = [self.lowest_tag(), last_good].into_iter().flatten();
        let hold = self.lowest_pin().into_iter().chain(gives_way.filter(|_| !hard_is_near)).min();
        let soft = match (settings.bytes_soft, settings.bytes_hard) {
            (0, 0) => u64::MAX,
            (0, hard) => hard / 16 * 15,
            (soft, _) => soft,
        };
        // Begun above the limit, it goes on until somewhat below, so that it is not begun all the time.
        let low = if bytes > soft { soft / 16 * 15 } else { u64::MAX };
        let mut due = None;
        for unit in self.units().into_iter().take(FOLD_SEGMENTS_MAX) {
            let wanted = unit.aged_from.is_none_or(|from| from >= horizon) && bytes <= low;
            if wanted || hold.is_some_and(|cut| unit.last_seq > cut) {
                break;
            }
            bytes = bytes.saturating_sub(unit.bytes);
            due = Some(unit.last_seq);
        }
        due
    }

    /// How long a history the size limits leave at the pace of what is kept now; none where they leave all
    /// that is set, or nothing is known yet.
    pub(crate) fn projected_history(&self) -> Option<Duration> {
        let limit = match (self.settings.bytes_soft, self.settings.bytes_hard) {
            (0, 0) => return None,
            (0, hard) => hard,
            (soft, _) => soft,
        };
        let (kept, bytes) = (self.history(), self.journal_bytes());
        if kept.is_zero() || bytes == 0 {
            return None;
        }
        let projected = Duration::from_secs_f64(kept.as_secs_f64() * limit as f64 / bytes as f64);
        (projected < self.settings.history).then_some(projected)
    }
}

impl Journal {
    /// Folds or retires what is due.
    pub(crate) fn retain(&self, undo: &mut UndoWriter, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let applied = self.read_shared().manifest.applied();
        let last_good = self.last_good();
        let due = self.read_shared().due(last_good);
        let Some(due) = due else { return Ok(Kept { applied, ..Kept::default() }) };
        // What was begun is ended first: what is due grows while it is written.
        let target = self.fold_begun().filter(|begun| *begun < due).unwrap_or(due);
        let mut folded_bytes = 0;
        if target > applied {
            if undo.has_unfinished_step(self) {
                return Ok(Kept { applied, more: true, ..Kept::default() });
            }
            match self.fold_to(target, how)? {
                Some(written) => {
                    folded_bytes = written.bytes;
                    if !written.is_whole {
                        return Ok(Kept { applied, folded_bytes, more: true, ..Kept::default() });
                    }
                }
                None => return Ok(Kept { applied, ..Kept::default() }),
            }
        } else if !self.retire(target).map_err(FoldError::Manifest)? {
            return Ok(Kept { applied, ..Kept::default() });
        }
        let segments = self.finish_fold(target).map_err(FoldError::Manifest)?;
        Ok(Kept { segments, folded_bytes, more: true, ..Kept::default() })
    }

    /// The newest cut there is to fail over to. While a sync is under way all that come after it miss writes, so
    /// that it is the newest checkpoint from before.
    fn last_good(&self) -> Option<WriteSeq> {
        let newest = self.newest_consistent(WriteSeq::MAX)?;
        if !self.with_timeline(Timeline::is_gap_open) {
            return Some(newest);
        }
        // One that cannot be read is none: the cut just before the sync is held then.
        let checkpoint = self.newest_checkpoint().ok().flatten();
        Some(checkpoint.map_or(newest, |facts| facts.cut().min(newest)))
    }
}
