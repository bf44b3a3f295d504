//! Damage in every kind of file of a journal, and that it costs what it damages (`2026-11-29-damage-costs-what-it-damages.md`):
//! copies, indexes and checksums nothing; sealed segments and replicas reads of a few bytes, and no checkpoint; open segments,
//! which have no index yet, the checkpoints from there on. Nothing wrong is given out, also before anybody has looked.
//!
//! What a scrub does once a day `journal repair` does at once, with the agent dead: some time after the damage, or before the
//! agent's next start. From then on only what says that it is damaged may refuse to be read.

use super::agents::{kill, start};
use super::ledger::VMS;
use super::lists::{differences, list};
use super::noted::{Damaged, Kind};
use super::world::{Dice, Who, World, at_last, spoil};
use serde_json::Value;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE_BYTES: u64 = 4096;
/// A few bytes that lie in two batches at the most.
const BATCHES: u64 = 2 * types::limits::BATCH_BYTES_MAX as u64;

const KINDS: [Kind; 9] = [
    Kind::Manifest,
    Kind::Checkpoints,
    Kind::Index,
    Kind::Checksums,
    Kind::Sealed,
    Kind::Open,
    Kind::BeforeImages,
    Kind::OpenBeforeImages,
    Kind::Replica,
];

/// What may become of the checkpoints that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    Nothing,
    /// Reads of so many bytes of each.
    Reads(u64),
    /// Those from some one on.
    FromThereOn,
    /// Any: older ones may need what is missing.
    Any,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Manifest => "copy of the manifest",
            Kind::Checkpoints => "copy of a checkpoint file",
            Kind::Index => "index",
            Kind::Checksums => "checksums",
            Kind::Sealed => "sealed segment",
            Kind::Open => "open segment",
            Kind::BeforeImages => "before-images",
            Kind::OpenBeforeImages => "open before-images",
            Kind::Replica => "replica",
        }
    }

    fn cost(self) -> Cost {
        match self {
            Kind::Manifest | Kind::Checkpoints | Kind::Index | Kind::Checksums => Cost::Nothing,
            Kind::Sealed | Kind::BeforeImages => Cost::Reads(BATCHES),
            Kind::Replica => Cost::Reads(2 * PAGE_BYTES),
            Kind::Open => Cost::FromThereOn,
            Kind::OpenBeforeImages => Cost::Any,
        }
    }
}

/// Damages one file of one journal, with the agent dead or not, and sometimes looks for it at once.
pub(super) fn damage(world: &mut World, dice: &mut Dice) {
    // One place at a time, so that what it may cost is known.
    settle(world, dice);
    nothing_moves(world);
    let vm = VMS[dice.below(3) as usize];
    let Some(folder) = world.folder_of(vm) else { return };
    let before = list(world, vm);
    match dice.below(3) {
        0 => {}
        1 => world.stop(Who::Recovery),
        _ => kill(world, Who::Recovery),
    }
    let first = dice.below(KINDS.len() as u64) as usize;
    let kinds = KINDS.into_iter().cycle().skip(first).take(KINDS.len());
    let found = kinds.into_iter().find_map(|kind| Some((kind, put_into(kind, &folder, dice)?)));
    if let Some((kind, place)) = found {
        world.damaged(kind.name(), vm, &place);
        world.pending = Some(Damaged { vm, kind, folder, before });
        if dice.below(2) == 0 {
            settle(world, dice);
        }
    }
    start(world, Who::Recovery);
}

/// No journal is being moved, which would go on at the agent's next start.
fn nothing_moves(world: &World) {
    at_last("the end of every move", || {
        let rows = world.recovery.ask(&["operation", "list"])?;
        let rows = rows["operations"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().all(|row| row["state"] != "going" && row["state"] != "going-back").then_some(()))
    });
}

