//! Cuts of a group on several hosts, by seed: guests whose writes depend on each other across the hosts, links that are
//! slow or lost, hosts that stand still, sync or start again. The machines are the product's.
//!
//! What is complete is a cut: no write below it depends on one above. A guest is never held for longer than a hold lasts.

use crate::rng::Rng;
use crate::world::NameOnPanic;
use joint::cut::{Ask, CannotBegin, Coordinator, Follower, HostSession, Outcome, Part, Why};
use replication::wire::{CutMessage, CutRefusal};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::mem::take;
use std::time::Duration;
use types::limits::CUT_HOLD_MAX;
use types::{Checkpoint, CheckpointKind, GroupCounter, Monotonic, RunNumber, WallTime, WriteSeq};

const EVENTS: u64 = 4_000;
const MILLISECOND: u64 = 1_000;
/// The coordinator's place among the hosts.
const FIRST: usize = 0;

/// What one seed came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct CutSummary {
    pub writes: u64,
    pub stand: u64,
    pub given_up: u64,
    pub restarts: u64,
    pub links_lost: u64,
}

impl CutSummary {
    pub fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.stand += other.stand;
        self.given_up += other.given_up;
        self.restarts += other.restarts;
        self.links_lost += other.links_lost;
    }
}

impl fmt::Display for CutSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "across hosts: {} writes, {} cuts that stand, {} given up, {} hosts started again, {} links lost",
            self.writes, self.stand, self.given_up, self.restarts, self.links_lost
        )
    }
}

/// Plays one seed.
///
/// # Panics
/// Where something is not as it must be; the seed is said before.
pub fn run_cuts(seed: u64) -> CutSummary {
    let named = NameOnPanic(seed);
    let mut world = World::new(seed);
    world.play();
    world.invariant_what_is_complete_is_a_cut();
    world.invariant_only_what_stands_is_marked();
    world.summary.writes = world.hosts.iter().map(|host| host.part.writes.len() as u64).sum();
    std::mem::forget(named);
    world.summary
}

#[derive(Debug, Default)]
struct Write {
    seq: WriteSeq,
    /// The events at which it began and was acknowledged.
    begun: u64,
    acked: Option<u64>,
}

/// A host's part of the group: its counter, its gate and its guests' writes.
#[derive(Debug)]
struct SimPart {
    /// The run that is on its disk.
    run: RunNumber,
    counter: GroupCounter,
    closed: bool,
    holds: u64,
    writes: Vec<Write>,
    /// Writes that wait at the gate, and since when.
    held: Vec<(usize, u64)>,
    /// Marks in the streams, and those that the recovery side has.
    marks: Vec<WriteSeq>,
    durable: BTreeSet<WriteSeq>,
    syncing: bool,
    /// The number of the event that is played.
    event: u64,
}

#[derive(Debug)]
struct SimHost {
    part: SimPart,
    /// Its part in the cuts, and the connection it has for them; the coordinator has none.
    follower: Follower,
    session: Option<HostSession>,
    /// Nothing but its guests goes on before then.
    stands_still_until: u64,
}

#[derive(Debug)]
enum Event {
    Begin(usize),
    Complete(usize, u64),
    /// A message of the coordinator for a host, or the other way round, over a connection.
    Down(usize, HostSession, CutMessage),
    Up(usize, HostSession, CutMessage),
    Tick(usize),
    Cut,
    Connect(usize),
    Lose(usize),
    /// The coordinator notices that a connection is gone.
    Leave(usize, HostSession),
    StandStill(usize),
    Restart(usize),
    Sync(usize),
}

struct World {
    rng: Rng,
    /// Microseconds.
    now: u64,
    played: u64,
    queue: BinaryHeap<Reverse<(u64, u64, u64)>>,
    events: BTreeMap<u64, Event>,
    scheduled: u64,
    hosts: Vec<SimHost>,
    coordinator: Coordinator,
    /// For when its next tick is set.
    tick_due: Option<Monotonic>,
    /// When the last message of each connection arrives, in either direction.
    arrives: BTreeMap<(HostSession, bool), u64>,
    stand: Vec<WriteSeq>,
    summary: CutSummary,
}

