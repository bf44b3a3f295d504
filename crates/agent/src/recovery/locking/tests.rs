//! What a lock refuses, when it is over, and that nothing makes it shorter.
#![allow(clippy::unwrap_used, reason = "a test")]

use super::super::lock::shrinks;
use super::super::tests::{PEER, alerts_of, append_sync, append_writes, begin_anew, end, hello, recovery};
use super::*;
use crate::error::ErrorKind;
use crate::ledger::Asker;
use crate::rights::{Caller, Person, Role};
use journal::{CheckpointQuery, Clock, Journal, Settings, Thinning, Upkeep};
use replication::wire::{Hello, Leave, Message};
use std::time::Duration;
use types::limits::LOCK_SECONDS_MAX;
use types::{Epoch, Monotonic, WriteSeq};

const SECOND: i64 = 1_000_000;
const DAY: u64 = 86_400;
const TODAY: i64 = 1_800_000_000 * SECOND;

fn now(wall_seconds: i64, aged_seconds: u64) -> Now {
    Now { wall: WallTime(TODAY + wall_seconds * SECOND), aged: Duration::from_secs(aged_seconds) }
}

fn until(seconds: i64) -> WallTime {
    now(seconds, 0).wall
}

#[test]
fn a_lock_is_over_once_its_time_was_seen_to_pass_and_the_clock_has_come_to_it() {
    let lock = RetentionLock::until(None, until(100), "anna", now(0, 5000)).unwrap();
    assert!(!lock.is_over(now(0, 5000)) && !lock.is_over(now(99, 5099)));
    assert!(!lock.is_over(now(1_000_000_000, 5099)), "a clock that has jumped ahead frees nothing");
    assert!(!lock.is_over(now(99, 1_000_000_000)), "one that is set back keeps it");
    assert!(lock.is_over(now(100, 5100)));
    assert_eq!(lock.left(now(1_000_000_000, 5040)), Duration::from_secs(60));
}

#[test]
fn a_lock_is_made_longer_and_never_shorter_whatever_the_clock_says_meanwhile() {
    let lock = RetentionLock::until(None, until(1000), "anna", now(0, 0)).unwrap();
    let refused = RetentionLock::until(Some(&lock), until(999), "bert", now(10, 10)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.detail.contains("never shorter"), "{}", refused.detail);
    // The clock says that it is nearly over, and nothing was seen to pass.
    let longer = RetentionLock::until(Some(&lock), until(1001), "bert", now(999, 10)).unwrap();
    assert_eq!(longer.left(now(2000, 10)), Duration::from_secs(990));
    assert_eq!(longer.set_by, "bert");
    // And when it was set back, as much is to pass as the date asks for now.
    let longer = RetentionLock::until(Some(&lock), until(1000), "bert", now(-1000, 10)).unwrap();
    assert_eq!(longer.left(now(0, 10)), Duration::from_secs(2000));
}

