//! What a disk of an image may hold, sector by sector: what was written to it over what the guest had at the cut.
//!
//! What was flushed is there for good. What was written since is there as long as the host goes on; after a loss of power,
//! or where a flush has failed, each sector holds what was flushed or something that was written since, and never anything
//! else. A sector that could be one of several is whatever is read of it first.

use std::collections::{BTreeMap, BTreeSet};
use types::ByteRange;

pub(crate) const SECTOR: usize = 512;

/// The bytes one disk may hold.
#[derive(Debug)]
pub(crate) struct DiskModel {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// What was written to sectors since the last flush.
    since: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sectors of which it is not known what they hold, with all that they may.
    open: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sectors of which nothing is known before they are read: the cut falls into a write.
    torn: BTreeSet<usize>,
}

impl DiskModel {
    /// The disk as of its cut, but for what a write was just changing there.
    pub(crate) fn new(base: Vec<u8>, torn: &[ByteRange]) -> Self {
        let torn = torn.iter().flat_map(|range| sectors(range.start, range.len)).collect();
        let flushed = base.clone();
        Self { now: base, flushed, since: BTreeMap::new(), open: BTreeMap::new(), torn }
    }

    pub(crate) fn len(&self) -> u64 {
        self.now.len() as u64
    }

    /// A write was acknowledged.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (sector, new) in sectors(at, bytes.len() as u64).zip(bytes.chunks(SECTOR)) {
            self.since.entry(sector).or_default().push(new.to_vec());
            self.open.remove(&sector);
            self.now[place(sector)].copy_from_slice(new);
        }
    }

    /// A write has failed: each sector is as before, or as it was to be.
    pub(crate) fn may_have_written(&mut self, at: u64, bytes: &[u8]) {
        for (sector, new) in sectors(at, bytes.len() as u64).zip(bytes.chunks(SECTOR)) {
            let now = self.now[place(sector)].to_vec();
            self.since.entry(sector).or_default().extend([new.to_vec(), now.clone()]);
            self.open.entry(sector).or_default().extend([new.to_vec(), now]);
        }
    }

    /// Everything acknowledged is durable from here on.
    pub(crate) fn flush(&mut self) {
        let settled: Vec<usize> =
            self.since.keys().copied().filter(|sector| !self.open.contains_key(sector)).collect();
        for sector in settled {
            self.since.remove(&sector);
            let place = place(sector);
            self.flushed[place.clone()].copy_from_slice(&self.now[place]);
        }
    }

    /// What was not flushed may be gone.
    pub(crate) fn lose(&mut self) {
        for (&sector, written) in &self.since {
            let open = self.open.entry(sector).or_default();
            open.extend(written.iter().cloned());
            open.push(self.flushed[place(sector)].to_vec());
        }
    }

    /// Something of it is read; what is not as it must be.
    pub(crate) fn compare(&mut self, at: u64, read: &[u8]) -> Result<(), String> {
        for (sector, found) in sectors(at, read.len() as u64).zip(read.chunks(SECTOR)) {
            let place = place(sector);
            if let Some(may) = self.open.remove(&sector) {
                if !may.iter().any(|may| may == found) && !self.torn.contains(&sector) {
                    return Err(format!(
                        "sector {sector} holds {:02x?}.., which is none of the {} things it may be",
                        &found[..4],
                        may.len()
                    ));
                }
                self.since.entry(sector).or_default().push(found.to_vec());
                self.now[place].copy_from_slice(found);
            } else if self.torn.remove(&sector) && !self.since.contains_key(&sector) {
                self.now[place.clone()].copy_from_slice(found);
                self.flushed[place].copy_from_slice(found);
            } else if self.now[place.clone()] != *found {
                return Err(format!(
                    "sector {sector} holds {:02x?}.. instead of {:02x?}..",
                    &found[..4],
                    &self.now[place][..4]
                ));
            }
        }
        Ok(())
    }
}

fn sectors(at: u64, len: u64) -> impl Iterator<Item = usize> {
    let first = at as usize / SECTOR;
    first..first + (len as usize).div_ceil(SECTOR)
}

fn place(sector: usize) -> std::ops::Range<usize> {
    sector * SECTOR..(sector + 1) * SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays_and_what_was_written_since_may_go() {
        let mut disk = DiskModel::new(vec![1; 2 * SECTOR], &[]);
        disk.write(0, &[2; SECTOR]);
        disk.flush();
        disk.write(0, &[3; SECTOR]);
        assert!(disk.compare(0, &[2; SECTOR]).is_err(), "nothing was lost");
        disk.lose();
        assert!(disk.compare(0, &[0; SECTOR]).is_err(), "what was flushed is gone");
        disk.write(0, &[4; SECTOR]);
        disk.lose();
        disk.compare(0, &[3; 2 * SECTOR][..SECTOR]).unwrap();
        assert!(disk.compare(0, &[4; SECTOR]).is_err(), "it is what was read of it first");
        assert!(disk.compare(SECTOR as u64, &[0; SECTOR]).is_err(), "what lies below has changed");
    }
}
