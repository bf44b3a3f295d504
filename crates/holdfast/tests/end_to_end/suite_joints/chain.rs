//! Tokens that three guests pass on to each other, and the records that each has written of that: what one guest knows of
//! another, it knows because the other had told that this is durable.
//!
//! A guest that gets a token writes a record with a number of its own and the newest number of each of the others that it
//! knows of, and passes both on once that is on its disk (`lab/src/relay.sh`). Two tokens go round, one each way. So at any
//! one moment a guest that is named in a record has the record that is meant, and no guest misses one before its newest.

use lab::{sum_of_line, wait_until};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SLOTS: u64 = 512;
const SLOT_BYTES: usize = 512;
/// Of the disk that the records are written to.
pub(super) const CHAIN_BYTES: u64 = SLOTS * SLOT_BYTES as u64;

/// What one guest's disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    /// Its newest record; 0 where there is none.
    pub(super) last: u64,
    /// The newest record of each that it knows of.
    knows: [u64; 3],
}

/// None where nothing was ever written.
fn record(bytes: &[u8], slot: u64) -> Result<Option<Told>, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let wrong = || format!("slot {slot} holds no record: {:?}", String::from_utf8_lossy(&bytes[..64]));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?.trim_end();
    let (record, sum) = text.rsplit_once(' ').ok_or_else(wrong)?;
    let numbers: Result<Vec<u64>, _> = record.split(' ').map(str::parse).collect();
    let (Ok(&[last, one, two, three]), Ok(sum)) = (numbers.as_deref(), u32::from_str_radix(sum, 16)) else {
        return Err(wrong());
    };
    match sum == sum_of_line(record) && last % SLOTS == slot {
        true => Ok(Some(Told { last, knows: [one, two, three] })),
        false => Err(wrong()),
    }
}

impl Told {
    /// Reads the disk of the guest that is the first, second or third of them: every record up to the newest must be there,
    /// as far back as the disk reaches, and none knows less than the one before.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) fn read(bytes: &[u8], own: usize) -> Result<Self, String> {
        let slots = bytes.chunks(SLOT_BYTES).zip(0..);
        let records = slots.map(|(bytes, slot)| record(bytes, slot)).collect::<Result<Vec<_>, _>>()?;
        let last = records.iter().flatten().map(|told| told.last).max().unwrap_or(0);
        let mut newest = Told { last: 0, knows: [0; 3] };
        for number in last.saturating_sub(SLOTS - 1).max(1)..=last {
            let found = records[(number % SLOTS) as usize].filter(|told| told.last == number);
            let found =
                found.ok_or_else(|| format!("record {number} of the chain is missing before {last}"))?;
            let knows_less = found.knows.iter().zip(&newest.knows).any(|(now, before)| now < before);
            if knows_less || found.knows[own] != number {
                return Err(format!("{found:?} is behind {newest:?}"));
            }
            newest = found;
        }
        Ok(newest)
    }
}

/// Whether everything that a guest knows of others is there, as far as there is anything of them.
///
/// # Errors
/// Whose record is missing.
pub(super) fn causes_are_there(told: [Option<Told>; 3]) -> Result<(), String> {
    for (of, has) in told.iter().enumerate() {
        let Some(has) = has else { continue };
        for (by, knows) in told.iter().enumerate() {
            let Some(knows) = knows.filter(|knows| knows.knows[of] > has.last) else { continue };
            return Err(format!(
                "guest {} has its records up to {}, of which guest {} knew {} in its record {}",
                of + 1,
                has.last,
                by + 1,
                knows.knows[of],
                knows.last
            ));
        }
    }
    Ok(())
}

/// Whoever carries the tokens from guest to guest.
pub(super) struct Relay(Arc<Shared>);

struct Shared {
    to: [Mutex<UnixStream>; 3],
    /// The last record that each has told of.
    told: [AtomicU64; 3],
}

