//! Open images: recorded, so that they are served again after the agent was away, and exported by the
//! same NBD server as live disks.

use super::Recovery;
use super::at::{Moment, lease_of, passed_over, resolve, time_of};
use super::life::{JournalLife, Lease, not_usable};
use super::promote::PromotionRun;
use super::promoted::Closed;
use super::unserved::{Unserved, image_alert};
use super::vm::{RecoveredVm, checkpoint_to_api};
use crate::clock;
use crate::disk_server::DiskServer;
use crate::error::{OperationError, Result, with_sources};
use crate::state::{StateDir, random};
use anyhow::Context;
use bytes::Bytes;
use joint::life::Use;
use journal::{Image, ImageError};
use serde::{Deserialize, Serialize};
use splitter::nbd::Export;
use splitter::{BlockDevice, Extent, ExtentKind, WriterLock, Writers};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use types::limits::{IMAGES_MAX, ZEROED_PLACES_MAX};
use types::{ByteRange, DiskIndex, DiskSpec, WriteSeq};

/// An image as `state/images/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) id: String,
    pub(super) vm: String,
    pub(super) vm_name: String,
    pub(super) cut: u64,
    pub(super) writable: bool,
    /// The group whose failover holds it; none for an operator's.
    pub(super) failover: Option<String>,
    pub(super) open_seconds: f64,
    /// Its disks are plain ones, which are never thrown away.
    #[serde(default)]
    pub(super) promoted: bool,
    /// It is being closed, and never served again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) closing: Option<Closing>,
    /// What its journal has lost for good may be zeroes in it.
    #[serde(default)]
    pub(super) lost_as_zeroes: bool,
    /// What became zeroes by that.
    #[serde(default)]
    pub(super) zeroed: Zeroed,
}

/// What of an image was lost and is zeroes; written down before it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Zeroed {
    pub(super) bytes: u64,
    /// The first places: disk, start, length.
    pub(super) places: Vec<(String, u64, u64)>,
    /// Up to which byte of each disk places are counted; a promotion goes by them in ascending order.
    #[serde(default)]
    upto: BTreeMap<String, u64>,
}

impl Zeroed {
    pub(super) fn add(&mut self, disk: &str, ranges: &[ByteRange]) {
        // Told once, though a promotion that was cut short comes by again.
        for range in ranges {
            let place = (disk.to_owned(), range.start, range.len);
            let has_all = self.places.len() < ZEROED_PLACES_MAX;
            let upto = self.upto.entry(place.0.clone()).or_default();
            let is_known = self.places.contains(&place) || (!has_all && range.start < *upto);
            *upto = range.end().max(*upto);
            if !is_known {
                self.bytes += range.len;
                self.places.extend(has_all.then_some(place));
            }
        }
    }

    pub(super) fn to_api(&self) -> Vec<api::DiskRange> {
        let range = |(disk, start, len): &(String, u64, u64)| api::DiskRange {
            disk: disk.clone(),
            start: *start,
            len: *len,
        };
        self.places.iter().map(range).collect()
    }
}

/// How an image is being closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Closing {
    /// Where the disks of one go that was promoted; the rest is thrown away.
    pub(super) keep_in: Option<PathBuf>,
}

impl Closing {
    pub(super) const KEEPS_NOTHING: Self = Self { keep_in: None };
}

/// A served image.
pub(super) struct OpenImage {
    /// As the state folder has it: nobody changes one without the other, see [`OpenImage::change`].
    record: Mutex<ImageRecord>,
    life: Arc<JournalLife>,
    image: Arc<Image>,
    disks: Vec<DiskSpec>,
    folder: PathBuf,
    /// What is shown of it and does not change, so that whoever lists images waits for no disk.
    checkpoint: Option<api::Checkpoint>,
    taken_at: Option<String>,
    vhost_user_sockets: Vec<Option<String>>,
    server: Mutex<Option<DiskServer>>,
    /// Of the files that the image is written to: nobody takes them for disks of their own meanwhile.
    locks: Mutex<Vec<WriterLock>>,
    pub(super) socket: PathBuf,
    pub(super) promotion: PromotionRun,
    /// It is not served any more, so that no promotion may come to its end. Held by whoever changes its record, and taken
    /// before `images`.
    pub(super) ended: Mutex<bool>,
}

impl std::fmt::Debug for OpenImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenImage").field("record", &self.record()).finish_non_exhaustive()
    }
}

