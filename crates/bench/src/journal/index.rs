//! Look-ups, memory and opening at three lengths of a journal, and a month of checkpoints.
//!
//! The journal is a real one of 8 KiB zero writes (they have no payload, so 40 million fit here) over a
//! 100 GiB disk, 80 % of them to 20 % of it; its segments hold as many as those of a real load of 8 KiB
//! writes in 256 MiB segments would. A checkpoint stands after every 77th write: half a million at the end.

use super::{SETTINGS, create, keep_up, meta};
use crate::Run;
use crate::clock::timed;
use crate::disk::drop_caches;
use crate::figures::{Figure, Goal, median};
use crate::load::{Draw, Stream};
use anyhow::{Context, Result};
use journal::{CheckpointQuery, Image, Journal, Settings, index_pages_read};
use std::sync::Arc;
use types::{ByteRange, DiskIndex, WallTime, WriteSeq};

const DISK_BYTES: u64 = 100 << 30;
const WRITE_BYTES: u64 = 8 << 10;
const LOOK_UPS: u64 = 100_000;
const NOTED_EVERY: u64 = 16;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let lengths: &[u64] = if run.quick { &[1, 2] } else { &[1, 10, 40] };
    let settings = Settings { segment_bytes: 1 << 20, ..SETTINGS };
    let journal = create(&run.folder.join("index"), 1, DISK_BYTES, settings)?;
    let mut stream = Stream::begin();
    let mut draw = Draw::new(1);
    let mut figures = Vec::new();
    let mut costs = Vec::new();
    let mut written = Vec::new();
    let mut filled = 0;
    for &millions in lengths {
        fill(&journal, &mut stream, &mut draw, millions * 1_000_000 - filled, &mut written)?;
        filled = millions * 1_000_000;
        let entries = journal.status().index_entries;
        let last = stream.last();
        let anywhere = |draw: &mut Draw| {
            let cut = last.raw() / 2 + draw.below(last.raw() / 2);
            (draw.below(DISK_BYTES / 4096) * 4096, WriteSeq::from_raw(cut))
        };
        let where_written = |draw: &mut Draw| {
            let (at, seq) = written[draw.below(written.len() as u64) as usize];
            (at, WriteSeq::from_raw(seq + draw.below(last.raw() - seq + 1)))
        };
        let (micros, pages) = look_up(&journal, run.rounds(), &mut draw, &where_written)?;
        let (micros_anywhere, pages_anywhere) = look_up(&journal, run.rounds(), &mut draw, &anywhere)?;
        costs.push((micros, micros_anywhere, pages));
        let name = |what: &str| format!("{what}, {millions} million entries");
        figures.push(Figure::alone(
            &name("index pages a look-up where something was written"),
            &[pages],
            "",
            Goal::AtMost(2.5),
        ));
        let resident = journal.resident_index_bytes().0 as f64 / entries as f64;
        figures.push(Figure::alone(
            &name("resident bytes an entry, bitmaps apart"),
            &[resident],
            "B",
            Goal::AtMost(0.1),
        ));
        let bitmaps = journal.resident_index_bytes().1 as f64 / (1 << 20) as f64;
        figures.push(Figure::alone(&name("bitmaps"), &[bitmaps], "MiB", Goal::None));
        figures.push(Figure::alone(
            &name("a look-up where something was written"),
            &[micros],
            "µs",
            Goal::None,
        ));
        figures.push(Figure::alone(
            &name("index pages a look-up anywhere"),
            &[pages_anywhere],
            "",
            Goal::AtMost(2.5),
        ));
        figures.push(Figure::alone(&name("a look-up anywhere"), &[micros_anywhere], "µs", Goal::None));
        let opening = open_images(&journal, stream.last(), run.rounds())?;
        let cold = if drop_caches() { "cold cache" } else { "cache not emptied" };
        figures.push(Figure::alone(
            &name(&format!("image open and first read, {cold}")),
            &opening,
            "s",
            Goal::AtMost(0.05),
        ));
    }
    figures.extend(growth(&costs));
    figures.extend(list_checkpoints(&journal, run.rounds())?);
    Ok(figures)
}

/// Cost at the greatest length against that at the least: microseconds where something was written and
/// anywhere, and index pages where something was written.
fn growth(costs: &[(f64, f64, f64)]) -> Vec<Figure> {
    let (first, last) = (costs[0], costs[costs.len() - 1]);
    let figure = |what: &str, last: f64, first: f64, unit: &'static str, goal: Goal| {
        Figure::against(&format!("{what}, greatest length against least"), &[last], &[first], unit, goal)
    };
    vec![
        figure("a look-up anywhere", last.1, first.1, "µs", Goal::AtMost(1.5)),
        figure("a look-up where something was written", last.0, first.0, "µs", Goal::AtMost(1.5)),
        // The smallest index lies in the processor's cache, the largest does not: this is without that.
        figure("index pages where something was written", last.2, first.2, "", Goal::None),
    ]
}

