//! Pages of checksums that the disk does not give.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use std::collections::BTreeSet;

/// A file of which some pages are not given.
#[derive(Debug, Default)]
struct Pages {
    bytes: Mutex<Vec<u8>>,
    unread: Mutex<BTreeSet<u64>>,
}

impl StoreFile for Pages {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.unread.lock().unwrap().contains(&(at / PAGE_BYTES)) {
            return Err(io::Error::other("not given"));
        }
        buf.copy_from_slice(&self.bytes.lock().unwrap()[at as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.bytes.lock().unwrap()[at as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }
    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.bytes.lock().unwrap()[range.start as usize..range.end() as usize].fill(0);
        Ok(())
    }
}

const BLOCKS: u64 = 3 * WORDS_PER_PAGE;

fn words(block: u64, byte: u8) -> BTreeMap<u64, Word> {
    BTreeMap::from([(block, Word::of(&[byte; SUMMED_BYTES as usize]))])
}

/// What is known of the blocks beside one that is written while the disk gives nothing is known afterwards.
#[test]
fn checksums_that_the_disk_does_not_give_just_now_are_not_written_over() {
    let file = Arc::new(Pages::default());
    file.set_len(file_bytes(BLOCKS * SUMMED_BYTES)).unwrap();
    let sums = Sums::new(file.clone(), "vm", "disk");
    let last = BLOCKS - 2;
    for block in [5, last] {
        sums.set(&words(block, 7)).unwrap();
    }
    *file.unread.lock().unwrap() = (0..3).collect();
    sums.set(&words(last + 1, 8)).unwrap_err();
    file.unread.lock().unwrap().clear();
    let known = Word::of(&[7; SUMMED_BYTES as usize]);
    assert_eq!(sums.words(last..last + 2), [known, Word::ZEROES], "nothing has been changed");
    // One page alone is as good as rotten, and is made anew.
    file.unread.lock().unwrap().insert(2);
    sums.set(&words(last + 1, 8)).unwrap();
    file.unread.lock().unwrap().clear();
    assert_eq!(sums.words(last..last + 1), [Word::UNKNOWN]);
    assert_eq!(sums.words(5..6), [known]);
}
