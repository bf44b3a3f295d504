//! What must not happen, and what is said instead: each ends in a clear message and a state the operator
//! can see and leave, with the guest still on its local disk.

use crate::stage::{HOLDFAST, SOON, Stage, refused, same_bytes};
use lab::{Site, pair, wait_until};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

#[test]
fn images_that_cannot_be_used_are_refused_with_the_cure() {
    let stage = Stage::set();
    let missing = stage.path("missing.raw");
    refused(stage.try_protect("web", "web", &missing, &[]), 2, "does not exist; check the path");

    let read_only = stage.disk("read-only.raw", 1 << 20);
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o444)).unwrap();
    refused(stage.try_protect("web", "web", &read_only, &[]), 2, "read-only");

    let odd = stage.path("odd.raw");
    std::fs::write(&odd, [1; 777]).unwrap();
    refused(stage.try_protect("web", "web", &odd, &[]), 2, "whole 512-byte sectors");

    let qcow2 = stage.path("disk.qcow2");
    let mut header = vec![0; 1 << 16];
    header[..4].copy_from_slice(b"QFI\xfb");
    std::fs::write(&qcow2, header).unwrap();
    refused(stage.try_protect("web", "web", &qcow2, &[]), 2, "qcow2 format");

    refused(stage.try_protect("web", "web", stage.folder.path(), &[]), 2, "disk image");
}

#[test]
fn an_image_that_a_vm_uses_is_refused() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    // It returns once the VM is set up, and has the image by then.
    let pid_file = stage.path("qemu.pid");
    let started = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,accel=tcg", "-S", "-nodefaults", "-display", "none", "-blockdev"])
        .arg(format!("driver=file,node-name=d,filename={}", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=d", "-daemonize", "-pidfile"])
        .arg(&pid_file)
        .status()
        .unwrap();
    assert!(started.success());
    refused(stage.try_protect("web", "web", &disk, &[]), 2, "is in use; stop the VM");
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let process = Path::new("/proc").join(pid);
    wait_until("the VM's end", SOON, || Ok((!process.exists()).then_some(()))).unwrap();
    stage.protect("web", "web", &disk);
    refused(stage.try_protect("again", "again", &disk, &[]), 2, "is in use");
    refused(stage.try_protect("web", "web", &disk, &[]), 4, "protected already");
}

#[test]
fn an_image_that_is_gone_when_the_agent_starts_is_shown_and_taken_up_when_it_is_back() {
    let mut stage = Stage::set();
    let (one, two) = (stage.disk("one.raw", 1 << 20), stage.disk("two.raw", 1 << 20));
    stage.protect("one", "one", &one);
    stage.protect("two", "two", &two);
    stage.a.kill_agent().unwrap();
    let aside = stage.path("aside.raw");
    std::fs::rename(&one, &aside).unwrap();
    std::fs::remove_file(&two).unwrap();
    stage.a.start_agent().unwrap();
    let row = stage.a.wait_for_state("one", "failed", SOON).unwrap();
    assert!(row["last_error"].as_str().unwrap().contains("does not exist"), "{row:#}");
    refused(stage.try_protect("one", "one", &aside, &[]), 4, "protected already");
    std::fs::rename(&aside, &one).unwrap();
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();
    // The other one is given up.
    stage.a.ask(&["vm", "unprotect", "two"]).unwrap();
    refused(stage.a.protected("two"), 3, "no VM");
}

#[test]
fn a_journal_that_was_made_but_not_recorded_is_taken_up() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "before");
    stage.b.kill_agent().unwrap();
    // As if the agent had died just before it wrote this.
    std::fs::remove_dir_all(stage.b.folder.join("state/recovered")).unwrap();
    stage.b.start_agent().unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "before", "image.raw"), &disk));
}

