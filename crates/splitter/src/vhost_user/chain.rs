//! A request as the guest has laid it out in its memory: a chain of descriptors, a header, data, a status byte.
//!
//! Everything here is the guest's to write, at any time: nothing is read twice, and nothing is believed.

use super::features::{DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, SERIAL_BYTES};
use types::ByteRange;
use types::limits::{SECTOR_BYTES, VIRTIO_DESCRIPTORS_MAX, VIRTIO_REQUEST_BYTES_MAX};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

const DESCRIPTOR_BYTES: u64 = 16;
const HEADER_BYTES: usize = 16;
/// A range to be discarded or zeroed: sector, sectors, flags.
const SEGMENT_BYTES: usize = 16;
const FLAG_UNMAP: u32 = 1;

/// A piece of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// What a guest asks for. Data is fetched or put later.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Read {
        at: u64,
        len: usize,
    },
    Write {
        at: u64,
        len: usize,
    },
    Flush,
    Discard {
        range: ByteRange,
    },
    Zero {
        range: ByteRange,
        unmap: bool,
    },
    Serial,
    /// A command or place that this device does not have, and the status for it.
    Refused(Status),
}

/// The status byte of a virtio-blk request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A request, parsed.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) wanted: Wanted,
    /// Where the data of a write is, behind the header.
    pub(super) from_guest: Vec<Piece>,
    /// Where the data of a read goes.
    pub(super) to_guest: Vec<Piece>,
    pub(super) status: GuestAddress,
}

impl Request {
    /// Panics where it asks for anything outside of the disk, or for more or less data than it has room for.
    pub fn assert_within<M: GuestMemory>(&self, memory: &M, disk_bytes: u64) {
        let has = |pieces: &[Piece], len: usize| assert_eq!(total(pieces), len as u64);
        match self.wanted {
            Wanted::Read { at, len } => {
                assert!(ByteRange::new(at, len as u64).fits(disk_bytes));
                has(&self.to_guest, len);
            }
            Wanted::Write { at, len } => {
                assert!(ByteRange::new(at, len as u64).fits(disk_bytes));
                has(&self.from_guest, len);
                let _ = fetch(memory, &self.from_guest, &mut vec![0; len]);
            }
            Wanted::Discard { range } | Wanted::Zero { range, .. } => assert!(range.fits(disk_bytes)),
            Wanted::Flush | Wanted::Serial | Wanted::Refused(_) => {}
        }
    }
}

/// A chain no driver makes. There is no way to answer it: the queue stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("a descriptor lies outside of the guest's memory")]
    Unmapped,
    #[error("a chain is longer than {VIRTIO_DESCRIPTORS_MAX} descriptors or goes round in a circle")]
    TooLong,
    #[error("a descriptor's number is too high")]
    Index,
    #[error("a table of indirect descriptors within another, or of no whole number of them")]
    Indirect,
    #[error("a descriptor to read from behind one to write to")]
    Order,
    #[error("a request without a whole header")]
    NoHeader,
    #[error("a request without a status byte")]
    NoStatus,
    #[error("a request of over {VIRTIO_REQUEST_BYTES_MAX} bytes of data")]
    TooLarge,
}

/// Reads the request whose chain begins at descriptor `head` of the table at `table`, of a disk of `disk_bytes`.
///
/// # Errors
/// [`BrokenChain`] where it is not one.
pub fn parse_request<M: GuestMemory>(
    memory: &M,
    table: GuestAddress,
    queue_size: u16,
    head: u16,
    disk_bytes: u64,
) -> Result<Request, BrokenChain> {
    let (mut readable, mut writable) = walk(memory, table, queue_size, head)?;
    let mut header = [0; HEADER_BYTES];
    take(memory, &mut readable, &mut header)?;
    let last = writable.last_mut().filter(|last| last.len > 0).ok_or(BrokenChain::NoStatus)?;
    last.len -= 1;
    let status = last.address.checked_add_u32(last.len)?;
    if last.len == 0 {
        writable.pop();
    }
    let (brought, fetched) = (total(&readable), total(&writable));
    if brought.max(fetched) > VIRTIO_REQUEST_BYTES_MAX {
        return Err(BrokenChain::TooLarge);
    }
    let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    let place = |len: u64| {
        let at = sector.checked_mul(SECTOR_BYTES)?;
        let range = ByteRange::new(at, len);
        (range.fits(disk_bytes) && len.is_multiple_of(SECTOR_BYTES)).then_some(at)
    };
    let refused = Wanted::Refused(Status::IoError);
    let wanted = match kind {
        VIRTIO_BLK_T_IN => place(fetched).map_or(refused, |at| Wanted::Read { at, len: fetched as usize }),
        VIRTIO_BLK_T_OUT => place(brought).map_or(refused, |at| Wanted::Write { at, len: brought as usize }),
        VIRTIO_BLK_T_FLUSH => Wanted::Flush,
        VIRTIO_BLK_T_GET_ID if fetched >= SERIAL_BYTES as u64 => Wanted::Serial,
        VIRTIO_BLK_T_GET_ID => refused,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            segment(memory, &mut readable, kind == VIRTIO_BLK_T_DISCARD, disk_bytes)?
        }
        _ => Wanted::Refused(Status::Unsupported),
    };
    Ok(Request { wanted, from_guest: readable, to_guest: writable, status })
}

