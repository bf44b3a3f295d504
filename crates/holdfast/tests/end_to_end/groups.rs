//! What a group is: never another site's of the same name, never a VM that left it, and never held up by one
//! that is not there yet.

use crate::stage::{HOLDFAST, SOON, Stage, refused};
use lab::{NbdClient, Site, wait_until};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes one block of `byte` at the beginning of a VM's only disk.
fn write(socket: &str, byte: u8) {
    NbdClient::connect(socket, "vda").unwrap().write(0, &[byte; 4096]).unwrap();
}

/// The first byte of the only disk on a socket.
fn first_byte(socket: &Value) -> u8 {
    let mut block = [0; 4096];
    NbdClient::connect(socket.as_str().unwrap(), "vda").unwrap().read(0, &mut block).unwrap();
    block[0]
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["vm"].as_str().unwrap()).collect()
}

/// Another site that protects to B.
fn third_site(stage: &Stage) -> Site {
    let mut site = Site::make(Path::new(HOLDFAST), &stage.path("c"), "site-c").unwrap();
    site.trust(&stage.b).unwrap();
    stage.b.trust(&site).unwrap();
    site.start_agent().unwrap();
    site
}

#[test]
fn groups_of_one_name_are_never_failed_over_together() {
    let stage = Stage::set();
    let third = third_site(&stage);
    let (one, two) = (stage.disk("one.raw", 2 << 20), stage.disk("two.raw", 2 << 20));
    let disk = format!("vda={}", two.display());
    let peer = stage.b.peer();
    let protect = ["vm", "protect", "c", "--group", "shop", "--disk", &disk, "--peer", &peer];
    third.ask(&protect).unwrap();
    third.wait_for_state("c", "journaling", SOON).unwrap();
    let socket = stage.protect("a", "shop", &one);
    for byte in 1..=40 {
        write(&socket, byte);
    }
    stage.tag("shop", "a", "forty");
    stage.drained("a");

    // Which of the two is for the operator to say.
    refused(stage.b.ask(&["failover", "start", "--group", "shop"]), 4, "site-a/shop");
    refused(stage.b.ask(&["failover", "start", "--group", "shop"]), 4, "site-c/shop");
    let failover = stage.b.ask(&["failover", "start", "--group", "site-a/shop", "--at", "forty"]).unwrap();
    assert_eq!(names(&failover["vms"]), ["a"]);
    assert_eq!(first_byte(&failover["vms"][0]["socket"]), 40, "the newest write is there");
    stage.a.wait_for_state("a", "fenced", SOON).unwrap();
    assert_eq!(third.protected("c").unwrap()["state"], "journaling", "the other group is not touched");

    // Only one of them has failed over, so its name says enough; its id always does.
    assert_eq!(stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap()["phase"], "rolled-back");
    stage.a.wait_for_state("a", "journaling", SOON).unwrap();
    let groups = stage.b.ask(&["group", "list"]).unwrap();
    let of_c = groups.as_array().unwrap().iter().find(|group| group["site"] == "site-c").unwrap();
    let id = of_c["id"].as_str().unwrap();
    let failover = stage.b.ask(&["failover", "start", "--group", id]).unwrap();
    assert_eq!(names(&failover["vms"]), ["c"]);
    assert_eq!(stage.a.protected("a").unwrap()["state"], "journaling");
}

