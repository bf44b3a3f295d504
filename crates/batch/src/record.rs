//! What one record says: a write, a piece of a sync, or a mark in the stream.

use bytes::Bytes;
use types::{ByteRange, DiskIndex, WriteSeq};

/// What a record does. The numbers stand in files and messages; zero is never valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A guest write with its bytes.
    Write = 1,
    /// A guest write of zeroes, or one found to be all zeroes: no bytes.
    Zero = 2,
    /// The guest gave the range up; it reads as zeroes from here on.
    Discard = 3,
    /// Bytes of a sync: the disk as it stood at this sequence.
    Sync = 4,
    /// Zeroes of a sync.
    SyncZero = 5,
    /// A checkpoint's mark, with the checkpoint as payload.
    Checkpoint = 6,
    /// From here on writes may be missing: no cut at or above is consistent until `SyncEnd`.
    SyncBegin = 7,
    /// Everything missing since `SyncBegin` has been sent: cuts from here on are consistent again.
    SyncEnd = 8,
    /// Stands for a guest write that was left out, because later ones overwrite all of it before the cut that
    /// `range` begins with: from here on up to that cut only checkpoints are consistent.
    LeftOut = 9,
}

impl Kind {
    pub(crate) fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Kind::Write,
            2 => Kind::Zero,
            3 => Kind::Discard,
            4 => Kind::Sync,
            5 => Kind::SyncZero,
            6 => Kind::Checkpoint,
            7 => Kind::SyncBegin,
            8 => Kind::SyncEnd,
            9 => Kind::LeftOut,
            _ => return None,
        })
    }

    /// The word for this kind in listings.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Write => "write",
            Kind::Zero => "zero",
            Kind::Discard => "discard",
            Kind::Sync => "sync",
            Kind::SyncZero => "sync-zero",
            Kind::Checkpoint => "checkpoint",
            Kind::SyncBegin => "sync-begin",
            Kind::SyncEnd => "sync-end",
            Kind::LeftOut => "left-out",
        }
    }

    /// Whether the record changes the disk.
    pub fn changes_disk(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero | Kind::Discard | Kind::Sync | Kind::SyncZero)
    }

    /// Whether the record brings payload bytes with it.
    pub fn has_payload(self) -> bool {
        matches!(self, Kind::Write | Kind::Sync | Kind::Checkpoint)
    }

    /// Whether the record is a guest's own write, of bytes or zeroes.
    pub fn is_guest_write(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero | Kind::Discard)
    }
}

/// One record with its payload, as the splitter captured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub seq: WriteSeq,
    pub kind: Kind,
    pub disk: DiskIndex,
    /// The bytes of the disk it changes; empty for marks.
    pub range: ByteRange,
    /// As long as `range` for `Write` and `Sync`, the encoded checkpoint for `Checkpoint`, else empty.
    pub payload: Bytes,
}

impl Record {
    /// A mark that changes nothing on any disk.
    pub fn mark(seq: WriteSeq, kind: Kind, payload: Bytes) -> Self {
        Self { seq, kind, disk: DiskIndex(0), range: ByteRange::new(0, 0), payload }
    }
}
