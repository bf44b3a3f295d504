//! `holdfast journal`: looking into a journal's folder while no agent has it.

use crate::waiting::ReadingThrough;
use crate::{exit, print};
use anyhow::{Context, Result, bail};
use journal::{Damage, FsStore, Journal, Manifest, RecordRow, Settings, Upkeep, VerifyReport, verify};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use types::limits::RECORD_BYTES_MAX;

/// Reads a journal through and prints what it holds.
pub(crate) fn read_through(folder: &Path, deep: bool, with_records: bool, as_json: bool) -> Result<ExitCode> {
    let mut records = Vec::new();
    let report = read(folder, deep, |row| {
        if with_records {
            records.push(row)
        }
    })?;
    if as_json {
        let mut document = to_json(&report);
        if with_records {
            document["records"] = records.iter().map(record_to_json).collect();
        }
        print::json(&document)?;
    } else {
        print!("{}", to_text(&report, deep));
        if with_records {
            print!("{}", records_to_text(&records));
        }
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::DAMAGED) })
}

/// Makes damaged indexes again, and contains what else is damaged.
pub(crate) fn repair(folder: &Path, replicas: Option<PathBuf>, as_json: bool) -> Result<ExitCode> {
    let of_replicas = replicas.clone().unwrap_or_else(|| folder.join("replica"));
    let store = take(folder)?.with_replicas_in(replicas);
    check_replicas_are_there(&of_replicas, &Manifest::load(&store).context("read the manifest")?)?;
    let store = Arc::new(store);
    let mut told = ReadingThrough::new("reading the journal".into(), Some(bytes_in(&[folder, &of_replicas])));
    let opened = Journal::open(store, Settings::for_repair()).context("open the journal")?;
    let (journal, mut damage) = (opened.journal, opened.damage);
    let (mut rebuilt, mut read_bytes, mut mended, mut lost) = (0, 0, opened.mended, Vec::new());
    let mut place = None;
    loop {
        let how = Upkeep::plain(agent::clock::wall(), agent::random());
        let step = journal.scrub(place, &how).context("read the journal")?;
        damage.extend(step.damage);
        rebuilt += step.rebuilt;
        mended.extend(step.mended);
        lost.extend(step.lost.iter().map(ToString::to_string));
        read_bytes += step.bytes;
        told.tell(read_bytes, &format!(", {} places damaged", damage.len()));
        place = step.place;
        if place.is_none() {
            told.end();
            break;
        }
    }
    if as_json {
        let damage =
            damage.iter().map(|damage| json!({"what": damage.what, "from": damage.from.to_string()}));
        print::json(
            &json!({"rebuilt": rebuilt, "mended": mended, "lost": lost, "contained": damage.collect::<Vec<_>>()}),
        )?;
    } else {
        println!("{rebuilt} damaged index runs made again");
        for what in &mended {
            println!("MADE AGAIN: {what}");
        }
        for what in &lost {
            println!("LOST: {what}");
        }
        for damage in &damage {
            println!("CONTAINED: {}", contained(damage));
        }
        if damage.is_empty() && lost.is_empty() {
            println!("every byte is as it was written");
        }
        if damage.iter().any(|damage| damage.lost_bytes().is_some_and(|bytes| bytes > 0)) {
            println!(
                "checkpoints that are damaged stay so, and say how much of them is; new ones are whole once the source has sent \
                 again what the newest state has lost, which it will by itself"
            );
        }
        if damage.iter().any(|damage| damage.lost_bytes().is_none()) {
            println!(
                "later checkpoints come back once the source has compared everything, which it will by itself"
            );
        }
    }
    Ok(if damage.is_empty() && mended.is_empty() && lost.is_empty() && rebuilt == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::DAMAGED)
    })
}

/// What was found damaged, and what it costs.
fn contained(damage: &Damage) -> String {
    let (what, from) = (&damage.what, damage.from);
    match damage.lost_bytes() {
        None => format!("{what}; checkpoints before {from} are good, none from there on can be opened"),
        Some(0) => format!("{what}; no bytes of any disk are lost by it"),
        Some(bytes) => {
            format!(
                "{what}; {bytes} bytes cannot be read as of some checkpoints from {from} on, everything else can"
            )
        }
    }
}

