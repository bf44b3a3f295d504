//! Covering a range: sources are asked one after the other, and each fills what is still open.

use crate::extent::Extent;
use types::{ByteRange, WriteSeq};

/// Which log bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LogKind {
    /// Writes newer than the replica.
    Redo,
    /// Before-images of what the replica has already.
    Undo,
}

impl LogKind {
    /// What a person reads.
    pub(crate) fn name(self) -> &'static str {
        match self {
            LogKind::Redo => "redo log",
            LogKind::Undo => "undo log",
        }
    }

    /// What its batches are.
    pub(crate) fn form(self) -> batch::Form {
        match self {
            LogKind::Redo => batch::Form::Stream,
            LogKind::Undo => batch::Form::Undo,
        }
    }
}

/// Where bytes of a disk come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Replica,
    Zero,
    Log { kind: LogKind, page: u64, payload_at: u32, seq: WriteSeq },
}

/// A range of a disk and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: ByteRange,
    pub(crate) origin: Origin,
}

impl Piece {
    /// A part of it.
    pub(crate) fn part(self, range: ByteRange) -> Self {
        let origin = match self.origin {
            Origin::Log { kind, page, payload_at, seq } => {
                let payload_at = payload_at + (range.start - self.range.start) as u32;
                Origin::Log { kind, page, payload_at, seq }
            }
            other @ (Origin::Replica | Origin::Zero) => other,
        };
        Self { range, origin }
    }
}

/// A range of which some parts have an origin already and others not yet.
#[derive(Debug)]
pub(crate) struct Cover {
    open: Vec<ByteRange>,
    pieces: Vec<Piece>,
}

impl Cover {
    pub(crate) fn of(range: ByteRange) -> Self {
        Self { open: vec![range], pieces: Vec::new() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// What has no origin yet, in ascending order.
    pub(crate) fn open(&self) -> &[ByteRange] {
        &self.open
    }

    /// Gives to `extent` what of its range is still open.
    pub(crate) fn take(&mut self, extent: &Extent, kind: LogKind) {
        let first = self.open.partition_point(|open| open.end() <= extent.range.start);
        let past = self.open.partition_point(|open| open.start < extent.range.end());
        if first >= past {
            return;
        }
        let mut left = Vec::new();
        for open in &self.open[first..past] {
            let hit = open.intersection(extent.range).expect("it overlaps");
            let origin = match extent.payload {
                None => Origin::Zero,
                Some(place) => Origin::Log {
                    kind,
                    page: place.page,
                    payload_at: place.at + (hit.start - extent.range.start) as u32,
                    seq: extent.seq,
                },
            };
            self.pieces.push(Piece { range: hit, origin });
            if open.start < hit.start {
                left.push(ByteRange::new(open.start, hit.start - open.start));
            }
            if hit.end() < open.end() {
                left.push(ByteRange::new(hit.end(), open.end() - hit.end()));
            }
        }
        self.open.splice(first..past, left);
    }

    /// All pieces in ascending order without holes; what nobody took is the replica's.
    pub(crate) fn finish(mut self) -> Vec<Piece> {
        self.pieces.extend(self.open.into_iter().map(|range| Piece { range, origin: Origin::Replica }));
        self.pieces.sort_unstable_by_key(|piece| piece.range.start);
        self.pieces
    }

    /// The pieces that were taken, in ascending order.
    pub(crate) fn taken(mut self) -> Vec<Piece> {
        self.pieces.sort_unstable_by_key(|piece| piece.range.start);
        self.pieces
    }
}
