//! One protected VM: its disks, its capture, its socket, and the task that drives its stream.

use super::HostDevices;
use super::Source;
use super::change::plan::Kept;
use super::driver::{self, Command, Commanded};
use super::group::Group;
use super::image_watch;
use super::images::{Trouble, check_at_start, image_file, trouble};
use super::kept_record::KeptRecord;
use super::record::{FencedAt, ProtectionRecord};
use super::remote_clients::{RemoteClient, RemoteClients};
use super::stream_status::StreamStatus;
use super::tapped::{self, NamedBy, VmTap};
use crate::clock;
use crate::disk_server::DiskServer;
use crate::error::{OperationError, Result, with_sources};
use crate::policy::Policy;
use crate::state::StateDir;
use anyhow::Context;
use joint::membership::{FirstSync, Found};
use replication::{KeptStream, SyncReason};
use splitter::nbd::Export;
use splitter::{
    BlockDevice, Boot, Capture, CaptureConfig, Course, DirtyMap, DiskIdentity, LocalDisk, MapFile,
    ProtectedDisk, RawDisk, RawDiskError, RegionLog,
};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use types::limits::{BLOCK_BYTES, REGION_LOG_BYTES};
use types::{DiskIndex, VmId};

/// How often, and how many times at most, a stopped disk is looked at until its last change lies far enough back.
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);
const SETTLE_LOOKS_MAX: usize = 110;

/// A VM whose writes are captured.
#[derive(Debug)]
pub(crate) struct ProtectedVm {
    id: VmId,
    record: KeptRecord,
    group: Arc<Group>,
    capture: Arc<Capture>,
    disks: Vec<Arc<ProtectedDisk>>,
    server: Mutex<Option<DiskServer>>,
    devices: Mutex<HostDevices>,
    /// Clients over TCP.
    remote: Arc<RemoteClients>,
    /// Of a VM that runs on its own image.
    tap: Option<Arc<VmTap>>,
    /// It is being stopped.
    ending: AtomicBool,
    /// Another VM of the group has asked how far it is, and the driver has yet to hear of it.
    watermark_asked: AtomicBool,
    /// What is wrong with an image that somebody uses.
    trouble: Mutex<Option<String>>,
    commands: mpsc::UnboundedSender<Commanded>,
    status: Mutex<StreamStatus>,
    /// The streams that what is marked was kept for when the agent last ended.
    kept: Vec<KeptStream>,
    suspects_because: SyncReason,
}

