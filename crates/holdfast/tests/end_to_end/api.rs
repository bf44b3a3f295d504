//! The API: its document, its sockets, and the commands around it.

use crate::stage::{HOLDFAST, Stage, failed, refused};
use lab::free_port;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn document() -> Value {
    let output = Command::new(HOLDFAST).arg("openapi").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_document_that_is_checked_in_is_the_one_the_agent_serves() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let checked_in: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(checked_in == document(), "docs/openapi.json is out of date: run `cargo xtask openapi`");
}

#[test]
fn the_document_is_valid_openapi() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            ids.push(
                operation["operationId"].as_str().unwrap_or_else(|| panic!("{place} has no id")).to_owned(),
            );
            assert!(!operation["responses"].as_object().unwrap().is_empty(), "{place} answers nothing");
            let named: Vec<&str> =
                path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            for name in named {
                let told = parameters
                    .iter()
                    .any(|p| p["name"] == name && p["in"] == "path" && p["required"] == true);
                assert!(told, "{place} does not describe {name}");
            }
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
    every_reference_leads_somewhere(&document, &document);
}

fn every_reference_leads_somewhere(value: &Value, document: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let target = document.pointer(reference.trim_start_matches('#'));
                assert!(target.is_some(), "{reference} leads nowhere");
            }
            fields.values().for_each(|value| every_reference_leads_somewhere(value, document));
        }
        Value::Array(values) => {
            values.iter().for_each(|value| every_reference_leads_somewhere(value, document))
        }
        _ => {}
    }
}

#[test]
fn the_api_on_tcp_wants_a_certificate_of_its_own_site() {
    let mut stage = Stage::set();
    stage.a.stop_agent().unwrap();
    let port = free_port().unwrap();
    stage.a.configure(&format!("[api]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    stage.a.start_agent().unwrap();
    let issue = |site: &lab::Site| {
        let arguments = ["pki", "issue", "--agent", "anna", "--operator", "anna", "--dir"];
        assert!(site.command().args(arguments).arg(site.pki()).output().unwrap().status.success());
    };
    issue(&stage.a);
    issue(&stage.b);
    let call = |own: &lab::Site| {
        let mut command = stage.a.command();
        command.args(["status", "--json", "--agent", &format!("127.0.0.1:{port}"), "--ca"]);
        command.arg(stage.a.pki().join("ca.pem")).arg("--cert").arg(own.pki().join("anna.pem"));
        command.arg("--key").arg(own.pki().join("anna.key")).output().unwrap()
    };
    let own = call(&stage.a);
    assert!(own.status.success(), "{}", String::from_utf8_lossy(&own.stderr));
    let status: Value = serde_json::from_slice(&own.stdout).unwrap();
    assert_eq!(status["site"], "site-a");
    assert!(!call(&stage.b).status.success(), "an operator of another site is a stranger here");
}

#[test]
fn exit_codes_say_what_kind_of_failure_it_was() {
    let stage = Stage::set();
    refused(stage.a.ask(&["vm", "show", "nobody"]), 3, "no VM \"nobody\"");
    refused(stage.a.ask(&["image", "close", "nothing"]), 3, "no image");
    refused(stage.a.ask(&["checkpoint", "tag", "--group", "nobody", "x"]), 3, "no group");
    let nobody = stage.a.ask(&["status", "--socket", "/nowhere/agent.sock"]).expect_err("nobody is there");
    assert_eq!(failed(&nobody).message.matches("os error").count(), 1, "{nobody}");
    refused(Err(nobody), 6, "no agent answers");
    let output = stage.a.command().args(["vm", "protect"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "clap's own code for a wrong command line");
    for shell in ["bash", "zsh", "fish"] {
        let output = stage.a.command().args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty());
    }
    let text = stage.a.command().arg("status").output().unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).contains("agent agent-1 of site site-a"));
}
