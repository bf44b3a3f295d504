//! A folder of files on a disk that loses power.
//!
//! What is synced is certain. On a loss of power every sector written since a file's last sync is kept
//! or lost by itself, so writes tear and reorder; of the names changed since the last sync of the
//! folder a prefix is kept. A sync that fails leaves its sectors readable but never on the disk, also not
//! by a later sync, and may be dropped from memory at any time. This must be survivable: it is what `Store` promises and
//! no more. A full disk, failing syncs and a process that is killed in the middle of something are set from outside.
//!
//! Room is counted in pages that hold anything, of files that have a name: what is overwritten takes none, what is removed
//! or punched gives it back.
//!
//! What rots, or is not given any more, and what it would hold, is in `store/rot.rs`.

mod rot;

use crate::rng::Rng;
use journal::{Store, StoreFile};
pub use rot::Decay;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use threads::sync::atomic::AtomicU64;
use threads::sync::{Mutex, MutexGuard};
use types::ByteRange;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A simulated folder. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimStore {
    disk: Arc<Mutex<Disk>>,
    lives: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<NameChange>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// Bytes that may be written before the disk is full.
    room: Option<u64>,
    /// Syncs that succeed before one fails.
    syncs_left: Option<u64>,
    /// Bytes that files may take up.
    capacity: Option<u64>,
    /// Changes that still happen before the process is gone.
    changes_left: Option<u64>,
    /// A file that cannot be read.
    unreadable: Option<u64>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, u64),
    /// From, to: a rename is one step, after a crash it has happened or it has not.
    Renamed(String, String, u64),
    Gone(String),
}

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that may differ between the two.
    unsynced: Vec<(usize, usize)>,
    /// Sectors that a failed sync has given up.
    given_up: Vec<(usize, usize)>,
    /// Which pages take up room.
    pages: BTreeSet<usize>,
    /// What it would be had nothing in it rotted; none where nothing has.
    truth: Option<Box<Content>>,
    /// Sectors that the disk does not give, until they are written anew.
    unread: BTreeSet<usize>,
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    file: u64,
}

impl SimStore {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("a panic aborts the process")
    }

    /// The power goes: what was not synced is kept or lost by chance.
    pub fn lose_power(&self, rng: &mut Rng) {
        let mut disk = self.lock();
        let changes = std::mem::take(&mut disk.changes);
        let kept = rng.below(changes.len() as u64 + 1) as usize;
        for change in changes.into_iter().take(kept) {
            match change {
                NameChange::Set(name, file) => drop(disk.durable_names.insert(name, file)),
                NameChange::Renamed(from, to, file) => {
                    disk.durable_names.remove(&from);
                    disk.durable_names.insert(to, file);
                }
                NameChange::Gone(name) => drop(disk.durable_names.remove(&name)),
            }
        }
        disk.names = disk.durable_names.clone();
        for content in disk.files.values_mut() {
            content.lose_power(rng);
        }
        disk.room = None;
        disk.changes_left = None;
        disk.syncs_left = None;
    }

    /// From now on only `room` more bytes can be written; `None` for as many as one likes.
    pub fn limit_room(&self, room: Option<u64>) {
        self.lock().room = room;
    }

    /// A sync fails after `left` more have succeeded; `None` for never.
    pub fn fail_sync_after(&self, left: Option<u64>) {
        self.lock().syncs_left = left;
    }

    /// Whether it is full, or fails, or may be before long.
    pub fn is_impaired(&self) -> bool {
        let disk = self.lock();
        disk.room.is_some()
            || disk.syncs_left.is_some()
            || disk.capacity.is_some()
            || disk.changes_left.is_some()
            || disk.unreadable.is_some()
    }

    /// Nothing of this file can be read; `None`: of every file again.
    pub fn cannot_read(&self, name: Option<&str>) {
        let mut disk = self.lock();
        disk.unreadable = name.and_then(|name| disk.names.get(name).copied());
    }

    /// Whether nothing of this file can be read.
    pub fn cannot_be_read(&self, name: &str) -> bool {
        let disk = self.lock();
        disk.unreadable.is_some() && disk.names.get(name).copied() == disk.unreadable
    }

    /// Whether there is a file that cannot be read.
    pub fn has_unreadable(&self) -> bool {
        self.lock().unreadable.is_some()
    }

    /// What `look` finds where every file can be read.
    pub fn spared<T>(&self, look: impl FnOnce() -> T) -> T {
        let unreadable = self.lock().unreadable.take();
        let found = look();
        self.lock().unreadable = unreadable;
        found
    }

    /// Files may take up this much; `None` for as much as they like.
    pub fn limit_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes that files take up.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// After `left` more changes nothing is changed any more: the process is being killed. `None`: another one begins.
    pub fn die_after(&self, left: Option<u64>) {
        self.lock().changes_left = left;
    }

    /// Whether the process has been killed.
    pub fn is_dead(&self) -> bool {
        self.lock().changes_left == Some(0)
    }

    /// Memory is short: what a failed sync has given up is read from the disk again.
    pub fn evict(&self) {
        self.lock().files.values_mut().for_each(Content::evict);
    }

    /// Cuts a file short, as if its end had never been written.
    pub fn truncate(&self, name: &str, len: u64) {
        let mut disk = self.lock();
        let file = disk.names[name];
        let content = disk.files.get_mut(&file).expect("a name's file exists");
        content.now.truncate(len as usize);
        content.durable = content.now.clone();
    }

    /// A copy of the disk as it would be without anything that is not synced.
    pub fn fork_of_what_is_synced(&self) -> Self {
        let disk = self.lock();
        let copy = Disk {
            names: disk.durable_names.clone(),
            durable_names: disk.durable_names.clone(),
            files: disk.files.iter().map(|(file, content)| (*file, content.synced())).collect(),
            next_file: disk.next_file,
            ..Disk::default()
        };
        Self { disk: Arc::new(Mutex::new(copy)), lives: Arc::default() }
    }

    /// A copy of the disk as it is now.
    pub fn fork(&self) -> Self {
        let disk = self.lock();
        let copy = Disk {
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            changes: disk.changes.clone(),
            files: disk.files.clone(),
            next_file: disk.next_file,
            room: disk.room,
            syncs_left: disk.syncs_left,
            capacity: disk.capacity,
            changes_left: disk.changes_left,
            unreadable: disk.unreadable,
        };
        Self { disk: Arc::new(Mutex::new(copy)), lives: Arc::default() }
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Bytes of a file; none where there is no such file.
    pub fn len_of(&self, name: &str) -> Option<u64> {
        let disk = self.lock();
        disk.names.get(name).map(|file| disk.files[file].now.len() as u64)
    }
}