impl ProtectedVm {
    /// Opens the disks, serves them, and begins to stream.
    pub(super) fn start(
        source: &Arc<Source>,
        group: &Arc<Group>,
        mut record: ProtectionRecord,
        named_by: NamedBy,
    ) -> Result<Arc<Self>> {
        let id: VmId = record.vm.parse().map_err(|_| anyhow::anyhow!("VM id of {} is no id", record.name))?;
        let tap = match record.qmp.clone() {
            Some(control) => Some(Arc::new(VmTap::open(source, &mut record, &control, named_by)?)),
            None => None,
        };
        let (locals, facts) = open_disks(&mut record, tap.as_deref())?;
        let wake = Arc::new(Notify::new());
        let sizes: Vec<u64> = facts.iter().map(|(size, _)| *size).collect();
        let waker = {
            let wake = wake.clone();
            Box::new(move || wake.notify_one())
        };
        let Tracking { map, regions, kept, suspects_because } = Tracking::open(source, &record, id, &facts)?;
        let counter = group.counter().clone();
        let buffer = CaptureConfig {
            buffer_bytes_max: record.policy.buffer_bytes,
            pool: source.buffer_pool.clone(),
            sync: record.policy.sync(),
            gate: group.gate().clone(),
            leaves_out: record.policy.leaves_out(),
        };
        let capture = Arc::new(Capture::new(counter, &sizes, map, regions, buffer, waker));
        // Before the first write: from this note on changes of the disks are the agent's own.
        let seen: Vec<_> = facts.iter().map(|(_, identity)| *identity).collect();
        capture.note_durable(clock::wall(), &seen);
        let disks: Vec<_> = locals
            .into_iter()
            .enumerate()
            .map(|(at, local)| {
                let disk = ProtectedDisk::new(DiskIndex(at as u16), local, capture.clone());
                Arc::new(if record.shared { disk.shared() } else { disk })
            })
            .collect();
        fence_disks(&record, &disks, source.boot_id);
        let (folder, served) = (&source.run_dir, exports(&record, &disks));
        let server = match &tap {
            Some(tap) => {
                DiskServer::serve_private(folder, "vms", &record.name, served, tap.private(&capture))?
            }
            None => DiskServer::serve(folder, "vms", &record.name, served)?,
        };
        if let Some(tap) = &tap {
            tap.attach(&capture, server.path())?;
        }
        let devices = HostDevices::serve(&record, &disks)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let name = record.name.clone();
        let vm = Arc::new(Self {
            id,
            status: Mutex::new(StreamStatus::before_begin(&record)),
            record: KeptRecord::new(record),
            group: group.clone(),
            capture,
            disks,
            server: Mutex::new(Some(server)),
            devices: Mutex::new(devices),
            remote: Arc::default(),
            tap: tap.clone(),
            ending: AtomicBool::new(false),
            watermark_asked: AtomicBool::new(false),
            trouble: Mutex::default(),
            commands,
            kept,
            suspects_because,
        });
        if let Some(tap) = &tap {
            tap.watch(source, &name, &vm.capture)?;
        }
        tokio::spawn(driver::drive(vm.clone(), source.clone(), wake, inbox));
        tokio::spawn(image_watch::watch(source.clone(), Arc::downgrade(&vm)));
        Ok(vm)
    }

    pub(crate) fn id(&self) -> VmId {
        self.id
    }

    pub(crate) fn name(&self) -> String {
        self.lock_record().name.clone()
    }

