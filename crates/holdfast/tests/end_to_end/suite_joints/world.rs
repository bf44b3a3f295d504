//! Two protected hosts of one site with three guests, the recovery side, and the links between them, all of which can be
//! harmed; and what has been done so far.

use super::ledger::{LEDGER_BYTES, Ledger, VMS};
use super::pledge::Pledge;
use crate::stage::{HOLDFAST, SOON};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Link, Site, Work, make_disk, wait_until};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
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

/// What was done and looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) kills: u64,
    pub(super) cuts: u64,
    pub(super) outages: u64,
    pub(super) moves: u64,
    pub(super) damages: u64,
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
    pub(super) guests: Vec<Guest>,
    /// VMs whose journals were damaged on purpose.
    pub(super) damaged: BTreeSet<&'static str>,
    pub(super) tally: Tally,
    pub(super) folder: TempDir,
}

impl World {
    pub(super) fn make() -> Self {
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
            let disk = |name: &str, bytes: u64| {
                let path = folder.path().join(format!("{vm}-{name}.raw"));
                std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
                path
            };
            let (system, log) = (disk("vda", GUEST_BYTES), disk("log", LEDGER_BYTES));
            make_disk(&system, GUEST_BYTES).unwrap();
            let disks = [format!("vda={}", system.display()), format!("log={}", log.display())];
            let peer = link.peer();
            let mut arguments = vec!["vm", "protect", vm, "--peer", &peer, "--checkpoint-interval", "1"];
            arguments
                .extend(["--disk", &disks[0], "--disk", &disks[1], "--buffer", BUFFER, "--spill", SPILL]);
            let row = site.ask(&[&arguments, more].concat()).unwrap();
            site.wait_for_state(vm, "journaling", SOON).unwrap();
            row["socket"].as_str().unwrap().to_owned()
        };
        let coordinator = links[2].peer();
        let joining = ["--group", "shop", "--coordinator", &coordinator];
        let in_sync = ["--mode", "sync", "--sync-timeout", "2"];
        let sockets = [
            protect(&first, "one", &links[0], &["--group", "shop"]),
            protect(&second, "two", &links[1], &joining),
            protect(&second, "three", &links[1], &[&joining[..], &in_sync].concat()),
        ];
        let alone = protect(&first, "pledge", &links[0], &[&in_sync[..], &["--on-timeout", "hold"]].concat());
        let guests = sockets.iter().zip(VMS).map(|(socket, vm)| boot(&folder, vm, socket)).collect();
        let consoles = VMS.map(|vm| folder.path().join(format!("{vm}.console")));
        Self {
            ledger: Ledger::begin(sockets, consoles),
            pledge: Pledge::begin(&alone),
            first,
            second,
            recovery,
            links,
            guests,
            damaged: BTreeSet::new(),
            tally: Tally::default(),
            folder,
        }
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

    /// The guests must go on whatever is done to the agents.
    pub(super) fn guests_go_on(&mut self) {
        for (guest, vm) in self.guests.iter_mut().zip(VMS) {
            assert!(guest.is_running().unwrap(), "the guest of {vm} has ended: {}", guest.console.end());
        }
    }
}

fn boot(folder: &TempDir, vm: &str, socket: &str) -> Guest {
    let files = GuestFiles::find().unwrap();
    // One of them fills buffers, spills and segments; the others only keep their records.
    let work = if vm == "one" { Work::Load } else { Work::Tick };
    let disk = GuestDisk::nbd(socket, "vda");
    let folder = folder.path().to_path_buf();
    let mut guest =
        Guest::start(&GuestOptions { files: &files, work, disk, more: &[], folder, name: vm }).unwrap();
    guest.console.wait_for("READY", Duration::from_secs(180)).unwrap();
    guest
}

/// Waits longer than for what is quick: an agent that was killed compares whole disks.
pub(super) fn at_last<T>(what: &str, ask: impl FnMut() -> anyhow::Result<Option<T>>) -> T {
    wait_until(what, Duration::from_secs(240), ask).unwrap()
}
