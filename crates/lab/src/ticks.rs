//! The guest's records: numbered, checksummed, each fsynced before the next.
//!
//! A record is a line `N UNIXTIME SUM`; the sum is the CRC-32 of `N UNIXTIME` and a newline.

use crate::console::Console;
use anyhow::Result;
use std::time::Instant;

/// A record the guest has reported as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    pub number: u64,
    pub seen_at: Instant,
}

/// The records of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticks {
    /// The number of the last good record.
    pub last: u64,
    /// Records that are missing before the last, out of order, or do not check.
    pub violations: u64,
}

impl Ticks {
    /// Reads a whole file of records. A torn last line is not a violation: it was never reported.
    pub fn parse(text: &str) -> Self {
        let mut ticks = Self::default();
        let lines: Vec<&str> = text.split('\n').collect();
        for (at, line) in lines.iter().enumerate() {
            let is_last = at + 1 == lines.len();
            match check(line) {
                Some(number) if number == ticks.last + 1 => ticks.last = number,
                None if is_last => {}
                _ => ticks.violations += 1,
            }
        }
        ticks
    }

    /// The records a guest has reported on its console.
    ///
    /// # Errors
    /// Where the console cannot be read.
    pub fn reported(console: &mut Console) -> Result<Vec<Tick>> {
        let lines = console.lines()?;
        let ticks = lines.iter().filter_map(|(seen_at, line)| {
            Some(Tick { number: line.strip_prefix("TICK ")?.parse().ok()?, seen_at: *seen_at })
        });
        Ok(ticks.collect())
    }
}

fn check(line: &str) -> Option<u64> {
    let (record, sum) = line.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16) != Ok(sum_of_line(record)) {
        return None;
    }
    record.split(' ').next()?.parse().ok()
}

/// The sum that a guest writes behind a record: of the record and a newline.
pub fn sum_of_line(record: &str) -> u32 {
    crc32(format!("{record}\n").as_bytes())
}

/// The CRC-32 of IEEE 802.3, as busybox's `crc32` prints it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: u8| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 != 0 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 },
        )
    };
    !bytes.iter().fold(u32::MAX, |crc, &byte| step(crc, byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_crc32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn missing_and_damaged_records_are_violations_and_a_torn_end_is_not() {
        let line = |n: u64| format!("{n} 7 {:08x}\n", crc32(format!("{n} 7\n").as_bytes()));
        let good = line(1) + &line(2);
        assert_eq!(Ticks::parse(&good), Ticks { last: 2, violations: 0 });
        assert_eq!(Ticks::parse(&(good.clone() + "3 7 1")), Ticks { last: 2, violations: 0 });
        assert_eq!(Ticks::parse(&(good.clone() + "3 7 1\n")).violations, 1);
        assert_eq!(Ticks::parse(&(good + &line(4))).violations, 1);
    }
}
