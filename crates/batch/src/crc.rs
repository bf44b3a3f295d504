//! CRC-32C of bytes whose parts have been summed already.
//!
//! For two strings `crc(A‖B) = shift(crc(A), len(B)) ⊕ crc(B)`, where the shift by a length is a linear map on 32 bits.
//! For each power of two the map is kept as four tables, so that a part is joined by four look-ups for each bit of its
//! length instead of a pass over its bytes.

use crate::layout::BLOCK_BYTES;
use std::sync::LazyLock;
use types::limits::FRAME_BYTES;

/// Lengths have fewer bits: the longest part is a frame.
const LEN_BITS: usize = FRAME_BYTES.ilog2() as usize + 1;

static SHIFTS: LazyLock<Vec<Shift>> = LazyLock::new(|| {
    let by_a_byte = Shift::of(|bit| crc32c::crc32c_combine(bit, 0, 1));
    std::iter::successors(Some(by_a_byte), |half| Some(Shift::of(|bit| half.apply(half.apply(bit)))))
        .take(LEN_BITS)
        .collect()
});

/// The shift by one length.
struct Shift([[u32; 256]; 4]);

impl Shift {
    /// The linear map that takes each single bit to `image` of it.
    fn of(image: impl Fn(u32) -> u32) -> Self {
        let mut tables = [[0; 256]; 4];
        for (place, table) in tables.iter_mut().enumerate() {
            for byte in 1..table.len() {
                let low = byte & byte.wrapping_neg();
                table[byte] = match byte == low {
                    true => image((byte as u32) << (8 * place)),
                    false => table[low] ^ table[byte ^ low],
                };
            }
        }
        Self(tables)
    }

    fn apply(&self, crc: u32) -> u32 {
        let [a, b, c, d] = crc.to_le_bytes().map(usize::from);
        self.0[0][a] ^ self.0[1][b] ^ self.0[2][c] ^ self.0[3][d]
    }
}

/// The sum of `before` with a part of `len` bytes behind it, at most a frame, whose own sum is `part`.
pub(crate) fn join(before: u32, part: u32, len: usize) -> u32 {
    assert!(len <= FRAME_BYTES, "a part of {len} bytes");
    let shifts = SHIFTS.iter().enumerate().filter(|(bit, _)| len >> bit & 1 == 1);
    shifts.fold(before, |crc, (_, shift)| shift.apply(crc)) ^ part
}

/// The sum of `bytes`, which begin with the block that `blocks` begin with.
pub(crate) fn of_run(bytes: &[u8], blocks: &[u32]) -> u32 {
    let whole = bytes.len() / BLOCK_BYTES;
    let crc = blocks[..whole].iter().fold(0, |crc, &block| join(crc, block, BLOCK_BYTES));
    crc32c::crc32c_append(crc, &bytes[whole * BLOCK_BYTES..])
}

/// The sum of `len` bytes of which the blocks' sums are `blocks`, the last block perhaps shorter.
pub(crate) fn of_frame(len: usize, blocks: &[u32]) -> u32 {
    let lens = (0..len).step_by(BLOCK_BYTES).map(|at| BLOCK_BYTES.min(len - at));
    blocks.iter().zip(lens).fold(0, |crc, (&block, len)| join(crc, block, len))
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
        for len in [0, 1, 2, 3, 77, BLOCK_BYTES - 1, BLOCK_BYTES, 50_000, FRAME_BYTES - 1, FRAME_BYTES] {
            let joined = join(head, crc32c::crc32c(&bytes[..len]), len);
            assert_eq!(joined, crc32c::crc32c_append(head, &bytes[..len]), "{len}");
        }
    }
}
