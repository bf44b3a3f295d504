//! Folding against the disk's limit of random writes.

use super::{SETTINGS, append_all, create, keep_up, shards};
use crate::Run;
use crate::clock::timed;
use crate::disk::{drop_caches, in_threads, written_file};
use crate::figures::{Figure, Goal};
use crate::load::{Draw, Stream, random_writes};
use anyhow::{Context, Result};
use journal::Settings;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const THREADS: usize = 16;
const MIB: f64 = (1 << 20) as f64;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let disk_bytes = 8 << 30;
    let bytes = run.scaled(2 << 30);
    let raw = written_file(&run.folder.join("raw-fold"), disk_bytes)?;
    let shards = shards(2);
    let (mut limit, mut both, mut fold) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..run.rounds() as u64 {
        let place = |number: u64| Draw::new(number * 5 + round).below(disk_bytes >> 16) << 16;
        drop_caches();
        let write = |at: u64, buf: &mut [u8]| raw.write_all_at(buf, at).context("write");
        let (seconds, done) = timed(|| {
            in_threads(32, bytes >> 16, 64 << 10, place, write).and_then(|()| raw.sync_data().context("sync"))
        });
        done?;
        limit.push(bytes as f64 / MIB / seconds);
        drop_caches();
        let elsewhere = |at: u64| (at + disk_bytes / 2) % disk_bytes;
        let copy = |at: u64, buf: &mut [u8]| {
            raw.read_exact_at(buf, elsewhere(at)).and_then(|()| raw.write_all_at(buf, at)).context("copy")
        };
        let (seconds, done) = timed(|| {
            in_threads(32, bytes >> 16, 64 << 10, place, copy).and_then(|()| raw.sync_data().context("sync"))
        });
        done?;
        both.push(bytes as f64 / MIB / seconds);
        let folder = run.folder.join("fold");
        let _ = std::fs::remove_dir_all(&folder);
        let journal = create(&folder, 1, disk_bytes, SETTINGS)?;
        // Its replica's blocks have all been written once, as after an initial sync.
        drop(written_file(&folder.join("replica/vd0.raw"), disk_bytes)?);
        let batches = random_writes(&mut Stream::begin(), bytes, 64 << 10, disk_bytes, round + 9);
        append_all(&shards, std::slice::from_ref(&journal), &batches, 16)?;
        keep_up(&journal, 1, 1)?;
        drop_caches();
        journal.set(Settings { history: Duration::ZERO, ..SETTINGS });
        let (seconds, folded) = timed(|| keep_up(&journal, 1 << 40, THREADS));
        fold.push(folded? as f64 / MIB / seconds);
    }
    Ok(vec![
        Figure::against(
            "fold of 64 KiB writes against 64 KiB random writes, depth 32",
            &fold,
            &limit,
            "MiB/s",
            Goal::AtLeast(0.6),
        ),
        // A fold reads what it writes, and out of the disk where nothing has it in memory.
        Figure::against(
            "fold against reading and writing as much, depth 32",
            &fold,
            &both,
            "MiB/s",
            Goal::None,
        ),
    ])
}
