//! What the disk has of the redo log: segments without a footer are read, the end of the open one is judged.

use crate::cover::LogKind;
use crate::damage::Damage;
use crate::entropy::sample;
use crate::extent::extents_of;
use crate::manifest::{Manifest, Sealed, SegmentInfo};
use crate::page::PAGE_BYTES;
use crate::segment::{Found, Position, Scan, Segment, SegmentError};
use crate::store::{Store, set_aside};
use crate::table::Table;
use crate::timeline::Timeline;
use std::collections::HashSet;
use std::io;
use types::{WallTime, WriteSeq};

/// What has been read of the redo log.
pub(crate) struct RedoReading {
    pub(crate) timeline: Timeline,
    pub(crate) frozen: Vec<Table>,
    pub(crate) table: Table,
    pub(crate) open: Option<(Segment, u64, Position)>,
    pub(crate) newest_at: Option<WallTime>,
    pub(crate) torn_bytes: u64,
    /// Batches of the open segment: where each begins in the file, and its last sequence.
    in_open: Vec<(u64, WriteSeq)>,
    /// What the source had been told when the newest batch was written.
    acked: WriteSeq,
    pub(crate) damage: Vec<Damage>,
}

impl RedoReading {
    pub(crate) fn begin(manifest: &Manifest) -> Self {
        Self {
            timeline: Timeline::begin(manifest),
            frozen: Vec::new(),
            table: Table::new(LogKind::Redo, 0, 0),
            open: None,
            newest_at: None,
            torn_bytes: 0,
            in_open: Vec::new(),
            acked: WriteSeq::ZERO,
            damage: Vec::new(),
        }
    }

    pub(crate) fn read(&mut self, store: &dyn Store, manifest: &Manifest) -> io::Result<()> {
        let names: HashSet<String> = store.names()?.into_iter().collect();
        for info in &manifest.redo.segments {
            let name = info.file_name(LogKind::Redo);
            let before = self.timeline.last_seq;
            match &info.sealed {
                Some(sealed) => {
                    let (last, read) = match (names.contains(&name), &sealed.footer) {
                        (false, Some(_)) => (before, Err(SegmentError::Missing { name })),
                        (true, Some(_)) => (before, Ok(())),
                        (_, None) => self.read_sealed(store, info, sealed),
                    };
                    if let Err(error) = read {
                        let error = error.io_or_damage()?;
                        // A footer may have been made again in a file of its own.
                        let indexed = sealed.footer.is_some();
                        self.damage.push(Damage::of_cuts(error, last.next(), indexed));
                    }
                    self.timeline.stand_at(&sealed.point);
                    self.newest_at = Some(WallTime(sealed.newest_at));
                }
                None => self.read_open(store, info)?,
            }
        }
        self.miss_what_is_pinned(manifest);
        Ok(())
    }

    /// A pin is the word that everything up to its cut was there. Where the log ends below, the end that is not there was no
    /// torn write: what comes next takes the numbers of what was given out, and is not the same.
    fn miss_what_is_pinned(&mut self, manifest: &Manifest) {
        let reached = self.timeline.watermark.max(self.timeline.last_seq);
        let highest = manifest.pins.iter().map(|pin| WriteSeq::from_raw(pin.cut)).max();
        // What was damaged long ago, and made good, says nothing of it.
        let is_told = |pinned: WriteSeq| {
            let is_found =
                |damage: &Damage| !damage.indexed && damage.from <= pinned && !damage.is_known(manifest);
            self.damage.iter().any(is_found) || manifest.damage.iter().any(|known| known.hides_from(pinned))
        };
        if let Some(pinned) = highest.filter(|pinned| *pinned > reached)
            && !is_told(pinned)
        {
            let what = format!("the log ends at {reached}, though an image or a pin holds it at {pinned}");
            self.damage.push(Damage::of_cuts(what, reached.next(), false));
        }
    }

    /// Reads a sealed segment into a table of its own: up to which sequence. Its marks are in the manifest's gaps already.
    fn read_sealed(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        sealed: &Sealed,
    ) -> (WriteSeq, Result<(), SegmentError>) {
        let mut table = Table::new(LogKind::Redo, info.number, info.base_page);
        let mut timeline = self.timeline.clone();
        let result = Segment::open(store, LogKind::Redo, info).and_then(|segment| {
            let mut scan = segment.scan(Some(sealed.bytes))?;
            while let Some(found) = scan.next()? {
                take(&segment, info.base_page, &found, &mut timeline, &mut table)?;
            }
            match scan.position.at == sealed.bytes {
                true => Ok(()),
                false => Err(segment.ends_early(scan.position.at)),
            }
        });
        // Whatever could be read is kept: cuts before the damage are good.
        self.frozen.push(table);
        (timeline.last_seq, result)
    }

