//! Disks over TCP for hypervisors on other hosts: which clients get in, which of them may write, and that nobody who is
//! not let in, or has gone without a word, can stop the rest.

use crate::calling::issue;
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

/// A certificate of site A for a hypervisor that may open the VM of these tests, as below.
fn credentials(stage: &Stage, hypervisor: &str) -> PathBuf {
    credentials_for(stage, hypervisor, "web")
}

/// One for a disk, or all of a VM, in a folder with the names that QEMU and libnbd look for.
fn credentials_for(stage: &Stage, hypervisor: &str, disk: &str) -> PathBuf {
    let folder = stage.path(hypervisor);
    issue(&stage.a, &["--client", hypervisor, "--disk", disk]);
    std::fs::create_dir_all(&folder).unwrap();
    copy_credentials(stage, hypervisor, &folder);
    folder
}

fn copy_credentials(stage: &Stage, name: &str, folder: &Path) {
    let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
    for (from, to) in [("ca.pem", "ca-cert.pem"), (&certificate, "client-cert.pem"), (&key, "client-key.pem")]
    {
        std::fs::copy(stage.a.pki().join(from), folder.join(to)).unwrap();
    }
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

/// The exports that a client is offered, or why there is none.
fn offered(credentials: &Path, port: u16) -> Vec<String> {
    let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={}", credentials.display());
    let output = Command::new("nbdinfo").args(["--list", "--json", &uri]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let exports = list["exports"].as_array().cloned().unwrap_or_default();
    exports.iter().map(|export| export["export-name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_certificate_opens_the_disks_that_it_names_and_no_other() {
    let (stage, port) = served_over_tcp();
    let (vda, vdb) = (stage.disk("db-vda.raw", 8 << 20), stage.disk("db-vdb.raw", 8 << 20));
    let more = format!("vdb={}", vdb.display());
    stage.try_protect("db", "db", &vda, &["--disk", &more]).unwrap();
    let offers = [("web", vec!["web/vda"]), ("db/vdb", vec!["db/vdb"]), ("db", vec!["db/vda", "db/vdb"])];
    for (at, (named, expected)) in offers.iter().enumerate() {
        let credentials = credentials_for(&stage, &format!("hypervisor-{at}"), named);
        assert_eq!(&offered(&credentials, port), expected, "{named}");
        // What it is not offered it does not get by asking for it.
        for disk in ["web/vda", "db/vda", "db/vdb"] {
            let uri = format!("nbds://127.0.0.1:{port}/{disk}?tls-certificates={}", credentials.display());
            let opened = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap().status.success();
            assert_eq!(opened, expected.contains(&disk), "{named}: {disk}");
        }
    }
    // An operator's certificate and an agent's open no disk, and no client's opens the API.
    issue(&stage.a, &["--operator", "anna", "--role", "admin"]);
    for name in ["anna", "agent"] {
        let folder = stage.path(&format!("of-{name}"));
        std::fs::create_dir(&folder).unwrap();
        copy_credentials(&stage, name, &folder);
        assert_eq!(offered(&folder, port), Vec::<String>::new());
        wait_until("the refusal", SOON, || {
            let told = |line: &String| line.contains(name) && line.contains("may open no disk");
            Ok(stage.a.unannounced(&[])?.iter().any(told).then_some(()))
        })
        .unwrap();
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
    let known = ["early eof", "reset by peer", "wanted to write", "writes are refused", "request failed"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_client_whose_certificate_is_withdrawn_loses_the_disk_to_the_next() {
    let (stage, port) = served_over_tcp();
    let [seven, eight] = ["hypervisor-7", "hypervisor-8"].map(|name| credentials(&stage, name));
    let (mut first, mut other) = (Client::connect(&seven, port), Client::connect(&eight, port));
    assert_eq!((first.write('a').as_str(), other.write('b').as_str()), ("written", "EPERM"));
    let mut withdraw = stage.a.command();
    withdraw.args(["pki", "withdraw", "--dir"]).arg(stage.a.pki()).arg(seven.join("client-cert.pem"));
    assert!(withdraw.output().unwrap().status.success());
    wait_until("its end", SOON, || Ok((first.write('c') != "written").then_some(()))).unwrap();
    wait_until("the other's turn", SOON, || Ok((other.write('d') == "written").then_some(()))).unwrap();
    assert_eq!(offered(&seven, port), Vec::<String>::new());
    assert_eq!(offered(&eight, port), ["web/vda"]);
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
    assert_eq!(stage.a.unannounced(&["early eof", "reset by peer"]).unwrap(), Vec::<String>::new());
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
