//! Guests on vhost-user-blk: what the device can do, and `kill -9` with requests in flight.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, same_bytes};
use crate::tap::{ask, ask_at, monitors};
use lab::{
    Guest, GuestDisk, GuestFiles, GuestOptions, Ticks, Work, check_file_system, make_disk, read_file,
    wait_until,
};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const ROUNDS: u64 = 4;

pub(crate) fn vhost_socket(stage: &Stage) -> String {
    let vm = stage.a.protected("web").unwrap();
    vm["disks"][0]["vhost_user_socket"].as_str().unwrap().to_owned()
}

fn on_two_queues(stage: &Stage) -> (GuestDisk, [String; 2]) {
    (GuestDisk::VhostUser { socket: vhost_socket(stage), queues: 2 }, ["-smp".into(), "2".into()])
}

/// Ends the guest: what it was told is on the disk is on it, at both sides, and its file system is well.
fn assert_nothing_lost(stage: &Stage, guest: &mut Guest, disk: &Path) {
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    guest.kill().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.left_and_drained("web");
    let image = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&image, disk), "the image at B is the disk at A");
    assert!(check_file_system(&image).unwrap(), "e2fsck finds something wrong");
    let ticks = Ticks::parse(&read_file(&image, "/ticks").unwrap());
    assert_eq!(ticks.violations, 0);
    assert!(ticks.last >= reported, "it ends with record {}, {reported} was reported", ticks.last);
}

#[test]
fn a_guest_on_two_queues_outlives_the_agent_again_and_again() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    stage.protect("web", "web", &disk);
    let (on, more) = on_two_queues(&stage);
    let mut guest = stage.guest(Work::LoadAndRead, on, &more);
    assert_eq!(stage.a.protected("web").unwrap()["clients"], 1);
    for round in 0..ROUNDS {
        more_ticks(&mut guest, 5);
        stage.a.kill_agent().unwrap();
        std::thread::sleep(Duration::from_millis(50 + 300 * round));
        stage.a.start_agent().unwrap();
    }
    more_ticks(&mut guest, 5);
    assert_nothing_lost(&stage, &mut guest, &disk);
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

/// In synchronous mode a write is held while the other side does not answer, and reads overtake it: the guest's
/// queue is out of order when the agent is killed. Without the in-flight region it would never go on.
#[test]
fn held_writes_that_reads_have_overtaken_are_done_again_after_a_kill() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    stage.try_protect("web", "web", &disk, &["--mode", "sync", "--on-timeout", "hold"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let (on, more) = on_two_queues(&stage);
    let mut guest = stage.guest(Work::LoadAndRead, on, &more);
    wait_until("synchronous mode", SOON, || Ok((stage.a.protected("web")?["mode"] == "sync").then_some(())))
        .unwrap();
    for _ in 0..3 {
        more_ticks(&mut guest, 5);
        stage.b.kill_agent().unwrap();
        // The guest's next writes are held by now, and its reads go on.
        std::thread::sleep(Duration::from_secs(2));
        stage.a.kill_agent().unwrap();
        stage.b.start_agent().unwrap();
        stage.a.start_agent().unwrap();
        more_ticks(&mut guest, 5);
    }
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    assert!(log.contains("requests that were cut short are done again"), "nothing was in flight at any kill");
    assert_nothing_lost(&stage, &mut guest, &disk);
}

/// QEMU waits for the queues of a guest that it stops or ends, in its main loop.
#[test]
fn a_guest_whose_writes_are_held_is_stopped_and_goes_on() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let hold = ["--mode", "sync", "--sync-timeout", "300", "--on-timeout", "hold"];
    stage.try_protect("web", "web", &disk, &hold).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let (on, more) = on_two_queues(&stage);
    let more = [&more[..], &monitors(&stage)].concat();
    let mut guest = stage.guest(Work::Load, on, &more);
    wait_until("synchronous mode", SOON, || Ok((stage.a.protected("web")?["mode"] == "sync").then_some(())))
        .unwrap();
    more_ticks(&mut guest, 5);
    stage.b.kill_agent().unwrap();
    // The guest's next writes are held by now.
    std::thread::sleep(Duration::from_secs(1));
    for command in ["stop", "cont", "stop"] {
        let (monitor, asked) = (stage.path("own.qmp"), command.to_owned());
        let asking = std::thread::spawn(move || ask_at(&monitor, &asked, &json!({})));
        wait_until(command, SOON, || Ok(asking.is_finished().then_some(()))).unwrap();
        asking.join().unwrap();
    }
    stage.b.start_agent().unwrap();
    ask(&stage, "cont", &json!({}));
    more_ticks(&mut guest, 5);
    assert_nothing_lost(&stage, &mut guest, &disk);
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

/// Its next request would bring the answer along: a guest that waits for this one asks for nothing meanwhile.
#[test]
fn a_guest_that_asks_for_nothing_but_the_serial_number_is_answered() {
    let stage = Stage::set();
    stage.protect("web", "web", &stage.disk("disk.raw", 4 << 20));
    let files = GuestFiles::find().unwrap().with_serial(&stage.path("initrd")).unwrap();
    let disk = GuestDisk::VhostUser { socket: vhost_socket(&stage), queues: 1 };
    let folder = stage.folder.path().to_path_buf();
    let options = GuestOptions { files: &files, work: Work::Serial, disk, folder, name: "guest", more: &[] };
    let mut guest = Guest::start(&options).unwrap();
    guest.console.wait_for("ASKING", Duration::from_secs(120)).unwrap();
    assert_eq!(guest.console.wait_for("SERIAL", SOON).unwrap().1, "vda");
}

#[test]
fn a_second_client_is_refused_and_an_image_is_served_too() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest", "--writable"]).unwrap();
    let socket = image["disks"][0]["vhost_user_socket"].as_str().unwrap().to_owned();
    let mut guest = stage.guest(Work::Burst, GuestDisk::VhostUser { socket: socket.clone(), queues: 1 }, &[]);
    let mut second = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let mut byte = [0];
    assert_eq!(std::io::Read::read(&mut second, &mut byte).unwrap(), 0, "it is hung up on");
    guest.console.wait_for("DONE", Duration::from_secs(120)).unwrap();
    stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    assert!(!Path::new(&socket).exists());
    assert_eq!(stage.b.unannounced(&["somebody is connected already"]).unwrap(), Vec::<String>::new());
}
