//! How long guests' acknowledgements are held for a cut across two hosts, on loopback, with both writing.

use super::headline::incompressible;
use super::pair::{Pair, write};
use crate::Run;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result};
use api::ProtectSettings;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DISK_BYTES: u64 = 256 << 20;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let source = incompressible();
    let mut pair = Pair::start_listening(&run.folder.join("cuts"))?;
    let settings = ProtectSettings { checkpoint_interval_seconds: Some(60), ..ProtectSettings::default() };
    let here = pair.protect("db", DISK_BYTES, settings.clone())?;
    pair.start_member("")?;
    pair.protect_at_member("web", Some("db"), DISK_BYTES, settings)?;
    let stop = AtomicBool::new(false);
    let holds = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let writing = scope.spawn(|| -> Result<()> {
            let mut number = 0usize;
            while !stop.load(Ordering::Relaxed) {
                let from = (number * 4096) % source.len();
                write(&here, (from as u64) % DISK_BYTES, &source.slice(from..from + 4096))?;
                number += 1;
                if number.is_multiple_of(16) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        });
        let holds = cuts(&pair, run.scaled(2000));
        stop.store(true, Ordering::Relaxed);
        writing.join().expect("a panic aborts the process")?;
        holds
    })?;
    let longest = holds.iter().copied().fold(0.0, f64::max) * 1e3;
    let holds: Vec<f64> = holds.iter().map(|seconds| seconds * 1e3).collect();
    Ok(vec![
        Figure::alone("acknowledgements held for a cut across hosts", &holds, "ms", Goal::AtMost(1.0)),
        Figure::alone("the longest of them", &[longest], "ms", Goal::AtMost(50.0)),
    ])
}

/// Seconds of each hold.
fn cuts(pair: &Pair, count: u64) -> Result<Vec<f64>> {
    let client = pair.our_client();
    let mut holds = Vec::new();
    pair.wait("the other host has joined", || {
        Ok(pair.runtime.block_on(client.tag("db", "first")).is_ok().then_some(()))
    })?;
    for number in 0..count {
        let _ = pair.runtime.block_on(client.tag("db", &format!("cut {number}")));
        let groups = pair.runtime.block_on(client.groups())?;
        holds.push(groups.first().context("the group is here")?.hold_last_seconds);
    }
    Ok(holds)
}