/// What would be made anew where it is missing, as if the disk had been empty.
fn check_replicas_are_there(replicas: &Path, manifest: &Manifest) -> Result<()> {
    let missing = |name: &str| !replicas.join(format!("{name}.raw")).exists();
    match manifest.disks.iter().find(|disk| missing(&disk.name)) {
        None => Ok(()),
        Some(disk) => bail!(
            "there is no replica of disk {} in {}: give the folder where its replicas lie with --replicas",
            disk.name,
            replicas.display()
        ),
    }
}

/// Records between two looks at the clock.
const RECORDS_A_LOOK: u64 = 4096;

fn read(folder: &Path, deep: bool, mut on_record: impl FnMut(RecordRow)) -> Result<VerifyReport> {
    let store = take(folder)?;
    let mut told = ReadingThrough::new("reading the journal".into(), None);
    let (mut records, mut bytes) = (0u64, 0);
    let report = verify(&store, deep, |row| {
        records += 1;
        // What stands for a range without data may be as long as a disk.
        bytes += if row.range.len <= RECORD_BYTES_MAX { row.range.len } else { 0 };
        if records.is_multiple_of(RECORDS_A_LOOK) {
            told.tell(bytes, &format!(", {records} records, up to {}", row.seq));
        }
        on_record(row);
    });
    told.end();
    report.context("read the journal")
}

/// Bytes of the files that a scrub reads.
fn bytes_in(folders: &[&Path]) -> u64 {
    let rows = folders.iter().flat_map(std::fs::read_dir).flatten().flatten();
    // Holes of replicas are not read.
    let read = |facts: std::fs::Metadata| facts.len().min(facts.blocks() * 512);
    rows.filter_map(|row| row.metadata().ok()).filter(std::fs::Metadata::is_file).map(read).sum()
}

fn take(folder: &Path) -> Result<FsStore> {
    if !journal::MANIFESTS.iter().any(|name| folder.join(name).exists()) {
        bail!(
            "{} is not a journal's folder: it has no manifest; journals lie in journal_dir/ID",
            folder.display()
        );
    }
    FsStore::open(folder).context("take the folder (stop the agent that uses it)")
}

fn to_text(report: &VerifyReport, deep: bool) -> String {
    let manifest = &report.manifest;
    let mut out = format!("journal of {} ({}), epoch {}\n", manifest.vm_name, manifest.vm, manifest.epoch);
    for disk in &manifest.disks {
        let _ = writeln!(out, "  disk {}  {}", disk.name, print::bytes(disk.size_bytes));
    }
    let _ = writeln!(out, "  replica at {}", types::WriteSeq::from_raw(manifest.applied));
    let mut rows =
        vec![["SEGMENT", "STATE", "SIZE", "BATCHES", "RECORDS", "FIRST", "LAST"].map(str::to_owned)];
    for segment in &report.segments {
        let seq = |seq: Option<types::WriteSeq>| seq.map_or("-".into(), |seq| seq.to_string());
        rows.push([
            format!("{}{}", if segment.undo { "undo " } else { "" }, segment.number),
            if segment.sealed { "sealed".into() } else { "open".into() },
            print::bytes(segment.bytes),
            segment.batches.to_string(),
            segment.records.to_string(),
            seq(segment.first_seq),
            seq(segment.last_seq),
        ]);
    }
    out += &print::table(&rows);
    let tail = report.tail.map_or("none".into(), |tail| tail.to_string());
    let _ = writeln!(out, "{} checkpoints can be opened, tail {tail}", report.checkpoints.len());
    if let (Some(first), Some(last)) = (report.checkpoints.first(), report.checkpoints.last()) {
        let _ = writeln!(
            out,
            "  from {} ({}) to {} ({})",
            first.checkpoint.id,
            agent::clock::to_text(first.checkpoint.taken_at),
            last.checkpoint.id,
            agent::clock::to_text(last.checkpoint.taken_at)
        );
    }
    if report.torn_bytes > 0 {
        let _ = writeln!(out, "{} of a torn, never acknowledged end", print::bytes(report.torn_bytes));
    }
    for damage in &report.damage {
        let _ = writeln!(out, "DAMAGED: {damage}");
    }
    if deep && report.damage.is_empty() {
        out += "every byte is as it was written\n";
    }
    out
}

