//! Checkpoints of a group whose VMs are protected on two hosts, with a writer whose writes depend on each
//! other across them: three agents in this process, TLS between them.
#![allow(clippy::unwrap_used, reason = "a test")]

use agent::Agent;
use agent::config::Config;
use agent::pki::Pki;
use api::{Asking, Client, Endpoint, ProtectDisk, ProtectRequest, ProtectSettings};
use batch::Kind;
use bytes::Bytes;
use journal::{CheckpointQuery, FsStore, Image, Journal, Mode, Settings, Thinning};
use splitter::Capture;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use types::{ByteRange, DiskIndex};

const DISK_BYTES: u64 = 1 << 20;
const CHECKPOINTS: usize = 2000;
const TRIES: usize = 600;

struct Stage {
    folder: PathBuf,
    ports: BTreeMap<&'static str, u16>,
    agents: BTreeMap<&'static str, Running>,
}

/// An agent with a runtime of its own, so that all it does ends with it, as with a process.
struct Running {
    agent: Agent,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let entered = runtime.enter();
            self.agent.stop();
            drop(entered);
            runtime.shutdown_background();
        }
    }
}

impl Stage {
    /// Hosts `one` and `two` of the site `here`, and `far` of the site `there`.
    async fn set(folder: &Path) -> Self {
        let far = folder.join("far/pki");
        Pki::new(&far).init("there").unwrap();
        let here = folder.join("here");
        Pki::new(&here).init("here").unwrap();
        Pki::new(&here).trust("there", &far.join("ca.pem")).unwrap();
        Pki::new(&far).trust("here", &here.join("ca.pem")).unwrap();
        let mut stage =
            Self { folder: folder.to_path_buf(), ports: BTreeMap::new(), agents: BTreeMap::new() };
        for (name, site) in [("one", "here"), ("two", "here"), ("far", "there")] {
            let pki = folder.join(name).join("pki");
            if site == "here" {
                copy_folder(&here, &pki);
            }
            Pki::new(&pki).issue(name, "agent", &["127.0.0.1".to_owned()], 30).unwrap();
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            stage.ports.insert(name, port);
            let text = format!(
                "site = \"{site}\"\nagent = \"{name}\"\nstate_dir = \"state\"\nrun_dir = \"state/run\"\npki_dir = \"pki\"\n\
                 [stream]\nlisten = \"127.0.0.1:{port}\"\n"
            );
            std::fs::write(folder.join(name).join("agent.toml"), text).unwrap();
            stage.start(name).await;
        }
        stage
    }

