//! Durable appends against the disk's sequential direct-write limit.

use super::{SETTINGS, append_all, create, keep_up, shards};
use crate::Run;
use crate::clock::{Rate, timed};
use crate::disk::{bytes_written, sequential_write, source, written_file};
use crate::figures::{Figure, Goal};
use crate::load::{Stream, random_writes};
use anyhow::Result;
use journal::Settings;

const DISK_BYTES: u64 = 16 << 30;
const MIB: f64 = (1 << 20) as f64;
/// Batches of a stream on their way at a time, as in the agent.
const AHEAD: usize = 16;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let bytes = run.scaled(2 << 30);
    let raw = written_file(&run.folder.join("raw"), bytes)?;
    let source = source();
    let mut limit = Vec::new();
    let mut large = Vec::new();
    let mut small = Vec::new();
    let mut many = Vec::new();
    let mut amplification = Vec::new();
    let shards = shards(2);
    for round in 0..run.rounds() as u64 {
        // The better of the loops with the sizes a journal writes in.
        let mut best = 0.0f64;
        for chunk in [1 << 20, 4 << 20] {
            let (seconds, done) = timed(|| sequential_write(&raw, bytes, &source, chunk));
            done?;
            best = best.max(bytes as f64 / MIB / seconds);
        }
        limit.push(best);
        for (len, figures) in [(64 << 10, &mut large), (4 << 10, &mut small)] {
            let folder = run.folder.join(format!("append-{len}"));
            let batches = random_writes(&mut Stream::begin(), bytes, len, DISK_BYTES, round + 1);
            // The same folder again and again: its segments' files are written anew, as they are in life.
            let journal = warm(&folder, round)?;
            let before = bytes_written()?;
            let (seconds, done) =
                timed(|| append_all(&shards, std::slice::from_ref(&journal), &batches, AHEAD));
            done?;
            figures.push(bytes as f64 / MIB / seconds);
            if len == 4 << 10 {
                keep_up(&journal, round + 1, 1)?;
                amplification.push((bytes_written()? - before) as f64 / bytes as f64);
            }
        }
        let each = (bytes / 300).next_multiple_of(1 << 20);
        let batches = random_writes(&mut Stream::begin(), each, 64 << 10, DISK_BYTES, round + 1);
        let folders = (0..300).map(|number| run.folder.join(format!("many-{number}")));
        let journals = folders.map(|folder| warm(&folder, round)).collect::<Result<Vec<_>>>()?;
        let (seconds, done) = timed(|| append_all(&shards, &journals, &batches, 2));
        done?;
        many.push((each * 300) as f64 / MIB / seconds);
    }
    Ok(vec![
        Figure::against("append, 64 KiB writes", &large, &limit, "MiB/s", Goal::AtLeast(0.85)),
        Figure::against("append, 4 KiB writes", &small, &limit, "MiB/s", Goal::AtLeast(0.5)),
        Figure::alone(
            "written per byte of 4 KiB writes, index and all",
            &amplification,
            "",
            Goal::AtMost(1.03),
        ),
        Figure::against("append, 300 journals at once", &many, &limit, "MiB/s", Goal::AtLeast(0.6)),
    ])
}

/// Of durable appends of 64 KiB writes, in a folder that is used again and again.
pub(crate) fn append_rate(folder: &std::path::Path, bytes: u64, round: u64) -> Result<Rate> {
    let batches = random_writes(&mut Stream::begin(), bytes, 64 << 10, DISK_BYTES, round + 1);
    let journal = warm(folder, round)?;
    Rate::of(bytes, || append_all(&shards(2), std::slice::from_ref(&journal), &batches, AHEAD))
}

/// A journal in a folder where one was before, whose files it writes anew.
fn warm(folder: &std::path::Path, round: u64) -> Result<std::sync::Arc<journal::Journal>> {
    if round > 0 {
        // What retention would have done: old segments become files to be written anew.
        for row in std::fs::read_dir(folder)? {
            let path = row?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if let Some(number) = name.strip_prefix("segment-") {
                std::fs::rename(&path, folder.join(format!("spare-{number}")))?;
            } else if path.is_file() && !name.starts_with("spare-") && name != "lock" {
                std::fs::remove_file(&path)?;
            }
        }
    }
    create(folder, 1, DISK_BYTES, Settings { ..SETTINGS })
}
