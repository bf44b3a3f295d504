//! The main job, for a newcomer to see: a VM is protected, its site is lost, it runs at the other.

use crate::packages;
use crate::prepare::{debug_binary, guest, release_binary, target};
use crate::report::Steps;
use anyhow::{Context, Result, bail};
use clap::Args;
use lab::{
    Console, Guest, GuestDisk, GuestFiles, GuestOptions, Site, Ticks, Work, check_file_system, copy_image,
    make_disk, pair, read_file, wait_until,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const VM: &str = "shop";
const TAG: &str = "before the disaster";
const DISK_BYTES: u64 = 256 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// End by itself; status 0 only if every check held.
    #[arg(long)]
    exit: bool,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
    /// How long the guest works before and after the tag, in seconds each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Use a debug build, which is made sooner.
    #[arg(long)]
    debug: bool,
}

/// What the demo found out.
struct Findings {
    writes: u64,
    checkpoints: u64,
    ticks_written: u64,
    ticks_recovered: u64,
    rpo_seconds: f64,
    image_open_seconds: f64,
    rto_seconds: f64,
    order_violations: u64,
    fsck_clean: bool,
    tagged_exact: bool,
}

/// The stage: two sites, the guest at A.
struct Stage {
    steps: Steps,
    folder: PathBuf,
    a: Site,
    b: Site,
    guest: Guest,
}

/// The last tick that was durable when the tag was asked for, and the first that cannot be in it.
struct Tagged {
    at_least: u64,
    at_most: u64,
}

impl Demo {
    pub(crate) fn for_ci() -> Self {
        Self { exit: true, json: true, seconds: 5, debug: true }
    }

    pub(crate) fn run(&self) -> Result<()> {
        let steps = Steps::begin();
        steps.say("looking for what is needed");
        packages::ensure(packages::BUILD)?;
        let files = guest()?;
        steps.say(if self.debug { "building Holdfast (debug)" } else { "building Holdfast (release)" });
        let holdfast = if self.debug { debug_binary()? } else { release_binary()? };
        let folder = target().join("demo");
        stop_leftovers(&folder);
        let _ = std::fs::remove_dir_all(&folder);
        let mut stage = Stage::set(steps, &holdfast, &files, folder)?;
        let findings = stage.play(Duration::from_secs(self.seconds))?;
        findings.tell();
        if self.json {
            println!("{}", findings.to_json());
        }
        if self.exit {
            stage.b.ask(&["failover", "rollback", "--group", VM])?;
            return if findings.all_hold() { Ok(()) } else { bail!("a check did not hold: see above") };
        }
        stage.leave_running(&holdfast)
    }
}

impl Stage {
    /// Two sites and a protected VM that works.
    fn set(steps: Steps, holdfast: &Path, files: &GuestFiles, folder: PathBuf) -> Result<Self> {
        steps.say("making sites A and B: each its own authority, agent, folders and ports");
        let (mut a, mut b) = pair(holdfast, &folder)?;
        a.start_agent()?;
        b.start_agent()?;
        let disk = folder.join("a/shop.raw");
        make_disk(&disk, DISK_BYTES)?;
        let definition = folder.join("a/shop.toml");
        std::fs::write(&definition, files.definition(&Work::Tick.append()))
            .context("write the VM's definition")?;
        steps.say("protecting VM shop: its raw image at A, its journal at B, a checkpoint every second");
        let vm = a.ask(&[
            "vm",
            "protect",
            VM,
            "--disk",
            &format!("vda={}", disk.display()),
            "--peer",
            &b.peer(),
            "--definition",
            &definition.display().to_string(),
            "--checkpoint-interval",
            "1",
        ])?;
        let socket = vm["socket"].as_str().context("the VM's socket")?.to_owned();
        a.wait_for_state(VM, "journaling", BOOT_LIMIT)?;
        steps.say("initial sync done; starting the guest at A on the agent's socket");
        let guest = Guest::start(&GuestOptions {
            files,
            work: Work::Tick,
            disk: GuestDisk::nbd(&socket, "vda"),
            more: &[],
            folder: folder.join("a"),
            name: "guest",
        })?;
        Ok(Self { steps, folder, a, b, guest })
    }

