//! Promotion of open images in the background.

use super::Recovery;
use super::images::{ImageRecord, OpenImage};
use crate::error::{OperationError, Result, with_sources};
use crate::pace::Pace;
use crate::state::StateDir;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A promotion of one image, and how it went.
#[derive(Debug, Default)]
pub(super) struct PromotionRun {
    /// It was asked for, and came to its end: the disks are never thrown away. An image of which the guest has
    /// written every block is not promoted by that.
    done: AtomicBool,
    running: AtomicBool,
    stop: AtomicBool,
    error: Mutex<Option<String>>,
}

impl PromotionRun {
    pub(super) fn begin(done: bool) -> Self {
        Self { done: AtomicBool::new(done), ..Self::default() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

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
        if !image.promotion.is_done() && !image.promotion.running.swap(true, Ordering::SeqCst) {
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
    let (id, vm) = (&image.record.id, &image.record.vm_name);
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

/// Writes down that an image is promoted; not one that was closed meanwhile, whose disks are gone.
fn keep(image: &OpenImage, state: &StateDir) -> std::result::Result<(), String> {
    let ended = image.ended.lock().expect("a panic aborts the process");
    if *ended {
        return Err("the image was closed before it was promoted".into());
    }
    let record = ImageRecord { promoted: true, ..image.record.clone() };
    let kept = state.save(&record.file_name(), &record).map_err(|error| format!("{error:#}"));
    image.promotion.done.store(kept.is_ok(), Ordering::SeqCst);
    let unpinned = image.unpin().map_err(|error| format!("cannot take the image's pin away: {error}"));
    kept.and(unpinned.map(drop))
}

/// A promotion for the operator.
pub(super) fn to_api(image: &OpenImage) -> api::Promotion {
    // In this order: what is found not to run has ended, and says how.
    let running = image.promotion.running.load(Ordering::SeqCst);
    let promotion = image.image().promotion();
    let error = image.promotion.error.lock().expect("a panic aborts the process").clone();
    let state = if running {
        "running"
    } else if image.promotion.is_done() {
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
    use super::super::tests::{PEER, append_sync, hello, recovery};
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
            !recovery.state.path(&image.record.file_name()).exists(),
            "it would be served as an empty disk"
        );
    }
}
