//! The recovery side of one VM: receiver and journal over a disk that loses power.

use crate::images::Images;
use crate::link::Connection;
use crate::moment::Moment;
use crate::retained::Retained;
use crate::rng::Rng;
use crate::rot::{Expected, Round};
use crate::spoilt::Spoilt;
use crate::store::SimStore;
use batch::{Batch, BlockHash};
use journal::{
    AppendError, AppendMeta, Journal, Kept, Manifest, ManifestError, Mode, OpenError, SegmentInfo, Settings,
    Store, StoreFile, Thinning, Upkeep,
};
use replication::wire::{Ack, ClockAnswer, Compare, Compared, Hello, Message, Refusal, Refuse};
use replication::{Opened, Receiver, ReceiverEffect, ReceiverEvent};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::{Mutex, MutexGuard};
use types::{BlockIndex, BlockRun, Epoch, Monotonic, WallTime, WriteSeq};

/// Small segments, so that they are sealed, merged and folded often.
pub(crate) const SETTINGS: Settings = Settings {
    history: Duration::from_secs(3600),
    bytes_soft: 0,
    bytes_hard: 0,
    segment_bytes: 64 << 10,
    mode: Mode::RollForward,
    thinning: Thinning { all: Duration::from_secs(86_400), minutely: Duration::from_secs(604_800) },
    tagged_history: Duration::ZERO,
    let_go: None,
    is_locked: false,
};

const PAGE_BYTES: usize = 4096;

/// One VM at the recovery site. The disk outlives the agent.
pub(crate) struct RecoveryVm {
    pub(crate) store: SimStore,
    pub(crate) journal: Option<Arc<Journal>>,
    receiver: Option<Receiver>,
    epoch: Epoch,
    queue: VecDeque<Batch>,
    /// The highest sequence ever told to the source as durable.
    pub(crate) told: WriteSeq,
    /// A failover's epoch, and whether it was rolled back.
    pub(crate) fence: Option<(Epoch, bool)>,
    /// Damage was found: after so many steps more the stream hears of it. Until then everything goes on.
    stops_in: Option<u64>,
    /// Whoever streams can be asked for blocks.
    hears_of_blocks: bool,
    pub(crate) images: Images,
    /// Pins that a person has, and where.
    pub(crate) pins: Vec<(u64, WriteSeq)>,
    /// A journal that has failed is closed by whoever knows of its life, and stays open until then.
    pub(crate) has_a_life: bool,
    pub(crate) has_failed: bool,
    /// For so many steps more its disk stands still, and whoever waits for it.
    pub(crate) stands_still: u64,
    /// What an operator has set.
    pub(crate) settings: Settings,
    pub(crate) retained: Retained,
    /// What of the journal may be damaged.
    spoilt: Arc<Mutex<Spoilt>>,
    /// The round of scrubbing that is under way.
    pub(crate) round: Round,
    /// What an opening may have found that has failed.
    failed_opening: Option<Expected>,
}

impl RecoveryVm {
    pub(crate) fn new(settings: Settings) -> Self {
        let spoilt = Arc::<Mutex<Spoilt>>::default();
        Self {
            store: SimStore::new(),
            journal: None,
            receiver: None,
            epoch: Epoch::FIRST,
            queue: VecDeque::new(),
            told: WriteSeq::ZERO,
            fence: None,
            stops_in: None,
            hears_of_blocks: false,
            images: Images::new(spoilt.clone()),
            pins: Vec::new(),
            has_a_life: false,
            has_failed: false,
            stands_still: 0,
            settings,
            retained: Retained::default(),
            spoilt,
            round: Round::default(),
            failed_opening: None,
        }
    }

