//! Opening a journal after a crash: only open segments are read.

use super::{SETTINGS, create, keep_up, meta, reopen};
use crate::Run;
use crate::clock::timed;
use crate::disk::drop_caches;
use crate::figures::{Figure, Goal};
use crate::load::{Stream, random_writes};
use anyhow::{Context, Result};
use journal::{AppendMeta, Settings};
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
    let gib = journal.status().open_bytes as f64 / (1 << 30) as f64;
    drop(journal);
    let mut seconds = Vec::new();
    for _ in 0..run.rounds() {
        drop_caches();
        let (taken, journal) = timed(|| reopen(&folder, settings));
        journal?;
        seconds.push(taken / gib);
    }
    Ok(vec![Figure::alone(
        "opening after a crash, a GiB of open segment of 4 KiB writes",
        &seconds,
        "s",
        Goal::AtMost(1.0),
    )])
}
