//! A group on its protected host: one counter, its cuts, and how old the newest complete one is.
//!
//! A cut draws one number from the counter. Then each VM puts the checkpoint's mark behind everything it
//! has: whatever a VM had drawn at or below the cut is in its stream before its mark. A checkpoint is
//! complete once every stream's mark is durable at the recovery side; only this host's monotonic clock
//! says how long ago the cut was.

use super::vm::ProtectedVm;
use crate::clock;
use crate::error::{OperationError, Result};
use crate::policy::Policy;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use types::{
    Checkpoint, CheckpointId, CheckpointKind, GroupCounter, GroupId, Monotonic, RunNumber, VmId, WriteSeq,
};

/// Cuts that are on their way; older ones are forgotten, they will not be the newest.
const PENDING_MAX: usize = 1024;

/// A group of VMs protected on this host.
#[derive(Debug)]
pub(crate) struct Group {
    id: GroupId,
    name: String,
    counter: Arc<GroupCounter>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: BTreeMap<VmId, Weak<ProtectedVm>>,
    pending: VecDeque<Pending>,
    newest_complete: Option<Monotonic>,
    interval: Duration,
}

#[derive(Debug)]
struct Pending {
    taken_at: Monotonic,
    /// Each VM's mark that is not yet durable.
    waiting: BTreeMap<VmId, WriteSeq>,
}

impl Group {
    /// Makes the group and begins to take its automatic checkpoints.
    pub(crate) fn start(id: GroupId, name: String, run: RunNumber, policy: &Policy) -> Arc<Self> {
        let group = Arc::new(Self {
            id,
            name,
            counter: Arc::new(GroupCounter::new(WriteSeq::before_run(run))),
            inner: Mutex::new(Inner {
                members: BTreeMap::new(),
                pending: VecDeque::new(),
                newest_complete: None,
                interval: Duration::from_secs(policy.checkpoint_interval_seconds),
            }),
        });
        tokio::spawn(take_regularly(Arc::downgrade(&group)));
        group
    }

    pub(crate) fn id(&self) -> GroupId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
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
        inner.pending.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().members.is_empty()
    }

    pub(crate) fn members(&self) -> Vec<Arc<ProtectedVm>> {
        self.lock().members.values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn has_several(&self) -> bool {
        self.lock().members.len() > 1
    }

    /// Takes a cut now. Refused while a VM of the group misses writes in its stream.
    pub(crate) fn take(&self, kind: CheckpointKind, tag: &str, now: Monotonic) -> Result<Checkpoint> {
        let members = self.members();
        for vm in &members {
            if vm.capture().status().gap_open {
                return Err(OperationError::unavailable(format!(
                    "VM {} is {}: no checkpoint is consistent until its sync is done; try again then",
                    vm.name(),
                    vm.state_name()
                )));
            }
        }
        // From here on the lock keeps acknowledgements out until every mark is known.
        let mut inner = self.lock();
        let cut = self.counter.draw();
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind,
            taken_at: clock::wall(),
            members: u16::try_from(members.len()).unwrap_or(u16::MAX),
            tag: tag.to_owned(),
        };
        let mut waiting = BTreeMap::new();
        for vm in &members {
            let Some(mark) = vm.capture().mark_checkpoint(&checkpoint) else {
                return Err(OperationError::unavailable(format!(
                    "VM {} began to sync just now; try again",
                    vm.name()
                )));
            };
            waiting.insert(vm.id(), mark);
        }
        inner.pending.push_back(Pending { taken_at: now, waiting });
        if inner.pending.len() > PENDING_MAX {
            inner.pending.pop_front();
        }
        Ok(checkpoint)
    }

    /// A VM's stream is durable so far.
    pub(crate) fn on_durable(&self, vm: VmId, up_to: WriteSeq) {
        let mut inner = self.lock();
        for pending in &mut inner.pending {
            if pending.waiting.get(&vm).is_some_and(|&mark| mark <= up_to) {
                pending.waiting.remove(&vm);
            }
        }
        while inner.pending.front().is_some_and(|pending| pending.waiting.is_empty()) {
            let done = inner.pending.pop_front().expect("looked at just now");
            inner.newest_complete = Some(done.taken_at);
        }
    }

    /// A VM's stream began anew: marks of before will never be acknowledged as such.
    pub(crate) fn on_restart(&self) {
        self.lock().pending.clear();
    }

    /// Age of the newest checkpoint complete at the recovery side.
    pub(crate) fn rpo_now(&self, now: Monotonic) -> Option<Duration> {
        self.lock().newest_complete.map(|at| now.since(at))
    }

    /// The group for the operator.
    pub(crate) fn to_api(&self) -> api::Group {
        let members = self.members();
        api::Group {
            id: self.id.to_string(),
            name: self.name.clone(),
            epoch: members.iter().map(|vm| vm.record().epoch).max().unwrap_or(0),
            side: "protected".into(),
            vms: members.iter().map(|vm| vm.name()).collect(),
            failover: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

/// Takes a checkpoint at each interval, as long as the group lives. One that cannot be taken is not: the
/// state of the VM that hinders it says why.
async fn take_regularly(group: Weak<Group>) {
    loop {
        let Some(interval) = group.upgrade().map(|group| group.lock().interval) else { return };
        tokio::time::sleep(interval).await;
        let Some(group) = group.upgrade() else { return };
        if !group.is_empty() {
            let _ = group.take(CheckpointKind::Automatic, "", clock::now());
        }
    }
}
