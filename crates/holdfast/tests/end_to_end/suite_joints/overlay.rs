//! The maps of an open image's overlay, damaged while the agent is dead: what was written to the image, and what it shows
//! of the checkpoint, is given as it was or not at all.

use super::agents::{kill, start};
use super::damage::settle;
use super::ledger::VMS;
use super::world::{Dice, Who, World, at_last, spoil};
use anyhow::Result;
use lab::NbdClient;
use std::path::Path;

const BLOCK: usize = 4096;
const DISK_BLOCKS: u64 = (48 << 20) / BLOCK as u64;

/// Opens an image and writes to it; its maps are damaged, and all is read again.
pub(super) fn damage(world: &mut World, dice: &mut Dice) {
    // What the agent's start finds damaged may cost the image all of its moment.
    settle(world, dice);
    let vm = VMS[dice.below(3) as usize];
    let Ok(image) = world.recovery.ask(&["image", "open", "--vm", vm, "--at", "latest", "--writable"]) else {
        return;
    };
    let folder = world.folder_of(vm);
    let id = image["id"].as_str().unwrap().to_owned();
    let socket = image["socket"].as_str().unwrap().to_owned();
    // `latest` may have been damaged, and nobody has looked yet: then the image does not give everything from the beginning.
    if let (Ok(expected), Some(folder)) = (write_and_read(&socket, dice), folder) {
        kill(world, Who::Recovery);
        let place = damage_a_map(&folder.join(format!("image-{id}")), dice);
        start(world, Who::Recovery);
        if let Some(place) = place {
            world.damaged("map of an overlay", vm, &place);
        }
        let shown = at_last("the image after the agent's start", || {
            let rows = world.recovery.ask(&["image", "list"])?;
            let rows = rows.as_array().or(rows["images"].as_array()).cloned().unwrap_or_default();
            let row = rows.into_iter().find(|row| row["id"] == id.as_str());
            let served = row.filter(|row| {
                row["error"].is_null() || row["error"].as_str().is_some_and(|why| why.contains("damage"))
            });
            Ok(served)
        });
        compare(world, vm, shown["socket"].as_str().unwrap(), &expected);
    }
    at_last("the image closed", || Ok(world.recovery.ask(&["image", "close", &id]).ok()));
}

/// Blocks as they are to be read: some written, some not.
type Expected = Vec<(u64, Vec<u8>)>;

fn write_and_read(socket: &str, dice: &mut Dice) -> Result<Expected> {
    let mut client = NbdClient::connect(socket, "vda")?;
    let mut expected = Expected::new();
    for turn in 0..48u64 {
        let block = dice.below(DISK_BLOCKS);
        if expected.iter().any(|(other, _)| *other == block) {
            continue;
        }
        let mut bytes = vec![0; BLOCK];
        if turn % 2 == 0 {
            bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&(block + 1).to_le_bytes()));
            client.write(block * BLOCK as u64, &bytes)?;
        } else {
            client.read(block * BLOCK as u64, &mut bytes)?;
        }
        if turn == 24 {
            client.flush()?;
        }
        expected.push((block, bytes));
    }
    Ok(expected)
}

fn damage_a_map(folder: &Path, dice: &mut Dice) -> Option<String> {
    let name = if dice.below(2) == 0 { "vda.now" } else { "vda.flushed" };
    spoil(&folder.join(name), 0..u64::MAX, dice)
}

fn compare(world: &mut World, vm: &str, socket: &str, expected: &Expected) {
    let Ok(mut client) = NbdClient::connect(socket, "vda") else { return };
    let mut refused = 0;
    for (block, bytes) in expected {
        let mut found = vec![0; BLOCK];
        if client.read(block * BLOCK as u64, &mut found).is_err() {
            refused += 1;
            continue;
        }
        assert!(
            found == *bytes,
            "block {block} of the image of {vm} is another than before its map was damaged"
        );
    }
    println!("  {refused} of {} blocks of the image of {vm} cannot be read", expected.len());
    world.tally.overlays += 1;
}
