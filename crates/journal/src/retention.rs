//! Retention: how much history is kept, what holds it back, and what the limits will leave.

use crate::age::micros;
use crate::cover::LogKind;
use crate::settings::Mode;
use crate::view::Shared;
use std::time::Duration;
use types::limits::FOLD_SEGMENTS_MAX;
use types::{CheckpointKind, WriteSeq};

/// A sealed segment that may go, oldest first.
#[derive(Debug, Clone, Copy)]
struct Unit {
    last_seq: WriteSeq,
    /// None while it is not known how old it is.
    aged_from: Option<i64>,
    bytes: u64,
}

impl Shared {
    /// The lowest cut a tag holds. The manifest learns of one with its segment's footer; its before-images may be sealed
    /// earlier.
    fn lowest_tag(&self) -> Option<WriteSeq> {
        let frozen = self.view.redo.frozen.iter().flat_map(|table| &table.checkpoints);
        let recent = frozen.chain(&self.redo_table.checkpoints).map(|facts| &facts.checkpoint);
        let recent = recent.filter(|checkpoint| checkpoint.kind == CheckpointKind::Tagged);
        let kept = self.manifest.tags.iter().map(|tag| WriteSeq::from_raw(tag.cut));
        let cuts = kept.chain(recent.map(|checkpoint| checkpoint.cut));
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
    /// the stream no room, or an operator has let go of it; nothing goes of what is locked.
    pub(crate) fn due(&self, last_good: Option<WriteSeq>) -> Option<WriteSeq> {
        let settings = &self.settings;
        if settings.is_locked {
            return None;
        }
        let horizon = self.age.now.saturating_sub(micros(settings.history));
        let mut bytes = self.journal_bytes();
        let hard_is_near = settings.bytes_hard > 0 && bytes > settings.bytes_hard / 16 * 15;
        let last_good = last_good.filter(|cut| settings.let_go.is_none_or(|gone| *cut > gone));
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
        if self.settings.is_locked {
            return None;
        }
        let (kept, bytes) = (self.history(), self.journal_bytes());
        if kept.is_zero() || bytes == 0 {
            return None;
        }
        let projected = Duration::from_secs_f64(kept.as_secs_f64() * limit as f64 / bytes as f64);
        (projected < self.settings.history).then_some(projected)
    }
}
