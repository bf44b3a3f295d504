//! What is written to a segment in one go: some of it copied together, the rest from where it lies.
//!
//! A batch stands behind its envelope, so it begins within a page of the file. Where its bytes lie in memory as they
//! will lie in the file ([`batch_room`] sees to that), its whole pages are written from there; only its first and last
//! page are copied.

use crate::layout::{ENVELOPE_BYTES, Envelope};
use crate::page::{PAGE_BYTES, PageBuf};
use crate::store::StoreFile;
use batch::Batch;
use bytes::{Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::ops::Range;

const PAGE: usize = PAGE_BYTES as usize;
/// Bytes of a batch that stand in the page of its envelope.
const IN_FIRST_PAGE: usize = PAGE - ENVELOPE_BYTES;
/// Fewer are copied: a part of their own would cost more.
const IN_PLACE_MIN: usize = 64 << 10;

/// Empty room for the `len` bytes of a batch, placed so that a journal need not copy what is read into it.
pub fn batch_room(len: usize) -> BytesMut {
    let mut room = BytesMut::with_capacity(len + PAGE);
    let lead = (room.as_ptr().align_offset(PAGE) + ENVELOPE_BYTES) % PAGE;
    room.resize(lead, 0);
    room.split_off(lead)
}

/// The bytes of `body` that can be written from where they lie; none where it lies as it may.
fn in_place(body: &[u8]) -> Range<usize> {
    let len = body.len().saturating_sub(IN_FIRST_PAGE) / PAGE * PAGE;
    let lies_so = (body.as_ptr().addr() + IN_FIRST_PAGE).is_multiple_of(PAGE);
    if lies_so && len >= IN_PLACE_MIN { IN_FIRST_PAGE..IN_FIRST_PAGE + len } else { 0..0 }
}

#[derive(Debug)]
enum Part {
    /// Of what was copied.
    Copied(Range<usize>),
    InPlace(Bytes),
}

/// Batches with their envelopes, one behind the other.
#[derive(Debug)]
pub(crate) struct Gathered {
    copied: PageBuf,
    parts: Vec<Part>,
}

impl Gathered {
    /// Nothing yet, with room for `batches`; `spare` is used where it is large enough.
    pub(crate) fn with_room_for(batches: &[Batch], spare: Option<PageBuf>) -> Self {
        let copied =
            |batch: &Batch| Envelope::stride(batch.bytes().len()) as usize - in_place(batch.bytes()).len();
        let copied = PageBuf::reuse(spare, batches.iter().map(copied).sum());
        Self { copied, parts: Vec::new() }
    }

    /// Adds a batch and what fills its last page up.
    pub(crate) fn push(&mut self, envelope: &[u8], body: &Bytes) {
        let within = in_place(body);
        if within.is_empty() {
            return self.copy(&[envelope, body]);
        }
        self.copy(&[envelope, &body[..within.start]]);
        self.parts.push(Part::InPlace(body.slice(within.clone())));
        self.copy(&[&body[within.end..]]);
    }

    /// Copies what begins a page, up to the end of its last page.
    fn copy(&mut self, pieces: &[&[u8]]) {
        let from = self.copied.as_slice().len();
        pieces.iter().for_each(|piece| self.copied.push(piece));
        let to = self.copied.as_slice().len().next_multiple_of(PAGE);
        self.copied.pad_to(to);
        match self.parts.last_mut() {
            Some(Part::Copied(before)) => before.end = to,
            _ if from < to => self.parts.push(Part::Copied(from..to)),
            _ => {}
        }
    }

    /// Writes all of it.
    pub(crate) fn write_to(&self, file: &dyn StoreFile, at: u64) -> io::Result<()> {
        let copied = self.copied.as_slice();
        let slices = self.parts.iter().map(|part| match part {
            Part::Copied(range) => IoSlice::new(&copied[range.clone()]),
            Part::InPlace(bytes) => IoSlice::new(bytes),
        });
        file.write_parts_at(at, &slices.collect::<Vec<_>>())
    }

    /// The room it took.
    pub(crate) fn into_spare(self) -> PageBuf {
        self.copied
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::fs_store::FsStore;
    use crate::store::Store;

    #[test]
    fn room_lies_in_memory_as_the_file_will_have_it() {
        for len in [0, 1, PAGE, 1 << 20] {
            let mut room = batch_room(len);
            assert!(room.is_empty() && room.capacity() >= len);
            let at = room.as_ptr();
            room.resize(len, 7);
            assert_eq!((room.as_ptr(), (at.addr() + IN_FIRST_PAGE) % PAGE), (at, 0), "{len}");
        }
    }

    #[test]
    fn batches_are_written_the_same_from_where_they_lie_and_copied() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsStore::open(folder.path()).unwrap();
        let envelope = [9; ENVELOPE_BYTES];
        let lens = [
            IN_FIRST_PAGE + IN_PLACE_MIN,
            5,
            0,
            IN_FIRST_PAGE + IN_PLACE_MIN + 1,
            300_000,
            IN_FIRST_PAGE,
            80_000,
        ];
        let body = |len: usize| (0..len).map(|at| ((at * at) >> 7) as u8).collect::<Vec<u8>>();
        let write = |name: &str, lies: &dyn Fn(&[u8]) -> Bytes| {
            let bodies: Vec<Bytes> = lens.iter().map(|&len| lies(&body(len))).collect();
            let copied = PageBuf::with_capacity(1 << 20);
            let mut gathered = Gathered { copied, parts: Vec::new() };
            bodies.iter().for_each(|body| gathered.push(&envelope, body));
            let file = store.open_direct(name, true).unwrap();
            gathered.write_to(&*file, PAGE_BYTES).unwrap();
            let in_place = gathered.parts.iter().filter(|part| matches!(part, Part::InPlace(_))).count();
            (std::fs::read(folder.path().join(name)).unwrap(), in_place)
        };
        let placed = |body: &[u8]| {
            let mut room = batch_room(body.len());
            room.extend_from_slice(body);
            room.freeze()
        };
        let (from_there, in_place) = write("placed", &placed);
        assert_eq!(in_place, 4, "what is long enough is not copied");
        let (copied, in_place) = write("copied", &|body| placed(&[&[0], body].concat()).slice(1..));
        assert_eq!((in_place, from_there.len()), (0, copied.len()));
        assert!(from_there == copied);
        let mut at = PAGE;
        for len in lens {
            assert_eq!(from_there[at..at + ENVELOPE_BYTES], envelope);
            assert!(from_there[at + ENVELOPE_BYTES..at + ENVELOPE_BYTES + len] == body(len), "{len}");
            at += Envelope::stride(len) as usize;
        }
        assert_eq!(at, from_there.len());
    }
}
