//! What an operator does with a journal: look, set, pin.

use super::Recovery;
use super::at::{journal_of, resolve};
use super::lock::shrinks;
use super::policy::{JournalPolicy, file_name};
use super::vm::RecoveredVm;
use crate::clock;
use crate::config::JournalMode;
use crate::error::{OperationError, Result, with_sources};
use anyhow::Context;
use joint::admission::Terms;
use journal::Expiry;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use types::{WallTime, WriteSeq};

impl Recovery {
    pub(crate) fn show_journal(&self, name: &str) -> Result<api::Journal> {
        let vm = self.vm(name)?;
        self.journal_to_api(&vm)
    }

    pub(super) fn journal_to_api(&self, vm: &Arc<RecoveredVm>) -> Result<api::Journal> {
        let journal = journal_of(vm)?;
        let status = journal.status();
        let settings = status.settings;
        let asked = vm.record().asked;
        let store = vm.take_folder(&self.journal_config)?;
        let replica = journal.disks().first().map(|disk| store.replica_path(&disk.name));
        let replica = replica.and_then(|path| path.parent().map(Path::to_path_buf)).unwrap_or_default();
        Ok(api::Journal {
            vm: vm.name(),
            folder: store.root().display().to_string(),
            replica_folder: replica.display().to_string(),
            direct_io: store.is_direct(),
            mode: mode_name(settings.mode).to_owned(),
            applied_seq: status.applied.to_string(),
            durable_seq: status.last_seq.to_string(),
            segments: status.segments,
            index_runs: status.runs,
            index_entries: status.index_entries,
            journal_bytes: status.journal_bytes,
            bytes_soft: settings.bytes_soft,
            bytes_hard: settings.bytes_hard,
            history_seconds: status.history.as_secs(),
            history_seconds_max: settings.history.as_secs(),
            asked: asked.map(|asked| api::AskedTerms {
                history_seconds: asked.history_seconds,
                bytes_max: asked.bytes_max,
            }),
            projected_history_seconds: status.projected_history.map(|projected| projected.as_secs()),
            checkpoints: status.checkpoints,
            keep_all_seconds: settings.thinning.all.as_secs(),
            keep_minutely_seconds: settings.thinning.minutely.as_secs(),
            keep_tagged_seconds: settings.tagged_history.as_secs(),
            damage: status.damage,
            damaged_bytes: status.damaged_bytes,
            pins: journal.pins().iter().map(pin_to_api).collect(),
            scrubbed_at: status.scrubbed_at.map(clock::to_text),
            lock: vm.lock_to_api(&journal),
        })
    }

    /// Changes what is set for one journal, and keeps it.
    pub(crate) fn set_journal(&self, name: &str, asked: &api::JournalSettings) -> Result<api::Journal> {
        let vm = self.vm(name)?;
        let journal = journal_of(&vm)?;
        let _one = vm.lock_settings();
        let before = vm.policy();
        let mode = match asked.mode.as_deref() {
            None => before.mode,
            Some("roll-forward") => Some(JournalMode::RollForward),
            Some("rollback") => Some(JournalMode::Rollback),
            Some(other) => {
                let detail = format!("no mode {other:?}: use roll-forward or rollback");
                return Err(OperationError::invalid(detail));
            }
        };
        let let_go = if asked.let_go { Some(whole_to_let_go_of(&vm, &journal)?) } else { before.let_go };
        let policy = JournalPolicy {
            let_go,
            mode,
            bytes_soft: asked.bytes_soft.or(before.bytes_soft),
            keep_all_seconds: asked.keep_all_seconds.or(before.keep_all_seconds),
            keep_minutely_seconds: asked.keep_minutely_seconds.or(before.keep_minutely_seconds),
            keep_tagged_seconds: asked.keep_tagged_seconds.or(before.keep_tagged_seconds),
            ..before
        };
        // All that can be refused is, before any of it is kept.
        let record = vm.record();
        let taken = record.asked.filter(|_| asked.take_asked);
        let settings = policy.settings(taken.map_or(record.terms(), Terms::from), &self.journal_config);
        settings.check().map_err(|error| OperationError::invalid(error.to_string()))?;
        if let Some(less) = shrinks(&vm.settings(&self.journal_config), &settings) {
            vm.check_not_locked(less)?;
        }
        self.state.save(&file_name(&vm.id().to_string()), &policy)?;
        vm.set_policy(policy);
        if let Some(taken) = taken {
            vm.take_asked(&self.state, taken)?;
            self.tell_asked(&vm);
        }
        journal.set(vm.settings(&self.journal_config));
        tracing::info!(vm = name, mode = mode_name(settings.mode), "journal settings changed");
        self.journal_to_api(&vm)
    }

    pub(crate) fn pin(&self, name: &str, request: &api::PinRequest) -> Result<api::Pin> {
        let vm = self.vm(name)?;
        let cut = resolve(&vm, &request.at)?;
        let expiry = request.expires_seconds.map(|seconds| {
            let after = Duration::from_secs(seconds);
            let micros = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
            Expiry { after, at: WallTime(clock::wall().0.saturating_add(micros)) }
        });
        let expires_at = expiry.map(|expiry| expiry.at);
        let journal = journal_of(&vm)?;
        let id = journal
            .pin(&request.owner, cut, expiry)
            .map_err(|error| OperationError::conflict(with_sources(&error)))?;
        tracing::info!(vm = name, pin = id, owner = request.owner, %cut, "pinned");
        Ok(pin_to_api(&journal::Pin { id, owner: request.owner.clone(), cut, expires_at }))
    }

    pub(crate) fn unpin(&self, name: &str, id: u64) -> Result<()> {
        let vm = self.vm(name)?;
        let journal = journal_of(&vm)?;
        let _set = vm.lock_settings();
        vm.check_not_locked("taking a pin away")?;
        let count = journal.unpin(|pin| pin.id == id).context("remove the pin")?;
        if count == 0 {
            let detail = format!("VM {name} has no pin {id}; `holdfast journal show {name}` lists them");
            return Err(OperationError::not_found(detail));
        }
        Ok(())
    }
}

/// The newest whole cut of a journal whose newest state is damaged: it holds the history until that is whole again.
fn whole_to_let_go_of(vm: &RecoveredVm, journal: &journal::Journal) -> Result<u64> {
    let whole = journal.newest_consistent(WriteSeq::MAX);
    match whole.filter(|_| journal.status().damaged_bytes > 0) {
        Some(whole) => Ok(whole.raw()),
        None => Err(OperationError::conflict(format!(
            "nothing of the newest state of VM {} is damaged, or no whole one is kept: its history is held for no such reason",
            vm.name()
        ))),
    }
}

fn pin_to_api(pin: &journal::Pin) -> api::Pin {
    api::Pin {
        id: pin.id,
        owner: pin.owner.clone(),
        cut: pin.cut.to_string(),
        expires_at: pin.expires_at.map(clock::to_text),
    }
}

fn mode_name(mode: journal::Mode) -> &'static str {
    match mode {
        journal::Mode::RollForward => "roll-forward",
        journal::Mode::Rollback => "rollback",
    }
}
