//! 750 journals with 1500 volumes in one process: memory, and what they cost while nothing happens.

use super::{SETTINGS, create, keep_up, meta, reopen};
use crate::Run;
use crate::figures::{Figure, Goal};
use crate::load::{Draw, Stream};
use anyhow::{Context, Result};
use journal::Settings;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const JOURNALS: u64 = 750;
const IDLE: Duration = Duration::from_secs(10);

/// What a process that has opened all journals says.
#[derive(Debug, Serialize, Deserialize)]
struct Cost {
    resident_mib: f64,
    idle_percent: f64,
}

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let root = run.folder.join("scale");
    let count = run.scaled(JOURNALS);
    let settings = Settings { segment_bytes: 1 << 20, ..SETTINGS };
    let mut draw = Draw::new(5);
    for number in 0..count {
        let journal = create(&root.join(number.to_string()), 2, 100 << 30, settings)?;
        let mut stream = Stream::begin();
        // Three sealed segments and an open one with a thousand writes of 4 KiB.
        for _ in 0..4 {
            for _ in 0..250 {
                stream.write(draw.below(100 << 18) << 12, draw.noise(4096));
            }
            journal.append(vec![stream.batch()], meta(stream.last().raw())).context("append")?;
        }
        keep_up(&journal, stream.last().raw(), 1)?;
    }
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program).arg("--open-all").arg(&root).output().context("run a process")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cost: Cost = serde_json::from_slice(&output.stdout).context("read what it says")?;
    let name = format!("{count} journals with {} volumes open", count * 2);
    Ok(vec![
        Figure::alone(&format!("{name}, resident"), &[cost.resident_mib], "MiB", Goal::AtMost(1024.0)),
        Figure::alone(
            &format!("{name}, of one processor while idle"),
            &[cost.idle_percent],
            "%",
            Goal::AtMost(2.0),
        ),
    ])
}

/// Opens all journals below a folder, looks something up in each, keeps them up as an agent does, and
/// prints what that costs.
pub(crate) fn open_all(root: &Path) -> Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .context("raise the limit of files")?;
    let settings = Settings { segment_bytes: 1 << 20, ..SETTINGS };
    let mut journals = Vec::new();
    for row in std::fs::read_dir(root).context("list journals")? {
        let journal = reopen(&row.context("list journals")?.path(), settings)?;
        journal.read_at(types::DiskIndex(0), types::WriteSeq::MAX, 0, &mut [0; 4096]).context("read")?;
        journals.push(journal);
    }
    let resident_mib = resident_mib()?;
    let before = processor_seconds();
    for second in 0..IDLE.as_secs() {
        for journal in &journals {
            keep_up(journal, second, 1)?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let idle_percent = (processor_seconds() - before) / IDLE.as_secs_f64() * 100.0;
    println!("{}", serde_json::to_string(&Cost { resident_mib, idle_percent }).context("encode")?);
    Ok(())
}

fn resident_mib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().context("a number of KiB")?;
    Ok(kib / 1024.0)
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
