//! Debian packages: what is missing is said, with why, and installed.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A tool that is needed, the package that has it, and what for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

/// To build: C code in dependencies (TLS, zstd).
pub(crate) const BUILD: &[Tool] = &[tool("cc", "gcc", "dependencies with C parts (TLS, zstd)")];

/// For the demo and for every end-to-end test.
pub(crate) const GUEST: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86", "runs the guests"),
    tool("busybox", "busybox-static", "the guest's whole user space"),
    tool("e2fsck", "e2fsprogs", "makes and checks the guest's file system"),
    tool("debugfs", "e2fsprogs", "reads files out of recovered images"),
    tool("nbdcopy", "libnbd-bin", "another project's NBD client, to read images with"),
    tool("xz", "xz-utils", "unpacks kernel modules"),
    tool("dpkg-deb", "dpkg", "unpacks the guest's kernel package"),
];

/// For the feature `ublk`: the kernel's header is read when it is built.
pub(crate) const UBLK: &[Tool] = &[
    tool("clang", "clang", "reads the kernel's header for ublk"),
    tool("strip", "binutils", "makes the binary small enough for a guest"),
];

/// For fuzzing: libFuzzer is C++.
pub(crate) const FUZZ: &[Tool] = &[tool("c++", "g++", "builds libFuzzer")];

/// For the benches: what is measured beside ours.
pub(crate) const BENCH: &[Tool] = &[
    tool("qemu-img", "qemu-utils", "writes the same load to both"),
    tool("qemu-nbd", "qemu-utils", "another project's NBD server"),
    tool("qemu-storage-daemon", "qemu-system-common", "mirrors disks"),
    tool("fio", "fio", "another project's load"),
    tool("nbdsh", "python3-libnbd", "discards as a guest does"),
];

/// For tests against other people's clients.
pub(crate) const PEERS: &[Tool] = &[
    tool("nbdinfo", "libnbd-bin", "another project's NBD client"),
    tool("nbdsh", "python3-libnbd", "asks an NBD server for what it must refuse"),
    tool("qemu-img", "qemu-utils", "another project's NBD client"),
    tool("openssl", "openssl", "another project's TLS, to say wrong things with"),
    tool("fio", "fio", "verified random load over NBD"),
    tool("nbd-client", "nbd-client", "has a guest's kernel connect"),
    tool("systemctl", "systemd", "runs the packaged unit, in a namespace of its own"),
];

/// For the suite `libvirt`.
pub(crate) const LIBVIRT: &[Tool] = &[
    tool("libvirtd", "libvirt-daemon-system", "runs VMs on agents' sockets, in namespaces of its own"),
    tool("virsh", "libvirt-clients", "tells libvirt what to do"),
];

/// Installs what is missing of `tools`.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !is_there(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("These are missing and come from Debian's packages:");
    for tool in &missing {
        eprintln!("  {:20} from {:16} {}", tool.program, tool.package, tool.why);
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let install = ["install", "-y", "--no-install-recommends"];
    if apt_get(&[&install[..], &packages].concat()).is_err() {
        apt_get(&["update"])?;
        apt_get(&[&install[..], &packages].concat())?;
    }
    match missing.iter().find(|tool| !is_there(tool.program)) {
        Some(tool) => bail!("{} is still missing after installing {}", tool.program, tool.package),
        None => Ok(()),
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).exists())
}

/// Runs apt-get as root, or with sudo, and shows what it says only where it fails.
fn apt_get(arguments: &[&str]) -> Result<()> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"));
    let mut command = if is_root {
        Command::new("apt-get")
    } else {
        eprintln!("This needs root: running it with sudo.");
        let mut command = Command::new("sudo");
        command.arg("apt-get");
        command
    };
    eprintln!("apt-get {} …", arguments.join(" "));
    lab::run_quietly(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The kernel the guests are tested with, where the package sources have it.
const KERNEL_WANTED: &str = "linux-image-6.12.";

/// Downloads and unpacks the newest cloud kernel there is, 6.12 before others, into `folder`.
pub(crate) fn unpack_kernel(folder: &Path) -> Result<()> {
    let name = match newest_cloud_kernel()? {
        Some(name) if name.starts_with(KERNEL_WANTED) => name,
        // The lists may be of another day, or not be there at all.
        _ => {
            apt_get(&["update"])?;
            newest_cloud_kernel()?.context("the configured package sources have no cloud kernel for amd64")?
        }
    };
    let partial = folder.with_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial).context("make a folder")?;
    eprintln!("downloading {name}, the guest's kernel (it is only unpacked, not installed) …");
    let download =
        || lab::run_quietly(Command::new("apt-get").args(["download", &name]).current_dir(&partial));
    if download().is_err() {
        apt_get(&["update"])?;
        download()?;
    }
    let rows = std::fs::read_dir(&partial).context("list a folder")?;
    let package = rows
        .filter_map(|row| row.ok().map(|row| row.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.context("apt-get downloaded no package")?;
    lab::run_quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&partial))?;
    std::fs::remove_file(&package).context("remove the downloaded package")?;
    std::fs::rename(&partial, folder).context("name the kernel's folder")
}

fn newest_cloud_kernel() -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", "^linux-image-[0-9].*-cloud-amd64$"])
        .output()
        .context("run apt-cache")?;
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    names.sort_by_key(|name| (name.starts_with(KERNEL_WANTED), version(name)));
    Ok(names.pop())
}

fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}
