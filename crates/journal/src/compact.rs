//! Merging runs: eight of a level become one of the next, so that a look-up has few to ask.

use crate::cover::LogKind;
use crate::extent::Width;
use crate::fold::FoldError;
use crate::manifest::RunInfo;
use crate::merge::{Merge, Source};
use crate::read::Reads;
use crate::run::{Run, RunError};
use crate::run_writer::RunWriter;
use crate::state::State;
use crate::store::Store;
use std::sync::Arc;
use types::limits::RUN_FAN_OUT;

/// Whether somebody waits is asked after so many extents.
const EXTENTS_A_STEP: usize = 1 << 14;

/// Merges while a level is full, one merge a log. How many.
pub(crate) fn merge_runs(state: &State, reads: &Reads, entropy: [u8; 16]) -> Result<usize, FoldError> {
    let mut merges = 0;
    for kind in [LogKind::Redo, LogKind::Undo] {
        let view = state.read_shared().view.clone();
        if let Some(full) = oldest_full_level(&view.log(kind).runs) {
            merge(state, reads, kind, &full, entropy)?;
            merges += 1;
        }
    }
    Ok(merges)
}

fn merge(
    state: &State,
    reads: &Reads,
    kind: LogKind,
    runs: &[Arc<Run>],
    entropy: [u8; 16],
) -> Result<(), FoldError> {
    let (number, above, base_page) = {
        let shared = state.read_shared();
        let manifest = &shared.manifest;
        let above = match kind {
            LogKind::Redo => manifest.applied,
            LogKind::Undo => manifest.retired_below,
        };
        let first = runs[0].info.first_segment;
        let segments = &manifest.log(kind).segments;
        // Of segments that are gone no extent is left above `above`.
        let base = segments.iter().find(|info| info.number >= first).map_or(0, |info| info.base_page);
        (manifest.next_file + 1, above, base)
    };
    let name = format!("run-{number:08}");
    let file = state.store.open(&name, true).map_err(FoldError::Footer)?;
    file.set_len(0).map_err(FoldError::Footer)?;
    let stamp = u32::from_le_bytes([entropy[4], entropy[5], entropy[6], entropy[7]]) ^ number as u32;
    let mut writer = RunWriter::begin(&*file, 0, kind, stamp, base_page);
    for width in Width::BOTH {
        let sources = runs.iter().map(|run| Source::of_run(run.clone(), width, &*state.store));
        let mut merge = Merge::new(sources.collect::<Result<_, _>>()?)?;
        let mut looked_at = 0_usize;
        while let Some(extent) = merge.next()? {
            looked_at += 1;
            if looked_at.is_multiple_of(EXTENTS_A_STEP) {
                state.check_turn().map_err(FoldError::Footer)?;
            }
            if extent.seq.raw() <= above {
                continue;
            }
            let fits_width = match width {
                Width::Narrow => !extent.is_wide(),
                Width::Wide => extent.wide_piece().is_some(),
            };
            if !extent.can_be_named_from(base_page) || !fits_width {
                let (first, last) = (runs[0].name(), runs[runs.len() - 1].name());
                let what = "an extent lies outside the segments they are of, or of its place";
                return Err(RunError::Damaged { name: format!("{first} to {last}"), what }.into());
            }
            writer.push(&extent).map_err(FoldError::Footer)?;
        }
    }
    let written = writer.finish().map_err(FoldError::Footer)?;
    file.sync_data().map_err(FoldError::Footer)?;
    state.store.sync_folder().map_err(FoldError::Footer)?;
    let info = RunInfo {
        level: runs[0].info.level + 1,
        file: Some(number),
        first_segment: runs[0].info.first_segment,
        last_segment: runs[runs.len() - 1].info.last_segment,
        at: 0,
        bytes: written.bytes,
        entries: written.entries,
        first_seq: written.first_seq,
        last_seq: written.last_seq,
    };
    swap_runs(state, kind, runs, vec![info]).map_err(FoldError::Manifest)?;
    reads.wait_for_readers();
    remove_run_files(&*state.store, kind, runs);
    Ok(())
}

/// Puts `fresh` in the place of `old`, which stand side by side.
pub(crate) fn swap_runs(
    state: &State,
    kind: LogKind,
    old: &[Arc<Run>],
    fresh: Vec<RunInfo>,
) -> std::io::Result<()> {
    let is_old = |info: &RunInfo| old.iter().any(|run| run.info == *info);
    state.change_manifest(
        |manifest| {
            let runs = &mut manifest.log_mut(kind).runs;
            let at = runs.iter().position(is_old).expect("only upkeep removes runs");
            runs.retain(|info| !is_old(info));
            runs.splice(at..at, fresh.iter().cloned());
            let highest = fresh.iter().filter_map(|info| info.file).max();
            manifest.next_file = manifest.next_file.max(highest.unwrap_or(0));
        },
        |shared, manifest| {
            shared.set_manifest(manifest, |view| {
                let runs = &mut view.log_mut(kind).runs;
                let at = runs.iter().position(|run| is_old(&run.info)).expect("only upkeep removes runs");
                runs.retain(|run| !is_old(&run.info));
                runs.splice(at..at, fresh.iter().map(|info| Arc::new(Run::new(kind, info.clone()))));
            });
        },
    )
}

/// Removes the files of merged runs that no manifest names any more. One that stays for an error is
/// found and removed when the journal is opened again.
pub(crate) fn remove_run_files(store: &dyn Store, kind: LogKind, runs: &[Arc<Run>]) {
    // A footer that was made again is its segment's, whatever it is merged into.
    for run in runs.iter().filter(|run| run.info.level > 0) {
        let _ = store.remove(&run.info.file_name(kind));
    }
}

/// The oldest runs of the lowest level that is full. They stand side by side: a run's place says how old
/// its extents are.
fn oldest_full_level(runs: &[Arc<Run>]) -> Option<Vec<Arc<Run>>> {
    let full = runs
        .windows(RUN_FAN_OUT)
        .filter(|side_by_side| side_by_side.iter().all(|run| run.info.level == side_by_side[0].info.level));
    full.min_by_key(|side_by_side| side_by_side[0].info.level).map(<[_]>::to_vec)
}
