//! What is decided about a peer's greeting: one function of what it says and of what is known here, over all that is valid.
//!
//! What it keeps, whatever a peer with a valid certificate says:
//! - nothing of one site is touched by another, nor a VM by another agent than the one that has it, and no record changes
//!   what it belongs to;
//! - who does not have the authority over a group is told so before anything is taken from him;
//! - whoever is refused changes nothing: not the definition, not the name, not the terms;
//! - a word of the protected side never shortens or thins the history that is here. It may ask for less, which is shown to
//!   an operator of this side, and is so from when he takes it over.
//!
//! A VM that is not kept is made, and a journal that is closed is opened, by whoever performs the answer; then he asks
//! again, for what is known has changed.

use crate::life::{Reason, State, Task};
use replication::wire::{Hello, Leave, Refusal, Refuse};
use types::limits::KEPT_VMS_OF_SITE_MAX;
use types::{DiskSpec, Epoch, GroupId, VmId};

/// What a journal is kept to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub history_seconds: u64,
    /// 0: as much as its disk holds.
    pub bytes_max: u64,
}

impl Terms {
    /// What a greeting asks for, with what this side keeps of anybody.
    pub fn asked(hello: &Hello, history_seconds_min: u64) -> Self {
        let history_seconds = hello.history_seconds.max(history_seconds_min);
        Self { history_seconds, bytes_max: hello.journal_bytes_max }
    }

    /// The least that keeps to both.
    #[must_use]
    pub fn grown_to(self, asked: Self) -> Self {
        let bytes_max = match (self.bytes_max, asked.bytes_max) {
            (0, _) | (_, 0) => 0,
            (own, asked) => own.max(asked),
        };
        Self { history_seconds: self.history_seconds.max(asked.history_seconds), bytes_max }
    }
}

/// What is known here when a peer greets.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    /// Who greets, as his certificate names him, and the site it is of.
    pub peer: &'a str,
    pub site: &'a str,
    pub vm: Kept<'a>,
    pub failover: Failover<'a>,
    /// The site that the group is of by what is remembered of VMs of it that are not kept any more.
    pub group_site: Option<&'a str>,
    /// Everything that is kept, but for what is being deleted.
    pub others: &'a [Other<'a>],
    /// Nothing is kept shorter, whatever is asked.
    pub history_seconds_min: u64,
}

/// The VM that is greeted for.
#[derive(Debug, Clone)]
pub enum Kept<'a> {
    Not,
    /// Its record is there and cannot be read.
    Unreadable(&'a str),
    Is(Vm<'a>),
}

#[derive(Debug, Clone)]
pub struct Vm<'a> {
    pub site: &'a str,
    /// The agent that sends it, as its certificate names it.
    pub peer: &'a str,
    pub name: &'a str,
    pub group: GroupId,
    pub group_name: &'a str,
    /// It is protected no more.
    pub left: bool,
    /// It is being deleted.
    pub forgotten: bool,
    pub terms: Terms,
    pub journal: Journal,
}

/// Its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Journal {
    /// In any state but open.
    Away(State),
    Open(Open),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub epoch: Epoch,
    pub disks: Vec<DiskSpec>,
    /// Where its disk has less room than is left to others: what is to be said of that.
    pub no_room: Option<String>,
}

/// The failover of the group that is greeted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failover<'a> {
    Never,
    /// One is recorded, and cannot be read.
    Unreadable(&'a str),
    /// The group runs here, or did and was rolled back.
    Recorded {
        epoch: Epoch,
        released: bool,
    },
}

/// A VM that is kept here.
#[derive(Debug, Clone, Copy)]
pub struct Other<'a> {
    pub id: VmId,
    pub site: &'a str,
    pub peer: &'a str,
    pub name: &'a str,
    pub group: GroupId,
    pub group_name: &'a str,
    pub left: bool,
}

/// What to do about a greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Refuse(Refuse),
    /// To be kept from now on, to these terms; then it is asked again.
    Make(Terms),
    /// To be opened; then it is asked again.
    Open,
    /// It streams, as soon as it has the stream.
    Accept(Accept),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// What the journal is kept to from now on.
    pub terms: Terms,
    /// What is asked for, where that is less in something.
    pub asks_less: Option<Terms>,
}

fn refuse(why: Refusal, detail: impl Into<String>) -> Refuse {
    Refuse { why, detail: detail.into() }
}

