//! What readers look at: the state of a journal in memory, as far as it is durable.
//!
//! What changes with every write, the open segments' tables and the timeline, is looked at under the lock. What does
//! not is a [`View`], which is replaced as a whole, so that a reader keeps the one it began with.

use crate::age::AgeClock;
use crate::cover::LogKind;
use crate::manifest::{DamageEntry, Manifest, Sealed};
use crate::payload::ReadError;
use crate::run::Run;
use crate::settings::Settings;
use crate::table::Table;
use crate::timeline::Timeline;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use types::{ByteRange, DiskIndex, WallTime, WriteSeq};

/// What readers look at. Everything in it is durable.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) settings: Settings,
    pub(crate) timeline: Timeline,
    pub(crate) age: AgeClock,
    /// Of the open segments.
    pub(crate) redo_table: Table,
    pub(crate) undo_table: Table,
    pub(crate) view: Arc<View>,
    pub(crate) newest_at: Option<WallTime>,
    pub(crate) open_bytes: u64,
    pub(crate) undo_open_bytes: u64,
    /// Cuts that open images hold, by the pin's number.
    pub(crate) image_pins: BTreeMap<u64, WriteSeq>,
    pub(crate) next_image_pin: u64,
}

/// What does not change with every write: replaced as a whole.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) applied: WriteSeq,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) redo: LogView,
    pub(crate) undo: LogView,
}

/// A log's sealed part.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogView {
    /// Tables of sealed segments whose footer is not written yet, oldest first.
    pub(crate) frozen: Vec<Arc<Table>>,
    /// Oldest first.
    pub(crate) runs: Vec<Arc<Run>>,
}

impl View {
    pub(crate) fn log(&self, kind: LogKind) -> &LogView {
        match kind {
            LogKind::Redo => &self.redo,
            LogKind::Undo => &self.undo,
        }
    }

    pub(crate) fn log_mut(&mut self, kind: LogKind) -> &mut LogView {
        match kind {
            LogKind::Redo => &mut self.redo,
            LogKind::Undo => &mut self.undo,
        }
    }
}

impl Shared {
    pub(crate) fn table(&self, kind: LogKind) -> &Table {
        match kind {
            LogKind::Redo => &self.redo_table,
            LogKind::Undo => &self.undo_table,
        }
    }

    pub(crate) fn table_mut(&mut self, kind: LogKind) -> &mut Table {
        match kind {
            LogKind::Redo => &mut self.redo_table,
            LogKind::Undo => &mut self.undo_table,
        }
    }

    pub(crate) fn open_bytes_mut(&mut self, kind: LogKind) -> &mut u64 {
        match kind {
            LogKind::Redo => &mut self.open_bytes,
            LogKind::Undo => &mut self.undo_open_bytes,
        }
    }

    /// What was lost at or below `cut` together with its index, if anything: reads there would show older bytes.
    pub(crate) fn lost_at(&self, cut: WriteSeq) -> Option<&DamageEntry> {
        self.manifest.damage.iter().find(|damage| damage.hides_from(cut))
    }

    /// Whether every write at or below `cut`, which can be opened or could once, is there or known to an index.
    pub(crate) fn knows_all_at(&self, cut: WriteSeq) -> Result<(), ReadError> {
        match self.lost_at(cut).filter(|_| self.timeline.is_gap_at(cut)) {
            Some(damage) => Err(ReadError::Lost { cut, what: damage.what.clone() }),
            None => Ok(()),
        }
    }

    /// Whether none of a range of a disk is lost as of `cut`.
    pub(crate) fn knows_bytes_at(
        &self,
        disk: DiskIndex,
        range: ByteRange,
        cut: WriteSeq,
    ) -> Result<(), ReadError> {
        let Some(piece) = self.timeline.lost().first_at(disk, range, cut) else { return Ok(()) };
        let disk = self.manifest.disks[usize::from(disk.0)].name.clone();
        Err(ReadError::LostBytes { disk, piece })
    }

    /// Replaces the manifest and what hangs on it.
    pub(crate) fn set_manifest(&mut self, manifest: Manifest, change: impl FnOnce(&mut View)) {
        self.manifest = Arc::new(manifest);
        let view = Arc::make_mut(&mut self.view);
        view.applied = self.manifest.applied();
        view.manifest = self.manifest.clone();
        change(view);
    }

    pub(crate) fn journal_bytes(&self) -> u64 {
        let (redo, undo) = (&self.manifest.redo, &self.manifest.undo);
        let sealed = redo.sealed_bytes() + undo.sealed_bytes();
        let merged = redo.merged_bytes() + undo.merged_bytes();
        sealed + merged + self.open_bytes + self.undo_open_bytes
    }

    /// When the oldest write kept came, by this host's clock.
    pub(crate) fn oldest_at(&self) -> Option<WallTime> {
        let oldest = self.manifest.undo.segments.first().or(self.manifest.redo.segments.first());
        oldest.map(|segment| WallTime(segment.created_at))
    }

    pub(crate) fn history(&self) -> Duration {
        let newest = self.newest_at.unwrap_or_default();
        self.oldest_at().map_or(Duration::ZERO, |oldest| newest.since(oldest))
    }

    /// The cuts that pins hold.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = WriteSeq> {
        let kept = self.manifest.pins.iter().map(|pin| WriteSeq::from_raw(pin.cut));
        self.image_pins.values().copied().chain(kept)
    }

    /// The lowest cut that a pin holds.
    pub(crate) fn lowest_pin(&self) -> Option<WriteSeq> {
        self.pinned().min()
    }

    /// The lowest cut that a pin holds, of those at or above `least`.
    pub(crate) fn lowest_pin_from(&self, least: WriteSeq) -> Option<WriteSeq> {
        self.pinned().filter(|cut| *cut >= least).min()
    }

    /// The highest cut that a pin holds, of those at or below `most`.
    pub(crate) fn highest_pin_upto(&self, most: WriteSeq) -> Option<WriteSeq> {
        self.pinned().filter(|cut| *cut <= most).max()
    }

    /// How long ago `cut` was at the end of what is sealed; zero for what is not.
    pub(crate) fn age_of(&self, cut: WriteSeq) -> Duration {
        let kind = if cut <= self.manifest.applied() { LogKind::Undo } else { LogKind::Redo };
        let segments = &self.manifest.log(kind).segments;
        let ends_below = |sealed: &Sealed| sealed.point.last_seq < cut.raw();
        let at = segments.partition_point(|segment| segment.sealed.as_ref().is_some_and(ends_below));
        let sealed = segments.get(at).and_then(|segment| segment.sealed.as_ref());
        let age = sealed.and_then(|sealed| sealed.aged_from).map_or(0, |from| self.age.now - from);
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }
}
