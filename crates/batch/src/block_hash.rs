//! What a block holds, in 32 bytes: two sides that have the same hash have the same block.

use std::fmt;
use std::sync::LazyLock;
use types::limits::BLOCK_BYTES;

/// BLAKE3 of a block of a disk (64 KiB, the last one perhaps shorter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

/// Bytes of a hash.
pub const BLOCK_HASH_BYTES: usize = 32;

static OF_ZEROES: LazyLock<BlockHash> =
    LazyLock::new(|| BlockHash(*blake3::hash(&[0; BLOCK_BYTES as usize]).as_bytes()));

impl BlockHash {
    /// The hash of a block's bytes. Zeroes are recognised, not hashed.
    pub fn of(block: &[u8]) -> Self {
        if is_zero(block) {
            return Self::of_zeroes(block.len());
        }
        Self(*blake3::hash(block).as_bytes())
    }

    /// The hash of a block of `len` zeroes, without a look at them.
    pub fn of_zeroes(len: usize) -> Self {
        if len == BLOCK_BYTES as usize {
            return *OF_ZEROES;
        }
        Self(*blake3::hash(&vec![0; len]).as_bytes())
    }

    /// The hashes of all blocks of a run that begins at a block's beginning.
    pub fn of_run(run: &[u8]) -> Vec<Self> {
        run.chunks(BLOCK_BYTES as usize).map(Self::of).collect()
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_have_the_hash_that_hashing_them_gives() {
        for len in [512, BLOCK_BYTES as usize] {
            let plain = BlockHash(*blake3::hash(&vec![0; len]).as_bytes());
            assert_eq!(BlockHash::of(&vec![0; len]), plain);
            assert_eq!(BlockHash::of_zeroes(len), plain);
        }
        assert_ne!(BlockHash::of(&[1; 512]), BlockHash::of_zeroes(512));
    }
}
