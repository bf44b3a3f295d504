//! Newer versions of packages than this Debian has, unpacked beside the installed ones and never installed: a folder
//! each under `target/guest`, with wrappers in its `bin/`. apt works on lists and a cache of its own in a partial folder,
//! so that the system's own sources, lists and packages stay as they are, and no root is needed.

use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A set of packages that goes into one folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backport {
    /// The folder's name, which the lab looks for.
    pub(crate) name: &'static str,
    /// What to ask apt for.
    packages: &'static [&'static str],
    needs: Needs,
    /// The programs that get a wrapper.
    programs: &'static [&'static str],
}

/// What comes with the packages that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// What they need and this machine lacks, or has too old.
    Fetched,
    /// Nothing: what they need of others is as this Debian has it.
    Installed,
}

/// QEMU 10.0, with its tools.
pub(crate) const QEMU_TEN: Backport = Backport {
    name: "qemu-10",
    packages: &["qemu-system-x86", "qemu-utils"],
    needs: Needs::Fetched,
    programs: &["qemu-system-x86_64", "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"],
};

/// libvirt 11.3, which the lab lays over `/usr` in a namespace: apt would have the init system replaced as well.
pub(crate) const LIBVIRT_ELEVEN: Backport = Backport {
    name: "libvirt-11",
    packages: &[
        "libvirt0",
        "libvirt-clients",
        "libvirt-common",
        "libvirt-daemon",
        "libvirt-daemon-common",
        "libvirt-daemon-driver-interface",
        "libvirt-daemon-driver-network",
        "libvirt-daemon-driver-nodedev",
        "libvirt-daemon-driver-nwfilter",
        "libvirt-daemon-driver-qemu",
        "libvirt-daemon-driver-secret",
        "libvirt-daemon-driver-storage",
        "libvirt-daemon-lock",
        "libvirt-daemon-log",
    ],
    needs: Needs::Installed,
    programs: &[],
};

/// The release this Debian is, and where its newer packages are.
const RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

impl Backport {
    /// Makes the folder below `folder`, unless it is there.
    pub(crate) fn ensure(&self, folder: &Path) -> Result<()> {
        let wanted = folder.join(self.name);
        if wanted.exists() {
            return Ok(());
        }
        eprintln!("downloading {} from {BACKPORTS} (unpacked, not installed) …", self.packages.join(", "));
        let partial = folder.join(format!("{}.partial", self.name));
        let _ = std::fs::remove_dir_all(&partial);
        std::fs::create_dir_all(&partial).context("make a folder")?;
        let apt = Apt::new(&folder.join("apt"))?;
        for package in apt.download(self.packages, self.needs)? {
            lab::run_quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&partial))?;
        }
        std::fs::remove_dir_all(&apt.folder).context("remove what apt has left")?;
        std::fs::create_dir(partial.join("bin")).context("make the wrappers' folder")?;
        for program in self.programs {
            let path = partial.join("bin").join(program);
            std::fs::write(&path, wrapper(program)).context("write a wrapper")?;
            let run_bit = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, run_bit).context("make a wrapper a program")?;
        }
        std::fs::rename(&partial, &wanted).context("name the folder")
    }
}

/// Runs the unpacked program with the libraries, modules and firmware that came with it. By its own name, `exec`: the
/// process that was started is the program.
fn wrapper(program: &str) -> String {
    let firmware = match program.starts_with("qemu-system-") {
        true => "-L \"$here/usr/share/qemu\" -L \"$here/usr/share/seabios\" -L /usr/lib/ipxe/qemu ",
        false => "",
    };
    format!(
        "#!/bin/sh\n\
         here=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
         export LD_LIBRARY_PATH=\"$here/{LIBRARIES}\" QEMU_MODULE_DIR=\"$here/{LIBRARIES}/qemu\"\n\
         exec \"$here/usr/bin/{program}\" {firmware}\"$@\"\n"
    )
}

/// apt with sources, lists and a cache of its own.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path) -> Result<Self> {
        let _ = std::fs::remove_dir_all(folder);
        for name in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(name)).context("make apt's folders")?;
        }
        let mirror = mirror()?;
        let sources = folder.join("sources.list");
        let lines = [RELEASE, BACKPORTS].map(|suite| format!("deb {mirror} {suite} main\n"));
        std::fs::write(&sources, lines.concat()).context("write apt's sources")?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let options = vec![
            option("Dir::Etc::SourceList", &sources),
            option("Dir::Etc::SourceParts", &folder.join("none")),
            option("Dir::State::Lists", &folder.join("lists")),
            option("Dir::Cache", &folder.join("cache")),
            // What is locked otherwise belongs to the system's packages, which are only read.
            "Debug::NoLocking=1".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        Ok(Self { folder: folder.to_path_buf(), options })
    }

    fn download(&self, packages: &[&str], needs: Needs) -> Result<Vec<PathBuf>> {
        self.run(&["update"])?;
        let archives = self.folder.join("cache/archives");
        let how: &[&str] = match needs {
            Needs::Fetched => &["install", "-y", "--download-only", "--no-install-recommends"],
            Needs::Installed => &["download"],
        };
        self.run(&[how, &["-t", BACKPORTS], packages].concat())?;
        let rows = std::fs::read_dir(&archives).context("list what apt downloaded")?;
        let found: Vec<PathBuf> = rows
            .filter_map(|row| row.ok().map(|row| row.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        match found.is_empty() {
            true => bail!("apt downloaded nothing for {}", packages.join(", ")),
            false => Ok(found),
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        for option in &self.options {
            command.args(["-o", option]);
        }
        // It downloads to where it is.
        command.current_dir(self.folder.join("cache/archives"));
        lab::run_quietly(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    }
}

/// Where this machine has Debian from, out of its configured sources.
fn mirror() -> Result<String> {
    let only = ["Identifier: Packages", "Component: main"];
    let release = format!("Release: {RELEASE}");
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE)"])
        .args(only)
        .arg(release)
        .output()
        .context("run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().map(str::to_owned);
    first.with_context(|| format!("the configured package sources have no Debian {RELEASE}"))
}
