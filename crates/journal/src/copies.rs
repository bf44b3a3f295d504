//! The two copies of the manifest, each in a file of its own: of a journal whose manifest cannot be read nothing can.
//!
//! Both say the same but while one takes the place of the one before: which is newer is told by the generation. A copy
//! that does not check, is not given by the disk or is not there costs nothing, and is made again out of the other.
//!
//! How both are replaced: (1) each new copy is written to a file of its own and synced; (2) the first is renamed over the
//! one before, then the second; (3) the folder is synced. A crash in (1) leaves both as they were; in (2) either may be
//! the new one already, which is whole, for (1) has ended: the higher generation is taken, and nobody relied on it yet;
//! after (3) both are the new ones.

use crate::manifest::{Manifest, ManifestError};
use crate::store::Store;
use std::io;

/// The files of the two copies. Up to version 3 there was the first only.
pub const NAMES: [&str; 2] = ["manifest", "manifest-2"];
/// Nothing longer is read as a manifest, in bytes.
const BYTES_MAX: u64 = 256 << 20;

/// What the copies say.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    /// Copies that could not be taken, and why.
    pub(crate) spoilt: Vec<String>,
    /// Whether they are to be written anew.
    pub(crate) differ: bool,
}

/// Whether there is a copy of a manifest in a folder.
///
/// # Errors
/// As the file system says.
pub fn is_journal(store: &dyn Store) -> io::Result<bool> {
    for name in NAMES {
        if store.exists(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads both copies and takes the newer one that is whole.
pub(crate) fn load(store: &dyn Store) -> Result<Loaded, ManifestError> {
    choose(NAMES.map(|name| read(store, name)))
}

fn read(store: &dyn Store, name: &str) -> Result<Manifest, ManifestError> {
    if !store.exists(name)? {
        return Err(ManifestError::Missing);
    }
    // As the disk has it, and not memory: a scrub would find nothing.
    let file = store.open_direct(name, false)?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(BYTES_MAX)).expect("at most 256 MiB")];
    file.read_at(0, &mut bytes)?;
    Manifest::decode(&bytes)
}

fn choose(copies: [Result<Manifest, ManifestError>; 2]) -> Result<Loaded, ManifestError> {
    match copies {
        [Ok(first), Ok(second)] => {
            let differ = first.generation != second.generation;
            let manifest = if second.generation > first.generation { second } else { first };
            Ok(Loaded { manifest, spoilt: Vec::new(), differ })
        }
        [Ok(manifest), Err(error)] => Ok(only(manifest, NAMES[1], &error)),
        [Err(error), Ok(manifest)] => Ok(only(manifest, NAMES[0], &error)),
        [Err(first), Err(second)] => Err(neither(first, second)),
    }
}

fn only(manifest: Manifest, other: &str, error: &ManifestError) -> Loaded {
    // Older versions had one copy, and a crash may have come between the first two that were ever written.
    let is_expected = matches!(error, ManifestError::Missing) && manifest.generation <= 1;
    let spoilt = if is_expected { Vec::new() } else { vec![spoilt(other, error)] };
    Loaded { differ: manifest.generation > 0, manifest, spoilt }
}

fn spoilt(name: &str, error: &ManifestError) -> String {
    let what = match error {
        ManifestError::Missing => "it is missing".to_owned(),
        ManifestError::Damaged { what } => what.clone(),
        ManifestError::Io(error) => format!("cannot be read: {error}"),
        other => other.to_string(),
    };
    format!("{name}: {what}")
}

/// Why there is nothing to go by, where neither copy could be taken: of what may pass by, or was written by another
/// program, rather than of what is damaged.
fn neither(first: ManifestError, second: ManifestError) -> ManifestError {
    match (first, second) {
        (ManifestError::Missing, other) | (other, ManifestError::Missing) => other,
        (error @ ManifestError::Io(_), _) | (_, error @ ManifestError::Io(_)) => error,
        (error @ ManifestError::Version { .. }, _) | (_, error @ ManifestError::Version { .. }) => error,
        (ManifestError::Damaged { what }, ManifestError::Damaged { what: second }) => {
            let what = if what == second { what } else { format!("{what}; its second copy: {second}") };
            ManifestError::Damaged { what }
        }
    }
}

impl Manifest {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong.
    pub fn load(store: &dyn Store) -> Result<Self, ManifestError> {
        load(store).map(|loaded| loaded.manifest)
    }

    /// Replaces both copies; once this returns, what they say survives a crash. Where it fails, the generation is taken
    /// all the same: one of the copies may have it.
    pub(crate) fn save(&mut self, store: &dyn Store) -> io::Result<()> {
        self.generation += 1;
        let bytes = self.encode();
        let new = NAMES.map(|name| format!("{name}.new"));
        for name in &new {
            let file = store.open(name, true)?;
            file.set_len(0)?;
            file.write_at(0, &bytes)?;
            file.sync_data()?;
        }
        for (new, name) in new.iter().zip(NAMES) {
            store.rename(new, name)?;
        }
        store.sync_folder()
    }
}
