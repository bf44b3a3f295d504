//! Opening a journal after a crash: only open segments are read.

use super::{SETTINGS, create, meta, reopen};
use crate::Run;
use crate::clock::timed;
use crate::disk::drop_caches;
use crate::figures::{Figure, Goal};
use crate::load::{Stream, random_writes};
use anyhow::{Context, Result};
use journal::Settings;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let folder = run.folder.join("reopen");
    // One open segment: it would be sealed at 16 MiB otherwise, so it comes in one group.
    let settings = Settings { segment_bytes: 1 << 30, ..SETTINGS };
    let bytes = run.scaled(512 << 20);
    let journal = create(&folder, 1, 16 << 30, settings)?;
    let batches = random_writes(&mut Stream::begin(), bytes, 4 << 10, 16 << 30, 1);
    journal.append(batches, meta(1)).context("append")?;
    anyhow::ensure!(journal.status().segments == 1, "one segment");
    let gib = journal.status().journal_bytes as f64 / (1 << 30) as f64;
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
