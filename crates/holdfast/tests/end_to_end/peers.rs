//! Other people's NBD clients against our server: libnbd's tools and fio.

use crate::calling::issue;
use crate::stage::{Stage, same_bytes};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Qemu, Work, check_file_system, make_disk};
use std::process::Command;
use std::time::Duration;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

#[test]
fn nbdinfo_sees_what_we_offer_and_what_is_allocated() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 4 << 20);
    let socket = stage.protect("web", "web", &disk);
    let info = run("nbdinfo", &[&format!("nbd+unix:///vda?socket={socket}")]);
    for line in [
        "newstyle-fixed",
        "structured packets",
        "export-size: 4194304",
        "can_multi_conn: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_flush: true",
        "base:allocation",
    ] {
        assert!(info.contains(line), "{line} is missing in {info}");
    }
    assert!(run("nbdinfo", &["--list", &format!("nbd+unix:///?socket={socket}")]).contains("export=\"vda\""));
    let map = run("nbdinfo", &["--map", &format!("nbd+unix:///vda?socket={socket}")]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
}

#[test]
fn nbdcopy_reads_and_writes_and_the_other_side_gets_the_same() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 48 << 20);
    let socket = stage.protect("web", "web", &disk);
    let uri = format!("nbd+unix:///vda?socket={socket}");
    run("nbdcopy", &[&uri, &stage.path("out.raw").display().to_string()]);
    assert!(same_bytes(&disk, &stage.path("out.raw")), "nbdcopy reads the disk");

    let other = stage.disk("other.raw", 48 << 20);
    let mut bytes = std::fs::read(&other).unwrap();
    bytes.reverse();
    std::fs::write(&other, bytes).unwrap();
    run("nbdcopy", &["--flush", &other.display().to_string(), &uri]);
    assert!(same_bytes(&disk, &other), "nbdcopy writes the disk");
    stage.drained("web");
    assert!(
        same_bytes(&stage.copy_image("web", "latest", "image.raw"), &other),
        "the image at B is the same"
    );
}

#[test]
fn fio_verifies_what_it_wrote_and_the_other_side_gets_the_same() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 64 << 20);
    let socket = stage.protect("web", "web", &disk);
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri=nbd+unix:///vda?socket={socket}"),
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--iodepth=16",
            "--size=64M",
            "--io_size=48M",
            "--verify=crc32c",
            "--verify_fatal=1",
            // Else it leaves a file of its own in the folder the tests run in.
            "--verify_state_save=0",
            "--randrepeat=0",
            "--minimal",
        ],
    );
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    assert_eq!(stage.a.unannounced(&[]).unwrap(), Vec::<String>::new());
    assert_eq!(stage.b.unannounced(&[]).unwrap(), Vec::<String>::new());
}

#[test]
fn requests_that_cannot_be_served_are_answered_as_the_protocol_says() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 96 << 20);
    let socket = stage.protect("web", "web", &disk);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/end_to_end/nbd_errors.py");
    // Debian's own Python, which Debian's libnbd is for, whatever other one there may be.
    let output = Command::new("/usr/bin/python3").arg(script).env("SOCKET", &socket).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("all as the protocol says"), "{out}{err}");
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

#[test]
fn qemu_img_compares_maps_and_writes_and_the_other_side_gets_the_same() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 48 << 20);
    let socket = stage.protect("web", "web", &disk);
    let uri = format!("nbd+unix:///vda?socket={socket}");
    let copy = stage.path("copy.raw");
    std::fs::copy(&disk, &copy).unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &copy.display().to_string()]);
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
    assert!(map.contains("\"zero\": true") && map.contains("\"data\": true"), "{map}");
    run(
        "qemu-img",
        &["bench", "-w", "-f", "raw", "-d", "16", "-s", "4096", "-c", "2000", "--pattern=77", &uri],
    );
    stage.drained("web");
    let context =
        format!("driver=nbd,server.type=unix,server.path={socket},export=vda,x-dirty-bitmap=holdfast:unsent");
    let unsent = run("qemu-img", &["map", "--output=json", "--image-opts", &context]);
    // As QEMU shows the bits of another context: what is set counts as no data.
    assert!(
        unsent.contains("\"data\": true") && !unsent.contains("\"data\": false"),
        "all is sent: {unsent}"
    );
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

#[test]
fn a_disk_is_served_over_tcp_behind_tls_and_not_without() {
    let mut stage = Stage::set();
    let port = lab::free_port().unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.configure(&format!("[nbd]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    stage.a.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    let pki = stage.a.pki();
    issue(&stage.a, &["--client", "nbd", "--disk", "web/vda"]);
    let credentials = stage.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    for (from, to) in
        [("ca.pem", "ca-cert.pem"), ("nbd.pem", "client-cert.pem"), ("nbd.key", "client-key.pem")]
    {
        std::fs::copy(pki.join(from), credentials.join(to)).unwrap();
    }
    let other = stage.disk("other.raw", 8 << 20);
    let mut bytes = std::fs::read(&other).unwrap();
    bytes.reverse();
    std::fs::write(&other, bytes).unwrap();
    let tls = format!("nbds://127.0.0.1:{port}/web/vda?tls-certificates={}", credentials.display());
    run("nbdcopy", &["--flush", &other.display().to_string(), &tls]);
    assert!(same_bytes(&disk, &other));
    let list = run(
        "nbdinfo",
        &["--list", &format!("nbds://127.0.0.1:{port}/?tls-certificates={}", credentials.display())],
    );
    assert!(list.contains("export=\"web/vda\""), "{list}");
    let plain = Command::new("nbdinfo").arg(format!("nbd://127.0.0.1:{port}/web/vda")).output().unwrap();
    assert!(!plain.status.success(), "served without TLS");
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &other));
    lab::wait_until("the clients' end", crate::stage::SOON, || {
        Ok((stage.a.protected("web")?["clients"] == 0).then_some(()))
    })
    .unwrap();
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
}

#[test]
fn the_kernels_own_client_in_a_guest_writes_trims_and_flushes() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let files = GuestFiles::find().unwrap().with_nbd_client();
    let mut guest = Guest::start(&GuestOptions {
        files: &files,
        work: Work::Burst,
        disk: GuestDisk::GuestKernel { socket },
        folder: stage.folder.path().to_path_buf(),
        name: "guest",
        more: &[],
    })
    .unwrap();
    guest.console.wait_for("FSCK CLEAN", Duration::from_secs(120)).unwrap();
    guest.console.wait_for("LOAD 8", Duration::from_secs(120)).unwrap();
    guest.console.wait_for("DONE", Duration::from_secs(60)).unwrap();
    stage.drained("web");
    let image = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&image, &disk));
    assert!(check_file_system(&image).unwrap());
}

#[test]
fn a_newer_qemu_runs_a_guest_on_the_agents_socket() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let qemu = Qemu::ten().unwrap();
    let version = qemu.command("qemu-system-x86_64").arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains("version 10."), "{version}");
    let files = GuestFiles::find().unwrap();
    let options = GuestOptions {
        files: &files,
        work: Work::Burst,
        disk: GuestDisk::nbd(&socket, "vda"),
        folder: stage.folder.path().to_path_buf(),
        name: "guest",
        more: &[],
    };
    let mut guest = Guest::start_on(&qemu, &options).unwrap();
    guest.console.wait_for("FSCK CLEAN", Duration::from_secs(120)).unwrap();
    guest.console.wait_for("DONE", Duration::from_secs(120)).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}
