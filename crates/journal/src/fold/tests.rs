//! What holds a floor down that was decided before.
#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::fs_store::FsStore;
use crate::journal::Journal;
use crate::settings::Settings;
use types::{DiskSpec, Epoch, VmId};

/// What is due was decided, and the history is locked before it is retired.
#[test]
fn what_is_locked_is_not_retired_though_it_was_due_just_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let disks = [DiskSpec { name: "vda".into(), size_bytes: 1 << 20 }];
    let (vm, settings) = (VmId::from_bytes([1; 16]), Settings::for_repair());
    let journal = Journal::create(store, vm, "web", &disks, Epoch::FIRST, settings).unwrap();
    let state = journal.state.clone();
    let reads = Arc::new(Reads::new(state.clone()));
    let fold = Fold::new(state.clone(), reads.clone(), Arc::new(Footers::new(state.clone(), reads)));
    journal.set(Settings { is_locked: true, ..settings });
    assert!(!fold.retire(WriteSeq::from_raw(7)).unwrap());
    assert_eq!(state.read_shared().manifest.retired_below, 0);
    journal.set(settings);
    assert!(fold.retire(WriteSeq::from_raw(7)).unwrap());
    assert_eq!(state.read_shared().manifest.retired_below, 7);
}
