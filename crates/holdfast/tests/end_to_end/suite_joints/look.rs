//! What must hold at the recovery side whenever everything runs again: what was written comes, every checkpoint is one
//! moment of all three VMs, nothing that was listed goes, and nothing that was read is wrong.
//!
//! A VM whose journal was damaged on purpose may refuse checkpoints, and reads of them; what it gives is right all the
//! same, and `latest` gives everything.

use super::ledger::{LEDGER_BYTES, Page, VMS, one_moment};
use super::world::{Dice, World, at_last};
use anyhow::{Context, Result};
use lab::{NbdClient, Ticks, check_file_system, copy_image, read_file};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Which checkpoints each VM had when they were last listed.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<&'static str, BTreeSet<String>>);

/// What is read of each VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    Ledger,
    /// And the guest's file system, with its own records.
    FileSystem,
}

/// Looks at `latest`, and at so many checkpoints at random.
pub(super) fn look(world: &mut World, seen: &mut Seen, dice: &mut Dice, count: usize) {
    world.mend();
    world.guests_go_on();
    let newest = fresh(world);
    world.tally.latest += 1;
    let listed = VMS.map(|vm| list(world, vm));
    for (vm, now) in VMS.into_iter().zip(&listed) {
        let before = seen.0.insert(vm, now.clone()).unwrap_or_default();
        let gone: Vec<_> = before.difference(now).collect();
        assert!(gone.is_empty() || world.damaged.contains(vm), "checkpoints of {vm} are gone: {gone:?}");
    }
    let common: Vec<&String> =
        listed[0].iter().filter(|id| listed[1..].iter().all(|ids| ids.contains(*id))).collect();
    assert!(common.contains(&&newest));
    for turn in 0..count {
        let id = common[dice.below(common.len() as u64) as usize];
        let depth = if turn == 0 { Depth::FileSystem } else { Depth::Ledger };
        let read = read(world, id, depth).unwrap_or_else(|why| panic!("checkpoint {id}: {why:#}"));
        world.tally.checkpoints += 1;
        world.tally.unreadable += u64::from(read.iter().any(Option::is_none));
    }
}

/// Waits for a checkpoint of all three with everything that was written by now, and that gives all of it; its id.
fn fresh(world: &mut World) -> String {
    let due = world.ledger.whole();
    let (first, second) = (&world.first, &world.second);
    for (site, vm) in [(first, "one"), (second, "two"), (second, "three"), (first, "pledge")] {
        at_last(&format!("{vm} journals"), || {
            let row = site.protected(vm)?;
            Ok((row["state"] == "journaling" && row["link"] == "up").then_some(()))
        });
    }
    let mut last = String::new();
    let what = format!("a checkpoint with record {due} that gives everything");
    let id = at_last(&what, || {
        let Some(id) = newest_of_all(world)? else { return Ok(None) };
        if std::mem::replace(&mut last, id.clone()) == id {
            return Ok(None);
        }
        let pages = read(world, &id, Depth::Ledger)?;
        if !pages.iter().all(|page| page.is_some_and(|page| page.last >= due)) {
            return Ok(None);
        }
        let pages = read(world, &id, Depth::FileSystem)?;
        Ok(pages.iter().all(Option::is_some).then_some(id))
    });
    world.tally.file_systems += 3;
    id
}

/// The newest checkpoint that all three have.
fn newest_of_all(world: &World) -> Result<Option<String>> {
    let mut rows = Vec::new();
    for vm in VMS {
        let page =
            world.recovery.ask(&["checkpoint", "list", "--vm", vm, "--newest-first", "--limit", "50"])?;
        let ids = page["checkpoints"].as_array().context("no checkpoints")?;
        rows.push(ids.iter().filter_map(|row| Some(row["id"].as_str()?.to_owned())).collect::<Vec<_>>());
    }
    Ok(rows[0].iter().find(|id| rows[1..].iter().all(|ids| ids.contains(id))).cloned())
}

/// Every checkpoint of a VM.
fn list(world: &World, vm: &str) -> BTreeSet<String> {
    let (mut ids, mut cursor) = (BTreeSet::new(), None::<String>);
    loop {
        let mut arguments = vec!["checkpoint", "list", "--vm", vm, "--limit", "1000"];
        arguments.extend(cursor.iter().flat_map(|cursor| ["--cursor", cursor]));
        let page = world.recovery.ask(&arguments).unwrap();
        let rows = page["checkpoints"].as_array().unwrap();
        ids.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        cursor = page["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return ids;
        }
    }
}

/// What the three VMs have at a checkpoint; none of one that was damaged and does not give it.
///
/// # Errors
/// Where one does not give it and was not damaged, or what they give is of no one moment.
fn read(world: &World, id: &str, depth: Depth) -> Result<[Option<Page>; 3]> {
    let mut pages = [None; 3];
    let mut ticks = [None; 3];
    for (at, vm) in VMS.into_iter().enumerate() {
        match read_vm(world, vm, id, depth) {
            Ok((page, found)) => (pages[at], ticks[at]) = (Some(page), found),
            Err(Unread::Refused(_)) if world.damaged.contains(vm) => {}
            Err(Unread::Refused(why) | Unread::Wrong(why)) => anyhow::bail!("{vm}: {why}"),
        }
    }
    let due = one_moment(pages).map_err(anyhow::Error::msg)?;
    for (at, found) in ticks.into_iter().enumerate() {
        let Some(found) = found else { continue };
        anyhow::ensure!(
            found >= due[at],
            "{} has its records up to {found}, of which others know {}",
            VMS[at],
            due[at]
        );
    }
    Ok(pages)
}

/// Why there is nothing of a VM at a checkpoint.
enum Unread {
    /// It is not opened, or a read of it fails.
    Refused(String),
    /// What it gives is wrong.
    Wrong(String),
}

fn read_vm(world: &World, vm: &str, id: &str, depth: Depth) -> Result<(Page, Option<u64>), Unread> {
    let refused = |error: anyhow::Error| Unread::Refused(format!("{error:#}"));
    let image = world.recovery.ask(&["image", "open", "--vm", vm, "--at", id]).map_err(refused)?;
    let read = read_image(world, &image, depth);
    let closed = world.recovery.ask(&["image", "close", image["id"].as_str().unwrap_or_default()]);
    closed.map_err(refused)?;
    read
}

fn read_image(world: &World, image: &Value, depth: Depth) -> Result<(Page, Option<u64>), Unread> {
    let refused = |error: anyhow::Error| Unread::Refused(format!("{error:#}"));
    let socket = image["socket"].as_str().unwrap_or_default();
    let mut bytes = vec![0; LEDGER_BYTES as usize];
    let mut client = NbdClient::connect(socket, "log").map_err(refused)?;
    for (part, at) in bytes.chunks_mut(128 << 10).zip((0..).step_by(128 << 10)) {
        client.read(at, part).map_err(refused)?;
    }
    let page = Page::read(&bytes).map_err(Unread::Wrong)?;
    if depth == Depth::Ledger {
        return Ok((page, None));
    }
    let copy = world.path("looked-at.raw");
    copy_image(socket, "vda", &copy).map_err(refused)?;
    if !check_file_system(&copy).map_err(refused)? {
        return Err(Unread::Wrong("e2fsck finds something wrong".into()));
    }
    // A guest that had written nothing yet has no file.
    let text = read_file(&copy, "/ticks").unwrap_or_default();
    let ticks = Ticks::parse(&text);
    match ticks.violations {
        0 => Ok((page, Some(ticks.last))),
        some => Err(Unread::Wrong(format!("{some} of the guest's records up to {} are wrong", ticks.last))),
    }
}
