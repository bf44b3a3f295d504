//! Guest bytes captured → durable at the recovery side, against TLS alone and the journal alone.

use super::pair::{Pair, write};
use super::tls;
use crate::Run;
use crate::clock::{Moment, own_cpu};
use crate::figures::{Figure, Goal};
use crate::journal::append_rate;
use anyhow::Result;
use api::ProtectSettings;
use bytes::Bytes;
use splitter::Capture;
use std::time::Duration;

const DISK_BYTES: u64 = 16 << 30;
const MIB: f64 = (1 << 20) as f64;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let bytes = run.scaled(2 << 30);
    let source = incompressible();
    let (mut limit, mut large, mut small) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sending, mut receiving) = (Vec::new(), Vec::new());
    let (mut tls_alone, mut journal_alone, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let pair = Pair::start(&run.folder.join("headline"), "")?;
    let settings =
        ProtectSettings { spill_bytes: Some(0), buffer_bytes: Some(256 << 20), ..ProtectSettings::default() };
    let capture = pair.protect("vm", DISK_BYTES, settings)?;
    for round in 0..run.rounds() as u64 {
        let tls = tls::one_stream(&run.folder.join("tls"), bytes)?;
        let journal = append_rate(&run.folder.join("journal"), bytes, round)?;
        tls_alone.push(tls.mib_per_second);
        journal_alone.push(journal.mib_per_second);
        limit.push(tls.mib_per_second.min(journal.mib_per_second));
        parts.push(tls.cpu_per_gib + journal.cpu_per_gib);
        let before = (own_cpu()?, pair.recovery_cpu()?);
        large.push(rate(&capture, &source, bytes, 64 << 10)?);
        let gib = bytes as f64 / f64::from(1 << 30);
        sending.push((own_cpu()? - before.0) / gib);
        receiving.push((pair.recovery_cpu()? - before.1) / gib);
        small.push(rate(&capture, &source, bytes / 4, 4 << 10)?);
    }
    Ok(vec![
        Figure::alone("TLS alone, one stream", &tls_alone, "MiB/s", Goal::None),
        Figure::alone("journal alone, 64 KiB writes", &journal_alone, "MiB/s", Goal::None),
        Figure::against("captured to durable, 64 KiB writes", &large, &limit, "MiB/s", Goal::AtLeast(0.7)),
        Figure::against("captured to durable, 4 KiB writes", &small, &limit, "MiB/s", Goal::None),
        Figure::alone("processor time, protected side, 64 KiB writes", &sending, "s/GiB", Goal::None),
        Figure::alone("processor time, recovery side, 64 KiB writes", &receiving, "s/GiB", Goal::None),
        Figure::alone("processor time, TLS alone and journal alone", &parts, "s/GiB", Goal::None),
    ])
}

/// Bytes that do not compress, more than the processor's caches hold.
pub(super) fn incompressible() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..(64 << 20) / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect::<Vec<u8>>().into()
}

/// MiB a second from the first write until all are durable. The buffer is kept from overflowing: what is
/// measured is what passes, not what a burst may leave in memory.
fn rate(capture: &Capture, source: &Bytes, bytes: u64, len: usize) -> Result<f64> {
    let begun = Moment::now();
    for number in 0..bytes / len as u64 {
        let from = (number as usize * len) % source.len();
        write(capture, (number * len as u64) % DISK_BYTES, &source.slice(from..from + len))?;
        if number % 64 == 0 {
            wait_for_room(capture);
        }
    }
    let last = capture.status().last;
    while capture.status().released < last {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(bytes as f64 / MIB / begun.elapsed())
}

fn wait_for_room(capture: &Capture) {
    loop {
        let status = capture.status();
        if status.buffered_bytes * 2 < status.buffer_bytes_max {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