/// The line to a guest that is just being started, which waits for it.
pub(super) fn connect(socket: &Path) -> UnixStream {
    wait_until("the guest's serial line", Duration::from_secs(60), || Ok(UnixStream::connect(socket).ok()))
        .unwrap()
}

impl Relay {
    /// Begins once all three listen.
    pub(super) fn begin(lines: [UnixStream; 3]) -> Self {
        let readers = lines.each_ref().map(|line| {
            let mut reader = BufReader::new(line.try_clone().unwrap());
            let mut here = String::new();
            reader.read_line(&mut here).unwrap();
            assert_eq!(here.trim(), "HERE");
            reader
        });
        let shared = Arc::new(Shared { to: lines.map(Mutex::new), told: [0; 3].map(AtomicU64::new) });
        for (guest, reader) in readers.into_iter().enumerate() {
            let shared = shared.clone();
            std::thread::spawn(move || shared.carry_from(guest, reader));
        }
        shared.say(0, "TOKEN on 0 0 0");
        shared.say(2, "TOKEN back 0 0 0");
        Self(shared)
    }

    /// The last record of each guest that it has told to be durable.
    pub(super) fn told(&self) -> [u64; 3] {
        self.0.told.each_ref().map(|told| told.load(Ordering::SeqCst))
    }
}

impl Shared {
    fn say(&self, guest: usize, line: &str) {
        // A guest that has ended hears nothing more.
        let _ = self.to[guest].lock().unwrap().write_all(format!("{line}\n").as_bytes());
    }

    fn carry_from(&self, guest: usize, reader: BufReader<UnixStream>) {
        for line in reader.lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &["TOKEN", name, ..] = &words[..] else { panic!("guest {} says {line:?}", guest + 1) };
            let own = words.get(2 + guest).and_then(|word| word.parse().ok()).unwrap();
            self.told[guest].fetch_max(own, Ordering::SeqCst);
            self.say((guest + if name == "on" { 1 } else { 2 }) % 3, &line);
        }
    }
}

#[test]
fn a_record_whose_cause_is_missing_is_found() {
    let disk = |own: usize, last: u64, others: u64| {
        let mut bytes = vec![0; CHAIN_BYTES as usize];
        for number in 1..=last {
            let mut knows = [others.min(number); 3];
            knows[own] = number;
            let text = format!("{number} {} {} {}", knows[0], knows[1], knows[2]);
            let at = (number % SLOTS) as usize * SLOT_BYTES;
            let line = format!("{:<511}\n", format!("{text} {:08x}", sum_of_line(&text)));
            bytes[at..at + SLOT_BYTES].copy_from_slice(line.as_bytes());
        }
        bytes
    };
    let told = |own, last, others| Some(Told::read(&disk(own, last, others), own).unwrap());
    assert_eq!(told(1, 700, 650), Some(Told { last: 700, knows: [650, 700, 650] }));
    assert_eq!(causes_are_there([told(0, 700, 650), told(1, 660, 650), told(2, 650, 640)]), Ok(()));
    assert_eq!(causes_are_there([told(0, 700, 650), None, told(2, 650, 640)]), Ok(()));
    let early = causes_are_there([told(0, 700, 650), told(1, 660, 650), told(2, 649, 640)]).unwrap_err();
    assert!(early.contains("guest 3 has its records up to 649, of which guest 1 knew 650"), "{early}");
    // One that is missing, and one of two halves.
    let mut bytes = disk(0, 700, 650);
    bytes[512 * 80..512 * 81].fill(0);
    assert!(Told::read(&bytes, 0).unwrap_err().contains("record 592 of the chain is missing"));
    let mut bytes = disk(0, 700, 650);
    bytes[512 * 80 + 5] ^= 1;
    assert!(Told::read(&bytes, 0).unwrap_err().contains("slot 80"));
    assert!(Told::read(&disk(0, 700, 650), 1).is_err(), "another guest's disk");
}
