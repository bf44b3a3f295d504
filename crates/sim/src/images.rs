//! Open images of one VM at the recovery side, as the agent keeps them: recorded, pinned over restarts, served again when
//! the agent is back, and read from the journal that was opened last.
//!
//! Whatever is read of one is what the guest's disk was at its cut, under what was written to the image. An error is as
//! good only where the disk fails, or where something below was damaged.

use crate::image_model::{DiskModel, SECTOR};
use crate::moment::Moment;
use crate::retained::Retained;
use crate::rng::Rng;
use crate::spoilt::Spoilt;
use crate::store::SimStore;
use crate::summary::Summary;
use journal::{CheckpointFacts, Image, ImageError, Journal, Store};
use std::cell::RefCell;
use std::sync::Arc;
use threads::sync::Mutex;
use types::{ByteRange, CheckpointId, DiskIndex, WriteSeq};

const DISK: DiskIndex = DiskIndex(0);
const IMAGES_MAX: usize = 3;

/// The images of a VM. Records of them outlive the agent.
#[derive(Debug)]
pub(crate) struct Images {
    next: u64,
    boot: u8,
    list: Vec<SimImage>,
    lost: Arc<Mutex<Spoilt>>,
}

#[derive(Debug)]
struct SimImage {
    id: u64,
    cut: WriteSeq,
    writable: bool,
    /// Its disks are plain ones.
    promoted: bool,
    /// It is never served again.
    closing: bool,
    served: Option<Arc<Image>>,
    /// A flush has failed since it was opened.
    unwell: bool,
    /// Something below it was damaged: some of it cannot be read any more, and nothing else than it was is shown of it.
    spoilt: bool,
    /// What of the journal may be lost.
    lost: Arc<Mutex<Spoilt>>,
    store: SimStore,
    model: DiskModel,
}

/// What images lie on, at a moment.
pub(crate) struct Below<'a> {
    pub(crate) journal: &'a Arc<Journal>,
    pub(crate) store: &'a SimStore,
    pub(crate) retained: &'a mut Retained,
    pub(crate) moment: Moment,
}

impl SimImage {
    fn owner(&self) -> String {
        format!("image {}", self.id)
    }

    fn folder(&self) -> String {
        format!("image-{}", self.id)
    }

    fn compare(&mut self, at: u64, read: &[u8]) {
        if let Err(what) = self.model.compare(at, read) {
            panic!("invariant_image_holds_what_was_written: image {} at {}: {what}", self.id, self.cut);
        }
    }

    fn read(&mut self, range: ByteRange) {
        let Some(image) = self.served.clone() else { return };
        let mut buf = vec![0; range.len as usize];
        match image.read_at(DISK, range.start, &mut buf) {
            Ok(()) => self.compare(range.start, &buf),
            Err(_) if range.len > SECTOR as u64 && self.spoilt => {
                range.split_at_multiples(SECTOR as u64).for_each(|sector| self.read(sector));
            }
            Err(_) if self.spoilt && self.may_be_lost(range) => {}
            // What is in doubt is written again before it is shown.
            Err(_) if self.unwell || self.store.has_unreadable() || self.store.is_impaired() => {}
            Err(error) => panic!("image {} at {} cannot be read: {error:?}", self.id, self.cut),
        }
    }

    fn may_be_lost(&self, range: ByteRange) -> bool {
        self.lost.lock().expect("a panic aborts the process").may_be_lost(range, self.cut)
    }

    fn read_all(&mut self) {
        self.read(ByteRange::new(0, self.model.len()));
    }

    fn read_some(&mut self, rng: &mut Rng) {
        let range = self.any_range(rng);
        self.read(range);
    }

    fn any_range(&self, rng: &mut Rng) -> ByteRange {
        let sectors = self.model.len() / SECTOR as u64;
        let start = rng.below(sectors);
        let longest = if rng.one_in(6) { 400 } else { 24 };
        let len = 1 + rng.below(longest.min(sectors - start));
        ByteRange::new(start * SECTOR as u64, len * SECTOR as u64)
    }

    fn write(&mut self, store: &SimStore, rng: &mut Rng) {
        let Some(image) = self.served.clone().filter(|_| self.writable) else { return };
        let range = self.any_range(rng);
        let mut bytes = vec![1 + rng.below(250) as u8; range.len as usize];
        bytes.iter_mut().step_by(SECTOR).for_each(|byte| *byte = rng.bits() as u8);
        let written = if rng.one_in(5) {
            bytes.fill(0);
            image.zero(DISK, range)
        } else {
            image.write_at(DISK, range.start, &bytes)
        };
        match written {
            Ok(()) => {
                assert!(!self.unwell, "a write was taken after a flush had failed");
                self.model.write(range.start, &bytes);
            }
            Err(error) => {
                let excused = self.unwell || self.spoilt || store.is_impaired();
                assert!(excused, "image {} at {} cannot be written: {error:?}", self.id, self.cut);
                self.model.may_have_written(range.start, &bytes);
                self.read(range);
            }
        }
    }

