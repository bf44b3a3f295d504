//! A group on this host: one counter, its cuts, and how old the newest complete one is.
//!
//! A cut draws one number from the counter. Then each VM puts the checkpoint's mark behind everything it
//! has: whatever a VM had drawn at or below the cut is in its stream before its mark. A checkpoint is
//! complete once every stream's mark is durable at the recovery side; only this host's monotonic clock
//! says how long ago the cut was.
//!
//! Where the group has VMs on other hosts too, all make the same cut ([`joint::cut`]).

use super::Source;
use super::hosts::Hosts;
use super::hosts_record::HostsRecord;
use super::member;
use super::vm::ProtectedVm;
use crate::clock;
use crate::error::{OperationError, Result};
use crate::policy::Policy;
use crate::state::StateDir;
use crate::wire_io::Outgoing;
use joint::cut::{Ask, CannotBegin, Completion, HostSession, NotRemoved, Outcome, Part, Why};
use joint::membership::{NoCut, whom};
use joint::promise::{Promises, Standing};
use replication::wire::CutRefusal;
use splitter::{AckGate, SyncPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use types::limits::CUT_DECIDE_MAX;
use types::{Checkpoint, CheckpointId, CheckpointKind, GroupCounter, GroupId, Monotonic, VmId, WriteSeq};

/// A group of VMs protected on this host.
#[derive(Debug)]
pub(crate) struct Group {
    id: GroupId,
    name: String,
    /// The site that protects it: this agent's.
    site: String,
    counter: Arc<GroupCounter>,
    gate: Arc<AckGate>,
    /// Where another agent coordinates the group.
    coordinator: Option<String>,
    /// Where this one does, for hosts beside this.
    hosts: Hosts,
    hosts_record: HostsRecord,
    /// One cut at a time.
    cutting: Mutex<()>,
    /// Locked before everything else that says of whom the group is, and held from before that is asked until all VMs are
    /// told what they may promise: what is known first is told first.
    promised: Mutex<Promises>,
    /// Whoever waits for the next checkpoint waits anew.
    interval_changed: Arc<Notify>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: BTreeMap<VmId, Weak<ProtectedVm>>,
    /// How many are about to be members, or to fail.
    expected: usize,
    completion: Completion,
    /// The members that a cut across hosts is said to have of this one: it is marked in their streams and no others, or
    /// those that hold it would be more than it says.
    counted: BTreeSet<VmId>,
    /// The members whose writes wait for the recovery side.
    synchronous: BTreeSet<VmId>,
    /// The hold that acknowledgements wait for, by its number.
    hold: Option<u64>,
    /// When the last hold began, which is before the cut.
    hold_began: Monotonic,
    interval: Duration,
    holds: Holds,
}

/// How long acknowledgements were held for cuts across hosts.
#[derive(Debug, Default, Clone, Copy)]
struct Holds {
    count: u64,
    given_up: u64,
    last: Duration,
    longest: Duration,
}

impl Group {
    /// Makes the group and begins to take its automatic checkpoints, or to follow who coordinates it.
    pub(crate) fn start(
        source: &Arc<Source>,
        id: GroupId,
        name: String,
        coordinator: Option<String>,
        policy: &Policy,
    ) -> Arc<Self> {
        let (hosts_record, hosts) = HostsRecord::load(&source.state, id);
        hosts_record.tell(&source.alerts, &name);
        let group = Arc::new(Self {
            id,
            name,
            site: source.site.clone(),
            counter: Arc::new(GroupCounter::new(WriteSeq::before_run(source.run))),
            gate: Arc::default(),
            coordinator: coordinator.clone(),
            hosts: Hosts::known(&hosts),
            hosts_record,
            cutting: Mutex::default(),
            promised: Mutex::default(),
            interval_changed: Arc::default(),
            inner: Mutex::new(Inner {
                members: BTreeMap::new(),
                expected: 0,
                completion: Completion::default(),
                counted: BTreeSet::new(),
                synchronous: BTreeSet::new(),
                hold: None,
                hold_began: Monotonic::default(),
                interval: Duration::from_secs(policy.checkpoint_interval_seconds),
                holds: Holds::default(),
            }),
        });
        match coordinator {
            Some(coordinator) => {
                tokio::spawn(member::follow(source.clone(), Arc::downgrade(&group), coordinator));
            }
            None => {
                tokio::spawn(take_regularly(Arc::downgrade(&group)));
            }
        }
        group
    }

    pub(crate) fn gate(&self) -> &Arc<AckGate> {
        &self.gate
    }

    pub(crate) fn coordinator(&self) -> Option<&str> {
        self.coordinator.as_deref()
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Whether VMs of the group are protected on other hosts.
    pub(crate) fn spans_hosts(&self) -> bool {
        self.coordinator.is_some() || !self.hosts.is_empty() || self.hosts_record.is_unreadable()
    }

    /// A host has joined, or has other VMs than before; its session.
    pub(super) fn on_join(
        &self,
        state: &StateDir,
        host: &str,
        vms: u16,
        queue: UnboundedSender<Outgoing>,
    ) -> anyhow::Result<HostSession> {
        self.hosts_record.check_known()?;
        let spanned = self.spans_hosts();
        let session = self.hosts.join(self, host, vms, queue)?;
        if let Err(error) = self.hosts_changed(state, spanned) {
            self.hosts.leave(self, host, session);
            return Err(error.into());
        }
        Ok(session)
    }

    /// Forgets a host that will not come back: checkpoints are taken without it from now on.
    pub(super) fn remove_host(&self, state: &StateDir, host: &str) -> Result<()> {
        self.hosts_record.check_known().map_err(|why| OperationError::conflict(why.to_string()))?;
        let spanned = self.spans_hosts();
        self.hosts.check_away(host).map_err(|why| self.not_removed(host, why))?;
        // Written down first: checkpoints are taken without it only where it stays forgotten over a restart.
        self.hosts_record.save(state, || {
            let mut hosts = self.hosts.to_record();
            hosts.remove(host);
            hosts
        })?;
        let removed = self.hosts.remove(self, host).map_err(|why| self.not_removed(host, why));
        // Where it came back just now, it is written down again.
        self.hosts_changed(state, spanned)?;
        removed
    }

    fn not_removed(&self, host: &str, why: NotRemoved) -> OperationError {
        match why {
            NotRemoved::Unknown => OperationError::not_found(format!(
                "group {} has no host {host:?} beside this one; `holdfast group list` shows its hosts",
                self.name
            )),
            NotRemoved::Connected => OperationError::conflict(format!(
                "host {host} is connected: it leaves group {} when its VMs of it are unprotected there",
                self.name
            )),
        }
    }

    /// Writes the hosts down; `spanned`: whether there were others before.
    fn hosts_changed(&self, state: &StateDir, spanned: bool) -> Result<()> {
        self.hosts_record.save(state, || self.hosts.to_record())?;
        self.lock().completion.restarted();
        if spanned != self.spans_hosts() {
            // The recovery side has to know whether cuts between checkpoints mean something from now on.
            self.members().iter().for_each(|vm| vm.command(super::Command::GreetAgain));
        }
        Ok(())
    }

    /// The marks of a cut are durable in all streams of a host.
    pub(super) fn on_host_durable(&self, host: &str, cut: WriteSeq) {
        self.lock().completion.host_durable(host, cut);
    }

    /// The newest cut whose marks are durable in all streams of this host.
    pub(super) fn newest_durable_cut(&self) -> WriteSeq {
        self.lock().completion.newest_durable()
    }

    pub(crate) fn id(&self) -> GroupId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether an operator's word means it: its id, `site/name` or name.
    pub(super) fn answers_to(&self, word: &str) -> bool {
        let site_and_name = (self.site.as_str(), self.name.as_str());
        word == self.name || word == self.id.to_string() || word.split_once('/') == Some(site_and_name)
    }

    pub(crate) fn counter(&self) -> &Arc<GroupCounter> {
        &self.counter
    }

    pub(super) fn join(&self, vm: &Arc<ProtectedVm>, lacks_vms: impl FnOnce() -> bool) {
        self.members_change(|inner| {
            inner.members.insert(vm.id(), Arc::downgrade(vm));
            if vm.is_synchronous() {
                inner.synchronous.insert(vm.id());
            }
        });
        // Until it says itself how it stands.
        self.note_standing(vm.id(), vm.may_be_there().then_some(Standing::UNKNOWN), lacks_vms);
    }

    /// Changes who is of the group. While one waits for the recovery side nobody leaves writes out: that leaves no moment
    /// between two checkpoints that could be opened.
    fn members_change(&self, change: impl FnOnce(&mut Inner)) {
        let mut members = Vec::new();
        let mut inner = self.lock();
        change(&mut inner);
        members.extend(inner.members.values().filter_map(Weak::upgrade));
        members.iter().for_each(|vm| vm.capture().leave_out(inner.synchronous.is_empty()));
    }

    /// Whether the guest of a member waits for the recovery side has changed, or for how long. What it is promised rests on
    /// what is known of the others from its first moment on.
    pub(super) fn mode_changed(
        &self,
        vm: &Arc<ProtectedVm>,
        policy: Option<SyncPolicy>,
        lacks_vms: impl FnOnce() -> bool,
    ) {
        // Let go last: a VM may end with it.
        let members;
        let mut promised = self.promised.lock().expect("a panic aborts the process");
        let is_member = self.lock().members.contains_key(&vm.id());
        let promises = is_member && (policy.is_some() || self.others_are_synchronous(vm.id()));
        promised.lacks_vms(!promises || lacks_vms() || self.spans_hosts());
        vm.capture().set_sync(policy, promised.others(vm.id()));
        self.members_change(|inner| match policy {
            Some(_) if is_member => {
                inner.synchronous.insert(vm.id());
            }
            _ => {
                inner.synchronous.remove(&vm.id());
            }
        });
        members = self.members();
        for member in members.iter().filter(|member| member.is_synchronous()) {
            member.capture().follow_others(promised.others(member.id()));
        }
    }

    fn others_are_synchronous(&self, vm: VmId) -> bool {
        self.lock().synchronous.iter().any(|other| *other != vm)
    }

    #[cfg(test)]
    pub(super) fn interval(&self) -> Duration {
        self.lock().interval
    }

    /// Changes how often automatic checkpoints are taken, from now on.
    pub(super) fn set_interval(&self, seconds: u64) {
        let interval = Duration::from_secs(seconds);
        if std::mem::replace(&mut self.lock().interval, interval) != interval {
            self.interval_changed.notify_one();
        }
    }

    pub(super) fn leave(&self, vm: VmId, lacks_vms: impl FnOnce() -> bool) {
        self.members_change(|inner| {
            inner.members.remove(&vm);
            inner.synchronous.remove(&vm);
            inner.completion.left(vm);
        });
        self.note_standing(vm, None, lacks_vms);
    }

    /// So many more are about to be members, or fewer.
    pub(super) fn expects(&self, more: isize) {
        let mut inner = self.lock();
        inner.expected = inner.expected.checked_add_signed(more).expect("whoever comes was expected");
    }

    /// Whether nobody is of it and nobody comes.
    pub(super) fn is_left(&self) -> bool {
        let inner = self.lock();
        inner.members.is_empty() && inner.expected == 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().members.is_empty()
    }

    pub(crate) fn members(&self) -> Vec<Arc<ProtectedVm>> {
        self.lock().members.values().filter_map(Weak::upgrade).collect()
    }

    /// The members whose first sync is done: those that checkpoints have. Who comes to a group does not hold it up.
    pub(super) fn checkpointed(&self) -> Vec<Arc<ProtectedVm>> {
        self.members().into_iter().filter(|vm| vm.is_member()).collect()
    }

    /// Which they are.
    pub(super) fn checkpointed_ids(&self) -> BTreeSet<VmId> {
        self.checkpointed().iter().map(|vm| vm.id()).collect()
    }

    pub(crate) fn has_several(&self) -> bool {
        self.lock().members.len() > 1
    }

    /// Takes a cut now. Refused while a VM of the group misses writes in its stream.
    pub(crate) fn take(&self, kind: CheckpointKind, tag: &str, now: Monotonic) -> Result<Checkpoint> {
        if let Some(coordinator) = &self.coordinator {
            return Err(OperationError::conflict(format!(
                "checkpoints of group {} are taken by its coordinator, {coordinator}; ask there",
                self.name
            )));
        }
        self.hosts_record.check_known().map_err(|why| {
            OperationError::unavailable(format!("no checkpoint of group {}: {why}", self.name))
        })?;
        let _one = self.cutting.lock().expect("a panic aborts the process");
        if self.is_empty() {
            return Err(OperationError::unavailable(format!(
                "no checkpoint of group {}: none of its VMs here is taken up; `holdfast vm list` says why",
                self.name
            )));
        }
        let members = self.members_of_a_cut()?;
        let (tag, taken_at) = (tag.to_owned(), clock::wall());
        let members_here = self.count(members.iter().map(|vm| vm.id()).collect());
        if !self.hosts.is_empty() {
            return self.take_across(Ask { kind, tag, taken_at, members_here });
        }
        let cut = self.counter.draw();
        let checkpoint =
            Checkpoint { id: CheckpointId(cut), cut, kind, taken_at, members: members_here, tag };
        self.mark_streams(&checkpoint, &members, now, &[])?;
        Ok(checkpoint)
    }

    /// The members here that a cut has, as it is now.
    fn members_of_a_cut(&self) -> Result<Vec<Arc<ProtectedVm>>> {
        let mut members = self.members();
        let found: Vec<_> = members.iter().map(|vm| vm.found()).collect();
        let who = match whom(&found) {
            Ok(who) => who,
            // Others of it are on other hosts.
            Err(NoCut::Nobody) if !self.hosts.is_empty() => Vec::new(),
            Err(NoCut::Nobody) => {
                let states: Vec<_> =
                    members.iter().map(|vm| format!("VM {} is {}", vm.name(), vm.state_name())).collect();
                return Err(OperationError::unavailable(format!(
                    "{}: no checkpoint is consistent until its first sync is done; try again then",
                    states.join(", ")
                )));
            }
            Err(NoCut::Misses(id)) => {
                let vm = members.iter().find(|vm| vm.id() == id).expect("one of them");
                return Err(OperationError::unavailable(format!(
                    "VM {} is {}: no checkpoint is consistent until its sync is done; try again then",
                    vm.name(),
                    vm.state_name()
                )));
            }
        };
        members.retain(|vm| who.contains(&vm.id()));
        Ok(members)
    }

    /// From now on cuts across hosts have these members of this host; how many they are.
    pub(super) fn count(&self, members: BTreeSet<VmId>) -> u16 {
        let vms = u16::try_from(members.len()).unwrap_or(u16::MAX);
        self.lock().counted = members;
        vms
    }

    /// They, unless one has left since.
    fn counted(&self) -> Option<Vec<Arc<ProtectedVm>>> {
        let inner = self.lock();
        let counted: Vec<_> = inner.counted.iter().map(|vm| inner.members.get(vm)?.upgrade()).collect();
        drop(inner);
        counted.into_iter().collect()
    }

    /// Takes a cut that all hosts of the group make.
    fn take_across(&self, ask: Ask) -> Result<Checkpoint> {
        let outcome = self.hosts.cut(self, ask);
        if let Ok(Outcome::GivenUp(_)) = outcome {
            self.lock().holds.given_up += 1;
        }
        let why = match outcome {
            Ok(Outcome::Stands(checkpoint)) => return Ok(checkpoint),
            Ok(Outcome::GivenUp(Why::Syncing(host))) => format!(
                "a VM of it on {} is not in sync; try again then",
                host.as_deref().unwrap_or("this host")
            ),
            Ok(Outcome::GivenUp(Why::Late(hosts))) => format!(
                "{} did not answer within {} ms; the guests went on",
                hosts.join(", "),
                CUT_DECIDE_MAX.as_millis()
            ),
            Ok(Outcome::GivenUp(Why::Changed)) => "its hosts became others meanwhile; try again".to_owned(),
            Ok(Outcome::GivenUp(Why::Overtaken)) => {
                "its hosts write faster than they agree; try again".to_owned()
            }
            Ok(Outcome::GivenUp(Why::NotMarked(why))) => why,
            Err(CannotBegin::Away(hosts)) => format!(
                "these hosts of it are not connected: {}; one that will not come back is forgotten with `holdfast group \
                 remove-host`",
                hosts.join(", ")
            ),
            Err(CannotBegin::Busy) => "another one is being taken; try again".to_owned(),
        };
        Err(OperationError::unavailable(format!("no checkpoint of group {}: {why}", self.name)))
    }

    /// Puts a checkpoint's mark into every stream here.
    fn mark_streams(
        &self,
        checkpoint: &Checkpoint,
        members: &[Arc<ProtectedVm>],
        now: Monotonic,
        hosts: &[String],
    ) -> Result<()> {
        // From here on the lock keeps acknowledgements out until every mark is known.
        let mut inner = self.lock();
        let mut marks = BTreeMap::new();
        for vm in members {
            let Some(mark) = vm.capture().mark_checkpoint(checkpoint) else {
                return Err(OperationError::unavailable(format!(
                    "VM {} began to sync just now, or its buffer is full; try again",
                    vm.name()
                )));
            };
            marks.insert(vm.id(), mark);
        }
        inner.completion.marked(checkpoint.cut, now, marks, hosts.iter().cloned());
        Ok(())
    }

    /// A VM's stream is durable so far.
    pub(crate) fn on_durable(&self, vm: VmId, up_to: WriteSeq) {
        self.lock().completion.durable(vm, up_to);
    }

    /// How a VM's stream stands, for the promises made to the others; none while images of the group are made without
    /// it. `lacks_vms`: images of the group may have VMs of which nothing is sent from here.
    pub(super) fn note_standing(
        &self,
        vm: VmId,
        standing: Option<Standing>,
        lacks_vms: impl FnOnce() -> bool,
    ) {
        // Let go last: a VM may end with it.
        let members;
        let mut promised = self.promised.lock().expect("a panic aborts the process");
        // Asked only where there is somebody to tell, for every stream of every group comes here with each event. Between
        // checkpoints VMs on several hosts have no order in common.
        let promises = self.has_synchronous();
        let nothing = !promises || lacks_vms() || self.spans_hosts();
        // The driver of a VM that has left may still be there for a moment.
        let news = match standing.filter(|_| self.lock().members.contains_key(&vm)) {
            Some(standing) => promised.note(vm, standing),
            None => promised.left(vm),
        };
        let changes = promised.lacks_vms(nothing);
        if !promises || !(news || changes) {
            return;
        }
        members = self.members();
        for member in members.iter().filter(|member| member.is_synchronous()) {
            member.capture().follow_others(promised.others(member.id()));
        }
    }

    fn has_synchronous(&self) -> bool {
        !self.lock().synchronous.is_empty()
    }

    /// A promise to one VM waits until the others have said how far they are.
    pub(super) fn ask_others(&self, vm: VmId) {
        self.members().iter().filter(|other| other.id() != vm).for_each(|other| other.ask_watermark());
    }

    /// A VM's stream began anew: marks of before will never be acknowledged as such.
    pub(crate) fn on_restart(&self) {
        self.lock().completion.restarted();
    }

    /// When the newest checkpoint of a VM was taken that is complete at the recovery side, of those of this run.
    pub(super) fn newest_complete(&self, vm: VmId) -> Option<Monotonic> {
        self.lock().completion.newest_complete(vm)
    }

    /// The group for the operator.
    pub(crate) fn to_api(&self) -> api::Group {
        let members = self.members();
        let holds = self.lock().holds;
        api::Group {
            id: self.id.to_string(),
            name: self.name.clone(),
            epoch: members.iter().map(|vm| vm.record().epoch).max().unwrap_or(0),
            side: "protected".into(),
            site: self.site.clone(),
            vms: members.iter().map(|vm| vm.name()).collect(),
            former: Vec::new(),
            failover: None,
            coordinator: self.coordinator.clone(),
            hosts: self.hosts.to_record().into_keys().collect(),
            hosts_away: self.hosts.away(),
            cuts_across_hosts: holds.count,
            cuts_given_up: holds.given_up,
            hold_last_seconds: holds.last.as_secs_f64(),
            hold_longest_seconds: holds.longest.as_secs_f64(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

/// This host's part of the group, as a cut across hosts touches it.
pub(super) struct Here<'a>(pub(super) &'a Group);

impl Part for Here<'_> {
    fn hold(&mut self) -> u64 {
        let mut inner = self.0.lock();
        inner.hold_began = clock::now();
        *inner.hold.insert(self.0.gate.close())
    }

    fn release(&mut self, hold: u64) {
        self.0.gate.open(hold);
        let mut inner = self.0.lock();
        if inner.hold.take_if(|now| *now == hold).is_some() {
            let held = clock::now().since(inner.hold_began);
            inner.holds.count += 1;
            inner.holds.last = held;
            inner.holds.longest = inner.holds.longest.max(held);
        }
    }

    fn draw(&mut self, cut: WriteSeq) -> std::result::Result<(), CutRefusal> {
        let whole = |members: Vec<Arc<ProtectedVm>>| members.iter().all(|vm| !vm.capture().status().gap_open);
        if !self.0.counted().is_some_and(whole) {
            return Err(CutRefusal::Syncing);
        }
        self.0.counter.draw_exactly(cut).map_err(CutRefusal::Passed)
    }

    fn mark(&mut self, checkpoint: &Checkpoint, hosts: &[String]) -> std::result::Result<(), String> {
        let taken_at = self.0.lock().hold_began;
        let marked = match self.0.counted() {
            Some(members) => {
                self.0.mark_streams(checkpoint, &members, taken_at, hosts).map_err(|error| error.detail)
            }
            None => Err("a VM of it has left this host just now; try again".to_owned()),
        };
        if let Err(why) = &marked {
            tracing::warn!(group = self.0.name, cut = %checkpoint.cut, why, "the cut is not marked here");
        }
        marked
    }
}

/// Takes a checkpoint at each interval, as long as the group lives. One that cannot be taken is not: the
/// state of the VM that hinders it says why.
async fn take_regularly(group: Weak<Group>) {
    loop {
        let looked = group.upgrade().map(|group| (group.lock().interval, group.interval_changed.clone()));
        let Some((interval, changed)) = looked else { return };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = changed.notified() => continue,
        }
        let Some(group) = group.upgrade() else { return };
        if !group.is_empty() {
            let _ = tokio::task::block_in_place(|| group.take(CheckpointKind::Automatic, "", clock::now()));
        }
    }
}