impl ImageRecord {
    pub(super) fn owner(&self) -> String {
        self.failover.as_ref().map_or("operator".into(), |group| format!("failover of {group}"))
    }

    pub(super) fn file_name(&self) -> String {
        format!("images/{}.json", self.id)
    }

    /// Who its pin in the journal belongs to.
    pub(super) fn pin_owner(&self) -> String {
        format!("image {}", self.id)
    }

    /// It is being closed, and nothing of it is kept.
    pub(super) fn is_given_up(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.keep_in.is_none())
    }

    /// What was written to it is the operator's, whatever becomes of the image. An agent of before wrote down of one that
    /// was being closed only where its disks go.
    pub(super) fn keeps_disks(&self) -> bool {
        self.promoted || self.closing.as_ref().is_some_and(|closing| closing.keep_in.is_some())
    }

    /// Where the overlays lie in the journal's folder.
    pub(super) fn overlay_folder(&self) -> String {
        format!("image-{}", self.id)
    }
}

impl Recovery {
    /// Opens an image for an operator.
    pub(crate) fn open_image(&self, request: &api::OpenImageRequest) -> Result<api::Image> {
        let started = clock::now();
        let vm = self.vm(&request.vm)?;
        let cut = resolve(&vm, &request.at)?;
        let image = self.open_at(self.new_image_id(), &vm, cut, request.writable, None, started)?;
        let passed_over = passed_over(&vm, cut, &Moment::parse(&request.at));
        Ok(api::Image { notes: passed_over.into_iter().collect(), ..self.image_to_api(&image) })
    }

    /// An id that no image has, nor is about to have.
    pub(super) fn new_image_id(&self) -> String {
        loop {
            let id: String = random()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let is_open = self.images().contains_key(&id) || self.waiting_images().contains_key(&id);
            if !is_open && !self.failovers().values().any(|record| record.has_image(&id)) {
                return id;
            }
        }
    }

    pub(super) fn open_at(
        &self,
        id: String,
        vm: &Arc<RecoveredVm>,
        cut: WriteSeq,
        writable: bool,
        failover: Option<String>,
        started: types::Monotonic,
    ) -> Result<Arc<OpenImage>> {
        if self.images().len() >= IMAGES_MAX {
            return Err(OperationError::conflict(format!("{IMAGES_MAX} images are open; close some first")));
        }
        let mut record = ImageRecord {
            id,
            vm: vm.id().to_string(),
            vm_name: vm.name(),
            cut: cut.raw(),
            writable,
            failover,
            open_seconds: 0.0,
            promoted: false,
            closing: None,
            lost_as_zeroes: false,
            zeroed: Zeroed::default(),
        };
        // Until the image stays the journal is neither closed nor another's.
        let lease = lease_of(vm, Use::Image)?;
        // Recorded first: an image somebody may have written to is never forgotten.
        self.state.save(&record.file_name(), &record)?;
        let opened = self.serve_image(vm, &lease, &record);
        if opened.is_err() {
            self.give_up(vm, &lease, record.clone());
        }
        record.open_seconds = clock::now().since(started).as_secs_f64();
        let image =
            self.have_it_stay(vm, &lease, OpenImage { record: Mutex::new(record.clone()), ..opened? })?;
        tracing::info!(vm = record.vm_name, image = record.id, %cut, writable, "image opened");
        Ok(image)
    }

    /// Takes away what an image has left that could not be served: its pin would hold history for ever. Where that cannot
    /// be done it is tried again.
    fn give_up(&self, vm: &RecoveredVm, lease: &Lease, mut record: ImageRecord) {
        record.closing = Some(Closing::KEEPS_NOTHING);
        if let Err(error) = self.finish_image(lease, &vm.folder(&self.journal_config.folder), &record) {
            self.wait_for_image(record, error.detail);
        }
    }

    /// A served image is known from now on, and goes on over the journal's next lives.
    pub(super) fn have_it_stay(
        &self,
        vm: &RecoveredVm,
        lease: &Lease,
        image: OpenImage,
    ) -> Result<Arc<OpenImage>> {
        let image = Arc::new(image);
        let id = image.record().id;
        // Known first: whoever opens the journal anew looks for those that stay.
        self.images().insert(id.clone(), image.clone());
        if lease.stay(&id).is_err() {
            self.end_image_under(lease, &image)?;
            return Err(OperationError::conflict(not_usable(&vm.name(), vm.life().state())));
        }
        Ok(image)
    }

