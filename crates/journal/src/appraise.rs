//! Appraising damage: which bytes it has cost, as of which cuts.
//!
//! What a damaged stretch of a segment held its index knows: the footer, or a run that was merged from it, or the batches'
//! own tables where those are good. Each record there is read once more, block by block where some of it cannot be. Where
//! an index cannot be read that is an error: it is made again first (`scrub.rs`), and costs what it took with it then.

use crate::cost::{self, Unread};
use crate::cover::LogKind;
use crate::extent::{Extent, REGION_BYTES, extents_of};
use crate::fold::FoldError;
use crate::lost::LostPiece;
use crate::manifest::{RunInfo, SegmentInfo};
use crate::page::PAGE_BYTES;
use crate::payload::{self, BatchKey, ReadError, SegmentFile, Wanted};
use crate::read::Reads;
use crate::run::Run;
use crate::segment::{Found, Segment};
use crate::state::State;
use batch::BLOCK_BYTES;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use types::{ByteRange, DiskIndex, WriteSeq};

/// A part of a segment that does not check.
#[derive(Debug)]
pub(crate) struct Stretch {
    /// What is wrong with it, by its place.
    pub(crate) what: String,
    /// The last sequence before it.
    pub(crate) last: WriteSeq,
    /// Bytes of the file.
    pub(crate) place: Range<u64>,
    /// Its batch, where its tables check.
    pub(crate) tables: Option<Found>,
}

/// Why damage could not be appraised just now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppraiseError {
    /// What it held, or what lies over it, is in an index that cannot be read.
    #[error(transparent)]
    Index(ReadError),
    #[error("cannot read what is damaged")]
    Io(#[source] io::Error),
}

impl From<AppraiseError> for FoldError {
    fn from(error: AppraiseError) -> Self {
        match error {
            AppraiseError::Index(error) => FoldError::Read(error),
            AppraiseError::Io(error) => FoldError::Footer(error),
        }
    }
}

/// Who appraises damage; while no turn of upkeep is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appraisal<'a> {
    pub(crate) state: &'a State,
    pub(crate) reads: &'a Reads,
}

