//! A stream for tests: batches as a source would send them, and the disk they describe.
#![allow(clippy::unwrap_used, dead_code, reason = "shared by several test programs")]

pub(crate) mod hooked;

use batch::{Batch, BatchMeta, Codec, Kind, Record, encode, encode_mark};
use bytes::Bytes;
use journal::{
    AppendError, AppendMeta, Appended, CheckpointQuery, Journal, Mode, Settings, Store, Thinning, Upkeep,
};
use sim::SimStore;
use std::sync::Arc;
use std::time::Duration;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, DiskSpec, Epoch, Incarnation, VmId,
    WallTime, WriteSeq,
};

pub(crate) const DISK_BYTES: u64 = 5 << 18;
pub(crate) const SMALL: Settings = Settings {
    history: Duration::from_secs(3600),
    bytes_soft: 0,
    bytes_hard: 0,
    segment_bytes: 1 << 20,
    mode: Mode::RollForward,
    thinning: Thinning { all: Duration::from_secs(86_400), minutely: Duration::from_secs(604_800) },
    tagged_history: Duration::ZERO,
    let_go: None,
    is_locked: false,
};

/// The source of a stream, with every state its disk ever had at a cut.
#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) disk: Vec<u8>,
    pub(crate) states: Vec<(WriteSeq, Vec<u8>)>,
    records: Vec<Record>,
    seq: u64,
    sent: u64,
}

impl Stream {
    pub(crate) fn begin() -> Self {
        let mut stream = Self {
            disk: vec![0; DISK_BYTES as usize],
            states: Vec::new(),
            records: Vec::new(),
            seq: 0,
            sent: 0,
        };
        stream.mark(Kind::SyncBegin);
        stream.mark(Kind::SyncEnd);
        stream
    }

    fn next(&mut self) -> WriteSeq {
        self.seq += 1;
        WriteSeq::from_raw(self.seq)
    }

    fn mark(&mut self, kind: Kind) {
        let seq = self.next();
        self.records.push(Record::mark(seq, kind, Bytes::new()));
    }

    /// Other VMs of the group draw sequences; what is at or below the last one is told with the next batch.
    pub(crate) fn pass(&mut self, count: u64) -> WriteSeq {
        self.seq += count;
        WriteSeq::from_raw(self.seq)
    }

    /// The other side has said that it has everything up to here, and no more.
    pub(crate) fn goes_on_behind(&mut self, durable: WriteSeq) {
        self.sent = durable.raw();
    }

    /// Forgets what was drawn above a sequence.
    pub(crate) fn set_back_to(&mut self, seq: WriteSeq) {
        self.seq = seq.raw();
    }

    /// From `begin` on writes may be missing.
    pub(crate) fn begin_sync_from(&mut self, begin: WriteSeq) {
        self.mark(Kind::SyncBegin);
        self.records.last_mut().unwrap().range = ByteRange::new(begin.raw(), 0);
    }

    pub(crate) fn write(&mut self, start: u64, bytes: &[u8]) {
        let range = ByteRange::new(start, bytes.len() as u64);
        let seq = self.next();
        self.disk[start as usize..range.end() as usize].copy_from_slice(bytes);
        let payload = Bytes::copy_from_slice(bytes);
        self.records.push(Record { seq, kind: Kind::Write, disk: DiskIndex(0), range, payload });
    }

    /// A write was left out, since the next one goes over it.
    pub(crate) fn leave_out(&mut self) {
        self.mark(Kind::LeftOut);
        let left_out = self.records.last_mut().unwrap();
        left_out.range = ByteRange::new(left_out.seq.next().raw(), 0);
    }

    pub(crate) fn zero(&mut self, kind: Kind, range: ByteRange) {
        let seq = self.next();
        self.disk[range.start as usize..range.end() as usize].fill(0);
        self.records.push(Record { seq, kind, disk: DiskIndex(0), range, payload: Bytes::new() });
    }