#[test]
fn settings_out_of_range_are_refused_with_the_range() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    for (option, value, range) in [
        ("--history", "60", "use 3600 to 2592000"),
        ("--rpo", "0", "use 1 to 3600"),
        ("--checkpoint-interval", "61", "use 1 to 60"),
        ("--journal-max", "5", "use 1000000000 to 20000000000000"),
        ("--buffer", "1", "use 1048576 to 4294967296"),
    ] {
        let disk = format!("vda={}", disk.display());
        let peer = stage.b.peer();
        let result = stage.a.ask(&["vm", "protect", "web", "--disk", &disk, "--peer", &peer, option, value]);
        refused(result, 2, range);
    }
    refused(stage.try_protect("../etc", "web", &disk, &[]), 2, "letters, digits");
}

#[test]
fn two_agents_on_one_folder_are_refused() {
    let stage = Stage::set();
    let output = stage.a.command().args(["agent", "--config"]).arg(stage.a.config()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("only one agent may use it") && said.contains("in use by another process"),
        "{said}"
    );
    // An offline look at a journal that the agent has is refused too.
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    let id = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    let folder = stage.b.folder.join("state/journals").join(id);
    refused(
        stage.b.ask(&["journal", "verify", &folder.display().to_string()]),
        1,
        "stop the agent that uses it",
    );
}

#[test]
fn a_strangers_certificate_is_refused_and_the_guest_goes_on() {
    let mut stage = Stage::set();
    let (mut stranger, _) = pair(Path::new(HOLDFAST), &stage.path("strangers")).unwrap();
    stranger.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 1 << 20);
    let arguments = |disk: &Path| vec![format!("vda={}", disk.display()), stage.b.peer()];
    let given = arguments(&disk);
    stranger.ask(&["vm", "protect", "web", "--disk", &given[0], "--peer", &given[1]]).unwrap();
    let row = wait_until("the refusal", SOON, || {
        let row = stranger.protected("web")?;
        Ok(row["last_error"].is_string().then_some(row))
    })
    .unwrap();
    assert_eq!(row["state"], "tracking");
    assert!(row["last_error"].as_str().unwrap().contains("certificate"), "{row:#}");
    let uri = format!("nbd+unix:///vda?socket={}", row["socket"].as_str().unwrap());
    let copied = Command::new("nbdcopy").arg("--flush").arg(&disk).arg(&uri).status().unwrap();
    assert!(copied.success(), "the guest's disk works all the same");
    assert!(stage.b.recovered("web").is_err(), "nothing of a stranger is kept");
    stage.b.stop_agent().unwrap();
}

#[test]
fn a_trusted_site_cannot_speak_for_another() {
    let stage = Stage::set();
    // An authority that calls itself site-a, and that B trusts as site-c.
    let mut other = Site::make(Path::new(HOLDFAST), &stage.path("other"), "site-a").unwrap();
    let trust = |of: &Site, site: &str, whose: &Site| {
        let mut command = of.command();
        command.args(["pki", "trust", "--site", site, "--dir"]).arg(of.pki()).arg(whose.pki().join("ca.pem"));
        assert!(command.output().unwrap().status.success());
    };
    trust(&stage.b, "site-c", &other);
    trust(&other, "site-b", &stage.b);
    other.start_agent().unwrap();
    let disk = format!("vda={}", stage.disk("disk.raw", 1 << 20).display());
    other.ask(&["vm", "protect", "web", "--disk", &disk, "--peer", &stage.b.peer()]).unwrap();
    wait_until("the refusal", SOON, || {
        let words = "calls itself agent-1.site-a, but site site-a has not issued its certificate";
        Ok(stage.b.unannounced(&[])?.iter().any(|line| line.contains(words)).then_some(()))
    })
    .unwrap();
    assert!(stage.b.recovered("web").is_err());
}