    /// What may be lost.
    pub(crate) fn spoilt(&self) -> MutexGuard<'_, Spoilt> {
        self.spoilt.lock().expect("a panic aborts the process")
    }

    /// Damage was found.
    pub(crate) fn note_damage(&mut self) {
        let spoilt = self.spoilt.lock().expect("a panic aborts the process");
        self.retained.damaged(&spoilt);
    }

    /// A turn of upkeep; what it did, unless something hindered it.
    pub(crate) fn keep_up(&mut self, how: &Upkeep<'_>) -> Option<Kept> {
        let journal = self.journal.clone()?;
        self.retained.keep_up(&journal, &self.images.cuts(), how)
    }

    /// The journal's life has ended.
    pub(crate) fn close(&mut self) {
        self.journal.take().into_iter().for_each(|journal| journal.close());
    }

    /// Nothing comes any more, and nothing that came is written.
    pub(crate) fn end_stream(&mut self) {
        self.receiver = None;
        self.queue.clear();
    }

    pub(crate) fn is_streamless(&self) -> bool {
        self.receiver.is_none() && self.queue.is_empty()
    }

    /// A new connection begins.
    pub(crate) fn accept(&mut self, now: Monotonic) {
        self.queue.clear();
        self.receiver = Some(Receiver::new(now));
    }

    /// The process is gone; with `power`, also what was not synced.
    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        self.receiver = None;
        self.queue.clear();
        self.journal = None;
        self.images.crash(power);
        self.store.die_after(None);
        if power {
            self.store.lose_power(rng);
        }
    }

    /// Opens the journal again, where there is one. What was told to be durable must be in it.
    pub(crate) fn reopen(&mut self) {
        if self.journal.is_some() || !self.has_journal() {
            return;
        }
        // Known is also what an opening does not get at, which then fails.
        let expected = self.store.spared(|| Expected::of(&self.store)).after(self.failed_opening.take());
        let opened = match Journal::open(Arc::new(self.store.clone()), self.settings) {
            Ok(opened) => opened,
            // The disk fails or is full just now; it is tried again when the source comes back.
            Err(OpenError::Io(_) | OpenError::Manifest(ManifestError::Io(_))) => {
                self.failed_opening = Some(expected);
                return;
            }
            Err(error) => panic!("a journal that cannot be opened: {error}"),
        };
        if let Some(from) = expected.judge(&opened, &self.store, self.told) {
            self.told = self.told.min(opened.journal.status().last_seq);
            self.retained.may_be_gone_from(from);
            self.pins.retain(|(_, cut)| *cut < from);
            self.images.spoil();
        }
        // Whoever has found and contained something may have been killed before he could tell it.
        self.note_damage();
        let journal = Arc::new(opened.journal);
        self.images.rebind(&journal);
        self.journal = Some(journal);
    }

    /// A page of a segment that is not written to any more changes on the disk: it rots, its write was lost, or one
    /// that was meant for another place went there. Then the scrub comes by; how much damage it found.
    pub(crate) fn spoil(&mut self, moment: Moment, rng: &mut Rng) -> Option<usize> {
        let journal = self.journal.clone()?;
        self.mend_disk();
        self.keep_up(&moment.upkeep(rng.sixteen()))?;
        let manifest = Manifest::load(&self.store).ok()?;
        let (kind, log) = if rng.one_in(3) { ("undo", &manifest.undo) } else { ("segment", &manifest.redo) };
        // Without a footer a segment is not scrubbed yet.
        let has_footer =
            |info: &&SegmentInfo| info.sealed.as_ref().is_some_and(|sealed| sealed.footer.is_some());
        let scrubbed = log.segments.iter().filter(has_footer);
        let segments: Vec<String> = scrubbed.map(|info| format!("{kind}-{:08}", info.number)).collect();
        let any = |rng: &mut Rng| {
            let name = segments.get(rng.below(segments.len() as u64 + 1) as usize)?.clone();
            let pages = self.store.len_of(&name)? / PAGE_BYTES as u64;
            Some((name, rng.below(pages) * PAGE_BYTES as u64))
        };
        let (name, at) = any(rng)?;
        // A footer that tells alone what a batch held which was spoilt before: that costs more, and has tests of its own.
        let is_of_footer = |info: &SegmentInfo| info.sealed.as_ref().is_some_and(|sealed| at >= sealed.bytes);
        let number = |info: &SegmentInfo| name.ends_with(&format!("-{:08}", info.number));
        if log.segments.iter().any(|info| number(info) && is_of_footer(info))
            && self.spoilt().has_page_of(&name)
        {
            return None;
        }
        let mut page = [0; PAGE_BYTES];
        self.images.spoil();
        let content = self.store.content(&name)?;
        self.spoilt().page(&name, &content, at);
        match rng.below(3) {
            0 => {
                self.store.rot(&name, at + rng.below(PAGE_BYTES as u64));
            }
            what => {
                if what == 1 {
                    let (other, from) = any(rng)?;
                    open(&self.store, &other).read_at(from, &mut page).expect("a store that works");
                }
                let file = open(&self.store, &name);
                file.write_at(at, &page).and_then(|()| file.sync_data()).expect("a store that works");
            }
        }
        let (mut place, mut found) = (None, 0);
        loop {
            let step = journal.scrub(place, &moment.upkeep(rng.sixteen())).expect("a disk that works");
            for damage in &step.damage {
                assert!(damage.pieces.is_some(), "damage costs more than it has damaged: {damage:?}");
            }
            self.note_damage();
            found += step.damage.len();
            place = step.place;
            if place.is_none() {
                return Some(found);
            }
        }
    }

    /// The disk works and has room again.
    pub(crate) fn mend_disk(&self) {
        self.store.limit_room(None);
        self.store.fail_sync_after(None);
        self.store.limit_capacity(None);
        self.store.die_after(None);
        self.store.cannot_read(None);
    }

    /// Damage was found, and sooner or later somebody tells the stream.
    pub(crate) fn stop_soon(&mut self, rng: &mut Rng) {
        self.stops_in = Some(rng.below(60));
    }

    /// A step passes; what the stream hears now of damage that was found.
    pub(crate) fn hears_of_damage(&mut self) -> Option<ReceiverEvent> {
        let left = self.stops_in.take();
        self.stops_in = left.and_then(|left| left.checked_sub(1));
        let journal = self.journal.as_ref().filter(|_| left == Some(0))?;
        Some(match journal.status().must_resync {
            Some(_) => ReceiverEvent::Stopped(Refuse { why: Refusal::Busy, detail: "damage".into() }),
            None if self.hears_of_blocks => ReceiverEvent::Lost(journal.to_send_again()),
            None => {
                // A disk that fails does not take it; whoever greets next is asked then.
                journal.compare_for_what_is_lost().ok().filter(|must_stop| *must_stop)?;
                ReceiverEvent::Stopped(Refuse { why: Refusal::Busy, detail: "damage".into() })
            }
        })
    }

    /// Whether something of the newest state is lost.
    pub(crate) fn has_lost(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| !journal.to_send_again().is_empty())
    }

    /// What is asked for again lay in something that was damaged. What has been written over it since is not told of here: it
    /// may be lost itself, or have come with a batch that was cut off.
    fn invariant_no_more_is_asked_for_than_was_lost(&self, runs: &[BlockRun]) {
        let size = self.journal.as_ref().map_or(0, |journal| journal.disks()[0].size_bytes);
        for block in runs.iter().flat_map(|run| run.first.0..run.end()).map(BlockIndex) {
            let was_lost = self.spoilt().has_touched(block.range(size));
            assert!(was_lost, "invariant_no_more_is_asked_for_than_was_lost: block {}", block.0);
        }
    }

    pub(crate) fn has_journal(&self) -> bool {
        journal::is_journal(&self.store).expect("a store that works")
    }

    /// Runs the receiver until it has nothing to do at this moment.
    pub(crate) fn run(&mut self, now: Monotonic, event: ReceiverEvent, link: &mut Option<Connection>) {
        self.run_with(now, event, link, &mut |side, hello| side.open(hello));
    }

    /// The same, where `open` answers greetings.
    pub(crate) fn run_with(
        &mut self,
        now: Monotonic,
        event: ReceiverEvent,
        link: &mut Option<Connection>,
        open: &mut dyn FnMut(&mut Self, &Hello) -> Result<Opened, Refuse>,
    ) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            let Some(receiver) = &mut self.receiver else { return };
            receiver.step(now, event, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    ReceiverEffect::Open(hello) => {
                        let opened = open(self, &hello);
                        events.push_back(ReceiverEvent::Opened(opened));
                    }
                    ReceiverEffect::Send(message) => {
                        if let Message::SendAgain(runs) = &message {
                            self.invariant_no_more_is_asked_for_than_was_lost(runs);
                        }
                        if let Some(link) = link {
                            link.to_sender.send(&message);
                        }
                    }
                    ReceiverEffect::Append(batch) => self.queue.push_back(batch),
                    ReceiverEffect::Keep(_) => {}
                    ReceiverEffect::Compare(compare) => {
                        let compared = self.compare(&compare);
                        events.extend(compared.map(ReceiverEvent::Compared));
                    }
                    ReceiverEffect::AnswerClock { asked_at } => {
                        if let Some(link) = link {
                            let answer = ClockAnswer { asked_at, says: WallTime(now.0.as_micros() as i64) };
                            link.to_sender.send(&Message::ClockAnswer(answer));
                        }
                    }
                    ReceiverEffect::Close { .. } => self.receiver = None,
                }
            }
        }
    }

    fn compare(&self, compare: &Compare) -> Option<Compared> {
        let journal = self.journal.as_ref()?;
        let size = journal.disks()[usize::from(compare.disk.0)].size_bytes;
        let mut differs = 0;
        for (at, hash) in compare.hashes.iter().enumerate() {
            let range = BlockIndex(compare.first.0 + at as u64).range(size);
            let mut block = vec![0; range.len as usize];
            // A block that cannot be read is as good as one that differs: it is sent again.
            let read = journal.read_at(compare.disk, compare.at, range.start, &mut block);
            if read.is_err() || BlockHash::of(&block) != *hash {
                differs |= 1 << at;
            }
        }
        Some(Compared { disk: compare.disk, first: compare.first, differs })
    }

    fn open(&mut self, hello: &Hello) -> Result<Opened, Refuse> {
        if let Some((epoch, released)) = self.fence
            && !(released && hello.epoch >= epoch)
        {
            return Err(Refuse { why: Refusal::Fenced { epoch, released }, detail: String::new() });
        }
        self.reopen();
        let failed = |detail: String| Refuse { why: Refusal::JournalFailed, detail };
        if self.journal.is_none() && self.has_journal() {
            return Err(failed("the disk fails".into()));
        }
        if self.journal.is_none() {
            self.make(hello)?;
        }
        let journal = self.journal.as_ref().expect("made just now");
        let epoch = journal.status().epoch;
        if hello.epoch < epoch {
            let released = self.fence.is_none_or(|(_, released)| released);
            return Err(Refuse { why: Refusal::Fenced { epoch, released }, detail: String::new() });
        }
        journal.raise_epoch(hello.epoch).map_err(|error| failed(error.to_string()))?;
        self.begin(hello)
    }

    /// Makes the journal that is greeted for.
    pub(crate) fn make(&mut self, hello: &Hello) -> Result<(), Refuse> {
        let store = Arc::new(self.store.clone());
        let (vm, name, disks) = (hello.vm, &hello.vm_name, &hello.disks);
        let made = Journal::create(store, vm, name, disks, hello.epoch, self.settings);
        let failed =
            |error: journal::CreateError| Refuse { why: Refusal::JournalFailed, detail: error.to_string() };
        self.journal = Some(Arc::new(made.map_err(failed)?));
        Ok(())
    }

    /// The stream begins, of the epoch that the journal has.
    pub(crate) fn begin(&mut self, hello: &Hello) -> Result<Opened, Refuse> {
        self.epoch = hello.epoch;
        self.hears_of_blocks = hello.hears_of_blocks();
        let journal = self.journal.as_ref().expect("it is open");
        if !self.hears_of_blocks {
            let failed =
                |error: journal::FoldError| Refuse { why: Refusal::JournalFailed, detail: error.to_string() };
            journal.compare_for_what_is_lost().map_err(failed)?;
        }
        let status = journal.begin_stream();
        Ok(Opened {
            epoch: hello.epoch,
            durable: status.last_seq,
            incarnation: status.incarnation,
            must_compare: status.must_resync.is_some(),
            seeded: false,
            missing: Vec::new(),
            lost: journal.to_send_again(),
        })
    }

    /// The writer's turn: appends some of what is queued and reports.
    pub(crate) fn append(
        &mut self,
        now: Monotonic,
        wall: WallTime,
        link: &mut Option<Connection>,
        rng: &mut Rng,
    ) {
        let Some(journal) = self.journal.clone() else { return };
        if self.queue.is_empty() || self.receiver.is_none() {
            return;
        }
        let count = 1 + rng.below(self.queue.len() as u64) as usize;
        let group: Vec<Batch> = self.queue.drain(..count).collect();
        let written = group.clone();
        let event = match journal
            .append(group, AppendMeta { epoch: self.epoch, received_at: wall, entropy: rng.sixteen() })
        {
            Ok(appended) => {
                self.told = self.told.max(appended.durable);
                written.iter().for_each(|batch| self.spoilt().written(batch));
                ReceiverEvent::Durable(Ack {
                    durable: appended.durable,
                    watermark: appended.watermark,
                    applied: journal.status().applied,
                    journal_bytes: 0,
                    history_seconds: 0,
                    projected_history_seconds: None,
                })
            }
            Err(error) => {
                let why = match &error {
                    AppendError::Full(_) => Refusal::JournalFull,
                    AppendError::MustBeginAnew { .. } => Refusal::Busy,
                    AppendError::Epoch { current, .. } => {
                        Refusal::Fenced { epoch: *current, released: false }
                    }
                    _ => Refusal::JournalFailed,
                };
                if !error.is_transient() {
                    self.has_failed = true;
                    self.journal = self.journal.take().filter(|_| self.has_a_life);
                }
                self.queue.clear();
                ReceiverEvent::Stopped(Refuse { why, detail: error.to_string() })
            }
        };
        self.run(now, event, link);
    }

    /// Bytes of batches that came and are not in the journal yet.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.queue.iter().map(|batch| batch.bytes().len()).sum()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

fn open(store: &SimStore, name: &str) -> Arc<dyn StoreFile> {
    store.open(name, false).expect("a name's file exists")
}