    pub(crate) fn policy(&self) -> Policy {
        self.lock_record().policy.clone()
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    pub(crate) fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    pub(crate) fn kept_streams(&self) -> &[KeptStream] {
        &self.kept
    }

    pub(crate) fn suspects_because(&self) -> SyncReason {
        self.suspects_because
    }

    pub(crate) fn disks(&self) -> &[Arc<ProtectedDisk>] {
        &self.disks
    }

    pub(crate) fn record(&self) -> ProtectionRecord {
        self.lock_record().clone()
    }

    /// Writes the record down as it is; nobody changes it meanwhile.
    pub(super) fn save_record(&self, state: &StateDir) -> anyhow::Result<()> {
        self.record.save(state)
    }

    /// Notes something in its record: whether that is news. It is seen at once, and then written down.
    ///
    /// # Errors
    /// Where it could not be written down.
    pub(super) fn note(
        &self,
        state: &StateDir,
        change: impl FnOnce(&mut ProtectionRecord) -> bool,
    ) -> anyhow::Result<bool> {
        self.record.note(state, change)
    }

    /// Notes by which epoch another site has taken over, and since when, or that none has any more; whether that is news.
    ///
    /// # Errors
    /// Where it could not be written down; it holds all the same.
    pub(super) fn note_fenced(
        &self,
        state: &StateDir,
        fenced: Option<u64>,
        now: FencedAt,
    ) -> anyhow::Result<bool> {
        // At once, whatever disk others wait for who change the record; and once more in turn with them.
        let mut record = self.record();
        if !record.note_fenced(fenced, now) {
            return Ok(false);
        }
        fence_disks(&record, &self.disks, now.boot_id);
        self.record.note(state, |record| {
            let is_news = record.note_fenced(fenced, now);
            fence_disks(record, &self.disks, now.boot_id);
            is_news
        })
    }

    /// Writes down how far the first sync is, unless what is recorded is not `if_now` any more.
    ///
    /// # Errors
    /// Where it could not be written down; then it stays as it was.
    pub(super) fn put_first_sync(
        &self,
        state: &StateDir,
        if_now: impl FnOnce(FirstSync) -> bool,
        how_far: FirstSync,
    ) -> anyhow::Result<bool> {
        self.record.put(state, |record| {
            if_now(record.first_sync).then_some(ProtectionRecord { first_sync: how_far, ..record })
        })
    }

    /// Writes down which agent has taken the stream: it is the one that it is for from now on. One that is known stays so
    /// until an operator says otherwise.
    pub(super) fn note_peer_agent(&self, state: &StateDir, name: &str) -> anyhow::Result<()> {
        let noted = self.record.put(state, |record| {
            let is_known = record.peer_agent.is_some();
            (!is_known).then(|| ProtectionRecord { peer_agent: Some(name.to_owned()), ..record })
        });
        noted.map(drop)
    }

    /// Writes down what of the protection is another from now on than it was `before`.
    pub(super) fn put(&self, state: &StateDir, before: &Kept, kept: &Kept) -> anyhow::Result<()> {
        let put = self.record.put(state, |mut record| {
            kept.put_into(before, &mut record);
            Some(record)
        });
        put.map(drop)
    }

    pub(super) fn first_sync(&self) -> FirstSync {
        self.lock_record().first_sync
    }

    /// Whether checkpoints of its group have it: not before a state of it is at the recovery side.
    pub(super) fn is_member(&self) -> bool {
        self.first_sync().is_member()
    }

    /// The VM, as a cut finds it.
    pub(super) fn found(&self) -> Found {
        let misses_writes = self.capture().status().gap_open;
        Found { vm: self.id(), first_sync: self.first_sync(), misses_writes }
    }

    /// Whether an image of its group may have it.
    pub(super) fn may_be_there(&self) -> bool {
        self.first_sync().may_be_there()
    }

    /// Whether its writes are to wait for the recovery side.
    pub(super) fn is_synchronous(&self) -> bool {
        self.capture.is_sync()
    }

    pub(crate) fn lock_record(&self) -> MutexGuard<'_, ProtectionRecord> {
        self.record.lock()
    }

