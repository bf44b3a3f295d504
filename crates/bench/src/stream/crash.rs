//! What the death of the protected agent costs, and a power cut of its host: bytes sent, and what is compared.

use super::headline::incompressible;
use super::pair::Pair;
use crate::Run;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result, bail};
use api::ProtectSettings;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use types::limits::{BLOCK_BYTES, REGION_LOG_BYTES};

const DISK_BYTES: u64 = 2 << 30;
/// Blocks written while nothing is acknowledged.
const BLOCKS: u64 = 2048;
const MIB: f64 = (1 << 20) as f64;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let blocks = run.scaled(BLOCKS);
    let mut pair = Pair::start(&run.folder.join("crash"), "")?;
    pair.start_member("[stream]\ncompression = \"none\"\n")?;
    let settings =
        ProtectSettings { spill_bytes: Some(0), checkpoint_interval_seconds: Some(60), ..Default::default() };
    pair.protect_at_member("vm", None, DISK_BYTES, settings)?;
    let written = blocks as f64 * BLOCK_BYTES as f64 / MIB;

    write_unacknowledged(&mut pair, &run.folder, blocks, 0)?;
    pair.kill_member()?;
    let after_kill = sent_after_return(&mut pair)?;

    wait_for_cold_regions(&pair)?;
    let touched = write_unacknowledged(&mut pair, &run.folder, blocks, 1)?;
    pair.kill_member()?;
    // The page cache is gone, and the dirty map with it; the region log had been synced before the writes.
    std::fs::remove_file(tracking_file(&pair, "map")?).context("lose the dirty map")?;
    pair.restart_member()?;
    let compared = pair.member_vm("vm")?.dirty_bytes as f64 / MIB;
    pair.kill_member()?;
    let after_power_cut = sent_after_return(&mut pair)?;
    let marked = touched as f64 * REGION_LOG_BYTES as f64 / MIB;
    Ok(vec![
        Figure::against(
            "sent after kill -9 of the protected agent, of the blocks not acknowledged",
            &[after_kill],
            &[written],
            "MiB",
            Goal::AtMost(1.1),
        ),
        Figure::against(
            "compared after a power cut of its host, of the regions written to",
            &[compared],
            &[marked],
            "MiB",
            Goal::AtMost(1.0),
        ),
        Figure::against(
            "sent after the power cut, of the blocks not acknowledged",
            &[after_power_cut],
            &[written],
            "MiB",
            Goal::AtMost(1.1),
        ),
    ])
}

/// Writes blocks through the member's NBD server, every second one from the beginning or from the middle
/// of the disk, while the recovery side is away; how many regions that touched.
fn write_unacknowledged(pair: &mut Pair, folder: &Path, blocks: u64, time: u64) -> Result<usize> {
    pair.kill_recovery()?;
    let (source, data) = (incompressible(), folder.join("blocks.raw"));
    let file = File::create(&data).context("make a file of blocks")?;
    file.set_len(DISK_BYTES)?;
    let first = time * DISK_BYTES / 2 / BLOCK_BYTES;
    let mut regions = BTreeSet::new();
    for number in 0..blocks {
        let at = (first + number * 2) * BLOCK_BYTES;
        // One byte off for each block: no two are the same, and none is as it was.
        let from = number as usize * (BLOCK_BYTES as usize + 1) % (source.len() - BLOCK_BYTES as usize);
        file.write_all_at(&source[from..from + BLOCK_BYTES as usize], at).context("fill the file")?;
        regions.insert(at / REGION_LOG_BYTES);
    }
    let socket = pair.member_vm("vm")?.socket;
    let output = Command::new("qemu-img")
        .args(["convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw"])
        .arg(&data)
        .arg(format!("nbd+unix:///vda?socket={socket}"))
        .output()
        .context("run qemu-img convert")?;
    if !output.status.success() {
        bail!("qemu-img convert: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(regions.len())
}

/// Brings both sides back and waits until they are equal; MiB that were sent for it.
fn sent_after_return(pair: &mut Pair) -> Result<f64> {
    pair.start_recovery()?;
    pair.restart_member()?;
    pair.wait("both sides are equal", || {
        let vm = pair.member_vm("vm")?;
        let equal = vm.state == "journaling" && vm.dirty_bytes == 0 && vm.buffer_bytes == 0;
        Ok(equal.then_some(vm.sent_bytes as f64 / MIB))
    })
}

/// Waits until no region is marked as written to lately.
fn wait_for_cold_regions(pair: &Pair) -> Result<()> {
    /// Bytes before the marks of a region log.
    const HEADER: usize = 112;
    let log = tracking_file(pair, "regions")?;
    pair.wait("regions are cold", || {
        let bytes = std::fs::read(&log).context("read the region log")?;
        Ok(bytes[HEADER..].iter().all(|&byte| byte == 0).then_some(()))
    })
}

fn tracking_file(pair: &Pair, ending: &str) -> Result<PathBuf> {
    let rows =
        std::fs::read_dir(pair.member_folder().join("state/tracking")).context("list what is tracked")?;
    let mut files = rows.filter_map(|row| row.ok().map(|row| row.path()));
    let found = files.find(|path| path.extension().is_some_and(|found| found == ending));
    found.with_context(|| format!("a .{ending} file"))
}
