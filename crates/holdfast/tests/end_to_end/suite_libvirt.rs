//! VMs of libvirt, on an agent's socket and under the tap: two versions of it, each a site of its own.

use crate::stage::{SOON, Stage, same_bytes};
use crate::tap::protect;
use crate::tap_changes::wait_until_no_alerts;
use crate::tap_identity::wait_for_alert;
use lab::{
    Console, GuestFiles, Libvirt, LibvirtVersion, Ticks, Work, check_file_system, make_disk, read_file,
    wait_until,
};
use std::path::Path;
use std::time::Duration;

/// A domain that does its work on the disk of this element, and what else it has.
fn domain(work: Work, disk: &str, console: &Path, more: &str) -> String {
    let files = GuestFiles::find().unwrap();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
         <name>web</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
         <cmdline>console=ttyS0 panic=-1 quiet {}</cmdline></os>
         <cpu mode='maximum'/><on_reboot>destroy</on_reboot>
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disk}
         <serial type='file'><source path='{}' append='on'/></serial><memballoon model='none'/></devices>{more}</domain>",
        files.kernel.canonicalize().unwrap().display(),
        files.initrd.canonicalize().unwrap().display(),
        work.append(),
        console.display()
    )
}

const TARGET: &str = "<target dev='vda' bus='virtio'/></disk>";

/// A disk that is an export of an NBD socket.
fn on_socket(socket: &str) -> String {
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
         <source protocol='nbd' name='vda'><host transport='unix' socket='{socket}'/></source>{TARGET}"
    )
}

/// Has libvirt know the domain, and start it.
fn start(site: &Libvirt, stage: &Stage, xml: &str) {
    let path = stage.path("web.xml");
    std::fs::write(&path, xml).unwrap();
    site.virsh(&["define", "--validate", &path.display().to_string()]).unwrap();
    site.virsh(&["start", "web"]).unwrap();
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
    let path = stage.path("web.console");
    start(&sites[0], &stage, &domain(Work::Burst, &on_socket(&socket), &path, ""));
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

/// A domain under the tap, which its guest writes to.
struct Tapped {
    stage: Stage,
    site: Libvirt,
    image: std::path::PathBuf,
    console: Console,
}

impl Tapped {
    fn start(version: LibvirtVersion) -> Self {
        Self::start_with(version, |_, _| ())
    }

    /// The same, with whatever is done with the domain before it is protected.
    fn start_with(version: LibvirtVersion, before: impl FnOnce(&Stage, &Libvirt)) -> Self {
        let stage = Stage::set();
        let site = Libvirt::start(&stage.path("lv"), version).unwrap();
        let (image, path) = (stage.path("disk.raw"), stage.path("web.console"));
        make_disk(&image, 96 << 20).unwrap();
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
             <source file='{}'/>{TARGET}<controller type='scsi' model='virtio-scsi'/>",
            image.display()
        );
        let monitor = format!("unix:{},server=on,wait=off", stage.path("holdfast.qmp").display());
        let more = format!(
            "<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='{monitor}'/></qemu:commandline>"
        );
        start(&site, &stage, &domain(Work::Load, &disk, &path, &more));
        let mut console = Console::new(&path);
        console.wait_for("READY", Duration::from_secs(120)).unwrap();
        before(&stage, &site);
        protect(&stage, &stage.path("holdfast.qmp")).unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        let mut tapped = Self { stage, site, image, console };
        tapped.writes();
        tapped
    }

    fn last(&mut self) -> u64 {
        Ticks::reported(&mut self.console).unwrap().last().map_or(0, |tick| tick.number)
    }

    /// Waits until the guest has written some more records.
    fn writes(&mut self) {
        let before = self.last();
        wait_until("records", SOON, || Ok((self.last() > before + 5).then_some(()))).unwrap();
    }

    /// It is gone: that is told of.
    fn is_told_of(&self) {
        wait_for_alert(&self.stage, "VM web is not protected");
        self.stage.a.wait_for_state("web", "failed", SOON).unwrap();
    }

    /// It is there again: it is taken up by itself, and goes on.
    fn is_taken_up(&mut self) {
        self.stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        wait_until_no_alerts(&self.stage);
        self.writes();
    }

    /// Its newest image is its disk, with all that it has reported.
    fn ends_whole(mut self) {
        self.site.virsh(&["suspend", "web"]).unwrap();
        self.stage.drained("web");
        let reported = self.last();
        let copy = self.stage.copy_image("web", "latest", "image.raw");
        assert!(same_bytes(&copy, &self.image) && check_file_system(&copy).unwrap());
        let ticks = Ticks::parse(&read_file(&copy, "/ticks").unwrap());
        assert!(ticks.violations == 0 && ticks.last >= reported, "{ticks:?}, {reported} was reported");
    }
}

