//! Extents: where a range of a disk lies in the journal, and the 24 bytes that say so on disk.
//!
//! ```text
//! word 0   63–58 disk   57–12 first byte on the disk   11–0 upper bits of the batch's page
//! word 1   sequence
//! word 2   63–43 lower bits of the batch's page   42–21 first byte in the batch's plain payload
//!          20–1 length less one   0 whether there is a payload (else zeroes)
//! ```
//! The page is counted from the base page of the run the entry is in. An extent never crosses a multiple
//! of 1 MiB on the disk, but for *wide* ones: zeroes over a whole piece of 8, 64 or 512 MiB. They have no page,
//! and the upper bits of their length where others have the first byte in the payload.

use types::limits::{BATCH_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX};
use types::{ByteRange, DiskIndex, WriteSeq};

/// Extents are clipped at multiples of this, so that a look-up has one region to search.
pub(crate) const REGION_BYTES: u64 = 1 << 20;
/// Zeroes over a whole piece of the disk that begins at a multiple of one of these lengths and is as long are one
/// extent: so that a range costs a few, however long it is, and a look-up has but one piece of each length to ask for.
pub(crate) const WIDE_BYTES: [u64; 3] = [8 << 20, 64 << 20, 512 << 20];
pub(crate) const ENTRY_BYTES: usize = 24;
/// Batches within this many pages of a run's base can be named in it: 32 TiB of journal.
const PAGES_MAX: u64 = 1 << 33;
/// No log reaches so many pages in its whole life: what a run's base page must stay below.
pub(crate) const BASE_PAGE_MAX: u64 = 1 << 50;

const _: () = assert!(DISKS_MAX <= 1 << 6);
const _: () = assert!(DISK_BYTES_MAX <= 1 << 46);
const _: () = assert!(BATCH_BYTES_MAX <= 1 << 22);
const _: () = assert!(WIDE_BYTES[0].is_multiple_of(REGION_BYTES) && WIDE_BYTES[2] <= 1 << 42);

/// Where a payload is: its batch's page, counted through the whole life of the log, and the first byte in
/// the batch's plain payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PayloadPlace {
    pub(crate) page: u64,
    pub(crate) at: u32,
}

/// A range of a disk as one record left it (redo), or found it (undo).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) disk: DiskIndex,
    pub(crate) range: ByteRange,
    pub(crate) seq: WriteSeq,
    /// None for zeroes.
    pub(crate) payload: Option<PayloadPlace>,
}

/// Order within a run: by place, then by sequence.
pub(crate) type SortKey = (u64, WriteSeq);

/// The place of a disk's byte as one number, below 2^52.
pub(crate) fn place_key(disk: DiskIndex, start: u64) -> u64 {
    (u64::from(disk.0) << 46) | start
}

/// The place a packed entry begins at.
pub(crate) fn place_of(entry: &[u8; ENTRY_BYTES]) -> u64 {
    u64::from_le_bytes(entry[..8].try_into().expect("an entry begins with eight bytes")) >> 12
}

/// Which extents of a run: they stand one behind the other, each in their own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// Within a region.
    Narrow,
    /// Zeroes over a whole piece.
    Wide,
}

impl Width {
    pub(crate) const BOTH: [Self; 2] = [Self::Narrow, Self::Wide];
}

/// A wide piece: the place it begins at, and in the bits that are free there which of the lengths it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WidePiece(pub(crate) u64);

impl WidePiece {
    /// The pieces a byte of a disk lies in, one of each length.
    pub(crate) fn around(disk: DiskIndex, at: u64) -> impl Iterator<Item = Self> {
        WIDE_BYTES
            .iter()
            .enumerate()
            .map(move |(which, len)| Self(place_key(disk, at / len * len) | which as u64))
    }

    /// The zeroes that a record brought there.
    pub(crate) fn extent(self, seq: WriteSeq) -> Extent {
        let start = self.0 & ((1 << 46) - 1) & !(REGION_BYTES - 1);
        let which = (self.0 & (REGION_BYTES - 1)) as usize;
        let range = ByteRange::new(start, WIDE_BYTES[which]);
        Extent { disk: DiskIndex((self.0 >> 46) as u16), range, seq, payload: None }
    }
}

impl Extent {
    pub(crate) fn sort_key(&self) -> SortKey {
        let place = self.wide_piece().map_or(place_key(self.disk, self.range.start), |piece| piece.0);
        (place, self.seq)
    }

    /// Whether it crosses regions.
    pub(crate) fn is_wide(&self) -> bool {
        self.range.len > REGION_BYTES
    }

    /// The piece it is, if it is a wide one that can be.
    pub(crate) fn wide_piece(&self) -> Option<WidePiece> {
        let which = WIDE_BYTES.iter().position(|len| *len == self.range.len)?;
        let is_piece = self.payload.is_none() && self.range.is_multiple_of(WIDE_BYTES[which]);
        is_piece.then(|| WidePiece(place_key(self.disk, self.range.start) | which as u64))
    }

    /// Whether a run that counts pages from `base_page` can name the batch.
    pub(crate) fn can_be_named_from(&self, base_page: u64) -> bool {
        let page = self.payload.map_or(base_page, |place| place.page);
        page.checked_sub(base_page).is_some_and(|page| page < PAGES_MAX)
    }

