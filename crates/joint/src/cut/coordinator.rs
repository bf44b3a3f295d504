//! The host that makes the cuts of a group: who else is of the group, and the cut that is being made.
//!
//! A host that has joined once is known from then on, also while it is away: a checkpoint without its VMs would not be
//! one of the group. One cut is made at a time; whoever else joins, leaves or falls silent meanwhile ends it.

use super::{Disbelieved, Part};
use batch::encode_mark;
use replication::wire::{CutMessage, CutRefusal};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use types::limits::{CUT_DECIDE_MAX, CUT_MARGIN, GROUP_HOSTS_MAX};
use types::{Checkpoint, CheckpointId, CheckpointKind, Monotonic, WallTime, WriteSeq};

/// A host that is further than was thought costs another try.
const TRIES: u32 = 3;

/// The other hosts of a group, and a cut across them.
#[derive(Debug, Default)]
pub struct Coordinator {
    hosts: BTreeMap<String, Host>,
    sessions: u64,
    making: Option<Making>,
    /// The last number that was tried. None is tried twice: an answer to the first would be taken for one to the second,
    /// though the host has let go since.
    tried: WriteSeq,
    outcome: Option<Outcome>,
    said: Vec<Said>,
}

#[derive(Debug, Default)]
struct Host {
    vms: u16,
    session: Option<HostSession>,
    /// The highest sequence it has told of.
    last: WriteSeq,
}

/// One connection of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostSession(u64);

/// A message for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub to: HostSession,
    pub message: CutMessage,
}

/// A checkpoint that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub kind: CheckpointKind,
    pub tag: String,
    pub taken_at: WallTime,
    /// The VMs on this host that it has.
    pub members_here: u16,
}

/// A cut that is being made.
#[derive(Debug)]
struct Making {
    ask: Ask,
    cut: WriteSeq,
    members: u16,
    begun: Monotonic,
    tries_left: u32,
    hold: u64,
    /// The hosts that have not answered.
    waiting: BTreeSet<String>,
}

/// Why no cut is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CannotBegin {
    /// These hosts are not connected.
    Away(Vec<String>),
    /// Another cut is being made.
    Busy,
}

/// What has become of a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All hosts have made it, and its mark is in the streams here.
    Stands(Checkpoint),
    GivenUp(Why),
}

/// Why a cut was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A VM on this host, or on the one named, misses writes until a sync is done.
    Syncing(Option<String>),
    /// These hosts did not answer in time.
    Late(Vec<String>),
    /// The hosts of the group became others meanwhile.
    Changed,
    /// The hosts write faster than they agree.
    Overtaken,
    /// All have made it, but the mark is not in the streams here.
    NotMarked(String),
}

/// Why a host was not forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRemoved {
    Unknown,
    Connected,
}

/// No further host has room in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyHosts;

impl fmt::Display for TooManyHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the group has {GROUP_HOSTS_MAX} hosts beside its coordinator already")
    }
}

impl std::error::Error for TooManyHosts {}

impl Coordinator {
    /// The hosts and how many VMs each has, as they were recorded; none is connected.
    pub fn known(recorded: &BTreeMap<String, u16>) -> Self {
        let hosts = recorded.iter().map(|(name, &vms)| (name.clone(), Host { vms, ..Host::default() }));
        Self { hosts: hosts.collect(), ..Self::default() }
    }

    /// What is to be recorded.
    pub fn to_record(&self) -> BTreeMap<String, u16> {
        self.hosts.iter().map(|(name, host)| (name.clone(), host.vms)).collect()
    }

    pub fn has_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// The VMs on the other hosts.
    pub fn vms(&self) -> u16 {
        self.hosts.values().fold(0, |vms, host| vms.saturating_add(host.vms))
    }

    /// The hosts that are not connected.
    pub fn away(&self) -> Vec<String> {
        let away = self.hosts.iter().filter(|(_, host)| host.session.is_none());
        away.map(|(name, _)| name.clone()).collect()
    }