    /// A sync of the whole disk: its blocks as they are now, between the marks of a gap.
    pub(crate) fn resync(&mut self) {
        self.begin_sync();
        self.copy_all();
        self.end_sync();
    }

    /// From here on writes may be missing.
    pub(crate) fn begin_sync(&mut self) {
        self.mark(Kind::SyncBegin);
        let begin = self.records.last_mut().unwrap();
        begin.range = ByteRange::new(begin.seq.raw(), 0);
    }

    /// A sync begins, and its source says that writes from `raw` on may be missing.
    pub(crate) fn mark_missing_from(&mut self, raw: u64) {
        self.mark(Kind::SyncBegin);
        self.records.last_mut().unwrap().range = ByteRange::new(raw, 0);
    }

    pub(crate) fn copy_all(&mut self) {
        for range in ByteRange::new(0, DISK_BYTES).split_at_multiples(64 << 10) {
            self.copy(range);
        }
    }

    /// A block of a sync, or several.
    pub(crate) fn copy(&mut self, range: ByteRange) {
        let seq = self.next();
        let bytes = &self.disk[range.start as usize..range.end() as usize];
        let payload = Bytes::copy_from_slice(bytes);
        self.records.push(Record { seq, kind: Kind::Sync, disk: DiskIndex(0), range, payload });
    }

    /// A sync of those blocks that cannot be read at the other side, or are not equal there.
    pub(crate) fn delta_sync(&mut self, journal: &Journal) {
        self.begin_sync();
        for range in ByteRange::new(0, DISK_BYTES).split_at_multiples(64 << 10) {
            let mut theirs = vec![0; range.len as usize];
            let read = journal.read_at(DiskIndex(0), WriteSeq::MAX, range.start, &mut theirs);
            if read.is_err() || theirs != self.disk[range.start as usize..range.end() as usize] {
                self.copy(range);
            }
        }
        self.end_sync();
    }

    pub(crate) fn end_sync(&mut self) {
        self.mark(Kind::SyncEnd);
    }

    /// A checkpoint of the disk as it is now.
    pub(crate) fn checkpoint(&mut self) -> WriteSeq {
        self.tagged_checkpoint("")
    }

    /// The same, with an operator's words where there are some.
    pub(crate) fn tagged_checkpoint(&mut self, tag: &str) -> WriteSeq {
        let cut = self.next();
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: if tag.is_empty() { CheckpointKind::Automatic } else { CheckpointKind::Tagged },
            taken_at: WallTime(cut.raw() as i64),
            members: 1,
            tag: tag.to_owned(),
        };
        let seq = self.next();
        self.records.push(Record::mark(seq, Kind::Checkpoint, encode_mark(&checkpoint)));
        self.states.push((cut, self.disk.clone()));
        cut
    }

    /// Everything since the last batch, as one.
    pub(crate) fn batch(&mut self) -> Batch {
        let meta = BatchMeta {
            incarnation: Incarnation::from_bytes([1; 16]),
            prev_seq: WriteSeq::from_raw(self.sent),
            watermark: WriteSeq::from_raw(self.seq),
            taken_at: WallTime(0),
        };
        let batch = Batch::parse(encode(&meta, &std::mem::take(&mut self.records), Codec::Raw)).unwrap();
        self.sent = batch.header().last_seq.raw();
        batch
    }

    pub(crate) fn sent(&self) -> WriteSeq {
        WriteSeq::from_raw(self.sent)
    }

    /// What the disk was at the newest checkpoint at or below a cut, after which nothing was written.
    pub(crate) fn states_at(&self, cut: WriteSeq) -> Vec<u8> {
        let at_or_below = |(at, _): &&(WriteSeq, Vec<u8>)| *at <= cut;
        self.states.iter().rev().find(at_or_below).unwrap().1.clone()
    }
}

pub(crate) fn create(store: &SimStore, settings: Settings) -> Journal {
    create_in(Arc::new(store.clone()), settings)
}