#[test]
fn a_vm_that_left_is_a_former_member_and_holds_nobody_back() {
    let mut stage = Stage::set();
    let (one, two) = (stage.disk("one.raw", 2 << 20), stage.disk("two.raw", 2 << 20));
    let socket = stage.protect("one", "g", &one);
    let other = stage.protect("two", "g", &two);
    write(&socket, 0x11);
    write(&other, 0x11);
    stage.tag("g", "two", "both");
    stage.drained("two");

    // Told later: the link is down, and the agent is killed meanwhile.
    stage.b.kill_agent().unwrap();
    stage.a.ask(&["vm", "unprotect", "two"]).unwrap();
    stage.a.kill_agent().unwrap();
    // One record that cannot be read costs neither the others nor a protection.
    let bad = stage.a.folder.join("state/departures/bad.json");
    std::fs::write(&bad, "{ no record").unwrap();
    stage.a.start_agent().unwrap();
    let alerts = stage.a.ask(&["alerts"]).unwrap();
    let told =
        |words: &str| alerts.as_array().unwrap().iter().any(|row| row["text"].to_string().contains(words));
    assert!(told("departures/bad.json") && told("remove that file"), "{alerts:#}");
    std::fs::remove_file(&bad).unwrap();
    stage.b.start_agent().unwrap();
    wait_until("B knows that two has left", SOON, || {
        Ok((stage.b.recovered("two")?["state"] == "left").then_some(()))
    })
    .unwrap();
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();
    let socket = stage.a.protected("one").unwrap()["socket"].as_str().unwrap().to_owned();
    for byte in [0x22, 0x33, 0x44] {
        write(&socket, byte);
    }
    stage.drained("one");

    let failover = stage.b.ask(&["failover", "start", "--group", "g"]).unwrap();
    assert_eq!(names(&failover["vms"]), ["one"]);
    assert_eq!(first_byte(&failover["vms"][0]["socket"]), 0x44);
    stage.b.ask(&["failover", "rollback", "--group", "g"]).unwrap();
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();

    // A checkpoint from before has the members of then; the former one can be opened by itself.
    let failover = stage.b.ask(&["failover", "start", "--group", "g", "--at", "both"]).unwrap();
    let mut members = names(&failover["vms"]);
    members.sort_unstable();
    assert_eq!(members, ["one", "two"]);
    stage.b.ask(&["failover", "rollback", "--group", "g"]).unwrap();
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();
    let image = stage.b.ask(&["image", "open", "--vm", "two", "--at", "latest"]).unwrap();
    assert_eq!(first_byte(&image["socket"]), 0x11);
    stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();

    // Its name is free for a VM protected anew, in the same group, which its history does not hold up.
    File::options().write(true).open(&two).unwrap().set_len(3 << 20).unwrap();
    let other = stage.protect("two", "g", &two);
    write(&other, 0x55);
    stage.tag("g", "two", "anew");
    stage.drained("one");
    let failover = stage.b.ask(&["failover", "start", "--group", "g"]).unwrap();
    assert_eq!(failover["vms"].as_array().unwrap().len(), 2);
    stage.b.ask(&["failover", "rollback", "--group", "g"]).unwrap();
    let left = stage.b.ask(&["status"]).unwrap();
    let left: Vec<_> =
        left["recovered"].as_array().unwrap().iter().filter(|vm| vm["state"] == "left").collect();
    assert_eq!(left.len(), 1);
    stage.b.ask(&["vm", "forget", left[0]["id"].as_str().unwrap()]).unwrap();
}