/// Looks for what was damaged, as a scrub does, and at what it has cost.
pub(super) fn settle(world: &mut World, dice: &mut Dice) {
    let Some(mut damaged) = world.pending.take() else { return };
    if world.recovery.agent_pid().is_some() {
        nothing_moves(world);
        // It may have been moved with its damage.
        damaged.folder = world.folder_of(damaged.vm).unwrap_or(damaged.folder);
        match dice.below(2) {
            0 => world.stop(Who::Recovery),
            _ => {
                // What is due of it is not asked for while the damage is.
                world.pending = Some(damaged);
                kill(world, Who::Recovery);
                return settle(world, dice);
            }
        }
    }
    repair(world, &damaged);
    start(world, Who::Recovery);
    let now = list(world, damaged.vm);
    let lost = differences(&damaged.before, &now);
    let worst = lost.iter().map(|(_, bytes)| *bytes).max().flatten().unwrap_or(0);
    let gone: Vec<&String> = lost.iter().filter(|(_, bytes)| bytes.is_none()).map(|(id, _)| id).collect();
    println!("  of {} checkpoints {} are gone, {worst} bytes lost at most", damaged.before.len(), gone.len());
    let from_there_on = gone.first().is_none_or(|first| {
        let behind = damaged.before.iter().skip_while(|(id, _)| id != *first);
        behind.count() == gone.len()
    });
    let is_right = match damaged.kind.cost() {
        Cost::Nothing => lost.is_empty(),
        Cost::Reads(bytes) => gone.is_empty() && worst <= bytes,
        Cost::FromThereOn => from_there_on && worst <= BATCHES,
        Cost::Any => true,
    };
    assert!(is_right, "{:?} of {} was damaged, which has cost {lost:?}", damaged.kind, damaged.vm);
    world.seen.begin_anew(damaged.vm, now);
}

fn repair(world: &World, damaged: &Damaged) {
    let mut command = world.recovery.command();
    let output = command.args(["journal", "repair", "--json"]).arg(&damaged.folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 7)), "{damaged:?} is not repaired: {said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("  found in {} of {}: {found}", damaged.kind.name(), damaged.vm);
    assert_eq!(found["lost"], serde_json::json!([]), "no page was damaged in both copies");
}

/// Damages a file of this kind, if there is one.
fn put_into(kind: Kind, folder: &Path, dice: &mut Dice) -> Option<String> {
    let manifest = manifest(folder)?;
    let places = places(kind, folder, &manifest);
    if places.is_empty() {
        return None;
    }
    let (path, range) = &places[dice.below(places.len() as u64) as usize];
    let name = path.file_name()?.to_string_lossy().into_owned();
    // Of what has a second copy all of it may go.
    match (kind, dice.below(4)) {
        (Kind::Manifest | Kind::Checkpoints, 0) => {
            std::fs::remove_file(path).ok()?;
            Some(format!("{name} removed"))
        }
        (Kind::Manifest | Kind::Checkpoints, 1) => {
            let file = File::options().write(true).open(path).ok()?;
            let bytes = dice.below(file.metadata().ok()?.len().max(1));
            file.set_len(bytes).ok()?;
            file.sync_all().ok()?;
            Some(format!("{name} cut to {bytes} bytes"))
        }
        _ => spoil(path, range.clone(), dice),
    }
}

