//! What a guest wrote between two checkpoints: how much, and how random it looks.

use batch::Batch;
use types::WallTime;

/// Bytes of a batch that are looked at, from the first one a guest wrote on, within one frame.
const SAMPLE_BYTES: u32 = 8 << 10;

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

/// A sample of what guests wrote in a batch, plain; empty where they wrote no data or it does not check. What a sync
/// copies, and the words of checkpoints, are nobody's writes.
pub(crate) fn sample(batch: &Batch) -> Vec<u8> {
    let entries = batch.entries().iter();
    let mut written = entries.filter(|entry| entry.kind.is_guest_write() && entry.payload_len > 0).peekable();
    let Some(begin) = written.peek().map(|entry| entry.payload_at) else { return Vec::new() };
    let mut frame_end = 0;
    for frame in batch.frames() {
        frame_end += frame.plain_len;
        if frame_end > begin {
            break;
        }
    }
    let len = frame_end.saturating_sub(begin).min(SAMPLE_BYTES);
    let read = batch::read_payload(batch.frames(), begin, len, |start, len| {
        Ok::<_, batch::BatchError>(batch.bytes().slice(start as usize..(start + len) as usize))
    });
    let Ok(bytes) = read else { return Vec::new() };
    // Payloads lie one behind the other, others' between them.
    let within = |at: u32| (at.saturating_sub(begin) as usize).min(bytes.len());
    written
        .take_while(|entry| within(entry.payload_at) < bytes.len())
        .flat_map(|entry| &bytes[within(entry.payload_at)..within(entry.payload_at + entry.payload_len)])
        .copied()
        .collect()
}

impl Tally {
    pub(crate) fn count(&mut self, sample: &[u8]) {
        for &byte in sample {
            self.counts[usize::from(byte)] += 1;
        }
    }

    /// Shannon entropy of what was sampled, in 1/4096 bit a byte; none where nothing was.
    pub(crate) fn entropy(&self) -> Option<u16> {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        if total == 0 {
            return None;
        }
        let bits: f64 = self
            .counts
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| f64::from(count) / total as f64)
            .map(|share| -share * share.log2())
            .sum();
        Some((bits * 4096.0).round() as u16)
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
    use batch::{BatchMeta, Codec, Kind, Record, encode};
    use types::{ByteRange, DiskIndex, Incarnation, WriteSeq};

    #[test]
    fn entropy_tells_text_from_noise() {
        let mut tally = Tally::default();
        assert_eq!(tally.entropy(), None, "unknown is not 0");
        tally.count(b"aaaaaaaabbbbbbbb");
        assert_eq!(tally.entropy(), Some(4096), "one bit");
        tally.reset();
        let all: Vec<u8> = (0..=255).collect();
        tally.count(&all);
        assert_eq!(tally.entropy(), Some(8 * 4096), "eight bits");
    }

    #[test]
    fn only_what_guests_wrote_is_sampled() {
        let record = |seq, kind, byte: u8, len: usize| Record {
            seq: WriteSeq::from_raw(seq),
            kind,
            disk: DiskIndex(0),
            range: ByteRange::new(seq << 16, len as u64),
            payload: vec![byte; len].into(),
        };
        let sampled = |records: &[Record]| {
            let meta = BatchMeta {
                prev_seq: WriteSeq::ZERO,
                watermark: records.last().unwrap().seq,
                incarnation: Incarnation::from_bytes([1; 16]),
                taken_at: WallTime(0),
            };
            sample(&Batch::parse(encode(&meta, records, Codec::Raw)).unwrap())
        };
        let mark =
            Record::mark(WriteSeq::from_raw(1), Kind::Checkpoint, b"words of a checkpoint".to_vec().into());
        assert!(sampled(&[mark.clone(), record(2, Kind::Sync, 7, 4096)]).is_empty());
        let (copied, written) = (record(3, Kind::Sync, 7, 70 << 10), record(4, Kind::Write, 9, 1000));
        let more = record(6, Kind::Write, 8, 1000);
        let found = sampled(&[mark, copied, written, record(5, Kind::Sync, 7, 500), more]);
        assert_eq!(found, [vec![9; 1000], vec![8; 1000]].concat());
        assert_eq!(sampled(&[record(2, Kind::Write, 9, 128 << 10)]), vec![9; 8 << 10]);
    }
}
