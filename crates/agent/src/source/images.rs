//! What the images of a protected VM are, compared with what they were: at each start by what is recorded, and while
//! they are open by their names. What to do is said here, and nothing is done.

use super::above::image_above;
use super::record::{DiskRecord, ImageFile, ProtectionRecord};
use crate::error::{OperationError, Result};
use splitter::{DiskIdentity, Look};
use std::path::Path;

/// What is wrong with an image that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What happened, and what to do about it.
    pub(super) text: String,
    /// Nothing is lost as long as it stays open: what is served is a part of what is there.
    pub(super) may_stay_open: bool,
}

/// What an image is now.
pub(super) fn image_file(size_bytes: u64, identity: Option<DiskIdentity>) -> ImageFile {
    let (inode, made_at) = identity.map_or((0, 0), |identity| (identity.inode, identity.made_at.0));
    ImageFile { size_bytes, inode, made_at_nanoseconds: made_at }
}

/// Whether a disk that is about to be served is the one that is protected. The size to serve it with.
///
/// # Errors
/// Where it is too small, or another file than one that was let go.
pub(super) fn check_at_start(record: &ProtectionRecord, disk: &DiskRecord, now: &ImageFile) -> Result<u64> {
    let Some(then) = &disk.file else { return Ok(now.size_bytes) };
    let path = disk.path.display();
    if record.let_go && !then.is_same_file(now) {
        return Err(OperationError::conflict(replaced(&disk.path, &record.name)));
    }
    if !then.is_same_file(now) {
        tracing::warn!(vm = record.name, disk = %path, "another file than before has the image's name: everything is compared");
    }
    if now.size_bytes < then.size_bytes {
        return Err(OperationError::conflict(shrunk(&disk.path, then.size_bytes, now.size_bytes)));
    }
    Ok(then.size_bytes)
}

/// What is wrong with an image that is open and served with `size_bytes`.
pub(super) fn trouble(look: Look, path: &Path, vm: &str, size_bytes: u64) -> Option<Trouble> {
    let lost = |text| Some(Trouble { text, may_stay_open: false });
    match look {
        Look::Named { size_bytes: now } if now == size_bytes => None,
        Look::Named { size_bytes: now } if now > size_bytes => {
            Some(Trouble { text: grown(path, vm, size_bytes, now), may_stay_open: true })
        }
        Look::Named { size_bytes: now } => lost(shrunk(path, size_bytes, now)),
        Look::Replaced => lost(replaced(path, vm)),
        Look::Gone => lost(format!(
            "disk image {} does not exist any more: it was deleted or renamed while the agent had it open. Put it back under \
             its name; if it is deleted, all it had is in the journal at the other side, up to the last checkpoint",
            path.display()
        )),
    }
}

/// What is wrong where one of these processes writes to an image that stands on a disk of `socket`.
pub(super) fn trouble_above(
    processes: impl IntoIterator<Item = u32>,
    socket: &Path,
    vm: &str,
) -> Option<Trouble> {
    let above = |process: u32| Some((process, image_above(process, socket)?));
    let (process, image) = processes.into_iter().find_map(above)?;
    let text = format!(
        "process {process} has image {} open, which stands above a disk of VM {vm}, as an external snapshot makes one: what the \
         guest writes goes there, and is not protected. Merge it back into the disk (`virsh blockcommit --active --pivot`, or \
         QEMU's `block-commit` and `block-job-complete`): what it has is protected then, and all that follows",
        image.display()
    );
    Some(Trouble { text, may_stay_open: true })
}

fn replaced(path: &Path, vm: &str) -> String {
    format!(
        "{} names another file than the disk image that is protected, which was replaced while the agent had it open. Put \
         the image back under its name; or, if the file that is there now is meant, say `holdfast vm resync {vm}`: it is \
         compared whole, and older checkpoints stay",
        path.display()
    )
}

fn shrunk(path: &Path, then: u64, now: u64) -> String {
    format!(
        "disk image {} has {now} bytes, and had {then} bytes before: a part of the disk is cut off. Make it as long as it was \
         (`truncate --size {then} {0}`, what was cut off reads as zeroes then), or put a whole copy of it back",
        path.display()
    )
}

fn grown(path: &Path, vm: &str, then: u64, now: u64) -> String {
    format!(
        "disk image {} has grown to {now} bytes; VM {vm} goes on with the {then} bytes that are protected, since a protection \
         cannot grow yet. To go back: `truncate --size {then} {0}`. To use the new size: stop the VM, `holdfast vm unprotect \
         {vm}`, and protect it again, in its group as before; the history until then stays at the other side, as that of \
         a VM that has left, until `holdfast vm forget` there",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/images/web.raw";

    fn said(look: Look) -> (String, bool) {
        let trouble = trouble(look, Path::new(PATH), "web", 1 << 20).unwrap();
        (trouble.text, trouble.may_stay_open)
    }

    #[test]
    fn an_image_under_its_name_with_its_size_is_well() {
        assert_eq!(trouble(Look::Named { size_bytes: 1 << 20 }, Path::new(PATH), "web", 1 << 20), None);
    }

    #[test]
    fn what_is_wrong_with_an_image_is_told_with_what_to_do() {
        let (text, may_stay_open) = said(Look::Named { size_bytes: 2 << 20 });
        assert!(
            text.contains("truncate --size 1048576 /images/web.raw") && text.contains("vm unprotect web")
        );
        assert!(may_stay_open, "the guest loses nothing by it");
        let (text, may_stay_open) = said(Look::Named { size_bytes: 4096 });
        assert!(text.contains("has 4096 bytes") && !may_stay_open);
        let (text, may_stay_open) = said(Look::Replaced);
        assert!(text.contains("vm resync web") && !may_stay_open);
        let (text, may_stay_open) = said(Look::Gone);
        assert!(text.contains("does not exist any more") && !may_stay_open);
    }
}