fn to_json(report: &VerifyReport) -> Value {
    let manifest = &report.manifest;
    let segments = report.segments.iter().map(|segment| {
        json!({
            "number": segment.number,
            "log": if segment.undo { "undo" } else { "redo" },
            "sealed": segment.sealed,
            "bytes": segment.bytes,
            "batches": segment.batches,
            "records": segment.records,
            "first_seq": segment.first_seq.map(|seq| seq.to_string()),
            "last_seq": segment.last_seq.map(|seq| seq.to_string()),
        })
    });
    let checkpoints = report.checkpoints.iter().map(|facts| {
        json!({
            "id": facts.checkpoint.id.to_string(),
            "taken_at": agent::clock::to_text(facts.checkpoint.taken_at),
            "tag": facts.checkpoint.tag,
            "writes": facts.writes,
            "write_bytes": facts.bytes,
            "entropy_bits": facts.entropy_bits(),
        })
    });
    json!({
        "vm": manifest.vm,
        "vm_name": manifest.vm_name,
        "epoch": manifest.epoch,
        "applied": types::WriteSeq::from_raw(manifest.applied).to_string(),
        "disks": manifest.disks.iter().map(|disk| json!({"name": disk.name, "size_bytes": disk.size_bytes})).collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "checkpoints": checkpoints.collect::<Vec<_>>(),
        "tail": report.tail.map(|tail| tail.to_string()),
        "writes": report.guest_writes,
        "damage": report.damage,
        "torn_bytes": report.torn_bytes,
    })
}

fn record_to_json(row: &RecordRow) -> Value {
    json!({
        "seq": row.seq.to_string(),
        "kind": row.kind,
        "disk": row.disk.0,
        "start": row.range.start,
        "bytes": row.range.len,
        "crc32c": row.payload_crc,
    })
}

fn records_to_text(records: &[RecordRow]) -> String {
    let mut rows = vec![["SEQUENCE", "KIND", "DISK", "START", "BYTES", "CRC-32C"].map(str::to_owned)];
    rows.extend(records.iter().map(|row| {
        [
            row.seq.to_string(),
            row.kind.to_owned(),
            row.disk.0.to_string(),
            row.range.start.to_string(),
            row.range.len.to_string(),
            format!("{:08x}", row.payload_crc),
        ]
    }));
    print::table(&rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use journal::LostPiece;
    use types::{ByteRange, DiskIndex, DiskSpec, Epoch, VmId, WriteSeq};

    #[test]
    fn what_repair_contains_is_told_with_what_it_costs() {
        let from = WriteSeq::from_raw(7);
        let told = |pieces| contained(&Damage { what: "segment-1".into(), from, indexed: true, pieces });
        let (disk, range) = (DiskIndex(0), ByteRange::new(4096, 512));
        let piece = LostPiece { disk, range, from, until: None };
        assert!(told(Some(vec![piece])).contains("512 bytes cannot be read"));
        assert!(told(Some(Vec::new())).contains("no bytes of any disk are lost"));
        assert!(told(None).contains("none from there on can be opened"));
    }

    #[test]
    fn repair_makes_no_replicas_where_they_lie_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (own, replicas) = (folder.path().join("journal"), folder.path().join("replicas"));
        {
            let store = FsStore::open(&own).unwrap().with_replicas_in(Some(replicas.clone()));
            let disks = [DiskSpec { name: "vda".into(), size_bytes: 1 << 20 }];
            let vm = VmId::from_bytes([1; 16]);
            Journal::create(Arc::new(store), vm, "web", &disks, Epoch::FIRST, Settings::for_repair())
                .unwrap();
        }
        let refused = repair(&own, None, true).unwrap_err().to_string();
        assert!(refused.contains("--replicas"), "{refused}");
        assert!(!own.join("replica").exists());
        assert_eq!(repair(&own, Some(replicas), true).unwrap(), ExitCode::SUCCESS);
    }
}
