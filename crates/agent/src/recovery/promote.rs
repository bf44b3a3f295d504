//! Promotion of open images in the background.

use super::Recovery;
use super::images::OpenImage;
use crate::error::{OperationError, Result, with_sources};
use crate::pace::Pace;
use crate::state::StateDir;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A promotion of one image, and how it went. That it came to its end is in the image's record.
#[derive(Debug, Default)]
pub(super) struct PromotionRun {
    running: AtomicBool,
    stop: AtomicBool,
    error: Mutex<Option<String>>,
}

impl PromotionRun {
    /// Asks it to end after the step it is at.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Recovery {
    /// Begins to promote an image, or goes on with it; at once where it is promoted already.
    pub(crate) fn promote_image(&self, id: &str, request: &api::PromoteRequest) -> Result<api::Image> {
        let image = self.image(id).ok_or_else(|| {
            OperationError::not_found(format!(
                "no image {id:?} is open; `holdfast image list` shows those that are"
            ))
        })?;
        if !image.image().is_writable() {
            return Err(OperationError::conflict("only a writable image can be promoted"));
        }
        if !image.is_promoted() && !image.promotion.running.swap(true, Ordering::SeqCst) {
            let (run, rate, state) = (image.clone(), request.bytes_per_second, self.state.clone());
            // A thread of its own: it may take hours.
            let spawned =
                std::thread::Builder::new().name("promote".into()).spawn(move || promote(&run, rate, &state));
            spawned.map_err(anyhow::Error::from)?;
        }
        Ok(image.to_api())
    }
}

fn promote(image: &Arc<OpenImage>, bytes_per_second: u64, state: &StateDir) {
    let pace = Pace::new(bytes_per_second);
    let record = image.record();
    let (id, vm) = (&record.id, &record.vm_name);
    tracing::info!(image = id, vm, "promotion begins");
    let result = image.image().promote(|bytes| {
        pace.spend(bytes);
        !image.promotion.stop.load(Ordering::SeqCst)
    });
    let error = match result {
        Ok(promotion) if promotion.is_done() => {
            tracing::info!(image = id, vm, bytes = promotion.total_bytes, "promoted: it needs no journal");
            keep(image, state).err()
        }
        Ok(_) => None,
        Err(error) => {
            let error = with_sources(&error);
            tracing::error!(image = id, vm, error, "promotion stops; begin it again once that is mended");
            Some(error)
        }
    };
    *image.promotion.error.lock().expect("a panic aborts the process") = error;
    image.promotion.running.store(false, Ordering::SeqCst);
}

/// Writes down that an image is promoted; not one that is not served any more, whose record is another's. Its pin goes once
/// that is known for good: until then the image may yet be closed as one that needs its journal.
fn keep(image: &OpenImage, state: &StateDir) -> std::result::Result<(), String> {
    let ended = image.ended.lock().expect("a panic aborts the process");
    if *ended {
        return Err("the image was closed, or could not be served any more, before it was promoted".into());
    }
    image.change(state, |record| record.promoted = true).map_err(|error| format!("{error:#}"))?;
    image.unpin().map(drop).map_err(|error| format!("cannot take the image's pin away: {error}"))
}

/// A promotion for the operator.
pub(super) fn to_api(image: &OpenImage) -> api::Promotion {
    // In this order: what is found not to run has ended, and says how.
    let running = image.promotion.running.load(Ordering::SeqCst);
    let promotion = image.image().promotion();
    let error = image.promotion.error.lock().expect("a panic aborts the process").clone();
    let state = if running {
        "running"
    } else if image.is_promoted() {
        "done"
    } else if error.is_some() {
        "failed"
    } else {
        "none"
    };
    api::Promotion {
        state: state.into(),
        own_bytes: promotion.own_bytes,
        total_bytes: promotion.total_bytes,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::images::ImageRecord;
    use super::super::tests::{PEER, append_sync, hello, open_by_hand, recovery};
    use super::*;

    #[test]
    fn a_promotion_that_ends_after_its_image_was_closed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        append_sync(&recovery.admit(&hello(1), PEER).unwrap().1);
        let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
        let failover = recovery.failover("web", &request).unwrap();
        let image = recovery.image(&failover.vms[0].image).unwrap();
        recovery.rollback("web").unwrap();
        assert!(keep(&image, &recovery.state).is_err());
        assert!(!image.is_promoted());
        assert!(
            !recovery.state.path(&image.record().file_name()).exists(),
            "it would be served as an empty disk"
        );
    }

    #[test]
    fn a_promotion_that_ends_after_its_image_had_to_wait_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let image = open_by_hand(&recovery);
        // As where the journal has lost what the image reads from.
        let other = recovery.admit(&hello(2), PEER).unwrap().1;
        assert!(!recovery.rebind_image(&image.record().id, other.shared()));
        assert!(keep(&image, &recovery.state).is_err());
        let waiting = recovery.waiting_images()[&image.record().id].record.clone();
        let saved: ImageRecord = recovery.state.load(&waiting.file_name()).unwrap().unwrap();
        assert_eq!(
            (saved.promoted, waiting.promoted),
            (false, false),
            "of two truths one gives up its disks"
        );
    }

    #[test]
    fn a_promotion_that_cannot_be_written_down_leaves_the_image_its_journal() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let image = open_by_hand(&recovery);
        let in_the_way = recovery.state.path(&image.record().file_name()).with_extension("partial");
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(keep(&image, &recovery.state).is_err());
        assert!(!image.is_promoted());
        let journal = recovery.list()[0].journal().unwrap();
        assert_eq!(
            journal.pins().len(),
            1,
            "it would be folded beneath an image that counts as one that needs it"
        );
        std::fs::remove_dir(&in_the_way).unwrap();
        keep(&image, &recovery.state).unwrap();
        assert!(image.is_promoted() && journal.pins().is_empty());
    }
}
