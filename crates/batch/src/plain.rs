//! The plain payload of a batch to be: the records' one behind the other, without copying them together.

use crate::crc::of_frame;
use crate::layout::BLOCK_BYTES;
use crate::pieces::Gatherer;
use crate::record::Record;
use bytes::Bytes;
use std::ops::Range;
use types::limits::FRAME_BYTES;

/// The payloads of records, with the place of each.
pub(crate) struct Plain<'a> {
    payloads: Vec<(usize, &'a Bytes)>,
    len: usize,
}

impl<'a> Plain<'a> {
    pub(crate) fn of(records: &'a [Record]) -> Self {
        let mut len = 0;
        let with_place = |record: &'a Record| {
            let at = len;
            len += record.payload.len();
            (at, &record.payload)
        };
        Self { payloads: records.iter().map(with_place).collect(), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// CRC-32C of each block, the last one perhaps shorter.
    pub(crate) fn block_sums(&self) -> Vec<u32> {
        let mut sums = Vec::with_capacity(self.len.div_ceil(BLOCK_BYTES));
        let (mut sum, mut filled) = (0, 0);
        for (_, payload) in &self.payloads {
            let mut rest = &payload[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - filled));
                (sum, filled, rest) = (crc32c::crc32c_append(sum, now), filled + now.len(), later);
                if filled == BLOCK_BYTES {
                    sums.push(std::mem::take(&mut sum));
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            sums.push(sum);
        }
        sums
    }

    /// The frames' places.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.len;
        (0..end).step_by(FRAME_BYTES).map(move |at| at..end.min(at + FRAME_BYTES))
    }

    /// CRC-32C of each frame, out of those of the blocks.
    pub(crate) fn frame_sums(&self, blocks: &[u32]) -> Vec<u32> {
        let blocks = blocks.chunks(FRAME_BYTES / BLOCK_BYTES);
        self.frames().zip(blocks).map(|(frame, blocks)| of_frame(frame.len(), blocks)).collect()
    }

    /// The bytes of a range, piece by piece.
    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Bytes> {
        let first = self.payloads.partition_point(|(at, payload)| at + payload.len() <= range.start);
        let touched = self.payloads[first..].iter().take_while({
            let end = range.end;
            move |(at, _)| *at < end
        });
        touched.map(move |(at, payload)| {
            payload.slice(range.start.saturating_sub(*at)..payload.len().min(range.end - at))
        })
    }

    /// The bytes of a range in one place.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Bytes {
        let mut gathered = Gatherer::default();
        self.gather(range, &mut gathered);
        gathered.finish().joined()
    }

    /// Puts the bytes of a range behind what was gathered.
    pub(crate) fn gather(&self, range: Range<usize>, into: &mut Gatherer) {
        self.pieces(range).for_each(|piece| into.push(piece));
    }
}