/// What is said of a VM whose record cannot be read, whatever is asked of it.
pub fn unread(why: &str) -> Refuse {
    refuse(
        Refusal::JournalFailed,
        format!("what the recovery side has recorded of this VM cannot be read: {why}; mend it there"),
    )
}

/// Decides about a greeting.
pub fn decide(hello: &Hello, side: &Side<'_>) -> Answer {
    judge(hello, side).unwrap_or_else(Answer::Refuse)
}

fn judge(hello: &Hello, side: &Side<'_>) -> Result<Answer, Refuse> {
    let asked = Terms::asked(hello, side.history_seconds_min);
    match &side.vm {
        Kept::Unreadable(why) => Err(unread(why)),
        Kept::Not => {
            check_others(hello, side)?;
            check_authority(hello, side)?;
            check_count(side)?;
            Ok(Answer::Make(asked))
        }
        Kept::Is(vm) => {
            check_there(vm)?;
            check_owner(hello, side, vm)?;
            check_others(hello, side)?;
            check_authority(hello, side)?;
            let Journal::Open(open) = &vm.journal else { return Ok(Answer::Open) };
            check_journal(hello, open)?;
            let terms = vm.terms.grown_to(asked);
            Ok(Answer::Accept(Accept { terms, asks_less: (terms != asked).then_some(asked) }))
        }
    }
}

/// Whether it is kept on, and its folder its own.
fn check_there(vm: &Vm<'_>) -> Result<(), Refuse> {
    if vm.forgotten {
        return Err(refuse(Refusal::Busy, "what was kept of this VM before is being deleted"));
    }
    match &vm.journal {
        Journal::Away(State::Taken(Task::Move) | State::Closing(Reason::Taken(Task::Move))) => {
            Err(refuse(Refusal::Busy, "the journal is being moved"))
        }
        Journal::Away(
            State::Taken(Task::Delete) | State::Closing(Reason::Taken(Task::Delete)) | State::Gone,
        ) => Err(refuse(Refusal::Busy, "what was kept of this VM before is being deleted")),
        Journal::Open(_)
        | Journal::Away(
            State::Open | State::Closed | State::Opening | State::Binding | State::Closing(Reason::Failed),
        ) => Ok(()),
    }
}

/// What a peer says of a VM counts only where it is the agent that has the VM, and VM and group are its own site's.
fn check_owner(hello: &Hello, side: &Side<'_>, vm: &Vm<'_>) -> Result<(), Refuse> {
    let not_accepted = |detail| Err(refuse(Refusal::NotAccepted, detail));
    if vm.site != side.site {
        return not_accepted(format!("this VM is kept for site {}, and {} is not of it", vm.site, side.peer));
    }
    if vm.peer != side.peer {
        return not_accepted(format!(
            "this VM is sent by {}: where {} has it now, an operator of the recovery side says so with `holdfast vm hand-over \
             {} --to {1}`",
            vm.peer, side.peer, hello.vm
        ));
    }
    if vm.group != hello.group {
        return not_accepted(format!(
            "this VM's journal belongs to group {} ({}), not to {} ({})",
            vm.group_name, vm.group, hello.group_name, hello.group
        ));
    }
    if vm.left {
        return not_accepted(format!(
            "VM {} has left its group and its history has ended: protect it anew",
            vm.name
        ));
    }
    Ok(())
}

/// Among what a site protects to here now a name means one VM or one group, and a group's id is one site's.
fn check_others(hello: &Hello, side: &Side<'_>) -> Result<(), Refuse> {
    let not_accepted = |detail| Err(refuse(Refusal::NotAccepted, detail));
    if let Some(site) = side.group_site.filter(|site| *site != side.site) {
        return not_accepted(format!(
            "the group's id is that of a group of site {site}, whose VMs were kept here: protect the VM under another group"
        ));
    }
    for other in side.others {
        if other.group == hello.group && other.site != side.site {
            return not_accepted(format!("the group's id is that of a group of site {}", other.site));
        }
    }
    let now = side.others.iter().filter(|other| other.site == side.site && !other.left);
    for other in now {
        if other.group != hello.group && other.group_name == hello.group_name {
            return not_accepted(format!(
                "site {} has another group named {} here ({}): join it with `--coordinator`, give this one another name, \
                 or unprotect the VMs of the other",
                side.site, other.group_name, other.group
            ));
        }
        if other.id != hello.vm && other.name == hello.vm_name {
            return not_accepted(format!(
                "this side already keeps a VM named {} (from {}): remove its journal with `holdfast vm forget {}`, or \
                 give one of them another name",
                other.name, other.peer, other.id
            ));
        }
    }
    Ok(())
}

