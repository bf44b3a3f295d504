//! The thread that writes one stream's batches into its journal.
//!
//! It takes whatever has come, up to a mebibyte, writes it with one sync, and reports the cumulative
//! acknowledgement: so a quiet stream is durable at once and a busy one in large writes.

use super::vm::RecoveredVm;
use crate::clock;
use crate::source::with_sources;
use crate::state::random;
use batch::Batch;
use journal::{AppendError, Journal};
use replication::wire::{Ack, Refusal, Refuse};
use tokio::sync::mpsc;
use types::limits::BATCH_BYTES_TARGET;
use types::{Epoch, WriteSeq};

/// Below this many free bytes nothing is journaled any more: the rest is left to what else lives there.
pub(super) const FREE_BYTES_MIN: u64 = 16 << 20;

/// What became of batches.
#[derive(Debug)]
pub(super) enum Written {
    Durable(Ack),
    Stopped(Refuse),
}

/// Appends batches until the channel closes or the journal cannot go on.
pub(super) fn write_batches(
    vm: &RecoveredVm,
    journal: &Journal,
    epoch: Epoch,
    mut batches: mpsc::Receiver<Batch>,
    written: &mpsc::UnboundedSender<Written>,
) {
    let mut acked = journal.status().last_seq;
    while let Some(first) = batches.blocking_recv() {
        let mut bytes = first.bytes().len();
        let mut group = vec![first];
        while bytes < BATCH_BYTES_TARGET
            && let Ok(next) = batches.try_recv()
        {
            bytes += next.bytes().len();
            group.push(next);
        }
        match append(vm, journal, epoch, acked, &group, bytes) {
            Ok(ack) => {
                acked = ack.durable;
                if written.send(Written::Durable(ack)).is_err() {
                    return;
                }
            }
            Err(refuse) => {
                tracing::error!(vm = vm.name(), why = refuse.detail, "journaling stops");
                vm.set_error(refuse.detail.clone());
                // The connection may be gone already; then nobody is to be told.
                let _ = written.send(Written::Stopped(refuse));
                return;
            }
        }
    }
}

fn append(
    vm: &RecoveredVm,
    journal: &Journal,
    epoch: Epoch,
    acked: WriteSeq,
    group: &[Batch],
    bytes: usize,
) -> Result<Ack, Refuse> {
    let free = vm.free_bytes();
    if free < FREE_BYTES_MIN + bytes as u64 {
        let detail = format!("no space left for the journal: {free} bytes are free");
        return Err(Refuse { why: Refusal::JournalFull, detail });
    }
    let appended = journal.append(group, epoch, acked, clock::wall(), random()).map_err(|error| {
        let why = match &error {
            AppendError::Full(_) => Refusal::JournalFull,
            AppendError::Failed(_) | AppendError::Closed => Refusal::JournalFailed,
            AppendError::Epoch { current, .. } => Refusal::Fenced { epoch: *current, released: false },
            AppendError::Order { .. } | AppendError::Mark(_) => Refusal::Protocol,
        };
        if !error.is_transient() {
            vm.close_journal();
        }
        Refuse { why, detail: with_sources(&error) }
    })?;
    let status = journal.status();
    Ok(Ack {
        durable: appended.durable,
        watermark: appended.watermark,
        applied: status.applied,
        journal_bytes: status.journal_bytes,
        history_seconds: status.history.as_secs(),
    })
}
