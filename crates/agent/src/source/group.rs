//! A group on this host: one counter, its cuts, and how old the newest complete one is.
//!
//! A cut draws one number from the counter. Then each VM puts the checkpoint's mark behind everything it
//! has: whatever a VM had drawn at or below the cut is in its stream before its mark. A checkpoint is
//! complete once every stream's mark is durable at the recovery side; only this host's monotonic clock
//! says how long ago the cut was.
//!
//! Where the group has VMs on other hosts too, all draw the same number, while each holds its guests'
//! acknowledgements: a write that depends on one of another host was begun after that one was acknowledged,
//! and so has either both or none below the cut.
//!
//! ```text
//!   coordinator                                     each host
//!     │ Prepare (cut, above all that was drawn)       │
//!     ├──────────────────────────────────────────────▶│ 1. close the gate
//!     │ does the same here                            │ 2. draw exactly that number
//!     │ Prepared                                      │
//!     │◀──────────────────────────────────────────────┤
//!     │ Settle (the mark, if all were in time)        │
//!     ├──────────────────────────────────────────────▶│ 3. open the gate, mark the streams
//! ```
//!
//! Nothing is marked before all are known to have cut, and every gate stays closed longer than the
//! coordinator waits: so a cut that is marked was made while all gates were closed.

use super::Source;
use super::hosts::{Hosts, NotPrepared, NotRemoved};
use super::member;
use super::vm::ProtectedVm;
use crate::clock;
use crate::error::{OperationError, Result};
use crate::policy::Policy;
use crate::state::StateDir;
use crate::wire_io::Outgoing;
use batch::{decode_mark, encode_mark};
use replication::wire::CutRefusal;
use serde::{Deserialize, Serialize};
use splitter::AckGate;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use types::limits::{CUT_DECIDE_MAX, CUT_MARGIN};
use types::{Checkpoint, CheckpointId, CheckpointKind, GroupCounter, GroupId, Monotonic, VmId, WriteSeq};

/// Cuts that are on their way; older ones are forgotten, they will not be the newest.
const PENDING_MAX: usize = 1024;
/// A host that is further than was thought costs another try.
const TRIES: usize = 3;

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
    /// One cut at a time.
    cutting: Mutex<()>,
    inner: Mutex<Inner>,
}

/// The other hosts of a group, as `state/hosts/GROUP.json` has them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct HostsRecord {
    hosts: BTreeMap<String, u16>,
}

#[derive(Debug)]
struct Inner {
    members: BTreeMap<VmId, Weak<ProtectedVm>>,
    pending: VecDeque<Pending>,
    /// When the newest complete checkpoint that has a VM was taken, of each VM.
    newest_complete: BTreeMap<VmId, Monotonic>,
    newest_durable_cut: WriteSeq,
    interval: Duration,
    holds: Holds,
}

