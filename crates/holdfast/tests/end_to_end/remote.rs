//! Disks over TCP for hypervisors on other hosts: which clients get in, and that nobody who does not can stop the rest.

use crate::stage::{SOON, Stage};
use lab::{Qemu, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A stage whose site A serves disks over TCP; the port.
fn served_over_tcp() -> (Stage, u16) {
    let mut stage = Stage::set();
    let port = lab::free_port().unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.configure(&format!("[nbd]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    stage.a.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    wait_until("the port", SOON, || Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop))).unwrap();
    (stage, port)
}

/// A certificate of site A for a hypervisor, in a folder with the names that QEMU and libnbd look for.
fn credentials(stage: &Stage) -> PathBuf {
    let (pki, folder) = (stage.a.pki(), stage.path("credentials"));
    let mut issue = stage.a.command();
    issue.args(["pki", "issue", "--operator", "hypervisor-7", "--dir"]).arg(&pki);
    assert!(issue.output().unwrap().status.success());
    std::fs::create_dir_all(&folder).unwrap();
    for (from, to) in [
        ("ca.pem", "ca-cert.pem"),
        ("hypervisor-7.pem", "client-cert.pem"),
        ("hypervisor-7.key", "client-key.pem"),
    ] {
        std::fs::copy(pki.join(from), folder.join(to)).unwrap();
    }
    folder
}

fn qemu_img(qemu: &Qemu, credentials: &Path, more: &str, port: u16) -> Output {
    let mut command = qemu.command("qemu-img");
    command.arg("info").arg("--object");
    command.arg(format!("tls-creds-x509,id=tls,endpoint=client,dir={}{more}", credentials.display()));
    command.arg("--image-opts");
    command.arg(format!("driver=nbd,host=127.0.0.1,port={port},export=web/vda,tls-creds=tls"));
    command.output().unwrap()
}

#[test]
fn either_qemu_attaches_over_tls_1_2_and_1_3_with_a_certificate_of_the_site() {
    let (stage, port) = served_over_tcp();
    let credentials = credentials(&stage);
    for qemu in [Qemu::system(), Qemu::ten().unwrap()] {
        for version in ["TLS1.3", "TLS1.2"] {
            let priority = format!(",priority=NORMAL:-VERS-TLS-ALL:+VERS-{version}");
            let output = qemu_img(&qemu, &credentials, &priority, port);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{qemu:?} {version}: {said}");
        }
        let older = ",priority=NORMAL:-VERS-TLS-ALL:+VERS-TLS1.1";
        assert!(!qemu_img(&qemu, &credentials, older, port).status.success());
    }
}

#[test]
fn clients_that_never_finish_their_greeting_stop_nothing() {
    let (stage, port) = served_over_tcp();
    let credentials = credentials(&stage);
    let mut idle: Vec<TcpStream> = (0..600)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.write_all(&[0, 0, 0]);
            Some(stream)
        })
        .collect();
    // What blocks for a moment is done as ever.
    stage.a.ask(&["checkpoint", "tag", "--group", "web", "meanwhile"]).unwrap();
    stage.a.protected("web").unwrap();
    wait_until("the end of those that say nothing", SOON, || {
        idle.retain_mut(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut buf = [0; 64];
            loop {
                match stream.read(&mut buf) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        // One byte now and then does not make the time longer.
        idle.iter_mut().for_each(|stream| drop(stream.write_all(&[0])));
        Ok(idle.is_empty().then_some(()))
    })
    .unwrap();
    let output = qemu_img(&Qemu::system(), &credentials, "", port);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A client that stays; ended when dropped.
struct Staying(Child);

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_client_over_tcp_is_asked_whether_it_is_still_there() {
    let (stage, port) = served_over_tcp();
    let credentials = credentials(&stage);
    let uri = format!("nbds://127.0.0.1:{port}/web/vda?tls-certificates={}", credentials.display());
    let stay = "import nbd, sys, time; h = nbd.NBD(); h.set_uri_allow_local_file(True); h.connect_uri(sys.argv[1]); \
                time.sleep(60)";
    // Debian's own Python, which Debian's libnbd is for, whatever other one there may be.
    let mut client = Command::new("/usr/bin/python3");
    client.args(["-c", stay, &uri]).stdout(Stdio::null());
    let _client = Staying(client.spawn().unwrap());
    wait_until("the client", SOON, || Ok((stage.a.protected("web")?["clients"] == 1).then_some(()))).unwrap();
    let asked = wait_until("a connection that TCP asks about", SOON, || {
        let output = Command::new("ss").args(["-tnoH", "state", "established"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ours = format!(":{port}");
        let mut lines = text.lines();
        // Ours is the local end; that of the client is its own affair.
        let is_asked = lines.any(|line| {
            let local = line.split_whitespace().nth(2).unwrap_or_default();
            local.ends_with(&ours) && line.contains("timer:(keepalive")
        });
        Ok(is_asked.then_some(()))
    });
    asked.unwrap();
}
