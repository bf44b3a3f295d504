//! The agent's own small files: each is JSON, replaced atomically, in a folder one agent holds alone.

use crate::lock_holder;
use crate::one_at_a_time::OneAtATime;
use anyhow::{Context, Result, bail};
use journal::{FsStore, LockError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use types::RunNumber;

/// The agent's state folder, locked while this lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    store: FsStore,
    /// The run that the folder has: the next start begins above it.
    reached: Mutex<RunNumber>,
    /// One at a time replaces a file, since two would write the same partial one. Whoever replaces another does not wait.
    saving: OneAtATime<PathBuf>,
    /// The folders whose own names are durable.
    durable: Mutex<BTreeSet<PathBuf>>,
}

/// Every file says which version of its form it has.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct RunFile {
    run: u32,
}

impl StateDir {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let store = FsStore::open(root).map_err(|error| {
            let holder = match &error {
                LockError::InUse { path } => lock_holder::told(&path.join("lock")),
                LockError::Io { .. } => return anyhow::Error::new(error).context("open state folder"),
            };
            anyhow::Error::new(error).context(format!(
                "open state folder: only one agent may use it; stop the other one or give this one its own state_dir: {holder}"
            ))
        })?;
        let (reached, durable) = (Mutex::new(RunNumber(0)), Mutex::default());
        Ok(Self { store, reached, saving: OneAtATime::default(), durable })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.store.root().join(name)
    }

    /// Raises the run number, durably, before anything draws a sequence.
    pub(crate) fn next_run(&self) -> Result<RunNumber> {
        let last = self.load::<RunFile>("run.json")?.map_or(0, |file| file.run);
        let run = last + 1;
        if run > RunNumber::MAX.0 {
            bail!("the agent has started {last} times, which is as often as its sequences have room for");
        }
        self.save("run.json", &RunFile { run })?;
        *self.reached.lock().expect("a panic aborts the process") = RunNumber(run);
        Ok(RunNumber(run))
    }

    /// A counter was lifted into a later run: the agent's next one is to be above that too, durably, before anybody
    /// hears of a sequence of it. Or a journal would have what this agent no longer knows to be its own.
    pub(crate) fn reach_run(&self, run: RunNumber) -> Result<()> {
        let mut reached = self.reached.lock().expect("a panic aborts the process");
        if run > *reached {
            self.save("run.json", &RunFile { run: run.0 })?;
            *reached = run;
        }
        Ok(())
    }

    /// Reads a file; none where it does not exist.
    pub(crate) fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        let file: Versioned<T> =
            serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))?;
        if file.version != VERSION {
            bail!("{} has version {}, this agent reads {VERSION}", path.display(), file.version);
        }
        Ok(Some(file.content))
    }

    /// Replaces a file; once this returns, the new one survives a crash.
    pub(crate) fn save<T: Serialize>(&self, name: &str, content: &T) -> Result<()> {
        #[cfg(test)]
        death::may_come();
        let saved = self.replace(name, content);
        #[cfg(test)]
        death::may_come();
        saved
    }

    fn replace<T: Serialize>(&self, name: &str, content: &T) -> Result<()> {
        let path = self.path(name);
        let folder = path.parent().context("a state file has a folder")?;
        let _turn = self.saving.wait(vec![path.clone()]);
        let durable = || self.durable.lock().expect("a panic aborts the process");
        if !durable().contains(folder) {
            make_durably(folder).with_context(|| format!("make {}", folder.display()))?;
            durable().insert(folder.to_path_buf());
        }
        let partial = path.with_extension("partial");
        let bytes = serde_json::to_vec_pretty(&Versioned { version: VERSION, content })?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&partial, &path)?;
            File::open(folder)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file, where it is there; once this returns, no crash brings it back.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        #[cfg(test)]
        death::may_come();
        let path = self.path(name);
        let is_gone = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        };
        match std::fs::remove_file(&path) {
            Err(error) if !is_gone(&error) => return Err(error).with_context(|| format!("remove {name}")),
            _ => {}
        }
        // Also where it is gone: whoever removed it may not have come to this.
        let folder = path.parent().context("a state file has a folder")?;
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            Err(error) if !is_gone(&error) => {
                Err(error).with_context(|| format!("sync {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// Reads every `.json` of a folder, each by itself.
    pub(crate) fn load_each<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<Result<T>>> {
        Ok(self.load_named(folder)?.into_iter().map(|(_, loaded)| loaded).collect())
    }

    /// Reads every `.json` of a folder, each by itself and with its name before `.json`: of one that cannot be read
    /// it is all that is known.
    pub(crate) fn load_named<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<(String, Result<T>)>> {
        let path = self.path(folder);
        let rows = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("list {}", path.display()))?,
        };
        let mut names = Vec::new();
        for row in rows {
            let name = row.with_context(|| format!("list {}", path.display()))?.file_name();
            names.extend(name.to_str().filter(|name| name.ends_with(".json")).map(str::to_owned));
        }
        names.sort();
        let load = |name: &String| {
            let loaded = self.load(&format!("{folder}/{name}")).transpose()?;
            Some((name.trim_end_matches(".json").to_owned(), loaded))
        };
        Ok(names.iter().filter_map(load).collect())
    }
}

