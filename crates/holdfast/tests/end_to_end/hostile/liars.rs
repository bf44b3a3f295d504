//! A recovery side without manners, for VMs that are protected to it: each VM has one of its own, and all go on side by side,
//! for an agent waits before it comes again.

use super::peer::{Heard, Peer, Said, server};
use super::words::{About, Word, kind, words};
use super::{Before, Coverage, Form, own_vm, with_a_third_site};
use lab::{NbdClient, Site, wait_until};
use replication::wire::{Ack, Compare, Compared, Hello, Message, Welcome};
use rustls::ServerConfig;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use types::{Epoch, WriteSeq};

const LIARS: usize = 16;
const STATES: [&str; 4] = ["greeting", "welcomed", "asked", "journaling"];
/// So many connections may end on the way to a state: an agent takes nobody at his word for ever.
const WAYS_MAX: usize = 20;
/// So many messages may come before the one that is waited for.
const MESSAGES_MAX: usize = 2_000;

/// One that listens, and whom one VM comes to.
struct Liar {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    vm: String,
    /// The newest that was promised to have, which a later greeting must be told again.
    durable: WriteSeq,
    about: About,
    /// What came and went since it last was in a state, the newest last: for whoever has to find out why it is in none.
    seen: Vec<String>,
}

impl Liar {
    /// A connection in a state. The agent must let it come to that in the end.
    fn get_to(&mut self, agent: &Site, state: &str) -> (Peer, Hello) {
        self.seen.clear();
        for _ in 0..WAYS_MAX {
            if let Some(found) = self.in_state(agent, state) {
                return found;
            }
            self.seen.push("so that connection came to its end".into());
        }
        self.give_up(agent, &format!("{WAYS_MAX} connections ended on the way to {state:?}"))
    }

    /// # Panics
    /// Always: with all that is known.
    fn give_up(&self, agent: &Site, why: &str) -> ! {
        let seen = self.seen.join("\n  ");
        panic!("{}: {why}\n  {seen}\n{:#?}\n{}", self.vm, agent.protected(&self.vm), agent.end_of_log());
    }

    /// The next connection and its greeting. The agent must come: a VM that comes no more has been harmed.
    fn next(&mut self, agent: &Site) -> (Peer, Hello) {
        for _ in 0..50 {
            let stream =
                wait_until(&format!("a connection for {}", self.vm), Duration::from_secs(30), || match self
                    .listener
                    .accept()
                {
                    Ok((stream, _)) => Ok(Some(stream)),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                    Err(error) => Err(error.into()),
                });
            let stream = stream.unwrap_or_else(|why| {
                panic!("{why:#}: {:#?}\n{}", agent.protected(&self.vm), agent.end_of_log());
            });
            stream.set_nonblocking(false).unwrap();
            let Some(mut peer) = Peer::accept(&self.config, stream) else { continue };
            let hello = peer.hear_until(|message| match message {
                Message::Hello(hello) => Some(*hello),
                _ => None,
            });
            if let Some(hello) = hello {
                let Hello { epoch, incarnation, acked, last_seq, .. } = &hello;
                self.seen.push(format!("it greets: {epoch:?}, {incarnation:?}, {acked} of {last_seq}"));
                return (peer, hello);
            }
        }
        panic!("{} does not greet", self.vm);
    }

    fn welcome(&self, hello: &Hello, must_compare: bool) -> Welcome {
        let known = !must_compare && self.durable > WriteSeq::ZERO;
        Welcome {
            epoch: hello.epoch,
            durable: self.durable,
            incarnation: known.then_some(hello.incarnation),
            must_compare,
            seeded: false,
            missing: vec![],
        }
    }

    /// A connection in a state; none where it ended on the way there.
    fn in_state(&mut self, agent: &Site, state: &str) -> Option<(Peer, Hello)> {
        let (mut peer, hello) = self.next(agent);
        if state == "greeting" {
            return Some((peer, hello));
        }
        let welcome = self.welcome(&hello, state == "asked");
        self.seen.push(format!("it is told {welcome:?}"));
        peer.tell(&Message::Welcome(welcome));
        match state {
            "welcomed" => {}
            "asked" => self.until_asked(agent, &mut peer)?,
            _ => self.until_journaling(agent, &mut peer)?,
        }
        Some((peer, hello))
    }

    /// Acknowledges whatever comes until blocks are to be compared. What is marked from a sync before is copied and not
    /// compared, which may be all of the disk: then the next connection is asked.
    fn until_asked(&mut self, agent: &Site, peer: &mut Peer) -> Option<()> {
        self.take(agent, peer, |message| matches!(message, Message::Compare(_)))
    }

    /// Acknowledges whatever comes, until nothing does but heartbeats.
    fn until_journaling(&mut self, agent: &Site, peer: &mut Peer) -> Option<()> {
        self.take(agent, peer, |message| matches!(message, Message::Heartbeat))
    }

