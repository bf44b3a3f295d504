//! Failovers whose images or VMs are recorded and cannot be read: none is a dead end.

use super::super::Recovery;
use super::super::tests::{PEER, append_sync, hello, recovery};
use crate::ledger::Asker;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::limits::OPERATIONS_MAX;

/// A group of one VM that has failed over; its image.
fn failed_over(folder: &Path) -> String {
    let recovery = recovery(folder);
    let (_, journal) = recovery.admit(&hello(1), PEER).unwrap();
    append_sync(&journal);
    drop(journal);
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    let done = recovery.failover("web", &request, &Asker::default()).unwrap();
    done.vms[0].image.clone()
}

/// The agent, begun anew.
fn begun_anew(folder: &Path) -> Arc<Recovery> {
    let recovery = recovery(folder);
    recovery.resume_all().unwrap();
    recovery
}

fn image_file(folder: &Path, image: &str) -> PathBuf {
    folder.join(format!("state/images/{image}.json"))
}

fn journal_has(recovery: &Recovery, image: &str) -> bool {
    let vm = recovery.list()[0].clone();
    let pinned = vm.journal().unwrap().pins().iter().any(|pin| pin.owner.contains(image));
    pinned || vm.folder(&recovery.journal_dir).join(format!("image-{image}")).exists()
}

fn assert_refused(recovery: &Recovery, group: &str) {
    for done in [recovery.commit(group, &Asker::default()), recovery.rollback(group, &Asker::default())] {
        let detail = done.unwrap_err().detail;
        assert!(detail.contains("cannot be read") && detail.contains("restart the agent"), "{detail}");
    }
}

#[test]
fn a_failover_whose_image_cannot_be_read_is_neither_final_nor_undone_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let image = failed_over(folder.path());
    let whole = std::fs::read(image_file(folder.path(), &image)).unwrap();
    std::fs::write(image_file(folder.path(), &image), "{").unwrap();
    let again = begun_anew(folder.path());
    assert_refused(&again, "web");
    assert!(journal_has(&again, &image), "what was written to it is kept");
    drop(again);
    std::fs::write(image_file(folder.path(), &image), whole).unwrap();
    let again = begun_anew(folder.path());
    again.rollback("web", &Asker::default()).unwrap();
    assert!(again.list_images().is_empty() && !journal_has(&again, &image));
}

#[test]
fn rolling_back_takes_away_what_an_image_without_a_record_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let image = failed_over(folder.path());
    std::fs::remove_file(image_file(folder.path(), &image)).unwrap();
    let again = begun_anew(folder.path());
    assert!(journal_has(&again, &image));
    again.rollback("web", &Asker::default()).unwrap();
    assert!(!journal_has(&again, &image), "it holds the journal for ever");
}

#[test]
fn an_image_of_a_failover_that_is_released_can_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    let image = failed_over(folder.path());
    let whole = std::fs::read(image_file(folder.path(), &image)).unwrap();
    let again = begun_anew(folder.path());
    let refused = again.close_image(&image, false).unwrap_err();
    assert!(refused.detail.contains("roll it back"), "{}", refused.detail);
    again.rollback("web", &Asker::default()).unwrap();
    drop(again);
    // As where its record came back from a backup.
    std::fs::write(image_file(folder.path(), &image), whole).unwrap();
    let again = begun_anew(folder.path());
    assert_eq!(again.list_images().len(), 1);
    again.close_image(&image, false).unwrap();
    assert!(again.list_images().is_empty() && !journal_has(&again, &image));
}

#[test]
fn a_failover_of_a_vm_whose_record_cannot_be_read_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let image = failed_over(folder.path());
    let record = folder.path().join(format!("state/recovered/{}.json", hello(1).vm));
    std::fs::write(&record, "{").unwrap();
    let again = begun_anew(folder.path());
    for word in ["web".to_owned(), "paris/web".into(), hello(1).group.to_string()] {
        assert_refused(&again, &word);
        assert_eq!(again.set_paused(&word, true).unwrap().vms[0].image, image);
    }
    assert!(again.commit("mail", &Asker::default()).unwrap_err().detail.contains("has not failed over"));
    drop(again);
    // The operator gives it up.
    std::fs::remove_file(&record).unwrap();
    begun_anew(folder.path()).rollback("web", &Asker::default()).unwrap();
}

/// Each has a disk to copy, for hours.
#[test]
fn promotions_that_go_on_keep_nobody_from_failing_over_or_from_ending_that() {
    let folder = tempfile::tempdir().unwrap();
    failed_over(folder.path());
    let again = begun_anew(folder.path());
    let begin = |image: usize| {
        let plan = serde_json::json!({
            "kind": "promote", "image": format!("{image:08x}"), "label": "other", "bytes_per_second": 1,
        });
        again.operations.begin(|| serde_json::from_value(plan).unwrap(), &Asker::nobody())
    };
    for image in 0..OPERATIONS_MAX {
        drop(begin(image).unwrap());
    }
    let refused = begin(OPERATIONS_MAX).unwrap_err();
    assert!(refused.detail.contains("promote"), "{}", refused.detail);
    again.rollback("web", &Asker::default()).unwrap();
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    again.failover("web", &request, &Asker::default()).unwrap();
    again.commit("web", &Asker::default()).unwrap();
}
