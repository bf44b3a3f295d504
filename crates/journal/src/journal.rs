//! The journal as the rest of the program sees it: state, settings, status.
//!
//! Locks, taken in this order: `upkeep`, held by whoever seals, merges, folds or retires; `writer`, held
//! while batches get their places; `saving`, held while the manifest is replaced; `shared`, held shortly
//! to look up or to publish. The gate is for readers: see `read.rs`.

use crate::age::AgeClock;
use crate::append::{InFlight, Writer};
use crate::checkpoints::{CheckpointError, CheckpointFacts, CheckpointQuery, Files, Thinning};
use crate::cover::LogKind;
use crate::fold::Begun;
use crate::life::Life;
use crate::manifest::Manifest;
use crate::read::SegmentFiles;
use crate::run::Run;
use crate::store::{Store, StoreFile};
use crate::table::Table;
use crate::timeline::Timeline;
use crate::undo::UndoWriter;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use types::{CheckpointId, DiskSpec, Epoch, Incarnation, WallTime, WriteSeq};

/// Where the replica stands in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// At its old end: everything newer is in the journal.
    #[default]
    RollForward,
    /// At its new end: before-images of everything older are in the journal.
    Rollback,
}

/// What an operator may set, and change while the journal is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The history window.
    pub history: Duration,
    /// Fold early above this many bytes; zero for no limit.
    pub bytes_soft: u64,
    /// Take nothing more above this many bytes; zero for no limit but the disk.
    pub bytes_hard: u64,
    /// A segment is closed at this size at the latest; a slow stream has smaller ones.
    pub segment_bytes: u64,
    pub mode: Mode,
    pub thinning: Thinning,
    /// Tagged checkpoints younger than this hold retention back, unless the hard limit is near.
    pub tagged_history: Duration,
}

/// The journal of one VM.
#[derive(Debug)]
pub struct Journal {
    /// Names this opening of the journal in the process's caches.
    pub(crate) uid: u64,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) upkeep: Mutex<UndoWriter>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) in_flight: InFlight,
    /// Set after a failed write or sync: nothing more is taken.
    pub(crate) failed: AtomicBool,
    pub(crate) saving: Mutex<()>,
    pub(crate) life: Life,
    /// Held while footers are written, one after the other.
    pub(crate) footers: Mutex<()>,
    pub(crate) shared: RwLock<Shared>,
    pub(crate) gate: RwLock<()>,
    pub(crate) files: SegmentFiles,
    pub(crate) replicas: RwLock<Vec<Option<Arc<dyn StoreFile>>>>,
    /// Of a fold whose replica is written in part; held shortly, by whoever holds `upkeep`.
    pub(crate) fold_begun: Mutex<Option<Begun>>,
    /// Whether the file system of the replicas has made a hole when it was last asked to.
    pub(crate) makes_holes: AtomicBool,
}

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
    pub settings: Settings,
}

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

pub(crate) fn next_uid() -> u64 {
    NEXT_UID.fetch_add(1, Ordering::Relaxed)
}

impl View {
    pub(crate) fn log_mut(&mut self, kind: LogKind) -> &mut LogView {
        match kind {
            LogKind::Redo => &mut self.redo,
            LogKind::Undo => &mut self.undo,
        }
    }
}

impl Shared {
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
}