    pub(crate) fn lock_status(&self) -> MutexGuard<'_, StreamStatus> {
        self.status.lock().expect("a panic aborts the process")
    }

    pub(crate) fn state_name(&self) -> String {
        if self.lock_trouble().is_some() { "failed".into() } else { self.lock_status().state.clone() }
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().expect("a panic aborts the process")
    }

    /// Says that an image is not what is protected, though what is written is still sent; none where all are.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.lock_trouble() = trouble;
    }

    /// What is wrong with the first image that is not what it was when it was opened.
    pub(super) fn trouble_with_images(&self) -> io::Result<Option<Trouble>> {
        let record = self.record();
        for (disk, open) in record.disks.iter().zip(&self.disks) {
            let found = trouble(open.look()?, &disk.path, &record.name, BlockDevice::size_bytes(&**open));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The socket that its disks are served on, and the processes there that may be the VM. None of a VM under the tap: its
    /// QEMU is asked.
    pub(super) fn clients_on_socket(&self) -> Option<(PathBuf, Vec<u32>)> {
        let served = self.server.lock().expect("a panic aborts the process");
        let socket = served.as_ref().filter(|_| self.tap.is_none()).map(|server| server.path().to_owned());
        drop(served);
        let writers = self.disks.iter().filter_map(|disk| disk.writers());
        Some((socket?, writers.flat_map(|writers| writers.processes()).collect()))
    }

    /// How many clients are connected, of any kind.
    pub(crate) fn clients(&self) -> usize {
        let server = self.server.lock().expect("a panic aborts the process");
        server.as_ref().map_or(0, DiskServer::connections) + self.remote.count()
    }

    /// Whether somebody may be about to write. Who uses a block device of this host cannot be told.
    pub(super) fn is_used(&self) -> bool {
        self.clients() > 0 || !self.lock_record().ublk.is_empty()
    }

    /// A client over TCP has picked a disk of this VM. It is served until what is returned is dropped.
    ///
    /// # Errors
    /// Where the VM is being stopped.
    pub(super) fn admit_remote(&self, connection: UnixStream) -> io::Result<RemoteClient> {
        self.remote.admit(connection)
    }

    fn devices(&self) -> MutexGuard<'_, HostDevices> {
        self.devices.lock().expect("a panic aborts the process")
    }

    /// Leaves a VM that runs on its own image, and this host, without a trace; a VM that runs on our sockets is not
    /// changed.
    pub(super) fn detach(&self, boot_id: [u8; 16]) -> Result<()> {
        self.remove_devices(boot_id)?;
        let Some(tap) = &self.tap else { return Ok(()) };
        self.ending.store(true, Ordering::SeqCst);
        // A job is only ended while its target answers: what is held for the recovery side must not keep it.
        self.capture.lose_writes();
        if let Err(error) = tap.detach() {
            // Its connections end with our server, and a change log costs it nothing.
            tracing::info!(vm = self.name(), error = error.detail, "unprotected without the VM's answer");
        }
        Ok(())
    }

    /// A device only goes once all that was asked of it is answered: nothing waits any more for the recovery side, and what
    /// stands because another site has taken over fails.
    fn remove_devices(&self, boot_id: [u8; 16]) -> Result<()> {
        let devices = {
            let mut devices = self.devices();
            check_is_not_mounted(&devices)?;
            std::mem::take(&mut *devices)
        };
        if self.lock_record().ublk.is_empty() {
            return Ok(());
        }
        self.capture.start_tracking();
        if self.lock_record().course() == Course::Waits {
            self.disks.iter().for_each(|disk| disk.set_course(Course::Fails));
        }
        devices.remove().inspect_err(|_| self.follow_fence(boot_id))
    }

    /// # Errors
    /// Where one of its devices of this host is mounted or held.
    pub(super) fn check_is_not_mounted(&self) -> Result<()> {
        check_is_not_mounted(&self.devices())
    }

    /// Whether its hypervisor or this host may have been left, with the protection going on.
    pub(super) fn is_left(&self) -> bool {
        let has_devices = !self.lock_record().ublk.is_empty();
        (self.is_tapped() && self.is_ending()) || (has_devices && self.devices().path(0).is_none())
    }

    /// Has its disks take whom they may, and do for them what is wanted, by what is recorded now.
    pub(super) fn follow_fence(&self, boot_id: [u8; 16]) {
        // With the record held: of two who follow it, the later one follows what is recorded later.
        fence_disks(&self.lock_record(), &self.disks, boot_id);
    }

    /// Whether it runs on its own image: then its disks are for its hypervisor only.
    pub(super) fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }

    /// The disks by their names.
    pub(super) fn exports(&self) -> Vec<Export> {
        exports(&self.record(), &self.disks)
    }

    pub(crate) fn command(&self, command: Command) {
        // The driver ends only after the VM was stopped, and then nothing is to be commanded.
        let _ = self.commands.send(Commanded { command, shown: None });
    }

    /// As [`ProtectedVm::command`]; what is given tells once the VM's row shows what the command has begun.
    pub(crate) fn command_and_show(&self, command: Command) -> oneshot::Receiver<()> {
        let (shown, seen) = oneshot::channel();
        let _ = self.commands.send(Commanded { command, shown: Some(shown) });
        seen
    }

    /// Has the driver say how far the VM is; once for all who ask meanwhile.
    pub(super) fn ask_watermark(&self) {
        if !self.watermark_asked.swap(true, Ordering::SeqCst) {
            self.command(Command::TellWatermark);
        }
    }

    /// Whoever asks from now on asks for more.
    pub(super) fn watermark_is_told(&self) {
        self.watermark_asked.store(false, Ordering::SeqCst);
    }

    /// Whether it is being stopped: then a disk that cannot be read is no trouble.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Ends the stream and closes the socket. Open disks are released once nobody uses them.
    ///
    /// Front ends go first, while the stream still brings acknowledgements for the writes they hold: what a guest is told
    /// until the end is as true as ever, and what it is not told it asks for again.
    pub(crate) fn stop(&self) {
        self.ending.store(true, Ordering::SeqCst);
        // First of all: whatever happens to the agent from here on, the VM has no export of ours.
        if let Some(tap) = &self.tap {
            tap.end();
        }
        // All of them first: a client's first write may wait for one of the others to go.
        self.remote.hang_up();
        let server = self.server.lock().expect("a panic aborts the process").take();
        if let Some(server) = &server {
            server.hang_up();
        }
        self.devices().leave();
        drop(server);
        self.remote.end();
        self.command(Command::Stop);
        if let Some(tap) = &self.tap {
            tap.leave();
        }
        // Nobody writes any more. What the map says is only true of a disk that has it all.
        let synced = self.disks.iter().try_for_each(|disk| disk.sync_all());
        match synced.and_then(|()| self.settled_identities()) {
            Ok(seen) => self.capture.close(clock::wall(), &seen),
            Err(error) => {
                tracing::error!(vm = self.name(), %error, "a disk cannot be synced");
                // What it was seen as before tells nothing of what others write from here on.
                self.capture.close(clock::wall(), &vec![None; self.disks.len()]);
            }
        }
    }

    /// What the disks are seen as now.
    pub(super) fn identities(&self) -> io::Result<Vec<Option<DiskIdentity>>> {
        self.disks.iter().map(|disk| disk.identity()).collect()
    }

    /// As [`ProtectedVm::identities`], of disks that nobody writes to, once any change would show.
    fn settled_identities(&self) -> io::Result<Vec<Option<DiskIdentity>>> {
        for _ in 0..SETTLE_LOOKS_MAX {
            let seen = self.identities()?;
            if seen.iter().flatten().all(|identity| identity.is_settled) {
                return Ok(seen);
            }
            std::thread::sleep(SETTLE_INTERVAL);
        }
        self.identities()
    }

    /// Its stream for the operator: in vain, where a disk image is not what it was.
    fn shown_stream(&self) -> StreamStatus {
        let mut stream = self.lock_status().clone();
        let trouble = self.lock_trouble().clone();
        if let Some(trouble) = trouble {
            stream.state = "failed".into();
            stream.reason = "a disk image is not what it was".into();
            stream.last_error = Some(trouble);
            // What is at the other side may be a copy of what the guest has left.
            stream.rpo_exceeded = true;
        }
        stream
    }

    /// Its socket and its disks, as far as anybody may use them.
    fn served_to_api(&self, record: &ProtectionRecord) -> (String, Vec<api::Disk>) {
        let server = self.server.lock().expect("a panic aborts the process");
        // The socket of a VM under the tap is nobody else's business.
        let shown = server.as_ref().filter(|_| self.tap.is_none());
        let socket = shown.map_or_else(String::new, |server| server.path().display().to_string());
        let devices = self.devices();
        let disks = record.disks.iter().zip(&self.disks).enumerate().map(|(at, (disk, open))| api::Disk {
            name: disk.name.clone(),
            size_bytes: BlockDevice::size_bytes(&**open),
            path: disk.path.display().to_string(),
            // Of a VM that runs on its own image nobody is to attach to it.
            vhost_user_socket: server
                .as_ref()
                .filter(|_| record.qmp.is_none())
                .and_then(|server| server.vhost_user_socket(at)),
            ublk_device: devices.path(at),
        });
        (socket, disks.collect())
    }

    /// The VM for the operator.
    pub(crate) fn to_api(&self) -> api::ProtectedVm {
        let record = self.record();
        let capture = self.capture.status();
        let stream = self.shown_stream();
        let (socket, disks) = self.served_to_api(&record);
        let dirty_bytes = (capture.dirty_blocks + capture.unsettled_blocks) * BLOCK_BYTES;
        let to_sync = dirty_bytes + capture.buffered_bytes + stream.spill_bytes;
        let total = stream.sync_total_bytes.max(to_sync).max(1);
        let syncing = matches!(stream.state.as_str(), "initial-sync" | "delta-sync" | "bitmap-sync");
        api::ProtectedVm {
            id: record.vm.clone(),
            name: record.name.clone(),
            group: record.group.clone(),
            epoch: record.epoch,
            peer: record.peer.clone(),
            peer_agent: record.peer_agent.clone(),
            state: stream.state,
            reason: stream.reason,
            link: stream.link,
            last_error: stream.last_error,
            notes: self.tap.iter().map(|_| tapped::TRIM_NOTE.to_owned()).collect(),
            socket,
            qmp: record.qmp.as_ref().map(|path| path.display().to_string()),
            guest: self.tap.as_ref().and_then(|tap| tap.guest()),
            clients: self.clients(),
            disks,
            rpo_now_seconds: stream.rpo_now.map(|age| age.as_secs_f64()),
            rpo_seconds: record.policy.rpo_seconds,
            rpo_exceeded: stream.rpo_exceeded,
            history_exceeded: stream.history_exceeded,
            on_fenced: record.policy.on_fenced.name().to_owned(),
            mode: capture.sync.name().to_owned(),
            priority: record.policy.priority,
            clock_skew_seconds: stream.clock_skew_seconds,
            spill_bytes: stream.spill_bytes,
            spill_bytes_max: stream.spill_bytes_max,
            verify: stream.verify,
            unreadable_bytes: Some(capture.unreadable_blocks * BLOCK_BYTES),
            asked_again_bytes: capture.sync_work.asked_again * BLOCK_BYTES,
            copied_bytes: capture.sync_work.copied * BLOCK_BYTES,
            compared_bytes: capture.sync_work.compared * BLOCK_BYTES,
            buffer_bytes: capture.buffered_bytes,
            buffer_bytes_max: capture.buffer_bytes_max,
            dirty_bytes,
            to_sync_bytes: Some(to_sync),
            sync_progress: syncing.then(|| 1.0 - to_sync as f64 / total as f64),
            writes: capture.writes,
            write_bytes: capture.write_bytes,
            left_out_bytes: capture.left_out_bytes,
            write_bytes_per_second: stream.write_bytes_per_second,
            sent_bytes: stream.sent_bytes,
            sent_bytes_per_second: stream.sent_bytes_per_second,
            durable_seq: stream.durable.to_string(),
            journal_bytes: stream.journal_bytes,
            history_seconds: stream.history_seconds,
            checkpoint_interval_seconds: record.policy.checkpoint_interval_seconds,
        }
    }
}

