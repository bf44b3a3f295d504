use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is open; its readers fail as often as they are told to.
#[derive(Debug, Default)]
struct Counting {
    opened: AtomicUsize,
    open: AtomicUsize,
    failures: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Failing(Arc<AtomicUsize>);

impl ReadDoor for Counting {
    fn open(&self) -> io::Result<Box<dyn DiskReader>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Failing(self.failures.clone())))
    }

    fn close(&self, _reader: Box<dyn DiskReader>) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl DiskReader for Failing {
    fn read(&mut self, _at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) > 0 {
            self.0.fetch_sub(1, Ordering::SeqCst);
            return Err(io::ErrorKind::TimedOut.into());
        }
        buf.fill(7);
        Ok(())
    }

    fn extents(&mut self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { range, kind: ExtentKind::Data }])
    }
}

fn disk() -> (TappedDisk, Arc<Counting>) {
    let (disk, door) = (TappedDisk::new(1 << 20, "web.raw".into()), Arc::new(Counting::default()));
    disk.read_by(door.clone());
    (disk, door)
}

fn open(door: &Counting) -> usize {
    door.open.load(Ordering::SeqCst)
}

#[test]
fn nothing_is_open_while_nobody_reads() {
    let (disk, door) = disk();
    assert_eq!(open(&door), 0, "before the first read");
    let mut bytes = [0; 512];
    disk.read_at(0, &mut bytes).unwrap();
    disk.read_at(512, &mut bytes).unwrap();
    assert_eq!((open(&door), door.opened.load(Ordering::SeqCst)), (1, 1), "reads that follow each other");
    disk.close_idle();
    assert_eq!(open(&door), 1, "it was read a moment ago");
    disk.close_idle();
    assert_eq!(open(&door), 0, "after an idle moment");
    disk.read_at(0, &mut bytes).unwrap();
    disk.shut();
    assert_eq!(open(&door), 0, "at the end");
    assert_eq!(disk.read_at(0, &mut bytes).unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_read_that_failed_is_not_the_last_that_can_be_made() {
    let (disk, door) = disk();
    let mut bytes = [0; 512];
    door.failures.store(1, Ordering::SeqCst);
    disk.read_at(0, &mut bytes).unwrap_err();
    assert_eq!(open(&door), 0, "its connection is not used again");
    assert!(disk.trouble().is_some());
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes[0], open(&door)), (7, 1));
    assert_eq!(disk.trouble(), None);
}

#[test]
fn nothing_is_opened_or_closed_in_the_middle_of_a_read() {
    let (disk, door) = disk();
    let mut bytes = [0; 512];
    disk.begin_read().unwrap();
    disk.begin_read().unwrap();
    assert_eq!(open(&door), 1);
    disk.close_idle();
    disk.close_idle();
    assert_eq!(open(&door), 1, "it is being read");
    door.failures.store(1, Ordering::SeqCst);
    disk.read_at(0, &mut bytes).unwrap_err();
    let other = disk.read_at(0, &mut bytes).unwrap_err();
    assert_eq!(other.kind(), io::ErrorKind::ConnectionAborted, "its connection is not used again");
    disk.end_read();
    assert_eq!(open(&door), 1, "somebody reads still");
    disk.end_read();
    assert_eq!((open(&door), door.opened.load(Ordering::SeqCst)), (0, 1));
    disk.begin_read().unwrap();
    disk.read_at(0, &mut bytes).unwrap();
    disk.shut();
    assert_eq!(open(&door), 1, "it goes with the last read");
    disk.end_read();
    assert_eq!(open(&door), 0);
    assert_eq!(disk.begin_read().unwrap_err().kind(), io::ErrorKind::NotConnected);
}
