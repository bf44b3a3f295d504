//! Protections that begin, fail and end at the same moment.
#![allow(clippy::unwrap_used, reason = "a test")]

use agent::Agent;
use agent::config::Config;
use agent::pki::Pki;
use api::{Asking, Begun, Client, ClientError, Endpoint, ProtectDisk, ProtectRequest, ProtectSettings};
use std::collections::BTreeSet;
use std::path::Path;

const ROUNDS: usize = 40;

async fn start(folder: &Path) -> Agent {
    Pki::new(folder.join("pki")).init("here").unwrap();
    Pki::new(folder.join("pki")).issue("one", "agent", &["127.0.0.1".to_owned()], 30).unwrap();
    let text = "site = \"here\"\nagent = \"one\"\nstate_dir = \"state\"\nrun_dir = \"state/run\"\npki_dir = \"pki\"\n";
    std::fs::write(folder.join("agent.toml"), text).unwrap();
    Agent::start(Config::load(&folder.join("agent.toml")).unwrap()).await.unwrap()
}

/// Nobody listens at the peer: what is tested ends before anything is sent.
fn request(folder: &Path, name: &str, image: &str) -> ProtectRequest {
    ProtectRequest {
        name: name.into(),
        group: Some("shop".into()),
        coordinator: None,
        qmp: None,
        format: None,
        shared: false,
        ublk: false,
        disks: vec![ProtectDisk { name: "vda".into(), path: folder.join(image).display().to_string() }],
        peer: "127.0.0.1:1".into(),
        definition: None,
        settings: ProtectSettings::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_of_one_name_one_is_protected_and_one_that_fails_takes_no_group_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for image in ["web-1.raw", "web-2.raw", "db.raw"] {
        std::fs::File::create(folder.join(image)).unwrap().set_len(1 << 20).unwrap();
    }
    let agent = start(folder).await;
    let client = || Client::new(Endpoint::Unix(folder.join("state/run/agent.sock")));
    for _ in 0..ROUNDS {
        // The last ones have no image.
        let wanted = [
            ("web", "web-1.raw"),
            ("gone-1", "none"),
            ("web", "web-2.raw"),
            ("gone-2", "none"),
            ("db", "db.raw"),
        ];
        let asked = wanted.map(|(name, image)| {
            let (client, request) = (client(), request(folder, name, image));
            tokio::spawn(async move { is_done(client.protect(&request, &until_its_end()).await) })
        });
        let mut done = Vec::new();
        for asked in asked {
            done.push(asked.await.unwrap());
        }
        assert_eq!(done[0] as u32 + done[2] as u32, 1, "two of one name: {done:?}");
        assert_eq!((done[1], done[3], done[4]), (false, false, true));
        let groups = client().groups().await.unwrap();
        assert_eq!(groups.len(), 1);
        let members: BTreeSet<&str> = groups[0].vms.iter().map(String::as_str).collect();
        assert_eq!(members, BTreeSet::from(["web", "db"]), "who joined while others failed");

        let ended = ["web", "db"].map(|name| {
            let client = client();
            tokio::spawn(async move { is_done(client.unprotect(name, &until_its_end()).await) })
        });
        for ended in ended {
            assert!(ended.await.unwrap());
        }
        assert!(client().status().await.unwrap().protected.is_empty());
    }
    tokio::task::block_in_place(|| agent.stop());
}

fn until_its_end() -> Asking {
    Asking { wait_seconds: Some(60), key: None }
}

fn is_done<T>(answer: Result<Begun<T>, ClientError>) -> bool {
    matches!(answer, Ok(Begun::Done(_)))
}
