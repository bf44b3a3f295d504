//! The disks of a running VM, and by what they are known again.
//!
//! What holds: a disk is known by the device it is at and by the image it has, never by the name of a node: libvirt
//! numbers its nodes anew at each start, and QEMU those it names itself. What differs in either is another disk.

use crate::hypervisor::qmp::{Monitor, QmpError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// All that is ours in a VM is called so.
pub(super) const PREFIX: &str = "holdfast-";

/// What a disk is known by over the VM's starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    /// The device's or the drive's id; none where it was given none.
    pub(crate) device: Option<String>,
    pub(crate) serial: Option<String>,
    /// QEMU's name for the image: its path, where it is a plain file.
    pub(crate) image: String,
    /// Where the image is a file that can be looked at from here.
    pub(crate) inode: Option<u64>,
    pub(crate) size_bytes: u64,
}

/// A disk of the VM that can be written, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundDisk {
    pub(super) node: String,
    /// QEMU's name for the drive, or else for the node: what an operator may call it by.
    pub(super) drive: String,
    /// The driver of the node.
    pub(super) format: String,
    pub(crate) facts: DiskFacts,
    /// The node has a change log of ours: it was under the tap since the VM was started.
    pub(super) has_log: bool,
}

/// Why a disk that was protected is not any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotThere {
    #[error("the VM has it no more")]
    Gone,
    #[error("{0}")]
    Differs(String),
}

impl FoundDisk {
    /// What tells an operator which disk this is.
    pub(crate) fn describe(&self) -> String {
        let device = self.facts.device.as_deref().unwrap_or(&self.drive);
        format!("{device} ({})", self.facts.image)
    }

    /// Whether an operator means this disk.
    pub(super) fn is_called(&self, name: &str) -> bool {
        [Some(&self.drive), Some(&self.node), self.facts.device.as_ref(), Some(&self.facts.image)]
            .into_iter()
            .flatten()
            .any(|known| known == name)
    }
}

/// Every disk of the VM that the guest can write, but for removable ones and firmware's variables.
pub(super) fn find_disks(monitor: &Monitor) -> Result<Vec<FoundDisk>, QmpError> {
    let stats = monitor.rows("query-blockstats", &json!({}))?;
    let nodes = monitor.rows("query-named-block-nodes", &json!({ "flat": true }))?;
    let nodes: HashMap<&str, &Value> =
        nodes.iter().filter_map(|row| Some((row["node-name"].as_str()?, row))).collect();
    let mut found = Vec::new();
    for row in monitor.rows("query-block", &json!({}))? {
        let inserted = &row["inserted"];
        let Some(qdev) = row["qdev"].as_str().filter(|_| is_guest_disk(&row)) else { continue };
        let mut node = inserted["node-name"].as_str().unwrap_or_default();
        let mut image = &inserted["image"];
        if node.starts_with(PREFIX) {
            // A tap stands in front of the disk.
            let of_it = stats.iter().find(|stat| stat["node-name"] == node);
            node = of_it.and_then(|stat| stat["backing"]["node-name"].as_str()).unwrap_or_default();
            image = &image["backing-image"];
        }
        let size_bytes = image["virtual-size"].as_u64().unwrap_or(0);
        if node.is_empty() || size_bytes == 0 {
            continue;
        }
        let drive = row["device"].as_str().filter(|name| !name.is_empty());
        let path = image["filename"].as_str().unwrap_or_default();
        let facts = DiskFacts {
            device: device_id(qdev).or_else(|| drive.map(str::to_owned)),
            serial: serial(monitor, qdev),
            image: path.to_owned(),
            inode: inode(path),
            size_bytes,
        };
        let bitmaps = nodes.get(node).and_then(|row| row["dirty-bitmaps"].as_array());
        let is_ours = |row: &Value| row["name"].as_str().is_some_and(|name| name.starts_with(PREFIX));
        found.push(FoundDisk {
            node: node.to_owned(),
            drive: drive.unwrap_or(node).to_owned(),
            format: image["format"].as_str().unwrap_or_default().to_owned(),
            facts,
            has_log: bitmaps.into_iter().flatten().any(is_ours),
        });
    }
    Ok(found)
}

