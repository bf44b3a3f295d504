//! A disk's replica and what is known of its blocks: what is read is checked, what is written is summed.
//!
//! A crash story: (1) a fold writes a part of a block; (2) the power goes before the block's checksum is on the disk, or
//! before the bytes are and after it; (3) the journal is opened, and the two do not go together. That is no damage: until
//! the manifest says that the replica has the fold's writes, every block that one of them is in has no say (`read.rs`), and
//! the fold is done again, over the same blocks. So the two need no order among themselves; both are synced before the
//! manifest says it.

use crate::manifest::replica_name;
use crate::page::PageBuf;
use crate::payload::ReadError;
use crate::store::{Store, StoreFile};
use crate::sums::{SUMMED_BYTES, Sums, Word, file_bytes};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use types::ByteRange;

/// The file of a replica's checksums.
pub(crate) fn sums_name(disk: &str) -> String {
    format!("replica/{disk}.sums")
}

/// Makes the file of checksums of a disk, which says nothing yet; whether there was none that is whole.
pub(crate) fn make_sums(store: &dyn Store, disk: &str, disk_bytes: u64, is_new: bool) -> io::Result<bool> {
    let file = store.open(&sums_name(disk), true)?;
    if !is_new && file.len()? == file_bytes(disk_bytes) {
        return Ok(false);
    }
    file.set_len(0)?;
    file.set_len(file_bytes(disk_bytes))?;
    file.sync_data().map(|()| true)
}

/// Makes the checksums of a disk durable: whoever gave some their words may have been killed before he could. Where that cannot
/// be, nothing that they say counts as durable.
pub(crate) fn sync_sums(store: &dyn Store, disk: &str) -> io::Result<()> {
    store.open(&sums_name(disk), false)?.sync_data()
}

/// Parts of a replica that are damaged, and what is wrong with each.
pub(crate) type Places = Vec<(ByteRange, String)>;

/// A replica that is open.
#[derive(Debug)]
pub(crate) struct Replica {
    disk: String,
    size: u64,
    data: Arc<dyn StoreFile>,
    sums: Sums,
}

/// The blocks that a range touches.
fn blocks_of(range: ByteRange) -> Range<u64> {
    range.start / SUMMED_BYTES..range.end().div_ceil(SUMMED_BYTES)
}

impl Replica {
    pub(crate) fn open(store: &dyn Store, vm: &str, disk: &str, size: u64) -> io::Result<Self> {
        let data = store.open_direct(&replica_name(disk), false)?;
        let sums = Sums::new(store.open(&sums_name(disk), false)?, vm, disk);
        Ok(Self { disk: disk.to_owned(), size, data, sums })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn data(&self) -> &dyn StoreFile {
        &*self.data
    }

    /// Whether the disk gives the first block or the last.
    pub(crate) fn answers(&self) -> bool {
        let mut block = PageBuf::zeroed(SUMMED_BYTES as usize);
        [0, self.size.div_ceil(SUMMED_BYTES).saturating_sub(1)].into_iter().any(|number| {
            let range = self.block(number);
            self.data.read_at(range.start, &mut block.as_mut_slice()[..range.len as usize]).is_ok()
        })
    }

    pub(crate) fn sums(&self) -> &Sums {
        &self.sums
    }

    pub(crate) fn block(&self, block: u64) -> ByteRange {
        let start = block * SUMMED_BYTES;
        ByteRange::new(start, SUMMED_BYTES.min(self.size - start))
    }

    /// The whole blocks around a range.
    pub(crate) fn around(&self, range: ByteRange) -> ByteRange {
        let (first, last) = (blocks_of(range).start, blocks_of(range).end - 1);
        ByteRange::new(first * SUMMED_BYTES, self.block(last).end() - first * SUMMED_BYTES)
    }

    /// Fills `buf` from `start`; below `summed_below` it is checked.
    pub(crate) fn read(&self, start: u64, buf: &mut [u8], summed_below: u64) -> Result<(), ReadError> {
        let range = ByteRange::new(start, buf.len() as u64);
        let around = self.around(range);
        let unread =
            |source| ReadError::Unread { disk: self.disk.clone(), at: around.start, len: around.len, source };
        let rotten = if around == range {
            self.data.read_at(start, buf).map_err(unread)?;
            self.rotten(start, buf, summed_below)
        } else {
            let mut whole = PageBuf::zeroed(around.len as usize);
            self.data.read_at(around.start, whole.as_mut_slice()).map_err(unread)?;
            buf.copy_from_slice(&whole.as_slice()[(start - around.start) as usize..][..buf.len()]);
            self.rotten(around.start, whole.as_slice(), summed_below)
        };
        match rotten.first() {
            None => Ok(()),
            Some(range) => Err(self.damaged(*range)),
        }
    }

    pub(crate) fn damaged(&self, range: ByteRange) -> ReadError {
        ReadError::Rotten { disk: self.disk.clone(), at: range.start, len: range.len }
    }

    pub(crate) fn unread(&self, range: ByteRange) -> String {
        format!("replica of disk {} at byte {}, {} bytes: cannot be read", self.disk, range.start, range.len)
    }

    /// The checksums of those of whole blocks of which nothing was known, or that may be in memory alone: above what was
    /// summed all are written once more, for a sync that has failed leaves what it gave up readable, and the next one says
    /// that all is well.
    pub(crate) fn fresh(&self, start: u64, bytes: &[u8], summed_below: u64) -> Vec<(u64, Word)> {
        let blocks = blocks_of(ByteRange::new(start, bytes.len() as u64));
        let words = self.sums.words(blocks.clone());
        let found = blocks.zip(words).zip(bytes.chunks(SUMMED_BYTES as usize));
        let is_fresh = |block: u64, word: Word, held: &[u8]| match word {
            Word::UNKNOWN => true,
            // It says that they are zeroes, once it says anything.
            Word::ZEROES => block * SUMMED_BYTES >= summed_below && !Word::ZEROES.allows(held),
            word => block * SUMMED_BYTES >= summed_below && word.allows(held),
        };
        let fresh = found.filter(|((block, word), held)| is_fresh(*block, *word, held));
        fresh.map(|((block, _), held)| (block, Word::of(held))).collect()
    }

    /// Which of whole blocks are not what is known of them.
    pub(crate) fn rotten(&self, start: u64, bytes: &[u8], summed_below: u64) -> Vec<ByteRange> {
        let words = self.sums.words(blocks_of(ByteRange::new(start, bytes.len() as u64)));
        let blocks = bytes.chunks(SUMMED_BYTES as usize).zip(words).enumerate();
        let is_rotten = |at: u64, block: &[u8], word: Word| {
            (word != Word::ZEROES || at < summed_below) && !word.allows(block)
        };
        let rotten = blocks.filter_map(|(number, (block, word))| {
            let at = start + number as u64 * SUMMED_BYTES;
            is_rotten(at, block, word).then(|| ByteRange::new(at, block.len() as u64))
        });
        rotten.collect()
    }

    /// Writing to one place that nobody else writes to meanwhile.
    pub(crate) fn begin(&self, summed_below: u64, is_repeated: bool) -> Writing<'_> {
        let (words, parts) = (BTreeMap::new(), BTreeMap::new());
        Writing { replica: self, summed_below, is_repeated, words, parts }
    }

