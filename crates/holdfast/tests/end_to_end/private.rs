//! What an agent keeps is for its own user only, and who else may use disks' sockets is for its operator to say.

use crate::stage::{SOON, Stage, refused, wait_for_listener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Everything below a folder, links not followed, that others than its owner can use in some way.
fn open_to_others(folder: &Path, found: &mut Vec<String>) {
    let kind = folder.symlink_metadata().unwrap();
    let mode = kind.permissions().mode() & 0o7777;
    if !kind.is_symlink() && mode & 0o077 != 0 {
        found.push(format!("{} {mode:o}", folder.display()));
    }
    if kind.is_dir() {
        for row in std::fs::read_dir(folder).unwrap() {
            open_to_others(&row.unwrap().path(), found);
        }
    }
}

fn folders(stage: &Stage) -> Vec<PathBuf> {
    [&stage.a, &stage.b].iter().flat_map(|site| ["state", "run"].map(|name| site.folder.join(name))).collect()
}

#[test]
fn nothing_an_agent_keeps_can_be_used_by_others_and_what_could_is_closed_when_it_starts() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    stage.tag("web", "web", "here");
    stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest", "--writable"]).unwrap();
    let look = |stage: &Stage| {
        let mut found = Vec::new();
        folders(stage).iter().for_each(|folder| open_to_others(folder, &mut found));
        found
    };
    assert_eq!(look(&stage), Vec::<String>::new());
    // As an earlier version has left it.
    stage.b.stop_agent().unwrap();
    for folder in folders(&stage).iter().filter(|folder| folder.starts_with(&stage.b.folder)) {
        let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(folder).status().unwrap();
        assert!(opened.success());
    }
    assert!(!look(&stage).is_empty());
    stage.b.start_agent().unwrap();
    assert_eq!(look(&stage), Vec::<String>::new());
}

/// Asks for a disk as a user and group that are nobody's here.
fn as_another_user(socket: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65533", "--regid", "65532", "--clear-groups", "nbdinfo"]);
    command.arg(format!("nbd+unix:///vda?socket={socket}")).output().unwrap()
}

#[test]
fn disks_sockets_are_for_the_agents_user_and_for_the_group_that_is_set() {
    let mut stage = Stage::set();
    std::fs::set_permissions(stage.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let disk = stage.disk("disk.raw", 8 << 20);
    let socket = stage.protect("web", "web", &disk);
    let output = as_another_user(&socket);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("Permission denied"), "{said}");
    stage.a.stop_agent().unwrap();
    stage.a.configure("[sockets]\ngroup = \"65532\"\n").unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let output = as_another_user(&socket);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    // The door to everything stays closed.
    let mode = stage.a.api_socket().metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    stage.a.stop_agent().unwrap();
    stage.a.configure("[sockets]\ngroup = \"no-such-group\"\n").unwrap();
    let error = stage.a.start_agent().unwrap_err();
    assert!(format!("{error:#}").contains("no group \"no-such-group\""), "{error:#}");
}

#[test]
fn a_tap_that_may_not_use_the_agents_socket_says_what_to_set() {
    let stage = Stage::set();
    let image = stage.disk("disk.raw", 8 << 20);
    let qmp = stage.path("vm.qmp");
    std::fs::set_permissions(stage.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-S"]);
    qemu.args(["-runas", "nobody", "-device", "virtio-blk-pci,drive=disk", "-blockdev"]);
    qemu.arg(format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", image.display()));
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
    let mut running = qemu.spawn().unwrap();
    wait_for_listener(&qmp);
    let (qmp, peer) = (qmp.display().to_string(), stage.b.peer());
    let asked = stage.a.ask(&["vm", "protect", "web", "--qmp", &qmp, "--peer", &peer]);
    running.kill().unwrap();
    running.wait().unwrap();
    refused(asked, 5, "[sockets] group");
}
