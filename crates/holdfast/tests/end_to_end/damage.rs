//! What rots at the recovery side while everything runs: what the source is asked for, and what it costs.

use crate::stage::{SOON, Stage, same_bytes};
use lab::{check_file_system, make_disk, wait_until};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

const BLOCK: u64 = 64 << 10;
/// Behind the guest's file system, where it never writes.
const AT: u64 = 65 << 20;
/// An agent begins to scrub a minute after its start.
const SCRUBBED: Duration = Duration::from_secs(180);

#[test]
fn a_rotten_block_is_found_sent_again_by_itself_and_nothing_is_compared() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 64 << 20).unwrap();
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(66 << 20).unwrap();
    file.write_all_at(&[0x5a; 256 << 10], AT).unwrap();
    let socket = stage.protect("web", "web", &disk);
    stage.b.ask(&["journal", "set", "web", "--mode", "rollback"]).unwrap();
    let applied = wait_until("the replica", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        Ok((journal["applied_seq"] == journal["durable_seq"]).then_some(journal))
    });
    let journal = applied.unwrap();
    let number = |vm: &serde_json::Value, name: &str| vm[name].as_u64().unwrap();
    let before = stage.a.protected("web").unwrap();
    assert_eq!(number(&before, "asked_again_bytes"), 0);

    let replica = PathBuf::from(journal["replica_folder"].as_str().unwrap()).join("vda.raw");
    let replica = File::options().read(true).write(true).open(replica).unwrap();
    replica.write_all_at(&[0xee], AT + BLOCK + 5).unwrap();
    replica.sync_all().unwrap();
    let journal = stage.b.ask(&["journal", "show", "web"]).unwrap();
    assert!(journal["scrubbed_at"].is_null(), "the scrub came before the rot: this machine is too slow");

    // Nothing else is written meanwhile: the scrub reads the logs first, at its own pace.
    wait_until("the block is asked for", SCRUBBED, || {
        Ok((number(&stage.a.protected("web")?, "asked_again_bytes") > 0).then_some(()))
    })
    .unwrap();
    let whole = wait_until("the newest state is whole", SOON, || {
        let journal = stage.b.ask(&["journal", "show", "web"])?;
        let vm = stage.a.protected("web")?;
        Ok((journal["damaged_bytes"] == 0 && vm["state"] == "journaling").then_some(vm))
    });
    let after = whole.unwrap();
    assert_eq!(number(&after, "asked_again_bytes"), BLOCK);
    assert_eq!(number(&after, "copied_bytes") - number(&before, "copied_bytes"), BLOCK, "{after}");
    assert_eq!(after["compared_bytes"], before["compared_bytes"], "{after}");
    assert_eq!(after["link"], "up");
    let mut guest = stage.guest_under_load(&socket);
    guest.console.wait_for("LOAD 3", SOON).unwrap();

    stage.tag("web", "web", "after");
    let page = stage.b.ask(&["checkpoint", "list", "--vm", "web"]).unwrap();
    let rows = page["checkpoints"].as_array().unwrap().clone();
    assert_eq!(rows[0]["damaged_bytes"], 4096, "older ones stay, and say so");
    assert_eq!(rows.last().unwrap()["damaged_bytes"], 0);
    guest.kill().unwrap();
    stage.left_and_drained("web");
    stage.tag("web", "web", "last");
    let image = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&image, &disk), "the newest state is the disk");
    assert!(check_file_system(&image).unwrap());
    wait_until("no alert", SOON, || {
        let alerts = stage.b.ask(&["alerts"])?;
        Ok((!alerts.to_string().contains("journal is damaged")).then_some(()))
    })
    .unwrap();
    let known = ["link lost", "peer not reached", "damage"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
    assert_eq!(stage.b.unannounced(&known).unwrap(), Vec::<String>::new());
    stage.b.stop_agent().unwrap();
}