#[derive(Debug)]
struct Pending {
    cut: WriteSeq,
    taken_at: Monotonic,
    /// Each VM's mark that is not yet durable.
    waiting: BTreeMap<VmId, WriteSeq>,
    /// The VMs here that the checkpoint has.
    members: Vec<VmId>,
    /// Each host whose marks are not.
    hosts: BTreeSet<String>,
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
    ) -> Result<Arc<Self>> {
        let recorded: HostsRecord = source.state.load(&hosts_file(id))?.unwrap_or_default();
        let group = Arc::new(Self {
            id,
            name,
            site: source.site.clone(),
            counter: Arc::new(GroupCounter::new(WriteSeq::before_run(source.run))),
            gate: Arc::default(),
            coordinator: coordinator.clone(),
            hosts: Hosts::known(&recorded.hosts),
            cutting: Mutex::default(),
            inner: Mutex::new(Inner {
                members: BTreeMap::new(),
                pending: VecDeque::new(),
                newest_complete: BTreeMap::new(),
                newest_durable_cut: WriteSeq::ZERO,
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
        Ok(group)
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
        self.coordinator.is_some() || !self.hosts.is_empty()
    }

    /// A host has joined, or has other VMs than before; its session.
    pub(super) fn on_join(
        &self,
        state: &StateDir,
        host: &str,
        vms: u16,
        queue: UnboundedSender<Outgoing>,
    ) -> anyhow::Result<u64> {
        let spanned = self.spans_hosts();
        let session = self
            .hosts
            .join(host, vms, queue)
            .ok_or_else(|| anyhow::anyhow!("the group has too many hosts"))?;
        self.hosts_changed(state, spanned)?;
        Ok(session)
    }

    /// Forgets a host that will not come back: checkpoints are taken without it from now on.
    pub(super) fn remove_host(&self, state: &StateDir, host: &str) -> Result<()> {
        let spanned = self.spans_hosts();
        self.hosts.remove(host).map_err(|why| match why {
            NotRemoved::Unknown => OperationError::not_found(format!(
                "group {} has no host {host:?} beside this one; `holdfast group list` shows its hosts",
                self.name
            )),
            NotRemoved::Connected => OperationError::conflict(format!(
                "host {host} is connected: it leaves group {} when its VMs of it are unprotected there",
                self.name
            )),
        })?;
        self.hosts_changed(state, spanned)
    }

    /// Writes the hosts down; `spanned`: whether there were others before.
    fn hosts_changed(&self, state: &StateDir, spanned: bool) -> Result<()> {
        state.save(&hosts_file(self.id), &HostsRecord { hosts: self.hosts.to_record() })?;
        self.lock().pending.clear();
        if spanned != self.spans_hosts() {
            // The recovery side has to know whether cuts between checkpoints mean something from now on.
            self.members().iter().for_each(|vm| vm.command(super::Command::GreetAgain));
        }
        Ok(())
    }

    /// The marks of a cut are durable in all streams of a host.
    pub(super) fn on_host_durable(&self, host: &str, cut: WriteSeq) {
        let mut inner = self.lock();
        for pending in inner.pending.iter_mut().filter(|pending| pending.cut <= cut) {
            pending.hosts.remove(host);
        }
        inner.complete();
    }

    /// Closes the gate and draws the cut's number; what opens the gate again, and why the cut is not made.
    pub(super) fn prepare_here(&self, cut: WriteSeq) -> (u64, Option<CutRefusal>) {
        let time = self.gate.close();
        if self.checkpointed().iter().any(|vm| vm.capture().status().gap_open) {
            return (time, Some(CutRefusal::Syncing));
        }
        (time, self.counter.draw_exactly(cut).err().map(CutRefusal::Passed))
    }

    pub(super) fn let_go(&self, time: u64) {
        self.gate.open(time);
    }

    /// Puts the mark of a cut that all hosts have made into every stream here.
    pub(super) fn mark_here(&self, cut: WriteSeq, mark: &[u8]) -> std::result::Result<(), String> {
        let checkpoint = decode_mark(mark).map_err(|error| error.to_string())?;
        if checkpoint.cut != cut {
            return Err(format!("the mark is of cut {}", checkpoint.cut));
        }
        self.mark_streams(&checkpoint, clock::now(), BTreeSet::new()).map_err(|error| error.detail)
    }

    /// The newest cut whose marks are durable in all streams of this host.
    pub(super) fn newest_durable_cut(&self) -> WriteSeq {
        self.lock().newest_durable_cut
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

    pub(crate) fn join(&self, vm: &Arc<ProtectedVm>) {
        self.lock().members.insert(vm.id(), Arc::downgrade(vm));
    }

    pub(crate) fn leave(&self, vm: VmId) {
        let mut inner = self.lock();
        inner.members.remove(&vm);
        inner.newest_complete.remove(&vm);
        inner.pending.clear();
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
        let _one = self.cutting.lock().expect("a panic aborts the process");
        let members = self.checkpointed();
        if members.is_empty() && self.hosts.is_empty() {
            let states = self.members();
            let states: Vec<_> =
                states.iter().map(|vm| format!("VM {} is {}", vm.name(), vm.state_name())).collect();
            return Err(OperationError::unavailable(format!(
                "{}: no checkpoint is consistent until its first sync is done; try again then",
                states.join(", ")
            )));
        }
        for vm in &members {
            if vm.capture().status().gap_open {
                return Err(OperationError::unavailable(format!(
                    "VM {} is {}: no checkpoint is consistent until its sync is done; try again then",
                    vm.name(),
                    vm.state_name()
                )));
            }
        }
        let vms = u16::try_from(members.len()).unwrap_or(u16::MAX).saturating_add(self.hosts.vms());
        let checkpoint = |cut| Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind,
            taken_at: clock::wall(),
            members: vms,
            tag: tag.to_owned(),
        };
        if !self.hosts.is_empty() {
            return self.take_across(checkpoint, now);
        }
        let checkpoint = checkpoint(self.counter.draw());
        self.mark_streams(&checkpoint, now, BTreeSet::new())?;
        Ok(checkpoint)
    }

    /// Takes a cut that all hosts of the group make.
    fn take_across(&self, checkpoint: impl Fn(WriteSeq) -> Checkpoint, now: Monotonic) -> Result<Checkpoint> {
        let away = self.hosts.away();
        if !away.is_empty() {
            return Err(OperationError::unavailable(format!(
                "no checkpoint of group {}: these hosts of it are not connected: {}; \
                 one that will not come back is forgotten with `holdfast group remove-host`",
                self.name,
                away.join(", ")
            )));
        }
        let mut floor = self.counter.last().max(self.hosts.highest());
        for _ in 0..TRIES {
            let cut = WriteSeq::from_raw(floor.raw() + CUT_MARGIN);
            let checkpoint = checkpoint(cut);
            let begun = clock::now();
            self.hosts.prepare(cut);
            let (time, passed) = self.prepare_here(cut);
            let all = match passed {
                Some(CutRefusal::Passed(last)) => Err(NotPrepared::Behind(last)),
                Some(CutRefusal::Syncing) => Err(NotPrepared::Syncing("this host".into())),
                None => self.hosts.wait_prepared(cut, begun, CUT_DECIDE_MAX),
            };
            self.hosts.settle(cut, all.is_ok().then(|| encode_mark(&checkpoint)));
            self.let_go(time);
            self.note_hold(clock::now().since(begun), all.is_ok());
            match all {
                Ok(()) => {
                    let hosts = self.hosts.to_record().into_keys().collect();
                    self.mark_streams(&checkpoint, now, hosts)?;
                    return Ok(checkpoint);
                }
                Err(NotPrepared::Behind(last)) => floor = last.max(self.counter.last()),
                Err(NotPrepared::Syncing(host)) => {
                    return Err(OperationError::unavailable(format!(
                        "no checkpoint of group {}: a VM of it on {host} is not in sync; try again then",
                        self.name
                    )));
                }
                Err(NotPrepared::Late(hosts)) => {
                    return Err(OperationError::unavailable(format!(
                        "no checkpoint of group {}: {} did not answer within {} ms; the guests went on",
                        self.name,
                        hosts.join(", "),
                        CUT_DECIDE_MAX.as_millis()
                    )));
                }
            }
        }
        Err(OperationError::unavailable(format!(
            "no checkpoint of group {}: its hosts write faster than they agree; try again",
            self.name
        )))
    }

    fn note_hold(&self, held: Duration, stands: bool) {
        let mut inner = self.lock();
        inner.holds.count += 1;
        inner.holds.given_up += u64::from(!stands);
        inner.holds.last = held;
        inner.holds.longest = inner.holds.longest.max(held);
    }

    /// Puts a checkpoint's mark into every stream here.
    fn mark_streams(&self, checkpoint: &Checkpoint, now: Monotonic, hosts: BTreeSet<String>) -> Result<()> {
        let members = self.checkpointed();
        // From here on the lock keeps acknowledgements out until every mark is known.
        let mut inner = self.lock();
        let mut waiting = BTreeMap::new();
        for vm in &members {
            let Some(mark) = vm.capture().mark_checkpoint(checkpoint) else {
                return Err(OperationError::unavailable(format!(
                    "VM {} began to sync just now; try again",
                    vm.name()
                )));
            };
            waiting.insert(vm.id(), mark);
        }
        let members = members.iter().map(|vm| vm.id()).collect();
        inner.pending.push_back(Pending { cut: checkpoint.cut, taken_at: now, waiting, members, hosts });
        if inner.pending.len() > PENDING_MAX {
            inner.pending.pop_front();
        }
        Ok(())
    }

    /// A VM's stream is durable so far.
    pub(crate) fn on_durable(&self, vm: VmId, up_to: WriteSeq) {
        let mut inner = self.lock();
        for pending in &mut inner.pending {
            if pending.waiting.get(&vm).is_some_and(|&mark| mark <= up_to) {
                pending.waiting.remove(&vm);
            }
        }
        let here = inner.pending.iter().filter(|pending| pending.waiting.is_empty());
        let newest = here.map(|pending| pending.cut).max().unwrap_or(WriteSeq::ZERO);
        inner.newest_durable_cut = inner.newest_durable_cut.max(newest);
        inner.complete();
    }

    /// A VM's stream began anew: marks of before will never be acknowledged as such.
    pub(crate) fn on_restart(&self) {
        self.lock().pending.clear();
    }

    /// When the newest checkpoint of a VM was taken that is complete at the recovery side, of those of this run.
    pub(super) fn newest_complete(&self, vm: VmId) -> Option<Monotonic> {
        self.lock().newest_complete.get(&vm).copied()
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

impl Inner {
    /// Takes note of the checkpoints that are complete now.
    fn complete(&mut self) {
        let done = |pending: &Pending| pending.waiting.is_empty() && pending.hosts.is_empty();
        while self.pending.front().is_some_and(done) {
            let Some(done) = self.pending.pop_front() else { return };
            self.newest_complete.extend(done.members.into_iter().map(|vm| (vm, done.taken_at)));
        }
    }
}

fn hosts_file(group: GroupId) -> String {
    format!("hosts/{group}.json")
}

/// Takes a checkpoint at each interval, as long as the group lives. One that cannot be taken is not: the
/// state of the VM that hinders it says why.
async fn take_regularly(group: Weak<Group>) {
    loop {
        let Some(interval) = group.upgrade().map(|group| group.lock().interval) else { return };
        tokio::time::sleep(interval).await;
        let Some(group) = group.upgrade() else { return };
        if !group.is_empty() {
            let _ = tokio::task::block_in_place(|| group.take(CheckpointKind::Automatic, "", clock::now()));
        }
    }
}
