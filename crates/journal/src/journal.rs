//! The journal as the rest of the program sees it: it puts the parts together, and none of them knows it.
//!
//! In which order its locks are taken is in ARCHITECTURE, "Locks".

use crate::again;
use crate::append::Appender;
use crate::checkpoint_files::CheckpointError;
use crate::checkpoints::{CheckpointFacts, CheckpointQuery};
use crate::create::{CreateError, create};
use crate::damage::{Damage, Untold};
use crate::fold::FoldError;
use crate::footers::Footers;
use crate::history::{History, Listed};
use crate::life::Life;
use crate::manifest::ManifestError;
use crate::met::{Kept, LookedAt, Met};
use crate::open::{OpenError, Standing, open};
use crate::payload::ReadError;
use crate::pins::{Expiry, Pin, PinError, Pins};
use crate::read::Reads;
use crate::scrub::{Scrub, ScrubPlace, Scrubbed};
use crate::settings::Settings;
use crate::state::State;
use crate::status::JournalStatus;
use crate::store::Store;
use crate::timeline::Timeline;
use crate::turn::Turns;
use crate::undo::UndoWriter;
use crate::upkeep::Upkeep;
use crate::view::Shared;
use crate::writer::{AppendError, AppendMeta, Appended, Writer};
use batch::Batch;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::RwLockReadGuard;
use threads::sync::atomic::Ordering;
use types::{BlockRun, CheckpointId, DiskIndex, DiskSpec, Epoch, Monotonic, VmId, WallTime, WriteSeq};

/// The journal of one VM.
#[derive(Debug)]
pub struct Journal {
    pub(crate) state: Arc<State>,
    pub(crate) appender: Appender,
    footers: Arc<Footers>,
    reads: Arc<Reads>,
    turns: Turns,
    looked_at: LookedAt,
    untold: Untold,
}

/// An opened journal and what had to be said about it.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    pub damage: Vec<Damage>,
    /// Bytes of a torn batch that were cut off the end.
    pub torn_bytes: u64,
    /// What was damaged, cost nothing, and is made again.
    pub mended: Vec<String>,
}

impl Journal {
    /// Makes the journal of a VM, with replicas that read as zeroes.
    ///
    /// # Errors
    /// [`CreateError::Exists`] where there is one already.
    pub fn create(
        store: Arc<dyn Store>,
        vm: VmId,
        vm_name: &str,
        disks: &[DiskSpec],
        epoch: Epoch,
        settings: Settings,
    ) -> Result<Journal, CreateError> {
        create(&*store, vm, vm_name, disks, epoch, true)?;
        Self::open_made(store, settings)
    }

    /// As [`Journal::create`], around replicas that lie in the store already.
    ///
    /// # Errors
    /// As [`Journal::create`].
    pub fn create_seeded(
        store: Arc<dyn Store>,
        vm: VmId,
        vm_name: &str,
        disks: &[DiskSpec],
        epoch: Epoch,
        settings: Settings,
    ) -> Result<Journal, CreateError> {
        create(&*store, vm, vm_name, disks, epoch, false)?;
        Self::open_made(store, settings)
    }

    fn open_made(store: Arc<dyn Store>, settings: Settings) -> Result<Journal, CreateError> {
        Journal::open(store, settings).map(|opened| opened.journal).map_err(|error| match error {
            OpenError::Io(source) | OpenError::Manifest(ManifestError::Io(source)) => CreateError::Io(source),
            other => CreateError::Io(io::Error::other(other)),
        })
    }

    /// Opens the journal in a folder.
    ///
    /// # Errors
    /// [`OpenError`]; damage that could be contained is told in [`Opened::damage`].
    pub fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Opened, OpenError> {
        Self::open_any(store, None, settings)
    }

    /// As [`Journal::open`], where it is known whose journal is to lie in the folder.
    ///
    /// # Errors
    /// As [`Journal::open`]; [`OpenError::AnotherVm`] where it is another's, which is left as it is.
    pub fn open_of(vm: VmId, store: Arc<dyn Store>, settings: Settings) -> Result<Opened, OpenError> {
        Self::open_any(store, Some(vm), settings)
    }