fn a_save_and_a_restore_are_told_of(version: LibvirtVersion) {
    let mut vm = Tapped::start(version);
    let file = vm.stage.path("web.save").display().to_string();
    vm.site.virsh(&["save", "web", &file]).unwrap();
    vm.is_told_of();
    vm.site.virsh(&["restore", &file]).unwrap();
    vm.is_taken_up();
    // As a host does with its VMs when it is shut down and started again.
    vm.site.virsh(&["managedsave", "web"]).unwrap();
    vm.is_told_of();
    vm.site.virsh(&["start", "web"]).unwrap();
    vm.is_taken_up();
    vm.ends_whole();
}

#[test]
#[ignore = "suite: libvirt"]
fn a_tapped_domain_of_the_installed_libvirt_is_told_of_while_it_is_saved_and_taken_up_restored() {
    a_save_and_a_restore_are_told_of(LibvirtVersion::System);
}

#[test]
#[ignore = "suite: libvirt"]
fn a_tapped_domain_of_libvirt_11_is_told_of_while_it_is_saved_and_taken_up_restored() {
    a_save_and_a_restore_are_told_of(LibvirtVersion::Eleven);
}

/// libvirt removes the nodes of a disk that it detaches; where the tap is in its way it says that it has, and does not try again.
fn a_detached_disk_leaves_nothing(version: LibvirtVersion) {
    let attach = |stage: &Stage, site: &Libvirt| {
        let second = stage.path("second.raw").display().to_string();
        // The guest's kernel has no say in what comes and goes there.
        let how = ["--driver", "qemu", "--subdriver", "raw", "--targetbus", "scsi", "--live"];
        site.virsh(&[&["attach-disk", "web", &second, "sda"][..], &how].concat()).unwrap();
    };
    let mut vm = Tapped::start_with(version, |stage, site| {
        stage.disk("second.raw", 8 << 20);
        attach(stage, site);
    });
    let second = vm.stage.path("second.raw");
    let is_open = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let files =
            processes.filter_map(|process| std::fs::read_dir(process.path().join("fd")).ok()).flatten();
        files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).any(|path| path == second)
    };
    assert_eq!(vm.stage.a.protected("web").unwrap()["disks"].as_array().unwrap().len(), 2);
    assert!(is_open(), "by the VM");
    vm.site.virsh(&["detach-disk", "web", "sda", "--live"]).unwrap();
    wait_for_alert(&vm.stage, "disk vdb is not protected any more: the VM has it no more");
    assert!(!is_open(), "the image of a disk that is gone is open still");
    vm.writes();
    // So libvirt can attach it again.
    attach(&vm.stage, &vm.site);
    vm.is_taken_up();
    vm.ends_whole();
}

#[test]
#[ignore = "suite: libvirt"]
fn a_disk_that_the_installed_libvirt_detaches_under_the_tap_leaves_nothing_in_the_vm() {
    a_detached_disk_leaves_nothing(LibvirtVersion::System);
}

#[test]
#[ignore = "suite: libvirt"]
fn a_disk_that_libvirt_11_detaches_under_the_tap_leaves_nothing_in_the_vm() {
    a_detached_disk_leaves_nothing(LibvirtVersion::Eleven);
}
