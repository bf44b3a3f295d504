//! Bytes that lie in several places, to be written one behind the other.

use bytes::{Bytes, BytesMut};

/// Shorter pieces are copied together: a piece costs more than copying as much.
const PIECE_BYTES_MIN: usize = 4096;

/// Bytes in pieces. Two are equal where their bytes are.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    pieces: Vec<Bytes>,
    len: usize,
}

impl Pieces {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// All bytes in one place; copied where they are not already.
    pub fn joined(&self) -> Bytes {
        match &self.pieces[..] {
            [one] => one.clone(),
            pieces => {
                let mut joined = BytesMut::with_capacity(self.len);
                pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), pieces: vec![bytes] }
    }
}

impl PartialEq for Pieces {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.joined() == other.joined()
    }
}

impl Eq for Pieces {}

/// Puts pieces one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Gatherer {
    pieces: Pieces,
    /// What is copied together until a longer piece comes.
    short: BytesMut,
}

impl Gatherer {
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.pieces.len += piece.len();
        if piece.len() < PIECE_BYTES_MIN {
            self.short.extend_from_slice(&piece);
        } else {
            self.flush();
            self.pieces.pieces.push(piece);
        }
    }

    fn flush(&mut self) {
        if !self.short.is_empty() {
            self.pieces.pieces.push(self.short.split().freeze());
        }
    }

    pub(crate) fn finish(mut self) -> Pieces {
        self.flush();
        self.pieces
    }
}
