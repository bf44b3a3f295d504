use super::*;
use rustix::process::geteuid;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Child;

/// A user of no account, as guests are.
const UID: u32 = 64_090;

fn adapter(guests: &Path) -> Adapter {
    let config = GuestsConfig { user: "nobody-here".into(), uids: Some((UID, UID)), kept_from: Vec::new() };
    Adapter::new("qemu-system-x86_64".into(), guests.to_path_buf(), config, "true".into())
}

/// What the guest of a folder has become: another program, that stands elsewhere and has let its log go.
fn taken_over(guests: &Path, key: &str, uid: u32) -> Child {
    let folder = guests.join(key);
    std::fs::create_dir_all(&folder).unwrap();
    for name in [CONSOLE, "log"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    chown(folder.join(CONSOLE), Some(uid), None).unwrap();
    Command::new("sleep").arg("600").current_dir("/").uid(uid).gid(uid).spawn().unwrap()
}

fn is_root() -> bool {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can start processes as other users");
    }
    geteuid().is_root()
}

#[test]
fn a_guest_is_known_and_ended_by_its_user_whatever_it_says_it_is() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let adapter = adapter(folder.path());
    let (mut web, mut db) = (taken_over(folder.path(), "web", UID), taken_over(folder.path(), "db", UID + 1));
    let mut second = taken_over(folder.path(), "web", UID);
    assert_eq!(adapter.find("web"), Some(web.id().min(second.id())));
    assert_eq!(adapter.state("db", db.id()), RunState::Running);
    let seen = adapter.start(
        "web",
        "web",
        &VmDefinition::parse("vcpus = 1\nmemory_mib = 32\n").unwrap(),
        |_| None,
        &[StartDisk { name: "vda".into(), socket: folder.path().join("other.sock") }],
    );
    assert!(seen.unwrap_err().to_string().contains("runs on other disks"));
    second.kill().unwrap();
    second.wait().unwrap();
    // By a number that its process does not have any more.
    assert_eq!(adapter.state("web", second.id()), RunState::Running);
    let reaped = std::thread::spawn(move || web.wait().unwrap());
    adapter.stop("web").unwrap();
    assert!(!reaped.join().unwrap().success());
    assert_eq!((adapter.find("web"), adapter.find("db")), (None, Some(db.id())));
    assert!(!folder.path().join("web").exists(), "its user is free again, and its files take no memory");
    db.kill().unwrap();
    db.wait().unwrap();
}

#[test]
fn a_vm_that_an_older_agent_has_started_is_seen_refused_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = adapter(folder.path());
    let path = folder.path().join("web.log");
    let log = File::create(&path).unwrap();
    flock(&log, FlockOperation::NonBlockingLockExclusive).unwrap();
    let monitor = format!("unix:{},server=on,wait=off", folder.path().join("web.qmp").display());
    let mut older = Command::new("sh");
    older.args(["-c", "read never", "qemu", "-qmp", &monitor]).stdin(Stdio::piped()).stdout(log);
    let mut child = older.spawn().unwrap();
    let (pid, stdin) = (child.id(), child.stdin.take());
    drop(older);
    // What it was started with is not told before it has begun.
    while adapter.find("web").is_none() {
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(adapter.state("web", pid), RunState::Running);
    assert_eq!(adapter.find("web"), Some(pid));
    assert_eq!(adapter.find("db"), None);
    let definition = VmDefinition::parse("vcpus = 1\nmemory_mib = 32\n").unwrap();
    let refused = adapter.start("web", "web", &definition, |_| None, &[]).unwrap_err().to_string();
    assert!(refused.contains("before December 2026") && refused.contains("web.log"), "{refused}");
    let reaped = std::thread::spawn(move || child.wait().unwrap());
    adapter.stop("web").unwrap();
    assert!(!reaped.join().unwrap().success());
    assert_eq!(adapter.state("web", pid), RunState::Stopped);
    drop(stdin);
}

