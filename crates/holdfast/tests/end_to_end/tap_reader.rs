//! What is read of a VM under the tap is read from its own QEMU, and from nobody who takes its socket's place.

use crate::stage::{SOON, Stage, same_bytes, wait_for_listener};
use crate::tap::{ask, protect};
use crate::tap_identity::Unbooted;
use lab::wait_until;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A server of other contents, which puts itself where QEMU listens, again and again.
struct Impostor {
    server: Child,
    ended: Arc<AtomicBool>,
    replacing: Option<JoinHandle<()>>,
}

impl Impostor {
    fn start(image: &Path, socket: PathBuf, place: PathBuf) -> Self {
        let mut server = Command::new("qemu-nbd");
        server.args(["--persistent", "--shared=0", "--read-only", "--format=raw", "--export-name=vda"]);
        let server = server.arg("--socket").arg(&socket).arg(image).spawn().unwrap();
        wait_for_listener(&socket);
        let ended = Arc::new(AtomicBool::new(false));
        let ours = std::fs::metadata(&socket).unwrap().ino();
        let is_over = ended.clone();
        let replacing = std::thread::spawn(move || {
            // Without a rest: the VM is connected to a moment after it listens.
            while !is_over.load(Ordering::SeqCst) {
                let theirs = std::fs::metadata(&place).is_ok_and(|facts| facts.ino() != ours);
                let link = socket.with_extension("link");
                if theirs && std::fs::hard_link(&socket, &link).is_ok() {
                    std::fs::rename(&link, &place).unwrap();
                }
            }
        });
        Self { server, ended, replacing: Some(replacing) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.replacing.take().unwrap().join().unwrap();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn nothing_is_read_from_a_process_that_is_not_the_vm() {
    let stage = Stage::set();
    let (web, other) = (stage.disk("web.raw", 16 << 20), stage.path("other.raw"));
    std::fs::write(&other, vec![7; 16 << 20]).unwrap();
    let vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let place = stage.a.folder.join("run/taps/web");
    let impostor = Impostor::start(&other, stage.path("impostor.sock"), place);
    let said = format!("(qemu-nbd) listens at {}", stage.a.folder.join("run/taps/web").display());
    // It may come too late once or twice.
    wait_until("an alert", SOON, || {
        // A disk that was just read is still open.
        if ask(&stage, "query-block-exports", &json!({})) == json!([]) {
            stage.a.ask(&["vm", "resync", "web"])?;
        }
        Ok(stage.a.ask(&["status"])?["alerts"].to_string().contains(&said).then_some(()))
    })
    .unwrap();
    let wanted = format!("where process {} should", vm.0.id());
    assert!(stage.a.ask(&["status"]).unwrap()["alerts"].to_string().contains(&wanted));
    drop(impostor);
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    wait_until("the end of the alert", SOON, || {
        Ok((!stage.a.ask(&["status"])?["alerts"].to_string().contains("listens at")).then_some(()))
    })
    .unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &web));
}
