//! Streams to append: batches as a source would send them.

use batch::{Batch, BatchMeta, Codec, Kind, Record, encode_in_pieces, encode_mark};
use bytes::Bytes;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, Incarnation, WallTime, WriteSeq,
};

/// A generator of numbers that look random and are the same each time (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes that nothing compresses.
    pub(crate) fn noise(&mut self, len: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes.into()
    }
}

/// A stream in the making.
#[derive(Debug)]
pub(crate) struct Stream {
    seq: u64,
    sent: u64,
    pub(crate) codec: Codec,
    records: Vec<Record>,
}

impl Stream {
    /// Begins as an initial sync of nothing: every cut from here on is consistent.
    pub(crate) fn begin() -> Self {
        let mut stream = Self { seq: 0, sent: 0, codec: Codec::Raw, records: Vec::new() };
        stream.mark(Kind::SyncBegin, Bytes::new());
        stream.mark(Kind::SyncEnd, Bytes::new());
        stream
    }

    fn mark(&mut self, kind: Kind, payload: Bytes) {
        self.seq += 1;
        self.records.push(Record::mark(WriteSeq::from_raw(self.seq), kind, payload));
    }

    pub(crate) fn write(&mut self, start: u64, payload: Bytes) {
        self.push(Kind::Write, ByteRange::new(start, payload.len() as u64), payload);
    }

    pub(crate) fn zero(&mut self, range: ByteRange) {
        self.push(Kind::Zero, range, Bytes::new());
    }

    fn push(&mut self, kind: Kind, range: ByteRange, payload: Bytes) {
        self.seq += 1;
        let seq = WriteSeq::from_raw(self.seq);
        self.records.push(Record { seq, kind, disk: DiskIndex(0), range, payload });
    }

    pub(crate) fn checkpoint(&mut self, taken_at: WallTime) {
        let cut = WriteSeq::from_raw(self.seq);
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: CheckpointKind::Automatic,
            taken_at,
            members: 1,
            tag: String::new(),
        };
        self.mark(Kind::Checkpoint, encode_mark(&checkpoint));
    }

    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn last(&self) -> WriteSeq {
        WriteSeq::from_raw(self.seq)
    }

    /// Everything since the last batch.
    pub(crate) fn batch(&mut self) -> Batch {
        let meta = BatchMeta {
            incarnation: Incarnation::from_bytes([1; 16]),
            prev_seq: WriteSeq::from_raw(self.sent),
            watermark: WriteSeq::from_raw(self.seq),
            taken_at: WallTime(0),
        };
        self.sent = self.seq;
        let records = std::mem::take(&mut self.records);
        let encoded = encode_in_pieces(&meta, &records, self.codec);
        // Where it would lie had it come over the wire.
        let mut arrived = journal::batch_room(encoded.len());
        encoded.iter().for_each(|piece| arrived.extend_from_slice(piece));
        Batch::parse(arrived.freeze()).expect("encoded just now")
    }
}

/// Batches of a mebibyte each that hold `bytes` of noise in writes of `len` bytes at places drawn in a
/// disk of `disk_bytes`.
pub(crate) fn random_writes(
    stream: &mut Stream,
    bytes: u64,
    len: u64,
    disk_bytes: u64,
    seed: u64,
) -> Vec<Batch> {
    let mut draw = Draw::new(seed);
    let mut batches = Vec::new();
    // Noise is cut out of one long piece at drawn places: drawing all of it would take longer.
    let noise = draw.noise(16 << 20);
    let per_batch = (1 << 20) / len;
    for number in 0..bytes / len {
        let from = draw.below(noise.len() as u64 - len) as usize;
        stream.write(draw.below(disk_bytes / len) * len, noise.slice(from..from + len as usize));
        if number % per_batch == per_batch - 1 {
            batches.push(stream.batch());
        }
    }
    batches
}
