//! What somebody meets who sees Holdfast for the first time, and does not do as the guide says: it works, or a sentence says
//! what to do, and what is shown is so.

use crate::stage::{HOLDFAST, Stage};
use std::path::Path;
use std::process::{Command, Output};

fn holdfast(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(HOLDFAST).args(arguments).current_dir(folder).env_remove("HOLDFAST_SOCKET").output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn certificates_of_operators_need_no_agent_and_lie_in_the_folder_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let issue = |name: &str| holdfast(folder.path(), &["pki", "issue", "--dir", "pki", "--operator", name]);
    let early = issue("alice");
    assert!(!early.status.success() && said(&early).contains("pki init"), "{}", said(&early));

    assert!(holdfast(folder.path(), &["pki", "init", "--dir", "pki", "--site", "berlin"]).status.success());
    let issued = issue("alice");
    assert!(issued.status.success(), "{}", said(&issued));
    assert!(said(&issued).starts_with("wrote pki/alice.pem\nSHA-256 fingerprint "), "{}", said(&issued));
    assert!(folder.path().join("pki/alice.key").exists());

    for name in ["dir/alice", "../alice", "/tmp/alice", ".", ""] {
        let output = issue(name);
        assert!(
            !output.status.success() && said(&output).contains(&format!("name {name:?}")),
            "{}",
            said(&output)
        );
    }
    // An agent's name is missed where it is an agent's certificate.
    let nobody = holdfast(folder.path(), &["pki", "issue", "--dir", "pki"]);
    assert!(nobody.status.code() == Some(2) && said(&nobody).contains("--agent"), "{}", said(&nobody));
}

#[test]
fn a_socket_that_is_said_to_be_nothing_is_the_usual_one_and_an_error_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let with = |socket: Option<&str>| {
        let mut command = Command::new(HOLDFAST);
        command.arg("status").env_remove("HOLDFAST_SOCKET");
        command.envs(socket.map(|socket| ("HOLDFAST_SOCKET", socket)));
        command.output().unwrap()
    };
    assert_eq!(said(&with(Some(""))), said(&with(None)), "an empty variable is none");
    let nobody = with(Some(folder.path().join("agent.sock").to_str().unwrap()));
    assert_eq!(nobody.status.code(), Some(6));
    assert_eq!(said(&nobody).matches("os error").count(), 1, "{}", said(&nobody));
    // Whoever only checks a configuration needs no socket at all.
    let mut check = Command::new(HOLDFAST);
    check.args(["agent", "--check", "--config", "nowhere.toml"]).env("HOLDFAST_SOCKET", "");
    let output = check.current_dir(folder.path()).output().unwrap();
    assert!(output.status.code() == Some(1) && said(&output).contains("nowhere.toml"), "{}", said(&output));
}

#[test]
fn an_agent_of_a_relative_configuration_tells_sockets_that_are_found_from_anywhere() {
    let mut stage = Stage::set();
    stage.a.stop_agent().unwrap();
    stage.a.start_agent_in_folder().unwrap();
    let disk = stage.disk("disk.raw", 1 << 20);
    let socket = stage.protect("web", "web", &disk);
    assert!(Path::new(&socket).is_absolute() && Path::new(&socket).exists(), "{socket}");
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    let ready = log.lines().rfind(|line| line.contains(": ready ")).unwrap();
    assert!(ready.contains(&stage.a.api_socket().display().to_string()), "{ready}");
}

#[test]
fn what_was_not_repaired_is_not_said_to_be_and_nothing_written_has_no_entropy() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "quiet");
    let verify = stage.a.ask(&["vm", "verify", "web"]).unwrap();
    assert_eq!((&verify["state"], &verify["differing_bytes"]), (&"done".into(), &0.into()), "{verify:#}");
    assert_eq!(verify["repaired"], false, "nothing was to be repaired: {verify:#}");

    let page = stage.b.ask(&["checkpoint", "list", "--vm", "web"]).unwrap();
    let quiet: Vec<_> =
        page["checkpoints"].as_array().unwrap().iter().filter(|row| row["writes"] == 0).collect();
    assert!(!quiet.is_empty(), "{page:#}");
    for row in quiet {
        assert!(row["entropy_bits"].is_null(), "nothing was written: {row:#}");
    }
    let text = stage.b.command().args(["checkpoint", "list", "--vm", "web"]).output().unwrap();
    assert!(text.status.success());
}
