//! What the process of a guest may do: nothing of what its agent may.

use crate::stage::{HOLDFAST, SOON, Stage, refused};
use lab::wait_until;
use rustix::process::{Pid, Resource, Rlimit, getsid, prlimit};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VMS: [&str; 2] = ["db", "web"];

/// A group of two VMs that runs at B, each on an image there.
fn failed_over(stage: &Stage) -> Value {
    let definition = stage.path("vm.toml");
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 32\naccelerator = \"tcg\"\n").unwrap();
    let definition = definition.display().to_string();
    for vm in VMS {
        let disk = stage.disk(&format!("{vm}.raw"), 1 << 20);
        stage.try_protect(vm, "shop", &disk, &["--definition", &definition]).unwrap();
        stage.a.wait_for_state(vm, "journaling", SOON).unwrap();
        stage.drained(vm);
    }
    VMS.iter().for_each(|vm| stage.tag("shop", vm, "good"));
    // As the agent's unit gives it.
    let agent = Pid::from_raw(i32::try_from(stage.b.agent_pid().unwrap()).unwrap());
    for (what, most) in [(Resource::Nice, 30), (Resource::Rtprio, 10)] {
        let _ = prlimit(agent, what, Rlimit { current: Some(most), maximum: Some(most) });
    }
    stage.b.ask(&["failover", "start", "--group", "shop", "--at", "good"]).unwrap()
}

/// A guest that runs.
struct Running {
    name: String,
    pid: i32,
    /// What the system says of its process.
    status: BTreeMap<String, String>,
    folder: PathBuf,
    socket: PathBuf,
}

impl Running {
    fn find(stage: &Stage, vm: &Value) -> Self {
        let pid = i32::try_from(vm["pid"].as_u64().unwrap()).unwrap();
        let name = vm["vm"].as_str().unwrap().to_owned();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rows = text.lines().filter_map(|line| line.split_once(':'));
        Self {
            pid,
            status: rows.map(|(what, is)| (what.to_owned(), is.trim().to_owned())).collect(),
            folder: stage.b.folder.join("run/guests").join(&name),
            socket: PathBuf::from(vm["socket"].as_str().unwrap()),
            name,
        }
    }

    /// The user or the group, where all of the process's are the same.
    fn number(&self, what: &str) -> u32 {
        let words: Vec<u32> =
            self.status[what].split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert!(words.len() == 4 && words.iter().all(|word| *word == words[0]), "{what}: {words:?}");
        words[0]
    }

    /// Runs something as what has broken out of this guest would, from where its process stands.
    fn as_it(&self, command: &[&str]) -> Output {
        let (uid, gid) = (self.number("Uid").to_string(), self.number("Gid").to_string());
        let mut broken_out = Command::new("setpriv");
        broken_out.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "--no-new-privs"]);
        broken_out.args(["--bounding-set=-all", "--inh-caps=-all"]).args(command);
        broken_out.current_dir(&self.folder).output().unwrap()
    }

    fn may(&self, command: &[&str]) -> bool {
        self.as_it(command).status.success()
    }

    fn may_not(&self, command: &[&str]) {
        let output = self.as_it(command);
        let said = String::from_utf8_lossy(&output.stderr);
        let is_refused = said.contains("Permission denied") || said.contains("Operation not permitted");
        assert!(!output.status.success() && is_refused, "{}: {command:?}: {said}", self.name);
    }
}

fn running(stage: &Stage, failover: &Value) -> [Running; 2] {
    let find = |name: &str| {
        let row = failover["vms"].as_array().unwrap().iter().find(|vm| vm["vm"] == name);
        Running::find(stage, row.unwrap())
    };
    VMS.map(find)
}

/// Everything below a folder, links not followed.
fn all_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for row in std::fs::read_dir(folder).unwrap() {
        let path = row.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            all_below(&path, found);
        }
        found.push(path);
    }
}

/// The control group of version 2 that a process is in.
fn cgroup(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can start guests as other users");
    }
    is_root
}

