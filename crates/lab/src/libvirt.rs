//! A whole privileged libvirtd of a site's own, in a namespace: its own folders, networks and host UUID, its socket
//! reachable from outside. Two of them on one machine know nothing of each other, as on two hosts.
//!
//! Its `/dev` has no KVM: where the device is there and guests do not run by it, libvirt looks for seconds at each
//! question for what it can do.
//!
//! Where a newer libvirt lies over the installed one, its folder of modules stands alone: libvirtd loads whatever it finds
//! there and ends with the first module of another version, and the installed version has some that come in packages of
//! their own now.

use crate::clock::wait_until;
use crate::guest_files::guest_folder;
use crate::namespace::Namespace;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

const READY_LIMIT: Duration = Duration::from_secs(60);

/// Which libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibvirtVersion {
    /// The installed one: 9.0 on Debian 12.
    System,
    /// 11.3, which `cargo xtask test --suite libvirt` has unpacked.
    Eleven,
}

/// Where libvirtd has its modules, below `/usr`.
const MODULES: &str = "lib/x86_64-linux-gnu/libvirt";

/// A running libvirtd. Its VMs end with it.
#[derive(Debug)]
pub struct Libvirt {
    namespace: Namespace,
    folder: PathBuf,
    daemon: std::process::Child,
}

/// `$H` is the site's folder, `$ETC` where its configuration is from, `$USR` what lies over `/usr`, if anything does,
/// and `$MODULES` where libvirtd's are below it.
const SETUP: &str = r#"
for name in etc run lib cache log dev; do mkdir -p "$H/$name"; done
cp -a "$ETC/." "$H/etc/"
printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = [ ]\nnamespaces = [ ]\n' > "$H/etc/qemu.conf"
printf 'host_uuid = "%s"\nauth_unix_rw = "none"\n' "$(cat /proc/sys/kernel/random/uuid)" > "$H/etc/libvirtd.conf"
ip link set lo up
if [ -n "$USR" ]; then
    mount -t overlay overlay -o "lowerdir=$USR:/usr" /usr
    mount --bind "$USR/$MODULES" "/usr/$MODULES"
fi
mount -t tmpfs -o mode=755 dev "$H/dev"
mkdir -p "$H/dev/pts" "$H/dev/shm" "$H/dev/net"
for node in null zero full random urandom tty ptmx net/tun; do
    [ -e "/dev/$node" ] || continue
    touch "$H/dev/$node"
    mount --bind "/dev/$node" "$H/dev/$node"
done
ln -s /proc/self/fd "$H/dev/fd"
ln -s /proc/self/fd/0 "$H/dev/stdin"
ln -s /proc/self/fd/1 "$H/dev/stdout"
ln -s /proc/self/fd/2 "$H/dev/stderr"
mount --bind /dev/pts "$H/dev/pts"
mount -t tmpfs shm "$H/dev/shm"
mount --rbind "$H/dev" /dev
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/libvirt
mount --bind "$H/etc" /etc/libvirt
mount --bind "$H/run" /run/libvirt
for name in lib cache log; do mount --bind "$H/$name" "/var/$name/libvirt"; done
"#;

impl Libvirt {
    /// Starts one in a folder, which is made.
    ///
    /// # Errors
    /// Where it does not answer; the error holds its log.
    pub fn start(folder: &Path, version: LibvirtVersion) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let unpacked = guest_folder().join("libvirt-11");
        let (etc, usr) = match version {
            LibvirtVersion::System => (PathBuf::from("/etc/libvirt"), String::new()),
            LibvirtVersion::Eleven if unpacked.exists() => {
                let unpacked = unpacked.canonicalize().context("find libvirt 11")?;
                (unpacked.join("etc/libvirt"), unpacked.join("usr").display().to_string())
            }
            LibvirtVersion::Eleven => {
                bail!("no libvirt 11 in {}: run `cargo xtask test --suite libvirt`", unpacked.display())
            }
        };
        let setup = format!("ETC='{}'\nUSR='{usr}'\nMODULES='{MODULES}'\n{SETUP}", etc.display());
        let namespace = Namespace::start(folder, &setup)?;
        let log = File::create(folder.join("libvirtd.log")).context("make libvirtd's log")?;
        let mut daemon = namespace.command("/usr/sbin/libvirtd");
        let daemon = daemon.stdout(log.try_clone().context("share the log")?).stderr(log);
        let daemon = daemon.spawn().context("start libvirtd; is it installed?")?;
        let mut site = Self { namespace, folder: folder.to_path_buf(), daemon };
        wait_until("libvirtd's answer", READY_LIMIT, || {
            if let Some(status) = site.daemon.try_wait().context("ask for libvirtd")? {
                let log = std::fs::read_to_string(site.folder.join("libvirtd.log")).unwrap_or_default();
                bail!("libvirtd ended with {status}: {log}");
            }
            Ok(site.virsh(&["list"]).ok())
        })?;
        Ok(site)
    }

    /// Where a client from outside of the namespace connects to.
    pub fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.folder.join("run/libvirt-sock").display())
    }

    /// Runs virsh in the site; what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let output = self.namespace.command("virsh").args(arguments).output().context("run virsh")?;
        if !output.status.success() {
            bail!("virsh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The site's host.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
