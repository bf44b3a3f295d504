//! Promotion of open images: an operation, see [`plan`].

pub(super) mod plan;

use super::Recovery;
use super::images::{ImageRecord, OpenImage};
use super::plans::Plan;
use crate::error::{OperationError, Result, with_sources};
use crate::ledger::{Asker, StepError};
use crate::pace::Pace;
use crate::state::StateDir;
use operations::{At, Failure, Lock, OperationId, Progress};
use plan::{PromotePlan, PromoteStep, image_lock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use types::{ByteRange, DiskIndex};

/// The promotion of one image, as whoever ends the image sees it. That it came to its end is in the image's record.
#[derive(Debug, Default)]
pub(super) struct PromotionRun {
    stop: AtomicBool,
}

impl PromotionRun {
    /// Asks it to end after the step it is at.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Recovery {
    /// Promotes an image, or goes on with that. What cannot be done now is tried again by itself: whoever has asked hears of
    /// its end.
    pub(crate) fn promote_image(&self, id: &str, request: &api::PromoteRequest, asker: &Asker) -> Result<()> {
        let operation = self.begin_promotion(id, request, asker)?;
        self.go_on_with(operation);
        Ok(())
    }

    /// An open image.
    pub(crate) fn show_image(&self, id: &str) -> Result<api::Image> {
        let image = self.image(id).ok_or_else(|| not_open(id))?;
        Ok(self.image_to_api(&image))
    }

    pub(super) fn begin_promotion(
        &self,
        id: &str,
        request: &api::PromoteRequest,
        asker: &Asker,
    ) -> Result<OperationId> {
        let image = self.image(id).ok_or_else(|| not_open(id))?;
        if !image.image().is_writable() {
            return Err(OperationError::conflict("only a writable image can be promoted"));
        }
        let as_zeroes = request.lost_as_zeroes;
        if let Some((operation, ..)) = image_lock(id).and_then(|lock| self.operations.at(lock)) {
            if as_zeroes {
                // It waits for that.
                change(&image, &self.state, |record| record.lost_as_zeroes = true)?;
            }
            drop(self.operations.join(operation, asker)?);
            return Ok(operation);
        }
        let record = image.record();
        self.check_is_not_going_back(&record.vm, record.failover.as_deref())?;
        // Whatever was asked of a promotion before: that has ended.
        if record.lost_as_zeroes != as_zeroes {
            change(&image, &self.state, |record| record.lost_as_zeroes = as_zeroes)?;
        }
        let bytes_per_second = request.bytes_per_second;
        let plan = PromotePlan { image: record.id, label: record.vm_name, bytes_per_second };
        Ok(self.operations.begin(|| Plan::Promote(plan), asker)?.id)
    }

    /// What a failover runs on that is being rolled back is about to go.
    fn check_is_not_going_back(&self, vm: &str, failover: Option<&str>) -> Result<()> {
        let (Some(group), Some(vm)) = (failover, self.vm_of_record(vm)) else { return Ok(()) };
        match self.operations.at(Lock::Group(vm.group())) {
            Some((id, Plan::Rollback(_), _)) => Err(OperationError::conflict(format!(
                "the failover of group {group} is being rolled back by operation {id}, and the image with it"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// The image is ended: its promotion is not gone on with.
    pub(super) fn stop_promotion(&self, image: &OpenImage) {
        let lock = image_lock(&image.record().id);
        if let Some((.., control)) = lock.and_then(|lock| self.operations.at(lock)) {
            // Where it is too late it has only a pin to take away, which goes with the image.
            let _ = control.cancel();
        }
        image.promotion.stop();
    }

    pub(super) fn is_promote_step_done(&self, plan: &PromotePlan, step: PromoteStep) -> bool {
        let image = self.image(&plan.image);
        match step {
            PromoteStep::Copy | PromoteStep::Keep => image.is_some_and(|image| image.is_promoted()),
            // What an image has goes with it.
            PromoteStep::Unpin => image.is_none() && !self.waiting_images().contains_key(&plan.image),
        }
    }

    pub(super) fn run_promote_step(
        &self,
        plan: &PromotePlan,
        step: PromoteStep,
        at: &mut At<'_, PromotePlan>,
    ) -> std::result::Result<(), StepError> {
        let image = self.served(&plan.image)?;
        match step {
            PromoteStep::Copy => copy(&image, &self.state, plan, at),
            // All is copied by then: it is written down once the state folder takes it.
            PromoteStep::Keep => {
                Ok(keep(&image, &self.state).map_err(|error| OperationError::unavailable(error.detail))?)
            }
            PromoteStep::Unpin => {
                let unpinned = image.unpin().map(drop);
                Ok(unpinned.map_err(|error| {
                    OperationError::unavailable(format!("cannot take the image's pin away: {error}"))
                })?)
            }
        }
    }

    /// An image that is served. Whoever has closed it has ended its promotion too, and is told so by that.
    fn served(&self, id: &str) -> std::result::Result<Arc<OpenImage>, StepError> {
        if let Some(image) = self.image(id) {
            return Ok(image);
        }
        if self.waiting_images().contains_key(id) {
            return Err(OperationError::unavailable(format!("image {id} is not served just now")).into());
        }
        Err(Failure::Cancelled.into())
    }

    /// A promotion for the operator.
    pub(super) fn promotion_to_api(&self, image: &OpenImage) -> api::Promotion {
        let lock = image_lock(&image.record().id);
        let goes_on = lock.and_then(|lock| self.operations.at(lock));
        let promotion = image.image().promotion();
        let state = match &goes_on {
            Some(_) => "running",
            None if image.is_promoted() => "done",
            None => "none",
        };
        api::Promotion {
            state: state.into(),
            own_bytes: promotion.own_bytes,
            total_bytes: promotion.total_bytes,
            error: goes_on.and_then(|(.., control)| control.trouble()),
        }
    }
}

fn not_open(id: &str) -> OperationError {
    OperationError::not_found(format!("no image {id:?} is open; `holdfast image list` shows those that are"))
}

fn copy(
    image: &OpenImage,
    state: &StateDir,
    plan: &PromotePlan,
    at: &At<'_, PromotePlan>,
) -> std::result::Result<(), StepError> {
    let pace = Pace::new(plan.bytes_per_second);
    let may_zero = |disk, lost: &[ByteRange]| match zero(image, state, disk, lost) {
        Ok(may) => may,
        Err(error) => {
            tracing::warn!(image = plan.image, error = error.detail, "what is lost is not written down");
            false
        }
    };
    let pace = |bytes| {
        let (done, total) = (image.image().promotion().own_bytes, image.image().promotion().total_bytes);
        at.progress(Progress { done, total });
        pace.spend(bytes);
        !image.promotion.stop.load(Ordering::SeqCst) && at.check().is_ok()
    };
    match image.image().promote_past(pace, may_zero) {
        Ok(promotion) if promotion.is_done() => {
            let (image, vm) = (&plan.image, &plan.label);
            tracing::info!(image, vm, bytes = promotion.total_bytes, "promoted: it needs no journal");
            Ok(())
        }
        Ok(_) => {
            at.check()?;
            Err(OperationError::unavailable(format!("image {} is not served any more", plan.image)).into())
        }
        Err(error) => {
            let id = &plan.image;
            let way = format!(
                ": that is lost for good; `holdfast image promote {id} --lost-as-zeroes` makes zeroes of what is, and says \
                 where, or the guest writes over it"
            );
            let way = if error.is_loss() { way } else { String::new() };
            Err(OperationError::unavailable(format!("{}{way}", with_sources(&error))).into())
        }
    }
}

/// Whether what is lost may be zeroes; if so, that is written down from here on.
fn zero(image: &OpenImage, state: &StateDir, disk: DiskIndex, lost: &[ByteRange]) -> Result<bool> {
    if !image.record().lost_as_zeroes {
        return Ok(false);
    }
    let name = image.disk_name(disk);
    change(image, state, |record| record.zeroed.add(name, lost))?;
    let image = image.record();
    tracing::warn!(image = image.id, vm = image.vm_name, disk = name, ?lost, "lost bytes become zeroes");
    Ok(true)
}

/// Writes down that an image is promoted; not one that is not served any more, whose record is another's.
fn keep(image: &OpenImage, state: &StateDir) -> Result<()> {
    change(image, state, |record| record.promoted = true)
}

fn change(image: &OpenImage, state: &StateDir, change: impl FnOnce(&mut ImageRecord)) -> Result<()> {
    let ended = image.ended.lock().expect("a panic aborts the process");
    if *ended {
        return Err(OperationError::unavailable(
            "the image was closed, or could not be served any more, before it was promoted",
        ));
    }
    Ok(image.change(state, change)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        PEER, append_sync, append_writes, begin_anew, cut_short_everywhere, end, go_on_with_all, hello,
        open_by_hand, recovery, rot_writes,
    };
    use super::*;

    #[test]
    fn a_promotion_that_ends_after_its_image_was_closed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        append_sync(&recovery.admit(&hello(1), PEER).unwrap().1);
        let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
        let failover = recovery.failover("web", &request, &Asker::default()).unwrap();
        let image = recovery.image(&failover.vms[0].image).unwrap();
        recovery.rollback("web", &Asker::default()).unwrap();
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
        image.unpin().unwrap();
        assert!(image.is_promoted() && journal.pins().is_empty());
    }

    fn request() -> api::PromoteRequest {
        api::PromoteRequest::default()
    }

    /// A failover that is final, to a checkpoint of which 4096 bytes are lost; its image.
    fn committed_to_a_damaged_state(folder: &std::path::Path) -> (Arc<Recovery>, String) {
        let side = recovery(folder);
        let (vm, journal) = side.admit(&hello(1), PEER).unwrap();
        append_sync(&journal);
        append_writes(&journal);
        let at = journal.newest_checkpoint().unwrap().unwrap().checkpoint.id.to_string();
        drop(journal);
        rot_writes(&side, &vm);
        let request = api::FailoverRequest { at, vms: Vec::new(), without: Vec::new() };
        let image = side.failover("web", &request, &Asker::default()).unwrap().vms[0].image.clone();
        side.commit("web", &Asker::default()).unwrap();
        (side, image)
    }

    #[test]
    fn whoever_closes_an_image_whose_promotion_waits_has_ended_that_and_is_told_of_it_by_no_alert() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let image = open_by_hand(&recovery).record().id;
        let operation = recovery.begin_promotion(&image, &request(), &Asker::nobody()).unwrap();
        let other = recovery.admit(&hello(2), PEER).unwrap().1;
        assert!(!recovery.rebind_image(&image, other.shared()));
        go_on_with_all(&recovery);
        assert_eq!(recovery.operations.unended().len(), 1, "it waits for its image to be served");
        recovery.close_image(&image, false).unwrap();
        go_on_with_all(&recovery);
        assert_eq!(recovery.operations.unended().len(), 0);
        let told = recovery.alerts.list();
        assert!(!told.iter().any(|alert| alert.contains("operation")), "{told:?}");
        assert_eq!(recovery.show_operation(operation).unwrap().state, "taken-back");
    }

    #[test]
    fn what_is_lost_under_a_committed_failover_becomes_zeroes_where_that_is_asked_for_and_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (side, image) = committed_to_a_damaged_state(folder.path());
        let id = side.begin_promotion(&image, &request(), &Asker::default()).unwrap();
        go_on_with_all(&side);
        let trouble = side.show_operation(id).unwrap().trouble.unwrap();
        assert!(trouble.contains("--lost-as-zeroes"), "{trouble}");
        assert_eq!(side.list_images()[0].zeroed_bytes, 0);
        let asked = api::PromoteRequest { lost_as_zeroes: true, ..request() };
        assert_eq!(
            side.begin_promotion(&image, &asked, &Asker::default()).unwrap(),
            id,
            "the one that waits goes on"
        );
        go_on_with_all(&side);
        let shown = side.list_images().remove(0);
        assert_eq!((shown.promotion.state.as_str(), shown.zeroed_bytes), ("done", 4096));
        assert_eq!(
            (shown.zeroed[0].disk.as_str(), shown.zeroed[0].start, shown.zeroed[0].len),
            ("vda", 8192, 4096)
        );
        let kept = side.close_image(&image, false).unwrap().kept.remove(0);
        let disk = std::fs::read(kept).unwrap();
        assert_eq!((disk[0], disk[8192]), (7, 0));
        side.forget("vm-1", &Asker::default()).unwrap();
    }

    /// Whoever asks anew asks without it.
    #[test]
    fn what_is_lost_becomes_zeroes_by_no_word_of_a_promotion_before() {
        let folder = tempfile::tempdir().unwrap();
        let (side, image) = committed_to_a_damaged_state(folder.path());
        let asked = api::PromoteRequest { lost_as_zeroes: true, ..request() };
        let id = side.begin_promotion(&image, &asked, &Asker::default()).unwrap();
        side.cancel_operation(id, &Asker::default()).unwrap();
        assert!(side.operations.unended().is_empty());
        let id = side.begin_promotion(&image, &request(), &Asker::default()).unwrap();
        go_on_with_all(&side);
        let trouble = side.show_operation(id).unwrap().trouble.unwrap_or_default();
        assert!(trouble.contains("--lost-as-zeroes"), "{trouble}");
        assert_eq!(side.list_images()[0].zeroed_bytes, 0);
    }

    /// All of it is copied by then.
    #[test]
    fn a_promotion_whose_end_cannot_be_written_down_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let side = opened(folder.path());
        let image = side.list_images()[0].id.clone();
        let in_the_way = side.state.path(&format!("images/{image}.partial"));
        std::fs::create_dir(&in_the_way).unwrap();
        let id = side.begin_promotion(&image, &request(), &Asker::default()).unwrap();
        go_on_with_all(&side);
        let shown = side.show_operation(id).unwrap();
        assert!(shown.state == "going" && shown.trouble.is_some(), "{shown:?}");
        std::fs::remove_dir(&in_the_way).unwrap();
        go_on_with_all(&side);
        assert_eq!(side.show_operation(id).unwrap().state, "done");
        assert_eq!(side.alerts.list(), Vec::<String>::new());
    }

    #[test]
    fn an_image_of_a_committed_failover_is_closed_where_nobody_wants_it_any_more() {
        for is_served in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let (mut side, image) = committed_to_a_damaged_state(folder.path());
            if !is_served {
                end(side);
                side = recovery(folder.path());
                side.resume_records().unwrap();
            }
            let refused = side.close_image(&image, false).unwrap_err().detail;
            assert!(refused.contains("--discard"), "{refused}");
            side.close_image(&image, true).unwrap();
            begin_anew(&side);
            assert!(side.list_images().is_empty(), "{is_served}");
            side.forget("vm-1", &Asker::default()).unwrap();
        }
    }

    fn opened(folder: &std::path::Path) -> Arc<Recovery> {
        let side = recovery(folder);
        open_by_hand(&side);
        side
    }

    fn promotes(side: &Recovery) -> usize {
        side.list_operations().iter().filter(|operation| operation.kind == "promote").count()
    }

    #[test]
    fn a_promotion_that_is_cut_short_anywhere_goes_on_by_itself() {
        cut_short_everywhere(
            opened,
            |side| {
                let id = side.list_images()[0].id.clone();
                if side.begin_promotion(&id, &request(), &Asker::default()).is_ok() {
                    go_on_with_all(side);
                }
            },
            |folder, how| {
                let side = recovery(folder);
                begin_anew(&side);
                assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
                assert_eq!(side.alerts.list(), Vec::<String>::new(), "{how}");
                let shown = side.list_images().remove(0);
                let pins = side.list()[0].journal().unwrap().pins().len();
                let expected = if promotes(&side) > 0 { ("done", 0) } else { ("none", 1) };
                assert_eq!((shown.promotion.state.as_str(), pins), expected, "{how}");
                let closed = side.close_image(&shown.id, false).unwrap();
                assert_eq!(closed.kept.len(), 1 - pins, "{how}: promoted disks stay");
            },
        );
    }

    #[test]
    fn an_image_that_is_closed_before_it_is_promoted_ends_its_promotion_without_an_alert() {
        let folder = tempfile::tempdir().unwrap();
        let side = opened(folder.path());
        let image = side.list_images()[0].id.clone();
        let id = side.begin_promotion(&image, &request(), &Asker::default()).unwrap();
        assert_eq!(side.begin_promotion(&image, &request(), &Asker::default()).unwrap(), id, "one at a time");
        assert_eq!(side.list_images()[0].promotion.state, "running");
        side.close_image(&image, false).unwrap();
        go_on_with_all(&side);
        assert_eq!(side.show_operation(id).unwrap().state, "taken-back");
        assert_eq!(side.alerts.list(), Vec::<String>::new());
    }

    #[test]
    fn a_promotion_that_goes_on_by_itself_holds_up_no_stop() {
        let folder = tempfile::tempdir().unwrap();
        let side = opened(folder.path());
        let image = side.list_images()[0].id.clone();
        // It would take hours.
        let id = side
            .begin_promotion(
                &image,
                &api::PromoteRequest { bytes_per_second: 1, ..request() },
                &Asker::default(),
            )
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.spawn(side.clone().go_on_with_operations());
        while side.show_operation(id).unwrap().bytes_total == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let (tell, stopped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            let _ = tell.send(());
        });
        stopped.recv_timeout(std::time::Duration::from_secs(60)).expect("the agent waits for a promotion");
    }
}
