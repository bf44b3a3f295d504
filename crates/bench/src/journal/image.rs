//! Reading an image against reading a raw file, at the same depth.

use super::{SETTINGS, append_all, create, keep_up, shards};
use crate::Run;
use crate::clock::timed;
use crate::disk::{drop_caches, in_threads, written_file};
use crate::figures::{Figure, Goal};
use crate::load::{Draw, Stream, random_writes};
use anyhow::{Context, Result};
use journal::{Image, Journal};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use types::{DiskIndex, WriteSeq};

const DEPTH: usize = 32;
const SEQUENTIAL_DEPTH: usize = 4;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let disk_bytes = run.scaled(4 << 30);
    let raw = written_file(&run.folder.join("raw-image"), disk_bytes)?;
    let shards = shards(2);
    let mut images = Vec::new();
    for len in [64 << 10, 4 << 10] {
        let folder = run.folder.join(format!("image-{len}"));
        let journal = create(&folder, 1, disk_bytes, SETTINGS)?;
        // A hole would be read without the disk: every block of the replica is there.
        drop(written_file(&folder.join("replica/vd0.raw"), disk_bytes)?);
        let mut stream = Stream::begin();
        // About two thirds of the disk are written; the rest is the replica's.
        let batches = random_writes(&mut stream, disk_bytes, len, disk_bytes, 3);
        append_all(&shards, std::slice::from_ref(&journal), &batches, 16)?;
        keep_up(&journal, 1, 1)?;
        images.push((len, open_tail(&journal)?, Vec::new(), Vec::new()));
    }
    let (mut raw_random, mut raw_sequential) = (Vec::new(), Vec::new());
    let reads = run.scaled(100_000);
    for round in 0..run.rounds() as u64 {
        let place = |number: u64| Draw::new(number * 7 + round).below(disk_bytes / 4096) * 4096;
        let from_file = |at: u64, buf: &mut [u8]| raw.read_exact_at(buf, at).context("read");
        raw_random.push(rate(reads, || in_threads(DEPTH, reads, 4096, place, from_file))?);
        let chunks = disk_bytes >> 20;
        let in_order = |number: u64| number << 20;
        raw_sequential
            .push(rate(chunks, || in_threads(SEQUENTIAL_DEPTH, chunks, 1 << 20, in_order, from_file))?);
        for (_, image, random, sequential) in &mut images {
            let from_image =
                |at: u64, buf: &mut [u8]| image.read_at(DiskIndex(0), at, buf).context("read the image");
            random.push(rate(reads, || in_threads(DEPTH, reads, 4096, place, from_image))?);
            sequential
                .push(rate(chunks, || in_threads(SEQUENTIAL_DEPTH, chunks, 1 << 20, in_order, from_image))?);
        }
    }
    let mut figures = Vec::new();
    for (len, _, random, sequential) in &images {
        let name = |what: &str| format!("image of {} KiB writes, {what}", len >> 10);
        let what = name("4 KiB random reads, depth 32");
        figures.push(Figure::against(&what, random, &raw_random, "/s", Goal::AtLeast(0.5)));
        let what = name("1 MiB sequential reads, depth 4");
        // The writes were scattered: of 4 KiB ones no two that are neighbours lie together.
        let goal = if *len == 64 << 10 { Goal::AtLeast(0.7) } else { Goal::None };
        figures.push(Figure::against(&what, sequential, &raw_sequential, "MiB/s", goal));
    }
    Ok(figures)
}

fn open_tail(journal: &Arc<Journal>) -> Result<Image> {
    let tail = journal.newest_consistent(WriteSeq::MAX);
    Image::open(journal.clone(), tail.context("a tail")?, None, [0; 16]).context("open an image")
}

/// Operations a second, the page cache empty at first.
fn rate(count: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    drop_caches();
    let (seconds, done) = timed(work);
    done?;
    Ok(count as f64 / seconds)
}
