//! CRC-32C of bytes whose parts have been summed already.
//!
//! For two strings `crc(A‖B) = shift(crc(A), len(B)) ⊕ crc(B)`, where the shift by a length is a linear map
//! on 32 bits. For the two lengths that a batch is made of, its blocks and its frames, the map is kept as
//! four tables, so that a sum is four look-ups instead of a pass over the bytes.

use crate::layout::BLOCK_BYTES;
use std::sync::LazyLock;
use types::limits::FRAME_BYTES;

/// The shift by one length.
pub(crate) struct Shift([[u32; 256]; 4]);

pub(crate) static BY_BLOCK: LazyLock<Shift> = LazyLock::new(|| Shift::by(BLOCK_BYTES));
pub(crate) static BY_FRAME: LazyLock<Shift> = LazyLock::new(|| Shift::by(FRAME_BYTES));

impl Shift {
    fn by(len: usize) -> Self {
        let mut tables = [[0; 256]; 4];
        for (place, table) in tables.iter_mut().enumerate() {
            for (byte, entry) in table.iter_mut().enumerate() {
                *entry = crc32c::crc32c_combine((byte as u32) << (8 * place), 0, len);
            }
        }
        Self(tables)
    }

    /// The sum of `before` with a part of this length behind it, whose own sum is `part`.
    pub(crate) fn join(&self, before: u32, part: u32) -> u32 {
        let [a, b, c, d] = before.to_le_bytes().map(usize::from);
        self.0[0][a] ^ self.0[1][b] ^ self.0[2][c] ^ self.0[3][d] ^ part
    }
}

/// The sum of `bytes`, which begin with the block that `blocks` begin with.
pub(crate) fn of_run(bytes: &[u8], blocks: &[u32]) -> u32 {
    let whole = bytes.len() / BLOCK_BYTES;
    let crc = blocks[..whole].iter().fold(0, |crc, &block| BY_BLOCK.join(crc, block));
    crc32c::crc32c_append(crc, &bytes[whole * BLOCK_BYTES..])
}

/// The sum of `len` bytes of which the blocks' sums are `blocks`, the last block perhaps shorter.
pub(crate) fn of_frame(len: usize, blocks: &[u32]) -> u32 {
    let (whole, rest) = blocks.split_at(len / BLOCK_BYTES);
    let crc = whole.iter().fold(0, |crc, &block| BY_BLOCK.join(crc, block));
    rest.iter().fold(crc, |crc, &block| crc32c::crc32c_combine(crc, block, len % BLOCK_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_sums_is_the_sum() {
        let bytes: Vec<u8> = (0..3 * FRAME_BYTES + 777).map(|at| ((at * at) >> 3) as u8).collect();
        let blocks: Vec<u32> = bytes.chunks(BLOCK_BYTES).map(crc32c::crc32c).collect();
        assert_eq!(of_frame(bytes.len(), &blocks), crc32c::crc32c(&bytes));
        for len in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, FRAME_BYTES + 5, bytes.len()] {
            assert_eq!(of_run(&bytes[..len], &blocks), crc32c::crc32c(&bytes[..len]), "{len}");
        }
        let head = crc32c::crc32c(b"head");
        let joined = BY_FRAME.join(head, crc32c::crc32c(&bytes[..FRAME_BYTES]));
        assert_eq!(joined, crc32c::crc32c_append(head, &bytes[..FRAME_BYTES]));
    }
}