    pub(super) fn serve_image(
        &self,
        vm: &RecoveredVm,
        lease: &Lease,
        record: &ImageRecord,
    ) -> Result<OpenImage> {
        let journal = lease.shared();
        let folder = record.overlay_folder();
        let folder = record.writable.then_some(folder.as_str());
        // What is opened anew would be empty.
        let own = vm.folder(&self.journal_config.folder).join(record.overlay_folder());
        if record.promoted && !own.exists() {
            let detail = format!("its disks are gone: {} is not there", own.display());
            return Err(OperationError::unavailable(detail));
        }
        let image = Image::open(journal.clone(), WriteSeq::from_raw(record.cut), folder, self.boot_id)
            .map_err(|error| OperationError::conflict(with_sources(&error)))?;
        let record = self.hold_history(&image, journal, record)?;
        let image = Arc::new(image);
        let disks = journal.disks();
        let exports = disks.iter().enumerate().map(|(at, disk)| Export {
            name: disk.name.clone(),
            description: format!("disk {} of {} as of {}", disk.name, record.vm_name, image.cut()),
            device: Arc::new(ImageDisk {
                image: image.clone(),
                disk: DiskIndex(at as u16),
                writers: Arc::default(),
            }) as Arc<dyn BlockDevice>,
        });
        let locks = lock_files(&vm.folder(&self.journal_config.folder), &record, &disks)?;
        let server = DiskServer::serve(&self.run_dir, "images", &record.id, exports.collect())?;
        let socket = server.path().to_path_buf();
        self.give_to_guest(&record.id, &socket)?;
        let checkpoint = journal.checkpoint(types::CheckpointId(image.cut())).ok().flatten();
        let taken_at = time_of(journal, image.cut());
        Ok(OpenImage {
            record: Mutex::new(record),
            life: vm.life().clone(),
            image,
            folder: vm.folder(&self.journal_config.folder),
            checkpoint: checkpoint.as_ref().map(checkpoint_to_api),
            taken_at,
            vhost_user_sockets: (0..disks.len()).map(|disk| server.vhost_user_socket(disk)).collect(),
            disks,
            server: Mutex::new(Some(server)),
            locks: Mutex::new(locks),
            socket,
            ended: Mutex::default(),
            promotion: PromotionRun::default(),
        })
    }

    /// Pins what an image reads from, unless it was promoted: that takes the pin away, though an agent of before may not have
    /// written it down. One of which the guest has written every block is not promoted by that. Its record as it is then.
    fn hold_history(
        &self,
        image: &Image,
        journal: &journal::Journal,
        record: &ImageRecord,
    ) -> Result<ImageRecord> {
        let owner = record.pin_owner();
        let (has_all, has_pin) =
            (image.promotion().is_done(), journal.pins().iter().any(|pin| pin.owner == owner));
        if !has_all && !has_pin {
            let pinned = journal.pin(&owner, image.cut(), None);
            pinned.map_err(|error| OperationError::conflict(with_sources(&error)))?;
        }
        let promoted = record.promoted || (record.writable && has_all && !has_pin);
        let served = ImageRecord { promoted, ..record.clone() };
        if served != *record {
            self.state.save(&served.file_name(), &served)?;
        }
        if promoted && has_pin {
            // Its promotion ended while the journal was closed.
            journal.unpin(|pin| pin.owner == owner).context("remove the image's pin")?;
        }
        Ok(served)
    }

    pub(super) fn image_to_api(&self, image: &OpenImage) -> api::Image {
        // Once, for its promotion may end while this is put together.
        image.to_api(self.promotion_to_api(image))
    }

    pub(crate) fn list_images(&self) -> Vec<api::Image> {
        let (served, waiting): (Vec<_>, Vec<_>) = {
            let served = self.images();
            let waiting = self.waiting_images();
            let waiting = waiting.values().filter(|image| !served.contains_key(&image.record.id));
            (served.values().cloned().collect(), waiting.map(Unserved::to_api).collect())
        };
        served.iter().map(|image| self.image_to_api(image)).chain(waiting).collect()
    }

    /// Of an image whose map has rotted a part is not served, for as long as it is open.
    pub(super) fn tell_image_damage(&self, image: &OpenImage) {
        if let Some(trouble) = image.damage() {
            let ImageRecord { id, vm_name, .. } = image.record();
            self.alerts.raise(image_alert(&id), format!("image {id} of VM {vm_name} is {trouble}"));
        }
    }

