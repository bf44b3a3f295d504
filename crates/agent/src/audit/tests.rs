//! What is recorded of changes, and what becomes of the record over a crash, a full file and one that cannot be written.

use super::*;
use crate::rights::Role;
use api::{AuditEntry, AuditOutcome};
use types::limits::{AUDIT_FILE_BYTES, AUDIT_FILES_MAX, AUDIT_PATH_BYTES_MAX};

fn audit(folder: &Path) -> (Arc<Audit>, Arc<Alerts>) {
    let alerts = Arc::new(Alerts::default());
    (Audit::in_folder(folder, alerts.clone()).unwrap(), alerts)
}

fn anna() -> Caller {
    Caller::Certificate {
        name: "anna.berlin".into(),
        fingerprint: "AB:CD".into(),
        role: Some(Role::Operator),
        from: "10.0.0.7:5555".parse().unwrap(),
    }
}

fn root() -> Caller {
    Caller::User { uid: 0, pid: Some(7), role: Some(Role::Admin) }
}

/// All that is recorded, the newest first, once `count` changes have ended.
async fn told(audit: &Audit, count: usize) -> Vec<AuditEntry> {
    loop {
        let page = audit.list(&AuditQuery { limit: 1000, ..AuditQuery::default() }).unwrap();
        if page.entries.iter().filter(|entry| entry.ended_at.is_some()).count() >= count {
            return page.entries;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn each_change_is_recorded_with_who_from_where_what_and_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (audit, _) = audit(folder.path());
    let begun = audit.begin(&anna(), "POST", "/v1/vms/web/pause").await.unwrap();
    begun.end(202, Some("op-1".into()));
    audit.begin(&root(), "DELETE", "/v1/images/7?discard=true").await.unwrap().end(409, None);
    audit.begin(&root(), "POST", "/v1/vms").await.unwrap().end(503, None);
    drop(audit.begin(&root(), "POST", "/v1/seeds").await.unwrap());
    let entries = told(&audit, 4).await;
    let outcomes: Vec<_> = entries.iter().map(|entry| (entry.outcome, entry.status)).collect();
    use AuditOutcome::{Done, Failed, Left, Refused};
    assert_eq!(outcomes, [(Left, None), (Failed, Some(503)), (Refused, Some(409)), (Done, Some(202))]);
    let first = &entries[3];
    assert_eq!(
        (first.door.as_str(), first.who.as_str(), first.from.as_str()),
        ("tcp", "anna.berlin", "10.0.0.7:5555")
    );
    assert_eq!((first.fingerprint.as_deref(), first.role.as_deref()), (Some("AB:CD"), Some("operator")));
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/v1/vms/web/pause"));
    assert_eq!(first.operation.as_deref(), Some("op-1"));
    let second = &entries[2];
    assert_eq!(
        (second.door.as_str(), second.who.as_str(), second.from.as_str()),
        ("socket", "uid 0", "process 7")
    );
    assert_eq!(second.path, "/v1/images/7?discard=true");
}

#[tokio::test]
async fn a_change_is_on_the_disk_before_it_begins_and_numbers_go_on_over_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let read = || std::fs::read_to_string(folder.path().join("000000000001.jsonl")).unwrap();
    let before = {
        let (audit, _) = audit(folder.path());
        let begun = audit.begin(&anna(), "POST", "/v1/vms").await.unwrap();
        let text = read();
        assert!(text.contains("/v1/vms") && text.ends_with('\n'), "{text}");
        std::mem::forget(begun);
        text
    };
    // The next line was cut short.
    std::fs::write(folder.path().join("000000000001.jsonl"), format!("{before}{{\"asked\":{{\"num")).unwrap();
    let (audit, _) = audit(folder.path());
    audit.begin(&root(), "POST", "/v1/images").await.unwrap().end(200, None);
    let entries = told(&audit, 1).await;
    let rows: Vec<_> = entries.iter().map(|entry| (entry.id.as_str(), entry.outcome)).collect();
    assert_eq!(rows, [("2", AuditOutcome::Done), ("1", AuditOutcome::Unknown)]);
}

#[tokio::test]
async fn the_record_does_not_grow_without_end_and_loses_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let (audit, _) = audit(folder.path());
    // Nobody has such a name: the paths that are recorded have a bound.
    let long = Caller::Certificate {
        name: "x".repeat(AUDIT_FILE_BYTES as usize / 3),
        fingerprint: "AB:CD".into(),
        role: Some(Role::Operator),
        from: "10.0.0.7:5555".parse().unwrap(),
    };
    let count = AUDIT_FILES_MAX * 3;
    for at in 0..count {
        audit.begin(&long, "POST", &format!("/{at}")).await.unwrap().end(200, None);
    }
    let entries = told(&audit, AUDIT_FILES_MAX).await;
    let files = std::fs::read_dir(folder.path()).unwrap().map(|row| row.unwrap().metadata().unwrap().len());
    let files = files.collect::<Vec<_>>();
    assert!(files.len() <= AUDIT_FILES_MAX && files.iter().all(|len| *len <= AUDIT_FILE_BYTES), "{files:?}");
    let numbers: Vec<usize> = entries.iter().map(|entry| entry.id.parse().unwrap()).collect();
    let expected: Vec<usize> = (1..=count).rev().take(numbers.len()).collect();
    assert_eq!(numbers, expected);
    assert!(numbers.len() < count);
}

