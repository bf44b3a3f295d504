//! Synchronous mode: what was acknowledged to the guest is at the other side, whenever the site is lost.

use crate::stage::{SOON, Stage, same_bytes};
use lab::{NbdClient, wait_until};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the site is lost; `HOLDFAST_KILLS` sets another number.
fn kills() -> u64 {
    std::env::var("HOLDFAST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

fn protect(stage: &Stage, more: &[&str]) -> String {
    let disk = stage.disk("disk.raw", 4 << 20);
    let answer = stage.try_protect("web", "web", &disk, &[&["--mode", "sync"], more].concat()).unwrap();
    in_sync(stage);
    answer["socket"].as_str().unwrap().to_owned()
}

fn in_sync(stage: &Stage) {
    mode(stage, "sync");
}

fn mode(stage: &Stage, wanted: &str) {
    wait_until(wanted, SOON, || Ok((stage.a.protected("web")?["mode"] == wanted).then_some(()))).unwrap();
}

fn sector(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

#[test]
fn every_write_acknowledged_before_the_site_is_lost_is_in_the_image() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &[]);
    let mut number = 0;
    for round in 0..kills() {
        let mut guest = NbdClient::connect(&socket, "vda").unwrap();
        // One at least, however busy the machine is.
        number += 1;
        guest.write(4096, &sector(number)).unwrap();
        let writing = std::thread::spawn(move || {
            let mut acknowledged = number;
            // Until the agent is gone.
            while guest.write(4096, &sector(acknowledged + 1)).is_ok() {
                acknowledged += 1;
            }
            acknowledged
        });
        std::thread::sleep(Duration::from_millis(20 + 7 * (round % 9)));
        stage.a.kill_agent().unwrap();
        let acknowledged = writing.join().unwrap();
        let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest"]).unwrap();
        let mut found = vec![0; 512];
        let mut reader = NbdClient::connect(image["socket"].as_str().unwrap(), "vda").unwrap();
        reader.read(4096, &mut found).unwrap();
        let kept = u64::from_le_bytes(found[..8].try_into().unwrap());
        // The one that was under way may be there or not.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&kept),
            "{kept} is there, {acknowledged} was acknowledged"
        );
        drop(reader);
        stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
        number = kept;
        stage.a.start_agent().unwrap();
        in_sync(&stage);
    }
    println!("{number} writes, {} kills", kills());
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &stage.path("disk.raw")));
}

/// The group is opened as of one moment, which the VM that does nothing must have come to as well.
#[test]
fn what_was_acknowledged_is_there_however_quiet_the_other_vms_of_the_group_are() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &[]);
    let quiet = stage.disk("quiet.raw", 1 << 20);
    stage.try_protect("quiet", "web", &quiet, &["--mode", "sync"]).unwrap();
    stage.a.wait_for_state("quiet", "journaling", SOON).unwrap();
    in_sync(&stage);
    for round in 1..=kills().min(4) {
        in_sync(&stage);
        let mut guest = NbdClient::connect(&socket, "vda").unwrap();
        for write in 0..8 {
            guest.write(4096, &sector(round * 100 + write)).unwrap();
        }
        stage.a.kill_agent().unwrap();
        let failover = stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
        let vms = failover["vms"].as_array().unwrap();
        assert_eq!(vms.len(), 2);
        let web = vms.iter().find(|vm| vm["vm"] == "web").unwrap();
        let mut reader = NbdClient::connect(web["socket"].as_str().unwrap(), "vda").unwrap();
        let mut found = vec![0; 512];
        reader.read(4096, &mut found).unwrap();
        assert_eq!(found, sector(round * 100 + 7), "round {round}");
        drop(reader);
        stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
        stage.a.start_agent().unwrap();
    }
}

#[test]
fn a_vm_of_the_group_that_misses_writes_degrades_the_others_and_they_return() {
    let stage = Stage::set();
    let socket = protect(&stage, &["--on-timeout", "hold"]);
    let quiet = stage.disk("quiet.raw", 1 << 20);
    stage.protect("quiet", "web", &quiet);
    in_sync(&stage);
    stage.a.ask(&["vm", "pause", "quiet"]).unwrap();
    mode(&stage, "sync-degraded");
    // A guest does not stand still for another's pause.
    NbdClient::connect(&socket, "vda").unwrap().write(0, &sector(1)).unwrap();
    stage.a.ask(&["vm", "resume", "quiet"]).unwrap();
    in_sync(&stage);

    // One that has left is waited for by nobody.
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &sector(2)).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        let mut number = 3;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            guest.write(0, &sector(number)).unwrap();
            number += 1;
        }
        guest.write(0, &sector(number)).unwrap();
    });
    stage.a.ask(&["vm", "unprotect", "quiet"]).unwrap();
    in_sync(&stage);
    drop(stop);
    writing.join().unwrap();
    in_sync(&stage);
}

