//! Who may stream into which journal.
//!
//! What holds: whoever is refused leaves nothing behind. A VM that is not kept yet is kept once its journal is made and
//! its record saved; where either fails, or nothing may be made, there is no record, no folder, and a seed lies where it
//! lay. A folder that was there before is never taken away.

use super::Recovery;
use super::groups::site_of;
use super::life::{Lease, explain};
use super::policy::JournalPolicy;
use super::record::RecoveryRecord;
use super::seeds::Seeds;
use super::vm::RecoveredVm;
use anyhow::Context;
use joint::life::{Reason, State, Task, Use};
use replication::wire::{Hello, Refusal, Refuse};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use types::{Epoch, GroupId};

fn refuse(why: Refusal, detail: String) -> Refuse {
    Refuse { why, detail }
}

fn failed(detail: String) -> Refuse {
    refuse(Refusal::JournalFailed, detail)
}

impl Recovery {
    /// The VM a stream is for, with its journal open; made where it is new.
    pub(super) fn admit(
        self: &Arc<Self>,
        hello: &Hello,
        peer: &str,
    ) -> Result<(Arc<RecoveredVm>, Lease), Refuse> {
        self.check_vm_was_read(hello.vm)?;
        let known = self.vms().get(&hello.vm).cloned();
        if known.as_ref().is_some_and(|vm| vm.is_forgotten()) {
            return Err(refuse(Refusal::Busy, "what was kept of this VM before is being deleted".into()));
        }
        // Whoever moves its journal has it for himself meanwhile, for hours perhaps.
        let is_taken = |state| matches!(state, State::Taken(_) | State::Closing(Reason::Taken(_)));
        if let Some(state) = known.as_ref().map(|vm| vm.life().state()).filter(|state| is_taken(*state)) {
            return Err(refuse(Refusal::Busy, format!("the journal is {}", explain(state))));
        }
        self.check_owner(hello, peer, known.as_deref())?;
        self.check_epoch(hello.group, &hello.group_name, hello.epoch)?;
        let vm = match known {
            Some(vm) => vm,
            None => self.make(hello, peer)?,
        };
        vm.follow(&self.state, hello, peer).map_err(|error| failed(format!("{error:#}")))?;
        let journal = self.open_journal(&vm, Use::Stream).map_err(|error| failed(error.detail))?;
        let epoch = journal.status().epoch;
        if hello.epoch < epoch {
            // No failover is going on (that was checked first), so the sender may take the epoch up.
            let detail = format!("the journal is at epoch {epoch}");
            return Err(refuse(Refusal::Fenced { epoch, released: true }, detail));
        }
        let disks = journal.disks();
        if disks != hello.disks {
            let list = |disks: &[types::DiskSpec]| {
                let rows = disks.iter().map(|disk| format!("{} of {} bytes", disk.name, disk.size_bytes));
                rows.collect::<Vec<_>>().join(", ")
            };
            let detail = format!(
                "the journal holds {}, the VM has {}; unprotect the VM and protect it anew",
                list(&disks),
                list(&hello.disks)
            );
            return Err(refuse(Refusal::DisksDiffer, detail));
        }
        journal.set(vm.settings(&self.journal_config));
        self.check_room(&vm)?;
        Ok((vm, journal))
    }

    fn check_room(&self, vm: &RecoveredVm) -> Result<(), Refuse> {
        let (free, floor) = (vm.free_bytes(), self.free_bytes_min);
        if free >= floor {
            return Ok(());
        }
        let folder = vm.folder(&self.journal_dir);
        let detail = format!("{free} bytes are free under {}, {floor} are needed", folder.display());
        Err(refuse(Refusal::JournalFull, detail))
    }

    /// What a peer says of a VM counts only where VM, group and name are its own site's: no message changes what
    /// a record belongs to.
    fn check_owner(&self, hello: &Hello, peer: &str, known: Option<&RecoveredVm>) -> Result<(), Refuse> {
        let refuse = |detail: String| Err(Refuse { why: Refusal::NotAccepted, detail });
        let site = site_of(peer);
        if let Some(vm) = known {
            let (owner, record) = (vm.site(), vm.record());
            if owner != site {
                return refuse(format!("this VM is kept for site {owner}, and {peer} is not of it"));
            }
            if record.group_id != hello.group.to_string() {
                let detail = format!(
                    "this VM's journal belongs to group {} ({}), not to {} ({})",
                    record.group, record.group_id, hello.group_name, hello.group
                );
                return refuse(detail);
            }
            if record.left.is_some() {
                return refuse(format!(
                    "VM {} has left its group and its history has ended: protect it anew",
                    record.name
                ));
            }
        }
        for group in self.kept_groups() {
            if group.id == hello.group && group.site != site {
                return refuse(format!("the group's id is that of a group of site {}", group.site));
            }
            let has_name = group.site == site && group.name == hello.group_name;
            if has_name && group.id != hello.group && !group.members.is_empty() {
                return refuse(format!(
                    "site {site} has another group named {} here ({}): join it with `--coordinator`, give this one \
                     another name, or unprotect the VMs of the other",
                    group.name, group.id
                ));
            }
        }
        self.check_vm_name(hello, site)
    }