#[test]
fn trust_that_is_removed_refuses_and_comes_back_with_a_renewed_certificate_without_a_restart() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    let issue = |days: &str| {
        let mut command = stage.a.command();
        let arguments =
            ["pki", "issue", "--agent", "agent-1", "--host", "127.0.0.1", "--days", days, "--dir"];
        command.args(arguments).arg(stage.a.pki()).output().unwrap().status.success()
    };
    assert!(!issue("0"), "a certificate of no days is refused");
    std::fs::remove_file(stage.b.pki().join("trust/site-a.pem")).unwrap();
    let elsewhere = Site::make(Path::new(HOLDFAST), &stage.path("elsewhere"), "site-z").unwrap();
    let mut trust = stage.b.command();
    trust.args(["pki", "trust", "--site", "site-z", "--dir"]).arg(stage.b.pki());
    assert!(trust.arg(elsewhere.pki().join("ca.pem")).output().unwrap().status.success());
    stage.try_protect("web", "web", &disk, &[]).unwrap();
    wait_until("the refusal", SOON, || Ok(stage.a.protected("web")?["last_error"].is_string().then_some(())))
        .unwrap();
    let words = "calls itself agent-1.site-a: invalid peer certificate: UnknownIssuer";
    wait_until("the refusal by name", SOON, || {
        Ok(stage.b.unannounced(&[])?.iter().any(|line| line.contains(words)).then_some(()))
    })
    .unwrap();
    // Trust comes back, and a renewed certificate with it; nobody is restarted.
    let mut trust = stage.b.command();
    trust.args(["pki", "trust", "--site", "site-a", "--dir"]).arg(stage.b.pki());
    assert!(trust.arg(stage.a.pki().join("ca.pem")).output().unwrap().status.success());
    assert!(issue("30"));
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
}

#[test]
fn an_expired_certificate_is_refused_by_name_and_a_renewed_one_taken() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.a.stop_agent().unwrap();
    let (pki, read) = (stage.a.pki(), |path: &Path| std::fs::read_to_string(path).unwrap());
    let good = ["agent.pem", "agent.key"].map(|name| (pki.join(name), read(&pki.join(name))));
    let authority = KeyPair::from_pem(&read(&pki.join("ca.key"))).unwrap();
    let mut site = CertificateParams::default();
    site.distinguished_name.push(DnType::CommonName, "Holdfast site site-a CA");
    let issuer = Issuer::new(site, authority);
    let names = ["agent-1.site-a.holdfast.internal".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    std::fs::write(&good[0].0, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&good[1].0, key.serialize_pem()).unwrap();
    stage.a.start_agent().unwrap();
    let words = "calls itself agent-1.site-a: invalid peer certificate: certificate expired";
    let told = |b: &Site| b.unannounced(&[]).unwrap().iter().filter(|line| line.contains(words)).count();
    wait_until("the refusal", SOON, || Ok((told(&stage.b) > 0).then_some(()))).unwrap();
    wait_until("its reason at the other side", SOON, || {
        let error = stage.a.protected("web")?["last_error"].as_str().unwrap_or_default().to_owned();
        Ok(error.contains("CertificateExpired").then_some(()))
    })
    .unwrap();
    let alerts = || Ok::<_, anyhow::Error>(stage.a.ask(&["status"])?["alerts"].to_string());
    wait_until("the alert", SOON, || Ok(alerts()?.contains("has expired").then_some(()))).unwrap();
    for (path, text) in good {
        std::fs::write(path, text).unwrap();
    }
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until("no alert", SOON, || Ok((!alerts()?.contains("expire")).then_some(()))).unwrap();
    assert_eq!(told(&stage.b), 1, "the same again is not worth a line");
}

