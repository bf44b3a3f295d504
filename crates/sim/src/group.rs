//! A group whose members come and go, by seed: guests are protected and protected no more, protected anew while their old
//! history is kept, wait to be taken up, or come and are given up before they were ever in sync.
//!
//! Who is of the group is decided by the product on both sides ([`joint::membership`], [`joint::admission`]), what an operator
//! means by `latest`, a time, a tag or a checkpoint by [`joint::choice`], and what guests are promised by [`joint::promise`].
//!
//! The group fails over at any moment, with the agent killed between the steps, goes back, or is committed; its old side
//! lives on and comes again with the epoch it had. After a commit the guests are protected anew, in another group.
//! Somebody of another site lies about who he is (`lies.rs`). Journals are closed, moved and opened again as [`joint::life`] decides.

mod asked;
mod coming;
mod failing_over;
mod kept;
mod lies;
mod lives;
mod living;
mod look;
mod rest;
mod site;
mod step;

pub use step::run_group;

use crate::invariants::Pair;
use crate::link::Connection;
use crate::local_disk::SimDisk;
use crate::rng::Rng;
use crate::summary::Summary;
use joint::promise::Promises;
use kept::KeptRecord;
use lives::Lived;
use site::Site;
use splitter::SyncPolicy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use types::{CheckpointId, Epoch, GroupCounter, Monotonic, VmId, WriteSeq};

pub(crate) struct GroupWorld {
    rng: Rng,
    now: Monotonic,
    run: u32,
    counter: Arc<GroupCounter>,
    /// The guests of the protected side, protected or not.
    guests: Vec<Guest>,
    /// Every VM that was ever protected and of which something is left somewhere, the newest last.
    vms: Vec<GroupVm>,
    /// The group that VMs come to now; those before it have gone over for good.
    group: u8,
    /// VMs are never named twice.
    named: u8,
    promises: Promises,
    sync: Option<SyncPolicy>,
    network_up: bool,
    site: Site,
    /// Whom each cut that was taken has.
    taken: BTreeMap<CheckpointId, BTreeSet<VmId>>,
    /// The last write that any guest was told of because the other side has it.
    promised: WriteSeq,
    /// One in so many faults that are drawn happens.
    calm: u64,
    tell: bool,
    summary: Summary,
}

/// A machine at the protected side, with its disk.
struct Guest {
    name: String,
    disk: SimDisk,
}

/// One protection of a guest, from when it begins until nothing is left of it.
struct GroupVm {
    guest: usize,
    group: u8,
    pair: Pair,
    /// Written down at the protected side.
    protected: Protected,
    /// Written down there until the recovery side knows that it has left.
    departure: Option<Departure>,
    /// What the recovery side has written down of it.
    record: Option<KeptRecord>,
    lived: Lived,
    link: Option<Connection>,
    wants: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protected {
    Yes,
    /// It waits to be taken up.
    Stalled,
    No,
}

#[derive(Debug, Clone, Copy)]
struct Departure {
    epoch: Epoch,
    at: WriteSeq,
}

impl GroupVm {
    fn id(&self) -> VmId {
        self.pair.source.vm
    }

    /// Whether anything is left of it anywhere.
    fn is_left(&self) -> bool {
        self.protected == Protected::No && self.departure.is_none() && self.record.is_none()
    }
}

impl GroupWorld {
    fn say(&self, what: &str) {
        if self.tell {
            eprintln!("{:9.3} {what}", self.now.0.as_secs_f64());
        }
    }

    /// Those of the group that VMs come to now.
    fn of_group(&self) -> impl Iterator<Item = &GroupVm> {
        self.vms.iter().filter(|vm| vm.group == self.group)
    }

    /// The VM that a guest is now.
    fn vm_of(&self, guest: usize) -> Option<usize> {
        self.vms.iter().position(|vm| vm.guest == guest && vm.protected != Protected::No)
    }

    fn any_vm(&mut self) -> Option<usize> {
        (!self.vms.is_empty()).then(|| self.rng.below(self.vms.len() as u64) as usize)
    }
}