    fn open_any(store: Arc<dyn Store>, of: Option<VmId>, settings: Settings) -> Result<Opened, OpenError> {
        let life = Life::begin(&*store);
        let Standing { shared, writer, undo, damage, torn_bytes, mended } = open(&*store, of, settings)?;
        Ok(Opened { journal: Journal::new(store, life, shared, writer, undo), damage, torn_bytes, mended })
    }

    fn new(store: Arc<dyn Store>, life: Life, shared: Shared, writer: Writer, undo: UndoWriter) -> Self {
        let state = Arc::new(State::new(store, life, shared));
        let reads = Arc::new(Reads::new(state.clone()));
        let footers = Arc::new(Footers::new(state.clone(), reads.clone()));
        Self {
            turns: Turns::new(state.clone(), reads.clone(), footers.clone(), undo),
            appender: Appender::new(state.clone(), footers.clone(), writer),
            state,
            reads,
            footers,
            looked_at: LookedAt::default(),
            untold: Untold::default(),
        }
    }

    pub(crate) fn read_shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.state.read_shared()
    }

    /// The journal in numbers.
    pub fn status(&self) -> JournalStatus {
        JournalStatus::of(&self.read_shared())
    }

    /// Ends this life: nothing is appended or changed any more, and whatever was under way has ended when this
    /// returns. Reading goes on.
    pub fn close(&self) {
        self.state.end_life();
        self.appender.refuse();
        // In the order of the locks; each is given back at once, for what takes it later finds the life ended.
        drop(self.turns.lock());
        drop(self.appender.lock_writer());
        self.wait_for_appends();
        drop(self.footers.lock());
        self.state.wait_for_saving();
    }

    /// Tells what is long (a turn of upkeep, a scrub) that somebody waits for this life to end: it fails at its next step,
    /// and is gone on with by the next life, or once this is taken back.
    pub fn give_way(&self, yes: bool) {
        self.state.give_way(yes);
    }

    /// Whether what is long fails because its life has ended or is about to.
    pub fn gives_way(&self) -> bool {
        self.state.gives_way() || self.is_closed()
    }

    /// Whether its life has ended.
    pub fn is_closed(&self) -> bool {
        self.state.is_closed()
    }

    /// The disks, in order.
    pub fn disks(&self) -> Vec<DiskSpec> {
        let shared = self.read_shared();
        let disks = shared.manifest.disks.iter();
        disks.map(|disk| DiskSpec { name: disk.name.clone(), size_bytes: disk.size_bytes }).collect()
    }

    /// Asks the timeline: gaps, the newest consistent cut.
    pub fn with_timeline<T>(&self, ask: impl FnOnce(&Timeline) -> T) -> T {
        ask(&self.read_shared().timeline)
    }

    /// Changes what an operator may set.
    pub fn set(&self, settings: Settings) {
        self.state.write_shared().settings = settings;
    }

    /// How long it was kept up altogether, as far as that was seen: time that no clock of the host can make pass, and that
    /// stands still while nobody runs.
    pub fn aged(&self, now: Monotonic) -> Duration {
        Duration::from_micros(u64::try_from(self.read_shared().age.at(now)).unwrap_or(0))
    }

    /// Fills `buf` with the disk's bytes from `start` as of `cut`, which is pinned or not yet retired.
    ///
    /// # Errors
    /// [`ReadError`] naming the damaged place.
    pub fn read_at(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.reads.read_at(disk, cut, start, buf)
    }

    /// The same for an image, which may have been opened before damage was found.
    pub(crate) fn read_image(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.reads.read_image(disk, cut, start, buf)
    }

    /// Appends batches in order and makes them durable with one sync. Not to be mixed with shards on the
    /// same journal.
    ///
    /// # Errors
    /// [`AppendError`]. After [`AppendError::Failed`] nothing more is taken until the journal is opened
    /// again from the disk: a sync that failed once says nothing the second time.
    pub fn append(&self, batches: Vec<Batch>, meta: AppendMeta) -> Result<Appended, AppendError> {
        self.appender.append(batches, meta)
    }

    /// A stream is about to be welcomed, and is told by what is returned whether it must begin anew. No other one may
    /// append any more.
    pub fn begin_stream(&self) -> JournalStatus {
        self.appender.begin_stream()
    }

    /// What is lost of the newest state, by its blocks, in ascending runs that have none in common: the source is asked for
    /// it until something lies over it. Nothing where [`JournalStatus::must_resync`] asks for everything.
    pub fn to_send_again(&self) -> Vec<BlockRun> {
        self.with_timeline(|timeline| match timeline.must_resync() {
            Some(_) => Vec::new(),
            None => again::runs(timeline.lost()),
        })
    }

    /// Asks for a comparison of everything, where something of the newest state is lost for which that was not asked yet:
    /// the source that comes, or is there, cannot be asked for blocks. Whether everything is to be compared now: then whoever
    /// streams must be stopped.
    ///
    /// # Errors
    /// As the file system says.
    pub fn compare_for_what_is_lost(&self) -> Result<bool, FoldError> {
        self.scrubbing().containing().everything()
    }

    /// Waits until every group that was framed is committed or has failed.
    pub fn wait_for_appends(&self) {
        self.appender.wait();
    }

    /// The same, but no longer than this; whether they have. A disk that hangs commits nothing and fails nothing.
    pub fn wait_for_appends_within(&self, most: Duration) -> bool {
        self.appender.wait_within(most)
    }

    /// Takes a higher epoch, durably; from then on nothing of a lower one is appended.
    ///
    /// # Errors
    /// As the file system says.
    pub fn raise_epoch(&self, epoch: Epoch) -> io::Result<()> {
        let _writer = self.appender.lock_writer();
        if epoch.0 <= self.read_shared().manifest.epoch {
            return Ok(());
        }
        self.state.change_manifest_alone(|manifest| manifest.epoch = epoch.0)
    }

    /// Takes a higher epoch as [`Journal::raise_epoch`] does, and ends what was written of lower ones: what had its place
    /// before is waited for, no longer than `most`; whether it was. Then the journal has what it has, over restarts too.
    ///
    /// A crash story: (1) a group is written whole but for its last sectors, or its sync fails, so that none of it counts;
    /// (2) a cut is chosen below it, and its images are started; (3) the journal is opened again, and finds a batch of that
    /// group in the open segment. It would be the newest write from then on, of a guest that had lost its authority.
    ///
    /// # Errors
    /// As the file system says.
    pub fn fence(&self, epoch: Epoch, most: Duration) -> io::Result<bool> {
        self.raise_epoch(epoch)?;
        if !self.appender.wait_within(most) {
            return Ok(false);
        }
        let mut writer = self.appender.lock_writer();
        self.appender.seal_redo(&mut writer)?;
        Ok(true)
    }

    fn history(&self) -> History<'_> {
        History { state: &self.state }
    }

    /// Checkpoints that can be opened, in the order asked for, at most as many as the query's limit, and where more may
    /// be that cannot be read.
    pub fn checkpoints(&self, query: &CheckpointQuery) -> Listed {
        self.history().checkpoints(query)
    }

    /// A checkpoint by its id, if it can be opened; thinned ones too, as long as their data is there.
    ///
    /// # Errors
    /// [`CheckpointError`] where the page it may be in cannot be read.
    pub fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointFacts>, CheckpointError> {
        self.history().checkpoint(id)
    }

    /// The newest consistent cut at or below `cut`, if there is one.
    pub fn newest_consistent(&self, cut: WriteSeq) -> Option<WriteSeq> {
        self.history().newest_consistent(cut)
    }

    /// Whether it is known that the VM can be opened exactly at `cut`.
    pub fn is_consistent(&self, cut: WriteSeq) -> bool {
        self.history().is_consistent(cut).unwrap_or(false)
    }

    /// The newest checkpoint that can be opened, of those that can be read.
    ///
    /// # Errors
    /// [`CheckpointError`] where none can be.
    pub fn newest_checkpoint(&self) -> Result<Option<CheckpointFacts>, CheckpointError> {
        self.history().newest_checkpoint()
    }

    /// The newest checkpoint taken at or before `time`, of those that can be read.
    ///
    /// # Errors
    /// [`CheckpointError`] where none can be.
    pub fn nearest_checkpoint(&self, time: WallTime) -> Result<Option<CheckpointFacts>, CheckpointError> {
        self.history().nearest_checkpoint(time)
    }

    /// Does a bounded amount of what is to be done, and contains what it comes upon.
    ///
    /// # Errors
    /// [`FoldError`]; nothing is lost, and the next call tries again.
    pub fn keep_up(&self, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        Met { turns: &self.turns, scrub: self.scrubbing(), looked_at: &self.looked_at }.keep_up(how)
    }

    /// Reads the segment after `after` and its footer, and with the last one every merged run, the checkpoint files and the
    /// manifest.
    ///
    /// # Errors
    /// [`FoldError`] where something cannot be read or written just now.
    pub fn scrub(&self, after: Option<ScrubPlace>, how: &Upkeep<'_>) -> Result<Scrubbed, FoldError> {
        self.scrubbing().step(after, how)
    }

    fn scrubbing(&self) -> Scrub<'_> {
        let Self { state, reads, footers, appender, turns, untold, .. } = self;
        Scrub { state, reads, footers, appender, turns, untold }
    }

    /// A round of scrubbing has come to its end and found all whole; that is known after a restart, too.
    ///
    /// # Errors
    /// As the file system says.
    pub fn note_scrubbed(&self, at: WallTime) -> io::Result<()> {
        self.state.change_manifest_alone(|manifest| manifest.scrubbed_at = Some(at.0))
    }

    /// What holds cuts, images first of all.
    pub(crate) fn held(&self) -> Pins<'_> {
        Pins { state: &self.state }
    }

    /// Pins `cut` for `owner`, over restarts, until [`Journal::unpin`] or it expires. The pin's number.
    ///
    /// # Errors
    /// [`PinError::NotConsistent`] where the VM cannot be opened there; [`PinError::Unread`] where nobody can tell.
    pub fn pin(&self, owner: &str, cut: WriteSeq, expiry: Option<Expiry>) -> Result<u64, PinError> {
        self.held().pin(owner, cut, expiry)
    }

    /// Takes away the pins for which `gone` holds. How many.
    ///
    /// # Errors
    /// As the file system says.
    pub fn unpin(&self, gone: impl Fn(&Pin) -> bool) -> io::Result<usize> {
        self.held().unpin(gone)
    }

    /// The pins that are kept over restarts.
    pub fn pins(&self) -> Vec<Pin> {
        self.held().list()
    }

    /// Throws away the overlays of an image that are kept in `folder`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn discard_overlays(&self, folder: &str) -> io::Result<()> {
        self.state.store.remove(folder)?;
        self.state.store.sync_folder()
    }

    /// Lets go of what is only kept for speed: index guides and open files not used since the last call.
    pub fn rest(&self) {
        let view = self.read_shared().view.clone();
        view.redo.runs.iter().chain(&view.undo.runs).for_each(|run| run.rest());
        self.reads.rest();
    }

    /// Bytes of index directories and of block bitmaps that are in memory now.
    pub fn resident_index_bytes(&self) -> (usize, usize) {
        let view = self.read_shared().view.clone();
        let runs = view.redo.runs.iter().chain(&view.undo.runs);
        runs.map(|run| run.resident_bytes()).fold((0, 0), |sum, (d, b)| (sum.0 + d, sum.1 + b))
    }
}

/// Index pages read so far by the process, for the bench.
pub fn index_pages_read() -> u64 {
    crate::run::PAGES_READ.load(Ordering::Relaxed)
}
