//! Footers: the table of a sealed segment goes behind its batches, its checkpoints into their file.
//!
//! Until that is done the table stays in memory; after a crash before it, the segment is read again.

use crate::age::Stamp;
use crate::checkpoint_files::{FILE_PAGES_MAX, pages_for, write_rows};
use crate::checkpoints::CheckpointFacts;
use crate::cover::LogKind;
use crate::layout::{FIRST_BATCH_AT, SegmentHeader};
use crate::manifest::{CheckpointFile, Manifest, RunInfo, SegmentInfo, TagEntry};
use crate::read::Reads;
use crate::run::Run;
use crate::run_writer::{RunWriter, WrittenRun};
use crate::segment::{Segment, SegmentError};
use crate::state::State;
use crate::store::set_aside;
use crate::table::Table;
use std::io;
use std::sync::Arc;
use threads::sync::{Mutex, MutexGuard};
use types::{CheckpointKind, Incarnation, VmId, WallTime};

/// Who writes them, one after the other.
#[derive(Debug)]
pub(crate) struct Footers {
    state: Arc<State>,
    reads: Arc<Reads>,
    one: Mutex<()>,
}

impl Footers {
    pub(crate) fn new(state: Arc<State>, reads: Arc<Reads>) -> Self {
        Self { state, reads, one: Mutex::default() }
    }

    /// While this is held none is written.
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.one.lock().expect("a panic aborts the process")
    }

    /// Writes the footers of all sealed segments that have none; `stamp` says how old they are. How many.
    pub(crate) fn write_all(&self, stamp: Option<Stamp>) -> io::Result<usize> {
        let _one = self.lock();
        self.state.check_life()?;
        let mut count = 0;
        for kind in [LogKind::Redo, LogKind::Undo] {
            loop {
                let oldest = self.state.read_shared().view.log(kind).frozen.first().cloned();
                let Some(table) = oldest else { break };
                self.write_footer(kind, &table, stamp)?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn write_footer(&self, kind: LogKind, table: &Arc<Table>, stamp: Option<Stamp>) -> io::Result<()> {
        let manifest = self.state.read_shared().manifest.clone();
        let info = manifest.log(kind).segments.iter().find(|info| info.number == table.segment);
        let info = info.expect("a segment is not dropped before it has its footer");
        let sealed_at = info.sealed.as_ref().expect("only sealed segments' tables are frozen").bytes;
        let (segment, at) = match Segment::open(&*self.state.store, kind, info) {
            Ok(segment) => (segment, sealed_at),
            Err(SegmentError::Io { source, .. }) => return Err(source),
            Err(_) => (self.make_again(&manifest, kind, info)?, FIRST_BATCH_AT),
        };
        // The same bytes each time it is tried: a manifest whose saving failed may name the footer already.
        let seed = segment.header.seed();
        let mut writer = RunWriter::begin(&*segment.file, at, kind, seed, table.base_page);
        for extent in table.sorted() {
            writer.push(&extent)?;
        }
        let written = writer.finish()?;
        segment.file.sync_data()?;
        let rows = self.write_checkpoints(&manifest, &table.checkpoints, seed)?;
        let run = footer_run(table, at, &written);
        let published = Arc::new(Run::new(kind, run.clone()));
        self.state.change_manifest(
            |manifest| {
                let log = manifest.log_mut(kind);
                let info = log.segments.iter_mut().find(|info| info.number == table.segment);
                let sealed = info.and_then(|info| info.sealed.as_mut()).expect("it was there before");
                sealed.bytes = at;
                sealed.footer = Some(run.clone());
                if let Some(stamp) = stamp {
                    stamp.put(sealed);
                }
                log.runs.push(run.clone());
                rows.record(manifest, &table.checkpoints);
            },
            |shared, manifest| {
                shared.set_manifest(manifest, |view| {
                    let log = view.log_mut(kind);
                    log.frozen.remove(0);
                    log.runs.push(published);
                });
            },
        )
    }

    /// A segment that cannot be read at all is set aside. One without batches stands in its place, so that there is
    /// one to let go of in time.
    fn make_again(&self, manifest: &Manifest, kind: LogKind, info: &SegmentInfo) -> io::Result<Segment> {
        set_aside(&*self.state.store, &info.file_name(kind))?;
        self.reads.forget(kind, info.number);
        let incarnation: Incarnation = info.incarnation.parse().map_err(io::Error::other)?;
        let vm: VmId = manifest.vm.parse().map_err(io::Error::other)?;
        let header = SegmentHeader {
            kind,
            number: info.number,
            vm,
            incarnation: incarnation.to_bytes(),
            created_at: WallTime(info.created_at),
        };
        Segment::create(&*self.state.store, None, header)
    }

    /// Appends checkpoints to both copies of their file, or begins a new one; synced.
    fn write_checkpoints(
        &self,
        manifest: &Manifest,
        rows: &[CheckpointFacts],
        stamp: u32,
    ) -> io::Result<WrittenRows> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(WrittenRows(None)) };
        let pages = pages_for(rows.len());
        let mut file = match manifest.checkpoints.last() {
            Some(file) if file.pages + pages <= FILE_PAGES_MAX && file.is_double => file.clone(),
            _ => CheckpointFile {
                number: manifest.next_file + 1,
                stamp,
                pages: 0,
                rows: 0,
                first_cut: first.cut().raw(),
                last_cut: 0,
                first_at: i64::MAX,
                last_at: i64::MIN,
                is_double: true,
            },
        };
        for name in file.file_names() {
            let open = self.state.store.open(&name, true)?;
            write_rows(&*open, rows, file.pages, file.stamp)?;
            open.sync_data()?;
        }
        if file.pages == 0 {
            self.state.store.sync_folder()?;
        }
        file.pages += pages;
        file.rows += rows.len() as u64;
        file.last_cut = last.cut().raw();
        let times = rows.iter().map(|row| row.checkpoint.taken_at.0);
        file.first_at = times.clone().fold(file.first_at, i64::min);
        file.last_at = times.fold(file.last_at, i64::max);
        Ok(WrittenRows(Some(file)))
    }
}

/// The file that checkpoints went to, as the manifest is to have it.
struct WrittenRows(Option<CheckpointFile>);

impl WrittenRows {
    fn record(self, manifest: &mut Manifest, rows: &[CheckpointFacts]) {
        let Some(file) = self.0 else { return };
        match manifest.checkpoints.last_mut() {
            Some(last) if last.number == file.number => *last = file,
            _ => {
                manifest.next_file = manifest.next_file.max(file.number);
                manifest.checkpoints.push(file);
            }
        }
        let tagged = rows.iter().filter(|row| row.checkpoint.kind == CheckpointKind::Tagged);
        manifest.tags.extend(tagged.map(|row| TagEntry {
            cut: row.cut().raw(),
            tag: row.checkpoint.tag.clone(),
            taken_at: row.checkpoint.taken_at.0,
            members: row.checkpoint.members,
        }));
    }
}

fn footer_run(table: &Table, at: u64, written: &WrittenRun) -> RunInfo {
    RunInfo {
        level: 0,
        file: None,
        first_segment: table.segment,
        last_segment: table.segment,
        at,
        bytes: written.bytes,
        entries: written.entries,
        first_seq: written.first_seq,
        last_seq: written.last_seq,
    }
}
