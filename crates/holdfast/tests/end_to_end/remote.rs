//! Disks over TCP for hypervisors on other hosts: which clients get in, which of them may write, and that nobody who is
//! not let in, or has gone without a word, can stop the rest.

use crate::one_writer::wait_for_refusal;
use crate::stage::{SOON, Stage};
use lab::{Cable, Namespace, NbdClient, Qemu, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// Debian's own, which Debian's libnbd is for, whatever other one there may be.
const PYTHON: &str = "/usr/bin/python3";

/// A stage whose site A serves disks over TCP; the port.
fn served_over_tcp() -> (Stage, u16) {
    served_at("127.0.0.1")
}

fn served_at(address: &str) -> (Stage, u16) {
    let mut stage = Stage::set();
    let port = lab::free_port().unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.configure(&format!("[nbd]\nlisten = \"{address}:{port}\"\n")).unwrap();
    stage.a.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    wait_until("the port", SOON, || Ok(TcpStream::connect((address, port)).ok().map(drop))).unwrap();
    (stage, port)
}

/// A certificate of site A for a hypervisor, in a folder with the names that QEMU and libnbd look for.
fn credentials(stage: &Stage, hypervisor: &str) -> PathBuf {
    let (pki, folder) = (stage.a.pki(), stage.path(hypervisor));
    let mut issue = stage.a.command();
    issue.args(["pki", "issue", "--operator", hypervisor, "--dir"]).arg(&pki);
    assert!(issue.output().unwrap().status.success());
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = (format!("{hypervisor}.pem"), format!("{hypervisor}.key"));
    for (from, to) in [("ca.pem", "ca-cert.pem"), (&certificate, "client-cert.pem"), (&key, "client-key.pem")]
    {
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
    let credentials = credentials(&stage, "hypervisor-7");
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
    let credentials = credentials(&stage, "hypervisor-7");
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

/// Says what it is told of the export, and from then on what becomes of each write.
const CLIENT: &str = "
import nbd, sys
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.set_full_info(True)
# The agent's certificate names one address of this machine only.
h.set_tls_verify_peer(False)
h.connect_uri(sys.argv[1])
print(h.get_export_description(), flush=True)
for line in sys.stdin:
    try:
        h.pwrite(line.strip().encode() * 512, 0)
        print('written', flush=True)
    except nbd.Error as error:
        print(error.errno, flush=True)
";

/// A client of another program, that stays until it is dropped.
struct Client {
    child: Child,
    tell: ChildStdin,
    said: BufReader<ChildStdout>,
    description: String,
}

impl Client {
    fn connect(credentials: &Path, port: u16) -> Self {
        Self::start(Command::new(PYTHON), credentials, "127.0.0.1", port)
    }

    fn start(mut python: Command, credentials: &Path, server: &str, port: u16) -> Self {
        let uri = format!("nbds://{server}:{port}/web/vda?tls-certificates={}", credentials.display());
        python.args(["-c", CLIENT, &uri]);
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut client = Self { child, tell, said, description: String::new() };
        client.description = client.next_line();
        client
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Writes a sector of this letter, and returns what has become of that.
    fn write(&mut self, letter: char) -> String {
        self.tell.write_all(format!("{letter}\n").as_bytes()).unwrap();
        self.next_line()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the disk begins with, asked of a socket of this host.
fn first_byte(stage: &Stage) -> char {
    let socket = stage.a.protected("web").unwrap()["socket"].as_str().unwrap().to_owned();
    let mut byte = [0];
    NbdClient::connect(&socket, "vda").unwrap().read(0, &mut byte).unwrap();
    byte[0].into()
}

#[test]
fn over_tcp_the_certificate_that_writes_first_has_the_disk() {
    let (stage, port) = served_over_tcp();
    let [seven, eight] = ["hypervisor-7", "hypervisor-8"].map(|name| credentials(&stage, name));
    let [mut first, mut again] = [(); 2].map(|()| Client::connect(&seven, port));
    assert_eq!([first.write('a'), again.write('b')], ["written"; 2], "one client, with two connections");
    let mut other = Client::connect(&eight, port);
    let owner = "the holder of hypervisor-7.site-a's certificate";
    assert!(other.description.contains(&format!("{owner} writes to it")), "{}", other.description);
    assert_eq!(other.write('c'), "EPERM");
    wait_for_refusal(&stage, "the holder of hypervisor-8.site-a's certificate", owner);
    assert_eq!((first_byte(&stage), first.write('d'), first_byte(&stage)), ('b', "written".into(), 'd'));
    drop(first);
    assert_eq!((other.write('e').as_str(), again.write('f').as_str()), ("EPERM", "written"));
    drop(again);
    wait_until("its turn", SOON, || Ok((other.write('g') == "written").then_some(()))).unwrap();
    assert_eq!(first_byte(&stage), 'g');
    let known = ["early eof", "wanted to write", "writes are refused", "request failed"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

/// Its kernel says nothing when it goes: nobody is told that the connection has ended.
#[test]
fn a_host_that_is_gone_without_a_word_does_not_have_the_disk_for_ever() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make namespaces");
        return;
    }
    let (stage, port) = served_at("0.0.0.0");
    let [gone, next] = ["hypervisor-7", "hypervisor-8"].map(|name| credentials(&stage, name));
    let host = Namespace::start(stage.folder.path(), "ip link set lo up").unwrap();
    let cable = Cable::lay_to(&host).unwrap();
    let mut client = Client::start(host.command(PYTHON), &gone, cable.here(), port);
    assert_eq!(client.write('a'), "written");
    cable.pull(&host).unwrap();
    drop((client, host));
    assert_eq!(stage.a.protected("web").unwrap()["clients"], 1, "nobody has told the agent");
    // Its first write waits for as long as it takes to find that out.
    let mut next = Client::connect(&next, port);
    assert!(next.description.contains("hypervisor-7"), "{}", next.description);
    assert_eq!(next.write('b'), "written");
    assert_eq!(first_byte(&stage), 'b');
    assert_eq!(stage.a.unannounced(&["early eof"]).unwrap(), Vec::<String>::new());
}

#[test]
fn a_client_over_tcp_is_asked_whether_it_is_still_there() {
    let (stage, port) = served_over_tcp();
    let _client = Client::connect(&credentials(&stage, "hypervisor-7"), port);
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
