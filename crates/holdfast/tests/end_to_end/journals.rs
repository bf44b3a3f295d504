//! What operators do with journals: modes, limits, pins, promotion, moving, damage and repair.

use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::{make_disk, wait_until};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// The folder of the only journal at B.
fn journal_folder(stage: &Stage) -> PathBuf {
    let journals = stage.b.folder.join("state/journals");
    let folders = std::fs::read_dir(journals).unwrap().map(|row| row.unwrap().path());
    folders.into_iter().find(|path| path.is_dir()).unwrap()
}

/// Writes a file's bytes over a VM's disk, as a guest would.
fn overwrite(stage: &Stage, socket: &str, byte: u8) {
    let noise = stage.path("noise.raw");
    let bytes: Vec<u8> =
        (0..8u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8 ^ byte).collect();
    std::fs::write(&noise, bytes).unwrap();
    let uri = format!("nbd+unix:///vda?socket={socket}");
    assert!(std::process::Command::new("nbdcopy").arg(&noise).arg(&uri).status().unwrap().success());
}

#[test]
fn every_checkpoint_of_a_real_guest_is_a_whole_file_system_in_either_mode() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 64 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut guest = stage.guest_under_load(&socket);
    guest.console.wait_for("LOAD 3", SOON).unwrap();
    // From here on the replica is brought up to the newest write, under the load.
    let journal = stage.b.ask(&["journal", "set", "web", "--mode", "rollback"]).unwrap();
    assert_eq!(journal["mode"], "rollback");
    wait_until("some checkpoints", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        Ok((journal["checkpoints"].as_u64().unwrap() >= 10).then_some(()))
    })
    .unwrap();
    guest.kill().unwrap();
    stage.left_and_drained("web");
    let caught_up = wait_until("the replica", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        Ok((journal["applied_seq"] == journal["durable_seq"]).then_some(journal))
    });
    let journal = caught_up.unwrap();
    // In rollback mode the replica is the newest state, for anybody to read.
    let replica = PathBuf::from(journal["replica_folder"].as_str().unwrap()).join("vda.raw");
    assert!(same_bytes(&replica, &disk), "the replica is the disk");
    stage.checkpoints_have_whole_file_systems("web");
    stage.b.stop_agent().unwrap();
    let verified =
        stage.b.ask(&["journal", "verify", &journal_folder(&stage).display().to_string()]).unwrap();
    assert_eq!(verified["damage"].as_array().unwrap().len(), 0);
    stage.b.start_agent().unwrap();
    let reopened = stage.b.ask(&["journal", "show", "web"]).unwrap();
    assert_eq!(reopened["mode"], "rollback", "what was set is kept");
    let known = ["link lost", "peer not reached"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
    assert_eq!(stage.b.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn settings_out_of_range_are_refused_with_the_range() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    let ask = |more: &[&str]| stage.b.ask(&[&["journal", "set", "web"], more].concat());
    refused(ask(&["--mode", "sideways"]), 2, "use roll-forward or rollback");
    refused(ask(&["--soft", "5"]), 2, "use 900000000 to 20000000000000, or 0 for none");
    refused(ask(&["--keep-all", "7200", "--keep-minutely", "3600"]), 2, "the second must be longer");
    refused(stage.b.ask(&["journal", "show", "nobody"]), 3, "no journal of a VM \"nobody\"");
    let journal = ask(&["--soft", "2000000000", "--keep-tagged", "86400"]).unwrap();
    assert_eq!(
        (&journal["bytes_soft"], &journal["keep_tagged_seconds"]),
        (&2_000_000_000u64.into(), &86_400.into())
    );
}

#[test]
fn a_pin_holds_until_it_is_taken_away() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "audit");
    let pin = stage.b.ask(&["journal", "pin", "web", "--at", "audit", "--owner", "the audit"]).unwrap();
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "audit", "--writable"]).unwrap();
    let owners = |journal: &Value| -> Vec<String> {
        let pins = journal["pins"].as_array().unwrap();
        pins.iter().map(|pin| pin["owner"].as_str().unwrap().to_owned()).collect()
    };
    let id = image["id"].as_str().unwrap();
    let journal = stage.b.ask(&["journal", "show", "web"]).unwrap();
    assert_eq!(owners(&journal), ["the audit".to_owned(), format!("image {id}")]);
    stage.b.ask(&["image", "close", id]).unwrap();
    let number = pin["id"].to_string();
    stage.b.ask(&["journal", "unpin", "web", &number]).unwrap();
    assert!(owners(&stage.b.ask(&["journal", "show", "web"]).unwrap()).is_empty());
    refused(stage.b.ask(&["journal", "unpin", "web", &number]), 3, "has no pin");
}