impl SimPart {
    fn new(run: u32) -> Self {
        let run = RunNumber(run);
        Self {
            run,
            counter: GroupCounter::new(WriteSeq::before_run(run)),
            closed: false,
            holds: 0,
            writes: Vec::new(),
            held: Vec::new(),
            marks: Vec::new(),
            durable: BTreeSet::new(),
            syncing: false,
            event: 0,
        }
    }

    fn ack_held(&mut self) {
        for (at, _) in self.held.drain(..) {
            self.writes[at].acked = Some(self.event);
        }
    }

    /// As a stream does: what the counter was lifted to is on the agent's disk before anybody hears of it.
    fn stream(&mut self) {
        self.run = self.run.max(self.counter.last().run());
        self.durable.extend(self.marks.drain(..));
    }

    /// As a gate does: nobody waits for longer than a hold lasts.
    fn ack_long_held(&mut self, now: u64) {
        let due = |since: u64| since + micros(CUT_HOLD_MAX) <= now;
        for (at, _) in self.held.extract_if(.., |(_, since)| due(*since)) {
            self.writes[at].acked = Some(self.event);
        }
    }
}

impl SimHost {
    /// The agent is gone, and comes again: whatever waited is not acknowledged.
    fn restart(&mut self) {
        let (run, event) = (self.part.run.0 + 1, self.part.event);
        let (writes, durable) = (take(&mut self.part.writes), take(&mut self.part.durable));
        self.part = SimPart { writes, durable, event, ..SimPart::new(run) };
        self.follower = Follower::default();
    }
}

impl Part for SimPart {
    fn hold(&mut self) -> u64 {
        self.ack_held();
        self.holds += 1;
        self.closed = true;
        self.holds
    }

    fn release(&mut self, hold: u64) {
        if self.holds == hold {
            self.closed = false;
            self.ack_held();
        }
    }

    fn draw(&mut self, cut: WriteSeq) -> Result<(), CutRefusal> {
        if self.syncing {
            return Err(CutRefusal::Syncing);
        }
        self.counter.draw_exactly(cut).map_err(CutRefusal::Passed)
    }

    fn mark(&mut self, checkpoint: &Checkpoint, _hosts: &[String]) -> Result<(), String> {
        self.marks.push(checkpoint.cut);
        Ok(())
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = 2 + rng.below(3) as usize;
        let host = |run| SimHost {
            part: SimPart::new(run),
            follower: Follower::default(),
            session: None,
            stands_still_until: 0,
        };
        let hosts: Vec<SimHost> = (0..hosts).map(|_| host(1 + rng.below(9) as u32)).collect();
        let mut world = Self {
            rng,
            now: 0,
            played: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            hosts,
            coordinator: Coordinator::default(),
            tick_due: None,
            arrives: BTreeMap::new(),
            stand: Vec::new(),
            summary: CutSummary::default(),
        };
        for host in 0..world.hosts.len() {
            world.after(0, Event::Connect(host));
            for _ in 0..=world.rng.below(3) {
                world.after(0, Event::Begin(host));
            }
        }
        world.after(10 * MILLISECOND, Event::Cut);
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.scheduled += 1;
        let at = self.now + micros;
        self.queue.push(Reverse((at, at, self.scheduled)));
        self.events.insert(self.scheduled, event);
    }

