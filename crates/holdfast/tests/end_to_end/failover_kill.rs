//! `kill -9` of the recovery side's agent in the middle of a failover, at moments that its files and processes show.

use crate::stage::{SOON, Stage};
use lab::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const VMS: [&str; 2] = ["db", "web"];

/// Processes of a VM of that name that this agent's failovers run.
fn processes(stage: &Stage, vm: &str) -> Vec<u64> {
    let folder = stage.b.folder.join("run/guests").join(vm).canonicalize();
    let rows = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = rows.filter_map(|row| row.file_name().to_str()?.parse::<u64>().ok());
    let is_it = |pid: &u64| {
        let stands_in = std::fs::read_link(format!("/proc/{pid}/cwd"));
        folder.as_ref().is_ok_and(|folder| stands_in.is_ok_and(|at| at == *folder))
    };
    pids.filter(is_it).collect()
}

/// Whether a state file in this folder has these words.
fn is_written(stage: &Stage, folder: &str, words: &str) -> bool {
    let rows = std::fs::read_dir(stage.b.folder.join("state").join(folder)).into_iter().flatten().flatten();
    let has = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(words));
    rows.map(|row| row.path()).any(|path| path.extension().is_some_and(|end| end == "json") && has(&path))
}

/// A moment of a failover, and whether it has come.
type Moment = (&'static str, fn(&Stage) -> bool);

/// In their order.
const MOMENTS: [Moment; 6] = [
    ("it is written down", |stage| is_written(stage, "operations", "\"forward\"")),
    ("the group is fenced", |stage| is_written(stage, "failovers", "\"starting\"")),
    ("the cut is chosen", |stage| {
        is_written(stage, "failovers", "\"starting\"") && is_written(stage, "failovers", "\"image\"")
    }),
    ("an image is recorded", |stage| is_written(stage, "images", "\"failover\"")),
    ("a VM's process is there", |stage| VMS.iter().any(|vm| !processes(stage, vm).is_empty())),
    ("both VMs' processes are there", |stage| VMS.iter().all(|vm| !processes(stage, vm).is_empty())),
];

fn failover(stage: &Stage) -> Value {
    stage.b.ask(&["failover", "list"]).unwrap()[0]["failover"].clone()
}

/// The failover runs, each of its VMs once, on the images that are open.
fn check_runs(stage: &Stage, what: &str) {
    let running = wait_until("the failover", SOON, || {
        Ok((failover(stage)["phase"] == "running").then(|| failover(stage)))
    });
    let running = running.unwrap_or_else(|error| panic!("{what}: {error:#}: {}", failover(stage)));
    let vms = running["vms"].as_array().unwrap();
    assert_eq!(vms.len(), VMS.len(), "{what}: {running}");
    for vm in vms {
        let name = vm["vm"].as_str().unwrap();
        assert_eq!(vm["run_state"], "running", "{what}: {running}");
        assert_eq!(processes(stage, name), [vm["pid"].as_u64().unwrap()], "{what}: {name} runs once");
    }
    let ids = |rows: &Value, field: &str| {
        let rows = rows.as_array().unwrap().iter();
        let mut ids: Vec<_> = rows.map(|row| row[field].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let images = stage.b.ask(&["image", "list"]).unwrap();
    assert_eq!(ids(&images, "id"), ids(&running["vms"], "image"), "{what}");
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_failover_goes_on_and_each_vm_runs_once() {
    let mut stage = Stage::set();
    let definition = stage.path("vm.toml");
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 32\naccelerator = \"tcg\"\n").unwrap();
    let definition = definition.display().to_string();
    for vm in VMS {
        let disk = stage.disk(&format!("{vm}.raw"), 1 << 20);
        stage.try_protect(vm, "shop", &disk, &["--definition", &definition]).unwrap();
    }
    for (round, (moment, has_come)) in MOMENTS.into_iter().enumerate() {
        for vm in VMS {
            stage.a.wait_for_state(vm, "journaling", SOON).unwrap();
            stage.drained(vm);
            stage.tag("shop", vm, moment);
        }
        let mut asking = stage.b.command();
        asking.args(["failover", "start", "--group", "shop", "--at", moment]).stdout(Stdio::null());
        let mut asking = asking.spawn().unwrap();
        while !has_come(&stage) {
            assert!(asking.try_wait().unwrap().is_none(), "{moment}: it has ended before");
            std::thread::sleep(Duration::from_millis(1));
        }
        stage.b.kill_agent().unwrap();
        asking.wait().unwrap();
        // Once more, on the way.
        stage.b.spawn_agent().unwrap();
        std::thread::sleep(Duration::from_millis(150 * (round as u64 + 1)));
        stage.b.kill_agent().unwrap();
        stage.b.start_agent().unwrap();
        check_runs(&stage, moment);
        if round + 1 < MOMENTS.len() {
            stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();
            assert!(VMS.iter().all(|vm| processes(&stage, vm).is_empty()), "{moment}: none runs on");
            assert!(stage.b.ask(&["image", "list"]).unwrap().as_array().unwrap().is_empty(), "{moment}");
        }
    }
    assert_eq!(stage.b.ask(&["failover", "commit", "--group", "shop"]).unwrap()["phase"], "committed");
    for vm in VMS {
        let [pid] = processes(&stage, vm)[..] else { panic!("{vm} runs once") };
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    }
}
