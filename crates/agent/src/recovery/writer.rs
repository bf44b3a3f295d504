//! The way of one stream's batches into its journal, through the agent's shards.
//!
//! A bounded number of batches is on its way; waiting for a place is the back-pressure. Reports come from
//! a shard's thread as cumulative acknowledgements. After an error nothing more is appended; the journal
//! is closed only once nothing of the stream can touch its files any more.

use super::life::Lease;
use super::vm::RecoveredVm;
use crate::error::with_sources;
use batch::Batch;
use journal::{AppendError, AppendStream, Appended, Journal, Report, Shards};
use replication::wire::{Ack, Refusal, Refuse};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{Semaphore, mpsc};
use types::Epoch;
use types::limits::RECEIVE_QUEUE_BATCHES;

/// What became of batches.
#[derive(Debug)]
pub(super) enum Written {
    Durable(Ack),
    Stopped(Refuse),
}

/// One stream's place at the shards.
#[derive(Debug)]
pub(super) struct StreamWriter {
    vm: Arc<RecoveredVm>,
    /// Given back once nothing of the stream is on its way any more.
    journal: Arc<Lease>,
    shards: Arc<Shards>,
    stream: Arc<AppendStream>,
    room: Arc<Semaphore>,
    must_close: Arc<AtomicBool>,
    /// The first thing that went wrong was told: whatever else goes wrong comes of it.
    stopped: Arc<AtomicBool>,
    written: mpsc::UnboundedSender<Written>,
    free_bytes_min: u64,
    /// Bytes that were free when something was last written: asking for them may hang, as any other call to that disk.
    free_bytes: Arc<AtomicU64>,
}

impl StreamWriter {
    pub(super) fn new(
        vm: Arc<RecoveredVm>,
        journal: Arc<Lease>,
        epoch: Epoch,
        shards: Arc<Shards>,
        free_bytes_min: u64,
        written: mpsc::UnboundedSender<Written>,
    ) -> Self {
        let room = Arc::new(Semaphore::new(RECEIVE_QUEUE_BATCHES));
        let must_close = Arc::new(AtomicBool::new(false));
        let stopped = Arc::new(AtomicBool::new(false));
        // Whoever let the stream in has looked.
        let free_bytes = Arc::new(AtomicU64::new(u64::MAX));
        let report = {
            let (vm, journal, room) = (vm.clone(), journal.shared().clone(), room.clone());
            let (must_close, stopped, written) = (must_close.clone(), stopped.clone(), written.clone());
            let free_bytes = free_bytes.clone();
            move |report: Report| match report.result {
                Ok(appended) => {
                    // The connection may be gone already; then nobody is to be told.
                    let _ = written.send(Written::Durable(ack(&journal, appended)));
                    free_bytes.store(vm.free_bytes(), Ordering::SeqCst);
                    room.add_permits(report.batches);
                }
                Err(error) => {
                    must_close.fetch_or(needs_reopening(&error), Ordering::SeqCst);
                    if !stopped.swap(true, Ordering::SeqCst) {
                        let refuse = stop(&vm, refusal(&error), with_sources(&error));
                        let _ = written.send(Written::Stopped(refuse));
                    }
                    room.close();
                }
            }
        };
        let stream = AppendStream::new(journal.shared().clone(), epoch, report);
        Self { vm, journal, shards, stream, room, must_close, stopped, written, free_bytes_min, free_bytes }
    }

    /// Hands a batch in, once there is a place for it.
    pub(super) async fn append(&self, batch: Batch) {
        let Ok(place) = self.room.acquire().await else { return };
        place.forget();
        if self.stopped.load(Ordering::SeqCst) {
            self.room.add_permits(1);
            return; // The sender has yet to hear of it.
        }
        let free = self.free_bytes.load(Ordering::SeqCst);
        if free < self.free_bytes_min + batch.bytes().len() as u64 {
            let detail = format!("no space left for the journal: {free} bytes are free");
            self.stopped.store(true, Ordering::SeqCst);
            let _ = self.written.send(Written::Stopped(stop(&self.vm, Refusal::JournalFull, detail)));
            // As if it had been reported: nothing is waited for that was not handed in.
            self.room.add_permits(1);
            return;
        }
        self.shards.append(&self.stream, batch);
    }

    /// Waits until everything handed in is written, or never will be; a journal that failed is closed.
    pub(super) async fn end(self) {
        let _ = self.room.acquire_many(RECEIVE_QUEUE_BATCHES as u32).await;
        let journal = self.journal.shared().clone();
        let _ = tokio::task::spawn_blocking(move || journal.wait_for_appends()).await;
        let (journal, vm) = (self.journal.shared().clone(), self.vm);
        drop(self.journal);
        if self.must_close.load(Ordering::SeqCst) {
            // It waits for a fold that may be under way.
            let _ = tokio::task::spawn_blocking(move || vm.life().close_failed(&journal)).await;
        }
    }
}

fn ack(journal: &Journal, appended: Appended) -> Ack {
    let status = journal.status();
    Ack {
        durable: appended.durable,
        watermark: appended.watermark,
        applied: status.applied,
        journal_bytes: status.journal_bytes,
        history_seconds: status.history.as_secs(),
        projected_history_seconds: status.projected_history.map(|projected| projected.as_secs()),
    }
}

fn stop(vm: &RecoveredVm, why: Refusal, mut detail: String) -> Refuse {
    if why == Refusal::JournalFull {
        detail += &vm.locked_words();
    }
    tracing::error!(vm = vm.name(), why = detail, "journaling stops");
    vm.set_error(detail.clone());
    Refuse { why, detail }
}

fn refusal(error: &AppendError) -> Refusal {
    match error {
        AppendError::Full(_) | AppendError::HardLimit { .. } => Refusal::JournalFull,
        AppendError::Failed(_) | AppendError::Closed => Refusal::JournalFailed,
        AppendError::Epoch { current, .. } => Refusal::Fenced { epoch: *current, released: false },
        // The source greets again, and is told what it has to do.
        AppendError::MustBeginAnew { .. } => Refusal::Busy,
        AppendError::Order { .. } | AppendError::Record(_) => Refusal::Protocol,
    }
}

/// Whether places were given away that were not written to.
fn needs_reopening(error: &AppendError) -> bool {
    match error {
        AppendError::Full(_) | AppendError::Failed(_) | AppendError::Closed => true,
        AppendError::HardLimit { .. }
        | AppendError::MustBeginAnew { .. }
        | AppendError::Epoch { .. }
        | AppendError::Order { .. }
        | AppendError::Record(_) => false,
    }
}
