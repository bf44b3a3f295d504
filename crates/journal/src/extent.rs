//! Extents: where a range of a disk lies in the journal, and the 24 bytes that say so on disk.
//!
//! ```text
//! word 0   63–58 disk   57–12 first byte on the disk   11–0 upper bits of the batch's page
//! word 1   sequence
//! word 2   63–43 lower bits of the batch's page   42–21 first byte in the batch's plain payload
//!          20–1 length less one   0 whether there is a payload (else zeroes)
//! ```
//! The page is counted from the base page of the run the entry is in. An extent never crosses a multiple
//! of 1 MiB on the disk.

use types::limits::{BATCH_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX};
use types::{ByteRange, DiskIndex, WriteSeq};

/// Extents are clipped at multiples of this, so that a look-up has one region to search.
pub(crate) const REGION_BYTES: u64 = 1 << 20;
pub(crate) const ENTRY_BYTES: usize = 24;
/// Batches within this many pages of a run's base can be named in it: 32 TiB of journal.
const PAGES_MAX: u64 = 1 << 33;
/// No log reaches so many pages in its whole life: what a run's base page must stay below.
pub(crate) const BASE_PAGE_MAX: u64 = 1 << 50;

const _: () = assert!(DISKS_MAX <= 1 << 6);
const _: () = assert!(DISK_BYTES_MAX <= 1 << 46);
const _: () = assert!(BATCH_BYTES_MAX <= 1 << 22);

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

impl Extent {
    pub(crate) fn sort_key(&self) -> SortKey {
        (place_key(self.disk, self.range.start), self.seq)
    }

    /// Whether a run that counts pages from `base_page` can name the batch.
    pub(crate) fn can_be_named_from(&self, base_page: u64) -> bool {
        let page = self.payload.map_or(base_page, |place| place.page);
        page.checked_sub(base_page).is_some_and(|page| page < PAGES_MAX)
    }

    /// The entry for a run that counts pages from `base_page`, which can name the batch.
    pub(crate) fn pack(&self, base_page: u64) -> [u8; ENTRY_BYTES] {
        let (page, at) = match self.payload {
            Some(place) => (place.page - base_page, u64::from(place.at)),
            None => (0, 0),
        };
        assert!(page < PAGES_MAX, "a run reaches over less than 32 TiB of journal");
        assert!((1..=REGION_BYTES).contains(&self.range.len), "an extent is clipped at a region");
        let word0 = (place_key(self.disk, self.range.start) << 12) | (page >> 21);
        let word2 = (page & 0x1f_ffff) << 43
            | at << 21
            | (self.range.len - 1) << 1
            | u64::from(self.payload.is_some());
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
        let at = ((word2 >> 21) & 0x3f_ffff) as u32;
        Self {
            disk: DiskIndex((word0 >> 58) as u16),
            range: ByteRange::new((word0 >> 12) & ((1 << 46) - 1), ((word2 >> 1) & 0xf_ffff) + 1),
            seq: WriteSeq::from_raw(word(8)),
            payload: (word2 & 1 == 1).then_some(PayloadPlace { page, at }),
        }
    }
}

/// The extents of one record: clipped at regions, each with the place of its own bytes.
pub(crate) fn extents_of(entry: &batch::Entry, page: u64) -> impl Iterator<Item = Extent> {
    let (disk, seq, record) = (entry.disk, entry.seq, entry.range);
    let payload_at = entry.kind.has_payload().then_some(entry.payload_at);
    let pieces = entry.kind.changes_disk().then(|| record.split_at_multiples(REGION_BYTES));
    pieces.into_iter().flatten().map(move |range| Extent {
        disk,
        range,
        seq,
        payload: payload_at.map(|at| PayloadPlace { page, at: at + (range.start - record.start) as u32 }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