#[test]
fn what_is_no_end_of_a_lock_is_refused_with_what_is_one() {
    let asked = |until: Option<&str>, for_seconds| {
        let asked = api::LockRequest { until: until.map(str::to_owned), for_seconds };
        asked_until(&asked, WallTime(TODAY)).map_err(|error| error.detail)
    };
    let at = |text| clock::from_text(text).unwrap();
    assert_eq!(asked(Some("2027-01-31"), None), Ok(at("2027-01-31T23:59:59Z")), "to the end of the day");
    assert_eq!(asked(Some("2027-01-31T12:00:00+01:00"), None), Ok(at("2027-01-31T11:00:00Z")));
    assert_eq!(asked(None, Some(60)), Ok(WallTime(TODAY + 60 * SECOND)));
    for text in ["", "soon", "2027-02-30", "2027-1-31", "31.01.2027", "2027-01-31T12:00", "\u{1b}[2J", "-1"] {
        assert!(asked(Some(text), None).unwrap_err().contains("2027-01-31"), "{text:?}");
    }
    assert!(asked(None, None).unwrap_err().contains("one of the two"));
    assert!(asked(Some("2027-01-31"), Some(1)).unwrap_err().contains("one of the two"));
    let most = i64::try_from(LOCK_SECONDS_MAX).unwrap();
    RetentionLock::until(None, until(most), "anna", now(0, 0)).unwrap();
    for seconds in [0, -1, most + 1] {
        let refused = RetentionLock::until(None, until(seconds), "anna", now(0, 0)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{seconds}");
    }
    for far in [WallTime(i64::MAX), WallTime(i64::MIN), asked(None, Some(u64::MAX)).unwrap()] {
        assert!(RetentionLock::until(None, far, "anna", now(0, u64::MAX)).is_err(), "{far:?}");
    }
}

#[test]
fn what_would_keep_less_than_before_is_known_in_each_setting_and_what_keeps_more_is_not() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let before = Settings {
        history: hours(24),
        bytes_soft: 900,
        bytes_hard: 1000,
        thinning: Thinning { all: hours(24), minutely: hours(48) },
        tagged_history: hours(1),
        ..Settings::for_repair()
    };
    let thinned = |all, minutely| Thinning { all: hours(all), minutely: hours(minutely) };
    let less = [
        Settings { history: hours(23), ..before },
        Settings { bytes_hard: 999, ..before },
        Settings { bytes_soft: 899, ..before },
        Settings { thinning: thinned(23, 48), ..before },
        Settings { thinning: thinned(24, 47), ..before },
        Settings { tagged_history: hours(0), ..before },
        Settings { let_go: Some(WriteSeq::from_raw(7)), ..before },
    ];
    for after in less {
        assert!(shrinks(&before, &after).is_some(), "{after:?}");
    }
    let unlimited = Settings { bytes_soft: 0, bytes_hard: 0, ..before };
    assert!(shrinks(&unlimited, &Settings { bytes_soft: u64::MAX - 1, ..unlimited }).is_some());
    let more =
        Settings { history: hours(25), thinning: thinned(25, 49), tagged_history: hours(2), ..unlimited };
    for after in [before, unlimited, more, Settings { mode: journal::Mode::Rollback, ..before }] {
        assert_eq!(shrinks(&before, &after), None, "{after:?}");
    }
}

/// A VM with a checkpoint that can be opened, locked for a day.
fn locked(side: &Recovery) -> Arc<RecoveredVm> {
    let (vm, journal) = side.admit(&hello(1), PEER).unwrap();
    append_sync(&journal);
    append_writes(&journal);
    drop(journal);
    lock_for(side, DAY).unwrap();
    vm
}

fn lock_for(side: &Recovery, seconds: u64) -> Result<api::Journal> {
    let asked = api::LockRequest { for_seconds: Some(seconds), until: None };
    side.lock_journal("vm-1", &asked, "anna.rome")
}

fn cuts(journal: &Journal) -> usize {
    journal.checkpoints(&CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() }).rows.len()
}

/// Keeps the journal up for so long, as far as it can tell.
fn age(journal: &Journal, days: u64) {
    let begin = Duration::from_secs(1 << 40);
    for at in [begin, begin + Duration::from_secs(days * DAY)] {
        let how = Upkeep { clock: Clock::Monotonic(Monotonic(at)), ..Upkeep::plain(WallTime(0), [3; 16]) };
        while journal.keep_up(&how).unwrap().more {}
    }
}

fn conflict(error: OperationError) -> String {
    assert_eq!(error.kind, ErrorKind::Conflict, "{}", error.detail);
    assert!(
        error.detail.contains("is locked until 20") && error.detail.contains("--until"),
        "{}",
        error.detail
    );
    error.detail
}

#[test]
fn while_a_history_is_locked_no_operator_takes_any_of_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    let set = |settings| side.set_journal("vm-1", &settings);
    let pin = api::PinRequest { at: "latest".into(), owner: "audit".into(), expires_seconds: None };
    let pin = side.pin("vm-1", &pin).unwrap();
    let day = |keep_all_seconds| api::JournalSettings { keep_all_seconds, ..Default::default() };
    set(day(Some(2 * DAY))).unwrap();
    conflict(set(day(Some(DAY))).unwrap_err());
    let soft = |bytes| api::JournalSettings { bytes_soft: Some(bytes), ..Default::default() };
    conflict(set(soft(20_000_000_000_000)).unwrap_err());
    conflict(side.unpin("vm-1", pin.id).unwrap_err());
    let said = conflict(side.forget("vm-1", &Asker::default()).unwrap_err());
    assert!(said.contains("forgetting it is not possible before"), "{said}");
    conflict(vm.begin_forgetting(&side.state).unwrap_err());
    let shorter = lock_for(&side, 60).unwrap_err();
    assert!(
        shorter.kind == ErrorKind::Conflict && shorter.detail.contains("never shorter"),
        "{}",
        shorter.detail
    );
    assert!(side.unpin("vm-1", 99).is_err());
    assert_eq!(side.show_journal("vm-1").unwrap().pins.len(), 1);
    assert!(!vm.is_forgotten() && side.list_operations().is_empty());
}

