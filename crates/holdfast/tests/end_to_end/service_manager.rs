//! The agent under a service manager: what it tells one, and the unit file under a real systemd.
//!
//! systemd runs as root's user manager, in a mount namespace with a `/run` of its own: it starts nothing of the
//! machine's, and nothing of the machine's sees it. Making the namespace takes root.

use crate::stage::{HOLDFAST, SOON};
use lab::{Site, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const UNIT: &str = "holdfast-agent.service";
const RUNTIME_DIR: &str = "/run/user/0";

/// A systemd of its own.
struct Manager(Child);

impl Manager {
    fn start(home: &Path) -> Self {
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system {RUNTIME_DIR} && exec /lib/systemd/systemd --user"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.env("XDG_RUNTIME_DIR", RUNTIME_DIR).env("HOME", home);
        let manager = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("systemd is up", SOON, || {
            Ok(manager.systemctl(&["show-environment"]).status.success().then_some(()))
        })
        .unwrap();
        manager
    }

    fn systemctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--mount", "systemctl", "--user"]);
        command.args(arguments).env("XDG_RUNTIME_DIR", RUNTIME_DIR).output().unwrap()
    }

    fn tell(&self, arguments: &[&str]) {
        let output = self.systemctl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "systemctl {arguments:?}: {said}\n{}", self.show("Result"));
    }

    fn show(&self, property: &str) -> String {
        let output = self.systemctl(&["show", "--value", "--property", property, UNIT]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The agent that runs, and has said that it is ready.
    fn agent(&self) -> Option<Pid> {
        let is_ready = self.show("ActiveState") == "active";
        is_ready.then(|| self.show("MainPID").parse().ok().and_then(Pid::from_raw)).flatten()
    }

    fn wait_for_another_than(&self, gone: Pid) -> Pid {
        wait_until("the agent is started again", SOON, || Ok(self.agent().filter(|agent| *agent != gone)))
            .unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(agent) = self.agent() {
            let _ = kill_process(agent, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The unit file as it is packaged, with the paths of this test.
fn install(home: &Path, site: &Site) {
    let units = home.join(".config/systemd/user");
    let changes = units.join(format!("{UNIT}.d"));
    std::fs::create_dir_all(&changes).unwrap();
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(UNIT);
    std::fs::copy(packaged, units.join(UNIT)).unwrap();
    let agent = format!("{HOLDFAST} agent --config {}", site.config().display());
    let here = format!(
        "[Service]\nExecStartPre=\nExecStartPre={agent} --check\nExecStart=\nExecStart={agent}\n\
         # Sooner than on a host.\nWatchdogSec=2\nTimeoutAbortSec=1\n\
         # Where /proc is not a host's own it cannot be mounted read-only.\nProtectKernelTunables=no\n"
    );
    std::fs::write(changes.join("here.conf"), here).unwrap();
}

#[test]
fn the_unit_file_works_under_systemd_which_starts_an_agent_again_that_dies_or_hangs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a mount namespace");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (site, _) = lab::pair(Path::new(HOLDFAST), folder.path()).unwrap();
    install(folder.path(), &site);
    let manager = Manager::start(folder.path());
    manager.tell(&["start", UNIT]);
    // It was told when the agent was ready: it answers at once.
    site.ask(&["status"]).unwrap();
    let first = manager.agent().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = manager.wait_for_another_than(first);
    site.ask(&["status"]).unwrap();
    // It hangs: nothing is heard of it any more.
    kill_process(second, Signal::STOP).unwrap();
    manager.wait_for_another_than(second);
    site.ask(&["status"]).unwrap();
    assert_eq!(manager.show("NRestarts"), "2");
    manager.tell(&["stop", UNIT]);
    assert_eq!([manager.show("ActiveState"), manager.show("Result")], ["inactive", "success"]);
}

/// A VM at `a` that fails over to `b`; what is told of it there.
fn failed_over(a: &Site, b: &Site, folder: &Path) -> Value {
    let (disk, definition) = (folder.join("web.raw"), folder.join("web.toml"));
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 32\naccelerator = \"tcg\"\n").unwrap();
    let (disk, definition) = (format!("vda={}", disk.display()), definition.display().to_string());
    let protect = ["vm", "protect", "web", "--disk", &disk, "--peer", &b.peer(), "--definition", &definition];
    a.ask(&protect).unwrap();
    a.wait_for_state("web", "journaling", SOON).unwrap();
    let start = || Ok(b.ask(&["failover", "start", "--group", "web"]).ok());
    wait_until("the failover", SOON, start).unwrap()["vms"][0].clone()
}

#[test]
fn guests_are_units_of_their_own_under_systemd_which_stay_when_the_agents_is_stopped() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a mount namespace");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut a, b) = lab::pair(Path::new(HOLDFAST), folder.path()).unwrap();
    install(folder.path(), &b);
    // Nothing but its own unit is to save a guest.
    let all_go = folder.path().join(format!(".config/systemd/user/{UNIT}.d/kill.conf"));
    std::fs::write(all_go, "[Service]\nKillMode=control-group\n").unwrap();
    let manager = Manager::start(folder.path());
    manager.tell(&["start", UNIT]);
    a.start_agent().unwrap();
    let guest = failed_over(&a, &b, folder.path());
    let pid = Pid::from_raw(i32::try_from(guest["pid"].as_u64().unwrap()).unwrap()).unwrap();
    let unit = format!("holdfast-guest-web-{}.scope", guest["image"].as_str().unwrap());
    let units = || String::from_utf8(manager.systemctl(&["list-units", "--no-legend"]).stdout).unwrap();
    assert!(units().contains(&unit), "{}", units());
    manager.tell(&["stop", UNIT]);
    assert!(units().contains(&unit), "{}", units());
    manager.tell(&["start", UNIT]);
    let now = b.ask(&["failover", "list"]).unwrap()[0]["failover"]["vms"][0].clone();
    assert_eq!((&now["run_state"], &now["pid"]), (&"running".into(), &guest["pid"]));
    b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err(), "the guest has ended");
    wait_until("the unit is gone", SOON, || Ok((!units().contains(&unit)).then_some(()))).unwrap();
    manager.tell(&["stop", UNIT]);
}

#[test]
fn the_service_manager_is_told_that_the_agent_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let (site, _) = lab::pair(Path::new(HOLDFAST), folder.path()).unwrap();
    let path = folder.path().join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut agent = site
        .command()
        .args(["agent", "--config"])
        .arg(site.config())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let heard = |wanted: &str| {
        let mut buf = [0; 256];
        loop {
            let len = manager.recv(&mut buf).unwrap();
            if String::from_utf8_lossy(&buf[..len]).contains(wanted) {
                return;
            }
        }
    };
    heard("READY=1");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    assert!(Command::new("kill").arg(agent.id().to_string()).status().unwrap().success());
    heard("STOPPING=1");
    assert!(agent.wait().unwrap().success());
}