    fn flush(&mut self, store: &SimStore) -> bool {
        let Some(image) = self.served.clone().filter(|_| self.writable) else { return false };
        match image.flush(DISK) {
            Ok(()) => {
                assert!(!self.unwell, "a flush was told as done after one had failed");
                self.model.flush();
                true
            }
            Err(error) => {
                assert!(self.unwell || store.is_impaired(), "an image cannot be flushed: {error:?}");
                self.unwell = true;
                self.model.lose();
                false
            }
        }
    }
}

fn is_damaged(found: Option<CheckpointFacts>) -> bool {
    found.is_some_and(|facts| facts.damaged_bytes > 0)
}

impl Images {
    pub(crate) fn new(lost: Arc<Mutex<Spoilt>>) -> Self {
        Self { next: 1, boot: 1, list: Vec::new(), lost }
    }

    fn has_unfound(&self) -> bool {
        self.lost.lock().expect("a panic aborts the process").decayed.has_unfound()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.list.len() < IMAGES_MAX
    }

    /// The cuts that they hold.
    pub(crate) fn cuts(&self) -> Vec<WriteSeq> {
        let held = self.list.iter().filter(|image| image.served.is_some() && !image.promoted);
        held.map(|image| image.cut).collect()
    }

    pub(crate) fn read_through_damage(&self) -> bool {
        self.list.iter().any(|image| image.spoilt)
    }

    /// The disk works again, and so all of them do.
    pub(crate) fn assert_all_served(&self) {
        for image in &self.list {
            let is_served = image.served.is_some() || image.spoilt || image.closing;
            assert!(is_served, "image {} at {} is not served any more", image.id, image.cut);
        }
    }

    /// Opens one at a cut that can be opened, where the guest's disk was `model`.
    pub(crate) fn open(
        &mut self,
        journal: &Arc<Journal>,
        store: &SimStore,
        (cut, writable): (WriteSeq, bool),
        model: DiskModel,
    ) -> bool {
        let id = self.next;
        self.next += 1;
        let mut image = SimImage {
            id,
            cut,
            writable,
            promoted: false,
            closing: false,
            served: None,
            unwell: false,
            spoilt: journal.checkpoint(CheckpointId(cut)).is_ok_and(is_damaged) || self.has_unfound(),
            lost: self.lost.clone(),
            store: store.clone(),
            model,
        };
        if let Err(error) = image.serve(journal, self.boot) {
            assert!(store.is_impaired(), "an image cannot be opened at {cut}: {error:?}");
            return false;
        }
        image.read_all();
        self.list.push(image);
        true
    }

    /// The agent is gone; with `power`, the host was.
    pub(crate) fn crash(&mut self, power: bool) {
        self.boot += u8::from(power);
        for image in &mut self.list {
            image.served = None;
            if power || image.unwell {
                image.model.lose();
            }
            image.unwell = false;
        }
    }

    /// The journal was opened anew: all read from it, before anything there is folded.
    pub(crate) fn rebind(&mut self, journal: &Arc<Journal>) {
        for image in &mut self.list {
            if let Some(served) = image.served.clone()
                && let Err(error) = served.rebind(journal.clone())
            {
                assert!(image.spoilt, "image {} at {} lost its journal: {error:?}", image.id, image.cut);
                image.served = None;
            }
        }
        self.serve_waiting(journal);
    }

    /// Serves those again that are not; how many. One that cannot be is tried again later.
    pub(crate) fn serve_waiting(&mut self, journal: &Arc<Journal>) -> u64 {
        let mut served = 0;
        for image in self.list.iter_mut().filter(|image| image.served.is_none() && !image.closing) {
            match image.serve(journal, self.boot) {
                Ok(()) => {
                    served += 1;
                    image.read_all();
                }
                Err(ImageError::NotConsistent { .. }) if !image.spoilt && !image.store.has_unreadable() => {
                    panic!("invariant_an_open_image_stays: image {} at {}", image.id, image.cut)
                }
                Err(_) => {}
            }
        }
        served
    }

    /// What a failed flush has given up is read from the disk again.
    pub(crate) fn evict(&mut self) {
        self.list.iter_mut().filter(|image| image.unwell).for_each(|image| image.model.lose());
    }

    /// Something below was damaged.
    pub(crate) fn spoil(&mut self) {
        self.list.iter_mut().for_each(|image| image.spoilt = true);
    }