#[test]
fn a_guest_of_a_failover_has_no_part_of_its_agents_privileges() {
    if !is_root() {
        return;
    }
    let mut stage = Stage::set();
    let failover = failed_over(&stage);
    let guests = running(&stage, &failover);
    for guest in &guests {
        let is = |what: &str| guest.status[what].as_str();
        for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(is(kind), "0000000000000000", "{}: {kind}", guest.name);
        }
        assert_eq!((is("NoNewPrivs"), is("Seccomp"), is("Groups")), ("1", "2", ""), "{}", guest.name);
        assert!((64_100..=64_355).contains(&guest.number("Uid")) && guest.number("Gid") != 0);
        let open = std::fs::read_dir(format!("/proc/{}/fd", guest.pid)).unwrap().map(|row| row.unwrap());
        let open = open.filter_map(|row| std::fs::read_link(row.path()).ok());
        let kept = open.filter(|path| path.starts_with(&stage.b.folder) && !path.starts_with(&guest.folder));
        assert_eq!(kept.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "{} has them open", guest.name);
        assert_eq!(getsid(Pid::from_raw(guest.pid)).ok(), Pid::from_raw(guest.pid), "a session of its own");
        let out_of_memory = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", guest.pid)).unwrap();
        assert_eq!(out_of_memory.trim(), "0");
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", guest.pid)).unwrap();
        let most = |what: &str| {
            let row = limits.lines().find_map(|row| row.strip_prefix(what)).unwrap();
            row.split_whitespace().take(2).map(|word| word.parse().unwrap_or(u64::MAX)).collect::<Vec<_>>()
        };
        assert_eq!((most("Max nice priority"), most("Max realtime priority")), (vec![0, 0], vec![0, 0]));
        assert_eq!((most("Max file size"), most("Max core file size")), (vec![32 << 20; 2], vec![0, 0]));
        let variables = std::fs::read(format!("/proc/{}/environ", guest.pid)).unwrap();
        assert!(!String::from_utf8_lossy(&variables).contains("HOLDFAST"), "the agent's environment");
        let own = cgroup(guest.pid.cast_unsigned());
        assert!(own.is_empty() || own.contains("holdfast-guest"), "{}: {own}", guest.name);
    }
    assert_ne!(guests[0].number("Uid"), guests[1].number("Uid"), "nobody looks into another's process");

    // It outlives its agent, and is the next one's.
    let pids = |failover: &Value| -> Vec<Value> {
        failover["vms"].as_array().unwrap().iter().map(|vm| vm["pid"].clone()).collect()
    };
    let before = pids(&failover);
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    wait_until("both images and VMs", SOON, || {
        let now = &stage.b.ask(&["failover", "list"])?[0]["failover"];
        let rows = now["vms"].as_array().cloned().unwrap_or_default();
        let is_whole = |vm: &Value| vm["run_state"] == "running" && vm["socket"] != "";
        Ok((pids(now) == before && rows.iter().all(is_whole)).then_some(()))
    })
    .unwrap();
    let rolled_back = stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();
    assert_eq!(rolled_back["phase"], "rolled-back");
}

#[test]
fn a_guest_that_fills_its_files_is_stopped_at_a_bound_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let fill = "dd if=/dev/zero of=console bs=1M count=64 2> said; echo $? > ended";
    let mut launched = Command::new(HOLDFAST);
    launched.args(["launch-guest", "--folder"]).arg(folder.path()).args(["--", "sh", "-c", fill]);
    assert!(launched.status().unwrap().success());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(folder.path().join("console").metadata().unwrap().len(), 32 << 20);
    assert!(read("said").contains("File too large") && read("ended") == "1\n", "{}", read("said"));
}

#[test]
fn what_cannot_run_a_guest_is_found_before_anything_is_fenced() {
    let mut stage = Stage::set();
    let kvm = Path::new("/dev/kvm").exists();
    for (accelerator, qemu, told) in
        [("tcg", "/bin/false", "--version ended with"), ("kvm", "qemu-system-x86_64", "open /dev/kvm")]
    {
        if kvm && accelerator == "kvm" {
            continue;
        }
        stage.b.stop_agent().unwrap();
        stage.b.configure(&format!("[qemu]\nbinary = \"{qemu}\"\n")).unwrap();
        stage.b.start_agent().unwrap();
        let definition = stage.path("vm.toml");
        std::fs::write(&definition, format!("vcpus = 1\nmemory_mib = 32\naccelerator = \"{accelerator}\"\n"))
            .unwrap();
        let disk = stage.disk(&format!("{accelerator}.raw"), 1 << 20);
        let definition = definition.display().to_string();
        stage.try_protect(accelerator, accelerator, &disk, &["--definition", &definition]).unwrap();
        stage.a.wait_for_state(accelerator, "journaling", SOON).unwrap();
        stage.drained(accelerator);
        refused(stage.b.ask(&["failover", "start", "--group", accelerator]), 4, told);
        assert_eq!(stage.a.protected(accelerator).unwrap()["state"], "journaling");
    }
    let left = std::fs::read_dir(stage.b.folder.join("run/guests")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "of what was tried nothing is left");
}

