//! Images that a VM's process has put above one of its disks on our socket, by an external snapshot for example: the
//! guest writes to such an image from then on, and here it looks idle.
//!
//! QEMU tells nobody of that, and a VM on our socket has no monitor that is known here. But a client on this host is a
//! process, what it has open to write to can be looked at, and a qcow2 image says in its header what it stands on. What is
//! not found: images of other hosts and containers, those whose header does not name what is below them, and any where the
//! agent may not look at the process.
//!
//! What holds: a client says nothing by what it has open to read, and holds nobody up by it. What it changes meanwhile is
//! not opened in the place of what was looked at. A file on a disk that hangs holds up its look alone, see
//! `looking.rs`.

use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// By the format; QEMU opens no image whose backing file has a longer name.
const NAME_BYTES_MAX: usize = 1023;
/// Of a process that has more files open the rest is not looked at.
const FILES_MAX: usize = 4096;

/// An image that a process has open to write to, and that stands on an export of `socket`.
pub(super) fn image_above(process: u32, socket: &Path) -> Option<PathBuf> {
    let socket = socket.as_os_str().as_encoded_bytes();
    let is_above = |file: &Path| {
        let below = looked_at(file).and_then(|file| backing_file(&file)).unwrap_or_default();
        below.windows(socket.len()).any(|part| part == socket)
    };
    let rows = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten().take(FILES_MAX);
    let mut written = rows.filter(|row| is_written(process, &row.file_name())).map(|row| row.path());
    let file = written.find(|file| is_above(file))?;
    Some(fs::read_link(&file).unwrap_or(file))
}

/// Whether a process has a file open to write to. No disk is asked for that.
fn is_written(process: u32, number: &OsStr) -> bool {
    let Ok(info) = fs::read_to_string(Path::new(&format!("/proc/{process}/fdinfo")).join(number)) else {
        return false;
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & (OFlags::WRONLY | OFlags::RDWR).bits() != 0
}

/// A file or block device that is there now, without opening it: whoever has the path may put something else there.
fn looked_at(path: &Path) -> Option<OwnedFd> {
    let there = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&there).ok()?.st_mode);
    matches!(kind, FileType::RegularFile | FileType::BlockDevice).then_some(there)
}

/// What a qcow2 image says that it stands on, as QEMU writes it: a path, a URI, or JSON. Bytes 8 to 20 of its header have
/// the place and the length of that, big-endian
/// (<https://www.qemu.org/docs/master/interop/qcow2.html>).
fn backing_file(there: &OwnedFd) -> Option<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", there.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0).ok()?;
    let (magic, rest) = header.split_at(8);
    let (at, len) = rest.split_at(8);
    let at = u64::from_be_bytes(at.try_into().ok()?);
    let len = u32::from_be_bytes(len.try_into().ok()?) as usize;
    if magic[..4] != QCOW2_MAGIC || at == 0 || len > NAME_BYTES_MAX {
        return None;
    }
    let mut name = vec![0; len];
    file.read_exact_at(&mut name, at).ok()?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU writes it.
    fn image(path: &Path, backing: &str) -> File {
        let mut header = QCOW2_MAGIC.to_vec();
        header.extend(3_u32.to_be_bytes());
        header.extend(512_u64.to_be_bytes());
        header.extend((backing.len() as u32).to_be_bytes());
        header.resize(512, 0);
        header.extend(backing.as_bytes());
        fs::write(path, header).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn backing_of(path: &Path) -> Option<Vec<u8>> {
        looked_at(path).and_then(|file| backing_file(&file))
    }

    #[test]
    fn an_image_that_stands_on_our_socket_is_found_while_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let (us, socket) = (std::process::id(), folder.path().join("web.sock"));
        let path = |name: &str| folder.path().join(name);
        let _plain = File::create(path("plain")).unwrap();
        let _alone = image(&path("alone"), "");
        let _other = image(&path("other"), "nbd+unix:///vda?socket=/run/other.sock");
        assert_eq!(image_above(us, &socket), None);
        let json = format!("json:{{\"driver\":\"nbd\",\"server.path\":\"{}\"}}", socket.display());
        for below in [format!("nbd+unix:///vda?socket={}", socket.display()), json] {
            let above = image(&path("above"), &below);
            assert_eq!(image_above(us, &socket), Some(path("above")));
            drop(above);
            assert_eq!(image_above(us, &socket), None, "nobody has it open any more");
        }
        assert_eq!(image_above(u32::MAX, &socket), None);
    }

    #[test]
    fn an_image_that_somebody_only_reads_is_none_that_a_guest_writes_to() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = (folder.path().join("web.sock"), folder.path().join("look"));
        drop(image(&path, &format!("nbd+unix:///vda?socket={}", socket.display())));
        let _reads = File::open(&path).unwrap();
        assert_eq!(image_above(std::process::id(), &socket), None);
    }

    #[test]
    fn what_a_client_puts_in_the_place_of_what_was_looked_at_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, fifo) = (folder.path().join("image"), folder.path().join("fifo"));
        let below = "nbd+unix:///vda?socket=/run/web.sock";
        drop(image(&path, below));
        let there = looked_at(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        fs::rename(&fifo, &path).unwrap();
        assert_eq!(backing_file(&there).unwrap(), below.as_bytes());
        assert!(looked_at(&path).is_none(), "nobody waits for who writes there");
    }

    #[test]
    fn a_header_that_is_cut_off_or_lies_names_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        image(&path, "nbd+unix:///vda?socket=/run/web.sock");
        let whole = fs::read(&path).unwrap();
        for len in [0, 4, 19, 512, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(backing_of(&path), None, "{len} bytes");
        }
        let mut lies = whole;
        lies[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        fs::write(&path, lies).unwrap();
        assert_eq!(backing_of(&path), None);
    }
}
