//! The payload of a `Checkpoint` record.
//!
//! ```text
//! 0   u64  id            8   u64  cut          16  i64  taken_at (microseconds since 1970)
//! 24  u16  members       26  u8   kind (1 automatic, 2 tagged)   27  u8  reserved
//! 28  u16  tag length    30  ..   tag, UTF-8
//! ```

use bytes::Bytes;
use types::limits::TAG_BYTES_MAX;
use types::{Checkpoint, CheckpointId, CheckpointKind, WallTime, WriteSeq};

const FIXED_BYTES: usize = 30;

/// A checkpoint record whose payload is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint mark: {what}")]
pub struct MarkError {
    what: &'static str,
}

/// The payload of a checkpoint's record. The tag is cut at its limit.
pub fn encode_mark(checkpoint: &Checkpoint) -> Bytes {
    let tag = &checkpoint.tag.as_bytes()[..checkpoint.tag.floor_char_boundary(TAG_BYTES_MAX)];
    let mut out = Vec::with_capacity(FIXED_BYTES + tag.len());
    out.extend_from_slice(&checkpoint.id.0.raw().to_le_bytes());
    out.extend_from_slice(&checkpoint.cut.raw().to_le_bytes());
    out.extend_from_slice(&checkpoint.taken_at.0.to_le_bytes());
    out.extend_from_slice(&checkpoint.members.to_le_bytes());
    out.push(match checkpoint.kind {
        CheckpointKind::Automatic => 1,
        CheckpointKind::Tagged => 2,
    });
    out.push(0);
    out.extend_from_slice(&(tag.len() as u16).to_le_bytes());
    out.extend_from_slice(tag);
    out.into()
}

/// Reads what [`encode_mark`] wrote.
///
/// # Errors
/// [`MarkError`] where the bytes are something else.
pub fn decode_mark(bytes: &[u8]) -> Result<Checkpoint, MarkError> {
    let refuse = |what| MarkError { what };
    if bytes.len() < FIXED_BYTES {
        return Err(refuse("too short"));
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let kind = match bytes[26] {
        1 => CheckpointKind::Automatic,
        2 => CheckpointKind::Tagged,
        _ => return Err(refuse("unknown kind")),
    };
    let tag_len = usize::from(u16::from_le_bytes([bytes[28], bytes[29]]));
    if tag_len > TAG_BYTES_MAX || bytes.len() != FIXED_BYTES + tag_len {
        return Err(refuse("its length does not fit its tag"));
    }
    Ok(Checkpoint {
        id: CheckpointId(WriteSeq::from_raw(number(0))),
        cut: WriteSeq::from_raw(number(8)),
        kind,
        taken_at: WallTime(number(16) as i64),
        members: u16::from_le_bytes([bytes[24], bytes[25]]),
        tag: std::str::from_utf8(&bytes[FIXED_BYTES..])
            .map_err(|_| refuse("its tag is not UTF-8"))?
            .to_owned(),
    })
}
