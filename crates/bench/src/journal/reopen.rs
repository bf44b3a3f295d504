//! Opening a journal after a crash: only open segments are read.

use super::{SETTINGS, create, keep_up, meta, reopen};
use crate::Run;
use crate::clock::timed;
use crate::disk::{Aligned, drop_caches, open_direct};
use crate::figures::{Figure, Goal};
use crate::load::{Stream, random_writes};
use anyhow::{Context, Result};
use journal::{AppendMeta, Settings};
use std::os::unix::fs::FileExt;
use std::path::Path;
use types::WallTime;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let folder = run.folder.join("reopen");
    let settings = Settings { segment_bytes: 1 << 30, ..SETTINGS };
    // Segments of 16, 32, 64 and 128 MiB come before one that has room for the rest.
    let bytes = run.scaled(480 << 20);
    let journal = create(&folder, 1, 16 << 30, settings)?;
    for batch in random_writes(&mut Stream::begin(), bytes, 4 << 10, 16 << 30, 1) {
        let number = batch.header().last_seq.raw();
        journal
            .append(vec![batch], AppendMeta { received_at: WallTime(0), ..meta(number) })
            .context("append")?;
    }
    keep_up(&journal, 0, 1)?;
    let open_bytes = journal.status().open_bytes;
    let gib = open_bytes as f64 / (1 << 30) as f64;
    drop(journal);
    let (mut seconds, mut of_loop) = (Vec::new(), Vec::new());
    for _ in 0..run.rounds() {
        drop_caches();
        let (taken, done) = timed(|| read_newest_segment(&folder, open_bytes));
        done?;
        of_loop.push(taken / gib);
        drop_caches();
        let (taken, journal) = timed(|| reopen(&folder, settings));
        journal?;
        seconds.push(taken / gib);
    }
    let name = "opening after a crash, a GiB of open segment of 4 KiB writes";
    let beside = "the same beside a loop that only reads it";
    Ok(vec![
        Figure::alone(name, &seconds, "s", Goal::AtMost(1.0)),
        Figure::against(beside, &seconds, &of_loop, "s", Goal::None),
    ])
}

/// Reads so much of the open segment's file, 4 MiB at a time.
fn read_newest_segment(folder: &Path, bytes: u64) -> Result<()> {
    let rows = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let segments = rows
        .iter()
        .map(std::fs::DirEntry::path)
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-")));
    let file = open_direct(&segments.max().context("a journal without a segment")?)?;
    let mut buf = Aligned::new(4 << 20);
    for at in (0..bytes).step_by(4 << 20) {
        let len = (bytes - at).min(4 << 20) as usize;
        file.read_exact_at(&mut buf.get_mut()[..len], at).context("read the segment")?;
    }
    Ok(())
}
