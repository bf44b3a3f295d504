//! What the disk has of the undo log: whole steps count, what is left of another is cut off.

use crate::cover::LogKind;
use crate::damage::Damage;
use crate::extent::extents_of;
use crate::manifest::{Manifest, Sealed, SegmentInfo};
use crate::page::PAGE_BYTES;
use crate::segment::{Found, Position, Segment, SegmentError};
use crate::store::{Store, set_aside};
use crate::table::Table;
use crate::timeline::Timeline;
use std::io;
use types::WriteSeq;

/// What has been read of the undo log.
pub(crate) struct UndoReading {
    pub(crate) frozen: Vec<Table>,
    pub(crate) table: Table,
    pub(crate) open: Option<(Segment, u64, Position)>,
    pub(crate) upto: WriteSeq,
    /// The end of the last whole step in the log.
    reaches: WriteSeq,
    pub(crate) damage: Option<Damage>,
}

impl UndoReading {
    /// Reads what the manifest names, of a stream whose cuts are these.
    pub(crate) fn read(store: &dyn Store, manifest: &Manifest, timeline: &Timeline) -> io::Result<Self> {
        let mut reading = Self {
            frozen: Vec::new(),
            table: Table::new(LogKind::Undo, 0, 0),
            open: None,
            upto: manifest.applied(),
            reaches: WriteSeq::ZERO,
            damage: None,
        };
        // Whatever is older than a before-image may need it.
        let damage = |what| Damage::of_cuts(what, WriteSeq::from_raw(manifest.retired_below), false);
        for info in &manifest.undo.segments {
            if let Some(sealed) = &info.sealed {
                reading.reaches = WriteSeq::from_raw(sealed.point.last_seq);
            }
            if let Err(error) = reading.read_segment(store, info) {
                reading.damage = Some(damage(error.io_or_damage()?));
            }
        }
        if reading.damage.is_none()
            && let Some(missing) = manifest.missing_before_images(reading.reaches)
            // Where no cut that needs them can be opened, that was told, at whatever place the log ended then.
            && !timeline.misses(WriteSeq::from_raw(manifest.retired_below), Some(manifest.before_images_upto()))
        {
            reading.damage = Some(damage(missing));
        }
        Ok(reading)
    }

    /// The open segment, where nothing of it could be read.
    pub(crate) fn let_go_of_open(&self, store: &dyn Store, manifest: &mut Manifest) -> io::Result<()> {
        let is_lost = self.open.is_none();
        match manifest.undo.segments.pop_if(|last| is_lost && last.sealed.is_none()) {
            Some(last) => set_aside(store, &last.file_name(LogKind::Undo)),
            None => Ok(()),
        }
    }

    fn read_segment(&mut self, store: &dyn Store, info: &SegmentInfo) -> Result<(), SegmentError> {
        let end = match &info.sealed {
            Some(Sealed { footer: Some(_), .. }) => return Ok(()),
            Some(sealed) => Some(sealed.bytes),
            None => None,
        };
        let mut table = Table::new(LogKind::Undo, info.number, info.base_page);
        let result = self.read_steps(store, info, end, &mut table);
        if end.is_some() {
            // Whatever could be read is kept, though older cuts are not good.
            self.frozen.push(table);
            return result.map(drop);
        }
        let (segment, first_of_last, whole) = result?;
        segment
            .rewrite(first_of_last, whole.at)
            .map_err(|source| SegmentError::Io { name: segment.name.clone(), source })?;
        self.table = table;
        self.open = Some((segment, info.base_page, whole));
        Ok(())
    }

    /// Reads a segment's whole steps into `table`: the segment, where the last batch that was looked at begins a step,
    /// and where the last whole step ends.
    fn read_steps(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        end: Option<u64>,
        table: &mut Table,
    ) -> Result<(Segment, Option<u64>, Position), SegmentError> {
        let segment = Segment::open(store, LogKind::Undo, info)?;
        let mut scan = segment.scan(end)?;
        let mut whole = scan.position;
        let mut last_step = None;
        let mut step: Vec<Found> = Vec::new();
        loop {
            match scan.next() {
                Ok(Some(found)) => {
                    let ends_step = found.batch.header().ends_step;
                    last_step.get_or_insert(found.at);
                    step.push(found);
                    if ends_step {
                        whole = scan.position;
                        for found in step.drain(..) {
                            self.reaches = found.batch.header().watermark;
                            self.upto = self.upto.max(self.reaches);
                            let page = info.base_page + found.at / PAGE_BYTES;
                            let entries = found.batch.entries().iter();
                            entries.flat_map(|entry| extents_of(entry, page)).for_each(|e| table.insert(e));
                        }
                    }
                }
                Ok(None) => break,
                // A step that is not whole has not touched the replica.
                Err(error @ SegmentError::Io { .. }) => return Err(error),
                Err(error) if end.is_some() => return Err(error),
                Err(_) => break,
            }
        }
        drop(scan);
        Ok((segment, last_step, whole))
    }
}
