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
/// So few that hardly any finds a page that one before it has read.
const COLD_LOOK_UPS: u64 = 500;
const NOTED_EVERY: u64 = 16;

/// What a look-up costs at one length.
struct Cost {
    anywhere_micros: f64,
    anywhere_pages: f64,
    written_micros: f64,
    written_pages: f64,
    /// Where something was written, the pages on the disk only.
    cold_micros: f64,
    /// Bytes of sparse directories, and of bitmaps, once all that was looked up is in memory.
    resident: (usize, usize),
}

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
        let last = stream.last();
        let anywhere = |draw: &mut Draw| {
            let cut = last.raw() / 2 + draw.below(last.raw() / 2);
            (draw.below(DISK_BYTES / 4096) * 4096, WriteSeq::from_raw(cut))
        };
        let where_written = |draw: &mut Draw| {
            let (at, seq) = written[draw.below(written.len() as u64) as usize];
            (at, WriteSeq::from_raw(seq + draw.below(last.raw() - seq + 1)))
        };
        let (written_micros, written_pages) = look_up(&journal, run.rounds(), &mut draw, &where_written)?;
        let (anywhere_micros, anywhere_pages) = look_up(&journal, run.rounds(), &mut draw, &anywhere)?;
        let cold_micros = look_up_cold(&journal, run.rounds(), &mut draw, &where_written)?;
        let resident = journal.resident_index_bytes();
        let cost =
            Cost { anywhere_micros, anywhere_pages, written_micros, written_pages, cold_micros, resident };
        let opening = open_images(&journal, stream.last(), run.rounds())?;
        figures.extend(figures_at(millions, &journal, &cost, &opening));
        costs.push(cost);
    }
    figures.extend(growth(&costs));
    figures.extend(list_checkpoints(&journal, run.rounds())?);
    Ok(figures)
}

fn figures_at(millions: u64, journal: &Journal, cost: &Cost, opening: &[f64]) -> Vec<Figure> {
    let (sparse, bitmaps) = cost.resident;
    let resident = sparse as f64 / journal.status().index_entries as f64;
    let cache = if drop_caches() { "cold cache" } else { "cache not emptied" };
    let figure = |what: &str, value: f64, unit: &'static str, goal: Goal| {
        Figure::alone(&format!("{what}, {millions} million entries"), &[value], unit, goal)
    };
    let open = format!("image open and first read, {cache}, {millions} million entries");
    vec![
        figure(
            "index pages a look-up where something was written",
            cost.written_pages,
            "",
            Goal::AtMost(2.5),
        ),
        figure("resident bytes an entry, bitmaps apart", resident, "B", Goal::AtMost(0.1)),
        figure("bitmaps", bitmaps as f64 / f64::from(1 << 20), "MiB", Goal::None),
        figure("a look-up where something was written", cost.written_micros, "µs", Goal::None),
        figure("index pages a look-up anywhere", cost.anywhere_pages, "", Goal::AtMost(2.5)),
        figure("a look-up anywhere", cost.anywhere_micros, "µs", Goal::None),
        figure(
            &format!("a look-up where something was written, {cache}"),
            cost.cold_micros,
            "µs",
            Goal::None,
        ),
        Figure::alone(&open, opening, "s", Goal::AtMost(0.05)),
    ]
}

/// Cost at the greatest length against that at the least.
fn growth(costs: &[Cost]) -> Vec<Figure> {
    let (first, last) = (&costs[0], &costs[costs.len() - 1]);
    let figure = |what: &str, cost: fn(&Cost) -> f64, unit: &'static str, goal: Goal| {
        let name = format!("{what}, greatest length against least");
        Figure::against(&name, &[cost(last)], &[cost(first)], unit, goal)
    };
    let flat = Goal::AtMost(1.5);
    vec![
        figure("a look-up anywhere", |cost| cost.anywhere_micros, "µs", flat),
        figure("a look-up where something was written", |cost| cost.written_micros, "µs", flat),
        figure("a look-up where something was written, from the disk", |cost| cost.cold_micros, "µs", flat),
        // The smallest index lies in the processor's cache, the largest does not: this is without that.
        figure("index pages where something was written", |cost| cost.written_pages, "", Goal::None),
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

/// As [`look_up`], in microseconds, nothing of the index in memory but what the journal itself keeps there.
fn look_up_cold(
    journal: &Journal,
    rounds: usize,
    draw: &mut Draw,
    place: &dyn Fn(&mut Draw) -> (u64, WriteSeq),
) -> Result<f64> {
    let mut micros = Vec::new();
    let mut buf = vec![0; 4096];
    for _ in 0..rounds {
        let places: Vec<_> = (0..COLD_LOOK_UPS).map(|_| place(draw)).collect();
        drop_caches();
        let (seconds, done) = timed(|| {
            places.iter().try_for_each(|(at, cut)| journal.read_at(DiskIndex(0), *cut, *at, &mut buf))
        });
        done.context("read")?;
        micros.push(seconds * 1e6 / COLD_LOOK_UPS as f64);
    }
    Ok(median(&micros))
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
    let mut page = Vec::new();
    let mut nearest = Vec::new();
    for round in 1..=rounds as u64 {
        let after = Some(WriteSeq::from_raw(count * 78 / (round + 1)));
        let query = CheckpointQuery { after, limit: 100, ..CheckpointQuery::default() };
        let (seconds, rows) = timed(|| journal.checkpoints(&query));
        anyhow::ensure!(rows.rows.len() == 100, "a full page");
        page.push(seconds * 1000.0);
        let at = WallTime((count * 78 / (round + 1)) as i64 * 65_000);
        let (seconds, found) = timed(|| journal.nearest_checkpoint(at));
        anyhow::ensure!(found.context("find a checkpoint")?.is_some(), "one that is nearest");
        nearest.push(seconds * 1000.0);
    }
    let name = |what: &str| format!("{what} of {count} checkpoints");
    Ok(vec![
        Figure::alone(&name("a page of 100"), &page, "ms", Goal::None),
        Figure::alone(&name("the nearest to a time"), &nearest, "ms", Goal::None),
    ])
}
