//! VMs of libvirt on an agent's socket: two versions of it, each a site of its own.

use crate::stage::{Stage, same_bytes};
use lab::{Console, GuestFiles, Libvirt, LibvirtVersion, Work, make_disk};
use std::path::Path;
use std::time::Duration;

/// A domain whose disk is an export of an NBD socket.
fn domain(files: &GuestFiles, socket: &str, console: &Path) -> String {
    format!(
        "<domain type='qemu'><name>web</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
         <cmdline>console=ttyS0 panic=-1 quiet {}</cmdline></os>
         <cpu mode='maximum'/><on_reboot>destroy</on_reboot>
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
         <disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
         <source protocol='nbd' name='vda'><host transport='unix' socket='{socket}'/></source>
         <target dev='vda' bus='virtio'/></disk>
         <serial type='file'><source path='{}'/></serial><memballoon model='none'/></devices></domain>",
        files.kernel.canonicalize().unwrap().display(),
        files.initrd.canonicalize().unwrap().display(),
        Work::Burst.append(),
        console.display()
    )
}

fn runs_on_the_agents_socket(version: LibvirtVersion, wanted: &str) {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    // Two at once, each with its own.
    let sites = ["lva", "lvb"].map(|name| Libvirt::start(&stage.path(name), version).unwrap());
    let known = sites[0].virsh(&["version", "--daemon"]).unwrap();
    assert!(known.contains(wanted), "{known}");
    let (xml, path) = (stage.path("web.xml"), stage.path("web.console"));
    std::fs::write(&xml, domain(&GuestFiles::find().unwrap(), &socket, &path)).unwrap();
    sites[0].virsh(&["define", "--validate", &xml.display().to_string()]).unwrap();
    sites[0].virsh(&["start", "web"]).unwrap();
    assert!(sites[0].virsh(&["list"]).unwrap().contains("web"));
    assert!(!sites[1].virsh(&["list", "--all"]).unwrap().contains("web"));
    let mut console = Console::new(&path);
    console.wait_for("FSCK CLEAN", Duration::from_secs(120)).unwrap();
    console.wait_for("DONE", Duration::from_secs(120)).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

#[test]
#[ignore = "suite: libvirt"]
fn a_domain_of_the_installed_libvirt_runs_on_the_agents_socket() {
    runs_on_the_agents_socket(LibvirtVersion::System, "9.0");
}

#[test]
#[ignore = "suite: libvirt"]
fn a_domain_of_libvirt_11_runs_on_the_agents_socket() {
    runs_on_the_agents_socket(LibvirtVersion::Eleven, "11.");
}
