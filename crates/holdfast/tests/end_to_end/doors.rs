//! The agent's ports: whose TLS they take, and that those who do not show who they are hold up nobody.

use crate::calling::issue;
use crate::stage::{SOON, Stage};
use lab::wait_until;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What all of these need: a VM protected at A, whose disks are served over TCP; the port.
fn served_over_tcp(stage: &mut Stage, more: &str) -> u16 {
    let port = lab::free_port().unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.configure(&format!("[nbd]\nlisten = \"127.0.0.1:{port}\"\n{more}")).unwrap();
    stage.a.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    port
}

/// An operator's certificate, and a client's under the names that libnbd looks for.
fn credentials(stage: &Stage) -> PathBuf {
    let (pki, folder) = (stage.a.pki(), stage.path("credentials"));
    issue(&stage.a, &["--operator", "anna"]);
    issue(&stage.a, &["--client", "hypervisor-7", "--disk", "web"]);
    std::fs::create_dir(&folder).unwrap();
    for (from, to) in [
        ("ca.pem", "ca-cert.pem"),
        ("anna.pem", "anna.pem"),
        ("anna.key", "anna.key"),
        ("hypervisor-7.pem", "client-cert.pem"),
        ("hypervisor-7.key", "client-key.pem"),
    ] {
        std::fs::copy(pki.join(from), folder.join(to)).unwrap();
    }
    folder
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn between_agents_and_at_the_api_tls_is_1_3_and_nothing_older() {
    let mut stage = Stage::set();
    let api = lab::free_port().unwrap();
    served_over_tcp(&mut stage, &format!("[api]\nlisten = \"127.0.0.1:{api}\"\n"));
    let folder = credentials(&stage);
    for port in [stage.a.stream_port, api] {
        let connect = |version: &str| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-brief", version, "-connect", &format!("127.0.0.1:{port}")]);
            command.arg("-cert").arg(folder.join("client-cert.pem"));
            command.arg("-key").arg(folder.join("client-key.pem"));
            said(&command.stdin(std::process::Stdio::null()).output().unwrap())
        };
        let (new, old) = (connect("-tls1_3"), connect("-tls1_2"));
        assert!(new.contains("CONNECTION ESTABLISHED"), "{new}");
        assert!(!old.contains("CONNECTION ESTABLISHED") && old.contains("alert"), "{old}");
    }
}

/// Connections that begin and never show who they are.
struct Loiterers(Vec<TcpStream>);

/// What they begin with: TLS, of which one long message is announced, or NBD.
const TLS: &[u8] = &[0x16, 3, 1, 0x40, 0];
const NBD: &[u8] = &[0, 0, 0];
/// Of its body a part is sent.
const SLOW_REQUEST: &[u8] = b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                              content-length: 100\r\n\r\n{\"name\":";

impl Loiterers {
    fn at(port: u16, count: usize, say: &[u8]) -> Self {
        let connect = |_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nonblocking(true).unwrap();
            // One for whom there is no room may be hung up on already.
            let _ = stream.write(say);
            stream
        };
        Self((0..count).map(connect).collect())
    }

    /// How many are still connected.
    fn left(&mut self) -> usize {
        self.0.retain_mut(|stream| {
            let mut heard = [0; 64];
            loop {
                match stream.read(&mut heard) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        self.0.len()
    }
}

#[test]
fn connections_that_do_not_show_who_they_are_hold_up_nobody_and_end() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut stage = Stage::set();
    let api = lab::free_port().unwrap();
    let port = served_over_tcp(&mut stage, &format!("[api]\nlisten = \"127.0.0.1:{api}\"\n"));
    let folder = credentials(&stage);
    // More than there are places for streams; then a peer comes, of the same address.
    stage.a.kill_agent().unwrap();
    let before = std::fs::read_to_string(stage.a.log()).unwrap().len();
    let mut loiterers = vec![Loiterers::at(stage.b.stream_port, 4200, TLS)];
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    assert!(!log[before..].contains("peer not reached"), "{}", &log[before..]);
    loiterers.push(Loiterers::at(port, 600, NBD));
    loiterers.push(Loiterers::at(api, 600, TLS));
    // One who is let in, and never comes to the end of what he asks.
    let mut slow = UnixStream::connect(stage.a.api_socket()).unwrap();
    slow.write_all(SLOW_REQUEST).unwrap();
    // An operator, on the socket and over TCP, and a client of a disk.
    stage.tag("web", "web", "while they wait");
    let mut remote = stage.a.command();
    remote.args(["status", "--agent", &format!("127.0.0.1:{api}")]);
    for (option, file) in [("--ca", "ca-cert.pem"), ("--cert", "anna.pem"), ("--key", "anna.key")] {
        remote.arg(option).arg(folder.join(file));
    }
    let output = remote.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let uri = format!("nbds://127.0.0.1:{port}/web/vda?tls-certificates={}", folder.display());
    let output = Command::new("timeout").args(["30", "nbdinfo", &uri]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    wait_until("the end of those who only wait", SOON, || {
        let left: usize = loiterers.iter_mut().map(Loiterers::left).sum();
        Ok((left == 0).then_some(()))
    })
    .unwrap();
    slow.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 422") && answer.contains("did not arrive within"), "{answer}");
    stage.drained("web");
}
