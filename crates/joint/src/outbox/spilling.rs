//! The steps of the thread that spills.

use super::{Outbox, left_out};
use crate::spill::NotTaken;
use batch::{Batch, Codec};
use types::limits::BATCH_BYTES_TARGET;
use types::{WallTime, WriteSeq};

/// A batch on its way into the spill.
#[derive(Debug)]
pub struct Spilling {
    generation: u64,
    batch: Batch,
    left_out: usize,
}

/// What became of it.
#[derive(Debug)]
pub struct Written {
    generation: u64,
    last: WriteSeq,
    /// It lies in the spill.
    taken: bool,
    /// Why the spill takes nothing more, where that is news.
    pub refused: Option<String>,
    /// How many writes of it are there only as marks.
    pub left_out: usize,
}

impl Outbox {
    /// Takes the oldest of the buffer; none where there is nothing to spill, or no room for it.
    pub fn begin_spill(&self, taken_at: WallTime) -> Option<Spilling> {
        let generation = self.generation_to_spill()?;
        // Not while the state is locked: whoever drives the stream asks for that at each step. What is taken of a stream
        // that has begun anew meanwhile is written nowhere.
        let (after, taken) = loop {
            let after = self.capture.status().spilled;
            // None: an acknowledgement came in between, and there is less to spill than it seemed.
            if let Some(taken) = self.capture.take_to_spill(after, BATCH_BYTES_TARGET) {
                break (after, taken);
            }
        };
        if taken.records.is_empty() {
            return None;
        }
        let encoded = batch::encode(&self.meta(after, &taken, taken_at), &taken.records, Codec::Lz4);
        let batch = Batch::parse(encoded).expect("encoded just now");
        Some(Spilling { generation, batch, left_out: left_out(&taken) })
    }

    fn generation_to_spill(&self) -> Option<u64> {
        let state = self.lock();
        let status = self.capture.status();
        let is_worth_it = status.buffered_bytes * 4 >= status.buffer_bytes_max;
        (state.takes_more() && is_worth_it).then_some(state.generation)
    }

    /// Appends it to the spill.
    pub fn write_spill(&self, spilling: Spilling) -> Written {
        let Spilling { generation, batch, left_out } = spilling;
        let last = batch.header().last_seq;
        let not_taken = Written { generation, last, taken: false, refused: None, left_out };
        let mut shelf = self.lock_shelf();
        if self.lock().generation != generation {
            return not_taken;
        }
        shelf.clear_stale(generation);
        let Some(spill) = &mut shelf.spill else { return not_taken };
        let appended = spill.append(&batch);
        let mut state = self.lock();
        state.note(&**spill);
        state.is_stale = state.generation != generation;
        let refused = match appended {
            Ok(()) => return Written { taken: true, ..not_taken },
            // Of a stream that has begun anew meanwhile it says nothing.
            Err(_) if state.is_stale => return not_taken,
            Err(NotTaken::Full) => {
                state.full = true;
                format!("it holds as much as it may, {} bytes", state.bytes_max)
            }
            Err(NotTaken::Failed(cause)) => {
                let why = in_one_line(&*cause);
                state.trouble = Some(why.clone());
                why
            }
        };
        Written { refused: Some(refused), ..not_taken }
    }

    /// Takes what was written out of the buffer; whether more may be spilled.
    pub fn end_spill(&self, written: &Written) -> bool {
        let state = self.lock();
        if !written.taken || state.generation != written.generation {
            return false;
        }
        self.capture.spilled(written.last);
        true
    }
}

/// An error with all that caused it.
fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
