//! A ledger over three VMs: numbered records, each written to one VM after the other, and what was seen of their guests
//! before. What must hold of it at any one moment is known, whatever was done to the agents.
//!
//! Record `n` is written to the first VM, then to the second, then to the third, each once the one before was
//! acknowledged; then comes `n + 1`. It says which record of its own each guest had reported as durable by then. So at one
//! moment the first VM has as many records as the third or one more, the second is between, and each guest's own file
//! has whatever is said of it in any of them.

use lab::{Console, NbdClient};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) const VMS: [&str; 3] = ["one", "two", "three"];
const SLOTS: u64 = 256;
const RECORD_BYTES: u64 = 4096;
/// Of the disk that the ledger is written to.
pub(super) const LEDGER_BYTES: u64 = SLOTS * RECORD_BYTES;

/// One record, as it stands on one VM's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    number: u64,
    ticks: [u64; 3],
}

impl Record {
    fn to_bytes(self) -> Vec<u8> {
        let words = [self.number, self.ticks[0], self.ticks[1], self.ticks[2]];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // What cannot be foretold of one record by another, so that a block of two halves is none.
        let mut fill = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while bytes.len() < RECORD_BYTES as usize {
            fill ^= fill << 13;
            fill ^= fill >> 7;
            fill ^= fill << 17;
            bytes.extend(fill.to_le_bytes());
        }
        bytes
    }

    /// None where nothing was ever written.
    fn read(bytes: &[u8], slot: u64) -> Result<Option<Self>, String> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let record = Self { number: word(0), ticks: [word(8), word(16), word(24)] };
        if record.to_bytes() != bytes || record.number % SLOTS != slot {
            return Err(format!("slot {slot} holds no record: it begins as {record:?}"));
        }
        Ok(Some(record))
    }
}

/// What one VM's disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// The newest record; 0 where there is none.
    pub(super) last: u64,
    /// The most that is said of each guest.
    ticks: [u64; 3],
}

impl Page {
    /// Reads a whole disk: every record up to the newest must be there, as far back as the disk reaches.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let slots = bytes.chunks(RECORD_BYTES as usize).zip(0..);
        let records = slots.map(|(bytes, slot)| Record::read(bytes, slot)).collect::<Result<Vec<_>, _>>()?;
        let newest = records.iter().flatten().max_by_key(|record| record.number);
        let last = newest.map_or(0, |record| record.number);
        for number in last.saturating_sub(SLOTS - 1).max(1)..=last {
            let found = records[(number % SLOTS) as usize].map(|record| record.number);
            if found != Some(number) {
                return Err(format!("record {number} is missing before {last}: its place holds {found:?}"));
            }
        }
        Ok(Self { last, ticks: newest.map_or([0; 3], |record| record.ticks) })
    }
}

/// Whether pages can be those of one moment, as far as there are any; and what each guest must have by then.
///
/// # Errors
/// Why not.
pub(super) fn one_moment(pages: [Option<Page>; 3]) -> Result<[u64; 3], String> {
    let lasts: Vec<u64> = pages.iter().flatten().map(|page| page.last).collect();
    let descend = lasts.is_sorted_by(|before, after| before >= after);
    let (most, least) = (lasts.iter().max(), lasts.iter().min());
    if !descend || most > least.map(|least| least + 1).as_ref() {
        return Err(format!("records {lasts:?} are of different moments"));
    }
    Ok([0, 1, 2].map(|guest| pages.iter().flatten().map(|page| page.ticks[guest]).max().unwrap_or(0)))
}

/// Whoever writes the ledger.
pub(super) struct Ledger {
    shared: Arc<Shared>,
    writing: Option<JoinHandle<()>>,
}

struct Shared {
    over: AtomicBool,
    /// The last record that all three VMs have acknowledged.
    whole: AtomicU64,
}

impl Ledger {
    /// Begins to write to the disk `log` of the three sockets; what the guests report is read off their consoles.
    pub(super) fn begin(sockets: [String; 3], consoles: [PathBuf; 3]) -> Self {
        let shared = Arc::new(Shared { over: AtomicBool::new(false), whole: AtomicU64::new(0) });
        let of_thread = shared.clone();
        let writing = std::thread::spawn(move || of_thread.write(&sockets, consoles));
        Self { shared, writing: Some(writing) }
    }