    fn play(&mut self, spell: Duration) -> Result<Findings> {
        self.guest.console.wait_for("READY", BOOT_LIMIT)?;
        self.steps.say("the guest writes numbered, checksummed, fsynced records");
        self.work(spell)?;
        let tagged = self.tag()?;
        self.work(spell)?;
        let killed_at = self.disaster()?;
        let ticks = Ticks::reported(&mut self.guest.console)?;
        let written = ticks.last().map_or(0, |tick| tick.number);
        self.steps.say(&format!("site A is lost: kill -9 of VM and agent, after record {written}"));

        let before = self.b.recovered(VM)?;
        let asked_at = lab::now();
        let failover = self.b.ask(&["failover", "start", "--group", VM, "--at", "latest"])?;
        self.steps.say(&format!(
            "failed over to the tail, {}: image open, VM started",
            failover["cut"].as_str().unwrap_or("?")
        ));
        let mut console = Console::new(&self.folder.join(format!("b/run/guests/{VM}/console")));
        let (ready_at, _) = console.wait_for("READY", BOOT_LIMIT)?;
        let fsck_clean = console.lines()?.iter().any(|(_, line)| line == "FSCK CLEAN");
        let (_, report) = console.wait_for("LAST ", BOOT_LIMIT)?;
        let (recovered, gaps) = parse_report(&report)?;
        self.steps.say(&format!("the guest is up at B, its last record is {recovered} of {written}"));
        let lost_from = ticks.iter().find(|tick| tick.number > recovered);
        let rpo_seconds = lost_from.map_or(0.0, |tick| (killed_at - tick.seen_at).as_secs_f64());
        let tagged_exact = self.look_at_tag(&tagged)?;
        Ok(Findings {
            writes: before["writes"].as_u64().context("writes")?,
            checkpoints: before["checkpoints"].as_u64().context("checkpoints")?,
            ticks_written: written,
            ticks_recovered: recovered,
            rpo_seconds,
            image_open_seconds: failover["image_open_seconds"].as_f64().context("image_open_seconds")?,
            rto_seconds: (ready_at - asked_at).as_secs_f64(),
            order_violations: gaps,
            fsck_clean,
            tagged_exact,
        })
    }