impl Content {
    /// The same is done to what it would be had nothing rotted.
    fn each(&mut self, change: impl Fn(&mut Content)) {
        change(self);
        self.truth.as_deref_mut().into_iter().for_each(change);
    }

    /// What of it is synced.
    fn synced(&self) -> Content {
        Content {
            now: self.durable.clone(),
            durable: self.durable.clone(),
            truth: self.truth.as_ref().map(|truth| Box::new(truth.synced())),
            unread: self.unread.clone(),
            ..Content::default()
        }
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        let mut same = rng.clone();
        if let Some(truth) = &mut self.truth {
            truth.lose_power(&mut same);
        }
        let mut after = self.durable.clone();
        let unsynced = std::mem::take(&mut self.unsynced);
        if !unsynced.is_empty() && self.now.len() != after.len() && rng.one_in(2) {
            after.resize(self.now.len(), 0);
        }
        for (from, to) in unsynced {
            for sector in from..to {
                if rng.one_in(2) {
                    let start = sector * SECTOR;
                    let end = (start + SECTOR).min(self.now.len());
                    if start < end {
                        after.resize(after.len().max(end), 0);
                        after[start..end].copy_from_slice(&self.now[start..end]);
                    }
                }
            }
        }
        self.now = after.clone();
        self.durable = after;
        self.given_up.clear();
        let all = self.now.len().div_ceil(PAGE);
        self.pages.retain(|page| *page < all);
    }

    fn evict(&mut self) {
        for (from, to) in std::mem::take(&mut self.given_up) {
            for sector in from..to {
                if self.unsynced.iter().any(|(from, to)| (*from..*to).contains(&sector)) {
                    continue;
                }
                let end = ((sector + 1) * SECTOR).min(self.now.len());
                for at in sector * SECTOR..end {
                    self.now[at] = self.durable.get(at).copied().unwrap_or(0);
                }
            }
        }
    }

    fn touch(&mut self, start: usize, end: usize) {
        self.unsynced.push((start / SECTOR, end.div_ceil(SECTOR)));
    }

    fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        self.now.resize(self.now.len().max(end), 0);
        self.now[start..end].copy_from_slice(bytes);
        self.touch(start, end);
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for (from, to) in std::mem::take(&mut self.unsynced) {
            let (start, end) = (from * SECTOR, (to * SECTOR).min(self.now.len()));
            if start < end {
                self.durable[start..end].copy_from_slice(&self.now[start..end]);
            }
        }
    }

    fn resize(&mut self, len: usize) {
        let before = self.now.len();
        self.now.resize(len, 0);
        self.pages.retain(|page| *page < len.div_ceil(PAGE));
        self.touch(before.min(len), before.max(len));
    }

    fn zero(&mut self, start: usize, end: usize) {
        self.now[start..end].fill(0);
        self.touch(start, end);
        let whole = start.div_ceil(PAGE)..end / PAGE;
        self.pages.retain(|page| !whole.contains(page));
    }
}

