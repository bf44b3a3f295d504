//! Comparing by hash: what a core hashes, and how fast both sides are compared.

use super::headline::incompressible;
use super::pair::{Pair, write};
use crate::Run;
use crate::clock::{Moment, timed};
use crate::figures::{Figure, Goal};
use anyhow::Result;
use api::ProtectSettings;
use batch::BlockHash;

const DISK_BYTES: u64 = 2 << 30;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let source = incompressible();
    let mut hashing = Vec::new();
    for _ in 0..run.rounds() {
        let (seconds, hashes) = timed(|| BlockHash::of_run(&source));
        anyhow::ensure!(hashes.len() == 1024, "64 MiB are 1024 blocks");
        hashing.push(source.len() as f64 / 1e9 / seconds);
    }
    let bytes = run.scaled(DISK_BYTES);
    let pair = Pair::start(&run.folder.join("compare"), "")?;
    let capture = pair.protect("vm", bytes, ProtectSettings::default())?;
    let chunk = 1 << 20;
    let image = std::fs::OpenOptions::new().write(true).open(run.folder.join("compare/vm.raw"))?;
    for at in (0..bytes).step_by(chunk) {
        let from = at as usize % source.len();
        let payload = source.slice(from..from + chunk);
        std::os::unix::fs::FileExt::write_all_at(&image, &payload, at)?;
        write(&capture, at, &payload)?;
        while capture.status().buffered_bytes * 2 > capture.status().buffer_bytes_max {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
    let last = capture.status().last;
    pair.wait("all has come", || Ok((capture.status().released >= last).then_some(())))?;
    let mut comparing = Vec::new();
    for _ in 0..run.rounds() {
        let begun = Moment::now();
        pair.runtime.block_on(pair.our_client().verify("vm"))?;
        let found = pair.wait("both sides are compared", || {
            Ok(pair.vm("vm")?.verify.filter(|verify| verify.state == "done"))
        })?;
        anyhow::ensure!(found.differing_bytes == 0, "both sides are equal: {found:?}");
        comparing.push(bytes as f64 / 1e9 / begun.elapsed());
    }
    Ok(vec![
        Figure::alone("hashing on one core", &hashing, "GB/s", Goal::AtLeast(1.0)),
        Figure::alone("comparing both sides, all of it written", &comparing, "GB/s", Goal::None),
    ])
}