    /// Lets the guest work and shows it.
    fn work(&mut self, spell: Duration) -> Result<()> {
        let started = lab::now();
        loop {
            let done = started.elapsed().min(spell);
            let ticks = Ticks::reported(&mut self.guest.console)?;
            let count = ticks.last().map_or(0, |tick| tick.number);
            self.steps.progress(&format!("{count} records"), done, spell);
            if done == spell {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn last_tick(&mut self) -> Result<u64> {
        Ok(Ticks::reported(&mut self.guest.console)?.last().map_or(0, |tick| tick.number))
    }

    fn tag(&mut self) -> Result<Tagged> {
        let at_least = self.last_tick()?;
        self.a.ask(&["checkpoint", "tag", "--group", VM, TAG])?;
        // A record may be on the disk before the console says so, but never the one after it.
        let at_most = self.last_tick()? + 1;
        self.steps.say(&format!("tagged a checkpoint {TAG:?} at record {at_least}"));
        Ok(Tagged { at_least, at_most })
    }

    fn disaster(&mut self) -> Result<Instant> {
        let at = lab::now();
        self.guest.kill()?;
        self.a.kill_agent()?;
        Ok(at)
    }

    /// Opens the tagged checkpoint read-only beside the running VM and counts what is in it.
    fn look_at_tag(&mut self, tagged: &Tagged) -> Result<bool> {
        let image = self.b.ask(&["image", "open", "--vm", VM, "--at", TAG])?;
        let copy = self.folder.join("tagged.raw");
        copy_image(image["socket"].as_str().context("the image's socket")?, "vda", &copy)?;
        let clean = check_file_system(&copy)?;
        let ticks = Ticks::parse(&read_file(&copy, "/ticks")?);
        self.b.ask(&["image", "close", image["id"].as_str().context("the image's id")?])?;
        std::fs::remove_file(&copy).context("remove the copy")?;
        let exact =
            clean && ticks.violations == 0 && (tagged.at_least..=tagged.at_most).contains(&ticks.last);
        self.steps.say(&format!(
            "the tagged checkpoint, opened beside the running VM, ends with record {} ({})",
            ticks.last,
            if exact { "exactly those before the tag" } else { "NOT those before the tag" }
        ));
        Ok(exact)
    }

    /// Leaves both sites running and says how to look around.
    fn leave_running(mut self, holdfast: &Path) -> Result<()> {
        self.a.start_agent()?;
        wait_until("site A to be fenced", BOOT_LIMIT, || {
            Ok((self.a.protected(VM)?["state"] == "fenced").then_some(()))
        })?;
        self.steps.say("site A has come back and was fenced: B has the higher epoch");
        let at = |site: &Site| format!("{} --socket {}", holdfast.display(), site.api_socket().display());
        let (a, b) = (at(&self.a), at(&self.b));
        println!("\nBoth sites are running. Look around:");
        for command in ["status", "vm show shop"] {
            println!("  {a} {command}");
        }
        let commands = [
            "status".to_owned(),
            "checkpoint list --vm shop".to_owned(),
            format!("image open --vm shop --at '{TAG}'"),
            "failover list".to_owned(),
            "failover rollback --group shop".to_owned(),
        ];
        for command in commands {
            println!("  {b} {command}");
        }
        println!("  tail -f {}", self.folder.join("b/run/guests/shop/console").display());
        println!("End everything with: pkill -9 -f {}", self.folder.display());
        self.a.leave_running();
        self.b.leave_running();
        Ok(())
    }
}

impl Findings {
    fn all_hold(&self) -> bool {
        self.fsck_clean
            && self.tagged_exact
            && self.order_violations == 0
            && self.ticks_recovered > 0
            && self.ticks_recovered <= self.ticks_written + 1
    }

    fn tell(&self) {
        let lost = self.ticks_written.saturating_sub(self.ticks_recovered);
        eprintln!();
        eprintln!("  {} writes and {} checkpoints in the journal", self.writes, self.checkpoints);
        eprintln!("  lost:  {lost} of {} records, {:.2} s (RPO)", self.ticks_written, self.rpo_seconds);
        eprintln!("  took:  {:.1} ms to open the image", self.image_open_seconds * 1000.0);
        eprintln!("         {:.1} s from the command to a working guest (RTO)", self.rto_seconds);
        eprintln!("  order: {} violations", self.order_violations);
        eprintln!("  e2fsck: {}", if self.fsck_clean { "nothing wrong" } else { "NOT clean" });
        eprintln!("  tagged checkpoint: {}", if self.tagged_exact { "exact" } else { "NOT exact" });
    }

    fn to_json(&self) -> Value {
        json!({
            "writes": self.writes,
            "checkpoints": self.checkpoints,
            "ticks_written": self.ticks_written,
            "ticks_recovered": self.ticks_recovered,
            "rpo_seconds": self.rpo_seconds,
            "image_open_seconds": self.image_open_seconds,
            "rto_seconds": self.rto_seconds,
            "order_violations": self.order_violations,
            "fsck_clean": self.fsck_clean,
            "tagged_exact": self.tagged_exact,
        })
    }
}

/// `N gaps G` of the guest's report.
fn parse_report(report: &str) -> Result<(u64, u64)> {
    let mut words = report.split(' ');
    let last = words.next().and_then(|word| word.parse().ok());
    let gaps = words.nth(1).and_then(|word| word.parse().ok());
    last.zip(gaps).with_context(|| format!("the guest's report {report:?}"))
}

/// Ends what an earlier demo left running in `folder`.
fn stop_leftovers(folder: &Path) {
    let pattern = folder.display().to_string();
    // pkill finds nothing where nothing was left.
    let _ = std::process::Command::new("pkill").args(["-9", "-f", &pattern]).status();
}