/// A disk that does not compress, so that a rate has a meaning.
fn noise(stage: &Stage, name: &str, size_bytes: u64) -> std::path::PathBuf {
    let path = stage.path(name);
    let file = File::create(&path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (0..size_bytes).step_by(4096) {
        let mut block = [0; 4096];
        for word in block.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_at(&block, at).unwrap();
    }
    path
}

#[test]
fn a_member_in_its_first_sync_is_told_apart_and_holds_nobody_back() {
    let stage = Stage::set();
    let one = stage.disk("one.raw", 2 << 20);
    let socket = stage.protect("one", "g", &one);
    write(&socket, 0x11);
    stage.tag("g", "one", "before");
    let big = noise(&stage, "new.raw", 24 << 20);
    stage.try_protect("new", "g", &big, &["--rate", "100000"]).unwrap();
    let row = wait_until("all of new is in its buffer", SOON, || {
        let row = stage.a.protected("new")?;
        assert_ne!(row["state"], "journaling", "{row:#}");
        Ok((row["dirty_bytes"] == 0 && row["buffer_bytes"].as_u64() > Some(1 << 20)).then_some(row))
    })
    .unwrap();
    assert_eq!(row["state"], "initial-sync");
    assert!(row["to_sync_bytes"].as_u64() > Some(1 << 20), "{row:#}");
    assert!(row["sync_progress"].as_f64() < Some(1.0), "{row:#}");
    assert_eq!(row["rpo_now_seconds"], Value::Null, "nothing of it was ever complete");
    assert_eq!(row["rpo_exceeded"], true, "no fresh copy is proven");
    assert_eq!(stage.b.recovered("new").unwrap()["state"], "initial-sync");

    // The others go on.
    write(&socket, 0x22);
    stage.tag("g", "one", "during");
    let failover = stage.b.ask(&["failover", "start", "--group", "g", "--at", "before"]).unwrap();
    assert_eq!(names(&failover["vms"]), ["one"]);
    assert_eq!(first_byte(&failover["vms"][0]["socket"]), 0x11);
    stage.b.ask(&["failover", "rollback", "--group", "g"]).unwrap();
    refused(stage.b.ask(&["failover", "start", "--group", "g"]), 5, "--without new");
    assert_eq!(stage.b.recovered("one").unwrap()["state"], "following", "nothing was begun");
    let failover = stage.b.ask(&["failover", "start", "--group", "g", "--without", "new"]).unwrap();
    assert_eq!(names(&failover["vms"]), ["one"]);
    assert_eq!(names(&failover["left_out"]), ["new"]);
    assert_eq!(first_byte(&failover["vms"][0]["socket"]), 0x22);
}

#[test]
fn a_vm_that_was_refused_leaves_nothing_behind_and_holds_nobody_back() {
    let mut stage = Stage::set();
    let (one, two) = (stage.disk("one.raw", 2 << 20), stage.disk("two.raw", 2 << 20));
    let socket = stage.protect("one", "g", &one);
    write(&socket, 0x11);
    stage.drained("one");

    // No machine has so much room: from now on B takes nothing.
    stage.b.kill_agent().unwrap();
    stage.b.configure(&format!("[journal]\nfree_bytes_min = {}\n", 1u64 << 50)).unwrap();
    stage.b.start_agent().unwrap();
    // Seeds are not used up by it either.
    std::fs::copy(&two, stage.path("seed.raw")).unwrap();
    let seed = format!("vda={}", stage.path("seed.raw").display());
    stage.b.ask(&["journal", "seed", "two", "--disk", &seed]).unwrap();
    stage.try_protect("two", "g", &two, &[]).unwrap();
    wait_until("the refusal", SOON, || {
        let why = stage.a.protected("two")?["last_error"].as_str().unwrap_or_default().to_owned();
        Ok(why.contains("are needed").then_some(()))
    })
    .unwrap();
    assert!(stage.b.recovered("two").is_err(), "nothing is kept of a VM that was refused");
    let folders = std::fs::read_dir(stage.b.folder.join("state/journals")).unwrap();
    let kept: Vec<_> = folders.map(|row| row.unwrap().file_name()).filter(|name| name != "seeds").collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(stage.b.folder.join("state/journals/seeds/two/vda.raw").exists());

    // A VM that was protected to a side that is gone for good.
    stage.try_protect("three", "g", &stage.disk("three.raw", 1 << 20), &[]).unwrap();
    wait_until("another refusal", SOON, || {
        Ok(stage.a.protected("three")?["last_error"].is_string().then_some(()))
    })
    .unwrap();

    // B may have heard of them: it is told, and until it knows that is an alert.
    stage.b.kill_agent().unwrap();
    stage.a.ask(&["vm", "unprotect", "three"]).unwrap();
    let alerts = stage.a.ask(&["alerts"]).unwrap();
    let alert = alerts.as_array().unwrap().iter().find(|row| row["kind"] == "departure").unwrap().clone();
    let id = alert["subject"].as_str().unwrap();
    assert!(alert["text"].as_str().unwrap().contains(&format!("`holdfast vm forget {id}`")), "{alert:#}");
    refused(stage.a.ask(&["vm", "forget", "four"]), 3, "no journal of a VM");
    let forgotten = stage.a.ask(&["vm", "forget", "three"]).unwrap();
    assert!(forgotten["what"].as_str().unwrap().contains("is not told any more"), "{forgotten:#}");
    stage.a.ask(&["vm", "unprotect", "two"]).unwrap();
    let departures = std::fs::read_dir(stage.a.folder.join("state/departures")).unwrap();
    assert_eq!(departures.count(), 1, "of the other one nothing is told");
    let told = |stage: &Stage| {
        let alerts = stage.a.ask(&["alerts"])?;
        anyhow::Ok(alerts.as_array().unwrap().iter().any(|alert| alert["kind"] == "departure"))
    };
    assert!(told(&stage).unwrap());
    stage.b.configure("").unwrap();
    stage.b.start_agent().unwrap();
    wait_until("B knows it", SOON, || Ok((!told(&stage)?).then_some(()))).unwrap();
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();
    write(&socket, 0x22);
    stage.drained("one");
    let failover = stage.b.ask(&["failover", "start", "--group", "g"]).unwrap();
    assert_eq!(names(&failover["vms"]), ["one"]);
    assert_eq!(first_byte(&failover["vms"][0]["socket"]), 0x22);
}
