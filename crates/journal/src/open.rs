//! Opening a journal: what is on the disk decides what is known.
//!
//! Only segments without a footer are read: the open one, and those that were sealed just before a crash.
//! A torn batch at the very end of the open one, of which nothing had been acknowledged, is cut off.
//! Anything else that does not check is damage: it is named and contained (`damage.rs`). Where it is in
//! the open segment, the journal then stands below what the source was told, and the source sends
//! everything again. Nothing is ever cut in silence.

mod redo;
mod undo;

use crate::age::AgeClock;
use crate::copies;
use crate::cover::LogKind;
use crate::damage::Damage;
use crate::manifest::{Manifest, ManifestError, replica_name};
use crate::replica::{make_sums, sums_name, sync_sums};
use crate::run::Run;
use crate::segment::{Position, Segment};
use crate::settings::Settings;
use crate::store::Store;
use crate::undo::UndoWriter;
use crate::view::{LogView, Shared, View};
use crate::writer::Writer;
use redo::RedoReading;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use types::VmId;
use undo::UndoReading;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("replica of disk {disk} has {found} bytes, {expected} were expected")]
    ReplicaSize { disk: String, found: u64, expected: u64 },
    /// Nothing of it was touched.
    #[error("the folder has the journal of another VM, {found}")]
    AnotherVm { found: String },
    #[error("cannot open the journal")]
    Io(#[from] io::Error),
}

/// What stands in a folder, and what had to be said about it.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) shared: Shared,
    pub(crate) writer: Writer,
    pub(crate) undo: UndoWriter,
    pub(crate) damage: Vec<Damage>,
    /// Bytes of a torn batch that were cut off the end.
    pub(crate) torn_bytes: u64,
    /// What was damaged, cost nothing, and is made again.
    pub(crate) mended: Vec<String>,
}

/// Opens the journal in a folder; only that of VM `of`, where that is said.
pub(crate) fn open(store: &dyn Store, of: Option<VmId>, settings: Settings) -> Result<Standing, OpenError> {
    let copies::Loaded { mut manifest, spoilt: mut mended, mut differ } = copies::load(store)?;
    if of.is_some_and(|of| manifest.vm.parse() != Ok(of)) {
        return Err(OpenError::AnotherVm { found: manifest.vm });
    }
    let vm = manifest.vm.parse().unwrap_or(VmId::from_bytes([0; 16]));
    check_replicas(store, &manifest)?;
    for disk in &mut manifest.disks {
        if make_sums(store, &disk.name, disk.size_bytes, false)? && disk.summed_below > 0 {
            mended.push(format!("{}: it is missing, or cut short", sums_name(&disk.name)));
            disk.summed_below = 0;
            differ = true;
        } else if sync_sums(store, &disk.name).is_err() {
            disk.summed_below = 0;
        }
    }
    remove_leftovers(store, &manifest)?;
    let mut redo = RedoReading::begin(&manifest);
    redo.read(store, &manifest)?;
    redo.settle()?;
    let mut undo = UndoReading::read(store, &manifest, &redo.timeline)?;
    store.sync_folder()?;
    let mut damage: Vec<Damage> = redo.damage.drain(..).chain(undo.damage.take()).collect();
    damage.retain(|damage| !damage.is_known(&manifest));
    if !damage.is_empty() {
        redo.seal_open(store, &mut manifest)?;
        undo.let_go_of_open(store, &mut manifest)?;
        for damage in &damage {
            let demand = damage.demand(&mut redo.timeline, &manifest.disks);
            redo.timeline.write_to(&mut manifest);
            damage.record(demand, &mut manifest);
        }
        manifest.save(store)?;
    } else if differ && let Err(error) = manifest.save(store) {
        // One of them is enough to go on; the scrub comes by.
        mended.push(format!("the manifest cannot be written anew just now: {error}"));
    }
    let torn_bytes = redo.torn_bytes;
    let writer = Writer::resume(vm, redo.open.clone(), &redo.timeline);
    let undo_writer =
        UndoWriter { vm, open: undo.open.clone(), upto: undo.upto, opened_at: None, must_seal: false };
    let shared = shared_of(manifest, settings, redo, undo);
    Ok(Standing { shared, writer, undo: undo_writer, damage, torn_bytes, mended })
}

fn shared_of(manifest: Manifest, settings: Settings, redo: RedoReading, undo: UndoReading) -> Shared {
    let manifest = Arc::new(manifest);
    let runs = |kind: LogKind| {
        manifest.log(kind).runs.iter().map(|info| Arc::new(Run::new(kind, info.clone()))).collect()
    };
    let view = View {
        applied: manifest.applied(),
        redo: LogView { frozen: redo.frozen.into_iter().map(Arc::new).collect(), runs: runs(LogKind::Redo) },
        undo: LogView { frozen: undo.frozen.into_iter().map(Arc::new).collect(), runs: runs(LogKind::Undo) },
        manifest: manifest.clone(),
    };
    let end = |open: &Option<(Segment, u64, Position)>| open.as_ref().map_or(0, |(_, _, end)| end.at);
    Shared {
        settings,
        age: AgeClock::begin(manifest.age_clock),
        timeline: redo.timeline,
        redo_table: redo.table,
        undo_table: undo.table,
        view: Arc::new(view),
        newest_at: redo.newest_at,
        open_bytes: end(&redo.open),
        undo_open_bytes: end(&undo.open),
        image_pins: BTreeMap::new(),
        next_image_pin: 1,
        manifest,
    }
}

fn check_replicas(store: &dyn Store, manifest: &Manifest) -> Result<(), OpenError> {
    for disk in &manifest.disks {
        let (found, expected) = (store.open(&replica_name(&disk.name), false)?.len()?, disk.size_bytes);
        if found != expected {
            return Err(OpenError::ReplicaSize { disk: disk.name.clone(), found, expected });
        }
    }
    Ok(())
}

/// Removes files that a crash left behind and no manifest names.
fn remove_leftovers(store: &dyn Store, manifest: &Manifest) -> io::Result<()> {
    let mut known: HashSet<String> = HashSet::new();
    for kind in [LogKind::Redo, LogKind::Undo] {
        let log = manifest.log(kind);
        known.extend(log.segments.iter().map(|segment| segment.file_name(kind)));
        let footers = log.segments.iter().filter_map(|segment| segment.footer());
        known.extend(log.runs.iter().chain(footers).map(|run| run.file_name(kind)));
    }
    known.extend(manifest.checkpoints.iter().flat_map(|file| file.file_names()));
    let ours = ["segment-", "undo-", "run-", "checkpoints-"];
    for name in store.names()? {
        if ours.iter().any(|prefix| name.starts_with(prefix)) && !known.contains(&name) {
            store.remove(&name)?;
        }
    }
    Ok(())
}
