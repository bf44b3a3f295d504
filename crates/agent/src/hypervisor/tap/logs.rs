//! Change logs: bitmaps in QEMU's memory of the blocks that were written, which go on when the agent does not.

use super::disks::PREFIX;
use super::reading::ExportRoom;
use crate::hypervisor::qmp::{Monitor, QmpError};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use splitter::status_of;
use types::ByteRange;
use types::limits::BLOCK_BYTES;

/// Flag of a dirty bitmap's context.
const STATE_DIRTY: u32 = 1;

/// What was written to a disk while nobody listened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Nobody knows.
    Unknown,
    Ranges(Vec<ByteRange>),
}

/// The change logs of one node.
#[derive(Debug)]
pub(super) struct ChangeLogs<'a> {
    pub(super) monitor: &'a Monitor,
    pub(super) node: &'a str,
}

impl ChangeLogs<'_> {
    /// Their names, oldest first.
    fn list(&self) -> Result<Vec<(u64, String)>, QmpError> {
        let nodes = self.monitor.rows("query-named-block-nodes", &json!({ "flat": true }))?;
        let node = nodes.iter().find(|row| row["node-name"] == self.node);
        let number_of = |row: &Value| {
            let name = row["name"].as_str()?;
            Some((name.strip_prefix(PREFIX)?.parse().ok()?, name.to_owned()))
        };
        let bitmaps = node.and_then(|node| node["dirty-bitmaps"].as_array());
        let mut logs: Vec<_> = bitmaps.into_iter().flatten().filter_map(number_of).collect();
        logs.sort_unstable();
        Ok(logs)
    }

    /// Begins one; the names of those that were there.
    pub(super) fn begin(&self) -> Result<Vec<String>> {
        let logs = self.list()?;
        let number = logs.last().map_or(1, |(number, _)| number + 1);
        let name = format!("{PREFIX}{number}");
        self.monitor
            .ask(
                "block-dirty-bitmap-add",
                &json!({ "node": self.node, "name": name, "granularity": BLOCK_BYTES }),
            )
            .context("begin a change log")?;
        Ok(logs.into_iter().map(|(_, name)| name).collect())
    }

    pub(super) fn remove(&self, log: &str) -> Result<(), QmpError> {
        self.monitor.ask("block-dirty-bitmap-remove", &json!({ "node": self.node, "name": log })).map(drop)
    }

    pub(super) fn remove_all(&self) -> Result<(), QmpError> {
        self.list()?.iter().try_for_each(|(_, log)| self.remove(log))
    }

    /// What logs of before say.
    pub(super) fn read(&self, logs: &[String], room: &ExportRoom, size_bytes: u64) -> Result<Missed> {
        if logs.is_empty() {
            return Ok(Missed::Unknown);
        }
        for log in logs {
            self.monitor
                .ask("block-dirty-bitmap-disable", &json!({ "node": self.node, "name": log }))
                .context("end a change log")?;
        }
        let id = format!("{PREFIX}log");
        let export = json!({
            "type": "nbd", "id": id, "node-name": self.node, "name": id, "writable": false, "bitmaps": logs
        });
        let ranges = room.with(&export, || {
            let mut ranges = Vec::new();
            for log in logs {
                let mut reader = room.connect(&id, &format!("qemu:dirty-bitmap:{log}"))?;
                let status = status_of(&mut reader, ByteRange::new(0, size_bytes))?;
                let dirty = status.into_iter().filter(|(_, flags)| flags & STATE_DIRTY != 0);
                ranges.extend(dirty.map(|(range, _)| range));
            }
            Ok(ranges)
        });
        ranges.map(Missed::Ranges).context("read the change log")
    }
}
