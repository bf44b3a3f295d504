//! Two protected hosts of one site with three guests and one apart, the recovery side, and the links between them, all of which can be
//! harmed; and what has been done so far.

use super::chain::{self, CHAIN_BYTES, Relay};
use super::ledger::{LEDGER_BYTES, Ledger, VMS};
use super::noted::{Damaged, Seen};
use super::pledge::Pledge;
use crate::stage::{HOLDFAST, SOON};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Link, Site, Work, make_disk, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const GUEST_BYTES: u64 = 48 << 20;
/// What may wait for the link, so that an outage of seconds is more than it holds.
const BUFFER: &str = "1048576";
const SPILL: &str = "4194304";

/// Numbers by a seed.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    pub(super) fn sleep(&mut self, millis_max: u64) {
        std::thread::sleep(Duration::from_millis(self.below(millis_max + 1)));
    }
}

/// Changes a few bytes of a file somewhere in a range of it; says where.
pub(super) fn spoil(path: &Path, within: Range<u64>, dice: &mut Dice) -> Option<String> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    let end = within.end.min(file.metadata().ok()?.len());
    let at = within.start + dice.below(end.checked_sub(within.start)?.checked_sub(8)? + 1);
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).ok()?;
    file.write_all_at(&bytes.map(|byte| byte ^ 0x55), at).ok()?;
    file.sync_all().ok()?;
    Some(format!("{} at byte {at}", path.file_name()?.to_string_lossy()))
}

/// What was done and looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) kills: u64,
    pub(super) cuts: u64,
    /// Until buffer and spill were full.
    pub(super) outages: u64,
    pub(super) moves: u64,
    /// By what was damaged.
    pub(super) damages: BTreeMap<&'static str, u64>,
    /// VMs of which both sides were compared after files of the protected side were damaged.
    pub(super) verified: u64,
    /// Images whose maps were damaged and that were read afterwards.
    pub(super) overlays: u64,
    /// How often synchronous mode was switched off or on.
    pub(super) switches: u64,
    /// How often a journal's mode was changed.
    pub(super) turns: u64,
    pub(super) promises: u64,
    pub(super) latest: u64,
    pub(super) checkpoints: u64,
    /// Checkpoints that could not be opened or read, of a VM whose journal was damaged.
    pub(super) unreadable: u64,
    pub(super) file_systems: u64,
}

/// An agent, by its place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    First,
    Second,
    Recovery,
}

pub(super) const ALL: [Who; 3] = [Who::First, Who::Second, Who::Recovery];

pub(super) struct World {
    pub(super) first: Site,
    pub(super) second: Site,
    pub(super) recovery: Site,
    /// From the first host and from the second to the recovery side, and from the second host to the first.
    pub(super) links: [Link; 3],
    pub(super) ledger: Ledger,
    pub(super) pledge: Pledge,
    pub(super) relay: Relay,
    /// Of the three VMs, and of the pledge.
    pub(super) guests: Vec<Guest>,
    /// What of a journal was damaged on purpose, and nobody has looked for yet.
    pub(super) pending: Option<Damaged>,
    /// VMs whose files were damaged at the protected side, which both sides are to be compared for.
    pub(super) to_verify: BTreeSet<(Who, &'static str)>,
    pub(super) seen: Seen,
    pub(super) tally: Tally,
    pub(super) kills_due: u64,
    began: Instant,
    /// What the guests had told at the last look.
    told: [u64; 3],
    pub(super) folder: TempDir,
}

impl World {
    /// In which so many agents are to be killed.
    pub(super) fn make(kills_due: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, mut recovery) = lab::pair(Path::new(HOLDFAST), folder.path()).unwrap();
        let mut second = first.second_host(&folder.path().join("a2")).unwrap();
        // Segments that are full soon, so that there are sealed ones to be damaged.
        recovery.configure("[journal]\nsegment_bytes = 16777216\n").unwrap();
        let links = [recovery.stream_port, recovery.stream_port, first.stream_port];
        let links = links.map(|port| Link::to(port).unwrap());
        for site in [&mut first, &mut second, &mut recovery] {
            site.start_agent().unwrap();
        }
        let protect = |site: &Site, vm: &str, link: &Link, more: &[&str]| {
            make_disks(folder.path(), vm);
            let socket = protect(site, vm, folder.path(), link, more).unwrap();
            site.wait_for_state(vm, "journaling", SOON).unwrap();
            socket
        };
        let coordinator = links[2].peer();
        let joining = ["--group", "shop", "--coordinator", &coordinator];
        let sockets = [
            protect(&first, "one", &links[0], &["--group", "shop"]),
            protect(&second, "two", &links[1], &joining),
            protect(&second, "three", &links[1], &[&joining[..], &IN_SYNC[..4]].concat()),
        ];
        // Its replica is at the new end of its history from the beginning, so that there is something in it to be damaged.
        recovery.ask(&["journal", "set", "two", "--mode", "rollback"]).unwrap();
        let alone = protect(&first, "pledge", &links[0], &IN_SYNC);
        let (mut guests, lines) = boot(&folder, &sockets);
        guests.push(boot_alone(&folder, &alone));
        let consoles = VMS.map(|vm| folder.path().join(format!("{vm}.console")));
        Self {
            ledger: Ledger::begin(sockets, consoles),
            pledge: Pledge::begin(&alone, folder.path().join("pledge.console")),
            relay: Relay::begin(lines),
            first,
            second,
            recovery,
            links,
            guests,
            pending: None,
            to_verify: BTreeSet::new(),
            seen: Seen::default(),
            tally: Tally::default(),
            kills_due,
            began: lab::now(),
            told: [0; 3],
            folder,
        }
    }

