//! What must hold at the recovery side at any moment, and whenever everything runs again: what was written comes, every
//! checkpoint is one moment of all three VMs, nothing that was listed goes, and nothing that was read is wrong.
//!
//! A checkpoint that says it is damaged may refuse reads, and so may any of a VM whose damage nobody has looked for yet
//! ([`super::damage`]); what they give is right all the same, and in the end the newest gives everything.

use super::chain::{CHAIN_BYTES, Told, causes_are_there};
use super::ledger::{LEDGER_BYTES, Page, VMS, one_moment};
use super::lists::{differences, ids, list};
use super::noted::Listed;
use super::world::{Dice, World, at_last};
use super::{damage, protected_files};
use anyhow::Result;
use lab::{NbdClient, Ticks, check_file_system, copy_image, read_file};
use serde_json::Value;
use std::time::Duration;

/// What is read of each VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What is written beside the file system: the ledger, and the guests' own chain.
    Records,
    /// And the guest's file system, with its own records.
    FileSystem,
}

/// What one VM has at a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Found {
    page: Page,
    told: Told,
    /// The last record in the file system, where that was read.
    ticks: Option<u64>,
}

/// Looks at the newest checkpoint once it has everything that was written by now, and at so many others at random.
pub(super) fn look(world: &mut World, dice: &mut Dice, count: usize) {
    world.mend();
    world.guests_go_on();
    damage::settle(world, dice);
    let newest = fresh(world);
    world.tally.latest += 1;
    protected_files::settle(world);
    let listed = list_all(world);
    assert!(common(&listed).contains(&newest));
    at_random(world, dice, &listed, count);
}

/// Looks at the newest checkpoint that is there just now, and at so many others, whatever goes on.
pub(super) fn glance(world: &mut World, dice: &mut Dice, count: usize) {
    let listed = list_all(world);
    let Some(newest) = common(&listed).last().cloned() else { return };
    read_patiently(world, &listed, &newest, Depth::Records);
    world.tally.latest += 1;
    at_random(world, dice, &listed, count);
}

fn at_random(world: &mut World, dice: &mut Dice, listed: &[Listed; 3], count: usize) {
    let common = common(listed);
    for turn in 0..count {
        let id = &common[dice.below(common.len() as u64) as usize];
        let depth = if turn % 10 == 3 { Depth::FileSystem } else { Depth::Records };
        let found = read_patiently(world, listed, id, depth);
        world.tally.checkpoints += 1;
        world.tally.unreadable += u64::from(found.iter().any(Option::is_none));
        world.tally.file_systems +=
            found.iter().flatten().filter(|found| found.ticks.is_some()).count() as u64;
    }
}

/// Lists all three VMs, of which nothing may have gone, and nothing become damaged, that was there before.
fn list_all(world: &mut World) -> [Listed; 3] {
    let listed = VMS.map(|vm| list(world, vm));
    for (vm, now) in VMS.into_iter().zip(&listed) {
        if world.damaged_of(vm).is_some() {
            continue;
        }
        let before = world.seen.0.insert(vm, now.clone()).unwrap_or_default();
        let lost = differences(&before, now);
        assert!(lost.is_empty(), "checkpoints of {vm} are gone or damaged by themselves: {lost:?}");
    }
    listed
}

fn common(listed: &[Listed; 3]) -> Vec<String> {
    let other =
        |at: usize| -> std::collections::BTreeSet<&String> { listed[at].iter().map(|(id, _)| id).collect() };
    let (second, third) = (other(1), other(2));
    let ids = listed[0].iter().map(|(id, _)| id).filter(|id| second.contains(id) && third.contains(id));
    ids.cloned().collect()
}

/// Waits for a checkpoint of all three with everything that was written by now, and that gives all of it; its id.
fn fresh(world: &mut World) -> String {
    let (due, told) = (world.ledger.whole(), world.relay.told());
    let (first, second) = (&world.first, &world.second);
    for (site, vm) in [(first, "one"), (second, "two"), (second, "three"), (first, "pledge")] {
        at_last(&format!("{vm} journals"), || {
            let row = site.protected(vm)?;
            Ok((row["state"] == "journaling" && row["link"] == "up").then_some(()))
        });
    }
    let mut last = String::new();
    let what = format!("a checkpoint with record {due} and {told:?} of the chain that gives everything");
    let id = at_last(&what, || {
        let Some((id, damaged)) = newest_of_all(world)? else { return Ok(None) };
        if std::mem::replace(&mut last, id.clone()) == id {
            return Ok(None);
        }
        let has_all = |found: Option<Found>, told: u64| {
            found.is_some_and(|found| found.page.last >= due && found.told.last >= told)
        };
        let found = read(world, &id, Depth::Records, damaged)?;
        if !found.into_iter().zip(told).all(|(found, told)| has_all(found, told)) {
            return Ok(None);
        }
        let found = read(world, &id, Depth::FileSystem, damaged)?;
        Ok(found.iter().all(Option::is_some).then_some(id))
    });
    world.tally.file_systems += 3;
    id
}