    /// The last record that all three VMs have acknowledged.
    pub(super) fn whole(&self) -> u64 {
        self.shared.whole.load(Ordering::SeqCst)
    }

    /// Writes no more; the last record that all three VMs have.
    pub(super) fn end(&mut self) -> u64 {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(writing) = self.writing.take() {
            writing.join().unwrap();
        }
        self.whole()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn write(&self, sockets: &[String; 3], consoles: [PathBuf; 3]) {
        let mut consoles = consoles.map(|path| Console::new(&path));
        let mut clients = sockets.each_ref().map(|socket| Writer::new(socket, "log"));
        for number in 1.. {
            for client in &mut clients {
                let ticks = consoles.each_mut().map(last_tick);
                let record = Record { number, ticks };
                let at = number % SLOTS * RECORD_BYTES;
                if !client.write(at, &record.to_bytes(), &self.over) {
                    return;
                }
            }
            self.whole.store(number, Ordering::SeqCst);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(15));
        }
    }
}

/// The last record that a guest has reported as durable.
pub(super) fn last_tick(console: &mut Console) -> u64 {
    let lines = console.lines().unwrap();
    lines.iter().rev().find_map(|(_, line)| line.strip_prefix("TICK ")?.parse().ok()).unwrap_or(0)
}

/// A client that asks again until it has an answer, as a guest's disk driver does.
pub(super) struct Writer {
    socket: String,
    export: &'static str,
    client: Option<NbdClient>,
}

impl Writer {
    pub(super) fn new(socket: &str, export: &'static str) -> Self {
        Self { socket: socket.to_owned(), export, client: None }
    }

    /// Writes until that is acknowledged; false where it is `over` before.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8], over: &AtomicBool) -> bool {
        loop {
            if self.client.is_none() {
                self.client = NbdClient::connect(&self.socket, self.export).ok();
            }
            match self.client.as_mut().map(|client| client.write(at, bytes)) {
                Some(Ok(())) => return true,
                Some(Err(_)) => self.client = None,
                None => {}
            }
            if over.load(Ordering::SeqCst) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_ledger_of_one_moment_is_told_from_others() {
    let disk = |last: u64, ticks: [u64; 3]| {
        let mut bytes = vec![0; LEDGER_BYTES as usize];
        for number in 1..=last {
            let at = (number % SLOTS * RECORD_BYTES) as usize;
            bytes[at..at + RECORD_BYTES as usize].copy_from_slice(&Record { number, ticks }.to_bytes());
        }
        bytes
    };
    let page = |last: u64, ticks| Page::read(&disk(last, ticks)).unwrap();
    assert_eq!(page(0, [0; 3]), Page { last: 0, ticks: [0; 3] });
    assert_eq!(page(600, [7, 8, 9]), Page { last: 600, ticks: [7, 8, 9] });
    assert_eq!(
        one_moment([page(601, [7, 8, 9]), page(600, [9, 1, 1]), page(600, [1; 3])].map(Some)),
        Ok([9, 8, 9])
    );
    assert_eq!(one_moment([None, Some(page(601, [1; 3])), None]), Ok([1; 3]));
    for lasts in [[600, 601, 600], [602, 600, 600], [600, 599, 600]] {
        assert!(one_moment(lasts.map(|last| Some(page(last, [0; 3])))).is_err(), "{lasts:?}");
    }
    // One that is missing, one that is older than it may be, and one of two halves.
    let mut bytes = disk(600, [0; 3]);
    bytes[4096 * 80..4096 * 81].fill(0);
    assert!(Page::read(&bytes).unwrap_err().contains("record 592 is missing"));
    let mut bytes = disk(600, [0; 3]);
    bytes[4096 * 80..4096 * 81].copy_from_slice(&disk(80, [0; 3])[4096 * 80..4096 * 81]);
    assert!(Page::read(&bytes).is_err());
    let mut bytes = disk(600, [0; 3]);
    bytes[4096 * 80 + 2048] ^= 1;
    assert!(Page::read(&bytes).unwrap_err().contains("slot 80"));
}
