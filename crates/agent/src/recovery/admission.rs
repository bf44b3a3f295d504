//! Who may stream into which journal: what [`joint::admission`] decides of a greeting and of what is known here, done.
//!
//! What holds: nothing is written down and nothing set before it is decided, nor where what it was decided on has been
//! changed by then, as by an operator who hands the VM over; and the journal that was looked at cannot be closed until the
//! stream that is let in has it.

use super::Recovery;
use super::groups::site_of;
use super::life::Lease;
use super::record::RecoveryRecord;
use super::running_twice::is_fenced_off;
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use joint::admission::{Answer, Failover, Journal, Kept, Open, Other, Side, Vm};
use joint::life::Use;
use replication::wire::{Hello, Refusal, Refuse};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::{GroupId, VmId};

/// A greeting is asked about so often: what it was about may come and go meanwhile.
const ASKED_MAX: usize = 4;

pub(super) fn failed(detail: String) -> Refuse {
    Refuse { why: Refusal::JournalFailed, detail }
}

fn coming_and_going() -> Refuse {
    Refuse { why: Refusal::Busy, detail: "the journal is opened and closed just now".into() }
}

/// The VM of a greeting, what is recorded of it, and its journal where that is open.
pub(super) struct Looked {
    vm: Option<(Arc<RecoveredVm>, RecoveryRecord)>,
    lease: Option<Lease>,
}

impl Looked {
    pub(super) const NOTHING: Self = Self { vm: None, lease: None };
}

impl Recovery {
    /// The VM a greeting is for, where it may come; made where it is new. Nothing of it is taken over yet, and a journal
    /// that is closed stays so: whoever has the stream now may be about that.
    pub(super) fn let_in(&self, hello: &Hello, peer: &str) -> Result<Arc<RecoveredVm>, Refuse> {
        for _ in 0..ASKED_MAX {
            let looked = self.look(hello);
            match (self.decide(hello, peer, &looked), looked.vm) {
                (Answer::Refuse(refuse), vm) => {
                    if is_fenced_off(&refuse) {
                        vm.inspect(|(vm, _)| vm.note_fenced_greeting(clock::now()));
                    }
                    return Err(refuse);
                }
                (Answer::Make(_), _) => self.make(hello, peer)?,
                (Answer::Accept(_) | Answer::Open, vm) => {
                    return Ok(vm.expect("only what is kept is let in").0);
                }
            }
        }
        Err(coming_and_going())
    }

    /// The same for whoever has the VM's stream: with its journal open, and what he says of the VM taken over.
    pub(super) fn admit(&self, hello: &Hello, peer: &str) -> Result<(Arc<RecoveredVm>, Lease), Refuse> {
        for _ in 0..ASKED_MAX {
            let looked = self.look(hello);
            match (self.decide(hello, peer, &looked), looked) {
                (Answer::Refuse(refuse), _) => return Err(refuse),
                (Answer::Make(_), _) => self.make(hello, peer)?,
                (Answer::Accept(accept), Looked { vm: Some((vm, seen)), lease: Some(lease) }) => {
                    let followed = vm.follow(&self.state, (hello, peer), accept, &seen);
                    if followed.map_err(|error| failed(format!("{error:#}")))? {
                        self.have_kept_to(&vm, &lease);
                        self.tell_asked(&vm);
                        return Ok((vm, lease));
                    }
                }
                (Answer::Open, Looked { vm: Some((vm, _)), .. }) => {
                    self.open_journal(&vm, Use::Stream).map_err(|error| failed(error.detail))?;
                }
                (Answer::Accept(_) | Answer::Open, _) => unreachable!("only what is kept is opened or used"),
            }
        }
        Err(coming_and_going())
    }

    fn look(&self, hello: &Hello) -> Looked {
        let vm = self.vms().get(&hello.vm).cloned();
        let lease = vm.as_ref().and_then(|vm| vm.lease(Use::Stream).ok());
        Looked { vm: vm.map(|vm| (vm.clone(), vm.record())), lease }
    }

    fn decide(&self, hello: &Hello, peer: &str, looked: &Looked) -> Answer {
        self.decide_among(hello, peer, looked, &BTreeMap::new())
    }