    fn play(&mut self) {
        while self.played < EVENTS {
            let Some(Reverse((at, was, number))) = self.queue.pop() else { return };
            let Some(event) = self.events.remove(&number) else { continue };
            let host = event.host();
            let guests = matches!(event, Event::Begin(_) | Event::Complete(..));
            let ready = self.hosts[host].stands_still_until;
            if at < ready && !guests {
                // Messages in the order in which they came, once it goes on; its own clock rings before or after.
                let place = if matches!(event, Event::Tick(_)) { self.rng.below(2 * was + 1) } else { was };
                self.queue.push(Reverse((ready, place, number)));
                self.events.insert(number, event);
                continue;
            }
            self.now = at;
            self.played += 1;
            for host in &mut self.hosts {
                host.part.event = self.played;
                host.part.ack_long_held(at);
            }
            self.happens(event);
            self.flush();
            if self.rng.one_in(2) {
                let streams = self.rng.below(self.hosts.len() as u64) as usize;
                self.hosts[streams].part.stream();
            }
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Begin(host) => {
                let (begun, takes) = (self.played, self.rng.below(3 * MILLISECOND));
                self.after(takes, Event::Complete(host, begun));
            }
            Event::Complete(host, begun) => {
                self.complete(host, begun);
                let pause = self.rng.below(6 * MILLISECOND);
                self.after(pause, Event::Begin(host));
            }
            Event::Down(host, session, message) => self.down(host, session, message),
            Event::Up(host, session, message) => self.up(host, session, message),
            Event::Tick(host) => self.tick(host),
            Event::Cut => self.cut(),
            Event::Connect(host) => self.connect(host),
            Event::Lose(host) => self.lose(host),
            Event::Leave(host, session) => {
                self.coordinator.leave(&name(host), session, &mut self.hosts[FIRST].part);
            }
            Event::StandStill(host) => {
                self.hosts[host].stands_still_until = self.now + self.rng.below(120 * MILLISECOND);
            }
            Event::Restart(host) => {
                self.lose(host);
                self.hosts[host].restart();
                self.summary.restarts += 1;
            }
            Event::Sync(host) => self.hosts[host].part.syncing ^= true,
        }
    }

    fn complete(&mut self, host: usize, begun: u64) {
        let (now, event) = (self.now, self.played);
        let part = &mut self.hosts[host].part;
        let seq = part.counter.draw();
        let acked = (!part.closed).then_some(event);
        if part.closed {
            part.held.push((part.writes.len(), now));
        }
        part.writes.push(Write { seq, begun, acked });
    }

    fn cut(&mut self) {
        let ask = Ask {
            kind: CheckpointKind::Automatic,
            tag: String::new(),
            taken_at: WallTime::default(),
            members_here: 1,
        };
        let now = self.monotonic();
        let part = &mut self.hosts[FIRST].part;
        let last = part.counter.last();
        match self.coordinator.begin(now, ask, last, part) {
            // A coordinator that stood still may come to it before the last one's end.
            Ok(()) | Err(CannotBegin::Away(_) | CannotBegin::Busy) => {}
        }
        let takes = 5 * MILLISECOND + self.rng.below(120 * MILLISECOND);
        self.after(takes, Event::Cut);
        self.something_goes_wrong();
    }

    fn something_goes_wrong(&mut self) {
        let host = self.rng.below(self.hosts.len() as u64) as usize;
        // Mostly while the cut is being made.
        let within = if self.rng.one_in(4) { 60 } else { 12 };
        let soon = self.rng.below(within * MILLISECOND);
        let event = match self.rng.below(16) {
            0 if host != FIRST => Event::Lose(host),
            1 if host != FIRST => Event::Restart(host),
            2 | 3 => Event::StandStill(host),
            4 | 5 => {
                let ends = soon + self.rng.below(200 * MILLISECOND);
                self.after(ends, Event::Sync(host));
                Event::Sync(host)
            }
            _ => return,
        };
        self.after(soon, event);
    }

    fn connect(&mut self, host: usize) {
        if host == FIRST || self.hosts[host].session.is_some() {
            return;
        }
        let part = &mut self.hosts[FIRST].part;
        let session = self.coordinator.join(&name(host), 1, part).expect("a few hosts");
        self.hosts[host].session = Some(session);
        self.hosts[host].follower.connected();
    }

    fn lose(&mut self, host: usize) {
        if let Some(session) = self.hosts[host].session.take() {
            self.summary.links_lost += 1;
            let (noticed, away) = (self.rng.below(100 * MILLISECOND), self.rng.below(300 * MILLISECOND));
            self.after(noticed, Event::Leave(host, session));
            self.after(away, Event::Connect(host));
        }
    }

