//! An outage with and without a spill: what it costs in checkpoints, and in bytes sent afterwards.

use super::headline::incompressible;
use super::pair::{Pair, write};
use crate::Run;
use crate::clock::Moment;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result};
use api::ProtectSettings;
use bytes::Bytes;
use splitter::Capture;
use std::collections::BTreeSet;
use std::time::Duration;

const DISK_BYTES: u64 = 2 << 30;
const WRITE: usize = 16 << 10;
const BYTES_PER_SECOND: f64 = 50e6;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let seconds = if run.quick { 8.0 } else { 60.0 };
    let source = incompressible();
    let mut pair = Pair::start(&run.folder.join("outage"), "[stream]\ncompression = \"none\"\n")?;
    let lost = checkpoints_lost(&mut pair, &source, seconds)?;
    let resent = resent_without_spill(&mut pair, &source, seconds)?;
    Ok(vec![
        Figure::alone("checkpoints lost by an outage at 50 MB/s, spill on", &[lost], "", Goal::AtMost(0.0)),
        Figure::against(
            "sent after an outage without spill, of what was written, distinct",
            &[resent.0],
            &[resent.1],
            "MiB",
            Goal::AtMost(1.1),
        ),
    ])
}

/// Of the checkpoints that an outage fell into, how many are not there afterwards.
fn checkpoints_lost(pair: &mut Pair, source: &Bytes, seconds: f64) -> Result<f64> {
    let settings = ProtectSettings { checkpoint_interval_seconds: Some(1), ..ProtectSettings::default() };
    let capture = pair.protect("spilling", DISK_BYTES, settings)?;
    load(&capture, source, 2.0, &mut BTreeSet::new())?;
    let before = count(pair)?;
    pair.kill_recovery()?;
    load(&capture, source, seconds, &mut BTreeSet::new())?;
    pair.start_recovery()?;
    let last = capture.status().last;
    pair.wait("what was spilled has come", || Ok((capture.status().released >= last).then_some(())))?;
    let after = count(pair)?;
    // One a second; the first and the last may fall on either side.
    Ok((seconds.floor() - 1.0 - (after - before)).max(0.0))
}

fn count(pair: &Pair) -> Result<f64> {
    let status = pair.runtime.block_on(pair.their_client().status())?;
    let vm = status.recovered.into_iter().find(|vm| vm.name == "spilling");
    Ok(vm.context("the VM is kept")?.checkpoints as f64)
}

/// MiB sent after an outage, and MiB of the distinct blocks written in it.
fn resent_without_spill(pair: &mut Pair, source: &Bytes, seconds: f64) -> Result<(f64, f64)> {
    let settings = ProtectSettings {
        checkpoint_interval_seconds: Some(60),
        spill_bytes: Some(0),
        buffer_bytes: Some(1 << 20),
        ..ProtectSettings::default()
    };
    let capture = pair.protect("tracking", DISK_BYTES, settings)?;
    pair.kill_recovery()?;
    let sent_before = pair.vm("tracking")?.sent_bytes;
    let mut blocks = BTreeSet::new();
    load(&capture, source, seconds, &mut blocks)?;
    pair.fill_image("tracking", source, &blocks)?;
    pair.start_recovery()?;
    pair.wait_for_state("tracking", "journaling")?;
    let last = capture.status().last;
    pair.wait("what was tracked has come", || Ok((capture.status().released >= last).then_some(())))?;
    let sent = pair.vm("tracking")?.sent_bytes - sent_before;
    let mib = f64::from(1 << 20);
    Ok((sent as f64 / mib, (blocks.len() as u64 * types::limits::BLOCK_BYTES) as f64 / mib))
}

/// Writes at random places for so long, and says which blocks.
fn load(capture: &Capture, source: &Bytes, seconds: f64, blocks: &mut BTreeSet<u64>) -> Result<()> {
    let (begun, mut number, mut state) = (Moment::now(), 0u64, 0x1234_5678_9abc_def1_u64);
    while begun.elapsed() < seconds {
        while (number as f64) * (WRITE as f64) < begun.elapsed() * BYTES_PER_SECOND {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state % (DISK_BYTES / WRITE as u64) * WRITE as u64;
            blocks.insert(at / types::limits::BLOCK_BYTES);
            let from = (number as usize * WRITE) % source.len();
            write(capture, at, &source.slice(from..from + WRITE))?;
            number += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
