//! What is done with: segments, runs and checkpoints that neither a read nor a fold can want any more.

use crate::cover::LogKind;
use crate::manifest::{Manifest, Sealed, segment_name};
use crate::roll::SPARE_PREFIX;
use crate::store::Store;
use std::io;
use types::limits::SPARE_SEGMENTS_MAX;

/// What a manifest no longer names.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    pub(crate) segments: Vec<(LogKind, u64)>,
    files: Vec<String>,
}

/// Takes out of the manifest what neither a read nor a fold can want any more: redo segments at or below
/// `applied`, undo segments at or below what is retired, runs over nothing else, checkpoints below.
pub(crate) fn drop_what_is_done(manifest: &mut Manifest) -> Gone {
    let mut gone = Gone::default();
    for kind in [LogKind::Redo, LogKind::Undo] {
        let done = match kind {
            LogKind::Redo => manifest.applied,
            LogKind::Undo => manifest.retired_below,
        };
        let mut base = None;
        let log = manifest.log_mut(kind);
        let is_done = |sealed: &Sealed| sealed.point.last_seq <= done && sealed.footer.is_some();
        let count =
            log.segments.iter().take_while(|segment| segment.sealed.as_ref().is_some_and(is_done)).count();
        for segment in log.segments.drain(..count) {
            gone.segments.push((kind, segment.number));
            let sealed = segment.sealed.expect("only sealed segments are done");
            let footer = sealed.footer.filter(|footer| footer.file.is_some());
            gone.files.extend(footer.map(|footer| footer.file_name(kind)));
            base = Some(sealed.point);
        }
        let first = log.segments.first().map_or(u64::MAX, |segment| segment.number);
        log.runs.retain(|run| {
            let is_gone = run.last_segment < first;
            gone.files.extend((is_gone && run.level > 0).then(|| run.file_name(kind)));
            !is_gone
        });
        if let (LogKind::Redo, Some(base)) = (kind, base) {
            manifest.base = base;
        }
    }
    let floor = manifest.retired_below;
    manifest.checkpoints.retain(|file| {
        let is_gone = file.last_cut < floor;
        gone.files.extend(is_gone.then(|| file.file_names()).into_iter().flatten());
        !is_gone
    });
    manifest.tags.retain(|tag| tag.cut >= floor);
    manifest.gaps.retain(|gap| gap.end.is_none_or(|end| end > floor));
    manifest.left_out = manifest.left_out.take().filter(|left_out| left_out.end > Some(floor));
    manifest.lost.retain(|piece| piece.until.is_none_or(|until| until > floor));
    manifest.damage.retain(|damage| damage.to_seq.is_none_or(|to| to > floor));
    gone
}

/// Keeps some files of old redo segments to be written anew, and removes the rest.
pub(crate) fn recycle(store: &dyn Store, gone: &Gone) -> io::Result<()> {
    let spares = store.names()?.iter().filter(|name| name.starts_with(SPARE_PREFIX)).count();
    let mut room = SPARE_SEGMENTS_MAX.saturating_sub(spares);
    for (kind, number) in &gone.segments {
        let name = segment_name(*kind, *number);
        if *kind == LogKind::Redo && room > 0 && store.exists(&name)? {
            store.rename(&name, &format!("{}{number:08}", SPARE_PREFIX))?;
            room -= 1;
        } else {
            store.remove(&name)?;
        }
    }
    for name in &gone.files {
        store.remove(name)?;
    }
    store.sync_folder()
}