    fn read_open(&mut self, store: &dyn Store, info: &SegmentInfo) -> io::Result<()> {
        self.table = Table::new(LogKind::Redo, info.number, info.base_page);
        let segment = match Segment::open(store, LogKind::Redo, info) {
            Ok(segment) => segment,
            Err(error) => {
                let from = self.timeline.last_seq.next();
                self.damage.push(Damage::of_cuts(error.io_or_damage()?, from, false));
                return Ok(());
            }
        };
        let mut scan = match segment.scan(None) {
            Ok(scan) => scan,
            Err(error) => return error.io_or_damage().map(drop),
        };
        loop {
            let step = scan.next().and_then(|found| {
                let Some(found) = found else { return Ok(false) };
                take(&segment, info.base_page, &found, &mut self.timeline, &mut self.table)?;
                self.in_open.push((found.at, found.batch.header().last_seq));
                self.acked = found.envelope.acked_upto;
                self.newest_at = Some(found.envelope.received_at);
                Ok(true)
            });
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.end_of_open(&mut scan, error)?;
                    break;
                }
            }
        }
        let position = scan.position;
        self.open = Some((segment, info.base_page, position));
        Ok(())
    }

    /// What does not check at the end of the open segment: a torn end, or damage.
    fn end_of_open(&mut self, scan: &mut Scan<'_>, error: SegmentError) -> io::Result<()> {
        let was_acked = scan.acked_beyond().is_some_and(|acked| acked > self.timeline.last_seq);
        let is_io = matches!(error, SegmentError::Io { .. });
        if was_acked || is_io {
            let from = self.timeline.last_seq.next();
            self.damage.push(Damage::of_cuts(error.io_or_damage()?, from, false));
        } else if scan.is_torn_here() {
            self.torn_bytes = PAGE_BYTES.max(scan.end().saturating_sub(scan.position.at));
        }
        Ok(())
    }

    /// Makes sure that what was read is on the disk, and not only in memory.
    ///
    /// A crash story: (1) a batch is written, its sync fails, nothing is acknowledged; (2) the journal is
    /// closed and opened again, and reads the batch back, from the page cache; (3) it is taken for durable
    /// and acknowledged; (4) the power goes, and the batch with it. So whatever may not have been
    /// acknowledged before is written once more, which makes its pages dirty again, and synced.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let Some((segment, _, end)) = &self.open else { return Ok(()) };
        // A batch that only moved the watermark has the sequence of the one before it.
        let first = self.in_open.iter().find(|(_, last_seq)| *last_seq >= self.acked);
        segment.rewrite(first.map(|(at, _)| *at), end.at)
    }

    /// Ends the open segment where its good part ends.
    pub(crate) fn seal_open(&mut self, store: &dyn Store, manifest: &mut Manifest) -> io::Result<()> {
        let bytes = self.open.take().map(|(_, _, end)| end.at);
        let point = self.timeline.point();
        let newest_at = self.newest_at.unwrap_or_default().0;
        let log = &mut manifest.redo;
        let open = log.segments.last_mut().filter(|segment| segment.sealed.is_none());
        let Some(last) = open else { return Ok(()) };
        match bytes {
            Some(bytes) => {
                log.next_page = last.base_page + bytes / PAGE_BYTES;
                last.sealed = Some(Sealed { bytes, point, newest_at, aged_from: None, footer: None });
                let fresh = Table::new(LogKind::Redo, 0, 0);
                self.frozen.push(std::mem::replace(&mut self.table, fresh));
            }
            // Nothing of it could be read at all: it is set aside.
            None => {
                set_aside(store, &last.file_name(LogKind::Redo))?;
                log.segments.pop();
            }
        }
        self.timeline.write_to(manifest);
        Ok(())
    }
}

/// Takes up one batch of a segment.
fn take(
    segment: &Segment,
    base_page: u64,
    found: &Found,
    timeline: &mut Timeline,
    table: &mut Table,
) -> Result<(), SegmentError> {
    let damaged = |what: String| SegmentError::Batch { name: segment.name.clone(), at: found.at, what };
    if found.batch.header().prev_seq != timeline.last_seq {
        return Err(damaged("the batch does not follow the stream before it".into()));
    }
    let checkpoints =
        timeline.insert(&found.batch, &sample(&found.batch)).map_err(|error| damaged(error.to_string()))?;
    table.checkpoints.extend(checkpoints);
    let page = base_page + found.at / PAGE_BYTES;
    for extent in found.batch.entries().iter().flat_map(|entry| extents_of(entry, page)) {
        table.insert(extent);
    }
    Ok(())
}
