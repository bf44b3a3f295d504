//! Images that are recorded and cannot be served: shown with the reason, tried again, and closed like others. What an
//! image holds is never forgotten because it could not be opened once.

use super::Recovery;
use super::images::{Closing, ImageRecord};
use super::one_at_a_time::Turn;
use crate::error::{OperationError, Result};
use joint::life::Use;
use std::path::PathBuf;
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
            checkpoint: None,
            writable: record.writable,
            socket: String::new(),
            disks: Vec::new(),
            overlay_bytes: 0,
            promotion: api::Promotion { state: "none".into(), own_bytes: 0, total_bytes: 0, error: None },
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
                tokio::task::spawn_blocking(move || {
                    // Whoever does something with its group, a try before this one too, comes first.
                    if let Some(_turn) = recovery.try_turn_for_image(&record)
                        && recovery.waiting_images().contains_key(&record.id)
                    {
                        recovery.serve_again(record);
                    }
                });
            }
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
        self.waiting_images().insert(record.id.clone(), Unserved { record, error });
    }

    /// Serves a recorded image again, on the socket it had; one that cannot be served waits.
    pub(super) fn serve_again(&self, record: ImageRecord) {
        let served = self.try_again(&record);
        let mut waiting = self.waiting_images();
        let Err(error) = served else {
            if waiting.remove(&record.id).is_some() {
                tracing::info!(image = record.id, vm = record.vm_name, "image is served again");
            }
            return;
        };
        let before = waiting.get(&record.id).map(|image| &image.error);
        if before != Some(&error.detail) {
            let (image, vm) = (&record.id, &record.vm_name);
            tracing::error!(image, vm, error = error.detail, "image is not served");
        }
        waiting.insert(record.id.clone(), Unserved { record, error: error.detail });
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

    /// Closes an image that is not served.
    pub(super) fn close_waiting(&self, id: &str) -> Result<Vec<PathBuf>> {
        let missing = || {
            let detail = format!("no image {id:?} is open; `holdfast image list` shows those that are");
            OperationError::not_found(detail)
        };
        let record = self.waiting_images().get(id).map(|image| image.record.clone()).ok_or_else(missing)?;
        let _turn = self.turn_for_image(&record)?;
        if let Some(group) = record.failover {
            return Err(OperationError::conflict(format!(
                "the failover of group {group} needs this image, which cannot be served just now: roll it back, or see \
                 in `holdfast image list` what is in its way"
            )));
        }
        self.end_waiting(id)
    }

    /// Ends an image that is not served; its group's turn is held.
    pub(super) fn end_waiting(&self, id: &str) -> Result<Vec<PathBuf>> {
        let Some(mut record) = self.waiting_images().get(id).map(|image| image.record.clone()) else {
            return Ok(Vec::new());
        };
        let vm = self.vm_of_record(&record.vm);
        let kept = match vm {
            Some(vm) => {
                let lease = match super::at::lease_of(&vm, Use::Image) {
                    Err(error) if !record.promoted => {
                        self.give_up_until_open(record, error.detail)?;
                        return Ok(Vec::new());
                    }
                    lease => lease?,
                };
                let folder = vm.folder(&self.journal_config.folder);
                if record.closing.is_none() {
                    let keep_in = record.promoted.then(|| super::promoted::place_for(&folder, &record));
                    record.closing = Some(Closing { keep_in: keep_in.transpose()? });
                }
                self.finish_image(&lease, &folder, &record)?
            }
            // Its overlay went with the journal.
            None => {
                self.check_image_has_no_unread_vm(&record.vm)?;
                self.state.remove(&record.file_name())?;
                Vec::new()
            }
        };
        self.waiting_images().remove(id);
        Ok(kept)
    }
}