impl Journal {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        life: Life,
        shared: Shared,
        writer: Writer,
        undo: UndoWriter,
    ) -> Self {
        let replicas = vec![None; shared.manifest.disks.len()];
        Self {
            uid: next_uid(),
            store,
            upkeep: Mutex::new(undo),
            writer: Mutex::new(writer),
            in_flight: InFlight::default(),
            failed: AtomicBool::new(false),
            saving: Mutex::default(),
            life,
            footers: Mutex::default(),
            shared: RwLock::new(shared),
            gate: RwLock::default(),
            files: SegmentFiles::default(),
            replicas: RwLock::new(replicas),
            fold_begun: Mutex::default(),
            makes_holes: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock_upkeep(&self) -> MutexGuard<'_, UndoWriter> {
        self.upkeep.lock().expect("a panic aborts the process")
    }

    pub(crate) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a panic aborts the process")
    }

    pub(crate) fn read_shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().expect("a panic aborts the process")
    }

    pub(crate) fn write_shared(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().expect("a panic aborts the process")
    }

    /// Replaces the manifest, durably, and then publishes it together with what `publish` does. Where it
    /// cannot be saved, nothing has changed in memory but the numbers that were taken; on the disk the old
    /// one or the new one stands, and whatever is changed must be right with either.
    ///
    /// A crash story: (1) a file is made and a manifest that names it is put in place, but syncing the
    /// folder fails; (2) it is tried again, over the same file; (3) the power goes, and what is found is
    /// the first manifest with a part of the second file. So a number that was taken is never taken again.
    pub(crate) fn change_manifest(
        &self,
        change: impl FnOnce(&mut Manifest),
        publish: impl FnOnce(&mut Shared, Manifest),
    ) -> io::Result<()> {
        let _saving = self.saving.lock().expect("a panic aborts the process");
        self.check_life()?;
        let mut manifest = {
            let shared = self.read_shared();
            Manifest { age_clock: shared.age.now, ..(*shared.manifest).clone() }
        };
        change(&mut manifest);
        if let Err(error) = manifest.save(&*self.store) {
            let mut shared = self.write_shared();
            let mut kept = (*shared.manifest).clone();
            kept.keep_numbers_of(&manifest);
            shared.set_manifest(kept, |_| {});
            return Err(error);
        }
        publish(&mut self.write_shared(), manifest);
        Ok(())
    }

    /// The journal in numbers.
    pub fn status(&self) -> JournalStatus {
        let shared = self.read_shared();
        let (manifest, timeline) = (&shared.manifest, &shared.timeline);
        let tables = shared.view.redo.frozen.iter().chain(&shared.view.undo.frozen).map(|table| table.len());
        let tables = tables.sum::<usize>() + shared.redo_table.len() + shared.undo_table.len();
        let runs = manifest.redo.runs.iter().chain(&manifest.undo.runs);
        let rows: u64 = manifest.checkpoints.iter().map(|file| file.rows).sum();
        let recent = shared.view.redo.frozen.iter().map(|table| table.checkpoints.len()).sum::<usize>()
            + shared.redo_table.checkpoints.len();
        let unrepaired = manifest.damage.iter().filter(|damage| damage.to_seq.is_none());
        JournalStatus {
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
            settings: shared.settings,
        }
    }

    /// The disks, in order.
    pub fn disks(&self) -> Vec<DiskSpec> {
        let shared = self.read_shared();
        let disks = shared.manifest.disks.iter();
        disks.map(|disk| DiskSpec { name: disk.name.clone(), size_bytes: disk.size_bytes }).collect()
    }

    /// Asks the timeline: gaps, the newest consistent cut.
    pub fn with_timeline<T>(&self, ask: impl FnOnce(&Timeline) -> T) -> T {
        ask(&self.read_shared().timeline)
    }

    /// Changes what an operator may set.
    pub fn set(&self, settings: Settings) {
        self.write_shared().settings = settings;
    }

    /// Takes a higher epoch, durably; from then on nothing of a lower one is appended.
    ///
    /// # Errors
    /// As the file system says.
    pub fn raise_epoch(&self, epoch: Epoch) -> io::Result<()> {
        let _writer = self.lock_writer();
        if epoch.0 <= self.read_shared().manifest.epoch {
            return Ok(());
        }
        self.change_manifest(
            |manifest| manifest.epoch = epoch.0,
            |shared, manifest| shared.set_manifest(manifest, |_| {}),
        )
    }

    /// Checkpoints that can be opened, in the order asked for, at most as many as the query's limit.
    ///
    /// # Errors
    /// [`CheckpointError`] where a file of them cannot be read.
    pub fn checkpoints(&self, query: &CheckpointQuery) -> Result<Vec<CheckpointFacts>, CheckpointError> {
        let (manifest, timeline, thinning, recent) = {
            let shared = self.read_shared();
            let frozen = shared.view.redo.frozen.iter().flat_map(|table| &table.checkpoints);
            let recent: Vec<_> = frozen.chain(&shared.redo_table.checkpoints).cloned().collect();
            (shared.manifest.clone(), shared.timeline.clone(), shared.settings.thinning, recent)
        };
        let mut found = Vec::new();
        let mut take = |facts: CheckpointFacts| {
            let is_kept =
                || !query.thinned || facts.is_kept(&thinning, self.read_shared().age_of(facts.cut()));
            if timeline.is_consistent_checkpoint(facts.cut()) && is_kept() {
                found.push(facts);
            }
            found.len() < query.limit
        };
        let files = Files { store: &*self.store, manifest: &manifest };
        if query.limit == 0 {
            return Ok(found);
        }
        if query.newest_first {
            let recent = recent.into_iter().rev().filter(|facts| query.wants(facts));
            let mut all = true;
            for facts in recent {
                all = take(facts);
                if !all {
                    break;
                }
            }
            if all {
                files.visit(query, &mut take)?;
            }
        } else if files.visit(query, &mut take)? {
            for facts in recent.into_iter().filter(|facts| query.wants(facts)) {
                if !take(facts) {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// A checkpoint by its id, if it can be opened; thinned ones too, as long as their data is there.
    ///
    /// # Errors
    /// [`CheckpointError`] where a file of them cannot be read.
    pub fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointFacts>, CheckpointError> {
        let query = CheckpointQuery { after: Some(id.0.previous()), limit: 1, ..CheckpointQuery::default() };
        let found = self.checkpoints(&query)?.pop();
        Ok(found.filter(|facts| facts.checkpoint.id == id))
    }

    /// The newest consistent cut at or below `cut`, if there is one.
    pub fn newest_consistent(&self, cut: WriteSeq) -> Option<WriteSeq> {
        let timeline = self.with_timeline(Timeline::clone);
        timeline.newest_consistent(cut, |cut| {
            let after = Some(cut.next());
            let query = CheckpointQuery { after, newest_first: true, limit: 1, ..CheckpointQuery::default() };
            // One that cannot be read is none: an older cut is taken.
            self.checkpoints(&query).ok()?.pop().map(|facts| facts.cut())
        })
    }

    /// Whether the VM can be opened exactly at `cut`.
    pub fn is_consistent(&self, cut: WriteSeq) -> bool {
        self.newest_consistent(cut) == Some(cut)
    }

    /// The newest checkpoint that can be opened.
    ///
    /// # Errors
    /// [`CheckpointError`] where a file of them cannot be read.
    pub fn newest_checkpoint(&self) -> Result<Option<CheckpointFacts>, CheckpointError> {
        let query = CheckpointQuery { newest_first: true, limit: 1, ..CheckpointQuery::default() };
        Ok(self.checkpoints(&query)?.pop())
    }

    /// The newest checkpoint taken at or before `time`.
    ///
    /// # Errors
    /// [`CheckpointError`] where a file of them cannot be read.
    pub fn nearest_checkpoint(&self, time: WallTime) -> Result<Option<CheckpointFacts>, CheckpointError> {
        let query =
            CheckpointQuery { to: Some(time), newest_first: true, limit: 1, ..CheckpointQuery::default() };
        Ok(self.checkpoints(&query)?.pop())
    }

    /// Lets go of what is only kept for speed: index guides and open files not used since the last call.
    pub fn rest(&self) {
        let view = self.read_shared().view.clone();
        view.redo.runs.iter().chain(&view.undo.runs).for_each(|run| run.rest());
        self.files.clear();
    }

    /// Bytes of index directories and of block bitmaps that are in memory now.
    pub fn resident_index_bytes(&self) -> (usize, usize) {
        let view = self.read_shared().view.clone();
        let runs = view.redo.runs.iter().chain(&view.undo.runs);
        runs.map(|run| run.resident_bytes()).fold((0, 0), |sum, (d, b)| (sum.0 + d, sum.1 + b))
    }
}

/// Index pages read so far by the process, for the bench.
pub fn index_pages_read() -> u64 {
    crate::run::PAGES_READ.load(Ordering::Relaxed)
}