    fn take(&mut self, agent: &Site, peer: &mut Peer, is_wanted: impl Fn(&Message) -> bool) -> Option<()> {
        for _ in 0..MESSAGES_MAX {
            let Heard::Message(message) = peer.hear() else { return None };
            let wanted = is_wanted(&message);
            self.seen.push(format!("it said {}", kind(&message)));
            match message {
                Message::Batch(bytes) => {
                    let last = batch::Batch::parse(bytes.joined()).unwrap().header().last_seq;
                    self.durable = self.durable.max(last);
                    peer.tell(&Message::Ack(ack(self.durable)));
                }
                Message::Compare(Compare { disk, first, .. }) if !wanted => {
                    peer.tell(&Message::Compared(Compared { disk, first, differs: 0 }));
                }
                // It has nothing else to say.
                Message::Heartbeat if !wanted => return None,
                _ => {}
            }
            if wanted {
                return Some(());
            }
        }
        self.give_up(agent, &format!("{MESSAGES_MAX} messages came, and never the one that is waited for"))
    }
}

fn ack(durable: WriteSeq) -> Ack {
    Ack {
        durable,
        watermark: durable,
        applied: durable,
        journal_bytes: 1,
        history_seconds: 1,
        projected_history_seconds: None,
    }
}

/// Words after which the agent waits for seconds: it is told to come at once.
fn is_waited_after(word: &Word) -> bool {
    matches!(word.kind, Some("refuse" | "welcome" | "send-again"))
}

#[test]
#[ignore = "suite: joints"]
fn a_recovery_side_without_manners_costs_the_protected_side_only_what_is_its_own() {
    recovery_side(Form::Short);
}

/// Recovery sides without manners, towards a protected side.
pub(crate) fn recovery_side(form: Form) {
    let (mut stage, site, socket) = with_a_third_site();
    let before = Before::of(&stage);
    let config = server(&site.pki());
    let mut said = Coverage::default();
    let template = super::about(&stage, 1, WriteSeq::from_raw(9));
    let mut cases: Vec<(&'static str, usize)> = Vec::new();
    for (number, state) in (4..).zip(STATES) {
        cases.extend(form.places(&words(&template), number).into_iter().map(|place| (state, place)));
    }
    let liars: Vec<Liar> = (0..LIARS)
        .map(|number| protect(&stage.a, &stage.path("liars"), number, &config, &template))
        .collect();
    let agent = &stage.a;
    let cases = &cases;
    let heard: Vec<(&'static str, Word)> = std::thread::scope(|scope| {
        let threads: Vec<_> = liars
            .into_iter()
            .enumerate()
            .map(|(number, liar)| {
                scope.spawn(move || lie(liar, agent, cases.iter().skip(number).step_by(LIARS)))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (state, word) in &heard {
        said.note(state, word);
    }
    said.is_whole(&STATES);
    before.is_as_it_was(&mut stage, &socket);
}

/// Protects a VM to a liar of its own.
fn protect(agent: &Site, folder: &Path, number: usize, config: &Arc<ServerConfig>, template: &About) -> Liar {
    std::fs::create_dir_all(folder).unwrap();
    let port = lab::free_port().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (vm, disk) = (format!("liar-{number}"), folder.join(format!("{number}.raw")));
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let (disk, peer) = (format!("vda={}", disk.display()), format!("127.0.0.1:{port}"));
    agent.ask(&["vm", "protect", &vm, "--disk", &disk, "--peer", &peer]).unwrap();
    Liar {
        listener,
        config: config.clone(),
        vm,
        durable: WriteSeq::ZERO,
        about: template.clone(),
        seen: Vec::new(),
    }
}

/// Says each word in its state, and is honest at last: the VM's guest can write, and its stream goes on.
fn lie<'a>(
    mut liar: Liar,
    agent: &Site,
    cases: impl Iterator<Item = &'a (&'static str, usize)>,
) -> Vec<(&'static str, Word)> {
    let mut done = Vec::new();
    for (state, turn) in cases {
        let (mut peer, hello) = liar.get_to(agent, state);
        let hello = Hello { artifacts: own_vm(0).artifacts, ..hello };
        liar.about = About { hello, durable: liar.durable, ..liar.about };
        let word = words(&liar.about).swap_remove(*turn);
        peer.say(&word.said);
        if let Said::Numbered(_) = word.said {
            peer.tell(&Message::Heartbeat);
        }
        std::thread::sleep(Duration::from_millis(5));
        drop(peer);
        if is_waited_after(&word) {
            agent.ask(&["vm", "pause", &liar.vm]).unwrap();
            agent.ask(&["vm", "resume", &liar.vm]).unwrap();
        }
        done.push((*state, word));
    }
    ends_well(&mut liar, agent);
    done
}

fn ends_well(liar: &mut Liar, agent: &Site) {
    let row = agent.protected(&liar.vm).unwrap();
    assert!(row["epoch"].as_u64() < Some(Epoch::GREETING_MAX.0), "{row:#}");
    let written = NbdClient::connect(row["socket"].as_str().unwrap(), "vda").unwrap().write(0, &[8; 4096]);
    written.unwrap_or_else(|why| panic!("the guest of {} is told {why:#}", liar.vm));
    liar.seen.clear();
    for _ in 0..WAYS_MAX {
        // As one that has nothing: what the VM has is sent anew.
        let (mut peer, hello) = liar.next(agent);
        liar.durable = WriteSeq::ZERO;
        peer.tell(&Message::Welcome(Welcome { epoch: hello.epoch, ..liar.welcome(&hello, false) }));
        if liar.until_journaling(agent, &mut peer).is_none() {
            continue;
        }
        let state = agent.wait_for_state(&liar.vm, "journaling", Duration::from_secs(10));
        state.unwrap_or_else(|why| panic!("{why:#}"));
        return;
    }
    liar.give_up(agent, "an honest one is not served")
}
