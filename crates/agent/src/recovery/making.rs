//! Keeping a VM that was not kept before.
//!
//! Several are made at once, for a disk may hang: whoever else comes meanwhile meets those that are being made as he does
//! those that are kept.
//!
//! What holds: whoever is refused leaves nothing behind. A VM is kept once its journal is made and its record saved; where
//! either fails, or nothing may be made, there is no record, no folder, and a seed lies where it lay. A folder that was
//! there before is never taken away.

use super::Recovery;
use super::admission::{Looked, failed};
use super::groups::site_of;
use super::policy::{JournalPolicy, file_name};
use super::record::RecoveryRecord;
use super::seeds::Seeds;
use super::vm::RecoveredVm;
use anyhow::Context;
use joint::admission::Answer;
use joint::life::Task;
use replication::wire::{Hello, Refusal, Refuse};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use types::VmId;
use types::limits::JOURNALS_MADE_AT_ONCE_MAX;

impl Recovery {
    /// Keeps a VM from now on. Only once its journal is made and its record saved anybody knows of it.
    pub(super) fn make(&self, hello: &Hello, peer: &str) -> Result<(), Refuse> {
        // Another connection may have made it meanwhile: whoever asks again learns that.
        let Some(being_made) = self.begin_making(hello, peer)? else { return Ok(()) };
        self.make_as(hello, peer, being_made.record.clone())
    }

    /// The right to make it, and as what; none where it is kept by now.
    fn begin_making(&self, hello: &Hello, peer: &str) -> Result<Option<BeingMade<'_>>, Refuse> {
        let mut making = self.making.lock().expect("a panic aborts the process");
        if self.vms().contains_key(&hello.vm) {
            return Ok(None);
        }
        // A name is one site's, and so is how many there may be: what hangs of one keeps no other out.
        let of_its_site = || making.values().filter(|other| site_of(&other.peer) == site_of(peer));
        let is_like_it =
            making.contains_key(&hello.vm) || of_its_site().any(|other| other.name == hello.vm_name);
        if is_like_it || of_its_site().count() >= JOURNALS_MADE_AT_ONCE_MAX {
            let detail = "journals of its site are being made just now, this one or one of its name among them, or too many: its disk may hang";
            return Err(Refuse { why: Refusal::Busy, detail: detail.into() });
        }
        let terms = match self.decide_among(hello, peer, &Looked::NOTHING, &making) {
            Answer::Make(terms) => terms,
            Answer::Refuse(refuse) => return Err(refuse),
            Answer::Accept(_) | Answer::Open => unreachable!("only what is kept is opened or used"),
        };
        let record = RecoveryRecord::from_hello(hello, peer, terms);
        making.insert(hello.vm, record.clone());
        Ok(Some(BeingMade { recovery: self, vm: hello.vm, record }))
    }

    fn make_as(&self, hello: &Hello, peer: &str, record: RecoveryRecord) -> Result<(), Refuse> {
        // Where its record was lost, what an operator has set still says where its journal lies.
        let policy = self.state.load::<JournalPolicy>(&file_name(&record.vm)).map(Option::unwrap_or_default);
        let vm = policy.and_then(|policy| RecoveredVm::new(record, policy));
        let vm = vm.map_err(|error| failed(format!("{error:#}")))?;
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
        self.vms().insert(hello.vm, vm);
        Ok(())
    }

    fn make_journal(&self, vm: &Arc<RecoveredVm>, hello: &Hello, seeds: &mut Seeds) -> Result<(), Refuse> {
        let store = vm.take_folder(&self.journal_config).map_err(|error| failed(format!("{error:#}")))?;
        let refuse = |why, detail: String| Refuse { why, detail };
        if let Some(why) = self.no_room(vm) {
            return Err(refuse(Refusal::JournalFull, why));
        }
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

/// A VM whose journal is being made; dropped once it is kept, or is not after all.
struct BeingMade<'a> {
    recovery: &'a Recovery,
    vm: VmId,
    record: RecoveryRecord,
}

impl Drop for BeingMade<'_> {
    fn drop(&mut self) {
        self.recovery.making.lock().expect("a panic aborts the process").remove(&self.vm);
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