    /// The VM `pledge` is protected anew, synchronously or not, and its guest started again.
    pub(super) fn protect_pledge(&mut self, in_sync: bool) {
        let more = if in_sync { &IN_SYNC[..] } else { &[] };
        let socket = protect(&self.first, "pledge", self.folder.path(), &self.links[0], more).unwrap();
        self.guests[PLEDGE] = boot_alone(&self.folder, &socket);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn site(&mut self, who: Who) -> &mut Site {
        match who {
            Who::First => &mut self.first,
            Who::Second => &mut self.second,
            Who::Recovery => &mut self.recovery,
        }
    }

    /// `kill -9` of an agent, which must not have ended by itself before.
    pub(super) fn kill(&mut self, who: Who) {
        let site = self.site(who);
        assert!(site.agent_runs().unwrap(), "{who:?} has ended by itself: {}", site.end_of_log());
        site.kill_agent().unwrap();
        self.tally.kills += 1;
        println!(
            "kill {} of {}: {who:?}, at {} s",
            self.tally.kills,
            self.kills_due,
            self.began.elapsed().as_secs()
        );
    }

    /// A clean stop of an agent.
    pub(super) fn stop(&mut self, who: Who) {
        self.site(who).stop_agent().unwrap();
    }

    /// Something of a VM was damaged.
    pub(super) fn damaged(&mut self, kind: &'static str, vm: &str, place: &str) {
        println!("  damaged {kind} of {vm}: {place}");
        *self.tally.damages.entry(kind).or_default() += 1;
    }

    /// What of a VM's journal was damaged, and nobody has looked for yet.
    pub(super) fn damaged_of(&self, vm: &str) -> Option<&Damaged> {
        self.pending.as_ref().filter(|damaged| damaged.vm == vm)
    }

    /// Every agent runs, and every link is whole.
    pub(super) fn mend(&mut self) {
        self.links.iter().for_each(Link::mend);
        for who in ALL {
            let site = self.site(who);
            if site.agent_pid().is_none() {
                site.start_agent().unwrap();
            }
            assert!(site.agent_runs().unwrap(), "{who:?} has ended by itself: {}", site.end_of_log());
        }
    }

    /// Where the recovery side keeps a VM's journal.
    pub(super) fn journal(&self, vm: &str) -> anyhow::Result<serde_json::Value> {
        self.recovery.ask(&["journal", "show", vm])
    }

    /// The folder of a VM's journal; none while it is not open.
    pub(super) fn folder_of(&self, vm: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.journal(vm).ok()?["folder"].as_str()?))
    }

    /// The guests must go on whatever is done to the agents.
    pub(super) fn guests_go_on(&mut self) {
        for (guest, vm) in self.guests.iter_mut().zip(["one", "two", "three", "pledge"]) {
            assert!(guest.is_running().unwrap(), "the guest of {vm} has ended: {}", guest.console.end());
        }
        let before = self.told;
        self.told = at_last(&format!("tokens that go on, from {before:?}"), || {
            let told = self.relay.told();
            Ok(told.iter().zip(before).all(|(now, before)| *now > before).then_some(told))
        });
    }
}