#[test]
fn what_has_broken_out_of_a_guest_reaches_its_own_disks_and_nothing_else_of_the_agents() {
    if !is_root() {
        return;
    }
    let mut stage = Stage::set();
    // All that is above is open to all.
    for folder in [stage.folder.path(), &stage.b.folder] {
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let failover = failed_over(&stage);
    // The second time with sockets that another agent has made.
    for _ in 0..2 {
        let [db, web] = running(&stage, &failover);
        let name = |guest: &Running| guest.socket.file_name().unwrap().to_str().unwrap().to_owned();
        let ask = |socket: &str| format!("nbd+unix:///vda?socket={socket}");
        // Its own, where it is.
        wait_until("its own disks", SOON, || {
            Ok(db.may(&["nbdinfo", "--size", &ask(&name(&db))]).then_some(()))
        })
        .unwrap();
        assert!(db.may(&["cat", "console"]));
        db.may_not(&["nbdinfo", "--size", &ask(&format!("../web/{}", name(&web)))]);
        db.may_not(&["nbdinfo", "--size", &ask(&web.socket.display().to_string())]);
        let to_other = format!("/proc/{}/cwd/console", web.pid);
        db.may_not(&["cat", &to_other]);
        db.may_not(&["kill", "-0", &web.pid.to_string()]);
        db.may_not(&["kill", "-0", &stage.b.agent_pid().unwrap().to_string()]);
        db.may_not(&["touch", "new"]);
        db.may_not(&["mv", "console", "gone"]);
        let mut all = Vec::new();
        all_below(&stage.b.folder.join("state"), &mut all);
        all_below(&stage.b.folder.join("run"), &mut all);
        all.retain(|path| !path.starts_with(&db.folder));
        assert!(all.len() > 20, "{}", all.len());
        let reached =
            "for path in \"$@\"; do [ -r \"$path\" ] || [ -w \"$path\" ] && echo \"$path\"; done; true";
        let paths: Vec<&str> = all.iter().map(|path| path.to_str().unwrap()).collect();
        let output = db.as_it(&[&["sh", "-c", reached, "sh"], &paths[..]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        stage.b.stop_agent().unwrap();
        stage.b.start_agent().unwrap();
    }
    stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();
}

#[test]
fn where_there_is_nobody_to_run_guests_as_an_alert_says_so_and_nothing_is_fenced() {
    if !is_root() {
        return;
    }
    let mut stage = Stage::set();
    stage.b.stop_agent().unwrap();
    let configured = std::fs::read_to_string(stage.b.config()).unwrap();
    let nobody = configured.replace("uids = [64100, 64355]", "user = \"no-such-user\"");
    assert_ne!(configured, nobody);
    std::fs::write(stage.b.config(), nobody).unwrap();
    stage.b.start_agent().unwrap();
    let make_it = "useradd --system --add-subids-for-system no-such-user";
    let told = || Ok(stage.b.ask(&["alerts"])?.to_string().contains(make_it).then_some(()));
    wait_until("the alert", SOON, told).unwrap();
    let definition = stage.path("vm.toml");
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 32\naccelerator = \"tcg\"\n").unwrap();
    let disk = stage.disk("web.raw", 1 << 20);
    let definition = definition.display().to_string();
    stage.try_protect("web", "web", &disk, &["--definition", &definition]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    refused(stage.b.ask(&["failover", "start", "--group", "web"]), 4, make_it);
    assert_eq!(stage.a.protected("web").unwrap()["state"], "journaling");
}