    /// The same where some are being made, who count as kept.
    pub(super) fn decide_among(
        &self,
        hello: &Hello,
        peer: &str,
        looked: &Looked,
        making: &BTreeMap<VmId, RecoveryRecord>,
    ) -> Answer {
        let unread = self.unread_vm(hello.vm);
        let vm = match (&unread, &looked.vm) {
            (Some(why), _) => Kept::Unreadable(why),
            (None, Some((vm, record))) => {
                Kept::Is(to_vm(vm.group(), record, self.to_journal(vm, looked.lease.as_ref())))
            }
            (None, None) => Kept::Not,
        };
        let made = making
            .iter()
            .filter_map(|(id, record)| Some((*id, record.group_id.parse().ok()?, record.clone())));
        let kept = self.list().into_iter().map(|vm| (vm.id(), vm.group(), vm.record()));
        let records: Vec<(VmId, GroupId, RecoveryRecord)> = kept.chain(made).collect();
        let others: Vec<_> =
            records.iter().map(|(id, group, record)| to_other(*id, *group, record)).collect();
        let unread = self.unread_failover(hello.group);
        let group_site = self.remembered_site_of(hello.group);
        let side = Side {
            peer,
            site: site_of(peer),
            vm,
            failover: self.failover_known(hello.group, unread.as_deref()),
            group_site: group_site.as_deref(),
            others: &others,
            history_seconds_min: self.journal_config.history_seconds_min,
        };
        joint::admission::decide(hello, &side)
    }

    /// The site that a group is of, as far as VMs and failovers that are gone tell.
    fn remembered_site_of(&self, group: GroupId) -> Option<String> {
        let of_failover = || self.failovers().get(&group).map(|record| record.site.clone());
        self.remembered.site_of(group).or_else(of_failover).filter(|site| !site.is_empty())
    }

    fn to_journal(&self, vm: &RecoveredVm, lease: Option<&Lease>) -> Journal {
        let Some(journal) = lease else { return Journal::Away(vm.life().state()) };
        let (epoch, disks) = (journal.status().epoch, journal.disks());
        Journal::Open(Open { epoch, disks, no_room: self.no_room(vm) })
    }

    /// Has a journal kept to what is known now. What an operator sets meanwhile is not taken back by what was read before.
    fn have_kept_to(&self, vm: &RecoveredVm, lease: &Lease) {
        let _set = vm.lock_settings();
        lease.set(vm.settings(&self.journal_config));
    }

    /// Says as long as it is so that a VM's site asks for less history than is kept.
    pub(super) fn tell_asked(&self, vm: &RecoveredVm) {
        let cause = asked_alert(vm);
        let Some(asked) = vm.record().asked else { return self.alerts.clear(cause) };
        let (kept, name) = (vm.record(), vm.label());
        let bytes = |bytes| match bytes {
            0 => "no limit of its size".to_owned(),
            bytes => format!("{bytes} bytes at most"),
        };
        self.alerts.raise(
            cause,
            format!(
                "VM {name}: its site asks for a history of {} s with {}; {} s with {} are kept on. If that is meant, \
                 `holdfast journal set {} --take-asked`; if not, see who has changed it there",
                asked.history_seconds,
                bytes(asked.bytes_max),
                kept.history_seconds,
                bytes(kept.journal_bytes_max),
                vm.id()
            ),
        );
    }

    /// What is to be said where a journal's disk has less room than is left to others.
    pub(super) fn no_room(&self, vm: &RecoveredVm) -> Option<String> {
        let (free, floor) = (vm.free_bytes(), self.free_bytes_min);
        let folder = vm.folder(&self.journal_dir);
        (free < floor).then(|| {
            format!(
                "{free} bytes are free under {}, {floor} are needed{}",
                folder.display(),
                vm.locked_words()
            )
        })
    }

    /// Who has the authority over a group, as far as is known.
    pub(super) fn failover_known<'a>(&self, group: GroupId, unread: Option<&'a str>) -> Failover<'a> {
        match (unread, self.failovers().get(&group)) {
            (Some(why), _) => Failover::Unreadable(why),
            (None, None) => Failover::Never,
            (None, Some(record)) => {
                Failover::Recorded { epoch: record.epoch(), released: record.is_released() }
            }
        }
    }
}

/// What a VM whose site asks for less history than is kept is an alert of.
pub(super) fn asked_alert(vm: &RecoveredVm) -> Cause {
    Cause::new(AlertKind::AskedLess, vm.id().to_string())
}

pub(super) fn to_vm(group: GroupId, record: &RecoveryRecord, journal: Journal) -> Vm<'_> {
    Vm {
        site: site_of(&record.peer),
        peer: &record.peer,
        name: &record.name,
        group,
        group_name: &record.group,
        left: record.left.is_some(),
        forgotten: record.forgotten,
        terms: record.terms(),
        journal,
    }
}

fn to_other(id: VmId, group: GroupId, record: &RecoveryRecord) -> Other<'_> {
    Other {
        id,
        site: site_of(&record.peer),
        peer: &record.peer,
        name: &record.name,
        group,
        group_name: &record.group,
        left: record.left.is_some(),
    }
}