/// What is left of a test that fails is to be looked at.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            println!("everything is kept in {}", self.folder.path().display());
        }
    }
}

/// Synchronous, the last two only of a VM that its writer may wait for.
const IN_SYNC: [&str; 6] = ["--mode", "sync", "--sync-timeout", "2", "--on-timeout", "hold"];

/// Which of the guests it is.
pub(super) const PLEDGE: usize = 3;

/// The disks of a VM, each with its size.
const DISKS: [(&str, u64); 3] = [("vda", GUEST_BYTES), ("log", LEDGER_BYTES), ("chain", CHAIN_BYTES)];

/// Where the image of a disk is.
pub(super) fn image_of(folder: &Path, vm: &str, disk: &str) -> PathBuf {
    folder.join(format!("{vm}-{disk}.raw"))
}

fn make_disks(folder: &Path, vm: &str) {
    for (disk, bytes) in DISKS {
        File::create(image_of(folder, vm, disk)).unwrap().set_len(bytes).unwrap();
    }
    make_disk(&image_of(folder, vm, "vda"), GUEST_BYTES).unwrap();
}

fn protect(site: &Site, vm: &str, folder: &Path, link: &Link, more: &[&str]) -> anyhow::Result<String> {
    let disks = DISKS.map(|(disk, _)| format!("{disk}={}", image_of(folder, vm, disk).display()));
    let peer = link.peer();
    let mut arguments = vec!["vm", "protect", vm, "--peer", &peer, "--checkpoint-interval", "1"];
    arguments.extend(disks.iter().flat_map(|disk| ["--disk", disk]));
    arguments.extend(["--buffer", BUFFER, "--spill", SPILL]);
    let row = site.ask(&[&arguments, more].concat())?;
    Ok(row["socket"].as_str().unwrap().to_owned())
}

/// The three guests, and the serial line to each.
fn boot(folder: &TempDir, sockets: &[String; 3]) -> (Vec<Guest>, [UnixStream; 3]) {
    let files = GuestFiles::find().unwrap().with_relay(&folder.path().join("initrd")).unwrap();
    let started = [0, 1, 2].map(|at| start(folder, &files, &sockets[at], at));
    let (mut guests, mut lines) = (Vec::new(), Vec::new());
    for (mut guest, line) in started {
        guest.console.wait_for("READY", Duration::from_secs(180)).unwrap();
        guests.push(guest);
        lines.push(line);
    }
    (guests, lines.try_into().unwrap())
}

/// The guest of the pledge, which only keeps its records.
fn boot_alone(folder: &TempDir, socket: &str) -> Guest {
    let (files, work, disk) = (&GuestFiles::find().unwrap(), Work::Tick, GuestDisk::nbd(socket, "vda"));
    let folder = folder.path().to_path_buf();
    let mut guest =
        Guest::start(&GuestOptions { files, work, disk, more: &[], folder, name: "pledge" }).unwrap();
    guest.console.wait_for("READY", Duration::from_secs(180)).unwrap();
    guest
}

fn start(folder: &TempDir, files: &GuestFiles, socket: &str, at: usize) -> (Guest, UnixStream) {
    // One of them fills buffers, spills and segments; the others only keep their records.
    let work = Work::Relay { under_load: at == 0, own: at as u8 + 1 };
    let name = VMS[at];
    let line = folder.path().join(format!("{name}.line"));
    let chain = Guest::on_socket(socket, "chain").replace("node-name=disk", "node-name=chain");
    let serial = format!("unix:{},server=on,wait=on", line.display());
    let more =
        ["-serial", &serial, "-blockdev", &chain, "-device", "virtio-blk-pci,drive=chain"].map(str::to_owned);
    let disk = GuestDisk::nbd(socket, "vda");
    let folder = folder.path().to_path_buf();
    let guest = Guest::start(&GuestOptions { files, work, disk, more: &more, folder, name }).unwrap();
    (guest, chain::connect(&line))
}

/// Waits longer than for what is quick: an agent that was killed compares whole disks.
pub(super) fn at_last<T>(what: &str, ask: impl FnMut() -> anyhow::Result<Option<T>>) -> T {
    wait_until(what, Duration::from_secs(240), ask).unwrap()
}
