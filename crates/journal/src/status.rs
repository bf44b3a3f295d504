//! A journal in numbers, for whoever shows it.

use crate::settings::Settings;
use crate::view::Shared;
use std::time::Duration;
use types::{Epoch, Incarnation, WallTime, WriteSeq};

/// A journal in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalStatus {
    pub epoch: Epoch,
    pub applied: WriteSeq,
    pub last_seq: WriteSeq,
    pub watermark: WriteSeq,
    /// Of the stream that may be resumed; none where there was none yet, or where it must begin anew.
    pub incarnation: Option<Incarnation>,
    /// Acknowledged writes from here on were found damaged: the stream must begin anew, and everything be compared.
    pub must_resync: Option<WriteSeq>,
    pub gap_open: bool,
    /// Segments, footers and runs.
    pub journal_bytes: u64,
    /// Of them in the open segment.
    pub open_bytes: u64,
    pub segments: usize,
    pub runs: usize,
    pub index_entries: u64,
    pub guest_writes: u64,
    /// From the oldest batch kept to the newest.
    pub history: Duration,
    /// When the newest write kept came, by this host's clock.
    pub newest_at: Option<WallTime>,
    /// How long a history the limits will leave at the pace of the history kept now; none where nothing
    /// limits it below what is set.
    pub projected_history: Option<Duration>,
    pub checkpoints: u64,
    pub damage: Vec<String>,
    /// Bytes of the newest state that are damaged.
    pub damaged_bytes: u64,
    /// When all of it was last read and found whole, by this host's clock; none where it never was.
    pub scrubbed_at: Option<WallTime>,
    pub settings: Settings,
}

impl JournalStatus {
    /// A journal in numbers, as it is now.
    pub(crate) fn of(shared: &Shared) -> Self {
        let (manifest, timeline) = (&shared.manifest, &shared.timeline);
        let tables = shared.view.redo.frozen.iter().chain(&shared.view.undo.frozen).map(|table| table.len());
        let tables = tables.sum::<usize>() + shared.redo_table.len() + shared.undo_table.len();
        let runs = manifest.redo.runs.iter().chain(&manifest.undo.runs);
        let rows: u64 = manifest.checkpoints.iter().map(|file| file.rows).sum();
        let recent = shared.view.redo.frozen.iter().map(|table| table.checkpoints.len()).sum::<usize>()
            + shared.redo_table.checkpoints.len();
        let unrepaired = manifest.damage.iter().filter(|damage| damage.to_seq.is_none());
        Self {
            epoch: Epoch(manifest.epoch),
            applied: manifest.applied(),
            last_seq: timeline.last_seq,
            watermark: timeline.watermark,
            incarnation: timeline.incarnation.filter(|_| timeline.must_resync().is_none()),
            must_resync: timeline.must_resync(),
            gap_open: timeline.is_gap_open(),
            journal_bytes: shared.journal_bytes(),
            open_bytes: shared.open_bytes,
            segments: manifest.redo.segments.len() + manifest.undo.segments.len(),
            runs: manifest.redo.runs.len() + manifest.undo.runs.len(),
            index_entries: runs.map(|run| run.entries).sum::<u64>() + tables as u64,
            guest_writes: timeline.guest_writes,
            history: shared.history(),
            newest_at: shared.newest_at,
            projected_history: shared.projected_history(),
            checkpoints: rows + recent as u64,
            damage: unrepaired.map(|damage| damage.what.clone()).collect(),
            damaged_bytes: timeline.lost().newest_bytes(),
            scrubbed_at: manifest.scrubbed_at.map(WallTime),
            settings: shared.settings,
        }
    }
}