    /// Reads the maps of a VM's images that are open again; what has rotted there is made anew.
    pub(super) fn scrub_images(&self, vm: &RecoveredVm) {
        let id = vm.id().to_string();
        let images: Vec<_> =
            self.images().values().filter(|image| image.record().vm == id).cloned().collect();
        for image in images {
            match image.image.scrub() {
                Ok(places) => vm.tell_mended(&places),
                Err(error) => {
                    let (image, error) = (image.record().id, with_sources(&error));
                    tracing::warn!(vm = vm.name(), image, error, "the maps of the image cannot be scrubbed");
                }
            }
        }
    }

    /// The journal of an image was opened anew: it reads from there from now on. One that cannot is not served any more,
    /// for what it would show is not known.
    pub(super) fn rebind_image(&self, id: &str, journal: &Arc<journal::Journal>) -> bool {
        let Some(image) = self.image(id) else { return false };
        let Err(error) = image.image.rebind(journal.clone()) else { return true };
        let error = with_sources(&error);
        image.promotion.stop();
        // What waits is its record as it is now.
        let mut has_ended = image.ended.lock().expect("a panic aborts the process");
        let record = image.record();
        tracing::info!(vm = record.vm_name, image = id, error, "image is not served any more");
        *has_ended = true;
        image.stop_serving();
        image.let_go_of_files();
        self.wait_for_image(record, error);
        self.images().remove(id);
        false
    }

    /// Whether images of a VM are open, served or not. One that is given up goes with its journal.
    pub(super) fn has_images(&self, vm: &RecoveredVm) -> bool {
        let id = vm.id().to_string();
        let needs_it = |image: &ImageRecord| image.vm == id && !image.is_given_up();
        vm.life().has_images()
            || self.waiting_images().values().any(|image| needs_it(&image.record))
            || self.has_unread_images(vm)
    }

    pub(super) fn image(&self, id: &str) -> Option<Arc<OpenImage>> {
        self.images().get(id).cloned()
    }

    /// Closes an image. Its overlay is thrown away, unless it was promoted: then its disks stay, and where is returned. Of a
    /// committed failover whose disk still needs the journal only where all that is to be discarded.
    pub(crate) fn close_image(&self, id: &str, discard: bool) -> Result<Closed> {
        let record = self.image(id).map(|image| image.record());
        let waits = || self.waiting_images().get(id).map(|image| image.record.clone());
        let record = record.or_else(waits).ok_or_else(|| {
            OperationError::not_found(format!(
                "no image {id:?} is open; `holdfast image list` shows those that are"
            ))
        })?;
        let _turn = self.turn_for_image(&record)?;
        if let Some(group) = &record.failover {
            let is_promoted = self.image(id).map_or(record.promoted, |image| image.is_promoted());
            self.let_go_of_image(group, id, is_promoted || discard)?;
        }
        // Whoever closed it meanwhile has done so.
        match self.image(id) {
            Some(image) => self.end_image(&image),
            None => self.end_waiting(id),
        }
    }

    /// Ends an image: the disks of one that was promoted are kept beside the journal's folder, whatever else is
    /// thrown away. Where its journal is not open, one that keeps nothing ends all the same: what it has there goes once
    /// that is open, or with it.
    pub(super) fn end_image(&self, image: &OpenImage) -> Result<Closed> {
        match image.life.lease(Use::Image) {
            Ok(lease) => self.end_image_under(&lease, image),
            Err(_) => self.end_image_without_journal(image),
        }
    }

    fn end_image_without_journal(&self, image: &OpenImage) -> Result<Closed> {
        let mut has_ended = image.ended.lock().expect("a panic aborts the process");
        let record = image.record();
        self.give_up_until_open(&record, not_usable(&record.vm_name, image.life.state()))?;
        // Not before: one that could not be given up stays, and may be promoted.
        self.stop_promotion(image);
        *has_ended = true;
        image.stop_serving();
        image.let_go_of_files();
        self.images().remove(&record.id);
        image.life.leave(&record.id);
        Ok(Closed::default())
    }

    /// What an image has in a journal that is not open goes once that is open, or with it. One whose disks are to be kept
    /// is not given up: they are, once its journal is open.
    pub(super) fn give_up_until_open(&self, record: &ImageRecord, why: String) -> Result<()> {
        if record.keeps_disks() {
            return Err(OperationError::unavailable(why));
        }
        let record = ImageRecord { closing: Some(Closing::KEEPS_NOTHING), ..record.clone() };
        self.state.save(&record.file_name(), &record)?;
        self.wait_for_image(record, why);
        Ok(())
    }

