//! What most of these tests begin with.

use lab::{
    CommandFailed, Guest, GuestDisk, GuestFiles, GuestOptions, Site, Work, check_file_system, pair,
    wait_until,
};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast");

/// Two sites whose agents run, and a folder that goes with them.
pub(crate) struct Stage {
    pub(crate) a: Site,
    pub(crate) b: Site,
    pub(crate) folder: TempDir,
}

impl Stage {
    pub(crate) fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut a, mut b) = pair(Path::new(HOLDFAST), folder.path()).unwrap();
        a.start_agent().unwrap();
        b.start_agent().unwrap();
        Self { a, b, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A raw disk with something on it here and there.
    pub(crate) fn disk(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        for at in (0..size_bytes).step_by(1 << 20) {
            let bytes: Vec<u8> =
                (0..100_000u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let len = (size_bytes - at).min(100_000) as usize;
            file.write_at(&bytes[..len], at).unwrap();
        }
        path
    }

    /// A guest on the disk of a protection, that writes, deletes and trims; it is up.
    pub(crate) fn guest_under_load(&self, socket: &str) -> Guest {
        self.guest(Work::Load, GuestDisk::nbd(socket, "vda"), &[])
    }

    /// A guest that does its work; it is up.
    pub(crate) fn guest(&self, work: Work, disk: GuestDisk, more: &[String]) -> Guest {
        let files = GuestFiles::find().unwrap();
        let mut guest = Guest::start(&GuestOptions {
            files: &files,
            work,
            disk,
            more,
            folder: self.folder.path().to_path_buf(),
            name: "guest",
        })
        .unwrap();
        guest.console.wait_for("READY", Duration::from_secs(120)).unwrap();
        guest
    }

    /// Protects a VM of one disk and waits until it is journaling; its socket.
    pub(crate) fn protect(&self, vm: &str, group: &str, disk: &Path) -> String {
        let answer = self.try_protect(vm, group, disk, &[]).unwrap();
        self.a.wait_for_state(vm, "journaling", SOON).unwrap();
        answer["socket"].as_str().unwrap().to_owned()
    }

    pub(crate) fn try_protect(
        &self,
        vm: &str,
        group: &str,
        disk: &Path,
        more: &[&str],
    ) -> anyhow::Result<Value> {
        let disk = format!("vda={}", disk.display());
        let peer = self.b.peer();
        let mut arguments = vec!["vm", "protect", vm, "--group", group, "--disk", &disk, "--peer", &peer];
        arguments.extend(["--checkpoint-interval", "1"]);
        arguments.extend(more);
        self.a.ask(&arguments)
    }

    /// Waits until everything the VM has written is durable at B.
    pub(crate) fn drained(&self, vm: &str) {
        wait_until(&format!("{vm} drained"), SOON, || {
            let row = self.a.protected(vm)?;
            let empty = row["buffer_bytes"] == 0 && row["dirty_bytes"] == 0;
            Ok((empty && row["state"] == "journaling" && row["link"] == "up").then_some(()))
        })
        .unwrap();
    }

    /// Waits until no client is left, and everything is at the other side. A request that a guest's end has left behind is
    /// still carried out, which may take its time where the disk is busy.
    pub(crate) fn left_and_drained(&self, vm: &str) {
        wait_until(&format!("the last client of {vm}"), SOON, || {
            Ok((self.a.protected(vm)?["clients"] == 0).then_some(()))
        })
        .unwrap();
        self.drained(vm);
    }

    /// Waits until the agent has noted the VM's only disk as it is: the last note in the dirty map has the image's
    /// ctime, and is settled.
    pub(crate) fn noted(&self, vm: &str, disk: &Path) {
        let id = self.a.protected(vm).unwrap()["id"].as_str().unwrap().to_owned();
        let map = self.a.folder.join("state/tracking").join(format!("{id}.map"));
        wait_until("a note of the disk", SOON, || {
            let (bytes, facts) = (std::fs::read(&map)?, std::fs::metadata(disk)?);
            let note = &bytes[bytes.len() - 64..];
            let changed_at = facts.ctime() * 1_000_000_000 + facts.ctime_nsec();
            Ok((note[32..40] == changed_at.to_le_bytes() && note[48] & 2 != 0).then_some(()))
        })
        .unwrap();
    }

    /// Checks the file system at a dozen checkpoints of a VM, from the first to the last; there are five at least.
    pub(crate) fn checkpoints_have_whole_file_systems(&self, vm: &str) {
        let page = self.b.ask(&["checkpoint", "list", "--vm", vm]).unwrap();
        let rows = page["checkpoints"].as_array().unwrap().clone();
        assert!(rows.len() >= 5, "{} checkpoints", rows.len());
        for row in rows.iter().step_by(rows.len().div_ceil(12)) {
            let image = self.copy_image(vm, row["id"].as_str().unwrap(), "image.raw");
            assert!(check_file_system(&image).unwrap(), "checkpoint {row}");
        }
    }

    /// Copies the image of a VM as of `at` to a file.
    pub(crate) fn copy_image(&self, vm: &str, at: &str, name: &str) -> PathBuf {
        let image = self.b.ask(&["image", "open", "--vm", vm, "--at", at]).unwrap();
        let path = self.path(name);
        lab::copy_image(image["socket"].as_str().unwrap(), "vda", &path).unwrap();
        self.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
        path
    }

    /// Waits until B has a checkpoint with this tag.
    pub(crate) fn tag(&self, group: &str, vm: &str, tag: &str) {
        wait_until("a tag", SOON, || match self.a.ask(&["checkpoint", "tag", "--group", group, tag]) {
            Ok(_) => Ok(Some(())),
            // While a VM of the group syncs there is nothing to tag.
            Err(error) if failed(&error).code == 5 => Ok(None),
            Err(error) => Err(error),
        })
        .unwrap();
        wait_until("the tag at B", SOON, || {
            let page = self.b.ask(&["checkpoint", "list", "--vm", vm])?;
            let rows = page["checkpoints"].as_array().unwrap();
            Ok(rows.iter().any(|row| row["tag"] == tag).then_some(()))
        })
        .unwrap();
    }
}

/// Waits until somebody listens at a socket: between the making of its file and that a client is refused.
pub(crate) fn wait_for_listener(socket: &Path) {
    let path = socket.display().to_string();
    wait_until(&format!("a listener at {path}"), SOON, || {
        let sockets = std::fs::read_to_string("/proc/net/unix")?;
        // Flags, of which one says that it listens, are the fourth word, and the path the last.
        let listens = |line: &str| {
            let mut words = line.split_whitespace();
            words.nth(3) == Some("00010000") && words.next_back() == Some(path.as_str())
        };
        Ok(sockets.lines().any(listens).then_some(()))
    })
    .unwrap();
}

/// The exit code and message of a command that was refused.
pub(crate) fn failed(error: &anyhow::Error) -> &CommandFailed {
    error.downcast_ref::<CommandFailed>().unwrap_or_else(|| panic!("not a command's failure: {error:#}"))
}

/// A command must be refused with this exit code and words.
pub(crate) fn refused(result: anyhow::Result<Value>, code: i32, words: &str) {
    let error = result.expect_err("it must be refused");
    let failure = failed(&error);
    assert!(failure.code == code && failure.message.contains(words), "{failure} (wanted {code}, {words:?})");
}

pub(crate) fn same_bytes(left: &Path, right: &Path) -> bool {
    std::fs::read(left).unwrap() == std::fs::read(right).unwrap()
}