    /// Something is done with one of them.
    pub(crate) fn play(&mut self, below: Below<'_>, rng: &mut Rng, summary: &mut Summary) {
        self.play_on(below, true, rng, summary);
    }

    /// The same; of a failover none is closed before that is over.
    pub(crate) fn play_on(
        &mut self,
        mut below: Below<'_>,
        closes: bool,
        rng: &mut Rng,
        summary: &mut Summary,
    ) {
        let (journal, store) = (below.journal, below.store);
        self.serve_waiting(journal);
        if self.list.is_empty() {
            return;
        }
        let at = rng.below(self.list.len() as u64) as usize;
        match rng.below(16) {
            0..6 => {
                summary.image_writes += 1;
                self.list[at].write(store, rng);
            }
            6..8 => drop(self.list[at].flush(store)),
            8..14 => {
                summary.image_reads += 1;
                self.list[at].read_some(rng);
            }
            14 => {
                let held = self.cuts();
                summary.promoted += u64::from(self.list[at].promote(&mut below, &held, rng));
            }
            _ if closes => self.close(at, journal, store),
            _ => {}
        }
    }

    /// Closes one. The disk of one that was promoted is a plain one by then.
    fn close(&mut self, at: usize, journal: &Arc<Journal>, store: &SimStore) {
        let image = &mut self.list[at];
        if image.promoted && !image.closing {
            if !image.flush(store) {
                return;
            }
            let mut plain = vec![0; image.model.len() as usize];
            let data = store.open(&format!("{}/vda.data", image.folder()), false).expect("its data is there");
            store.spared(|| data.read_at(0, &mut plain)).expect("a disk of the full length");
            image.compare(0, &plain);
        }
        (image.closing, image.served) = (true, None);
        let (owner, folder) = (image.owner(), image.folder());
        let closed =
            journal.unpin(|pin| pin.owner == owner).and_then(|_| journal.discard_overlays(&folder)).is_ok();
        assert!(closed || store.is_impaired(), "an image cannot be closed");
        if closed {
            self.list.remove(at);
        }
    }

    pub(crate) fn close_all(&mut self, journal: &Arc<Journal>, store: &SimStore) {
        for at in (0..self.list.len()).rev() {
            self.close(at, journal, store);
        }
    }

    /// Throws all of them away, with all that was written to them.
    pub(crate) fn discard_all(&mut self, journal: &Arc<Journal>, store: &SimStore) {
        self.list.iter_mut().for_each(|image| image.closing = true);
        self.close_all(journal, store);
    }

    /// Reads all of all.
    pub(crate) fn compare_all(&mut self) -> u64 {
        self.list.iter_mut().for_each(SimImage::read_all);
        self.list.len() as u64
    }
}

impl SimImage {
    fn serve(&mut self, journal: &Arc<Journal>, boot: u8) -> Result<(), ImageError> {
        let folder = self.folder();
        let folder = self.writable.then_some(folder.as_str());
        let image = Image::open(journal.clone(), self.cut, folder, [boot; 16])?;
        let owner = self.owner();
        let has_pin = journal.pins().iter().any(|pin| pin.owner == owner);
        if !image.promotion().is_done() && !has_pin {
            journal.pin(&owner, self.cut, None)?;
        }
        self.served = Some(Arc::new(image));
        Ok(())
    }

    /// Turns it into a plain disk, while it is read and written and the journal is folded. Whether it came to the end.
    fn promote(&mut self, below: &mut Below<'_>, held: &[WriteSeq], rng: &mut Rng) -> bool {
        let Some(image) = self.served.clone().filter(|_| self.writable) else { return false };
        let (journal, store) = (below.journal, below.store);
        let meanwhile = RefCell::new((&mut *self, &mut *rng, &mut *below.retained));
        let moment = below.moment;
        let result = image.promote(|_| {
            let (image, rng, retained) = &mut *meanwhile.borrow_mut();
            for _ in 0..rng.below(4) {
                match rng.below(3) {
                    0 => drop(retained.keep_up(journal, held, &moment.upkeep(rng.sixteen()))),
                    1 => image.read_some(rng),
                    _ => image.write(store, rng),
                }
            }
            !rng.one_in(6)
        });
        match result {
            Ok(promotion) if promotion.is_done() => {
                self.model.flush();
                let owner = self.owner();
                self.promoted = true;
                let unpinned = journal.unpin(|pin| pin.owner == owner);
                assert!(unpinned.is_ok() || store.is_impaired());
                true
            }
            Ok(_) => false,
            Err(error) => {
                let excused = self.unwell || self.spoilt || store.is_impaired();
                assert!(excused, "image {} cannot be promoted: {error:?}", self.id);
                // Whether it was the flush at its end, nobody says.
                self.flush(store);
                false
            }
        }
    }
}
