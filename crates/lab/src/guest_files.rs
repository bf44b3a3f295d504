//! The tiny guest: a Debian cloud kernel, its virtio modules, and a busybox initramfs made here.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is run as the guest's first process.
const INIT: &str = include_str!("init.sh");
/// The same of a guest that is a host.
const HOST: &str = include_str!("host.sh");
/// The same of a guest that asks its disk for one thing only.
const SERIAL: &str = include_str!("serial.sh");
/// The same of a guest that passes tokens on beside what it does.
const RELAY: &str = include_str!("relay.sh");

/// Kernel and initramfs of the guest.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// Where `cargo xtask` puts the guest, and what is unpacked for it.
pub(crate) fn guest_folder() -> PathBuf {
    match std::env::var_os("HOLDFAST_GUEST_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
    }
}

impl GuestFiles {
    /// The files that `cargo xtask` has made under `target/guest`.
    ///
    /// # Errors
    /// Where they are not there.
    pub fn find() -> Result<Self> {
        let folder = guest_folder();
        let files = Self { kernel: folder.join("kernel"), initrd: folder.join("initrd") };
        if !files.kernel.exists() || !files.initrd.exists() {
            bail!("no guest in {}: run `cargo xtask test`, which makes it", folder.display());
        }
        Ok(files)
    }

    /// Makes the files in `folder` out of an unpacked kernel package.
    ///
    /// # Errors
    /// Where something is missing in the package or on this machine.
    pub fn make(folder: &Path, package: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).context("make the guest's folder")?;
        let kernel = find(&package.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        let files = Self { kernel: folder.join("kernel"), initrd: folder.join("initrd") };
        std::fs::copy(&kernel, &files.kernel).context("copy the kernel")?;
        let mut archive = Archive::default();
        for name in ["bin", "dev", "proc", "sys", "mnt", "tmp", "etc", "run"] {
            archive.folder(name);
        }
        archive.file("init", INIT.as_bytes(), true);
        let mut loaded = Vec::new();
        for module in ["virtio_pci", "virtio_blk"] {
            add_module(&package.join("lib/modules"), module, &mut archive, &mut loaded)?;
        }
        archive.file("modules", (loaded.join("\n") + "\n").as_bytes(), false);
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        archive.copy("bin/busybox", Path::new(busybox.context("busybox is not installed")?))?;
        for tool in ["/sbin/e2fsck", "/sbin/mke2fs"] {
            archive.program(Path::new(tool))?;
        }
        let partial = folder.join("initrd.partial");
        std::fs::write(&partial, archive.finish()).context("write the initramfs")?;
        std::fs::rename(&partial, &files.initrd).context("name the initramfs")?;
        Ok(files)
    }

    /// Makes a second initramfs: the first with the kernel's own NBD client added, and what it needs.
    ///
    /// # Errors
    /// Where something is missing in the kernel's package or on this machine.
    pub fn add_nbd_client(&self, package: &Path) -> Result<()> {
        let mut archive = Archive::default();
        let mut loaded = Vec::new();
        for module in ["virtio_pci", "virtio_net", "nbd"] {
            add_module(&package.join("lib/modules"), module, &mut archive, &mut loaded)?;
        }
        archive.file("modules.nbd", (loaded.join("\n") + "\n").as_bytes(), false);
        archive.program(Path::new("/usr/sbin/nbd-client"))?;
        std::fs::write(self.with_nbd_client().initrd, self.followed_by(archive)?)
            .context("write the initramfs")
    }

    /// The same kernel, with the initramfs that has the kernel's NBD client.
    pub fn with_nbd_client(&self) -> Self {
        Self { initrd: self.initrd.with_extension("nbd"), ..self.clone() }
    }