/// The one range that a discard or a write of zeroes may name.
fn segment<M: GuestMemory>(
    memory: &M,
    readable: &mut Vec<Piece>,
    is_discard: bool,
    disk_bytes: u64,
) -> Result<Wanted, BrokenChain> {
    if total(readable) != u64::from(DISCARD_SEGMENTS_MAX) * SEGMENT_BYTES as u64 {
        return Ok(Wanted::Refused(Status::Unsupported));
    }
    let mut bytes = [0; SEGMENT_BYTES];
    take(memory, readable, &mut bytes)?;
    let sector = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let sectors = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    let flags = u32::from_le_bytes(bytes[12..].try_into().expect("four bytes"));
    // Section 5.2.6.2: unknown flags, and unmapping by a discard, are unsupported.
    if flags & !FLAG_UNMAP != 0 || (is_discard && flags != 0) {
        return Ok(Wanted::Refused(Status::Unsupported));
    }
    // Section 5.2.6.1: a driver asks for no more than it was told.
    if sectors > DISCARD_SECTORS_MAX {
        return Ok(Wanted::Refused(Status::IoError));
    }
    let range =
        sector.checked_mul(SECTOR_BYTES).map(|at| ByteRange::new(at, u64::from(sectors) * SECTOR_BYTES));
    Ok(match range.filter(|range| range.fits(disk_bytes)) {
        None => Wanted::Refused(Status::IoError),
        Some(range) if is_discard => Wanted::Discard { range },
        Some(range) => Wanted::Zero { range, unmap: flags & FLAG_UNMAP != 0 },
    })
}

/// The pieces of a chain: those the device reads, then those it writes.
fn walk<M: GuestMemory>(
    memory: &M,
    mut table: GuestAddress,
    queue_size: u16,
    head: u16,
) -> Result<(Vec<Piece>, Vec<Piece>), BrokenChain> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let (mut entries, mut index, mut is_indirect) = (u32::from(queue_size), u32::from(head), false);
    for _ in 0..=VIRTIO_DESCRIPTORS_MAX {
        if index >= entries {
            return Err(BrokenChain::Index);
        }
        let at = table.0.checked_add(DESCRIPTOR_BYTES * u64::from(index)).ok_or(BrokenChain::Unmapped)?;
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| BrokenChain::Unmapped)?;
        let address = GuestAddress(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")));
        let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        let flags = u32::from(u16::from_le_bytes(bytes[12..14].try_into().expect("two bytes")));
        let next = u16::from_le_bytes(bytes[14..].try_into().expect("two bytes"));
        if flags & VRING_DESC_F_INDIRECT != 0 {
            let whole = len.is_multiple_of(DESCRIPTOR_BYTES as u32) && len > 0;
            if is_indirect || !whole || flags & VRING_DESC_F_NEXT != 0 {
                return Err(BrokenChain::Indirect);
            }
            (table, entries, index, is_indirect) = (address, len / DESCRIPTOR_BYTES as u32, 0, true);
            continue;
        }
        if flags & VRING_DESC_F_WRITE != 0 {
            writable.push(Piece { address, len });
        } else if writable.is_empty() {
            readable.push(Piece { address, len });
        } else {
            return Err(BrokenChain::Order);
        }
        if flags & VRING_DESC_F_NEXT == 0 {
            return Ok((readable, writable));
        }
        index = u32::from(next);
    }
    Err(BrokenChain::TooLong)
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// Reads from the front of `pieces` and takes off them what was read.
fn take<M: GuestMemory>(memory: &M, pieces: &mut Vec<Piece>, into: &mut [u8]) -> Result<(), BrokenChain> {
    let mut filled = 0;
    while filled < into.len() {
        let first = pieces.first_mut().ok_or(BrokenChain::NoHeader)?;
        let len = (into.len() - filled).min(first.len as usize);
        let part = &mut into[filled..filled + len];
        memory.read_slice(part, first.address).map_err(|_| BrokenChain::Unmapped)?;
        filled += len;
        first.address = first.address.checked_add_u32(len as u32)?;
        first.len -= len as u32;
        if first.len == 0 {
            pieces.remove(0);
        }
    }
    Ok(())
}

/// Copies `pieces` to `into`, which is as long as they are together.
pub(super) fn fetch<M: GuestMemory>(
    memory: &M,
    pieces: &[Piece],
    into: &mut [u8],
) -> Result<(), BrokenChain> {
    let mut rest = into;
    for piece in pieces {
        let (part, behind) = rest.split_at_mut(piece.len as usize);
        memory.read_slice(part, piece.address).map_err(|_| BrokenChain::Unmapped)?;
        rest = behind;
    }
    Ok(())
}

/// Copies the front of `bytes` to `pieces`, as far as either goes.
pub(super) fn put<M: GuestMemory>(memory: &M, pieces: &[Piece], bytes: &[u8]) -> Result<(), BrokenChain> {
    let mut rest = bytes;
    for piece in pieces {
        let (part, behind) = rest.split_at(rest.len().min(piece.len as usize));
        memory.write_slice(part, piece.address).map_err(|_| BrokenChain::Unmapped)?;
        rest = behind;
    }
    Ok(())
}

trait CheckedAdd: Sized {
    fn checked_add_u32(self, more: u32) -> Result<Self, BrokenChain>;
}

impl CheckedAdd for GuestAddress {
    fn checked_add_u32(self, more: u32) -> Result<Self, BrokenChain> {
        self.0.checked_add(u64::from(more)).map(GuestAddress).ok_or(BrokenChain::Unmapped)
    }
}

#[cfg(test)]
mod tests;
