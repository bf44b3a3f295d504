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
use std::collections::BTreeMap;
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
    /// What a stretch of a segment, which has its footer, has cost.
    pub(crate) fn of_stretch(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        stretch: &Stretch,
    ) -> Result<Vec<LostPiece>, AppraiseError> {
        let mut extents = self.held(kind, info, stretch)?;
        let is_done = self.state.read_shared().manifest.done_upto(kind);
        extents.retain(|extent| extent.seq > is_done);
        // What was read before would be read out of memory.
        payload::forget(self.state.uid);
        self.reads.forget(kind, info.number);
        let unread = self.unread(kind, info, &extents).map_err(AppraiseError::Io)?;
        self.by_region(unread, |disk, range, unread| {
            let above = match kind {
                LogKind::Redo => unread.iter().map(|unread| unread.seq).min().unwrap_or_default(),
                LogKind::Undo => WriteSeq::ZERO,
            };
            let beside = self.reads.extents_between(kind, (disk, range), (above, WriteSeq::MAX))?;
            Ok(match kind {
                LogKind::Redo => cost::of_writes(unread, &beside),
                LogKind::Undo => cost::of_before_images(unread, &beside),
            })
        })
    }

    /// What a part of a replica has cost.
    pub(crate) fn of_replica(
        &self,
        disk: DiskIndex,
        range: ByteRange,
    ) -> Result<Vec<LostPiece>, AppraiseError> {
        let applied = self.state.read_shared().manifest.applied();
        let mut pieces = Vec::new();
        for part in range.split_at_multiples(REGION_BYTES) {
            let between = |kind, cuts| {
                self.reads.extents_between(kind, (disk, part), cuts).map_err(AppraiseError::Index)
            };
            let images = between(LogKind::Undo, (WriteSeq::ZERO, applied))?;
            let writes = between(LogKind::Redo, (applied, WriteSeq::MAX))?;
            pieces.extend(cost::of_replica(disk, part, &images, &writes));
        }
        Ok(pieces)
    }

    /// The extents with payload in a stretch.
    fn held(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        stretch: &Stretch,
    ) -> Result<Vec<Extent>, AppraiseError> {
        let pages = stretch.place.start / PAGE_BYTES..stretch.place.end.div_ceil(PAGE_BYTES);
        let pages = info.base_page + pages.start..info.base_page + pages.end;
        let is_held = |extent: &Extent| extent.payload.is_some_and(|place| pages.contains(&place.page));
        let manifest = self.state.read_shared().manifest.clone();
        let log = manifest.log(kind);
        let segment = log.segments.iter().find(|segment| segment.number == info.number);
        let footer = segment.and_then(SegmentInfo::footer);
        let covers = |run: &&RunInfo| run.covers(info.number);
        let mut unread = AppraiseError::Io(io::Error::other("the segment has no index yet"));
        for run in footer.into_iter().chain(log.runs.iter().filter(covers)) {
            let mut held = Vec::new();
            let keep = |extent: Extent| held.extend(Some(extent).filter(is_held));
            match Run::new(kind, run.clone()).visit(&*self.state.store, keep) {
                Ok(()) => return Ok(held),
                Err(error) => unread = AppraiseError::Index(error.into()),
            }
        }
        let Some(found) = &stretch.tables else { return Err(unread) };
        let page = info.base_page + found.at / PAGE_BYTES;
        let extents = found.batch.entries().iter().flat_map(|entry| extents_of(entry, page));
        Ok(extents.filter(is_held).collect())
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
            let start = unread.iter().map(|one| one.range.start).min().unwrap_or(0);
            let end = unread.iter().map(|one| one.range.end()).max().unwrap_or(0);
            pieces.extend(
                cost(disk, ByteRange::new(start, end - start), &unread).map_err(AppraiseError::Index)?,
            );
        }
        Ok(pieces)
    }
}