#[test]
fn an_agent_that_cannot_take_streams_says_so_and_serves_its_guests_all_the_same() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.a.stop_agent().unwrap();
    let trust = stage.a.pki().join("trust/site-b.pem");
    let aside = stage.path("site-b.pem");
    std::fs::rename(&trust, &aside).unwrap();
    let taken = std::net::TcpListener::bind(stage.a.peer()).unwrap();
    stage.a.start_agent().unwrap();
    let alerts = |words: &'static str| {
        let status = stage.a.ask(&["status"])?;
        let rows = status["alerts"].as_array().unwrap().clone();
        Ok::<_, anyhow::Error>(rows.iter().any(|row| row.as_str().unwrap().contains(words)))
    };
    wait_until("the alert", SOON, || Ok(alerts("cannot listen on")?.then_some(()))).unwrap();
    lab::copy_image(&socket, "vda", &stage.path("copy.raw")).expect("the guest's disk is served");
    drop(taken);
    wait_until("the next alert", SOON, || Ok(alerts("no site is trusted")?.then_some(()))).unwrap();
    std::fs::rename(&aside, &trust).unwrap();
    wait_until("no alert", SOON, || Ok((!alerts("")?).then_some(()))).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
}

#[test]
fn a_damaged_record_costs_only_what_it_was_of() {
    let mut stage = Stage::set();
    let (one, two) = (stage.disk("one.raw", 1 << 20), stage.disk("two.raw", 1 << 20));
    stage.protect("one", "one", &one);
    let socket = stage.protect("two", "two", &two);
    stage.drained("one");
    stage.b.ask(&["failover", "start", "--group", "one"]).unwrap();
    stage.a.kill_agent().unwrap();
    stage.b.kill_agent().unwrap();
    let damage = |site: &Site, folder: &str, words: &str| {
        let rows = std::fs::read_dir(site.folder.join("state").join(folder)).unwrap();
        let paths = rows.map(|row| row.unwrap().path());
        let holds = |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap().contains(words);
        std::fs::write(paths.filter(|path| holds(path)).last().unwrap(), "{").unwrap();
    };
    damage(&stage.a, "protected", "\"name\": \"one\"");
    damage(&stage.b, "failovers", "\"group\": \"one\"");
    stage.a.start_agent().unwrap();
    stage.b.start_agent().unwrap();
    let alert = |site: &Site| site.ask(&["status"]).unwrap()["alerts"][0].as_str().unwrap().to_owned();
    assert!(alert(&stage.a).contains("a protection is left out"), "{}", alert(&stage.a));
    lab::copy_image(&socket, "vda", &stage.path("copy.raw")).expect("the other guest's disk is served");
    // Who has failed over is not known of that group any more; the other one is streamed, and can be failed over.
    assert!(alert(&stage.b).contains("all its streams are refused"), "{}", alert(&stage.b));
    refused(stage.b.ask(&["failover", "start", "--group", "one"]), 4, "cannot be read");
    stage.drained("two");
    stage.b.ask(&["failover", "start", "--group", "two"]).unwrap();
}

#[test]
fn disks_that_changed_are_refused_until_the_vm_is_protected_anew() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 4 << 20);
    stage.protect("web", "web", &disk);
    stage.a.kill_agent().unwrap();
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(8 << 20).unwrap();
    stage.a.start_agent().unwrap();
    let row = stage.a.wait_for_state("web", "failed", SOON).unwrap();
    let why = row["last_error"].as_str().unwrap();
    assert!(
        why.contains("has grown to 8388608") && why.contains("4194304") && why.contains("protect it again"),
        "{why}"
    );

    // And a replica that is smaller than it was.
    stage.b.kill_agent().unwrap();
    let folder =
        std::fs::read_dir(stage.b.folder.join("state/journals")).unwrap().next().unwrap().unwrap().path();
    let replica = folder.join("replica/vda.raw");
    std::fs::File::options().write(true).open(&replica).unwrap().set_len(1 << 20).unwrap();
    stage.b.start_agent().unwrap();
    let row = stage.b.recovered("web").unwrap();
    assert_eq!(row["state"], "failed");
    assert!(row["last_error"].as_str().unwrap().contains("4194304 were expected"), "{row:#}");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    stage.b.ask(&["vm", "forget", "web"]).unwrap();
    stage.protect("web", "web", &disk);
}

