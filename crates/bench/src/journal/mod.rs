//! The journal's figures.

mod append;
mod fold;
mod image;
mod index;
mod reopen;
pub(crate) mod scale;

pub(crate) use append::append_rate;

use crate::Run;
use crate::figures::Figure;
use anyhow::{Context, Result};
use batch::Batch;
use journal::{AppendMeta, AppendStream, FsStore, Journal, Mode, Report, Settings, Shards, Thinning, Upkeep};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use types::{DiskSpec, Epoch, VmId, WallTime};

/// Runs every section that is wanted.
pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    run.sections(&[
        ("append", append::run),
        ("index", index::run),
        ("image", image::run),
        ("fold", fold::run),
        ("reopen", reopen::run),
        ("scale", scale::run),
    ])
}

const SETTINGS: Settings = Settings {
    history: Duration::from_secs(30 * 24 * 3600),
    bytes_soft: 0,
    bytes_hard: 0,
    segment_bytes: 256 << 20,
    mode: Mode::RollForward,
    thinning: Thinning { all: Duration::from_secs(86_400), minutely: Duration::from_secs(604_800) },
    tagged_history: Duration::ZERO,
    let_go: None,
    is_locked: false,
};

/// A new journal in `folder` of a VM with disks of `disk_bytes`.
fn create(folder: &Path, disks: u16, disk_bytes: u64, settings: Settings) -> Result<Arc<Journal>> {
    let store = Arc::new(FsStore::open(folder).context("take a folder")?);
    let disks: Vec<_> =
        (0..disks).map(|at| DiskSpec { name: format!("vd{at}"), size_bytes: disk_bytes }).collect();
    let vm = VmId::from_bytes([1; 16]);
    let journal = Journal::create(store, vm, "bench", &disks, Epoch::FIRST, settings);
    Ok(Arc::new(journal.context("make a journal")?))
}

fn reopen(folder: &Path, settings: Settings) -> Result<Arc<Journal>> {
    let store = Arc::new(FsStore::open(folder).context("take a folder")?);
    Ok(Arc::new(Journal::open(store, settings).context("open a journal")?.journal))
}

fn meta(number: u64) -> AppendMeta {
    let mut entropy = [7; 16];
    entropy[..8].copy_from_slice(&number.to_le_bytes());
    AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(number as i64), entropy }
}

/// Lets upkeep run until it finds nothing.
fn keep_up(journal: &Journal, number: u64, threads: usize) -> Result<u64> {
    let mut folded = 0;
    loop {
        let AppendMeta { received_at: now, entropy, .. } = meta(number);
        let kept = journal.keep_up(&Upkeep { threads, ..Upkeep::plain(now, entropy) }).context("keep up")?;
        folded += kept.folded_bytes;
        if !kept.more {
            return Ok(folded);
        }
    }
}

/// Appends all batches through shards, each journal its own copies, with so many on their way at a time
/// of each; returns once all are durable.
fn append_all(shards: &Shards, journals: &[Arc<Journal>], batches: &[Batch], ahead: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let mut feeders = Vec::new();
        for part in journals.chunks(journals.len().div_ceil(4)) {
            feeders.push(scope.spawn(move || feed(shards, part, batches, ahead)));
        }
        feeders.into_iter().try_for_each(|feeder| feeder.join().expect("a panic aborts the process"))
    })
}

fn feed(shards: &Shards, journals: &[Arc<Journal>], batches: &[Batch], ahead: usize) -> Result<()> {
    let (done, reports) = sync_channel::<Report>(1 << 16);
    let streams: Vec<_> = journals
        .iter()
        .map(|journal| {
            let done = done.clone();
            AppendStream::new(journal.clone(), Epoch::FIRST, move |report| {
                // The feeder is gone only where an append has failed.
                let _ = done.send(report);
            })
        })
        .collect();
    let mut waiting = 0;
    let take = |limit: usize, waiting: &mut usize| -> Result<()> {
        while *waiting > limit {
            let report = reports.recv().context("reports")?;
            report.result.context("append")?;
            *waiting -= report.batches;
        }
        Ok(())
    };
    for batch in batches {
        for stream in &streams {
            shards.append(stream, batch.clone());
            waiting += 1;
        }
        take(ahead * streams.len(), &mut waiting)?;
    }
    take(0, &mut waiting)
}

/// Shards whose clock is a counter and whose random bytes are drawn from it.
fn shards(count: usize) -> Shards {
    let number = std::sync::atomic::AtomicU64::new(1 << 32);
    Shards::start(count, move || {
        let AppendMeta { received_at, entropy, .. } =
            meta(number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        (received_at, entropy)
    })
}
