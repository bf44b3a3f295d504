//! What of a simulated disk rots: a byte changes, a page holds what was not written there, or is not given any more until
//! it is written anew. Of each file that has rotted it is known what it would hold.

use super::{Content, PAGE, SECTOR, SimStore};
use std::{fmt, io};

/// What becomes of a page.
#[derive(Clone)]
pub enum Decay {
    /// Its byte there is another one.
    Flip(usize),
    /// It holds this.
    Holds(Vec<u8>),
    /// It cannot be read.
    Unread,
}

impl fmt::Debug for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flip(at) => write!(f, "its byte {at} is another one"),
            Self::Holds(bytes) if batch::is_zero(bytes) => f.write_str("it holds zeroes"),
            Self::Holds(_) => f.write_str("it holds another page"),
            Self::Unread => f.write_str("it cannot be read"),
        }
    }
}

impl SimStore {
    /// Changes one byte of a file as it lies on the disk; false where it has not so many.
    pub fn rot(&self, name: &str, at: u64) -> bool {
        let mut disk = self.lock();
        let Some(&file) = disk.names.get(name) else { return false };
        let content = disk.files.get_mut(&file).expect("a name's file exists");
        let Some(byte) = content.now.get_mut(at as usize) else { return false };
        *byte ^= 0x20;
        content.durable = content.now.clone();
        true
    }

    /// What a file holds.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(name).map(|file| disk.files[file].now.clone())
    }

    /// What a file would hold had nothing of it rotted.
    pub fn truth(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        let content = &disk.files[disk.names.get(name)?];
        Some(content.truth.as_ref().map_or(&content.now, |truth| &truth.now).clone())
    }

    /// The pages of a file that do not hold what they should, or are not given.
    pub fn rotten_pages(&self, name: &str) -> Vec<u64> {
        let disk = self.lock();
        let Some(content) = disk.names.get(name).map(|file| &disk.files[file]) else { return Vec::new() };
        let truth = content.truth.as_ref().map_or(&content.now, |truth| &truth.now);
        let pages = content.now.chunks(PAGE).zip(truth.chunks(PAGE)).enumerate();
        let is_unread = |page: usize| content.has_unread(page * PAGE, (page + 1) * PAGE);
        let rotten = pages.filter(|(page, (held, true_one))| held != true_one || is_unread(*page));
        rotten.map(|(page, _)| page as u64).collect()
    }

    /// A page of a file decays, where all of it is on the disk and good; whether it did.
    pub fn decay(&self, name: &str, page: u64, how: &Decay) -> bool {
        let mut disk = self.lock();
        let Some(&file) = disk.names.get(name) else { return false };
        disk.files.get_mut(&file).expect("a name's file exists").decay(page as usize, how)
    }

    /// Everything that has rotted is as it should be, by a backup of it.
    pub fn restore(&self, name: &str) {
        let mut disk = self.lock();
        let Some(&file) = disk.names.get(name) else { return };
        let content = disk.files.get_mut(&file).expect("a name's file exists");
        if let Some(truth) = content.truth.take() {
            (content.now, content.durable) = (truth.now, truth.durable);
        }
        content.unread.clear();
    }
}

impl Content {
    fn decay(&mut self, page: usize, how: &Decay) -> bool {
        let (start, end) = (page * PAGE, ((page + 1) * PAGE).min(self.now.len()));
        let (first, past) = (start / SECTOR, end.div_ceil(SECTOR));
        let is_dirty =
            self.unsynced.iter().chain(&self.given_up).any(|(from, to)| *from < past && first < *to);
        let is_same = |bytes: &[u8]| bytes.get(start..end) == self.now.get(start..end);
        let is_good = self.truth.as_ref().is_none_or(|truth| is_same(&truth.now));
        if start >= end || is_dirty || !is_same(&self.durable) || !is_good || self.has_unread(start, end) {
            return false;
        }
        let mut held = self.now[start..end].to_vec();
        match how {
            Decay::Flip(at) => held[at % (end - start)] ^= 0x20,
            Decay::Holds(bytes) => held.copy_from_slice(&bytes[..end - start]),
            Decay::Unread => self.unread.extend(first..past),
        }
        if self.truth.is_none() {
            self.truth = Some(Box::new(self.clone()));
        }
        self.now[start..end].copy_from_slice(&held);
        self.durable[start..end].copy_from_slice(&held);
        true
    }

    /// Whether some of a part of it is not given.
    pub(super) fn has_unread(&self, start: usize, end: usize) -> bool {
        self.unread.range(start / SECTOR..end.div_ceil(SECTOR)).next().is_some()
    }

    /// A part of it is written: sectors that are written as a whole are given from then on, others are read before.
    pub(super) fn give_anew(&mut self, start: usize, end: usize) -> io::Result<()> {
        let len = self.now.len();
        let touched = start / SECTOR..end.div_ceil(SECTOR);
        let is_whole = |sector: usize| start <= sector * SECTOR && ((sector + 1) * SECTOR).min(len) <= end;
        if self.unread.range(touched.clone()).any(|sector| !is_whole(*sector)) {
            return Err(io::Error::other("simulated failure of a read before a write"));
        }
        self.unread.retain(|sector| !touched.contains(sector));
        Ok(())
    }
}
