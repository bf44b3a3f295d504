//! What a stream sends next: the spill first, then the buffer, each batch encoded once.
//!
//! What holds: the spill's batches all lie below the buffer's records, and together they follow what the peer has
//! acknowledged without a hole. Spilling moves the oldest of the buffer to the spill's end, but for copies of a sync, which
//! are made again.
//!
//! Two threads meet here: the one that drives the stream, and the one that spills. Only the second waits for the spill's
//! disk, but where the first reads what comes next. It goes on in steps ([`Outbox::begin_spill`],
//! [`Outbox::write_spill`], [`Outbox::end_spill`], and [`Outbox::tidy`]) between which the stream may do anything, begin anew among it: by its
//! generation what was on its way into the spill is known to be of the stream before.
//!
//! 1. `begin` takes records that stay in the buffer, and notes the generation.
//! 2. `write` appends them, where the generation is still the same. What lies in the spill of another one is emptied first.
//! 3. `end` takes them out of the buffer, if the generation is still the same, under the lock that a restart raises it with.
//!    Until then they are sent from the buffer.

mod spilling;

pub use self::spilling::{Spilling, Written};

use crate::spill::{Cause, Spill};
use crate::view::SpillRoom;
use batch::{Batch, BatchMeta, Codec, Kind, Pieces};
use splitter::{Capture, Taken};
use std::sync::Arc;
use threads::sync::{Mutex, MutexGuard};
use types::{Incarnation, RunNumber, WallTime, WriteSeq};

/// A batch as it goes out.
#[derive(Debug)]
pub struct Outgoing {
    pub batch: Pieces,
    pub last: WriteSeq,
    pub watermark: WriteSeq,
    /// Where it was encoded for this: how, and from how many bytes.
    pub encoded: Option<(Codec, usize)>,
    pub has_records: bool,
    /// How many writes are in it only as marks, since later ones overwrite them.
    pub left_out: usize,
}

impl Outgoing {
    /// The newest run that the peer hears of by it. In a batch without records that of the watermark alone, which a cut
    /// may have lifted.
    pub fn newest_run(&self) -> RunNumber {
        self.watermark.max(self.last).run()
    }
}

/// How a batch is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// It follows this.
    pub after: WriteSeq,
    pub bytes_max: usize,
    /// Writes wait for the link: those that need not be sent may be left out.
    pub lags: bool,
    /// One without records is sent too, for its watermark.
    pub tells_watermark: bool,
    pub codec: Codec,
    pub taken_at: WallTime,
}

/// The outgoing end of one VM's stream.
#[derive(Debug)]
pub struct Outbox {
    capture: Arc<Capture>,
    incarnation: Incarnation,
    /// Locked before `state`, and held while the spill's disk is waited for.
    shelf: Mutex<Shelf>,
    state: Mutex<OutboxState>,
}

/// The spill, and which stream what lies in it is of.
#[derive(Debug, Default)]
struct Shelf {
    spill: Option<Box<dyn Spill>>,
    generation: u64,
}

/// What is known of the spill without waiting for its disk.
#[derive(Debug, Default)]
struct OutboxState {
    /// Raised whenever the stream begins anew.
    generation: u64,
    has_spill: bool,
    /// No room was left; there is again once something was given back.
    full: bool,
    /// Why it takes nothing, until it is tried again.
    trouble: Option<String>,
    /// Something in it cannot be read: the stream has to begin anew.
    lost: bool,
    released: WriteSeq,
    /// As the spill said last.
    bytes: u64,
    bytes_max: u64,
    first_end: Option<WriteSeq>,
    /// Something of a stream of before lies in it.
    is_stale: bool,
}

/// The spill in numbers.
#[derive(Debug, Clone, Default)]
pub struct SpillView {
    pub has_room: bool,
    pub lost: bool,
    pub bytes: u64,
    pub bytes_max: u64,
    /// Why it takes nothing where it should, or is not there where one is wanted.
    pub trouble: Option<String>,
}

impl SpillView {
    /// What a sender has to know.
    pub fn room(&self) -> SpillRoom {
        SpillRoom { has_room: self.has_room, lost: self.lost }
    }
}

impl Outbox {
    /// Without a spill, until [`Outbox::give_spill`].
    pub fn new(capture: Arc<Capture>, incarnation: Incarnation) -> Self {
        Self { capture, incarnation, shelf: Mutex::default(), state: Mutex::default() }
    }

    /// An empty spill to use from now on. There must be none yet.
    pub fn give_spill(&self, spill: Box<dyn Spill>) {
        let mut shelf = self.lock_shelf();
        assert!(shelf.spill.is_none(), "a stream has one spill");
        let mut state = self.lock();
        (state.has_spill, state.trouble) = (true, None);
        state.note(&*spill);
        shelf.generation = state.generation;
        shelf.spill = Some(spill);
    }

    /// Changes how much the spill may hold; there must be one. What lies in it stays, and is sent from there.
    pub fn set_spill_bytes(&self, bytes_max: u64) {
        let mut shelf = self.lock_shelf();
        let spill = shelf.spill.as_mut().expect("there is a spill");
        spill.set_bytes_max(bytes_max);
        let mut state = self.lock();
        state.note(&**spill);
        // It is found out anew.
        state.full = bytes_max == 0;
    }

    /// One is wanted and there is none, and why.
    pub fn lacks_spill(&self, why: String) {
        self.lock().trouble = Some(why);
    }

    /// What could not be written may be tried again.
    pub fn try_again(&self) {
        let mut state = self.lock();
        if state.has_spill {
            state.trouble = None;
        }
    }

