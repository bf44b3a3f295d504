//! A group one of whose journals is on a disk that hangs.

use super::super::Recovery;
use super::super::tests::{PEER, append_sync, close, hello, recovery};
use super::*;
use journal::{FsStore, Journal, Store, StoreFile};
use std::io;
use std::sync::{Condvar, Mutex};
use std::thread;
use types::Epoch;
use types::{ByteRange, GroupId};

/// A disk that answers nobody while it hangs.
#[derive(Debug, Default)]
struct Disk {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl Disk {
    fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }

    fn wait(&self) {
        drop(self.changed.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
    }
}

#[derive(Debug)]
struct OnDisk<T> {
    below: T,
    disk: Arc<Disk>,
}

impl Store for OnDisk<Arc<FsStore>> {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        self.disk.wait();
        Ok(Arc::new(OnDisk { below: self.below.open(name, create)?, disk: self.disk.clone() }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.disk.wait();
        self.below.exists(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.disk.wait();
        self.below.names()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.wait();
        self.below.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.wait();
        self.below.remove(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.disk.wait();
        self.below.sync_folder()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.below.free_bytes()
    }
}

impl StoreFile for OnDisk<Arc<dyn StoreFile>> {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.wait();
        self.below.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.disk.wait();
        self.below.write_at(at, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.wait();
        self.below.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.wait();
        self.below.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.wait();
        self.below.set_len(len)
    }

    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        self.disk.wait();
        self.below.punch(range)
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.disk.wait();
        self.below.zero(range)
    }
}

/// A kept VM whose first sync has ended.
fn keep(recovery: &Arc<Recovery>, vm: u8, group: u8) -> Arc<RecoveredVm> {
    let mut hello = hello(vm);
    (hello.group, hello.group_name) = (GroupId::from_bytes([group; 16]), format!("group-{group}"));
    let (vm, journal) = recovery.admit(&hello, PEER).unwrap();
    append_sync(&journal);
    vm
}

/// Puts a VM's journal on a disk of its own.
fn put_on(disk: &Arc<Disk>, recovery: &Arc<Recovery>, vm: &Arc<RecoveredVm>) {
    close(vm);
    let opening = vm.life().begin().unwrap();
    let below = vm.take_folder(&recovery.journal_config).unwrap();
    let store = OnDisk { below, disk: disk.clone() };
    let settings = vm.settings(&recovery.journal_config);
    let journal = Journal::open(Arc::new(store), settings).unwrap().journal;
    recovery.use_opened(vm, opening, Arc::new(journal));
}

fn failover(recovery: &Recovery, group: &str, without: &[&str]) -> Result<api::Failover> {
    let without = without.iter().map(|name| (*name).to_owned()).collect();
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without };
    recovery.failover(group, &request, &Asker::default())
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_who_goes_without_it_and_no_other_group() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::<Disk>::default());
    let recovery = recovery(folder.path());
    let (_web, db) = (keep(&recovery, 1, 1), keep(&recovery, 2, 1));
    let _other = keep(&recovery, 3, 2);
    put_on(&disk, &recovery, &db);
    disk.set(true);
    thread::scope(|scope| {
        let all = scope.spawn(|| failover(&recovery, "group-1", &[]));
        assert_eq!(failover(&recovery, "group-2", &[]).unwrap().vms.len(), 1, "another group");
        let error = all.join().unwrap().unwrap_err();
        assert!(
            error.detail.contains("VM vm-2") && error.detail.contains("`--without vm-2`"),
            "{}",
            error.detail
        );
    });
    let done = failover(&recovery, "group-1", &["vm-2"]).unwrap();
    assert_eq!(done.vms.iter().map(|vm| vm.vm.as_str()).collect::<Vec<_>>(), ["vm-1"]);
    assert_eq!(done.left_out.iter().map(|out| out.vm.as_str()).collect::<Vec<_>>(), ["vm-2"]);
    // What was left out is fenced as soon as its disk answers.
    disk.set(false);
    let journal = db.journal().unwrap();
    while journal.status().epoch < Epoch(done.epoch) {
        thread::yield_now();
    }
    recovery.rollback("group-1", &Asker::default()).unwrap();
}