#[test]
fn what_its_site_says_takes_nothing_of_a_locked_history_away_nor_an_operator_who_takes_it_over() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let long = Hello { history_seconds: 7200, ..hello(1) };
    drop(side.admit(&long, PEER).unwrap());
    locked(&side);
    let asks_less = Hello { vm_name: "other".into(), journal_bytes_max: 1_000_000_000, ..hello(1) };
    let (vm, journal) = side.admit(&asks_less, PEER).unwrap();
    let settings = journal.status().settings;
    assert!(settings.is_locked && settings.history.as_secs() == 7200 && settings.bytes_hard == 0);
    let take = api::JournalSettings { take_asked: true, ..Default::default() };
    conflict(side.set_journal("other", &take).unwrap_err());
    let leave = Leave { vm: hello(1).vm, group: hello(1).group, epoch: Epoch(9), at: WriteSeq::from_raw(7) };
    assert!(matches!(side.on_leave(&leave, PEER), Message::Left(_)));
    // So that there is something to fold.
    journal.fence(Epoch::FIRST, Duration::from_secs(5)).unwrap();
    age(&journal, 0);
    let before = cuts(&journal);
    age(&journal, 100);
    assert!(before > 0 && cuts(&journal) == before);
    drop(journal);
    conflict(side.forget("other", &Asker::default()).unwrap_err());
    assert!(vm.record().left.is_some());
}

#[test]
fn a_locked_history_outlives_its_window_and_a_restart_and_ends_with_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    drop(vm);
    end(side);
    let side = recovery(folder.path());
    begin_anew(&side);
    let vm = side.vm("vm-1").unwrap();
    assert_eq!(side.show_journal("vm-1").unwrap().lock.unwrap().set_by, "anna.rome");
    let journal = vm.journal().unwrap();
    // So that there is something to fold: the window of an hour is long over.
    journal.fence(Epoch::FIRST, Duration::from_secs(5)).unwrap();
    let whole = cuts(&journal);
    assert!(whole > 0);
    age(&journal, 0);
    // Not by this host's clock, which has come to the date.
    let lock = RetentionLock { until: clock::wall().0 - SECOND, ..vm.policy().lock.unwrap() };
    vm.set_policy(JournalPolicy { lock: Some(lock), ..vm.policy() });
    let turn = || side.end_lock_that_is_over(&vm, &journal);
    turn();
    assert!(vm.policy().lock.is_some(), "a clock that has jumped ahead frees nothing");
    age(&journal, 2);
    assert_eq!(cuts(&journal), whole, "nothing goes before the lock");
    turn();
    assert!(vm.policy().lock.is_none() && !journal.status().settings.is_locked);
    age(&journal, 2);
    assert!(cuts(&journal) < whole, "and then what is older than the window");
    assert!(side.show_journal("vm-1").unwrap().lock.is_none());
    drop(journal);
    side.forget("vm-1", &Asker::default()).unwrap();
}

#[test]
fn a_lock_that_cannot_be_read_is_in_force_and_an_alert() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    locked(&side);
    end(side);
    let record = folder.path().join(format!("state/journals/{}.json", hello(1).vm));
    let text = std::fs::read_to_string(&record).unwrap();
    for spoilt in ["", "{}", &text.replace("until_aged", "until_age"), &text[..text.len() / 2]] {
        std::fs::write(&record, spoilt).unwrap();
        let side = recovery(folder.path());
        begin_anew(&side);
        assert!(side.forget("vm-1", &Asker::default()).is_err(), "{spoilt:?}");
        assert!(side.admit(&hello(1), PEER).is_err(), "{spoilt:?}");
        assert!(side.alerts.list().iter().any(|told| told.contains("cannot be read")), "{spoilt:?}");
        end(side);
    }
    std::fs::write(&record, text).unwrap();
    let side = recovery(folder.path());
    begin_anew(&side);
    assert!(side.vm("vm-1").unwrap().policy().lock.is_some());
}