/// Makes a folder where it is not there; its name survives a crash either way.
fn make_durably(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Sixteen random bytes from the system.
pub fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("the system has no random bytes: {errno}"),
        }
    }
    bytes
}

/// Which boot of the host this is.
pub(crate) fn boot_id() -> Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id: types::Incarnation = digits.parse().map_err(|_| anyhow::anyhow!("boot id {text:?} is no id"))?;
    Ok(id.to_bytes())
}

/// A state folder, in a test. Where one before was just dropped, a process that another test is starting has its lock until it
/// runs.
#[cfg(test)]
pub(crate) fn open_in_test(folder: &Path) -> StateDir {
    for _ in 0..200 {
        if let Ok(state) = StateDir::open(folder) {
            return state;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    StateDir::open(folder).expect("nobody else has it")
}

/// Has a thread die at a given place, as `kill -9` has the whole agent: before and after each file that is saved, and
/// before one is removed.
#[cfg(test)]
pub(crate) mod death {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::path::Path;

    thread_local! {
        static PLACES_LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    struct Dead;

    /// What `work` returns, unless it has died at the place that is this many places ahead.
    pub(crate) fn at<T>(places: usize, work: impl FnOnce() -> T) -> Option<T> {
        PLACES_LEFT.set(Some(places));
        let done = catch_unwind(AssertUnwindSafe(work));
        PLACES_LEFT.set(None);
        match done {
            Ok(done) => Some(done),
            Err(panic) if panic.is::<Dead>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// More places to die at than any operation has.
    const PLACES_MAX: usize = 200;
    /// Of the places of a second life every so many are tried, others for each place of the first.
    const STRIDE: usize = 3;

    /// Plays two lives of an agent, in a folder of their own each time: the first dies at every place in turn, and for each
    /// of them the second at its own. Each says whether it has died; `check` gets what is left, and how it came to that.
    pub(crate) fn everywhere(
        first: impl Fn(&Path, usize) -> bool,
        second: impl Fn(&Path, usize) -> bool,
        check: impl Fn(&Path, &str),
    ) {
        for place in 0..PLACES_MAX {
            let (mut died, mut again) = (true, place % STRIDE);
            loop {
                let folder = tempfile::tempdir().expect("a folder for the test");
                died &= first(folder.path(), place);
                let died_again = second(folder.path(), again);
                check(folder.path(), &format!("died at {place}, then at {again}"));
                if !died_again {
                    break;
                }
                again += STRIDE;
            }
            if !died {
                return;
            }
        }
        panic!("there is no end to it");
    }

    /// A place at which a test may have the agent die.
    pub(crate) fn may_come() {
        match PLACES_LEFT.get() {
            Some(0) => {
                PLACES_LEFT.set(None);
                resume_unwind(Box::new(Dead));
            }
            left => PLACES_LEFT.set(left.map(|left| left - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_above_every_one_that_a_counter_was_lifted_to() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let first = state.next_run().unwrap();
        state.reach_run(RunNumber(50)).unwrap();
        state.reach_run(first).unwrap();
        drop(state);
        assert_eq!(StateDir::open(folder.path()).unwrap().next_run().unwrap(), RunNumber(51));
    }

    #[test]
    fn whoever_finds_the_folder_taken_is_told_which_process_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let refused = format!("{:#}", StateDir::open(folder.path()).unwrap_err());
        let own = format!("process {} (", std::process::id());
        assert!(refused.contains(&own) && refused.contains("only one agent may use it"), "{refused}");
        drop(state);
    }

    #[test]
    fn a_file_that_hangs_on_its_disk_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.save("some/first.json", &RunFile { run: 1 }).unwrap();
        // Whoever opens a pipe to write waits until somebody reads it.
        let pipe = state.path("some/hangs.partial");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        std::thread::scope(|scope| {
            let (state, (tell, told)) = (&state, std::sync::mpsc::channel());
            let hangs = scope.spawn(move || state.save("some/hangs.json", &RunFile { run: 2 }).is_ok());
            while state.saving.try_take(vec![state.path("some/hangs.json")]).is_some() {}
            scope.spawn(move || {
                state.save("some/other.json", &RunFile { run: 3 }).unwrap();
                let _ = tell.send(());
            });
            let other = told.recv_timeout(std::time::Duration::from_secs(60));
            // A pipe cannot be synced.
            let reader = File::open(&pipe).unwrap();
            assert!(!hangs.join().unwrap());
            drop(reader);
            other.expect("whoever saves another file waits");
        });
    }

    #[test]
    fn a_file_that_many_save_at_once_is_always_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        std::thread::scope(|scope| {
            for run in 1..=8 {
                let state = &state;
                scope.spawn(move || {
                    for _ in 0..50 {
                        state.save("some/file.json", &RunFile { run }).unwrap();
                        assert!(state.load::<RunFile>("some/file.json").unwrap().is_some());
                    }
                });
            }
        });
    }
}
