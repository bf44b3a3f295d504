//! The batch: the unit of the stream and of the journal.
//!
//! A batch is a table of records and the frames that hold their payload. It is built once, at the
//! source, and the very same bytes go over the wire and into the journal; nobody between the two
//! decompresses it. This room owns those bytes (`docs/formats/batch.md`) and the rule that whatever
//! does not check is an error that names the place, never a panic.
//!
//! It stands apart because both `replication` and `journal` read batches and neither may know the
//! other (`docs/design/2026-11-21-batch-crate.md`).

mod block_hash;
mod crc;
mod decode;
mod encode;
mod frames;
mod layout;
mod mark;
mod pieces;
mod plain;
mod record;

pub use block_hash::{BLOCK_HASH_BYTES, BlockHash, is_zero};
pub use decode::{Batch, BatchError, Entry};
pub use encode::{BatchMeta, crc_with_batch, encode, encode_in_pieces, encode_undo, following};
pub use frames::{Codec, FrameEntry, FrameError, open_frame, read_payload};
pub use layout::{BLOCK_BYTES, Form, HEADER_BYTES, Header, peek_length};
pub use mark::{MarkError, decode_mark, encode_mark};
pub use pieces::Pieces;
pub use record::{Kind, Record};

#[cfg(test)]
mod tests;
