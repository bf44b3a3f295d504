//! What goes on is changed and not made anew: settings of protections and groups, where the recovery side is, and which
//! agents speak for a VM.

use crate::stage::{SOON, Stage, same_bytes};
use lab::{Site, make_disk, wait_until};
use serde_json::Value;

fn changed(site: &Site, arguments: &[&str]) -> Value {
    site.ask(arguments).unwrap()
}

fn wait_for(site: &Site, what: &str, is_so: impl Fn(&Value) -> bool) {
    wait_until(what, SOON, || Ok(is_so(&site.protected("web")?).then_some(()))).unwrap();
}

/// From now on the agent of a site has another name.
fn installed_anew_as(site: &mut Site, agent: &str) {
    site.stop_agent().unwrap();
    let issue = ["pki", "issue", "--agent", agent, "--host", "127.0.0.1", "--dir"];
    let issued = site.command().args(issue).arg(site.pki()).output().unwrap();
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    site.start_agent().unwrap();
}

#[test]
fn a_protection_is_changed_under_a_guest_that_writes_and_nothing_is_sent_again() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 64 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut guest = stage.guest_under_load(&socket);
    let copied = stage.a.protected("web").unwrap()["copied_bytes"].clone();
    let asked =
        ["vm", "set", "web", "--mode", "sync", "--history", "2d", "--rpo", "30s", "--buffer", "16MiB"];
    let told = changed(&stage.a, &[&asked[..], &["--dry-run"]].concat());
    assert_eq!(
        (told["is_done"].clone(), told["vms"][0]["settings"].as_array().unwrap().len()),
        (false.into(), 4)
    );
    assert_eq!(stage.a.protected("web").unwrap()["rpo_seconds"], 60, "it was only asked");
    assert_eq!(changed(&stage.a, &asked)["is_done"], true);
    wait_for(&stage.a, "synchronous mode", |row| row["mode"] == "sync" && row["rpo_seconds"] == 30);
    wait_until("the history at the recovery side", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        Ok((journal["history_seconds_max"] == 2 * 24 * 3600).then_some(()))
    })
    .unwrap();
    // A spill that goes and comes back, and a mode that does not wait any more.
    changed(&stage.a, &["vm", "set", "web", "--spill", "0", "--mode", "async", "--coalesce"]);
    wait_for(&stage.a, "no spill", |row| row["spill_bytes_max"] == 0 && row["mode"] == "async");
    changed(
        &stage.a,
        &["group", "set", "--group", "web", "--spill", "1G", "--coalesce=false", "--rate", "200M"],
    );
    wait_for(&stage.a, "a spill", |row| row["spill_bytes_max"] == 1_000_000_000u64);
    // By another name of the same host.
    let peer = stage.b.peer();
    let port = peer.rsplit_once(':').unwrap().1.to_owned();
    let row = stage.a.protected("web").unwrap();
    changed(&stage.a, &["vm", "set", "web", "--peer", &format!("127.0.0.1:{port}"), "--priority", "7"]);
    wait_for(&stage.a, "the stream", |row| row["link"] == "up" && row["priority"] == 7);
    assert_eq!(stage.a.protected("web").unwrap()["copied_bytes"], copied, "something was sent again: {row}");
    stage.tag("web", "web", "at the end");
    guest.kill().unwrap();
    stage.left_and_drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    stage.checkpoints_have_whole_file_systems("web");
}

#[test]
fn another_agent_of_a_site_is_spoken_to_and_listened_to_only_once_an_operator_says_so() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 4 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let row = stage.a.protected("web").unwrap();
    let (copied, known) = (row["copied_bytes"].clone(), row["peer_agent"].as_str().unwrap().to_owned());
    let site = known.split_once('.').unwrap().1.to_owned();
    installed_anew_as(&mut stage.b, "b-9");
    wait_for(&stage.a, "that it is another", |row| {
        row["last_error"].as_str().is_some_and(|why| why.contains("b-9") && why.contains("--peer-agent"))
    });
    changed(&stage.a, &["vm", "set", "web", "--peer-agent", &format!("b-9.{site}")]);
    stage.drained("web");
    assert_eq!(stage.a.protected("web").unwrap()["copied_bytes"], copied, "its journal is there");
    // And at the other side.
    installed_anew_as(&mut stage.a, "a-9");
    wait_for(&stage.a, "that it is refused", |row| {
        row["last_error"].as_str().is_some_and(|why| why.contains("hand-over"))
    });
    assert!(stage.b.ask(&["vm", "hand-over", "web", "--to", "a-9.elsewhere"]).is_err(), "it has its site");
    stage.b.ask(&["vm", "hand-over", "web", "--to", "a-9"]).unwrap();
    stage.drained("web");
    assert_eq!(stage.a.protected("web").unwrap()["copied_bytes"], 0, "nothing of it was sent again");
}
