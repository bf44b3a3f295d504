//! Where a segment ends and the next one begins, in either log.

use crate::cover::LogKind;
use crate::layout::{FIRST_BATCH_AT, SegmentHeader};
use crate::manifest::{Sealed, SegmentInfo, StreamPoint};
use crate::page::PAGE_BYTES;
use crate::segment::{Segment, hex};
use crate::state::State;
use crate::store::Store;
use crate::table::Table;
use std::io;
use std::sync::Arc;
use types::{VmId, WallTime};

/// Files of old segments are kept under names that begin so.
pub(crate) const SPARE_PREFIX: &str = "spare-";

/// Seals the open segment of a log, whose batches end at byte `bytes`.
pub(crate) fn seal(
    state: &State,
    kind: LogKind,
    bytes: u64,
    point: StreamPoint,
    newest_at: WallTime,
) -> io::Result<()> {
    let timeline = state.read_shared().timeline.clone();
    state.change_manifest(
        |manifest| {
            let log = manifest.log_mut(kind);
            let last = log.segments.last_mut().expect("an open segment is in the manifest");
            log.next_page = last.base_page + bytes / PAGE_BYTES;
            last.sealed =
                Some(Sealed { bytes, point, newest_at: newest_at.0, aged_from: None, footer: None });
            if kind == LogKind::Redo {
                timeline.write_to(manifest);
            }
        },
        |shared, manifest| {
            let fresh = Table::new(kind, 0, 0);
            let frozen = std::mem::replace(shared.table_mut(kind), fresh);
            *shared.open_bytes_mut(kind) = 0;
            shared.set_manifest(manifest, |view| view.log_mut(kind).frozen.push(Arc::new(frozen)));
        },
    )
}

/// Begins a new segment of a log that has no open one: the file first, then the manifest.
pub(crate) fn begin_segment(
    state: &State,
    kind: LogKind,
    vm: VmId,
    now: WallTime,
    incarnation: [u8; 16],
) -> io::Result<(SegmentInfo, Segment)> {
    let info = {
        let shared = state.read_shared();
        let log = shared.manifest.log(kind);
        let (number, base_page) = (log.next_segment, log.next_page);
        SegmentInfo { number, incarnation: hex(&incarnation), base_page, created_at: now.0, sealed: None }
    };
    let header = SegmentHeader { kind, number: info.number, vm, incarnation, created_at: now };
    let spare = take_spare(&*state.store, kind)?;
    let segment = Segment::create(&*state.store, spare.as_deref(), header)?;
    state.change_manifest(
        |manifest| {
            let log = manifest.log_mut(kind);
            log.next_segment += 1;
            log.segments.push(info.clone());
        },
        |shared, manifest| {
            *shared.table_mut(kind) = Table::new(kind, info.number, info.base_page);
            *shared.open_bytes_mut(kind) = FIRST_BATCH_AT;
            shared.set_manifest(manifest, |_| {});
        },
    )?;
    Ok((info, segment))
}

/// A file of an old segment to be written anew, if one was kept.
fn take_spare(store: &dyn Store, kind: LogKind) -> io::Result<Option<String>> {
    if kind == LogKind::Undo {
        return Ok(None); // Its segments are written seldom and in large steps.
    }
    let names = store.names()?;
    Ok(names.into_iter().filter(|name| name.starts_with(SPARE_PREFIX)).min())
}