#[test]
fn a_lost_link_degrades_with_an_alert_and_returns_by_itself() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &["--sync-timeout", "1"]);
    stage.tag("web", "web", "well");
    stage.b.kill_agent().unwrap();
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &sector(1)).unwrap();
    mode(&stage, "sync-degraded");
    guest.write(0, &sector(2)).unwrap();
    wait_until("an alert", SOON, || {
        let alerts = stage.a.ask(&["status"])?["alerts"].to_string();
        Ok(alerts.contains("synchronous mode is degraded").then_some(()))
    })
    .unwrap();
    stage.b.start_agent().unwrap();
    in_sync(&stage);
}

#[test]
fn a_write_is_held_for_as_long_as_it_takes_where_that_was_chosen() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &["--sync-timeout", "1", "--on-timeout", "hold"]);
    stage.b.kill_agent().unwrap();
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    let writing = std::thread::spawn(move || guest.write(0, &sector(1)));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!writing.is_finished(), "it was let go after its time limit");
    stage.b.start_agent().unwrap();
    writing.join().unwrap().unwrap();
    in_sync(&stage);
}

type Writing = JoinHandle<anyhow::Result<()>>;

/// The other side is away, and a write of a client waits for it.
fn held_write(stage: &mut Stage, socket: &str) -> Writing {
    stage.b.kill_agent().unwrap();
    let before = stage.a.protected("web").unwrap()["writes"].as_u64().unwrap();
    let mut guest = NbdClient::connect(socket, "vda").unwrap();
    let writing = std::thread::spawn(move || guest.write(0, &sector(2)));
    wait_until("a write of which the guest is not told", SOON, || {
        Ok((stage.a.protected("web")?["writes"].as_u64() > Some(before)).then_some(()))
    })
    .unwrap();
    assert!(!writing.is_finished(), "it is held");
    writing
}

#[test]
fn a_clean_stop_answers_no_write_that_the_other_side_does_not_have() {
    for on_timeout in ["hold", "degrade"] {
        let mut stage = Stage::set();
        let socket = protect(&stage, &["--sync-timeout", "300", "--on-timeout", on_timeout]);
        let writing = held_write(&mut stage, &socket);
        // It ends by itself; that is an error where it does not.
        stage.a.stop_agent().unwrap();
        let said = format!("{:#}", writing.join().unwrap().expect_err("the guest was told of it"));
        assert!(said.contains("read the reply"), "it is hung up on, and has no answer: {said}");
        // Nothing has to be compared, and the client asks again, as QEMU does.
        stage.b.start_agent().unwrap();
        stage.a.start_agent().unwrap();
        NbdClient::connect(&socket, "vda").unwrap().write(0, &sector(2)).unwrap();
        in_sync(&stage);
        stage.drained("web");
        assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &stage.path("disk.raw")));
        let known = ["link lost", "peer not reached", "RPO exceeded"];
        assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_client_that_leaves_a_held_write_behind_keeps_nobody_from_ending_the_protection() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &["--sync-timeout", "300", "--on-timeout", "hold"]);
    stage.b.kill_agent().unwrap();
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.set_patience(Some(Duration::from_millis(500))).unwrap();
    guest.write(0, &sector(2)).expect_err("it is held");
    drop(guest);
    wait_until("the client's end", SOON, || Ok((stage.a.protected("web")?["clients"] == 0).then_some(())))
        .unwrap();
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    stage.a.stop_agent().unwrap();
}

#[test]
fn a_pause_lets_go_of_writes_that_are_held() {
    let mut stage = Stage::set();
    let socket = protect(&stage, &["--sync-timeout", "300", "--on-timeout", "hold"]);
    let writing = held_write(&mut stage, &socket);
    stage.a.ask(&["vm", "pause", "web"]).unwrap();
    writing.join().unwrap().unwrap();
    stage.b.start_agent().unwrap();
    stage.a.ask(&["vm", "resume", "web"]).unwrap();
    in_sync(&stage);
}