impl Disk {
    fn spend(&mut self, bytes: usize) -> io::Result<()> {
        match &mut self.room {
            Some(room) if *room < bytes as u64 => Err(io::ErrorKind::StorageFull.into()),
            Some(room) => {
                *room -= bytes as u64;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| (self.files[file].pages.len() * PAGE) as u64).sum()
    }

    /// One more change, if the process lives.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("the process is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// How much of a write to a file there is room for.
    fn take_pages(&mut self, file: u64, start: usize, end: usize) -> usize {
        let mut left =
            self.capacity.map(|capacity| capacity.saturating_sub(self.used_bytes()) as usize / PAGE);
        let content = self.files.get_mut(&file).expect("an open file exists");
        for page in start / PAGE..end.div_ceil(PAGE) {
            if content.pages.contains(&page) {
                continue;
            }
            match &mut left {
                Some(0) => return (page * PAGE).max(start),
                Some(left) => *left -= 1,
                None => {}
            }
            content.pages.insert(page);
        }
        end
    }

    fn sync(&mut self) -> io::Result<()> {
        match &mut self.syncs_left {
            Some(0) => Err(io::Error::other("simulated failure of a sync")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Store for SimStore {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        let mut disk = self.lock();
        let file = match disk.names.get(name) {
            Some(&file) => file,
            None if create => {
                disk.change()?;
                disk.spend(SECTOR)?;
                let file = disk.next_file;
                disk.next_file += 1;
                disk.files.insert(file, Content::default());
                disk.names.insert(name.to_owned(), file);
                disk.changes.push(NameChange::Set(name.to_owned(), file));
                file
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { disk: self.disk.clone(), file }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.lock().names.contains_key(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let names = self.lock().names.keys().filter(|name| !name.contains('/')).cloned().collect();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        let file = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), file);
        disk.changes.push(NameChange::Renamed(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        let inside = format!("{name}/");
        let gone: Vec<String> =
            disk.names.keys().filter(|known| *known == name || known.starts_with(&inside)).cloned().collect();
        for name in gone {
            disk.names.remove(&name);
            disk.changes.push(NameChange::Gone(name));
        }
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        disk.sync()?;
        disk.changes.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn lives(&self) -> Option<&AtomicU64> {
        Some(&self.lives)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = self.lock();
        let left = disk.capacity.map(|capacity| capacity.saturating_sub(disk.used_bytes()));
        Ok(disk.room.or(left).unwrap_or(u64::MAX))
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("a panic aborts the process")
    }
}

impl StoreFile for SimFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let (content, start) = (&disk.files[&self.file], at as usize);
        if disk.unreadable == Some(self.file) || content.has_unread(start, start + buf.len()) {
            return Err(io::Error::other("simulated failure of a read"));
        }
        let from = content.now.get(start..start + buf.len());
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        disk.spend(buf.len())?;
        let (start, wanted) = (at as usize, at as usize + buf.len());
        let end = disk.take_pages(self.file, start, wanted);
        let content = disk.files.get_mut(&self.file).expect("an open file exists");
        if end > start {
            content.give_anew(start, end)?;
            content.each(|content| content.write(start, &buf[..end - start]));
        }
        if end < wanted { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        // Who is killed before it began has given up nothing.
        disk.change()?;
        let synced = disk.sync();
        let content = disk.files.get_mut(&self.file).expect("an open file exists");
        content.each(|content| match &synced {
            Ok(()) => content.sync(),
            // As Linux does: the pages count as clean from here on, though they never reached the disk,
            // and the next sync succeeds without them.
            Err(_) => content.given_up.extend(std::mem::take(&mut content.unsynced)),
        });
        synced
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().files[&self.file].now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        let content = disk.files.get_mut(&self.file).expect("an open file exists");
        content.each(|content| content.resize(len as usize));
        content.unread.retain(|sector| *sector < (len as usize).div_ceil(SECTOR));
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        let mut disk = self.lock();
        disk.change()?;
        let content = disk.files.get_mut(&self.file).expect("an open file exists");
        let (start, end) = (range.start as usize, (range.end() as usize).min(content.now.len()));
        content.give_anew(start, end)?;
        content.each(|content| content.zero(start, end));
        Ok(())
    }
}