#[test]
fn checkpoints_are_found_by_time_kind_and_tag() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    let socket = stage.protect("web", "web", &disk);
    overwrite(&stage, &socket, 1);
    stage.tag("web", "web", "first");
    stage.tag("web", "web", "second");
    let list = |more: &[&str]| -> Vec<Value> {
        let page = stage.b.ask(&[&["checkpoint", "list", "--vm", "web"], more].concat()).unwrap();
        page["checkpoints"].as_array().unwrap().clone()
    };
    let tagged = list(&["--kind", "tagged"]);
    assert_eq!(
        tagged.iter().map(|row| row["tag"].as_str().unwrap()).collect::<Vec<_>>(),
        ["first", "second"]
    );
    let noisy = list(&[]).into_iter().max_by_key(|row| row["write_bytes"].as_u64().unwrap()).unwrap();
    assert!(
        noisy["writes"].as_u64().unwrap() > 0 && noisy["entropy_bits"].as_f64().unwrap() > 1.0,
        "{noisy}"
    );
    // A checkpoint, and what a sync copied, are nobody's writes.
    let quiet = list(&[]).into_iter().filter(|row| row["writes"] == 0).collect::<Vec<_>>();
    assert!(!quiet.is_empty() && quiet.iter().all(|row| row["entropy_bits"].is_null()), "{quiet:?}");
    let first = list(&["--tag", "first"]).remove(0);
    let at = first["taken_at"].as_str().unwrap();
    assert!(list(&["--to", at]).iter().all(|row| row["taken_at"].as_str().unwrap() <= at));
    assert_eq!(list(&["--from", at, "--limit", "1"])[0]["id"], first["id"]);
    let newest = list(&["--newest-first", "--limit", "2"]);
    assert!(newest[0]["taken_at"].as_str().unwrap() >= newest[1]["taken_at"].as_str().unwrap());
    refused(stage.b.ask(&["checkpoint", "list", "--vm", "web", "--from", "noon"]), 2, "use RFC 3339");
}

#[test]
fn an_image_is_promoted_while_it_is_used_and_outlives_its_journal() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 32 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    stage.tag("web", "web", "then");
    let expected = stage.copy_image("web", "then", "expected.raw");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "then", "--writable"]).unwrap();
    let id = image["id"].as_str().unwrap().to_owned();
    let slow = stage.b.ask(&["image", "promote", &id, "--rate", "4000000", "--no-wait"]).unwrap();
    assert_eq!((slow["kind"].as_str(), slow["state"].as_str()), (Some("promote"), Some("going")));
    overwrite(&stage, &socket, 3);
    // The agent dies in the middle; what was copied stays.
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    let done = stage.b.ask(&["image", "promote", &id]).unwrap();
    assert_eq!(done["promotion"]["state"], "done");
    let plain = PathBuf::from(done["disks"][0]["path"].as_str().unwrap());
    assert!(same_bytes(&plain, &expected), "the plain disk is the image");
    let journal = stage.b.ask(&["journal", "show", "web"]).unwrap();
    assert_eq!(journal["pins"].as_array().unwrap().len(), 0, "it needs no journal: {journal}");
    refused(stage.b.ask(&["image", "promote", "none"]), 3, "no image");
    let closed = stage.b.ask(&["image", "close", &id]).unwrap();
    let kept = PathBuf::from(closed["kept"][0].as_str().unwrap());
    assert!(same_bytes(&kept, &expected), "closing throws the overlay away, not the disk it has become");
    assert!(!plain.exists() && stage.b.ask(&["image", "list"]).unwrap().as_array().unwrap().is_empty());
}

#[test]
fn a_journal_is_moved_and_goes_on_where_it_is() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.tag("web", "web", "before the move");
    let old = journal_folder(&stage);
    let new = stage.path("elsewhere/web");
    refused(stage.b.ask(&["journal", "move", "web", "--to", "relative"]), 2, "full path");
    refused(
        stage.b.ask(&["journal", "move", "web", "--to", &stage.b.folder.display().to_string()]),
        4,
        "is not empty",
    );
    let journal = stage.b.ask(&["journal", "move", "web", "--to", &new.display().to_string()]).unwrap();
    assert_eq!(journal["folder"], new.display().to_string());
    assert!(!old.exists());
    overwrite(&stage, &socket, 9);
    stage.tag("web", "web", "after the move");
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    stage.copy_image("web", "before the move", "old.raw");
}