    /// Makes both files durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.data.sync_data()?;
        self.sums.sync()
    }
}

/// What there was of a block that is written in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Good,
    /// It could not be read just now: nothing is known of it.
    Unread,
    /// What of it is not written is as damaged as before.
    Rotten,
    /// That, and what it holds cannot be read.
    Damaged,
}

/// A block that is written in part.
#[derive(Debug)]
struct InPart {
    before: Before,
    /// What it holds now.
    held: Vec<u8>,
    written: Vec<ByteRange>,
}

impl InPart {
    /// Takes up what is written to a part of `block`.
    fn write(&mut self, block: ByteRange, part: ByteRange, fill: impl FnOnce(&mut [u8])) {
        fill(&mut self.held[(part.start - block.start) as usize..][..part.len as usize]);
        self.written.push(part);
    }

    /// Whether all of it that was not written is known to be lost: then reading that fails whatever it holds.
    fn is_lost_elsewhere(&self, block: ByteRange, lost: &[ByteRange]) -> bool {
        let mut known: Vec<_> =
            self.written.iter().chain(lost).filter_map(|part| part.intersection(block)).collect();
        known.sort_unstable();
        let upto = known
            .iter()
            .fold(block.start, |upto, part| if part.start <= upto { upto.max(part.end()) } else { upto });
        upto == block.end()
    }
}

/// What is being written to a place of a replica.
#[derive(Debug)]
pub(crate) struct Writing<'a> {
    replica: &'a Replica,
    summed_below: u64,
    /// Some of it may have been written before, by a fold that was cut short: what a checksum says is of before that, or
    /// of after.
    is_repeated: bool,
    words: BTreeMap<u64, Word>,
    parts: BTreeMap<u64, InPart>,
}