/// The newer one of the two copies.
fn manifest(folder: &Path) -> Option<Value> {
    let read = |name| -> Option<Value> {
        let bytes = std::fs::read(folder.join(name)).ok()?;
        serde_json::from_slice(bytes.get(16..)?).ok()
    };
    let copies = [read("manifest"), read("manifest-2")].into_iter().flatten();
    copies.max_by_key(|manifest| manifest["generation"].as_u64())
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

type Places = Vec<(PathBuf, Range<u64>)>;

/// Where something of this kind lies.
fn places(kind: Kind, folder: &Path, manifest: &Value) -> Places {
    let segment = |log: &str, row: &Value| {
        let kind = if log == "redo" { "segment" } else { "undo" };
        folder.join(format!("{kind}-{:08}", row["number"].as_u64().unwrap()))
    };
    let of_log =
        |log: &'static str| rows(&manifest[log]["segments"]).map(move |row| (segment(log, row), row));
    let sealed = |log| {
        let with_index = of_log(log).filter(|(_, row)| row["sealed"]["footer"].is_object());
        with_index.map(|(path, row)| (path, 0..row["sealed"]["bytes"].as_u64().unwrap())).collect()
    };
    let open = |log| {
        let open = of_log(log).filter(|(_, row)| row["sealed"].is_null());
        open.filter_map(|(path, _)| Some((path.clone(), 2 * PAGE_BYTES..end_of(&path)?))).collect()
    };
    match kind {
        Kind::Manifest => ["manifest", "manifest-2"].map(|name| (folder.join(name), 0..u64::MAX)).to_vec(),
        Kind::Checkpoints => {
            let doubled = rows(&manifest["checkpoints"]).filter(|row| row["is_double"] == true);
            let both = doubled.flat_map(|row| {
                let name = format!("checkpoints-{:08}", row["number"].as_u64().unwrap());
                let end = row["pages"].as_u64().unwrap() * PAGE_BYTES;
                ["", "-2"].map(|copy| (folder.join(format!("{name}{copy}")), 0..end))
            });
            both.collect()
        }
        Kind::Index => {
            let range = |run: &Value| {
                let at = run["at"].as_u64().unwrap();
                at..at + run["bytes"].as_u64().unwrap()
            };
            let footers = ["redo", "undo"].into_iter().flat_map(of_log);
            let footers = footers.filter_map(|(path, row)| {
                let footer = &row["sealed"]["footer"];
                footer.is_object().then(|| (path, range(footer)))
            });
            let runs = ["redo", "undo"].into_iter().flat_map(|log| rows(&manifest[log]["runs"]));
            let runs = runs.filter_map(|run| {
                Some((folder.join(format!("run-{:08}", run["file"].as_u64()?)), range(run)))
            });
            footers.chain(runs).collect()
        }
        Kind::Checksums => in_replicas(folder, "sums", |_| true),
        Kind::Sealed => sealed("redo"),
        Kind::BeforeImages => sealed("undo"),
        Kind::Open => open("redo"),
        Kind::OpenBeforeImages => open("undo"),
        Kind::Replica => in_replicas(folder, "raw", |page| page.iter().any(|byte| *byte != 0)),
    }
}

/// Pages of the files of a kind beside the journal that hold something.
fn in_replicas(folder: &Path, extension: &str, holds: impl Fn(&[u8]) -> bool + Copy) -> Places {
    let files = std::fs::read_dir(folder.join("replica")).into_iter().flatten().filter_map(Result::ok);
    let files =
        files.map(|row| row.path()).filter(|path| path.extension().is_some_and(|found| found == extension));
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let pages = files.into_iter().flat_map(|path| {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let pages = bytes.chunks(PAGE_BYTES as usize).zip((0..).step_by(PAGE_BYTES as usize));
        let pages = pages.filter(|(page, _)| holds(page)).map(|(_, at)| (path.clone(), at..at + PAGE_BYTES));
        pages.collect::<Places>()
    });
    pages.collect()
}

/// Where the batches of a segment that is written to end.
fn end_of(path: &Path) -> Option<u64> {
    let file = File::open(path).ok()?;
    let (mut at, mut envelope) = (2 * PAGE_BYTES, [0; 64]);
    for number in 1.. {
        if file.read_exact_at(&mut envelope, at).is_err()
            || envelope[..4] != *b"HFJB"
            || u64::from_le_bytes(envelope[16..24].try_into().unwrap()) != number
        {
            break;
        }
        let body = u32::from_le_bytes(envelope[8..12].try_into().unwrap());
        at += (64 + u64::from(body)).next_multiple_of(PAGE_BYTES);
    }
    (at > 2 * PAGE_BYTES).then_some(at)
}