impl Appraisal<'_> {
    /// What each stretch of a segment, which has its footer, has cost; up to the first of which that cannot be told just now,
    /// and why.
    pub(crate) fn of_stretches(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        stretches: &[Stretch],
    ) -> (Vec<Vec<LostPiece>>, Option<AppraiseError>) {
        let (held, error) = self.held(kind, info, stretches);
        match self.of_extents(kind, info, held) {
            Ok(costs) => (costs, error),
            Err(error) => (Vec::new(), Some(error)),
        }
    }

    /// What extents have cost of which some cannot be read, stretch by stretch.
    fn of_extents(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        mut held: Vec<Vec<Extent>>,
    ) -> Result<Vec<Vec<LostPiece>>, AppraiseError> {
        let is_done = self.state.read_shared().manifest.done_upto(kind);
        held.iter_mut().for_each(|extents| extents.retain(|extent| extent.seq > is_done));
        // What was read before would be read out of memory.
        payload::forget(self.state.uid);
        self.reads.forget(kind, info.number);
        let extents: Vec<Extent> = held.iter().flatten().copied().collect();
        let unread = self.unread(kind, info, &extents).map_err(AppraiseError::Io)?;
        let pieces = self.by_region(unread, |disk, range, unread| {
            let above = match kind {
                LogKind::Redo => unread.iter().map(|unread| unread.seq).min().unwrap_or_default(),
                LogKind::Undo => WriteSeq::ZERO,
            };
            let beside = self.reads.extents_between(kind, (disk, range), (above, WriteSeq::MAX))?;
            Ok(match kind {
                LogKind::Redo => cost::of_writes(unread, &beside),
                LogKind::Undo => cost::of_before_images(unread, &beside),
            })
        })?;
        // A record is in one batch; of several that a step has for one write whichever is found says the words.
        let stretches =
            held.iter().enumerate().flat_map(|(at, extents)| extents.iter().map(move |e| (e.seq, at)));
        let stretch_of: HashMap<WriteSeq, usize> = stretches.collect();
        let mut costs = vec![Vec::new(); held.len()];
        for piece in pieces {
            let seq = match kind {
                LogKind::Redo => piece.from,
                LogKind::Undo => piece.until.expect("a before-image is lost below a write"),
            };
            costs[stretch_of[&seq]].push(piece);
        }
        Ok(costs)
    }

    /// What parts of a replica have cost, which have nothing in common; region by region, however many they are. Not where a
    /// step back was cut short behind its before-images: cuts below its writes have those, and the others the writes.
    pub(crate) fn of_replica(
        &self,
        disk: DiskIndex,
        parts: impl IntoIterator<Item = ByteRange>,
    ) -> Result<Vec<LostPiece>, AppraiseError> {
        let applied = self.state.read_shared().manifest.applied();
        let mut regions: BTreeMap<u64, Vec<ByteRange>> = BTreeMap::new();
        for part in parts.into_iter().flat_map(|part| part.split_at_multiples(REGION_BYTES)) {
            regions.entry(part.start / REGION_BYTES).or_default().push(part);
        }
        let mut pieces = Vec::new();
        for parts in regions.into_values() {
            let around = around(parts.iter().copied());
            let between = |kind, cuts| {
                self.reads.extents_between(kind, (disk, around), cuts).map_err(AppraiseError::Index)
            };
            let images = between(LogKind::Undo, (WriteSeq::ZERO, applied))?;
            let writes = between(LogKind::Redo, (applied, WriteSeq::MAX))?;
            let ahead = between(LogKind::Undo, (applied, WriteSeq::MAX))?;
            let parts = cost::beside(disk, &parts, &ahead);
            pieces.extend(cost::of_replica(disk, &parts, &images, &writes));
        }
        Ok(pieces)
    }

    /// The extents with payload in each stretch; up to the first of which nothing tells them.
    fn held(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        stretches: &[Stretch],
    ) -> (Vec<Vec<Extent>>, Option<AppraiseError>) {
        let manifest = self.state.read_shared().manifest.clone();
        let log = manifest.log(kind);
        let segment = log.segments.iter().find(|segment| segment.number == info.number);
        let footer = segment.and_then(SegmentInfo::footer);
        let covers = |run: &&RunInfo| run.covers(info.number);
        let mut unread = AppraiseError::Io(io::Error::other("the segment has no index yet"));
        for run in footer.into_iter().chain(log.runs.iter().filter(covers)) {
            let mut held = vec![Vec::new(); stretches.len()];
            let keep = |extent: Extent| {
                let at = stretch_of(info, stretches, &extent);
                at.into_iter().for_each(|at| held[at].push(extent));
            };
            match Run::new(kind, run.clone()).visit(&*self.state.store, keep) {
                Ok(()) => return (held, None),
                Err(error) => unread = AppraiseError::Index(error.into()),
            }
        }
        let mut held = Vec::new();
        for stretch in stretches {
            let Some(found) = &stretch.tables else { return (held, Some(unread)) };
            let page = info.base_page + found.at / PAGE_BYTES;
            let extents = found.batch.entries().iter().flat_map(|entry| extents_of(entry, page));
            held.push(extents.filter(|extent| extent.payload.is_some()).collect());
        }
        (held, None)
    }

    /// What of extents cannot be read.
    fn unread(&self, kind: LogKind, info: &SegmentInfo, extents: &[Extent]) -> io::Result<Vec<Unread>> {
        let segment = match Segment::open(&*self.state.store, kind, info) {
            Ok(segment) => segment,
            Err(error) => {
                error.io_or_damage()?;
                let whole =
                    |extent: &Extent| Unread { disk: extent.disk, range: extent.range, seq: extent.seq };
                return Ok(extents.iter().map(whole).collect());
            }
        };
        let file = SegmentFile {
            name: segment.name.as_str().into(),
            header: segment.header,
            file: segment.file.clone(),
        };
        let (mut buf, mut unread) = (vec![0; REGION_BYTES as usize], Vec::new());
        let mut fails = |extent: &Extent, from: u64, len: u64| {
            let place = extent.payload.expect("what has none is not read");
            let wanted = Wanted {
                key: BatchKey { journal: self.state.uid, kind, page: place.page },
                at: (place.page - info.base_page) * PAGE_BYTES,
                seq: extent.seq,
                disk: extent.disk,
                range: ByteRange::new(extent.range.start + from, len),
                payload_at: place.at + from as u32,
            };
            match file.read(&wanted, &mut buf[..len as usize]) {
                Ok(()) => Ok(None),
                Err(ReadError::Segment { source, .. }) if !segment.answers() => Err(source),
                Err(_) => Ok(Some(Unread { disk: extent.disk, range: wanted.range, seq: extent.seq })),
            }
        };
        for extent in extents {
            if fails(extent, 0, extent.range.len)?.is_none() {
                continue;
            }
            let first = u64::from(extent.payload.expect("it was read").at);
            for block in ByteRange::new(first, extent.range.len).split_at_multiples(BLOCK_BYTES as u64) {
                unread.extend(fails(extent, block.start - first, block.len)?);
            }
        }
        Ok(unread)
    }

    /// What is unread, region by region, as `cost` tells it.
    fn by_region(
        &self,
        unread: Vec<Unread>,
        cost: impl Fn(DiskIndex, ByteRange, &[Unread]) -> Result<Vec<LostPiece>, ReadError>,
    ) -> Result<Vec<LostPiece>, AppraiseError> {
        let mut regions: BTreeMap<(DiskIndex, u64), Vec<Unread>> = BTreeMap::new();
        for one in unread {
            regions.entry((one.disk, one.range.start / REGION_BYTES)).or_default().push(one);
        }
        let mut pieces = Vec::new();
        for ((disk, _), unread) in regions {
            self.state.check_turn().map_err(AppraiseError::Io)?;
            let around = around(unread.iter().map(|one| one.range));
            pieces.extend(cost(disk, around, &unread).map_err(AppraiseError::Index)?);
        }
        Ok(pieces)
    }
}

/// In which of a segment's stretches, which ascend, the payload of an extent lies.
fn stretch_of(info: &SegmentInfo, stretches: &[Stretch], extent: &Extent) -> Option<usize> {
    let page = extent.payload?.page.checked_sub(info.base_page)?;
    let at = stretches.partition_point(|stretch| stretch.place.end.div_ceil(PAGE_BYTES) <= page);
    stretches.get(at).filter(|stretch| stretch.place.start / PAGE_BYTES <= page).map(|_| at)
}

/// The smallest range around all of them.
fn around(ranges: impl Iterator<Item = ByteRange> + Clone) -> ByteRange {
    let start = ranges.clone().map(|range| range.start).min().unwrap_or(0);
    let end = ranges.map(ByteRange::end).max().unwrap_or(0);
    ByteRange::new(start, end - start)
}