    pub fn has_spill(&self) -> bool {
        self.lock().has_spill
    }

    pub fn view(&self) -> SpillView {
        let state = self.lock();
        SpillView {
            has_room: state.takes_more(),
            lost: state.lost,
            bytes: state.bytes,
            bytes_max: state.bytes_max,
            trouble: state.trouble.clone(),
        }
    }

    /// The batch that is wanted; none where nothing is to be said.
    ///
    /// # Errors
    /// Where it lies in the spill and cannot be read: that is lost from now on.
    pub fn next(&self, wanted: &Wanted) -> Result<Option<Outgoing>, Cause> {
        let Some(taken) = self.capture.take_after(wanted.after, wanted.bytes_max, wanted.lags) else {
            return self.next_of_spill(wanted.after).map(Some);
        };
        if taken.records.is_empty() && !wanted.tells_watermark {
            return Ok(None);
        }
        Ok(Some(self.encode(wanted.after, &taken, wanted.codec, wanted.taken_at)))
    }

    fn encode(&self, after: WriteSeq, taken: &Taken, codec: Codec, taken_at: WallTime) -> Outgoing {
        let meta = self.meta(after, taken, taken_at);
        let plain = taken.records.iter().map(|record| record.payload.len()).sum();
        Outgoing {
            batch: batch::encode_in_pieces(&meta, &taken.records, codec),
            last: taken.records.last().map_or(after, |record| record.seq),
            watermark: meta.watermark,
            encoded: Some((codec, plain)),
            has_records: !taken.records.is_empty(),
            left_out: left_out(taken),
        }
    }

    fn meta(&self, after: WriteSeq, taken: &Taken, taken_at: WallTime) -> BatchMeta {
        let last = taken.records.last().map_or(after, |record| record.seq);
        let watermark = taken.watermark.max(last);
        BatchMeta { incarnation: self.incarnation, prev_seq: after, watermark, taken_at }
    }

    fn next_of_spill(&self, after: WriteSeq) -> Result<Outgoing, Cause> {
        let shelf = self.lock_shelf();
        let spill = shelf.spill.as_ref().expect("what was spilled lies in a spill");
        let next = spill.next_after(after).and_then(|batch| {
            let batch = batch.ok_or("the spill ends before the buffer begins")?;
            following(&batch, after)
        });
        if next.is_err() {
            self.lock().lost = true;
        }
        next
    }

    /// Everything up to here is acknowledged.
    pub fn release(&self, up_to: WriteSeq) {
        self.capture.release(up_to);
        let mut state = self.lock();
        state.released = state.released.max(up_to);
    }

    /// The stream begins anew above `floor`: nothing of what was spilled is needed. What is spilled from then on is of the
    /// new stream.
    pub fn restart(&self, floor: WriteSeq) {
        let mut state = self.lock();
        state.begin_anew();
        state.released = floor;
        self.capture.restart(floor);
    }

    /// The stream ends: nothing of what was spilled is needed.
    pub fn end(&self) {
        self.lock().begin_anew();
        self.tidy();
    }

    /// Whether there is room to be given back by [`Outbox::tidy`].
    pub fn wants_tidying(&self) -> bool {
        let state = self.lock();
        state.is_stale || state.first_end.is_some_and(|end| end <= state.released)
    }

    /// Gives back the room of what is not needed any more.
    pub fn tidy(&self) {
        let mut shelf = self.lock_shelf();
        let (generation, released) = {
            let state = self.lock();
            (state.generation, state.released)
        };
        let gave_back = shelf.clear_stale(generation);
        let Some(spill) = &mut shelf.spill else { return };
        let gave_back = spill.release(released) || gave_back;
        let mut state = self.lock();
        state.note(&**spill);
        // It may have begun anew once more since.
        state.is_stale = state.generation != generation;
        if gave_back {
            state.full = false;
            drop(state);
            drop(shelf);
            self.capture.sweep();
        }
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().expect("a panic aborts the process")
    }

    fn lock_shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("a panic aborts the process")
    }
}

impl OutboxState {
    fn takes_more(&self) -> bool {
        self.has_spill && !self.full && !self.lost && self.trouble.is_none()
    }

    fn note(&mut self, spill: &dyn Spill) {
        self.bytes = spill.bytes();
        self.bytes_max = spill.bytes_max();
        self.first_end = spill.first_end();
    }

    fn begin_anew(&mut self) {
        self.generation += 1;
        (self.full, self.lost) = (false, false);
        if self.has_spill {
            self.trouble = None;
        }
        self.is_stale = self.has_spill;
    }
}

impl Shelf {
    /// Empties it of what is not of this generation; whether it had any.
    fn clear_stale(&mut self, generation: u64) -> bool {
        let is_stale = self.generation != generation;
        self.generation = generation;
        if let Some(spill) = self.spill.as_mut().filter(|_| is_stale) {
            spill.clear();
        }
        is_stale
    }
}

fn left_out(taken: &Taken) -> usize {
    taken.records.iter().filter(|record| record.kind == Kind::LeftOut).count()
}

/// The batch as it follows `after`, which may lie within it.
fn following(batch: &Batch, after: WriteSeq) -> Result<Outgoing, Cause> {
    let header = batch.header();
    Ok(Outgoing {
        batch: batch::following(batch, after)?,
        last: header.last_seq,
        watermark: header.watermark,
        encoded: None,
        has_records: true,
        left_out: 0,
    })
}

#[cfg(test)]
mod tests;
