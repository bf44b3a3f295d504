//! Pages: the 4 KiB unit of everything that is not a batch, and buffers aligned to it.
//!
//! ```text
//! 0      rows, as many as `count` says, of the size their kind has
//! 4080   u16 count   4082 u16 kind   4084 u32 page number   4088 u32 reserved   4092 u32 CRC-32C, seeded
//! ```
//! The checksum covers bytes 0–4091 and is seeded with the stamp of the file the page belongs to, so that
//! a page of another file, or of an earlier life of this one, never checks.

use types::sum_matches;

/// Bytes of a page, and the alignment of direct I/O.
pub(crate) const PAGE_BYTES: u64 = 4096;
const PAGE: usize = PAGE_BYTES as usize;
/// Room of a buffer that is to be used again, so that the next group finds it large enough.
const CAPACITY_MIN: usize = 256 << 10;
/// Bytes of a page that hold rows.
pub(crate) const ROWS_BYTES: usize = PAGE - 16;

/// What the rows of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum PageKind {
    /// Index entries, 24 bytes each.
    Entries = 1,
    /// Checkpoints, 48 bytes each.
    Checkpoints = 2,
    /// Checksums of a replica's blocks, 4 bytes each.
    Sums = 3,
}

/// Closes a page over `rows`.
pub(crate) fn seal_page(rows: &[u8], count: u16, kind: PageKind, number: u32, stamp: u32) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[..rows.len()].copy_from_slice(rows);
    page[ROWS_BYTES..ROWS_BYTES + 2].copy_from_slice(&count.to_le_bytes());
    page[ROWS_BYTES + 2..ROWS_BYTES + 4].copy_from_slice(&(kind as u16).to_le_bytes());
    page[ROWS_BYTES + 4..ROWS_BYTES + 8].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c_append(stamp, &page[..PAGE - 4]);
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
    page
}

/// How many rows a page holds, once it has been checked to be the one that was asked for.
pub(crate) fn open_page(
    page: &[u8; PAGE],
    kind: PageKind,
    number: u32,
    stamp: u32,
    row_bytes: usize,
) -> Result<usize, &'static str> {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    if !sum_matches(crc32c::crc32c_append(stamp, &page[..PAGE - 4]), word(PAGE - 4)) {
        return Err("page: checksum does not match");
    }
    if half(ROWS_BYTES + 2) != kind as u16 || word(ROWS_BYTES + 4) != number {
        return Err("another page stands in its place");
    }
    let count = usize::from(half(ROWS_BYTES));
    if count * row_bytes > ROWS_BYTES { Err("more rows than a page holds") } else { Ok(count) }
}

/// Bytes that begin at a multiple of a page in memory, for direct I/O.
#[derive(Debug)]
pub(crate) struct PageBuf {
    bytes: Vec<u8>,
    skew: usize,
}

impl PageBuf {
    /// Empty, with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(capacity + PAGE);
        let skew = bytes.as_ptr().align_offset(PAGE);
        bytes.resize(skew, 0);
        Self { bytes, skew }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        assert!(
            self.bytes.capacity() - self.bytes.len() >= bytes.len(),
            "a buffer's room was counted before"
        );
        self.bytes.extend_from_slice(bytes);
    }

    /// Fills up with zeroes to a length of `len`.
    pub(crate) fn pad_to(&mut self, len: usize) {
        assert!(self.bytes.capacity() >= self.skew + len, "a buffer's room was counted before");
        self.bytes.resize(self.skew + len, 0);
    }

    /// `spare` emptied, where it has room for `capacity` bytes; else a new one.
    pub(crate) fn reuse(spare: Option<Self>, capacity: usize) -> Self {
        match spare.filter(|spare| spare.bytes.capacity() - spare.skew >= capacity) {
            Some(mut spare) => {
                spare.bytes.truncate(spare.skew);
                spare
            }
            None => Self::with_capacity(capacity.max(CAPACITY_MIN)),
        }
    }

    /// `len` zeroes, to be written over.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        buf.pad_to(len);
        buf
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.skew..]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skew..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_checks_only_where_it_belongs() {
        let page = seal_page(&[7; 48], 2, PageKind::Entries, 3, 99);
        assert_eq!(open_page(&page, PageKind::Entries, 3, 99, 24), Ok(2));
        assert!(open_page(&page, PageKind::Entries, 4, 99, 24).is_err(), "another place");
        assert!(open_page(&page, PageKind::Entries, 3, 98, 24).is_err(), "another file");
        assert!(open_page(&page, PageKind::Checkpoints, 3, 99, 48).is_err(), "another kind");
        for at in 0..PAGE {
            let mut rotten = page;
            rotten[at] ^= 4;
            assert!(open_page(&rotten, PageKind::Entries, 3, 99, 24).is_err(), "byte {at}");
        }
    }
}