/// Disks to be protected, with their sizes and which files they are.
type OpenDisks = (Vec<Box<dyn LocalDisk>>, Vec<(u64, Option<DiskIdentity>)>);

fn open_disks(record: &mut ProtectionRecord, tap: Option<&VmTap>) -> Result<OpenDisks> {
    let (mut locals, mut facts) = (Vec::<Box<dyn LocalDisk>>::new(), Vec::new());
    if let Some(tap) = tap {
        for disk in tap.disks() {
            facts.push((disk.size_bytes(), Some(disk.identity())));
            locals.push(Box::new(disk.clone()));
        }
        return Ok((locals, facts));
    }
    for at in 0..record.disks.len() {
        let disk = &record.disks[at];
        let mut raw = RawDisk::open(&disk.path).map_err(cannot_open)?;
        let identity = LocalDisk::identity(&raw).context("look at the disks")?;
        let mut file = image_file(raw.size_bytes(), identity);
        file.size_bytes = check_at_start(record, disk, &file)?;
        raw.limit_to(file.size_bytes);
        facts.push((raw.size_bytes(), identity));
        locals.push(Box::new(raw));
        record.disks[at].file = Some(file);
    }
    record.let_go = false;
    Ok((locals, facts))
}

/// Has the disks take whom they may: no newcomers while another side has taken over. Those of a VM that runs on its own image
/// are for its hypervisor only in any case; a block device of this host is no newcomer.
fn fence_disks(record: &ProtectionRecord, disks: &[Arc<ProtectedDisk>], boot_id: [u8; 16]) {
    // The hypervisor of a VM that runs on its own image is told instead, see `standing_still`.
    if record.qmp.is_some() {
        return;
    }
    let up = Duration::from_millis(clock::up_time().milliseconds());
    let (fence, course) = (record.fence(boot_id, up), record.course());
    disks.iter().for_each(|disk| disk.set_course(course));
    for writers in disks.iter().filter_map(|disk| disk.writers()) {
        match fence.clone() {
            Some(fence) => writers.fence(fence),
            None => writers.unfence(),
        }
    }
}

