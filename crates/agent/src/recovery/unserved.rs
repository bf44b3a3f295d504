//! Images that are recorded and cannot be served: shown with the reason, tried again, and closed like others. What an
//! image holds is never forgotten because it could not be opened once.

use super::Recovery;
use super::images::{Closing, ImageRecord};
use super::one_at_a_time::Turn;
use super::promoted::Closed;
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use crate::error::{OperationError, Result};
use joint::life::Use;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use types::{GroupId, WriteSeq};

const RETRY: Duration = Duration::from_secs(10);

/// An image that is not served, and why.
#[derive(Debug)]
pub(super) struct Unserved {
    pub(super) record: ImageRecord,
    error: String,
}

impl Unserved {
    pub(super) fn to_api(&self) -> api::Image {
        let record = &self.record;
        api::Image {
            id: record.id.clone(),
            vm: record.vm_name.clone(),
            cut: WriteSeq::from_raw(record.cut).to_string(),
            taken_at: None,
            checkpoint: None,
            notes: Vec::new(),
            writable: record.writable,
            socket: String::new(),
            disks: Vec::new(),
            overlay_bytes: 0,
            promotion: api::Promotion { state: "none".into(), own_bytes: 0, total_bytes: 0, error: None },
            zeroed_bytes: record.zeroed.bytes,
            zeroed: record.zeroed.to_api(),
            owner: record.owner(),
            open_seconds: record.open_seconds,
            error: Some(format!("not served, tried again by itself: {}", self.error)),
        }
    }
}

impl Recovery {
    /// Tries those again that could not be served, each by itself: one whose disk hangs is no other's trouble.
    pub(crate) async fn serve_waiting_images(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RETRY).await;
            let waiting: Vec<_> = self.waiting_images().values().map(|image| image.record.clone()).collect();
            for record in waiting {
                let recovery = self.clone();
                tokio::task::spawn_blocking(move || recovery.try_waiting(&record));
            }
        }
    }

    /// Tries one again, as it waits once its group's turn is there: whoever does something with the group, a try before this
    /// one too, comes first, and may have closed it.
    fn try_waiting(&self, seen: &ImageRecord) {
        let Some(_turn) = self.try_turn_for_image(seen) else { return };
        let waiting = self.waiting_images().get(&seen.id).map(|image| image.record.clone());
        if let Some(record) = waiting {
            self.serve_again(record);
        }
    }

    /// The group that an image belongs to; no group's id where its VM is not kept any more.
    fn group_of_image(&self, record: &ImageRecord) -> GroupId {
        self.vm_of_record(&record.vm).map_or(GroupId::from_bytes([0; 16]), |vm| vm.group())
    }

    pub(super) fn turn_for_image(&self, record: &ImageRecord) -> Result<Turn<'_>> {
        let name = record.failover.as_deref().unwrap_or(&record.vm_name);
        self.turns_of_groups.take(self.group_of_image(record), name)
    }

    fn try_turn_for_image(&self, record: &ImageRecord) -> Option<Turn<'_>> {
        self.turns_of_groups.try_take(self.group_of_image(record))
    }

    pub(super) fn wait_for_image(&self, record: ImageRecord, error: String) {
        let (cause, text) = (image_alert(&record.id), text_of_waiting(&record, &error));
        self.waiting_images().insert(record.id.clone(), Unserved { record, error });
        self.alerts.raise(cause, text);
    }

    /// Serves a recorded image once its journal is open, which is only begun.
    pub(super) fn serve_later(&self, record: ImageRecord) {
        let error = "its journal is not open yet".to_owned();
        self.waiting_images().insert(record.id.clone(), Unserved { record, error });
    }

    /// Serves what waits of a VM's images.
    pub(super) fn serve_images_of(&self, vm: &RecoveredVm) {
        let id = vm.id().to_string();
        let is_of_it = |image: &&Unserved| image.record.vm == id;
        let waiting: Vec<_> =
            self.waiting_images().values().filter(is_of_it).map(|image| image.record.clone()).collect();
        for record in waiting {
            // Where what is done with its group does not end, it is tried again.
            let Ok(_turn) = self.turn_for_image(&record) else { continue };
            if self.waiting_images().get(&record.id).is_some_and(|image| image.record == record) {
                self.serve_again(record);
            }
        }
    }

    /// Says of all images that wait that they do.
    pub(super) fn tell_unserved(&self) {
        let waiting: Vec<_> =
            self.waiting_images().values().map(|image| (image.record.clone(), image.error.clone())).collect();
        for (record, error) in waiting {
            self.alerts.raise(image_alert(&record.id), text_of_waiting(&record, &error));
            if !self.waiting_images().contains_key(&record.id) {
                self.alerts.clear(image_alert(&record.id));
            }
        }
    }

    /// An image waits no longer, if it did.
    fn wait_no_longer(&self, id: &str) -> bool {
        let waited = self.waiting_images().remove(id).is_some();
        self.alerts.clear(image_alert(id));
        waited
    }

    /// Serves a recorded image again, on the socket it had; one that cannot be served waits.
    pub(super) fn serve_again(&self, record: ImageRecord) {
        if let Err(error) = self.try_again(&record) {
            return self.wait_for_image(record, error.detail);
        }
        if self.wait_no_longer(&record.id) && record.closing.is_none() {
            tracing::info!(image = record.id, vm = record.vm_name, "image is served again");
        }
        if let Some(image) = self.image(&record.id) {
            self.tell_image_damage(&image);
        }
    }

    /// Serves an image now that waits for that; whether there is one. One that could not be opened is given up first.
    pub(super) fn serve_waiting(&self, id: &str) -> Result<bool> {
        let waiting = self.waiting_images().get(id).map(|image| image.record.clone());
        let Some(record) = waiting else { return Ok(false) };
        if record.closing.is_some() {
            self.end_waiting(id)?;
            return Ok(false);
        }
        self.serve_again(record);
        match self.waiting_images().get(id) {
            Some(image) => Err(OperationError::unavailable(image.error.clone())),
            None => Ok(true),
        }
    }

    fn try_again(&self, record: &ImageRecord) -> Result<()> {
        let vm = self.vm_of_record(&record.vm);
        let Some(vm) = vm else {
            if record.is_given_up() {
                // What it had went with the journal.
                self.check_image_has_no_unread_vm(&record.vm)?;
                return Ok(self.state.remove(&record.file_name())?);
            }
            return Err(OperationError::not_found("its journal is not kept here any more"));
        };
        let lease = super::at::lease_of(&vm, Use::Image)?;
        if record.closing.is_some() {
            return self.finish_image(&lease, &vm.folder(&self.journal_config.folder), record).map(drop);
        }
        let image = self.serve_image(&vm, &lease, record)?;
        self.have_it_stay(&vm, &lease, image).map(drop)
    }

    /// Ends an image that is not served; its group's turn is held.
    pub(super) fn end_waiting(&self, id: &str) -> Result<Closed> {
        let Some(mut record) = self.waiting_images().get(id).map(|image| image.record.clone()) else {
            return Ok(Closed::default());
        };
        let vm = self.vm_of_record(&record.vm);
        let kept = match vm {
            Some(vm) => {
                let lease = match super::at::lease_of(&vm, Use::Image) {
                    Err(error) => {
                        self.give_up_until_open(&record, error.detail)?;
                        return Ok(Closed::default());
                    }
                    Ok(lease) => lease,
                };
                let folder = vm.folder(&self.journal_config.folder);
                if record.closing.is_none() {
                    let keep_in = record.promoted.then(|| super::promoted::place_for(&folder, &record));
                    record.closing = Some(Closing { keep_in: keep_in.transpose()? });
                }
                match self.finish_image(&lease, &folder, &record) {
                    Ok(kept) => kept,
                    Err(error) => {
                        // Some of it may be gone: what waits from here on is to be closed, and not to be served.
                        self.wait_for_image(record, error.detail.clone());
                        return Err(error);
                    }
                }
            }
            // Its overlay went with the journal.
            None => {
                self.check_image_has_no_unread_vm(&record.vm)?;
                self.state.remove(&record.file_name())?;
                Closed::default()
            }
        };
        self.wait_no_longer(id);
        Ok(kept)
    }
}

