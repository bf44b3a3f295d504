//! Lists of checkpoints, and what differs between two.

use super::noted::Listed;
use super::world::{World, at_last};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;

/// What is gone from one list to the next, and what has become damaged: by how many bytes.
pub(super) fn differences(before: &Listed, now: &Listed) -> Vec<(String, Option<u64>)> {
    let now: BTreeMap<&String, u64> = now.iter().map(|(id, damaged)| (id, *damaged)).collect();
    let differs = |(id, damaged): &(String, u64)| match now.get(id) {
        None => Some((id.clone(), None)),
        Some(now) if now > damaged => Some((id.clone(), Some(now - damaged))),
        Some(_) => None,
    };
    before.iter().filter_map(differs).collect()
}

pub(super) fn ids(page: &Value) -> Listed {
    let rows = page["checkpoints"].as_array().into_iter().flatten();
    rows.filter_map(|row| Some((row["id"].as_str()?.to_owned(), row["damaged_bytes"].as_u64()?))).collect()
}

/// Every checkpoint of a VM, once its journal is open.
pub(super) fn list(world: &World, vm: &str) -> Listed {
    at_last(&format!("a list of the checkpoints of {vm}"), || Ok(try_list(world, vm).ok()))
}

fn try_list(world: &World, vm: &str) -> Result<Listed> {
    let (mut listed, mut cursor) = (Listed::new(), None::<String>);
    loop {
        let mut arguments = vec!["checkpoint", "list", "--vm", vm, "--limit", "1000"];
        arguments.extend(cursor.iter().flat_map(|cursor| ["--cursor", cursor]));
        let page = world.recovery.ask(&arguments)?;
        // One copy of a page is never damaged while the other is.
        assert!(page["unread"].as_array().is_none_or(Vec::is_empty), "{vm}: {}", page["unread"]);
        listed.extend(ids(&page));
        cursor = page["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Ok(listed);
        }
    }
}