#[test]
fn a_move_that_kill_9_cuts_short_goes_on_and_the_journal_lies_in_one_place() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    for (round, moment) in ["\"copies\": true", "\"switches\": true", "\"next\": 1"].into_iter().enumerate() {
        let old = stage.b.ask(&["journal", "show", "web"]).unwrap()["folder"].as_str().unwrap().to_owned();
        let new = stage.path(&format!("elsewhere/{round}"));
        let mut asking = stage.b.command();
        asking.args(["journal", "move", "web", "--to", &new.display().to_string()]);
        let mut asking = asking.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let has_come = || {
            let rows =
                std::fs::read_dir(stage.b.folder.join("state/operations")).into_iter().flatten().flatten();
            let goes = |text: String| text.contains(moment) && text.contains("\"forward\"");
            rows.map(|row| std::fs::read_to_string(row.path())).any(|text| text.is_ok_and(goes))
        };
        while !has_come() && asking.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        stage.b.kill_agent().unwrap();
        asking.wait().unwrap();
        stage.b.start_agent().unwrap();
        wait_until("the move", SOON, || {
            let operation = &stage.b.ask(&["operation", "list"])?["operations"][0];
            Ok((operation["state"] == "done").then_some(()))
        })
        .unwrap();
        let journal = stage.b.ask(&["journal", "show", "web"]).unwrap();
        assert_eq!(journal["folder"], new.display().to_string());
        assert!(!PathBuf::from(old).exists());
        overwrite(&stage, &socket, round as u8);
        stage.drained("web");
        assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    }
}

#[test]
fn replicas_lie_in_a_folder_of_their_own_and_stay_there_when_the_journal_is_moved() {
    let mut stage = Stage::set();
    stage.b.stop_agent().unwrap();
    stage.b.configure("[journal]\nreplica_dir = \"replicas\"\n").unwrap();
    stage.b.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 16 << 20);
    let socket = stage.protect("web", "web", &disk);
    let journal = stage.b.ask(&["journal", "set", "web", "--mode", "rollback"]).unwrap();
    let replicas = PathBuf::from(journal["replica_folder"].as_str().unwrap());
    assert!(replicas.starts_with(stage.b.folder.join("replicas")), "{}", replicas.display());
    let replica = replicas.join("vda.raw");
    // Nobody may protect it, under whatever name.
    let (link, other) = (stage.path("soft.raw"), stage.path("hard.raw"));
    std::os::unix::fs::symlink(&replica, &link).unwrap();
    std::fs::hard_link(&replica, &other).unwrap();
    for path in [&replica, &link, &other] {
        let disk = format!("vda={}", path.display());
        let protect = ["vm", "protect", "circle", "--disk", &disk, "--peer", &stage.a.peer()];
        refused(stage.b.ask(&protect), 4, "is the replica of a journal");
    }
    let is_followed = |what: &str| {
        wait_until(what, SOON, || {
            let journal = stage.b.ask(&["journal", "show", "web"])?;
            Ok((journal["applied_seq"] == journal["durable_seq"]).then_some(()))
        })
        .unwrap();
        assert!(same_bytes(&replica, &disk), "{what}");
    };
    overwrite(&stage, &socket, 1);
    stage.drained("web");
    is_followed("the replica follows");
    let new = stage.path("elsewhere/web");
    stage.b.ask(&["journal", "move", "web", "--to", &new.display().to_string()]).unwrap();
    assert!(!new.join("replica/vda.raw").exists());
    overwrite(&stage, &socket, 2);
    stage.drained("web");
    is_followed("the replica follows the moved journal");
    stage.tag("web", "web", "at the end");
    assert!(same_bytes(&stage.copy_image("web", "at the end", "image.raw"), &disk));
}

#[test]
fn rot_is_found_by_verify_contained_by_repair_and_made_good_by_the_source() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 24 << 20);
    let socket = stage.protect("web", "web", &disk);
    for byte in 0..4 {
        overwrite(&stage, &socket, byte);
        stage.drained("web");
    }
    stage.tag("web", "web", "old");
    stage.b.stop_agent().unwrap();
    let folder = journal_folder(&stage);
    let text = folder.display().to_string();
    let segment = folder.join("segment-00000001");
    let mut bytes = std::fs::read(&segment).unwrap();
    // One of a few pages in a row is never only padding.
    let middle = 256 << 10;
    bytes[middle..].iter_mut().step_by(4096).take(16).for_each(|byte| *byte ^= 1);
    std::fs::write(&segment, bytes).unwrap();
    refused(stage.b.ask(&["journal", "verify", &text]), 7, "");
    refused(stage.b.ask(&["journal", "repair", &text]), 7, "");
    stage.b.start_agent().unwrap();
    // The source learns that it cannot resume, sends everything again, and new checkpoints appear.
    wait_until("made good", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        Ok(journal["damage"].as_array().unwrap().is_empty().then_some(()))
    })
    .unwrap();
    stage.drained("web");
    stage.tag("web", "web", "new");
    assert!(same_bytes(&stage.copy_image("web", "new", "image.raw"), &disk));
}
