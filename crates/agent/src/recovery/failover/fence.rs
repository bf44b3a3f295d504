//! Fencing a group that fails over.
//!
//! A disk that hangs answers nobody, and a failover is asked for because something does. So all VMs are asked and fenced
//! side by side, within one bound: the operator is told the name of who does not answer where it was to be opened, and it is
//! passed over where the others go without it.

use super::super::at::hindrance;
use super::super::at::journal_of;
use super::super::cut;
use super::super::groups::KeptGroup;
use super::super::side_by_side::side_by_side;
use super::super::vm::RecoveredVm;
use crate::error::{OperationError, Result};
use anyhow::Context;
use joint::choice::Pick;
use replication::wire::{Refusal, Refuse};
use std::sync::Arc;
use std::time::Duration;
use types::Epoch;

/// How long a failover waits for the journals of a group to say what they have.
const ANSWER_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long it waits for what is being written to them.
const FENCE_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Why a VM is left out.
pub(super) const SILENT: &str = "the disk of its journal does not answer";

/// A group whose journals were asked what they have.
#[derive(Debug)]
pub(in super::super) struct Asked {
    /// Without those that have not answered.
    group: KeptGroup,
    silent: Vec<Arc<RecoveredVm>>,
    /// Those that are opened, as it stands now.
    pub(super) meant: Vec<Arc<RecoveredVm>>,
}

impl Asked {
    /// Finds out all that can hinder a failover before anything is fenced.
    pub(super) fn ask(group: &KeptGroup, at: &str, pick: &Pick) -> Result<Self> {
        let (group, silent) = who_answers(group, pick)?;
        let meant = cut::find(&group, at, pick)?.vms;
        Ok(Self { group, silent, meant })
    }

    /// Nothing of the old epoch is appended from here on: to no journal of the group, for it is the group whose authority
    /// passes, also where only some of its VMs are opened. The group without those that do not answer is returned; the
    /// record of the failover keeps their streams out, and they are fenced once they answer.
    ///
    /// # Errors
    /// Where a VM that is meant does not answer, or cannot be fenced.
    pub(super) fn fence(self, epoch: Epoch) -> Result<KeptGroup> {
        let one = move |vm: &RecoveredVm| fence_one(vm, epoch);
        drop(side_by_side(&self.silent, Duration::ZERO, one));
        let is_meant = |vm: &Arc<RecoveredVm>| self.meant.iter().any(|meant| meant.id() == vm.id());
        let all: Vec<_> = self.group.all().cloned().collect();
        let (answers, silent) = side_by_side(&all, FENCE_PATIENCE, one);
        for (vm, fenced) in answers {
            match fenced {
                Err(error) if is_meant(&vm) => return Err(error),
                Err(error) => {
                    tracing::warn!(vm = vm.name(), error = error.detail, "fenced without its journal");
                }
                Ok(()) => {}
            }
        }
        refuse_silent(silent.iter().filter(|vm| is_meant(vm)), FENCE_PATIENCE)?;
        Ok(self.group.without(&silent))
    }
}

/// The group without those whose journals do not answer, and who they are.
///
/// # Errors
/// Where one of them is to be opened.
fn who_answers(group: &KeptGroup, pick: &Pick) -> Result<(KeptGroup, Vec<Arc<RecoveredVm>>)> {
    let all: Vec<_> = group.all().cloned().collect();
    let (_, silent) = side_by_side(&all, ANSWER_PATIENCE, hindrance);
    // Former members are opened where they are named.
    let is_meant = |vm: &&Arc<RecoveredVm>| {
        pick.has(vm.id()) && (matches!(pick, Pick::Only(_)) || vm.record().left.is_none())
    };
    refuse_silent(silent.iter().filter(is_meant), ANSWER_PATIENCE)?;
    Ok((group.clone().without(&silent), silent))
}

/// Once this returns, all that is ever acknowledged of the old epoch is in the journal: a cut that is chosen then has
/// it, and nothing else comes to be in it. What had its place before the epoch was raised, also by a connection that nobody
/// has stopped, is waited for, as long as its disk takes.
fn fence_one(vm: &RecoveredVm, epoch: Epoch) -> Result<()> {
    let why = Refusal::Fenced { epoch, released: false };
    if !vm.stop_stream(Refuse { why, detail: "the group has failed over to this side".into() }) {
        tracing::warn!(vm = vm.name(), "its stream does not let go; the epoch stops what it sends");
    }
    let journal = journal_of(vm)?;
    while !journal.fence(epoch, FENCE_PATIENCE).context("raise the journal's epoch")? {}
    Ok(())
}

fn refuse_silent<'a>(mut silent: impl Iterator<Item = &'a Arc<RecoveredVm>>, waited: Duration) -> Result<()> {
    let Some(first) = silent.next() else { return Ok(()) };
    let names: Vec<_> = std::iter::once(first).chain(silent).map(|vm| vm.name()).collect();
    let words: Vec<_> = names.iter().map(|name| format!("--without {name}")).collect();
    Err(OperationError::unavailable(format!(
        "VM {}: the disk of its journal has not answered for {} s; see to the disk, or give `{}` to fail the others over \
         without",
        names.join(", "),
        waited.as_secs(),
        words.join(" ")
    )))
}