impl Writing<'_> {
    pub(crate) fn write(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        let range = ByteRange::new(start, bytes.len() as u64);
        for block in blocks_of(range) {
            let whole = self.replica.block(block);
            let Some(part) = range.intersection(whole) else { continue };
            let bytes = &bytes[(part.start - start) as usize..][..part.len as usize];
            if part == whole {
                self.words.insert(block, Word::of(bytes));
            } else {
                self.in_part(block)?.write(whole, part, |held| held.copy_from_slice(bytes));
            }
        }
        self.replica.data.write_at(start, bytes)
    }

    /// Nothing but these parts of a range, which ascend, is written, because nobody can read or needs the rest. A fold that
    /// was cut short may have written it when that could be read.
    ///
    /// A crash story: (1) a fold writes a part of a block, and the power goes before its checksum is on the disk; (2) what it
    /// wrote rots in the redo log, and is known to be lost; (3) the fold is done again, without it, and nothing tells any more
    /// that the checksum has no say: all of the block could not be read.
    pub(crate) fn leave_out(&mut self, range: ByteRange, parts: &[ByteRange]) -> io::Result<()> {
        if !self.is_repeated {
            return Ok(());
        }
        let mut at = range.start;
        for part in parts.iter().copied().chain([ByteRange::new(range.end(), 0)]) {
            let left_out = ByteRange::new(at, part.start - at);
            if !left_out.is_empty() {
                for block in blocks_of(left_out) {
                    self.in_part(block)?;
                }
            }
            at = part.end();
        }
        Ok(())
    }

    /// Before a range is made zeroes, by `zero`.
    pub(crate) fn zero(
        &mut self,
        range: ByteRange,
        zero: impl FnOnce(&dyn StoreFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let blocks = blocks_of(range);
        let is_whole = |block: u64| {
            let whole = self.replica.block(block);
            range.start <= whole.start && whole.end() <= range.end()
        };
        let (mut first, mut past) = (blocks.start, blocks.end);
        let mut edges = Vec::new();
        if !is_whole(first) {
            edges.push(first);
            first += 1;
        }
        if past > first && !is_whole(past - 1) {
            edges.push(past - 1);
            past -= 1;
        }
        for block in edges {
            let whole = self.replica.block(block);
            if let Some(part) = range.intersection(whole) {
                self.in_part(block)?.write(whole, part, |held| held.fill(0));
            }
        }
        zero(self.replica.data())?;
        if first < past { self.replica.sums.set_zeroes(first..past) } else { Ok(()) }
    }

    /// What is known of a block that is written in part. Of a disk that gives nothing just now nobody knows, and nothing is
    /// written down.
    fn in_part(&mut self, block: u64) -> io::Result<&mut InPart> {
        let fresh = match self.parts.contains_key(&block) {
            true => None,
            false => Some(self.look_at(block)?),
        };
        Ok(self.parts.entry(block).or_insert_with(|| fresh.expect("it was looked at")))
    }

    fn look_at(&self, block: u64) -> io::Result<InPart> {
        let (replica, summed_below) = (self.replica, self.summed_below);
        let whole = replica.block(block);
        let mut held = vec![0; whole.len as usize];
        let read = replica.data.read_at(whole.start, &mut held);
        if let Err(error) = read.as_ref()
            && !replica.answers()
        {
            return Err(io::Error::new(error.kind(), replica.unread(whole)));
        }
        let is_damaged = replica.sums.words(block..block + 1) == [Word::DAMAGED]
            || (read.is_ok()
                && !self.is_repeated
                && !replica.rotten(whole.start, &held, summed_below).is_empty());
        let before = match (is_damaged, read.is_ok()) {
            (true, true) => Before::Rotten,
            (true, false) => Before::Damaged,
            (false, true) => Before::Good,
            (false, false) => Before::Unread,
        };
        Ok(InPart { before, held, written: Vec::new() })
    }

    /// Which blocks were written in part whose rest is damaged and not known to be `lost`, and what is wrong with them.
    pub(crate) fn spoilt(&self, lost: &[ByteRange]) -> Places {
        let parts = self.parts.iter().map(|(block, part)| (self.replica.block(*block), part));
        let told = parts.filter_map(|(block, part)| {
            let what = match part.before {
                Before::Good => return None,
                Before::Rotten => self.replica.damaged(block).to_string(),
                Before::Unread | Before::Damaged => self.replica.unread(block),
            };
            (!part.is_lost_elsewhere(block, lost)).then_some((block, what))
        });
        told.collect()
    }

    /// Says what the blocks hold now, where these parts are known to be `lost`; not synced.
    ///
    /// What the disk does not give of a block is written too, once all of that is known to be lost: a block is read as a whole,
    /// and with the rest of it what was written could not be read either.
    pub(crate) fn finish(mut self, lost: &[ByteRange]) -> io::Result<()> {
        for (block, part) in std::mem::take(&mut self.parts) {
            let whole = self.replica.block(block);
            let word = match part.before {
                Before::Good => Word::of(&part.held),
                Before::Rotten if part.is_lost_elsewhere(whole, lost) => Word::of(&part.held),
                Before::Unread | Before::Damaged if part.is_lost_elsewhere(whole, lost) => {
                    self.replica.data.write_at(whole.start, &part.held)?;
                    Word::of(&part.held)
                }
                Before::Rotten | Before::Damaged => Word::DAMAGED,
                Before::Unread => Word::UNKNOWN,
            };
            self.words.insert(block, word);
        }
        self.replica.sums.set(&self.words)
    }
}