/// Whether whoever speaks for a group with this epoch has its authority.
fn check_authority(hello: &Hello, side: &Side<'_>) -> Result<(), Refuse> {
    authority(hello.epoch, &hello.group_name, side.failover)
}

/// The same for anybody who speaks for a group.
///
/// # Errors
/// What to answer instead.
pub fn authority(said: Epoch, group: &str, failover: Failover<'_>) -> Result<(), Refuse> {
    match failover {
        Failover::Never => Ok(()),
        Failover::Unreadable(why) => Err(refuse(
            Refusal::JournalFailed,
            format!(
                "what is recorded of a failover of this group cannot be read, and its VMs may run at the recovery side: \
                 {why}; mend it there"
            ),
        )),
        Failover::Recorded { epoch, released: true } if said >= epoch => Ok(()),
        Failover::Recorded { epoch, released } => {
            let detail = match released {
                true => format!("the failover was rolled back, the group goes on with epoch {epoch}"),
                false => format!("group {group} has failed over to this side"),
            };
            Err(refuse(Refusal::Fenced { epoch, released }, detail))
        }
    }
}

/// Decides about a word that a VM has left its group; whether there is anything to write down. Of a VM that is not kept
/// there is not.
///
/// # Errors
/// What to answer where it is not believed, or nobody can tell: then it is said again.
pub fn leave(leave: &Leave, peer: &str, vm: &Kept<'_>, failover: Failover<'_>) -> Result<bool, Refuse> {
    let vm = match vm {
        Kept::Unreadable(why) => return Err(unread(why)),
        Kept::Not => return Ok(false),
        Kept::Is(vm) => vm,
    };
    if vm.peer != peer || vm.group != leave.group {
        let detail = format!("this VM is sent by {} and belongs to group {}", vm.peer, vm.group);
        return Err(refuse(Refusal::NotAccepted, detail));
    }
    // Who has lost the authority over a group does not say who belongs to it.
    authority(leave.epoch, vm.group_name, failover)?;
    if let Journal::Open(open) = &vm.journal
        && leave.epoch < open.epoch
    {
        let why = Refusal::Fenced { epoch: open.epoch, released: true };
        return Err(refuse(why, format!("the journal is at epoch {}", open.epoch)));
    }
    Ok(true)
}

/// No site fills this side with journals.
fn check_count(side: &Side<'_>) -> Result<(), Refuse> {
    let count = side.others.iter().filter(|other| other.site == side.site).count();
    match count < KEPT_VMS_OF_SITE_MAX {
        true => Ok(()),
        false => Err(refuse(
            Refusal::NotAccepted,
            format!(
                "{count} VMs of site {} are kept at this side, and {KEPT_VMS_OF_SITE_MAX} are possible: remove the \
                 journals of some with `holdfast vm forget` there",
                side.site
            ),
        )),
    }
}

/// What an open journal says to it.
fn check_journal(hello: &Hello, open: &Open) -> Result<(), Refuse> {
    let epoch = open.epoch;
    if hello.epoch < epoch {
        // No failover is going on (that was checked first), so the sender may take the epoch up.
        let why = Refusal::Fenced { epoch, released: true };
        return Err(refuse(why, format!("the journal is at epoch {epoch}")));
    }
    if open.disks != hello.disks {
        let list = |disks: &[DiskSpec]| {
            let rows = disks.iter().map(|disk| format!("{} of {} bytes", disk.name, disk.size_bytes));
            rows.collect::<Vec<_>>().join(", ")
        };
        let (ours, theirs) = (list(&open.disks), list(&hello.disks));
        return Err(refuse(
            Refusal::DisksDiffer,
            format!("the journal holds {ours}, the VM has {theirs}; unprotect the VM and protect it anew"),
        ));
    }
    match &open.no_room {
        None => Ok(()),
        Some(why) => Err(refuse(Refusal::JournalFull, why.as_str())),
    }
}

#[cfg(test)]
mod tests;