#[test]
fn what_is_not_on_the_disk_is_not_said_to_be_locked() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    drop(side.admit(&hello(1), PEER).unwrap());
    // In the place of what is renamed to be the record.
    std::fs::create_dir(folder.path().join(format!("state/journals/{}.partial", hello(1).vm))).unwrap();
    assert_eq!(lock_for(&side, DAY).unwrap_err().kind, ErrorKind::Internal);
    assert!(side.vm("vm-1").unwrap().policy().lock.is_none());
}

#[test]
fn all_vms_of_a_group_are_locked_also_those_that_have_left_it() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    for vm in 1..=3 {
        drop(side.admit(&hello(vm), PEER).unwrap());
    }
    let leave = Leave { vm: hello(3).vm, group: hello(3).group, epoch: Epoch(9), at: WriteSeq::from_raw(7) };
    assert!(matches!(side.on_leave(&leave, PEER), Message::Left(_)));
    let asked = |seconds| api::LockRequest { for_seconds: Some(seconds), until: None };
    side.lock_journal("vm-2", &asked(2 * DAY), "anna.rome").unwrap();
    let refused = side.lock_group("web", &asked(DAY), "anna.rome").unwrap_err();
    assert!(
        refused.kind == ErrorKind::Conflict && refused.detail.contains("1 of 3 VMs"),
        "{}",
        refused.detail
    );
    assert!(side.vm("vm-3").unwrap().policy().lock.is_some(), "the others are");
    let locked = side.lock_group("web", &asked(3 * DAY), "bert.rome").unwrap();
    assert!(locked.len() == 3 && locked.iter().all(|one| one.lock.as_ref().unwrap().set_by == "bert.rome"));
}

#[test]
fn a_locked_journal_without_room_is_an_alert_until_it_has_some() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    let journal = vm.journal().unwrap();
    let settings = journal.status().settings;
    let tell = || {
        side.tell_locked_full(&vm, &journal);
        alerts_of(&side, "locked-full")
    };
    assert_eq!(tell(), Vec::<String>::new());
    journal.set(Settings { bytes_hard: 1, ..settings });
    let told = tell();
    assert!(
        told.len() == 1 && told[0].contains("its hard limit is 1") && told[0].contains("is locked until"),
        "{told:?}"
    );
    assert!(vm.locked_words().contains("full and locked"));
    journal.set(settings);
    assert_eq!(tell(), Vec::<String>::new());
}

fn person(name: &str, fingerprint: &str) -> Person {
    let from = "192.0.2.1:7".parse().unwrap();
    let (name, fingerprint) = (name.to_owned(), fingerprint.to_owned());
    Caller::Certificate { name, fingerprint, role: Some(Role::Admin), from }.person()
}

fn user(uid: u32) -> Person {
    Caller::User { uid, pid: None, role: Some(Role::Admin) }.person()
}

/// The id of the request that stands.
fn request(side: &Recovery) -> Option<String> {
    Some(side.show_journal("vm-1").unwrap().lock.unwrap().lift?.id)
}

