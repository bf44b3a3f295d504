//! A guest's serial console: its lines, and when each was seen.

use crate::clock::{now, wait_until};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A console that a hypervisor writes to a file.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    read: u64,
    partial: String,
    lines: Vec<(Instant, String)>,
}

impl Console {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), read: 0, partial: String::new(), lines: Vec::new() }
    }

    /// Every line so far, with when it was first seen.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn lines(&mut self) -> Result<&[(Instant, String)]> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(&self.lines),
            other => other.with_context(|| format!("read {}", self.path.display()))?,
        };
        let mut bytes = Vec::new();
        let read = file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut bytes));
        read.with_context(|| format!("read {}", self.path.display()))?;
        let seen_at = now();
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        self.read += bytes.len() as u64;
        while let Some(end) = self.partial.find('\n') {
            let line = self.partial[..end].trim().to_owned();
            self.partial.drain(..=end);
            self.lines.push((seen_at, line));
        }
        Ok(&self.lines)
    }

    /// Waits for a line that begins with `start`; the rest of it and when it was seen.
    ///
    /// # Errors
    /// Where it does not come in time; the error holds the end of the console.
    pub fn wait_for(&mut self, start: &str, limit: Duration) -> Result<(Instant, String)> {
        let found = wait_until(&format!("console line {start:?}"), limit, || {
            let lines = self.lines()?;
            let hit =
                lines.iter().find_map(|(at, line)| Some((*at, line.strip_prefix(start)?.trim().to_owned())));
            Ok(hit)
        });
        found.with_context(|| self.end())
    }

    /// The last lines, for an error.
    pub fn end(&self) -> String {
        let from = self.lines.len().saturating_sub(25);
        let lines: Vec<_> = self.lines[from..].iter().map(|(_, line)| line.as_str()).collect();
        format!("the console ends with:\n{}", lines.join("\n"))
    }
}
