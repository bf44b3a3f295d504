//! What a range as long as a disk costs: a discard of an empty disk of a tebibyte, as a guest's `mkfs` does it.

use super::targets::{Holdfast, Journal, Protection, Qemu};
use crate::Run;
use crate::clock::timed;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result};
use std::fs::File;

const DISK_BYTES: u64 = 1 << 40;
/// What Linux asks for at once.
const DISCARD_BYTES: u64 = 2 << 30;

/// Discards a second of a whole disk.
fn discard_all(uri: &str) -> Result<f64> {
    let (seconds, done) = timed(|| lab::discard_all(uri));
    done?;
    Ok((DISK_BYTES / DISCARD_BYTES) as f64 / seconds)
}

pub(super) fn scale(run: &Run) -> Result<Vec<Figure>> {
    let image = run.folder.join("sparse.raw");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..run.rounds() {
        File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).context("make a sparse disk")?;
        let target = Holdfast::start(&run.folder, &image, Protection::Replicated(Journal::InMemory))?;
        target.wait_until_drained()?;
        ours.push(discard_all(&target.nbd_uri()?)?);
        target.wait_until_drained()?;
        drop(target);
        let peer = Qemu::nbd(&run.folder, &image)?;
        theirs.push(discard_all(&peer.nbd_uri())?);
    }
    let name = "NBD, replicated: 2 GiB discards, 1 TiB, beside qemu-nbd";
    Ok(vec![Figure::against(name, &ours, &theirs, "discards/s", Goal::AtLeast(0.2))])
}