    fn end_image_under(&self, lease: &Lease, image: &OpenImage) -> Result<Closed> {
        self.stop_promotion(image);
        // From here on no promotion comes to its end.
        let mut has_ended = image.ended.lock().expect("a panic aborts the process");
        if *has_ended {
            return Err(OperationError::unavailable("the image is not served any more: try again"));
        }
        let mut record = image.record();
        let is_promoted = record.promoted;
        let keep_in = is_promoted.then(|| super::promoted::place_for(&image.folder, &record)).transpose()?;
        image.stop_serving();
        let lost = is_promoted.then(|| self.make_durable(lease, image)).and_then(std::result::Result::err);
        record.closing = Some(Closing { keep_in });
        *has_ended = true;
        let ended = self.finish_image(lease, &image.folder, &record);
        // Whoever still has this image writes nothing any more: the disks are the operator's from here on.
        image.let_go_of_files();
        if let Err(error) = &ended {
            self.wait_for_image(record.clone(), error.detail.clone());
        }
        if ended.is_ok() {
            self.alerts.clear(image_alert(&record.id));
        }
        self.images().remove(&record.id);
        image.life.leave(&record.id);
        Ok(Closed { lost, ..ended? })
    }

    /// Makes the disks of an image that nobody is served any more durable. Those of which a flush has failed are opened
    /// anew, which has all written again that may be lost; else why they are not as they should be.
    fn make_durable(&self, lease: &Lease, image: &OpenImage) -> std::result::Result<(), String> {
        let flush =
            |opened: &Image| (0..image.disks.len()).try_for_each(|disk| opened.flush(DiskIndex(disk as u16)));
        let flushed = flush(&image.image).or_else(|_| {
            let folder = image.record().overlay_folder();
            let again = Image::open(lease.shared().clone(), image.image.cut(), Some(&folder), self.boot_id)?;
            flush(&again)
        });
        flushed.map_err(|error| {
            let error = with_sources(&error);
            tracing::error!(image = image.record().id, error, "promoted disks are not known to be durable");
            error
        })
    }
}

/// The file that what is written to a disk of an image lies in.
fn data_file(folder: &Path, record: &ImageRecord, disk: &str) -> PathBuf {
    folder.join(record.overlay_folder()).join(format!("{disk}.data"))
}

fn lock_files(folder: &Path, record: &ImageRecord, disks: &[DiskSpec]) -> Result<Vec<WriterLock>> {
    let files = disks.iter().map(|disk| data_file(folder, record, &disk.name)).filter(|_| record.writable);
    let lock = |path: PathBuf| match WriterLock::take(&path) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(OperationError::conflict(format!("{} is in use by somebody else", path.display()))),
        Err(error) => Err(anyhow::Error::new(error).context(format!("lock {}", path.display())).into()),
    };
    files.map(lock).collect()
}

impl OpenImage {
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    pub(super) fn disk_name(&self, disk: DiskIndex) -> &str {
        self.disks.get(usize::from(disk.0)).map_or("", |disk| &disk.name)
    }

    /// Its record as it is now.
    pub(super) fn record(&self) -> ImageRecord {
        self.record.lock().expect("a panic aborts the process").clone()
    }

    /// Changes its record, on disk first; `ended` is held.
    pub(super) fn change(
        &self,
        state: &StateDir,
        change: impl FnOnce(&mut ImageRecord),
    ) -> anyhow::Result<()> {
        let mut record = self.record();
        change(&mut record);
        state.save(&record.file_name(), &record)?;
        *self.record.lock().expect("a panic aborts the process") = record;
        Ok(())
    }

    /// Whether its disks are plain ones that need nothing else.
    pub(super) fn is_promoted(&self) -> bool {
        self.record.lock().expect("a panic aborts the process").promoted
    }

    /// Takes away the pin that is kept over restarts.
    pub(super) fn unpin(&self) -> io::Result<usize> {
        let owner = self.record().pin_owner();
        let lease = self.life.lease(Use::Image);
        let lease = lease.map_err(|_| io::Error::other("its journal is not open just now"))?;
        lease.unpin(|pin| pin.owner == owner)
    }

    /// The file of a disk that is promoted: the plain disk, which needs nothing else.
    fn own_path(&self, disk: &str) -> String {
        data_file(&self.folder, &self.record(), disk).display().to_string()
    }