#[test]
fn a_guest_gets_a_user_whom_nobody_of_the_host_has() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let claims = folder.path().join("claims");
    let users = |first: u32, last: u32| {
        let config =
            GuestsConfig { user: "nobody-here".into(), uids: Some((first, last)), kept_from: Vec::new() };
        GuestUsers::find(&config).unwrap()
    };
    // Two agents, each with guests of its own.
    let prepare = |agent: &str, first: u32, last: u32| {
        let guests = folder.path().join(agent);
        std::fs::create_dir_all(guests.join("web")).unwrap();
        GuestFolder::new(&guests, "web").prepare(users(first, last), &claims)
    };
    let uid = |user: Option<GuestUser>| user.unwrap().uid;
    let (one, two) =
        (uid(prepare("one", UID + 2, UID + 3).unwrap()), uid(prepare("two", UID + 2, UID + 3).unwrap()));
    assert_ne!(one, two);
    assert!(prepare("three", UID + 2, UID + 3).unwrap_err().to_string().contains("in use"));
    GuestFolder::new(&folder.path().join("one"), "web").remove().unwrap();
    assert_eq!(uid(prepare("three", UID + 2, UID + 3).unwrap()), one);
    // One who is of no guest that any agent knows.
    let mut other = Command::new("sleep").arg("600").uid(UID + 4).spawn().unwrap();
    assert!(prepare("four", UID + 4, UID + 4).unwrap_err().to_string().contains("in use"));
    other.kill().unwrap();
    other.wait().unwrap();
    prepare("four", UID + 4, UID + 4).unwrap();
}

#[test]
fn what_a_guest_has_said_is_read_from_its_end_and_need_not_be_text() {
    let folder = tempfile::tempdir().unwrap();
    let guest = GuestFolder::new(folder.path(), "web");
    std::fs::create_dir(guest.path()).unwrap();
    assert_eq!(guest.said(), "");
    std::fs::write(guest.log(), [vec![b'x'; 1 << 20], b"no disk \xff there\n".to_vec()].concat()).unwrap();
    let said = guest.said();
    assert!(said.len() < 17 << 10 && said.ends_with("no disk \u{fffd} there"), "{}", said.len());
}

#[test]
fn a_guest_for_which_there_is_no_room_is_refused_with_how_much_it_wants() {
    let folder = tempfile::tempdir().unwrap();
    let guest = GuestFolder::new(folder.path(), "web");
    std::fs::create_dir(guest.path()).unwrap();
    let kernel = folder.path().join("vmlinuz");
    File::create(&kernel).unwrap().set_len(1 << 20).unwrap();
    guest.check_room(&[("kernel", kernel.clone())]).unwrap();
    File::options().write(true).open(&kernel).unwrap().set_len(1 << 42).unwrap();
    let refused = guest.check_room(&[("kernel", kernel)]).unwrap_err().to_string();
    assert!(refused.contains("4194336 MiB are wanted"), "{refused}");
}

#[test]
fn no_guest_has_the_group_of_kvm_where_that_may_use_what_the_agent_serves() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("kvm");
    std::fs::write(&device, "").unwrap();
    chown(&device, None, Some(UID)).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&device, PermissionsExt::from_mode(mode)).unwrap();
    let definition = |accelerator: &str| {
        let text = format!("vcpus = 1\nmemory_mib = 32\naccelerator = \"{accelerator}\"\n");
        VmDefinition::parse(&text).unwrap()
    };
    let group = |accelerator: &str, kept: u32| {
        let kept_from = vec![("[rights] viewer".to_owned(), kept.to_string())];
        let config = GuestsConfig { user: "nobody-here".into(), uids: None, kept_from };
        kvm_group(&device, &definition(accelerator), &config)
    };
    set_mode(0o660);
    assert_eq!(group("kvm", UID + 1).unwrap(), Some(UID));
    let refused = group("kvm", UID).unwrap_err().to_string();
    assert!(refused.contains("[rights] viewer") && refused.contains("Name another group"), "{refused}");
    assert_eq!(group("tcg", UID).unwrap(), None);
    set_mode(0o666);
    assert_eq!(group("kvm", UID).unwrap(), None, "everybody may use it");
}