impl Recovery {
    /// Says what a VM's journal has of images that nothing is recorded of. It may be a promoted disk, or hold what a guest
    /// wrote: nobody but the operator throws it away.
    pub(super) fn tell_leftovers(&self, vm: &RecoveredVm) {
        let Some(journal) = vm.journal() else { return };
        let folder = vm.folder(&self.journal_dir);
        let rows = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let names = rows.filter_map(|row| row.file_name().into_string().ok());
        let of_folders = names.filter_map(|name| name.strip_prefix("image-").map(str::to_owned));
        let owners = journal.pins().into_iter().map(|pin| pin.owner);
        let of_pins = owners.filter_map(|owner| owner.strip_prefix("image ").map(str::to_owned));
        for id in of_folders.chain(of_pins).collect::<BTreeSet<_>>() {
            if self.state.path(&format!("images/{id}.json")).exists() {
                continue;
            }
            let text = format!(
                "VM {}: nothing is recorded of image {id} any more, of which its journal still has something: look at {} and \
                 remove it where nobody needs it, and see in `holdfast journal show {}` whether a pin of it holds history",
                vm.name(),
                folder.join(format!("image-{id}")).display(),
                vm.id()
            );
            self.alerts.raise(format!("what is left of image {id}"), text);
        }
    }
}

fn text_of_waiting(record: &ImageRecord, error: &str) -> String {
    let what = if record.closing.is_some() { "closed" } else { "served" };
    let (id, vm) = (&record.id, &record.vm_name);
    format!("image {id} of VM {vm} is not {what}, tried again by itself: {error}")
}

/// What an image that is not served, or only in part, is an alert of.
pub(super) fn image_alert(id: &str) -> Cause {
    Cause::new(AlertKind::ImageUnserved, id)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, open_by_hand, recovery};
    use super::*;

    #[test]
    fn an_image_that_was_given_up_just_before_it_is_tried_again_is_not_served_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let image = open_by_hand(&recovery);
        let seen = image.record();
        let vm = recovery.list()[0].clone();
        close(&vm);
        recovery.close_image(&seen.id, false).unwrap();
        recovery.open_journal(&vm, Use::Look).unwrap();
        recovery.try_waiting(&seen);
        assert!(recovery.list_images().is_empty() && !recovery.has_images(&vm), "it was told as closed");
        assert!(!vm.folder(&recovery.journal_dir).join(seen.overlay_folder()).exists());
    }
}