/// The newest checkpoint that all three have, and of which of them it says that something is damaged.
fn newest_of_all(world: &World) -> Result<Option<(String, [bool; 3])>> {
    let mut rows = Vec::new();
    for vm in VMS {
        let page =
            world.recovery.ask(&["checkpoint", "list", "--vm", vm, "--newest-first", "--limit", "50"])?;
        rows.push(ids(&page));
    }
    let in_all = rows[0].iter().map(|(id, _)| id).find(|id| {
        let has = |of: &Listed| of.iter().any(|(other, _)| other == *id);
        rows.iter().all(has)
    });
    let damaged =
        |of: usize, id: &String| rows[of].iter().any(|(other, damaged)| other == id && *damaged > 0);
    Ok(in_all.map(|id| (id.clone(), [0, 1, 2].map(|of| damaged(of, id)))))
}

/// Reads a checkpoint while journals may be being opened, or handed from one stream to the next.
fn read_patiently(world: &World, listed: &[Listed; 3], id: &str, depth: Depth) -> [Option<Found>; 3] {
    let damaged = listed.each_ref().map(|rows| rows.iter().any(|(other, bytes)| other == id && *bytes > 0));
    let began = lab::now();
    loop {
        match read(world, id, depth, damaged) {
            Ok(found) => return found,
            Err(why) if why.is::<Refused>() && began.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(why) => panic!("checkpoint {id}: {why:#}"),
        }
    }
}

/// What the three VMs have at a checkpoint; none of one that is damaged and does not give it.
///
/// # Errors
/// Where one does not give it and is not damaged, or what they give is of no one moment.
fn read(world: &World, id: &str, depth: Depth, damaged: [bool; 3]) -> Result<[Option<Found>; 3]> {
    let mut found = [None; 3];
    for (at, vm) in VMS.into_iter().enumerate() {
        match read_vm(world, at, id, depth) {
            Ok(of_vm) => found[at] = Some(of_vm),
            Err(Unread::Refused(_)) if damaged[at] || world.damaged_of(vm).is_some() => {}
            Err(Unread::Refused(why)) => return Err(Refused(format!("{vm}: {why}")).into()),
            Err(Unread::Wrong(why)) => anyhow::bail!("{vm}: {why}"),
        }
    }
    let due = one_moment(found.map(|found| Some(found?.page))).map_err(anyhow::Error::msg)?;
    causes_are_there(found.map(|found| Some(found?.told))).map_err(anyhow::Error::msg)?;
    for (at, found) in found.into_iter().enumerate() {
        let Some(ticks) = found.and_then(|found| found.ticks) else { continue };
        anyhow::ensure!(
            ticks >= due[at],
            "{} has its records up to {ticks}, of which others know {}",
            VMS[at],
            due[at]
        );
    }
    Ok(found)
}

/// A VM does not give what nobody has damaged.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Why there is nothing of a VM at a checkpoint.
enum Unread {
    /// It is not opened, or a read of it fails.
    Refused(String),
    /// What it gives is wrong.
    Wrong(String),
}

fn refused(error: anyhow::Error) -> Unread {
    Unread::Refused(format!("{error:#}"))
}

fn read_vm(world: &World, at: usize, id: &str, depth: Depth) -> Result<Found, Unread> {
    let image = world.recovery.ask(&["image", "open", "--vm", VMS[at], "--at", id]).map_err(refused)?;
    let read = read_image(world, at, &image, depth);
    let closed = world.recovery.ask(&["image", "close", image["id"].as_str().unwrap_or_default()]);
    closed.map_err(refused)?;
    read
}

fn read_image(world: &World, at: usize, image: &Value, depth: Depth) -> Result<Found, Unread> {
    let socket = image["socket"].as_str().unwrap_or_default();
    let page = Page::read(&disk(socket, "log", LEDGER_BYTES)?).map_err(Unread::Wrong)?;
    let told = Told::read(&disk(socket, "chain", CHAIN_BYTES)?, at).map_err(Unread::Wrong)?;
    let ticks = match depth {
        Depth::Records => None,
        Depth::FileSystem => Some(ticks(world, socket)?),
    };
    Ok(Found { page, told, ticks })
}

fn disk(socket: &str, name: &str, bytes: u64) -> Result<Vec<u8>, Unread> {
    let mut content = vec![0; bytes as usize];
    let mut client = NbdClient::connect(socket, name).map_err(refused)?;
    for (part, at) in content.chunks_mut(128 << 10).zip((0..).step_by(128 << 10)) {
        client.read(at, part).map_err(refused)?;
    }
    Ok(content)
}

/// The last of the guest's records in its file system, which is whole.
fn ticks(world: &World, socket: &str) -> Result<u64, Unread> {
    let copy = world.path("looked-at.raw");
    copy_image(socket, "vda", &copy).map_err(refused)?;
    if !check_file_system(&copy).map_err(refused)? {
        return Err(Unread::Wrong("e2fsck finds something wrong".into()));
    }
    // A guest that had written nothing yet has no file.
    let text = read_file(&copy, "/ticks").unwrap_or_default();
    let ticks = Ticks::parse(&text);
    match ticks.violations {
        0 => Ok(ticks.last),
        some => Err(Unread::Wrong(format!("{some} of the guest's records up to {} are wrong", ticks.last))),
    }
}