    /// The same kernel, with an initramfs at `path` whose guest asks for its disk's serial number.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn with_serial(&self, path: &Path) -> Result<Self> {
        self.with_script(path, "serial.sh", SERIAL)
    }

    /// The same kernel, with an initramfs at `path` whose guest passes tokens on: see `relay.sh`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn with_relay(&self, path: &Path) -> Result<Self> {
        self.with_script(path, "relay.sh", RELAY)
    }

    fn with_script(&self, path: &Path, name: &str, script: &str) -> Result<Self> {
        let mut archive = Archive::default();
        archive.file(name, script.as_bytes(), true);
        std::fs::write(path, self.followed_by(archive)?).context("write the initramfs")?;
        Ok(Self { initrd: path.to_path_buf(), ..self.clone() })
    }

    /// The same kernel, with an initramfs at `path` that makes the guest a host: with the binary that has ublk, the
    /// modules it needs, and the folder of a site.
    ///
    /// # Errors
    /// Where something is missing in the kernel's package, or the site cannot be read.
    pub fn with_agent(&self, path: &Path, site: &Path) -> Result<Self> {
        let folder = self.initrd.parent().unwrap_or(Path::new("/"));
        let mut archive = Archive::default();
        let mut loaded = Vec::new();
        for module in ["virtio_net", "ublk_drv"] {
            add_module(&folder.join("kernel-package/lib/modules"), module, &mut archive, &mut loaded)?;
        }
        archive.file("modules.host", (loaded.join("\n") + "\n").as_bytes(), false);
        archive.file("host.sh", HOST.as_bytes(), true);
        let holdfast = folder.join("holdfast-ublk");
        archive.copy("bin/holdfast", &holdfast)?;
        archive.libraries_of(&holdfast)?;
        archive.tree("site", site)?;
        let initrd = path.to_path_buf();
        std::fs::write(&initrd, self.followed_by(archive)?).context("write the initramfs")?;
        Ok(Self { initrd, ..self.clone() })
    }

    /// The initramfs with another behind it: the kernel unpacks archives one after the other.
    fn followed_by(&self, archive: Archive) -> Result<Vec<u8>> {
        let mut bytes = std::fs::read(&self.initrd).context("read the initramfs")?;
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes.extend(archive.finish());
        Ok(bytes)
    }

    /// The VM's definition, TOML, with `append` added to the kernel's command line.
    pub fn definition(&self, append: &str) -> String {
        format!(
            "vcpus = 1\nmemory_mib = 256\naccelerator = \"tcg\"\nkernel = {:?}\ninitrd = {:?}\nappend = {:?}\n",
            self.kernel.display().to_string(),
            self.initrd.display().to_string(),
            format!("console=ttyS0 panic=-1 quiet {append}"),
        )
    }
}

/// The one file below `folder` whose name is wanted.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Result<PathBuf> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for row in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = row.context("list a folder")?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().and_then(|name| name.to_str()).is_some_and(wanted) {
                return Ok(path);
            }
        }
    }
    bail!("the kernel package has not what is looked for in {}", folder.display())
}

/// Puts a module into the archive, those it depends on before it, and its name behind theirs on `loaded`.
/// One that is not in the package is built into the kernel.
fn add_module(package: &Path, name: &str, archive: &mut Archive, loaded: &mut Vec<String>) -> Result<()> {
    let file = format!("{name}.ko");
    let of_it =
        |found: &str| found.strip_prefix(&file).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if loaded.iter().any(|known| known == name) {
        return Ok(());
    }
    let Ok(path) = find(package, of_it) else { return Ok(()) };
    let bytes = unpack(&path)?;
    for needed in depends(&bytes) {
        add_module(package, &needed, archive, loaded)?;
    }
    archive.file(&file, &bytes, false);
    loaded.push(name.to_owned());
    Ok(())
}

/// The modules that a module says it depends on, in its `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A module's bytes, whatever it is compressed with.
fn unpack(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return std::fs::read(path).context("read a kernel module"),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("run {tool}"))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// Runs a command; what it says is shown only where it fails.
///
/// # Errors
/// Where it fails, with what it said.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{command:?} ended with {}: {}", output.status, said.trim())
}

/// An initramfs in the kernel's own format, "newc" cpio.
/// <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    libraries: Vec<String>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Makes a folder and those it is in, once.
    fn folder(&mut self, name: &str) {
        if name.is_empty() || self.folders.iter().any(|known| known == name) {
            return;
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
        self.folders.push(name.to_owned());
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8], executable: bool) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(name, if executable { 0o100_755 } else { 0o100_644 }, content);
    }

    fn copy(&mut self, name: &str, path: &Path) -> Result<()> {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        self.file(name, &content, true);
        Ok(())
    }

    /// A folder of plain files, as `name`.
    fn tree(&mut self, name: &str, path: &Path) -> Result<()> {
        self.folder(name);
        for row in std::fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            let row = row.context("list a folder")?;
            let name = format!("{name}/{}", row.file_name().to_string_lossy());
            if row.file_type().context("look at a file")?.is_dir() {
                self.tree(&name, &row.path())?;
            } else {
                self.copy(&name, &row.path())?;
            }
        }
        Ok(())
    }

    /// A program with the libraries `ldd` names for it.
    fn program(&mut self, path: &Path) -> Result<()> {
        self.copy(path.to_string_lossy().trim_start_matches('/'), path)?;
        self.libraries_of(path)
    }

    fn libraries_of(&mut self, path: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(path).output().context("run ldd")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let name = library.trim_start_matches('/');
            if !self.libraries.iter().any(|known| known == name) {
                self.copy(name, Path::new(library))?;
                self.libraries.push(name.to_owned());
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