    /// The entry for a run that counts pages from `base_page`, which can name the batch.
    pub(crate) fn pack(&self, base_page: u64) -> [u8; ENTRY_BYTES] {
        let len = self.range.len - 1;
        let (page, at) = match self.payload {
            Some(place) => (place.page - base_page, u64::from(place.at)),
            None => (0, len >> 20),
        };
        assert!(page < PAGES_MAX, "a run reaches over less than 32 TiB of journal");
        assert!(!self.is_wide() || self.wide_piece().is_some(), "an extent is clipped at a region");
        let word0 = (place_key(self.disk, self.range.start) << 12) | (page >> 21);
        let word2 =
            (page & 0x1f_ffff) << 43 | at << 21 | (len & 0xf_ffff) << 1 | u64::from(self.payload.is_some());
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&word0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.raw().to_le_bytes());
        bytes[16..].copy_from_slice(&word2.to_le_bytes());
        bytes
    }

    /// What [`Extent::pack`] packed.
    pub(crate) fn unpack(bytes: &[u8], base_page: u64) -> Self {
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("an entry has 24 bytes"));
        let (word0, word2) = (word(0), word(16));
        let page = base_page + ((word0 & 0xfff) << 21 | word2 >> 43);
        let at = (word2 >> 21) & 0x3f_ffff;
        let has_payload = word2 & 1 == 1;
        let len = ((word2 >> 1) & 0xf_ffff) | if has_payload { 0 } else { at << 20 };
        Self {
            disk: DiskIndex((word0 >> 58) as u16),
            range: ByteRange::new((word0 >> 12) & ((1 << 46) - 1), len + 1),
            seq: WriteSeq::from_raw(word(8)),
            payload: has_payload.then_some(PayloadPlace { page, at: at as u32 }),
        }
    }
}

/// The extents of one record: clipped at regions, each with the place of its own bytes; of zeroes wide ones, where they
/// reach over whole pieces.
pub(crate) fn extents_of(entry: &batch::Entry, page: u64) -> impl Iterator<Item = Extent> {
    let (disk, seq, record) = (entry.disk, entry.seq, entry.range);
    let payload_at = entry.kind.has_payload().then_some(entry.payload_at);
    let is_wide = payload_at.is_none();
    let pieces = entry.kind.changes_disk().then(|| pieces_of(record, is_wide));
    pieces.into_iter().flatten().map(move |range| Extent {
        disk,
        range,
        seq,
        payload: payload_at.map(|at| PayloadPlace { page, at: at + (range.start - record.start) as u32 }),
    })
}

/// A range in pieces that do not cross regions, or, where it may be so, are whole wide ones, the longest first.
pub(crate) fn pieces_of(range: ByteRange, may_be_wide: bool) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end()).then(|| {
            let is_whole = |len: &&u64| at.is_multiple_of(**len) && **len <= range.end() - at;
            let wide = WIDE_BYTES.iter().rev().find(is_whole).filter(|_| may_be_wide);
            let to_region = (at / REGION_BYTES + 1) * REGION_BYTES - at;
            let len = wide.copied().unwrap_or(to_region.min(range.end() - at));
            at += len;
            ByteRange::new(at - len, len)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_entry_reads_back_and_is_the_piece_around_its_bytes() {
        for (which, len) in WIDE_BYTES.into_iter().enumerate() {
            let range = ByteRange::new(DISK_BYTES_MAX - len, len);
            let extent = Extent { disk: DiskIndex(63), range, seq: WriteSeq::MAX, payload: None };
            assert_eq!(Extent::unpack(&extent.pack(7), 7), extent);
            let piece = extent.wide_piece().expect("it is one");
            assert_eq!(piece.extent(WriteSeq::MAX), extent);
            let around: Vec<_> = WidePiece::around(DiskIndex(63), DISK_BYTES_MAX - 1).collect();
            assert_eq!(around[which], piece);
        }
    }

    #[test]
    fn a_long_range_of_zeroes_is_a_few_pieces_without_holes() {
        for (range, most) in [
            (ByteRange::new(0, 1 << 30), 2),
            (ByteRange::new(1 << 20, (1 << 30) - (1 << 20)), 22),
            (ByteRange::new(511, (1 << 30) - 1000), 50),
        ] {
            let pieces: Vec<_> = pieces_of(range, true).collect();
            assert!(pieces.len() <= most, "{range:?}: {}", pieces.len());
            assert!(pieces.windows(2).all(|two| two[0].end() == two[1].start));
            assert_eq!((pieces[0].start, pieces[pieces.len() - 1].end()), (range.start, range.end()));
            for piece in pieces {
                let extent = Extent { disk: DiskIndex(0), range: piece, seq: WriteSeq::ZERO, payload: None };
                let in_one_region = piece.start / REGION_BYTES == (piece.end() - 1) / REGION_BYTES;
                assert_eq!(extent.wide_piece().is_some(), !in_one_region);
            }
        }
        let plain: Vec<_> = pieces_of(ByteRange::new(5, 16 << 20), false).collect();
        assert!(plain.into_iter().eq(ByteRange::new(5, 16 << 20).split_at_multiples(REGION_BYTES)));
    }

    #[test]
    fn an_entry_reads_back_at_every_edge() {
        for (disk, start, len) in
            [(0, 0, 1), (63, DISK_BYTES_MAX - REGION_BYTES, REGION_BYTES), (5, 4097, 511)]
        {
            for payload in [None, Some((7, 0)), Some((7 + PAGES_MAX - 1, (1 << 22) - 1))] {
                let extent = Extent {
                    disk: DiskIndex(disk),
                    range: ByteRange::new(start, len),
                    seq: WriteSeq::MAX,
                    payload: payload.map(|(page, at)| PayloadPlace { page, at }),
                };
                assert_eq!(Extent::unpack(&extent.pack(7), 7), extent);
            }
        }
    }
}
