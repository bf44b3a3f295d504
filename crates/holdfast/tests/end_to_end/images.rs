//! Images hold what they were opened at, whatever either side goes through.

use crate::stage::{SOON, Stage};
use lab::wait_until;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn write_over(socket: &str, from: &Path) {
    let uri = format!("nbd+unix:///vda?socket={socket}");
    assert!(Command::new("nbdcopy").arg("--flush").arg(from).arg(&uri).status().unwrap().success());
}

fn protect(stage: &Stage, vm: &str, disk: &Path) -> String {
    let (disk, peer) = (format!("vda={}", disk.display()), stage.b.peer());
    let arguments = ["vm", "protect", vm, "--group", "shop", "--disk", &disk, "--peer", &peer];
    // So long between checkpoints that the quiet one writes nothing at all.
    let answer = stage.a.ask(&[&arguments[..], &["--checkpoint-interval", "60"]].concat()).unwrap();
    stage.a.wait_for_state(vm, "journaling", SOON).unwrap();
    answer["socket"].as_str().unwrap().to_owned()
}

fn number(seq: &Value) -> u64 {
    seq.as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}

#[test]
fn images_at_the_tail_of_a_group_outlive_a_crash_of_the_source_and_a_restart_here() {
    let mut stage = Stage::set();
    let (quiet, busy) = (stage.disk("quiet.raw", 4 << 20), stage.disk("busy.raw", 4 << 20));
    protect(&stage, "quiet", &quiet);
    let socket = protect(&stage, "busy", &busy);
    stage.drained("quiet");
    let noise = stage.path("noise.raw");
    std::fs::write(&noise, vec![9; 4 << 20]).unwrap();
    write_over(&socket, &noise);
    stage.drained("busy");
    // What the other one wrote has raised the tail above the last word of the quiet one's own.
    wait_until("the tail", SOON, || {
        let row = stage.b.recovered("quiet")?;
        Ok((!row["tail"].is_null() && number(&row["tail"]) > number(&row["durable_seq"])).then_some(()))
    })
    .unwrap();
    stage.a.kill_agent().unwrap();
    let open = |vm: &str| {
        let image = stage.b.ask(&["image", "open", "--vm", vm, "--at", "latest", "--writable"]).unwrap();
        write_over(image["socket"].as_str().unwrap(), &noise);
        image
    };
    let images = [open("quiet"), open("busy")];
    stage.a.start_agent().unwrap();
    for vm in ["quiet", "busy"] {
        stage.a.wait_for_state(vm, "journaling", SOON).unwrap();
        stage.drained(vm);
    }
    stage.b.stop_agent().unwrap();
    stage.b.start_agent().unwrap();
    for image in images {
        let copy = stage.path("copy.raw");
        lab::copy_image(image["socket"].as_str().unwrap(), "vda", &copy).unwrap();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&noise).unwrap(), "what was written is there");
        stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    }
    let journal = stage.b.ask(&["journal", "show", "quiet"]).unwrap();
    assert_eq!(journal["pins"].as_array().unwrap().len(), 0, "{journal}");
}