#[test]
fn garbage_and_other_versions_are_refused_and_nobody_else_is_disturbed() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]]
    {
        let mut stream = TcpStream::connect(stage.b.peer()).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Whatever the answer is, it ends.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    for (message, words) in
        [(hello_header(9), "protocol version 9"), (vec![b'X'; 32], "the magic does not match")]
    {
        let said = speak_tls(&stage.a, &stage.b, &message);
        assert!(said.contains(words), "{said}");
    }
    stage.drained("web");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "journaling");
}

/// A header of the wire with another version.
fn hello_header(version: u8) -> Vec<u8> {
    let mut header = b"HFW1".to_vec();
    header.extend([version, 0, 1, 0]);
    header.resize(32, 0);
    header
}

/// What B answers to these bytes from A's agent, who is trusted: openssl speaks the TLS.
fn speak_tls(a: &Site, b: &Site, message: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &b.peer(), "-tls1_3", "-cert"])
        .arg(a.pki().join("agent.pem"))
        .arg("-key")
        .arg(a.pki().join("agent.key"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(message).unwrap();
    stdin.flush().unwrap();
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    drop(stdin);
    child.wait().unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_full_journal_folder_stops_the_journal_and_not_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    let Some(_mount) = SmallFileSystem::mount(&folder.path().join("fs.img"), &small, 512 << 20) else {
        panic!("a small file system is mounted on a loop device for this, which needs root");
    };
    // What else lives there leaves room for some 60 MiB.
    let ballast = small.join("ballast");
    assert!(Command::new("fallocate").args(["-l", "400M"]).arg(&ballast).status().unwrap().success());
    let (mut a, mut b) = pair(Path::new(HOLDFAST), folder.path()).unwrap();
    let text = std::fs::read_to_string(b.config()).unwrap();
    let journals = format!("journal_dir = \"{}\"\n", small.join("journals").display());
    std::fs::write(b.config(), text.replace("run_dir", &(journals + "run_dir"))).unwrap();
    a.start_agent().unwrap();
    b.start_agent().unwrap();
    let stage = Stage { a, b, folder };
    let disk = stage.disk("disk.raw", 96 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.tag("web", "web", "good");

    let mut noise = std::fs::File::open("/dev/urandom").unwrap().take(80 << 20);
    std::io::copy(&mut noise, &mut std::fs::File::create(stage.path("noise.raw")).unwrap()).unwrap();
    let uri = format!("nbd+unix:///vda?socket={socket}");
    let copied =
        Command::new("nbdcopy").arg("--flush").arg(stage.path("noise.raw")).arg(&uri).status().unwrap();
    assert!(copied.success(), "the guest's writes do not wait for the journal");
    let row = stage.a.wait_for_state("web", "failed", SOON).unwrap();
    assert!(row["last_error"].as_str().unwrap().contains("journal full"), "{row:#}");
    let kept = stage.b.recovered("web").unwrap();
    assert!(kept["last_error"].as_str().unwrap().contains("no space left"), "{kept:#}");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "good"]).unwrap();
    assert_eq!(image["checkpoint"]["tag"], "good", "history is still there");

    // The operator makes room: nothing else has to be done.
    std::fs::remove_file(&ballast).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

/// A file system of its own, on a loop device; unmounted when dropped.
pub(crate) struct SmallFileSystem {
    at: std::path::PathBuf,
}

impl SmallFileSystem {
    pub(crate) fn mount(image: &Path, at: &Path, size_bytes: u64) -> Option<Self> {
        lab::make_disk(image, size_bytes).unwrap();
        std::fs::create_dir_all(at).unwrap();
        let mounted = as_root("mount").args(["-o", "loop"]).arg(image).arg(at).status().ok()?;
        let owned = as_root("chmod").arg("777").arg(at).status().ok()?;
        (mounted.success() && owned.success()).then(|| Self { at: at.to_path_buf() })
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("-l").arg(&self.at).status();
    }
}

/// A command run as root: by itself, or with the sudo that installing the packages has used before.
pub(crate) fn as_root(program: &str) -> Command {
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    if is_root {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(program);
    command
}
