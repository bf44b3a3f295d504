//! Certificates over their life: requested where their key stays, signed elsewhere, renewed in use, withdrawn.

use crate::calling::{Connection, issue};
use crate::rights::with_api_on_tcp;
use crate::stage::{SOON, Stage};
use lab::wait_until;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;

/// A command of keys and certificates: whether it was done, and what it said.
fn pki(stage: &Stage, command: &str, folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output =
        stage.a.command().args(["pki", command, "--dir"]).arg(folder).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

fn done(stage: &Stage, command: &str, folder: &Path, arguments: &[&str]) -> String {
    let (done, said) = pki(stage, command, folder, arguments);
    assert!(done, "{said}");
    said
}

fn refused(stage: &Stage, command: &str, folder: &Path, arguments: &[&str], words: &str) {
    let (done, said) = pki(stage, command, folder, arguments);
    assert!(!done && said.contains(words), "{command} {arguments:?}: {said}");
}

fn fingerprint(stage: &Stage, file: &Path) -> String {
    let said = done(stage, "fingerprint", Path::new("/nowhere"), &[file.to_str().unwrap()]);
    said.trim().to_owned()
}

#[test]
fn a_key_stays_on_its_host_and_the_authoritys_key_need_not_be_there() {
    let (stage, port) = with_api_on_tcp();
    issue(&stage.a, &["--operator", "anna"]);
    let (host, authority) = (stage.a.pki(), stage.path("authority"));
    assert!(std::process::Command::new("cp").arg("-a").args([&host, &authority]).status().unwrap().success());
    std::fs::remove_file(host.join("ca.key")).unwrap();
    std::fs::remove_file(authority.join("agent.key")).unwrap();
    let whose = ["--agent", "agent-1", "--host", "127.0.0.1"];
    let before = Connection::open(&stage.a, "anna", port).shown();
    let said = done(&stage, "request", &host, &whose);
    let sent = authority.join("sent.csr");
    std::fs::copy(host.join("agent.csr"), &sent).unwrap();
    let told = fingerprint(&stage, &sent);
    assert!(said.contains(&told), "{said}");
    let sent = sent.to_str().unwrap();
    let sign = |more: &[&'static str]| [&[sent][..], &whose, more].concat();
    // Somebody else's, another one's, and one that has changed on the way.
    refused(&stage, "sign", &authority, &sign(&["--host", "10.0.0.1"]), "say the same");
    refused(
        &stage,
        "sign",
        &authority,
        &[sent, "--operator", "agent-1", "--role", "admin"],
        "holdfast:agent",
    );
    refused(&stage, "sign", &authority, &sign(&["--fingerprint", "AB:CD"]), "not the one you were told");
    let text = std::fs::read_to_string(sent).unwrap();
    let at = text.len() - 60;
    let changed = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
    std::fs::write(authority.join("changed.csr"), format!("{}{changed}{}", &text[..at], &text[at + 1..]))
        .unwrap();
    let changed = authority.join("changed.csr");
    let other = [&[changed.to_str().unwrap()][..], &whose].concat();
    refused(&stage, "sign", &authority, &other, "no request that is signed with its key");
    let colons = told.replace(':', "").to_lowercase();
    let good = [&[sent, "--fingerprint", colons.as_str()][..], &whose].concat();
    done(&stage, "sign", &authority, &good);
    let signed = authority.join("sent.pem");
    let shown = done(&stage, "show", &authority, &[signed.to_str().unwrap()]);
    for words in
        ["certificate of", "agent-1.site-a.holdfast.internal", "holdfast:agent", "127.0.0.1", "serial"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // Nothing is in use of it until it is whole.
    assert_eq!(Connection::open(&stage.a, "anna", port).shown(), before);
    refused(&stage, "install", &stage.b.pki(), &[signed.to_str().unwrap()], "was not requested here");
    let ca = stage.b.pki().join("ca.pem");
    let foreign = [signed.to_str().unwrap(), "--ca", ca.to_str().unwrap()];
    refused(&stage, "install", &host, &foreign, "another authority");
    done(&stage, "install", &host, &[signed.to_str().unwrap()]);
    let new = CertificateDer::from_pem_file(&signed).unwrap();
    assert_ne!(new, before);
    assert_eq!(Connection::open(&stage.a, "anna", port).shown(), new, "nobody was restarted");
    // A host that has nothing yet takes the authority with its first one.
    let fresh = stage.path("fresh");
    let whose = ["--agent", "agent-2"];
    refused(&stage, "request", &fresh, &whose, "--site");
    done(&stage, "request", &fresh, &[&["--site", "site-a"][..], &whose].concat());
    let request = fresh.join("agent.csr");
    let to = fresh.join("signed.pem");
    let arguments = [request.to_str().unwrap(), "--to", to.to_str().unwrap()];
    done(&stage, "sign", &authority, &[&arguments[..], &whose].concat());
    let ca = authority.join("ca.pem");
    done(&stage, "install", &fresh, &[to.to_str().unwrap(), "--ca", ca.to_str().unwrap()]);
    let files = ["agent.pem", "agent.key", "ca.pem", "site"].map(|name| fresh.join(name).exists());
    assert_eq!((files, fresh.join("ca.key").exists()), ([true; 4], false));
}

#[test]
fn an_agent_has_a_whole_pair_whenever_its_renewal_is_killed() {
    let (stage, port) = with_api_on_tcp();
    issue(&stage.a, &["--operator", "anna"]);
    for at in 0..40 {
        let mut renewal = stage.a.command();
        renewal
            .args(["pki", "issue", "--agent", "agent-1", "--host", "127.0.0.1", "--dir"])
            .arg(stage.a.pki());
        let mut renewal = renewal.stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(at));
        let _ = renewal.kill();
        renewal.wait().unwrap();
        let answer = Connection::open(&stage.a, "anna", port).ask("GET", "/v1/status", "").unwrap();
        assert_eq!(answer.status, 200, "{at}");
    }
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
}

#[test]
fn a_certificate_that_is_withdrawn_ends_its_connections_and_no_others() {
    let (stage, port) = with_api_on_tcp();
    for name in ["anna", "bert"] {
        issue(&stage.a, &["--operator", name]);
    }
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    let [mut anna, mut bert] = ["anna", "bert"].map(|name| Connection::open(&stage.a, name, port));
    let ask = |of: &mut Connection| of.ask("GET", "/v1/status", "").map(|answer| answer.status);
    assert_eq!([ask(&mut anna).unwrap(), ask(&mut bert).unwrap()], [200; 2]);
    let of_anna = stage.a.pki().join("anna.pem");
    done(&stage, "withdraw", &stage.a.pki(), &[of_anna.to_str().unwrap()]);
    // Neither is silent meanwhile, for that ends a connection as well.
    wait_until("the end of one connection", SOON, || {
        assert_eq!(ask(&mut bert).unwrap(), 200);
        std::thread::sleep(Duration::from_millis(200));
        Ok(ask(&mut anna).is_err().then_some(()))
    })
    .unwrap();
    let again = Connection::open(&stage.a, "anna", port).ask("GET", "/v1/status", "");
    assert!(again.unwrap_err().to_string().contains("CertificateRevoked"));
    // The other site's agent, here by its serial number: its stream ends, and begins with a new certificate.
    let of_agent = stage.a.pki().join("agent.pem");
    let shown = done(&stage, "show", &stage.a.pki(), &[of_agent.to_str().unwrap()]);
    let serial = shown.lines().find_map(|line| line.trim().strip_prefix("serial")).unwrap().trim();
    done(&stage, "withdraw", &stage.b.pki(), &["--site", "site-a", serial]);
    wait_until("the end of the stream", SOON, || {
        let error = stage.a.protected("web")?["last_error"].to_string();
        Ok(error.contains("does not take this agent's certificate").then_some(()))
    })
    .unwrap();
    assert_eq!(ask(&mut bert).unwrap(), 200);
    issue(&stage.a, &["--agent", "agent-1", "--host", "127.0.0.1"]);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    // What cannot be understood withdraws nothing and lets nobody new in.
    let list = stage.a.pki().join("trust/site-a.withdrawn");
    std::fs::write(&list, "no number at all\n").unwrap();
    refused(&stage, "withdraw", &stage.a.pki(), &["ab12"], "is damaged");
    assert!(Connection::open(&stage.a, "bert", port).ask("GET", "/v1/status", "").is_err());
    assert_eq!(ask(&mut bert).unwrap(), 200, "who stands is let in as before");
}

#[test]
fn an_authority_is_compared_by_its_fingerprint_before_it_is_trusted() {
    let stage = Stage::set();
    let (ca, agents) = (stage.b.pki().join("ca.pem"), stage.b.pki().join("agent.pem"));
    let told = fingerprint(&stage, &ca);
    assert_eq!(
        done(&stage, "fingerprint", &stage.b.pki(), &[]).trim(),
        told,
        "the site's own, where no file is named"
    );
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&ca);
    let openssl = String::from_utf8_lossy(&openssl.output().unwrap().stdout).into_owned();
    assert_eq!(openssl.trim().split('=').nth(1), Some(told.as_str()));
    let trust = |file: &Path, told: &str| {
        let file = file.to_str().unwrap().to_owned();
        pki(&stage, "trust", &stage.a.pki(), &["--site", "site-b", &file, "--fingerprint", told])
    };
    assert!(trust(&ca, &told).0);
    let (trusted, said) = trust(&ca, &told.replace(':', "").replace(['0', '1', '2', '3'], "4"));
    assert!(!trusted && said.contains("not the one you were told"), "{said}");
    let (trusted, said) = trust(&agents, &fingerprint(&stage, &agents));
    assert!(!trusted && said.contains("no authority's certificate"), "{said}");
}
