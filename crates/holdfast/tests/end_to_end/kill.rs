//! `kill -9` of either agent, again and again, under a real guest's load.

use crate::stage::{SOON, Stage, same_bytes};
use lab::{Guest, Ticks, check_file_system, make_disk, read_file, wait_until};
use std::time::Duration;

const ROUNDS: u64 = 4;

#[test]
fn killed_agents_lose_nothing_and_the_guest_goes_on() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut guest = stage.guest_under_load(&socket);
    for round in 0..ROUNDS {
        more_ticks(&mut guest, 5);
        stage.a.kill_agent().unwrap();
        std::thread::sleep(Duration::from_millis(100 + 300 * round));
        stage.a.start_agent().unwrap();
        more_ticks(&mut guest, 5);
        stage.b.kill_agent().unwrap();
        // The guest does not notice that the other side is away.
        more_ticks(&mut guest, 5);
        stage.b.start_agent().unwrap();
    }
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.tag("web", "web", "after the kills");
    more_ticks(&mut guest, 5);
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    guest.kill().unwrap();
    stage.left_and_drained("web");

    let image = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&image, &disk), "the image at B is the disk at A");
    let tagged = stage.copy_image("web", "after the kills", "tagged.raw");
    let local = stage.path("local.raw");
    std::fs::copy(&disk, &local).unwrap();
    for (name, path) in [("B", &image), ("A", &local), ("the tagged checkpoint", &tagged)] {
        assert!(check_file_system(path).unwrap(), "e2fsck finds something wrong at {name}");
        let ticks = Ticks::parse(&read_file(path, "/ticks").unwrap());
        assert_eq!(ticks.violations, 0, "{name}");
        if name != "the tagged checkpoint" {
            assert!(
                ticks.last >= reported,
                "{name} ends with record {}, {reported} was reported",
                ticks.last
            );
        }
    }
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
    assert_eq!(stage.b.unannounced(&known).unwrap(), Vec::<String>::new());
}

/// Waits until the guest has written some more records.
pub(crate) fn more_ticks(guest: &mut Guest, count: u64) {
    let last =
        |guest: &mut Guest| Ticks::reported(&mut guest.console).unwrap().last().map_or(0, |tick| tick.number);
    let before = last(guest);
    wait_until("more records of the guest", SOON, || Ok((last(guest) >= before + count).then_some(())))
        .unwrap();
}

#[test]
fn a_restarted_agent_sends_only_what_was_not_acknowledged() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 64 << 20);
    let socket = stage.protect("web", "web", &disk);
    let noise = stage.path("noise.raw");
    std::fs::write(&noise, vec![9; 64 << 20]).unwrap();
    let uri = format!("nbd+unix:///vda?socket={socket}");
    assert!(std::process::Command::new("nbdcopy").arg(&noise).arg(&uri).status().unwrap().success());
    stage.drained("web");
    stage.tag("web", "web", "before the restarts");
    for clean in [false, true] {
        if clean {
            stage.a.stop_agent().unwrap()
        } else {
            stage.a.kill_agent().unwrap()
        }
        stage.a.start_agent().unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        stage.drained("web");
        let sent = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap();
        assert!(sent < 1 << 20, "{sent} bytes were sent after a restart (clean: {clean})");
    }
    // What was not acknowledged is: B is away while the guest writes and A is killed.
    stage.b.kill_agent().unwrap();
    std::fs::write(&noise, vec![7; 3 << 20]).unwrap();
    assert!(std::process::Command::new("nbdcopy").arg(&noise).arg(&uri).status().unwrap().success());
    // Under load everything would be compared: no time tells the guest's last writes from somebody else's.
    stage.noted("web", &disk);
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    assert!(stage.a.protected("web").unwrap()["dirty_bytes"].as_u64().unwrap() >= 3 << 20);
    stage.b.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    let kept = stage.copy_image("web", "before the restarts", "kept.raw");
    assert!(std::fs::read(kept).unwrap().iter().all(|&byte| byte == 9), "history has not moved");
}

#[test]
fn an_image_that_was_replaced_while_the_agent_was_away_is_sent_whole() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    stage.a.kill_agent().unwrap();
    // As if the VM had run on its plain image meanwhile, from a copy that was put in its place.
    let other = stage.path("other.raw");
    std::fs::write(&other, vec![3; 8 << 20]).unwrap();
    std::fs::rename(&other, &disk).unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
}

#[test]
fn a_writable_image_keeps_what_was_written_when_the_agent_is_killed() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest", "--writable"]).unwrap();
    let uri = format!("nbd+unix:///vda?socket={}", image["socket"].as_str().unwrap());
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[3_000_000..3_100_000].fill(7);
    let changed = stage.path("changed.raw");
    std::fs::write(&changed, &bytes).unwrap();
    let copy = |from: &str, to: &str| {
        assert!(std::process::Command::new("nbdcopy").args([from, to]).status().unwrap().success());
    };
    // Without a flush: what was acknowledged must still be read back after the agent was away.
    copy(&changed.display().to_string(), &uri);
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    let back = stage.path("back.raw");
    copy(&uri, &back.display().to_string());
    assert!(same_bytes(&back, &changed));
}
