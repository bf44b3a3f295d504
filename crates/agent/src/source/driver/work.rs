//! What a stream has done that takes long: beside its driver, which hears how it ended.

use super::{Driver, Input};
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use crate::error::with_sources;
use crate::source::spill::SegmentSpill;
use joint::outbox::Outbox;
use joint::source::hash;
use replication::Differs;
use replication::wire::Compared;
use splitter::copy_some_blocks;
use std::time::Duration;
use tokio::task::{block_in_place, spawn_blocking};
use types::BlockRun;

/// After a local read failed during a sync.
const COPY_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Batches moved to the spill in one go.
const SPILL_BATCHES: usize = 16;

impl Driver {
    /// Makes the spill, if one is wanted.
    pub(super) fn open_spill(&self) {
        let record = self.vm.record();
        if record.policy.spill_bytes == 0 || self.core.outbox().has_spill() {
            return;
        }
        let folder = self.source.spill_dir.join(&record.vm);
        let cause = Cause::new(AlertKind::NoSpill, &record.name);
        match block_in_place(|| SegmentSpill::open(&folder, self.vm.id(), record.policy.spill_bytes)) {
            Ok(spill) => {
                self.core.outbox().give_spill(spill);
                self.source.alerts.clear(cause);
            }
            Err(error) => {
                let text = format!(
                    "VM {}: what waits for the link has no room but memory, for its spill cannot be opened: {error:#}",
                    record.name
                );
                self.source.alerts.raise(cause, text);
                self.core.outbox().lacks_spill(format!("{error:#}"));
            }
        }
    }

    /// Has spill and link be as the record says now.
    pub(super) fn follow_record(&mut self) {
        let record = self.vm.record();
        if self.core.outbox().has_spill() {
            let outbox = self.core.outbox().clone();
            block_in_place(|| outbox.set_spill_bytes(record.policy.spill_bytes));
        } else {
            self.open_spill();
        }
        if !self.place.is_at(&record.peer) {
            self.place = self.source.peers.join(&record.peer, &record.group, self.wake.clone());
        }
    }

    pub(super) fn spill(&self) {
        let (outbox, inputs) = (self.core.outbox().clone(), self.inputs.clone());
        let name = self.vm.name();
        tokio::spawn(async move {
            let spilled = spawn_blocking(move || spill_some(&outbox, &name)).await;
            spilled.expect("a panic aborts the process");
            let _ = inputs.send(Input::Spilled).await;
        });
    }

    pub(super) fn tidy(&self) {
        let (outbox, inputs) = (self.core.outbox().clone(), self.inputs.clone());
        tokio::spawn(async move {
            spawn_blocking(move || outbox.tidy()).await.expect("a panic aborts the process");
            let _ = inputs.send(Input::Tidied).await;
        });
    }

    pub(super) fn restart(&mut self, floor: types::WriteSeq, differs: Differs) {
        self.vm.group().on_restart();
        if let Err(error) = block_in_place(|| self.core.restart(floor, differs)) {
            let error = with_sources(&error);
            tracing::error!(vm = self.vm.name(), error, "all of the disk is copied instead");
        }
        self.sync_total_bytes = self.to_sync_bytes();
    }

    /// The recovery side has lost some blocks of the newest state.
    pub(super) fn send_again(&mut self, runs: &[BlockRun]) {
        let bytes = block_in_place(|| self.core.send_again(runs));
        let (vm, runs) = (self.vm.name(), runs.len());
        tracing::warn!(vm, runs, bytes, "the recovery side has lost blocks to damage: they are sent again");
        self.sync_total_bytes = self.to_sync_bytes();
    }

    pub(super) fn copy_blocks(&self) {
        let (vm, inputs) = (self.vm.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let copied = block_in_place(|| copy_some_blocks(vm.capture(), vm.disks()));
            if let Err(error) = &copied
                && !vm.is_ending()
            {
                tracing::error!(vm = vm.name(), error = with_sources(error), "sync waits for the local disk");
                tokio::time::sleep(COPY_RETRY_DELAY).await;
            }
            let _ = inputs.send(Input::CopyDone { taken: copied.unwrap_or(false) }).await;
        });
    }

    pub(super) fn hash_blocks(&self) {
        let (vm, inputs) = (self.vm.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let compare = match block_in_place(|| hash(vm.capture(), vm.disks())) {
                Ok(compare) => compare,
                Err(_) if vm.is_ending() => None,
                Err(error) => {
                    let error = with_sources(&error);
                    tracing::error!(vm = vm.name(), error, "comparison waits for the local disk");
                    tokio::time::sleep(COPY_RETRY_DELAY).await;
                    None
                }
            };
            let _ = inputs.send(Input::Hashed(compare)).await;
        });
    }

    pub(super) fn settle(&mut self, compared: &Compared) {
        let mut verification =
            self.verification.as_mut().and_then(|verification| verification.while_it_runs());
        // A sync copies what differs, for whatever reason; here it would be damage.
        let doubts = verification.is_some() && self.vm.is_tapped();
        let (differs, differing) = block_in_place(|| self.core.settle(compared, doubts));
        if differing > 0
            && let Some(verification) = &mut verification
        {
            let record = self.vm.record();
            let name = record.disks.get(usize::from(compared.disk.0)).map_or("", |disk| disk.name.as_str());
            verification.differs(name, compared.first, differs);
            let block = compared.first.0;
            tracing::error!(vm = record.name, disk = name, block, differing, "the replica differs");
        }
    }
}

fn spill_some(outbox: &Outbox, vm: &str) {
    for _ in 0..SPILL_BATCHES {
        let Some(spilling) = outbox.begin_spill(clock::wall()) else { return };
        let written = outbox.write_spill(spilling);
        if let Some(why) = &written.refused {
            tracing::warn!(vm, why, "the spill takes nothing more");
        }
        if !outbox.end_spill(&written) {
            return;
        }
    }
}
