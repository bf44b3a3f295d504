//! A peer with a valid certificate and no manners, against real agents: it says each message in each state with each field
//! at its edges. What it may cost is what is its own: both agents go on, and the VM of another site keeps its stream and
//! its history, byte for byte.

mod batches;
pub(crate) mod liars;
mod peer;
mod words;

use crate::stage::{HOLDFAST, SOON, Stage, refused, same_bytes};
use batches::{batches, good};
use lab::{NbdClient, Site, wait_until};
use peer::{Heard, Peer, Said};
use replication::wire::{ArtifactHash, ArtifactOffer, CutMessage, Hello, Join, Message};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use types::{DiskSpec, Epoch, GroupId, Incarnation, VmId, WallTime, WriteSeq};
use words::{About, KINDS, Word, words};

/// The honest VM's state before, and what must be so after.
struct Before {
    processes: [Option<u32>; 2],
    runs: [Value; 2],
    memory: [u64; 2],
    checkpoints: BTreeSet<String>,
    first: String,
}

/// What an agent may ever have taken more than before: all of what these lies are about would be hundreds of times that.
const MEMORY_MORE_MAX: u64 = 256 << 20;

/// How much of all that can be said is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    /// Two words of each kind in each state, and others in another state.
    Short,
}

impl Form {
    /// The places of the words that are said in a state, which is told by its number.
    fn places(self, words: &[Word], state: usize) -> Vec<usize> {
        if self == Self::Whole {
            return (0..words.len()).collect();
        }
        let mut of_kinds: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (place, word) in words.iter().enumerate() {
            of_kinds.entry(word.kind).or_default().push(place);
        }
        let two = |places: Vec<usize>| {
            let (len, first) = (places.len(), state * 7);
            [first, first + len.div_ceil(2)].map(|at| places[at % len])
        };
        of_kinds.into_values().flat_map(two).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn with_a_third_site() -> (Stage, Site, String) {
    let stage = Stage::set();
    let site = Site::make(Path::new(HOLDFAST), &stage.path("c"), "site-c").unwrap();
    for (one, other) in [(&stage.b, &site), (&site, &stage.b), (&stage.a, &site), (&site, &stage.a)] {
        one.trust(other).unwrap();
    }
    let disk = stage.disk("disk.raw", 2 << 20);
    let socket = stage.protect("web", "web", &disk);
    NbdClient::connect(&socket, "vda").unwrap().write(0, &[1; 4096]).unwrap();
    stage.tag("web", "web", "before");
    stage.drained("web");
    (stage, site, socket)
}

/// The most memory that a process ever had.
fn memory_bytes(pid: Option<u32>) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn checkpoints(stage: &Stage) -> BTreeSet<String> {
    let page = stage.b.ask(&["checkpoint", "list", "--vm", "web"]).unwrap();
    page["checkpoints"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

impl Before {
    fn of(stage: &Stage) -> Self {
        let agents = [&stage.a, &stage.b];
        stage.copy_image("web", "before", "before.image");
        let checkpoints = checkpoints(stage);
        let first = checkpoints.first().unwrap().clone();
        stage.copy_image("web", &first, "first.image");
        Self {
            processes: agents.map(Site::agent_pid),
            runs: agents.map(|agent| agent.ask(&["status"]).unwrap()["run"].clone()),
            memory: agents.map(|agent| memory_bytes(agent.agent_pid())),
            checkpoints,
            first,
        }
    }

    /// Both agents are those of before, and the honest VM has lost nothing.
    fn is_as_it_was(&self, stage: &mut Stage, socket: &str) {
        for agent in [&mut stage.a, &mut stage.b] {
            assert!(agent.agent_runs().unwrap(), "an agent has ended: {}", agent.end_of_log());
        }
        let agents = [&stage.a, &stage.b];
        assert_eq!(agents.map(Site::agent_pid), self.processes);
        assert_eq!(agents.map(|agent| agent.ask(&["status"]).unwrap()["run"].clone()), self.runs);
        let now = agents.map(|agent| memory_bytes(agent.agent_pid()));
        println!("the most memory before and after: {:?}, {now:?}", self.memory);
        for (now, before) in now.into_iter().zip(self.memory) {
            assert!(now < before + MEMORY_MORE_MAX, "{now} bytes at most, {before} before");
        }
        assert!(self.checkpoints.is_subset(&checkpoints(stage)));
        let copy = stage.copy_image("web", "before", "after.image");
        assert!(same_bytes(&copy, &stage.path("before.image")), "the tagged checkpoint is as it was");
        let copy = stage.copy_image("web", &self.first, "after.image");
        assert!(same_bytes(&copy, &stage.path("first.image")), "the first checkpoint is as it was");

        // Its stream goes on.
        NbdClient::connect(socket, "vda").unwrap().write(4096, &[2; 4096]).unwrap();
        stage.drained("web");
        stage.tag("web", "web", "after");
        let copy = stage.copy_image("web", "after", "after.image");
        assert!(same_bytes(&copy, &stage.path("disk.raw")));
        let row = stage.a.protected("web").unwrap();
        assert_eq!((&row["state"], &row["epoch"]), (&"journaling".into(), &1.into()));
    }
}

/// Everything that was said, by state, for each kind must be said in each.
#[derive(Default)]
struct Coverage(BTreeSet<(&'static str, &'static str)>);

impl Coverage {
    fn note(&mut self, state: &'static str, word: &Word) {
        self.0.extend(word.kind.map(|kind| (state, kind)));
    }

    fn is_whole(&self, states: &[&'static str]) {
        for state in states {
            let said: BTreeSet<_> =
                self.0.iter().filter(|(of, _)| of == state).map(|(_, kind)| *kind).collect();
            let unsaid: Vec<_> = KINDS.iter().filter(|kind| !said.contains(*kind)).collect();
            assert!(unsaid.is_empty(), "never said in state {state}: {unsaid:?}");
        }
    }
}

/// A VM of the hostile site; each number is another one.
fn own_vm(number: u64) -> Hello {
    let mut id = [0xc0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Hello {
        speaks: replication::wire::VERSION,
        vm: VmId::from_bytes(id),
        vm_name: format!("own-{number}"),
        group: GroupId::from_bytes(id),
        group_name: format!("group-{number}"),
        epoch: Epoch(1),
        incarnation: Incarnation::from_bytes([4; 16]),
        acked: WriteSeq::ZERO,
        last_seq: WriteSeq::ZERO,
        sent_at: WallTime(1),
        history_seconds: 3600,
        journal_bytes_max: 0,
        rpo_seconds: 60,
        checkpoint_interval_seconds: 5,
        spans_hosts: false,
        disks: vec![DiskSpec { name: "vda".into(), size_bytes: 1 << 20 }],
        definition: String::new(),
        artifacts: vec![ArtifactOffer { name: "kernel".into(), hash: ArtifactHash([6; 32]), size_bytes: 16 }],
    }
}

/// What the hostile site knows of the honest VM: everything that has ever been told.
fn about(stage: &Stage, number: u64, durable: WriteSeq) -> About {
    let row = stage.b.recovered("web").unwrap();
    About {
        hello: own_vm(number),
        durable,
        other_vm: row["id"].as_str().unwrap().parse().unwrap(),
        other_group: row["group_id"].as_str().unwrap().parse().unwrap(),
        other_names: ["web".into(), "web".into()],
    }
}

/// Says hello; how far the journal is, or none where that is refused.
fn greet(peer: &mut Peer, hello: &Hello) -> Option<WriteSeq> {
    peer.tell(&Message::Hello(Box::new(hello.clone())));
    peer.hear_until(|message| match message {
        Message::Welcome(welcome) => Some(Some(welcome.durable)),
        Message::Refuse(_) => Some(None),
        _ => None,
    })
    .flatten()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Streamed {
    /// Greeted, and nothing sent.
    Welcomed,
    /// A batch was acknowledged on this connection.
    Journaling,
}

/// A connection on which a VM's stream has begun; another VM is taken where this one is done with.
fn begin(stage: &Stage, pki: &Path, number: &mut u64, wanted: Streamed) -> (Peer, WriteSeq) {
    loop {
        let mut peer = Peer::connect(pki, stage.b.stream_port);
        let Some(durable) =
            greet(&mut peer, &own_vm(*number)).filter(|durable| *durable < WriteSeq::LIFT_MAX)
        else {
            *number += 1;
            continue;
        };
        if wanted == Streamed::Welcomed {
            return (peer, durable);
        }
        peer.tell(&good(&own_vm(*number), durable));
        assert!(acknowledged(&mut peer, durable.next()), "a good batch of VM {number} is refused");
        return (peer, durable.next());
    }
}

/// Whether everything up to `seq` is acknowledged, before the connection ends.
fn acknowledged(peer: &mut Peer, seq: WriteSeq) -> bool {
    let heard = peer.hear_until(|message| match message {
        Message::Ack(ack) if ack.durable >= seq => Some(true),
        Message::Refuse(_) => Some(false),
        _ => None,
    });
    heard == Some(true)
}

#[test]
#[ignore = "suite: joints"]
fn a_protected_side_without_manners_costs_the_recovery_side_only_what_is_its_own() {
    protected_side(Form::Short);
}

/// A protected side without manners, towards a recovery agent.
pub(crate) fn protected_side(form: Form) {
    let (mut stage, site, socket) = with_a_third_site();
    let before = Before::of(&stage);
    let (pki, port) = (site.pki(), stage.b.stream_port);
    let mut said = Coverage::default();
    let mut number = 1;

    // As the first word. What is asked for next tells that it was heard.
    let all = words(&about(&stage, number, WriteSeq::from_raw(9)));
    for word in form.places(&all, 0).into_iter().map(|place| &all[place]) {
        said.note("first", word);
        let mut peer = Peer::connect(&pki, port);
        peer.say(&word.said);
        end_of(&mut peer, word, &Message::Hello(Box::new(own_vm(0))));
    }
    let states = [("welcomed", Streamed::Welcomed), ("journaling", Streamed::Journaling)];
    for (turn, (state, wanted)) in (1..).zip(states) {
        number += 1;
        let all = |number: u64, durable| {
            let mut all = words(&about(&stage, number, durable));
            all.extend(batches(&own_vm(number), durable));
            all
        };
        let (_, durable) = begin(&stage, &pki, &mut number, wanted);
        for place in form.places(&all(number, durable), turn) {
            // Said as of where the stream is by now.
            let (mut peer, durable) = begin(&stage, &pki, &mut number, wanted);
            let word = all(number, durable).swap_remove(place);
            said.note(state, &word);
            peer.say(&word.said);
            end_of(&mut peer, &word, &good(&own_vm(number), durable));
        }
    }
    said.is_whole(&["first", "welcomed", "journaling"]);
    more_than_is_taken(&stage, &pki, &mut number);
    before.is_as_it_was(&mut stage, &socket);
    let alerts = stage.b.ask(&["alerts"]).unwrap();
    println!("{} VMs of the hostile site, alerts: {alerts:#}", number);
    refused(stage.b.ask(&["image", "open", "--vm", "nobody", "--at", "latest"]), 3, "no journal");
}

/// After a word: what is said then is either answered, or the connection has ended.
fn end_of(peer: &mut Peer, word: &Word, then: &Message) {
    if let Said::Raw(_) = word.said {
        return; // Half of something may be waited for; whoever hangs up has said it all.
    }
    peer.tell(then);
    loop {
        match peer.hear() {
            Heard::End => return,
            Heard::Message(Message::Welcome(_) | Message::Refuse(_) | Message::Left(_) | Message::Ack(_)) => {
                return;
            }
            Heard::Message(_) => {}
        }
    }
}

/// More of what is allowed, at once, than is ever worked on.
fn more_than_is_taken(stage: &Stage, pki: &Path, number: &mut u64) {
    let (mut peer, durable) = begin(stage, pki, number, Streamed::Journaling);
    let about = about(stage, *number, durable);
    let compare = words(&about).into_iter().find(|word| word.name.starts_with("compare 16")).unwrap();
    for _ in 0..300 {
        peer.say(&compare.said);
        peer.tell(&Message::AskClock(WallTime(1)));
        peer.tell(&Message::Heartbeat);
    }
    while let Heard::Message(message) = peer.hear() {
        if let Message::Refuse(_) = message {
            break;
        }
    }
    // Many that greet as one VM, of which each takes the stream over.
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(pki, stage.b.stream_port)).collect();
    for peer in &mut peers {
        peer.tell(&Message::Hello(Box::new(own_vm(*number))));
    }
    drop(peers);
}

#[test]
#[ignore = "suite: joints"]
fn a_host_without_manners_costs_only_the_group_it_has_joined() {
    host(Form::Short);
}

/// A host of the own site that has joined a group, and answers as it likes.
pub(crate) fn host(form: Form) {
    let (mut stage, site, socket) = with_a_third_site();
    let second = stage.a.second_host(&stage.path("a2")).unwrap();
    let span = stage.disk("span.raw", 1 << 20);
    let other = stage.protect("span", "span", &span);
    let before = Before::of(&stage);
    let port = stage.a.stream_port;
    let mut said = Coverage::default();
    let all = words(&about(&stage, 1, WriteSeq::from_raw(9)));
    for word in form.places(&all, 3).into_iter().map(|place| &all[place]) {
        said.note("joined", word);
        let mut peer = Peer::connect(&second.pki(), port);
        let join = |vms| Message::Join(Join { group_name: "span".into(), vms });
        peer.tell(&join(1));
        let joined = peer.hear_until(|message| match message {
            Message::Cut(CutMessage::Joined { .. }) => Some(true),
            Message::Refuse(_) => Some(false),
            _ => None,
        });
        assert_eq!(joined, Some(true), "after {}", word.name);
        peer.say(&word.said);
    }
    said.is_whole(&["joined"]);
    // Another site's agent does not even join.
    let mut peer = Peer::connect(&site.pki(), port);
    peer.tell(&Message::Join(Join { group_name: "span".into(), vms: 1 }));
    assert!(peer.hear_until(|message| matches!(message, Message::Refuse(_)).then_some(())).is_some());

    let mut peer = Peer::connect(&second.pki(), port);
    peer.tell(&Message::Join(Join { group_name: "span".into(), vms: 0 }));
    wait_until("the host has left", SOON, || {
        let groups = stage.a.ask(&["group", "list"])?;
        let row = groups.as_array().unwrap().iter().find(|row| row["name"] == "span").unwrap().clone();
        Ok(row["hosts"].as_array().unwrap().iter().all(|host| host != "agent-2.site-a").then_some(()))
    })
    .unwrap();
    NbdClient::connect(&other, "vda").unwrap().write(0, &[3; 4096]).unwrap();
    stage.tag("span", "span", "after");
    before.is_as_it_was(&mut stage, &socket);
}
