//! Benches: figures asked of the product, each measured beside a reference in the same run, in rounds that
//! take turns, as medians and ratios. Never shipped; `cargo xtask bench` runs it.

mod clock;
mod disk;
mod figures;
mod journal;
mod load;
mod splitter;
mod stream;

use anyhow::{Context, Result, bail};
use clap::Parser;
use figures::{Figure, Findings};
use std::path::PathBuf;

/// What to measure, and how long.
#[derive(Debug, Parser)]
struct Cli {
    /// Which bench; all of them if none is named.
    name: Option<String>,
    /// A short form: smaller, fewer rounds. Its figures say less.
    #[arg(long)]
    quick: bool,
    /// One JSON object as the last line.
    #[arg(long)]
    json: bool,
    /// Only figures whose section holds this.
    #[arg(long)]
    only: Option<String>,
    /// Where to work; the disk below it is what is measured.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Opens the journals below a folder and says what that costs: a process of its own, for the bench.
    #[arg(long, hide = true)]
    open_all: Option<PathBuf>,
    /// Runs an agent: a process of its own, for the bench.
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
    /// Writes to a vhost-user socket: a process of its own, for the bench.
    #[arg(long, hide = true, num_args = 5)]
    generate: Vec<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(folder) = &cli.open_all {
        return journal::scale::open_all(folder);
    }
    if !cli.generate.is_empty() {
        return splitter::run_generator(&cli.generate);
    }
    agent::memory::keep_freed();
    if let Some(config) = &cli.agent {
        return stream::run_agent(config);
    }
    let benches: [(&'static str, Section); 3] =
        [("journal", journal::run), ("splitter", splitter::run), ("stream", stream::run)];
    let wanted = |name: &str| cli.name.as_deref().is_none_or(|wanted| wanted == name);
    if !benches.iter().any(|(name, _)| wanted(name)) {
        bail!("no bench {:?}: there are `journal`, `splitter` and `stream`", cli.name.unwrap_or_default());
    }
    for (name, bench) in benches.into_iter().filter(|(name, _)| wanted(name)) {
        let folder = cli.folder.join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let folder = folder.canonicalize().context("find the bench's folder")?;
        let run = Run { folder: folder.clone(), quick: cli.quick, only: cli.only.clone() };
        let figures = bench(&run)?;
        let findings = Findings { bench: name, machine: disk::machine(), figures };
        eprintln!("{name} on {}", findings.machine);
        for figure in &findings.figures {
            eprintln!("  {}", figure.line());
        }
        if cli.json {
            println!("{}", serde_json::to_string(&findings).context("encode the figures")?);
        }
        std::fs::remove_dir_all(&folder).context("remove the bench's folder")?;
    }
    Ok(())
}

/// A bench, or a part of one.
type Section = fn(&Run) -> Result<Vec<Figure>>;

/// How a bench is to run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) folder: PathBuf,
    pub(crate) quick: bool,
    pub(crate) only: Option<String>,
}

impl Run {
    /// How many rounds take turns.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    /// `full`, or in the short form an eighth of it.
    pub(crate) fn scaled(&self, full: u64) -> u64 {
        if self.quick { full / 8 } else { full }
    }

    /// Measures every section that is wanted, one after the other.
    pub(crate) fn sections(&self, sections: &[(&str, Section)]) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (name, section) in sections.iter().filter(|(name, _)| self.wants(name)) {
            eprintln!("measuring {name} …");
            figures.extend(section(self).with_context(|| format!("measure {name}"))?);
        }
        Ok(figures)
    }

    fn wants(&self, section: &str) -> bool {
        self.only.as_ref().is_none_or(|only| section.contains(only.as_str()))
    }
}
