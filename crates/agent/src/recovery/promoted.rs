//! Promoted disks that outlive their image. They are nobody's but the operator's: no command removes them.
//!
//! A crash story: (1) the image's record says where its disks go, durably; (2) each goes there by one rename, and the
//! folders are synced; (3) what is left of the overlay is removed, then the record. A crash after (1) finds the
//! record when the agent is back, and goes on at (2): an image that is being closed is never served again, for where
//! a disk is gone already an empty one would be made in its place.

use super::Recovery;
use super::images::{Closing, ImageRecord};
use crate::error::Result;
use crate::own_folders::DISKS_OF;
use anyhow::Context;
use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, statx};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folder for the disks of a promoted image: beside the journal's, or in it where that is a file system of its own, of
/// which a rename does not lead out. Either is left alone when the journal is moved or forgotten.
pub(super) fn place_for(journal: &Path, record: &ImageRecord) -> Result<PathBuf> {
    let parent = journal.parent().context("the journal's folder has no parent")?;
    let folder = if is_one_file_system(parent, journal)? { parent } else { journal };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let name: String = record.vm_name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    Ok(folder.join(format!("{DISKS_OF}{name}-{}", record.id)))
}

/// Whether what is in a journal's folder can be renamed into the one above it.
fn is_one_file_system(parent: &Path, journal: &Path) -> anyhow::Result<bool> {
    let look = |path: &Path| {
        statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
            .with_context(|| format!("look at {}", path.display()))
    };
    let (above, journal) = (look(parent)?, look(journal)?);
    let device = |of: &Statx| (of.stx_dev_major, of.stx_dev_minor);
    // A folder may also be mounted a second time.
    let is_mounted = journal.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(device(&above) == device(&journal) && !is_mounted)
}

/// What is left of a closed image.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    /// Promoted disks.
    pub(crate) kept: Vec<PathBuf>,
    /// Why the last writes to them may be lost.
    pub(crate) lost: Option<String>,
}

impl Recovery {
    /// Gives up everything an image holds but for promoted disks, which are moved to their place.
    pub(super) fn finish_image(
        &self,
        journal: &journal::Journal,
        folder: &Path,
        record: &ImageRecord,
    ) -> Result<Closed> {
        let (mut kept, record) = (Vec::new(), &with_place_within_reach(folder, record)?);
        self.state.save(&record.file_name(), record)?;
        if let Some(target) = record.closing.as_ref().and_then(|closing| closing.keep_in.as_ref()) {
            let disks = journal.disks().into_iter().map(|disk| disk.name);
            kept = move_disks(&folder.join(record.overlay_folder()), target, disks)?;
        }
        // The pin is kept over restarts, so that nothing an image needs is folded before it is served again.
        let owner = record.pin_owner();
        journal.unpin(|pin| pin.owner == owner).context("remove the image's pin")?;
        journal.discard_overlays(&record.overlay_folder()).context("remove the overlay")?;
        self.state.remove(&record.file_name())?;
        tracing::info!(vm = record.vm_name, image = record.id, disks = ?kept, "image closed");
        Ok(Closed { kept, lost: None })
    }
}

/// An agent of before may have written down a place in another file system than the journal's, to which a rename never leads:
/// as long as no disk is there they go where they can.
fn with_place_within_reach(folder: &Path, record: &ImageRecord) -> Result<ImageRecord> {
    let mut record = record.clone();
    let place = record.closing.as_mut().and_then(|closing| closing.keep_in.take());
    let Some(mut place) = place else { return Ok(record) };
    let is_empty = std::fs::read_dir(&place).map_or(true, |mut rows| rows.next().is_none());
    if is_empty {
        let within_reach = place_for(folder, &record)?;
        if within_reach != place {
            // It was made, and is nobody's.
            let _ = std::fs::remove_dir(&place);
            place = within_reach;
        }
    }
    record.closing = Some(Closing { keep_in: Some(place) });
    Ok(record)
}

fn move_disks(from: &Path, to: &Path, disks: impl Iterator<Item = String>) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let mut kept = Vec::new();
    for disk in disks {
        let (source, target) = (from.join(format!("{disk}.data")), to.join(format!("{disk}.raw")));
        if !target.exists() {
            std::fs::rename(&source, &target).with_context(|| format!("keep {}", source.display()))?;
        }
        kept.push(target);
    }
    // One that is gone was emptied, synced and removed by whoever was interrupted then.
    let left = from.exists().then_some(from);
    for folder in [Some(to), to.parent(), left].into_iter().flatten() {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("sync {}", folder.display()))?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