fn cannot_open(error: RawDiskError) -> OperationError {
    let text = with_sources(&error);
    match error {
        RawDiskError::InUse { .. } | RawDiskError::Claimed { .. } => OperationError::in_use(text),
        _ => OperationError::invalid(text),
    }
}

/// What is kept of a VM's blocks over the agent's death, and what can be continued from it.
struct Tracking {
    map: DirtyMap,
    regions: RegionLog,
    kept: Vec<KeptStream>,
    suspects_because: SyncReason,
}

impl Tracking {
    fn open(
        source: &Source,
        record: &ProtectionRecord,
        id: VmId,
        disks: &[(u64, Option<DiskIdentity>)],
    ) -> Result<Self> {
        let boot = Boot { id: source.boot_id, at: clock::booted_at() };
        let (map_path, log_path) =
            (source.state.path(&record.map_name()), source.state.path(&record.region_log_name()));
        let map = MapFile::open(&map_path)
            .and_then(|file| DirtyMap::open(Box::new(file), id, disks, boot.id))
            .with_context(|| format!("open dirty map {}", map_path.display()))?;
        let regions = MapFile::open(&log_path)
            .and_then(|file| RegionLog::open(Box::new(file), id, disks, REGION_LOG_BYTES, boot))
            .with_context(|| format!("open dirty-region log {}", log_path.display()))?;
        let of_map = map.kept();
        // Only a crash of the host takes the map; the log is what is left then.
        let crashed = of_map.is_empty();
        let kept = if crashed { regions.kept() } else { of_map };
        let kept = kept.into_iter();
        let kept = kept.map(|kept| KeptStream { incarnation: kept.incarnation, acked: kept.acked }).collect();
        let suspects_because = if crashed { SyncReason::HostCrashed } else { SyncReason::Interrupted };
        Ok(Self { map, regions, kept, suspects_because })
    }
}

fn exports(record: &ProtectionRecord, disks: &[Arc<ProtectedDisk>]) -> Vec<Export> {
    let disks = record.disks.iter().zip(disks).map(|(disk, device)| Export {
        name: disk.name.clone(),
        description: format!("disk {} of protected VM {}", disk.name, record.name),
        device: device.clone() as Arc<dyn BlockDevice>,
    });
    disks.collect()
}

fn check_is_not_mounted(devices: &HostDevices) -> Result<()> {
    match devices.in_use() {
        Some(path) => Err(OperationError::conflict(format!("{path} is in use: unmount it first"))),
        None => Ok(()),
    }
}