    /// Waits for what its clients have begun, and holds nothing meanwhile.
    fn stop_serving(&self) {
        let server = self.server.lock().expect("a panic aborts the process").take();
        drop(server);
    }

    /// As whoever closes it does.
    #[cfg(test)]
    pub(super) fn hold_server(&self) -> std::sync::MutexGuard<'_, Option<DiskServer>> {
        self.server.lock().unwrap()
    }

    fn let_go_of_files(&self) {
        self.locks.lock().expect("a panic aborts the process").clear();
    }

    fn disks_to_api(&self, is_promoted: bool) -> Vec<api::Disk> {
        let disks = self.disks.iter().enumerate().map(|(at, disk)| api::Disk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            path: if is_promoted { self.own_path(&disk.name) } else { String::new() },
            vhost_user_socket: self.vhost_user_sockets.get(at).cloned().flatten(),
            ublk_device: None,
        });
        disks.collect()
    }

    /// What of it is not served.
    fn damage(&self) -> Option<String> {
        let damage = self.image.damage();
        let more = damage.len().saturating_sub(1);
        damage.first().map(|first| {
            format!("served but for what the damaged map {first} tells of ({more} places more): reading that is an error")
        })
    }

    /// What is to be said of an image that is served.
    fn trouble(&self) -> Option<String> {
        let bytes = self.image.in_doubt_bytes();
        self.damage().or_else(|| (bytes > 0).then(|| {
            format!(
                "served, and being written again: {bytes} bytes, of which it is not known whether they are on the disk, are \
                 before the next flush is told as done"
            )
        }))
    }

    fn to_api(&self, promotion: api::Promotion) -> api::Image {
        let cut = self.image.cut();
        let record = self.record();
        api::Image {
            owner: record.owner(),
            open_seconds: record.open_seconds,
            id: record.id,
            vm: record.vm_name,
            cut: cut.to_string(),
            checkpoint: self.checkpoint.clone(),
            taken_at: self.taken_at.clone(),
            notes: Vec::new(),
            writable: self.image.is_writable(),
            socket: self.socket.display().to_string(),
            disks: self.disks_to_api(promotion.state == "done"),
            overlay_bytes: self.image.overlay_bytes(),
            promotion,
            zeroed_bytes: record.zeroed.bytes,
            zeroed: record.zeroed.to_api(),
            error: self.trouble(),
        }
    }
}

/// A disk of an image, as a front end wants it.
struct ImageDisk {
    image: Arc<Image>,
    disk: DiskIndex,
    writers: Arc<Writers>,
}

impl ImageDisk {
    fn io(error: ImageError) -> io::Error {
        tracing::error!(error = with_sources(&error), "image");
        match error {
            ImageError::ReadOnly => io::Error::new(io::ErrorKind::PermissionDenied, error),
            ImageError::Overlay(journal::OverlayError::Io(error)) => error,
            other => io::Error::other(other),
        }
    }
}

impl BlockDevice for ImageDisk {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes(self.disk)
    }

    fn is_read_only(&self) -> bool {
        !self.image.is_writable()
    }

    fn writers(&self) -> Option<&Arc<Writers>> {
        Some(&self.writers)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read_at(self.disk, at, buf).map_err(Self::io)
    }

    fn write(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        self.image.write_at(self.disk, at, &bytes).map_err(Self::io)
    }

    fn write_zeroes(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.image.zero(self.disk, range).map_err(Self::io)
    }

    fn zeroes_fast(&self) -> bool {
        false
    }

    fn cache(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn unsent(&self, _range: ByteRange, _most: usize) -> Option<Vec<(ByteRange, bool)>> {
        None
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.image.zero(self.disk, range).map_err(Self::io)
    }

    fn flush(&self) -> io::Result<()> {
        self.image.flush(self.disk).map_err(Self::io)
    }

    /// An image does not know yet which parts are holes; all of it may hold data.
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { range, kind: ExtentKind::Data }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a promotion does that was cut short, or whose disk is full.
    #[test]
    fn what_became_zeroes_is_counted_once_however_many_places_it_has() {
        let mut zeroed = Zeroed::default();
        let places: Vec<_> =
            (0..ZEROED_PLACES_MAX as u64 + 100).map(|number| ByteRange::new(number * 4096, 512)).collect();
        for _ in 0..3 {
            places.chunks(50).for_each(|step| zeroed.add("vda", step));
        }
        assert_eq!(zeroed.bytes, places.len() as u64 * 512);
        assert_eq!(zeroed.places.len(), ZEROED_PLACES_MAX);
    }
}