    /// A host has come over a new connection, with so many VMs of the group; with none it leaves.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn join(&mut self, name: &str, vms: u16, part: &mut impl Part) -> Result<HostSession, TooManyHosts> {
        if vms > 0 && !self.hosts.contains_key(name) && self.hosts.len() >= GROUP_HOSTS_MAX {
            return Err(TooManyHosts);
        }
        self.give_up(Why::Changed, part);
        self.sessions += 1;
        let session = HostSession(self.sessions);
        if vms == 0 {
            self.hosts.remove(name);
        } else {
            let host = self.hosts.entry(name.to_owned()).or_default();
            host.vms = vms;
            host.session = Some(session);
        }
        Ok(session)
    }

    /// A connection is gone.
    pub fn leave(&mut self, name: &str, session: HostSession, part: &mut impl Part) {
        if let Some(host) = self.host_of(name, session) {
            host.session = None;
            // Whether it has answered or not, its streams will not get the mark.
            self.give_up(Why::Late(vec![name.to_owned()]), part);
        }
    }

    /// Whether a host can be forgotten.
    ///
    /// # Errors
    /// Where it is not known, or connected.
    pub fn check_away(&self, name: &str) -> Result<(), NotRemoved> {
        match self.hosts.get(name) {
            None => Err(NotRemoved::Unknown),
            Some(host) if host.session.is_some() => Err(NotRemoved::Connected),
            Some(_) => Ok(()),
        }
    }

    /// Forgets a host that is away.
    ///
    /// # Errors
    /// Where it is not known, or connected.
    pub fn remove(&mut self, name: &str, part: &mut impl Part) -> Result<(), NotRemoved> {
        self.check_away(name)?;
        self.hosts.remove(name);
        self.give_up(Why::Changed, part);
        Ok(())
    }

    /// Begins a cut: what becomes of it is told by [`outcome`](Self::outcome). `last`: what the counter here has drawn.
    ///
    /// # Errors
    /// Where it cannot be begun.
    pub fn begin(
        &mut self,
        now: Monotonic,
        ask: Ask,
        last: WriteSeq,
        part: &mut impl Part,
    ) -> Result<(), CannotBegin> {
        if self.making.is_some() {
            return Err(CannotBegin::Busy);
        }
        let away = self.away();
        if !away.is_empty() {
            return Err(CannotBegin::Away(away));
        }
        self.outcome = None;
        self.attempt(now, ask, last, TRIES, part);
        Ok(())
    }

    fn attempt(&mut self, now: Monotonic, ask: Ask, last: WriteSeq, tries: u32, part: &mut impl Part) {
        let mut last = last;
        for tries_left in (0..tries).rev() {
            let floor = self.hosts.values().map(|host| host.last).fold(last.max(self.tried), WriteSeq::max);
            let cut = WriteSeq::from_raw(floor.raw().saturating_add(CUT_MARGIN));
            self.tried = cut;
            self.say_to_all(&CutMessage::Prepare { cut });
            let hold = part.hold();
            let drawn = part.draw(cut);
            let members = ask.members_here.saturating_add(self.vms());
            let waiting = self.hosts.keys().cloned().collect();
            let ask = ask.clone();
            self.making = Some(Making { ask, cut, members, begun: now, tries_left, hold, waiting });
            match drawn {
                Ok(()) => return self.settle_if_all_have(part),
                Err(CutRefusal::Syncing) => return self.give_up(Why::Syncing(None), part),
                Err(CutRefusal::Passed(reached)) => {
                    last = last.max(reached);
                    self.unmake(part);
                }
            }
        }
        self.outcome = Some(Outcome::GivenUp(Why::Overtaken));
    }

    /// What a host says to a cut.
    ///
    /// # Errors
    /// Where it says what no counter here may be lifted to.
    pub fn on_prepared(
        &mut self,
        now: Monotonic,
        name: &str,
        session: HostSession,
        (cut, refused): (WriteSeq, Option<CutRefusal>),
        part: &mut impl Part,
    ) -> Result<(), Disbelieved> {
        let told = if let Some(CutRefusal::Passed(last)) = refused { cut.max(last) } else { cut };
        if told > WriteSeq::CUT_MAX {
            let why = format!("host {name} says that it has drawn {told}, which no agent comes to");
            return Err(Disbelieved(why));
        }
        self.tick(now, part);
        let Some(host) = self.host_of(name, session) else { return Ok(()) };
        host.last = host.last.max(match refused {
            Some(CutRefusal::Passed(last)) => last,
            Some(CutRefusal::Syncing) => WriteSeq::ZERO,
            None => cut,
        });
        let Some(making) = self.making.as_mut().filter(|making| making.cut == cut) else { return Ok(()) };
        match refused {
            None => {
                making.waiting.remove(name);
                self.settle_if_all_have(part);
            }
            Some(CutRefusal::Syncing) => self.give_up(Why::Syncing(Some(name.to_owned())), part),
            Some(CutRefusal::Passed(last)) => {
                if let Some(given_up) = self.unmake(part) {
                    self.attempt(now, given_up.ask, last.max(cut), given_up.tries_left, part);
                }
            }
        }
        Ok(())
    }

    /// When [`tick`](Self::tick) has to be called at the latest.
    pub fn due(&self) -> Option<Monotonic> {
        self.making.as_ref().map(|making| making.begun.plus(CUT_DECIDE_MAX))
    }

    /// Gives up a cut that not all have made in time.
    pub fn tick(&mut self, now: Monotonic, part: &mut impl Part) {
        if self.due().is_some_and(|due| due <= now) {
            let late = self.making.iter().flat_map(|making| &making.waiting).cloned().collect();
            self.give_up(Why::Late(late), part);
        }
    }

    /// What became of the cut that was begun last; once.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// What is to be sent, in this order.
    pub fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    fn settle_if_all_have(&mut self, part: &mut impl Part) {
        let Some(making) = self.making.take_if(|making| making.waiting.is_empty()) else { return };
        let Making { ask: Ask { kind, tag, taken_at, .. }, cut, members, hold, .. } = making;
        let checkpoint = Checkpoint { id: CheckpointId(cut), cut, kind, taken_at, members, tag };
        self.say_to_all(&CutMessage::Settle { cut, mark: Some(encode_mark(&checkpoint)) });
        part.release(hold);
        let hosts: Vec<String> = self.hosts.keys().cloned().collect();
        self.outcome = Some(match part.mark(&checkpoint, &hosts) {
            Ok(()) => Outcome::Stands(checkpoint),
            Err(why) => Outcome::GivenUp(Why::NotMarked(why)),
        });
    }

    fn give_up(&mut self, why: Why, part: &mut impl Part) {
        if self.unmake(part).is_some() {
            self.outcome = Some(Outcome::GivenUp(why));
        }
    }

    /// Has everybody let go of the cut that is being made; nobody marks it.
    fn unmake(&mut self, part: &mut impl Part) -> Option<Making> {
        let making = self.making.take()?;
        self.say_to_all(&CutMessage::Settle { cut: making.cut, mark: None });
        part.release(making.hold);
        Some(making)
    }

    fn host_of(&mut self, name: &str, session: HostSession) -> Option<&mut Host> {
        self.hosts.get_mut(name).filter(|host| host.session == Some(session))
    }

    fn say_to_all(&mut self, message: &CutMessage) {
        let sessions = self.hosts.values().filter_map(|host| host.session);
        self.said.extend(sessions.map(|to| Said { to, message: message.clone() }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::Willing;
    use super::*;

    fn ask() -> Ask {
        let (kind, tag) = (CheckpointKind::Automatic, String::new());
        Ask { kind, tag, taken_at: WallTime::default(), members_here: 1 }
    }

    fn cut_of(said: &[Said]) -> WriteSeq {
        match said.last() {
            Some(Said { message: CutMessage::Prepare { cut }, .. }) => *cut,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_host_lifts_the_next_cut_to_what_is_refused() {
        let (mut coordinator, now) = (Coordinator::default(), Monotonic::default());
        let beta = coordinator.join("beta.site", 1, &mut Willing::default()).unwrap();
        let far = WriteSeq::CUT_MAX.next();
        for answer in [(WriteSeq::ZERO, Some(CutRefusal::Passed(far))), (far, None)] {
            let why =
                coordinator.on_prepared(now, "beta.site", beta, answer, &mut Willing::default()).unwrap_err();
            assert!(why.0.contains("beta.site"), "{why}");
        }
        let passed = (WriteSeq::ZERO, Some(CutRefusal::Passed(WriteSeq::from_raw(7))));
        coordinator.on_prepared(now, "beta.site", beta, passed, &mut Willing::default()).unwrap();
        coordinator.begin(now, ask(), WriteSeq::ZERO, &mut Willing::default()).unwrap();
        assert_eq!(cut_of(&coordinator.said()), WriteSeq::from_raw(7 + CUT_MARGIN));
    }

    #[test]
    fn a_host_that_is_further_costs_three_tries_at_most() {
        let (mut coordinator, now) = (Coordinator::default(), Monotonic::default());
        let beta = coordinator.join("beta.site", 1, &mut Willing::default()).unwrap();
        coordinator.begin(now, ask(), WriteSeq::ZERO, &mut Willing::default()).unwrap();
        for _ in 0..TRIES {
            assert_eq!(coordinator.outcome(), None);
            let cut = cut_of(&coordinator.said());
            let answer = (cut, Some(CutRefusal::Passed(cut.next())));
            coordinator.on_prepared(now, "beta.site", beta, answer, &mut Willing::default()).unwrap();
        }
        assert_eq!(coordinator.outcome(), Some(Outcome::GivenUp(Why::Overtaken)));
        assert_eq!(coordinator.due(), None);
    }

    #[test]
    fn a_host_that_goes_or_comes_ends_the_cut_that_is_being_made() {
        let (mut coordinator, now) = (Coordinator::default(), Monotonic::default());
        let beta = coordinator.join("beta.site", 1, &mut Willing::default()).unwrap();
        coordinator.begin(now, ask(), WriteSeq::ZERO, &mut Willing::default()).unwrap();
        coordinator.leave("beta.site", beta, &mut Willing::default());
        assert_eq!(coordinator.outcome(), Some(Outcome::GivenUp(Why::Late(vec!["beta.site".into()]))));
        let away = coordinator.begin(now, ask(), WriteSeq::ZERO, &mut Willing::default());
        assert_eq!(away, Err(CannotBegin::Away(vec!["beta.site".into()])));
        coordinator.join("beta.site", 1, &mut Willing::default()).unwrap();
        coordinator.begin(now, ask(), WriteSeq::ZERO, &mut Willing::default()).unwrap();
        coordinator.join("gamma.site", 2, &mut Willing::default()).unwrap();
        assert_eq!(coordinator.outcome(), Some(Outcome::GivenUp(Why::Changed)));
        assert_eq!(coordinator.vms(), 3);
    }
}