#[test]
fn a_lock_is_lifted_by_two_persons_and_by_no_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    let (anna, bert) = (person("anna.rome", "AA"), person("bert.rome", "BB"));
    let refused = |result: Result<api::Journal>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.kind == ErrorKind::Conflict && error.detail.contains(words), "{}", error.detail);
    };
    refused(side.confirm_lift("vm-1", "7", &bert), "nobody has asked");
    side.ask_to_lift("vm-1", &anna).unwrap();
    let id = request(&side).unwrap();
    assert!(vm.policy().lock.is_some(), "one has only asked");
    let told = alerts_of(&side, "lift-asked");
    assert!(told.len() == 1 && told[0].contains("anna.rome") && told[0].contains(&id), "{told:?}");
    refused(side.ask_to_lift("vm-1", &bert), "anna.rome has asked for that already");
    for alone in [&anna, &person("anna.rome", "CC"), &person("other.rome", "AA")] {
        refused(side.confirm_lift("vm-1", &id, alone), "are not two persons");
    }
    refused(side.confirm_lift("vm-1", "7", &bert), "does not stand");
    // What was taken back is confirmed by nobody, nor what was asked before the lock was made longer.
    side.withdraw_lift("vm-1", &id, &bert).unwrap();
    assert_eq!((request(&side), alerts_of(&side, "lift-asked")), (None, Vec::new()));
    refused(side.confirm_lift("vm-1", &id, &bert), "nobody has asked");
    side.ask_to_lift("vm-1", &anna).unwrap();
    let id = request(&side).unwrap();
    lock_for(&side, 2 * DAY).unwrap();
    refused(side.confirm_lift("vm-1", &id, &bert), "was made longer since");
    side.ask_to_lift("vm-1", &user(7)).unwrap();
    let id = request(&side).unwrap();
    refused(side.confirm_lift("vm-1", &id, &user(7)), "are not two persons");
    drop(vm);
    end(side);
    let side = recovery(folder.path());
    begin_anew(&side);
    refused(side.confirm_lift("vm-1", &id, &bert), "are not two persons");
    assert!(side.confirm_lift("vm-1", &id, &user(8)).unwrap().lock.is_none(), "also after a restart");
    assert!(!side.vm("vm-1").unwrap().journal().unwrap().status().settings.is_locked);
    assert_eq!(alerts_of(&side, "lift-asked"), Vec::<String>::new());
    refused(side.ask_to_lift("vm-1", &anna), "it is not locked");
    side.forget("vm-1", &Asker::default()).unwrap();
}

#[test]
fn root_and_the_agents_own_user_are_one_person() {
    let own = rustix::process::geteuid().as_raw();
    assert!(user(0).may_be(&user(own)) && user(0).may_be(&user(0)));
    assert!(!user(own).may_be(&user(own + 7)) && user(0).may_be(&person("anna.rome", "AA")));
}

#[test]
fn a_request_to_lift_a_lock_is_over_in_a_day_of_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    lock_for(&side, 9 * DAY).unwrap();
    side.ask_to_lift("vm-1", &person("anna.rome", "AA")).unwrap();
    let id = request(&side).unwrap();
    let journal = vm.journal().unwrap();
    age(&journal, 1);
    assert_eq!(request(&side), None);
    let refused = side.confirm_lift("vm-1", &id, &person("bert.rome", "BB")).unwrap_err();
    assert!(refused.detail.contains("is over"), "{}", refused.detail);
    side.tell_lift_asked(&vm, &journal);
    assert_eq!(alerts_of(&side, "lift-asked"), Vec::<String>::new());
    side.ask_to_lift("vm-1", &person("bert.rome", "BB")).unwrap();
    assert_ne!(request(&side), Some(id));
}

#[test]
fn no_request_takes_what_the_agent_keeps_for_a_seed_a_disk_or_a_place_to_move_to() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let vm = locked(&side);
    let journal = vm.folder(&side.journal_dir);
    let policy = folder.path().join(format!("state/journals/{}.json", vm.id()));
    let of_others = side.journal_dir.join("seeds/other/vda.raw");
    std::fs::create_dir_all(of_others.parent().unwrap()).unwrap();
    std::fs::write(&of_others, "x").unwrap();
    let link = folder.path().join("link.raw");
    std::os::unix::fs::symlink(&policy, &link).unwrap();
    for path in [policy.clone(), journal.join("manifest"), journal.join("replica/vda.raw"), of_others, link] {
        let disk = api::ProtectDisk { name: "vda".into(), path: path.display().to_string() };
        assert!(side.check_not_replicas(std::slice::from_ref(&disk)).is_err(), "{}", path.display());
        let asked = api::SeedRequest { vm: "x".into(), disks: vec![disk] };
        assert!(side.seed(&asked).is_err() && path.exists(), "{}", path.display());
    }
    for inside in ["state/audit/new", "run/new"] {
        let to = folder.path().join(inside).display().to_string();
        assert!(side.move_journal("vm-1", &to, &Asker::default()).is_err(), "{inside}");
    }
    assert!(policy.exists() && side.list_operations().is_empty());
}