/// Appends so many writes; some of them are noted, with their sequence.
fn fill(
    journal: &Journal,
    stream: &mut Stream,
    draw: &mut Draw,
    writes: u64,
    written: &mut Vec<(u64, u64)>,
) -> Result<()> {
    let blocks = DISK_BYTES / WRITE_BYTES;
    let mut batches = 0;
    for number in 0..writes {
        // Four in five go to a fifth of the disk.
        let hot = draw.below(5) < 4;
        let block = if hot { draw.below(blocks / 5) } else { draw.below(blocks) };
        stream.zero(ByteRange::new(block * WRITE_BYTES, WRITE_BYTES));
        if number % NOTED_EVERY == 0 {
            written.push((block * WRITE_BYTES, stream.last().raw()));
        }
        if number % 77 == 76 {
            stream.checkpoint(WallTime(stream.last().raw() as i64 * 65_000));
        }
        if stream.records() >= 4000 {
            let last = stream.last().raw();
            journal.append(vec![stream.batch()], meta(last)).context("append")?;
            batches += 1;
            if batches % 8 == 0 {
                keep_up(journal, last, 1)?;
            }
        }
    }
    let last = stream.last().raw();
    journal.append(vec![stream.batch()], meta(last)).context("append")?;
    keep_up(journal, last, 1).map(drop)
}

/// Microseconds and index pages of a look-up of 4 KiB at a place and cut that are drawn, the page cache
/// warm.
fn look_up(
    journal: &Arc<Journal>,
    rounds: usize,
    draw: &mut Draw,
    place: &dyn Fn(&mut Draw) -> (u64, WriteSeq),
) -> Result<(f64, f64)> {
    let mut micros = Vec::new();
    let mut pages = Vec::new();
    let mut buf = vec![0; 4096];
    for _ in 0..=rounds {
        let places: Vec<_> = (0..LOOK_UPS).map(|_| place(draw)).collect();
        let before = index_pages_read();
        let (seconds, done) = timed(|| {
            places.iter().try_for_each(|(at, cut)| journal.read_at(DiskIndex(0), *cut, *at, &mut buf))
        });
        done.context("read")?;
        micros.push(seconds * 1e6 / LOOK_UPS as f64);
        pages.push((index_pages_read() - before) as f64 / LOOK_UPS as f64);
    }
    // The first round brings the pages into memory.
    Ok((median(&micros[1..]), median(&pages[1..])))
}

/// Seconds to open an image and read its first block, nothing in memory.
fn open_images(journal: &Arc<Journal>, last: WriteSeq, rounds: usize) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for round in 0..rounds as u64 {
        journal.rest();
        journal.rest();
        drop_caches();
        let cut = WriteSeq::from_raw(last.raw() / (round + 2));
        let (taken, image) = timed(|| -> Result<Image> {
            let image = Image::open(journal.clone(), cut, None, [0; 16]).context("open an image")?;
            image.read_at(DiskIndex(0), 0, &mut [0; 4096]).context("read an image")?;
            Ok(image)
        });
        image?;
        seconds.push(taken);
    }
    Ok(seconds)
}

fn list_checkpoints(journal: &Journal, rounds: usize) -> Result<Vec<Figure>> {
    let count = journal.status().checkpoints;
    let now = WallTime(0);
    let mut page = Vec::new();
    let mut nearest = Vec::new();
    for round in 1..=rounds as u64 {
        let after = Some(WriteSeq::from_raw(count * 78 / (round + 1)));
        let query = CheckpointQuery { after, limit: 100, ..CheckpointQuery::default() };
        let (seconds, rows) = timed(|| journal.checkpoints(&query, now));
        anyhow::ensure!(rows.context("list checkpoints")?.len() == 100, "a full page");
        page.push(seconds * 1000.0);
        let at = WallTime((count * 78 / (round + 1)) as i64 * 65_000);
        let (seconds, found) = timed(|| journal.nearest_checkpoint(at, now));
        anyhow::ensure!(found.context("find a checkpoint")?.is_some(), "one that is nearest");
        nearest.push(seconds * 1000.0);
    }
    let name = |what: &str| format!("{what} of {count} checkpoints");
    Ok(vec![
        Figure::alone(&name("a page of 100"), &page, "ms", Goal::None),
        Figure::alone(&name("the nearest to a time"), &nearest, "ms", Goal::None),
    ])
}