pub(crate) fn create_in(store: Arc<dyn Store>, settings: Settings) -> Journal {
    let disks = [DiskSpec { name: "vda".into(), size_bytes: DISK_BYTES }];
    Journal::create(store, VmId::from_bytes([1; 16]), "web", &disks, Epoch::FIRST, settings).unwrap()
}

/// Appends one batch.
pub(crate) fn append(journal: &Journal, batch: Batch, at_seconds: u64, incarnation: u8) {
    if batch.entries().first().is_some_and(|entry| entry.kind == Kind::SyncBegin) {
        // Whoever begins anew was told to.
        journal.begin_stream();
    }
    try_append(journal, batch, at_seconds, incarnation).unwrap();
}

pub(crate) fn try_append(
    journal: &Journal,
    batch: Batch,
    at_seconds: u64,
    incarnation: u8,
) -> Result<Appended, AppendError> {
    let received_at = WallTime(at_seconds as i64 * 1_000_000);
    let meta = AppendMeta { epoch: Epoch::FIRST, received_at, entropy: [incarnation; 16] };
    journal.append(vec![batch], meta)
}

/// Lets upkeep go on until it finds nothing to do.
pub(crate) fn keep_up(journal: &Journal, at_seconds: u64) {
    let now = WallTime(at_seconds as i64 * 1_000_000);
    while journal.keep_up(&Upkeep::plain(now, [9; 16])).unwrap().more {}
}

/// The disk as of a cut.
pub(crate) fn read_all(journal: &Journal, cut: WriteSeq) -> Result<Vec<u8>, journal::ReadError> {
    let mut found = vec![0; DISK_BYTES as usize];
    journal.read_at(DiskIndex(0), cut, 0, &mut found).map(|()| found)
}

/// Cuts of all checkpoints that can be opened.
pub(crate) fn cuts(journal: &Journal) -> Vec<WriteSeq> {
    let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    let found = journal.checkpoints(&query);
    assert_eq!(found.unread, Vec::new());
    found.rows.iter().map(|facts| facts.checkpoint.cut).collect()
}

/// Every checkpoint that can be opened shows the disk of its moment; how many there are of which nothing is damaged. Of the
/// others as many bytes cannot be read as they say.
pub(crate) fn compare(journal: &Journal, states: &[(WriteSeq, Vec<u8>)]) -> usize {
    let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    let (mut whole, found) = (0, journal.checkpoints(&query));
    assert_eq!(found.unread, Vec::new());
    for facts in found.rows {
        let cut = facts.checkpoint.cut;
        let (_, expected) = states.iter().find(|(at, _)| *at == cut).unwrap();
        match facts.damaged_bytes {
            0 => assert!(read_all(journal, cut).unwrap() == *expected, "checkpoint {cut} is not as it was"),
            bytes => assert_eq!(unread(journal, cut, expected).len() as u64, bytes, "checkpoint {cut}"),
        }
        whole += usize::from(facts.damaged_bytes == 0);
    }
    whole
}

/// Which bytes cannot be read as of a cut; all others are as they were.
pub(crate) fn unread(journal: &Journal, cut: WriteSeq, expected: &[u8]) -> Vec<u64> {
    fn look(journal: &Journal, cut: WriteSeq, expected: &[u8], range: ByteRange, unread: &mut Vec<u64>) {
        let mut found = vec![0; range.len as usize];
        match journal.read_at(DiskIndex(0), cut, range.start, &mut found) {
            Ok(()) => assert!(
                found == expected[range.start as usize..range.end() as usize],
                "{range:?} of checkpoint {cut} is given out wrong"
            ),
            Err(_) if range.len == 1 => unread.push(range.start),
            Err(_) => {
                let half = range.len / 2;
                look(journal, cut, expected, ByteRange::new(range.start, half), unread);
                let rest = ByteRange::new(range.start + half, range.len - half);
                look(journal, cut, expected, rest, unread);
            }
        }
    }
    let mut unread = Vec::new();
    look(journal, cut, expected, ByteRange::new(0, expected.len() as u64), &mut unread);
    unread
}
