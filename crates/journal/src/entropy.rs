//! What a guest wrote between two checkpoints: how much, and how random it looks.

use batch::Batch;
use types::WallTime;

/// Bytes of a batch's first frame that are looked at.
const SAMPLE_BYTES: usize = 8 << 10;

/// Counts since the last checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    counts: Box<[u32; 256]>,
    /// When the last checkpoint was taken at which nothing was missing.
    pub(crate) last_taken_at: Option<WallTime>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { writes: 0, bytes: 0, counts: Box::new([0; 256]), last_taken_at: None }
    }
}

impl PartialEq for Tally {
    fn eq(&self, other: &Self) -> bool {
        (self.writes, self.bytes, &self.counts) == (other.writes, other.bytes, &other.counts)
    }
}

impl Eq for Tally {}

/// A sample of a batch's payload, plain; empty where it has none or does not check.
pub(crate) fn sample(batch: &Batch) -> Vec<u8> {
    let Some(frame) = batch.frames().first() else { return Vec::new() };
    let wanted = frame.plain_len.min(SAMPLE_BYTES as u32);
    let read = batch::read_payload(batch.frames(), 0, wanted, |start, len| {
        Ok::<_, batch::BatchError>(batch.bytes().slice(start as usize..(start + len) as usize))
    });
    read.map(|bytes| bytes.to_vec()).unwrap_or_default()
}

impl Tally {
    pub(crate) fn count(&mut self, sample: &[u8]) {
        for &byte in sample {
            self.counts[usize::from(byte)] += 1;
        }
    }

    /// Shannon entropy of what was sampled, in 1/4096 bit a byte; 0 where nothing was.
    pub(crate) fn entropy(&self) -> u16 {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let bits: f64 = self
            .counts
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| f64::from(count) / total as f64)
            .map(|share| -share * share.log2())
            .sum();
        (bits * 4096.0).round() as u16
    }

    /// Begins anew after a checkpoint.
    pub(crate) fn reset(&mut self) {
        (self.writes, self.bytes) = (0, 0);
        self.counts.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_tells_text_from_noise() {
        let mut tally = Tally::default();
        assert_eq!(tally.entropy(), 0);
        tally.count(b"aaaaaaaabbbbbbbb");
        assert_eq!(tally.entropy(), 4096, "one bit");
        tally.reset();
        let all: Vec<u8> = (0..=255).collect();
        tally.count(&all);
        assert_eq!(tally.entropy(), 8 * 4096, "eight bits");
    }
}