fn is_guest_disk(row: &Value) -> bool {
    let is_firmware = row["qdev"].as_str().is_some_and(|qdev| qdev.contains("/system.flash"));
    row["inserted"]["ro"].as_bool() == Some(false) && row["removable"].as_bool() != Some(true) && !is_firmware
}

/// The id that the device was given; QEMU numbers those without in the order they were made.
fn device_id(qdev: &str) -> Option<String> {
    let id = match qdev.strip_prefix("/machine/peripheral/") {
        Some(rest) => rest.split('/').next().unwrap_or_default(),
        None if qdev.starts_with('/') => return None,
        None => qdev,
    };
    (!id.is_empty()).then(|| id.to_owned())
}

fn serial(monitor: &Monitor, qdev: &str) -> Option<String> {
    let path = if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") };
    // Not every kind of device has one.
    let said = monitor.ask("qom-get", &json!({ "path": path, "property": "serial" })).ok()?;
    said.as_str().filter(|serial| !serial.is_empty()).map(str::to_owned)
}

/// Of a plain file; a block device has its number from the order in which the host found it.
fn inode(image: &str) -> Option<u64> {
    let facts = std::fs::metadata(Path::new(image)).ok()?;
    (image.starts_with('/') && facts.is_file()).then(|| facts.ino())
}

/// The disk among `found` that is known by these facts.
pub(super) fn recognise<'a>(known: &DiskFacts, found: &'a [FoundDisk]) -> Result<&'a FoundDisk, NotThere> {
    let differs = |text: String| Err(NotThere::Differs(text));
    let mut of_image = found.iter().filter(|disk| disk.facts.image == known.image);
    let Some(device) = &known.device else {
        return match (of_image.next(), of_image.next()) {
            (Some(disk), None) => same_but_for_place(known, disk),
            (Some(_), Some(_)) => differs(format!("two devices have its image {} now", known.image)),
            (None, _) => Err(NotThere::Gone),
        };
    };
    match found.iter().find(|disk| disk.facts.device.as_ref() == Some(device)) {
        Some(disk) if disk.facts.image == known.image => same_but_for_place(known, disk),
        Some(disk) => differs(format!(
            "device {device} has image {} now; what is protected is image {}",
            disk.facts.image, known.image
        )),
        None => match of_image.next() {
            Some(disk) => differs(format!(
                "image {} is at device {} now; what is protected is that image at device {device}",
                known.image,
                disk.facts.device.as_deref().unwrap_or(&disk.drive)
            )),
            None => Err(NotThere::Gone),
        },
    }
}

fn same_but_for_place<'a>(known: &DiskFacts, disk: &'a FoundDisk) -> Result<&'a FoundDisk, NotThere> {
    let (image, now) = (&known.image, &disk.facts);
    let why = if known.size_bytes != now.size_bytes {
        format!("image {image} has {} bytes now; it had {}", now.size_bytes, known.size_bytes)
    } else if known.inode.zip(now.inode).is_some_and(|(before, now)| before != now) {
        format!("image {image} was replaced by another file of that name")
    } else if known.serial != now.serial {
        let serial = |serial: &Option<String>| serial.clone().unwrap_or_else(|| "no serial".into());
        format!(
            "the disk at image {image} has serial {} now; it had {}",
            serial(&now.serial),
            serial(&known.serial)
        )
    } else {
        return Ok(disk);
    };
    Err(NotThere::Differs(why))
}

/// The disk that an older version has written down by name only, where no other can be meant.
pub(super) fn recognise_by_name<'a>(name: &str, found: &'a [FoundDisk]) -> Result<&'a FoundDisk, NotThere> {
    let Some(disk) = found.iter().find(|disk| disk.drive == name || disk.node == name) else {
        return Err(NotThere::Gone);
    };
    let is_given = !(name.starts_with("libvirt-") || name.starts_with('#'));
    if is_given || disk.has_log || found.len() == 1 {
        return Ok(disk);
    }
    Err(NotThere::Differs(format!(
        "it is known as {name} only, which may be any disk since the VM was started anew: unprotect the VM and protect \
         it again"
    )))
}

#[cfg(test)]
mod tests;