    fn down(&mut self, host: usize, session: HostSession, message: CutMessage) {
        let now = self.monotonic();
        let SimHost { part, follower, session: current, .. } = &mut self.hosts[host];
        if *current != Some(session) {
            return;
        }
        let answer = follower.heard(now, message, part).expect("an honest coordinator");
        if let Some(due) = follower.due() {
            let wait = micros(due.since(now));
            self.after(wait, Event::Tick(host));
        }
        if let Some(answer) = answer {
            self.send(session, false, |message| Event::Up(host, session, message), answer);
        }
    }

    fn up(&mut self, host: usize, session: HostSession, message: CutMessage) {
        let CutMessage::Prepared { cut, refused } = message else { panic!("a host says {message:?}") };
        let now = self.monotonic();
        let part = &mut self.hosts[FIRST].part;
        let heard = self.coordinator.on_prepared(now, &name(host), session, (cut, refused), part);
        heard.expect("an honest host");
    }

    fn tick(&mut self, host: usize) {
        let now = self.monotonic();
        if host == FIRST {
            self.coordinator.tick(now, &mut self.hosts[FIRST].part);
            return;
        }
        let SimHost { part, follower, .. } = &mut self.hosts[host];
        follower.tick(now, part);
    }

    /// Sends what the coordinator says, and takes note of what became of its cut.
    fn flush(&mut self) {
        let due = self.coordinator.due();
        if let Some(due) = due.filter(|_| due != self.tick_due) {
            let wait = micros(due.since(self.monotonic()));
            self.after(wait, Event::Tick(FIRST));
        }
        self.tick_due = due;
        for said in self.coordinator.said() {
            let to = self.hosts.iter().position(|host| host.session == Some(said.to));
            if let Some(host) = to {
                self.send(said.to, true, |message| Event::Down(host, said.to, message), said.message);
            }
        }
        match self.coordinator.outcome() {
            Some(Outcome::Stands(checkpoint)) => {
                self.stand.push(checkpoint.cut);
                self.summary.stand += 1;
            }
            Some(Outcome::GivenUp(Why::NotMarked(why))) => panic!("{why}"),
            Some(Outcome::GivenUp(_)) => self.summary.given_up += 1,
            None => {}
        }
    }

    /// In order, within milliseconds, now and then later than a cut may take.
    fn send(
        &mut self,
        over: HostSession,
        down: bool,
        event: impl Fn(CutMessage) -> Event,
        message: CutMessage,
    ) {
        let slow = if self.rng.one_in(12) { 60 * MILLISECOND } else { 8 * MILLISECOND };
        let takes = self.rng.below(slow);
        let arrives = self.arrives.entry((over, down)).or_default();
        *arrives = (*arrives).max(self.now + takes);
        let takes = *arrives - self.now;
        self.after(takes, event(message));
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(Duration::from_micros(self.now))
    }

    fn invariant_what_is_complete_is_a_cut(&self) {
        let writes = || self.hosts.iter().flat_map(|host| &host.part.writes);
        // Those that are complete.
        let has = |cut| move |host: &SimHost| host.part.durable.contains(cut);
        for cut in self.stand.iter().filter(|cut| self.hosts.iter().all(has(cut))) {
            let begun_below = writes().filter(|write| write.seq <= *cut).map(|write| write.begun).max();
            let acked_above = writes().filter(|write| write.seq > *cut).filter_map(|write| write.acked).min();
            if let (Some(begun), Some(acked)) = (begun_below, acked_above) {
                assert!(
                    begun <= acked,
                    "cut {cut}: a write below it began at {begun}, after one above at {acked}"
                );
            }
        }
    }

    fn invariant_only_what_stands_is_marked(&self) {
        for host in &self.hosts {
            assert!(host.part.durable.iter().all(|cut| self.stand.contains(cut)));
        }
    }
}

impl Event {
    /// Whose it is.
    fn host(&self) -> usize {
        match *self {
            Event::Cut | Event::Up(..) | Event::Leave(..) => FIRST,
            Event::Begin(host)
            | Event::Complete(host, _)
            | Event::Down(host, ..)
            | Event::Tick(host)
            | Event::Connect(host)
            | Event::Lose(host)
            | Event::StandStill(host)
            | Event::Restart(host)
            | Event::Sync(host) => host,
        }
    }
}

fn name(host: usize) -> String {
    format!("host{host}.site")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
