//! What long commands tell on standard error while they are waited for, and that standard output is the answer's alone.

use crate::stage::{HOLDFAST, SOON, Stage};
use lab::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::process::Command;

#[test]
fn a_log_is_told_in_lines_a_terminal_in_one_and_the_answer_stays_json() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let output = stage.a.command().args(["vm", "verify", "web", "--json"]).output().unwrap();
    let (answer, told) = (serde_json::from_slice::<Value>(&output.stdout), String::from_utf8(output.stderr));
    let (answer, told) = (answer.unwrap(), told.unwrap());
    assert_eq!((answer["state"].as_str(), answer["differing_bytes"].as_u64()), (Some("done"), Some(0)));
    assert!(told.contains("web: 100 % compared") && !told.contains('\r'), "{told:?}");

    // The same on a terminal of its own.
    let out = stage.path("out.json");
    let line = format!("'{HOLDFAST}' vm verify web --json 2>/dev/tty >'{}'", out.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = script.env("HOLDFAST_SOCKET", stage.a.api_socket()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told:?}");
    assert!(told.contains("\r\x1b[2K[####") && told.contains("100 % compared"), "{told:?}");
    let answer: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(answer["state"], "done");
}

#[test]
fn who_waits_for_an_answer_is_told_so() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let agent = Pid::from_raw(stage.b.agent_pid().unwrap().cast_signed()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    let (out, err) = (stage.path("out"), stage.path("err"));
    let mut command = stage.b.command();
    command.args(["image", "open", "--vm", "web", "--at", "latest", "--json"]);
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut opening = command.spawn().unwrap();
    let told = wait_until("a line", SOON, || {
        let text = std::fs::read_to_string(&err)?;
        Ok(text.contains("opening an image of web as of latest: 2 s, waiting").then_some(text))
    });
    kill_process(agent, Signal::CONT).unwrap();
    assert!(opening.wait().unwrap().success());
    assert_eq!(told.unwrap().lines().count(), 1);
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&out).unwrap()).unwrap()["vm"], "web");
}