    /// Among the VMs of a site that are protected now a name means one of them.
    fn check_vm_name(&self, hello: &Hello, site: &str) -> Result<(), Refuse> {
        let other = self.list().into_iter().find(|vm| {
            let record = vm.record();
            vm.id() != hello.vm && vm.site() == site && record.name == hello.vm_name && record.left.is_none()
        });
        let Some(other) = other else { return Ok(()) };
        let detail = format!(
            "this side already keeps a VM named {} (from {}): remove its journal with `holdfast vm forget {}`, \
             or give one of them another name",
            hello.vm_name,
            other.record().peer,
            other.id()
        );
        Err(Refuse { why: Refusal::NotAccepted, detail })
    }

    /// Whether whoever speaks for a group with this epoch has its authority.
    pub(super) fn check_epoch(&self, group: GroupId, name: &str, said: Epoch) -> Result<(), Refuse> {
        self.check_failover_was_read(group).map_err(|error| failed(error.detail))?;
        let failovers = self.failovers();
        let Some(record) = failovers.get(&group) else { return Ok(()) };
        let (epoch, released) = (Epoch(record.epoch), record.is_released());
        if said >= epoch && released {
            return Ok(());
        }
        let detail = if released {
            format!("the failover was rolled back, the group goes on with epoch {epoch}")
        } else {
            format!("group {name} has failed over to this side")
        };
        Err(Refuse { why: Refusal::Fenced { epoch, released }, detail })
    }

    /// Keeps a VM from now on. Only once its journal is made and its record saved anybody knows of it.
    fn make(self: &Arc<Self>, hello: &Hello, peer: &str) -> Result<Arc<RecoveredVm>, Refuse> {
        let _one = self.making.lock().expect("a panic aborts the process");
        if let Some(vm) = self.vms().get(&hello.vm) {
            return Ok(vm.clone()); // Another connection has made it meanwhile.
        }
        self.check_owner(hello, peer, None)?;
        let record = RecoveryRecord::from_hello(hello, peer, false);
        let vm = RecoveredVm::new(record, JournalPolicy::default())
            .map_err(|error| failed(format!("{error:#}")))?;
        let folders = vm.folders(&self.journal_config);
        let is_new = !folders.iter().any(|folder| folder.exists());
        let mut seeds = Seeds::default();
        let made = self.make_journal(&vm, hello, &mut seeds).and_then(|()| {
            let record = vm.record();
            self.state.save(&record.file_name(), &record).map_err(|error| failed(format!("{error:#}")))
        });
        if let Err(refused) = made {
            if is_new && let Err(error) = unmake(&vm, &folders, &mut seeds) {
                let error = format!("{error:#}");
                tracing::warn!(vm = hello.vm_name, error, "something is left of a VM that is not kept");
            }
            return Err(refused);
        }
        tracing::info!(vm = hello.vm_name, group = hello.group_name, peer, "journal made");
        self.vms().insert(hello.vm, vm.clone());
        Ok(vm)
    }

    fn make_journal(&self, vm: &Arc<RecoveredVm>, hello: &Hello, seeds: &mut Seeds) -> Result<(), Refuse> {
        let store = vm.take_folder(&self.journal_config).map_err(|error| failed(format!("{error:#}")))?;
        self.check_room(vm)?;
        let settings = vm.settings(&self.journal_config);
        let unfit = |error| refuse(Refusal::NotAccepted, format!("{error:#}"));
        *seeds = self.find_seeds(vm, &store, &hello.disks).map_err(unfit)?;
        seeds.take().map_err(unfit)?;
        let seeded = !seeds.is_empty();
        if seeded {
            vm.set_seeded();
        }
        let create = if seeded { journal::Journal::create_seeded } else { journal::Journal::create };
        let opening = vm.life().begin().expect("nobody else knows of it yet");
        let made = create(store, hello.vm, &hello.vm_name, &hello.disks, hello.epoch, settings);
        match made {
            Ok(journal) => self.use_opened(vm, opening, Arc::new(journal)),
            // The agent died between making it and recording it. Whether its replicas were seeds is not known any
            // more: if they were not, comparing them costs reading, where the other word would cost blocks.
            Err(journal::CreateError::Exists) => {
                vm.set_seeded();
                self.open_now(vm, opening).map_err(|error| failed(error.detail))?;
            }
            Err(error) => return Err(failed(crate::error::with_sources(&error))),
        }
        Ok(())
    }
}

/// Takes away what was made for a VM that is not kept after all; its seeds first.
fn unmake(vm: &RecoveredVm, folders: &[PathBuf], seeds: &mut Seeds) -> anyhow::Result<()> {
    let taken = vm.life().take_folder(Task::Delete, Duration::ZERO);
    let taken = taken.map_err(|_| anyhow::anyhow!("somebody uses a journal that nobody knows of"))?;
    seeds.give_back()?;
    vm.let_go_of_folder();
    for folder in folders.iter().filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    taken.deleted();
    Ok(())
}