    async fn start(&mut self, name: &'static str) {
        for _ in 0..TRIES {
            let config = Config::load(&self.folder.join(name).join("agent.toml")).unwrap();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
            match runtime.spawn(Agent::start(config)).await.unwrap() {
                Ok(agent) => {
                    self.agents.insert(name, Running { agent, runtime: Some(runtime) });
                    return;
                }
                // One that was stopped just now still lets go of its folder.
                Err(_) => runtime.shutdown_background(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("agent {name} does not start");
    }

    fn client(&self, name: &str) -> Client {
        Client::new(Endpoint::Unix(self.folder.join(name).join("state/run/agent.sock")))
    }

    fn address(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.ports[name])
    }

    async fn protect(&self, host: &str, vm: &str, coordinator: Option<String>) -> Arc<Capture> {
        let joins = coordinator.is_some();
        let path = self.folder.join(format!("{vm}.raw"));
        std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
        let request = ProtectRequest {
            name: vm.into(),
            group: Some("shop".into()),
            coordinator,
            qmp: None,
            format: None,
            shared: false,
            ublk: false,
            disks: vec![ProtectDisk { name: "vda".into(), path: path.display().to_string() }],
            peer: self.address("far"),
            definition: None,
            settings: ProtectSettings { checkpoint_interval_seconds: Some(60), ..ProtectSettings::default() },
        };
        let client = self.client(host);
        client.protect(&request, &until_its_end()).await.unwrap();
        for _ in 0..TRIES {
            // A host is one of the group's once its first VM has all of its disks at the other side.
            let hosts =
                if joins { self.client("one").groups().await.unwrap()[0].hosts.clone() } else { vec![] };
            let is_in = !joins || hosts.contains(&format!("{host}.here"));
            if is_in && client.protected_vm(vm).await.unwrap().state == "journaling" {
                return self.agents[host].agent.capture(vm).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{vm} does not come to journal");
    }

    /// Takes a checkpoint of the group, once all its hosts are connected and the machine is not too busy for it.
    async fn tag(&self, words: &str) -> Result<api::Checkpoint, api::ClientError> {
        let client = self.client("one");
        let mut last = client.tag("shop", words).await;
        for _ in 0..TRIES {
            match &last {
                Err(api::ClientError::Refused(problem))
                    if ["not connected", "did not answer"].iter().any(|why| problem.detail.contains(why)) => {
                }
                _ => return last,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = client.tag("shop", words).await;
        }
        last
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for row in std::fs::read_dir(from).unwrap() {
        let row = row.unwrap();
        if row.file_type().unwrap().is_dir() {
            copy_folder(&row.path(), &to.join(row.file_name()));
        } else {
            std::fs::copy(row.path(), to.join(row.file_name())).unwrap();
        }
    }
}

/// A guest's write of a number, acknowledged when this returns.
fn write(capture: &Capture, number: u64) {
    let mut sector = vec![0; 512];
    sector[..8].copy_from_slice(&number.to_le_bytes());
    let range = ByteRange::new(0, 512);
    capture.begin_write(DiskIndex(0), range).unwrap();
    let seq = capture.commit(DiskIndex(0), Kind::Write, range, &Bytes::from(sector));
    capture.hold(seq);
}

/// The number on a VM's disk at each of its checkpoints, by the words it was tagged with.
fn numbers(folder: &Path) -> BTreeMap<String, u64> {
    let settings = Settings {
        history: Duration::from_secs(86_400),
        bytes_soft: 0,
        bytes_hard: 0,
        segment_bytes: 256 << 20,
        mode: Mode::RollForward,
        thinning: Thinning { all: Duration::from_secs(86_400), minutely: Duration::from_secs(604_800) },
        tagged_history: Duration::ZERO,
        let_go: None,
        is_locked: false,
    };
    let journal =
        Arc::new(Journal::open(Arc::new(FsStore::open(folder).unwrap()), settings).unwrap().journal);
    let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    let mut found = BTreeMap::new();
    for facts in journal.checkpoints(&query).rows {
        let image = Image::open(journal.clone(), facts.checkpoint.cut, None, [0; 16]).unwrap();
        let mut sector = [0; 512];
        image.read_at(DiskIndex(0), 0, &mut sector).unwrap();
        found.insert(facts.checkpoint.tag, u64::from_le_bytes(sector[..8].try_into().unwrap()));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_checkpoint_has_a_write_without_the_one_it_depends_on_at_another_host() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::set(folder.path()).await;
    let shop = stage.protect("one", "db", None).await;
    let web = stage.protect("two", "web", Some(stage.address("one"))).await;
    stage.tag("first").await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let stop = stop.clone();
        // Each number is written on the first host, and once that is acknowledged on the second.
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                write(&shop, number);
                write(&web, number);
                // A guest has a disk to wait for; this one would outrun any stream.
                for capture in [&shop, &web] {
                    let status = capture.status();
                    if number.is_multiple_of(64) && status.buffered_bytes * 2 > status.buffer_bytes_max {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            number
        })
    };
    let (mut taken, mut given_up) = (Vec::new(), 0);
    while taken.len() < CHECKPOINTS {
        let words = format!("tag {}", taken.len() + given_up);
        match stage.tag(&words).await {
            Ok(_) => taken.push(words),
            // The machine was busy for longer than the guests may be held.
            Err(_) if given_up < CHECKPOINTS / 2 => given_up += 1,
            Err(error) => panic!("{error}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let written = tokio::task::spawn_blocking(move || writer.join().unwrap()).await.unwrap();
    let group = stage.client("one").groups().await.unwrap().remove(0);
    println!(
        "{written} numbers, {} cuts, {} given up, longest hold {:.6} s",
        group.cuts_across_hosts, group.cuts_given_up, group.hold_longest_seconds
    );
    assert_eq!(group.hosts, ["two.here"]);

    wait_until_durable(&stage, "one", "db").await;
    wait_until_durable(&stage, "two", "web").await;
    let vms = stage.client("far").status().await.unwrap().recovered;
    drop(stage.agents);
    let ids: BTreeMap<String, String> = vms.into_iter().map(|vm| (vm.name, vm.id)).collect();
    let copy = folder.path().join("copy");
    let kept = |vm: &str| {
        // The agent of this process still holds the folder's lock: a copy can be opened.
        let to = copy.join(vm);
        copy_folder(&folder.path().join("far/state/journals").join(&ids[vm]), &to);
        numbers(&to)
    };
    let (db, web) = (kept("db"), kept("web"));
    // A stream that overflowed between the cut and its mark has none: such a checkpoint is not complete.
    taken.retain(|words| db.contains_key(words) && web.contains_key(words));
    assert!(taken.len() * 2 > CHECKPOINTS, "{} checkpoints are complete", taken.len());
    for words in &taken {
        assert!(
            web[words] == db[words] || web[words] + 1 == db[words],
            "{words}: {} on the first host, {} on the second",
            db[words],
            web[words]
        );
    }
    let between = taken.iter().filter(|words| web[*words] + 1 == db[*words]).count();
    assert!(between > 0, "no cut ever fell between the two writes, which proves little");
}

async fn wait_until_durable(stage: &Stage, host: &str, vm: &str) {
    for _ in 0..TRIES {
        if stage.client(host).protected_vm(vm).await.unwrap().buffer_bytes == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the stream of {vm} does not drain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_is_away_costs_the_checkpoint_and_one_that_leaves_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::set(folder.path()).await;
    stage.protect("one", "db", None).await;
    stage.protect("two", "web", Some(stage.address("one"))).await;
    stage.tag("with both").await.unwrap();
    let there = stage.client("two").tag("shop", "there").await.unwrap_err();
    assert!(there.to_string().contains("taken by its coordinator"), "{there}");
    stage.client("two").unprotect("web", &until_its_end()).await.unwrap();
    let mut taken = stage.tag("with one").await;
    for _ in 0..TRIES {
        if taken.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        taken = stage.client("one").tag("shop", "with one").await;
    }
    taken.unwrap();
    assert_eq!(stage.client("one").groups().await.unwrap()[0].hosts, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_will_not_come_back_is_forgotten_and_may_join_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::set(folder.path()).await;
    stage.protect("one", "db", None).await;
    stage.protect("two", "web", Some(stage.address("one"))).await;
    stage.tag("with both").await.unwrap();
    let one = stage.client("one");
    let refused = one.remove_host("shop", "two.here").await.unwrap_err();
    assert!(refused.to_string().contains("is connected"), "{refused}");
    let refused = one.remove_host("shop", "three.here").await.unwrap_err();
    assert!(refused.to_string().contains("no host \"three.here\""), "{refused}");

    stage.agents.remove("two");
    let mut removed = one.remove_host("shop", "two.here").await;
    for _ in 0..TRIES {
        if removed.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        removed = one.remove_host("shop", "two.here").await;
    }
    removed.unwrap();
    stage.tag("without").await.unwrap();

    // It is not known after a restart either, and joins again when it is back after all.
    stage.agents.remove("one");
    stage.start("one").await;
    assert_eq!(one.groups().await.unwrap()[0].hosts, Vec::<String>::new());
    stage.start("two").await;
    for _ in 0..TRIES {
        if one.groups().await.unwrap()[0].hosts == ["two.here"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the host does not join again");
}

fn until_its_end() -> Asking {
    Asking { wait_seconds: Some(60), key: None }
}
