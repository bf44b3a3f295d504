//! The manifest: the small state of a journal, replaced atomically.
//!
//! ```text
//! 0   [4]  magic "HFJM"     4   u32  version      8   u32  body length    12  u32  CRC-32C of the body
//! 16  ..   body, JSON
//! ```
//!
//! A replacement is written to `manifest.new`, made durable, renamed over `manifest`, and the folder
//! made durable: a crash at any of these leaves the old one or the new one.

use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::io;

const MAGIC: [u8; 4] = *b"HFJM";
/// 1: the first.
const VERSION: u32 = 1;
const NAME: &str = "manifest";
const NAME_NEW: &str = "manifest.new";

/// The small state of a journal. Numbers and ids as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub vm: String,
    pub vm_name: String,
    pub disks: Vec<DiskEntry>,
    /// Nothing of a lower epoch is accepted.
    pub epoch: u64,
    /// The replica holds every write at or below.
    pub applied: u64,
    /// No cut below can be opened: a fold up to here has begun, and may have changed the replica already.
    /// Equal to `applied` once it is done, unless one to further up had failed before.
    pub retired_below: u64,
    /// Whether writes are missing at `applied`, so that no cut is consistent until a sync ends.
    pub gap_at_applied: bool,
    /// Where the stream stood at the end of the last segment that was folded.
    pub folded: StreamPoint,
    /// Oldest first; the last one may be open.
    pub segments: Vec<SegmentInfo>,
    pub next_segment: u64,
}

/// Where a stream stood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPoint {
    pub last_seq: u64,
    pub watermark: u64,
    pub incarnation: Option<String>,
}

/// A disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    pub name: String,
    pub size_bytes: u64,
}

/// A segment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    pub number: u64,
    /// Hexadecimal, 32 digits.
    pub incarnation: String,
    /// Where it ends and the last sequence in it, once nothing more will be written to it.
    pub sealed: Option<Sealed>,
}

/// The end of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub bytes: u64,
    pub last_seq: u64,
    /// When its newest batch came, microseconds since 1970 by this host's clock.
    pub newest_at: i64,
}

impl SegmentInfo {
    pub(crate) fn file_name(number: u64) -> String {
        format!("segment-{number:08}")
    }
}

/// Why there is no manifest to go by.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("no manifest: not a journal folder, or its creation was cut short")]
    Missing,
    #[error("manifest damaged: {what}")]
    Damaged { what: String },
    #[error("manifest of format version {found}, this program reads {VERSION}")]
    Version { found: u32 },
    #[error("cannot read or write the manifest")]
    Io(#[from] io::Error),
}

impl Manifest {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong.
    pub fn load(store: &dyn Store) -> Result<Self, ManifestError> {
        if !store.exists(NAME)? {
            return Err(ManifestError::Missing);
        }
        let file = store.open(NAME, false)?;
        let mut bytes = vec![0; usize::try_from(file.len()?.min(64 << 20)).expect("at most 64 MiB")];
        file.read_at(0, &mut bytes)?;
        Self::decode(&bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged { what: what.to_owned() };
        if bytes.len() < 16 || bytes[..4] != MAGIC {
            return Err(damaged("the magic does not match"));
        }
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if number(4) != VERSION {
            return Err(ManifestError::Version { found: number(4) });
        }
        let body = &bytes[16..];
        if body.len() != number(8) as usize || crc32c::crc32c(body) != number(12) {
            return Err(damaged("its length or checksum does not match"));
        }
        serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("strings, numbers and lists");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Replaces the manifest; once this returns, the new one survives a crash.
    pub(crate) fn save(&self, store: &dyn Store) -> io::Result<()> {
        let bytes = self.encode();
        let file = store.open(NAME_NEW, true)?;
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync_data()?;
        store.rename(NAME_NEW, NAME)?;
        store.sync_folder()
    }
}