#[tokio::test]
async fn a_page_ends_where_the_next_begins() {
    let folder = tempfile::tempdir().unwrap();
    let (audit, _) = audit(folder.path());
    for at in 1..=5 {
        audit.begin(&root(), "POST", &format!("/{at}")).await.unwrap().end(200, None);
    }
    told(&audit, 5).await;
    let mut query = AuditQuery { limit: 2, ..AuditQuery::default() };
    let mut pages = Vec::new();
    loop {
        let page = audit.list(&query).unwrap();
        pages.push(page.entries.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>());
        let Some(next) = page.next else { break };
        query.before = next.parse().ok();
    }
    assert_eq!(pages, [vec!["/5", "/4"], vec!["/3", "/2"], vec!["/1"]]);
    let later =
        AuditQuery { since: Some(types::WallTime(clock::wall().0 + 60_000_000)), limit: 9, before: None };
    assert_eq!(audit.list(&later).unwrap().entries.len(), 0);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_with_an_alert_until_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("audit");
    std::fs::write(&place, "a file where the folder should be").unwrap();
    let (audit, alerts) = audit(&place);
    let refused = audit.begin(&root(), "POST", "/v1/vms").await.unwrap_err();
    assert!(refused.detail.contains("nothing is changed"), "{}", refused.detail);
    assert!(alerts.list().iter().any(|alert| alert.contains("changes are refused")), "{:?}", alerts.list());
    std::fs::remove_file(&place).unwrap();
    audit.begin(&root(), "POST", "/v1/vms").await.unwrap().end(200, None);
    assert_eq!(told(&audit, 1).await.len(), 1);
    assert_eq!(alerts.list(), Vec::<String>::new());
}

/// A file that is a pipe nobody reads hangs whoever opens it, as a disk does that does not answer.
#[tokio::test]
async fn a_record_that_does_not_answer_refuses_changes_and_then_tells_that_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("audit");
    let (pipe, same) = (place.join("000000000001.jsonl"), folder.path().join("same"));
    std::fs::create_dir(&place).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    std::fs::hard_link(&pipe, &same).unwrap();
    let (audit, alerts) = audit(&place);
    let refused = audit.begin(&root(), "POST", "/v1/vms").await.unwrap_err();
    assert!(refused.detail.contains("does not answer"), "{}", refused.detail);
    assert!(alerts.list().iter().any(|alert| alert.contains("changes are refused")), "{:?}", alerts.list());
    // The disk is another one from now on, and what waited for the first goes on.
    std::fs::remove_file(&pipe).unwrap();
    drop(std::fs::OpenOptions::new().write(true).open(&same).unwrap());
    let entries = told(&audit, 1).await;
    let rows: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.status)).collect();
    assert_eq!(rows, [("/v1/vms", Some(503))], "it was refused, and that is told");
    audit.begin(&root(), "POST", "/v1/images").await.unwrap().end(200, None);
    told(&audit, 2).await;
    assert_eq!(alerts.list(), Vec::<String>::new());
}

/// A path may have as many bytes as a request's first line, and its request may be for nothing that there is.
#[tokio::test]
async fn a_long_path_takes_no_more_room_in_the_record_than_tells_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (audit, _) = audit(folder.path());
    let path = format!("/v1/vms/{}ä/pause", "x".repeat(60_000));
    audit.begin(&anna(), "POST", &path).await.unwrap().end(404, None);
    let entry = told(&audit, 1).await.remove(0);
    assert!(entry.path.starts_with("/v1/vms/xxx") && entry.path.ends_with("bytes)"), "{}", entry.path);
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    assert!(file.metadata().unwrap().len() < 2 * AUDIT_PATH_BYTES_MAX as u64);
}
