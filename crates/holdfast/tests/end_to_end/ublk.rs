//! A disk as a block device of a host's own kernel, in a guest that is that host.

use crate::stage::{SOON, Stage, same_bytes};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Work, check_file_system, wait_until};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);

#[test]
fn a_device_of_the_hosts_own_kernel_outlives_its_agent_and_loses_nothing() {
    outlives_its_agent(&["100", "1500"]);
}

/// The agent is away for so many milliseconds, each time.
pub(crate) fn outlives_its_agent(away: &[&str]) {
    let mut stage = Stage::set();
    // The agent of site A runs in the guest, and reaches B by the name that QEMU has for this machine.
    stage.a.stop_agent().unwrap();
    let issued = stage
        .b
        .command()
        .args(["pki", "issue", "--agent", "agent-1", "--host", "127.0.0.1", "--host", "10.0.2.2", "--dir"])
        .arg(stage.b.pki())
        .status();
    assert!(issued.unwrap().success());
    stage.b.stop_agent().unwrap();
    stage.b.start_agent().unwrap();
    std::fs::remove_dir_all(stage.a.folder.join("run")).unwrap();
    // What the guest finds in the folder `site`.
    std::fs::write(stage.a.folder.join("away"), away.join(" ")).unwrap();
    std::fs::write(stage.a.folder.join("peer"), format!("10.0.2.2:{}", stage.b.stream_port)).unwrap();
    let disk = stage.path("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let files = GuestFiles::find().unwrap().with_agent(&stage.path("initrd.host"), &stage.a.folder).unwrap();
    let network = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=", "-m", "1024"];
    let mut guest = Guest::start(&GuestOptions {
        files: &files,
        work: Work::Host,
        disk: GuestDisk::image(&disk, "raw"),
        more: &network.map(str::to_owned),
        folder: stage.folder.path().to_path_buf(),
        name: "host",
    })
    .unwrap();
    let (_, device) = guest.console.wait_for("DEVICE", LONG).unwrap();
    assert_eq!(device, "/dev/ublkb0");
    guest.console.wait_for(&format!("BACK {}", away.len()), LONG).unwrap();
    let (_, refused) = guest.console.wait_for("REFUSED", SOON).unwrap();
    assert!(refused.contains("/dev/ublkb0 is in use: unmount it first"), "{refused}");
    let (_, state) = guest.console.wait_for("FSCK", SOON).unwrap();
    assert_eq!(state, "CLEAN");
    let (_, kept) = guest.console.wait_for("KEPT", SOON).unwrap();
    assert_eq!(kept, device);
    guest.console.wait_for("TAGGED", SOON).unwrap();
    guest.console.wait_for("DONE", SOON).unwrap();
    let lines: Vec<String> = guest.console.lines().unwrap().iter().map(|(_, line)| line.clone()).collect();
    let after = |start: &str| {
        lines.iter().skip_while(move |line| *line != start).any(|line| line.starts_with("TICK"))
    };
    assert!((1..=away.len()).all(|number| after(&format!("BACK {number}"))), "the load goes on: {lines:?}");
    let (killed, started) = (format!("KILLED {}", away.len()), format!("STARTED {}", away.len()));
    let killed = lines.iter().skip_while(|line| **line != killed).take_while(|line| **line != started);
    let meanwhile = killed.filter(|line| line.starts_with("TICK")).count();
    assert!(meanwhile <= 1, "what is asked waits: {lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("FAILED")), "nothing fails meanwhile: {lines:?}");
    assert!(lines.iter().any(|line| line == "GONE"), "the device goes with the protection: {lines:?}");
    let ended = wait_until("the guest's end", SOON, || Ok((!guest.is_running()?).then_some(())));
    ended.unwrap();
    let image = stage.copy_image("web", "the end", "image.raw");
    assert!(same_bytes(&image, &disk), "every write is on the other side");
    assert!(check_file_system(&image).unwrap());
}
