//! The manifest: the small state of a journal, replaced atomically, in two copies (`copies.rs`).
//!
//! ```text
//! 0   [4]  magic "HFJM"     4   u32  version      8   u32  body length
//! 12  u32  CRC-32C of bytes 0–11 and of the body; up to version 3 of the body
//! 16  ..   body, JSON
//! ```

use crate::cover::LogKind;
use serde::{Deserialize, Serialize};
use std::io;
use types::{Incarnation, WriteSeq};

const MAGIC: [u8; 4] = *b"HFJM";
/// 6: what is lost in pieces. 5: checksums beside the replicas. 4: two copies. 3: the demand for a resync stands in a field of its own. 2: both logs, runs, checkpoint files, pins. 1: the first, with segments only.
const VERSION: u32 = 6;
/// The oldest version that is read.
const VERSION_MIN: u32 = 2;

/// The small state of a journal. Numbers and ids as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Raised each time it is replaced: which of two copies is newer. 0 of a version that had one copy.
    #[serde(default)]
    pub generation: u64,
    pub vm: String,
    pub vm_name: String,
    pub disks: Vec<DiskEntry>,
    /// Nothing of a lower epoch is accepted.
    pub epoch: u64,
    /// The replica holds every write at or below.
    pub applied: u64,
    /// No cut below can be opened. At or above `applied` while a fold without before-images goes on,
    /// which may have changed the replica already; below it as far as the undo log reaches.
    pub retired_below: u64,
    /// The undo log holds whole steps of before-images up to here, but for those that were retired.
    #[serde(default)]
    pub before_images_upto: u64,
    /// Where writes are missing, as of the end of the last sealed segment.
    pub gaps: Vec<GapEntry>,
    /// Where only checkpoints are consistent, because writes were left out that others overwrite before the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<GapEntry>,
    /// Acknowledged writes from here on were found damaged, as of the end of the last sealed segment: nothing but a
    /// stream that begins anew is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub must_resync: Option<u64>,
    /// Bytes that are lost as of some cuts, as of the end of the last sealed segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostEntry>,
    /// Where the stream stood at the end of the last segment that was dropped.
    pub base: StreamPoint,
    pub redo: Log,
    pub undo: Log,
    /// Microseconds during which the journal was kept up: what ages are measured by.
    #[serde(default)]
    pub age_clock: i64,
    /// Checkpoints of sealed segments, oldest first.
    pub checkpoints: Vec<CheckpointFile>,
    /// The number of the next run or checkpoint file.
    pub next_file: u64,
    /// Words of tagged checkpoints in those files.
    pub tags: Vec<TagEntry>,
    pub pins: Vec<PinEntry>,
    pub next_pin: u64,
    /// What was found damaged and contained.
    pub damage: Vec<DamageEntry>,
    /// When all of it was last read and found whole, microseconds since 1970 by this host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrubbed_at: Option<i64>,
}

/// One of the two logs: segments and the runs over them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Oldest first; the last one may be open.
    pub segments: Vec<SegmentInfo>,
    /// Oldest first; each segment with a footer is in one.
    pub runs: Vec<RunInfo>,
    pub next_segment: u64,
    /// Pages of all segments there ever were: where the next one's count begins.
    pub next_page: u64,
}

/// Writes are missing at or above `begin` and below `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapEntry {
    pub begin: u64,
    pub end: Option<u64>,
}

/// Bytes of a disk that cannot be known as of cuts at or above `from` and below `until`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostEntry {
    pub disk: u16,
    pub start: u64,
    pub len: u64,
    pub from: u64,
    /// None as long as nothing was written over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// Where a stream stood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPoint {
    pub last_seq: u64,
    pub watermark: u64,
    pub incarnation: Option<String>,
    /// When the last checkpoint was taken at which nothing was missing, in microseconds since 1970; thinning
    /// goes by it.
    #[serde(default)]
    pub checkpoint_at: Option<i64>,
}

/// A disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    pub name: String,
    pub size_bytes: u64,
    /// Below, every block of the replica has its checksum, unless that says otherwise; above, those that were written.
    #[serde(default)]
    pub summed_below: u64,
}

/// A segment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    pub number: u64,
    /// Hexadecimal, 32 digits.
    pub incarnation: String,
    pub base_page: u64,
    /// Microseconds since 1970 by this host's clock.
    pub created_at: i64,
    /// Where it ends, once nothing more will be written to it.
    pub sealed: Option<Sealed>,
}

/// The end of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Where the batches end.
    pub bytes: u64,
    pub point: StreamPoint,
    /// When its newest batch came, microseconds since 1970 by this host's clock.
    pub newest_at: i64,
    /// What the age clock said when it was known to be sealed; none until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aged_from: Option<i64>,
    /// The footer behind the batches, once it is written.
    pub footer: Option<RunInfo>,
}

/// A run: a segment's footer, or a file merged from several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    pub level: u32,
    /// The file of its own; none for a footer.
    pub file: Option<u64>,
    pub first_segment: u64,
    pub last_segment: u64,
    /// Where it begins in its file.
    pub at: u64,
    pub bytes: u64,
    pub entries: u64,
    pub first_seq: u64,
    pub last_seq: u64,
}

/// A file of checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    pub number: u64,
    pub stamp: u32,
    pub pages: u32,
    pub rows: u64,
    pub first_cut: u64,
    pub last_cut: u64,
    /// Times are labels: the least and the greatest in the file.
    pub first_at: i64,
    pub last_at: i64,
    /// Whether there is a second copy: older versions wrote one, to which the scrub adds the other.
    #[serde(default)]
    pub is_double: bool,
}

/// A person's words for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagEntry {
    pub cut: u64,
    pub tag: String,
    pub taken_at: i64,
    /// VMs the group had; `u16::MAX`, as many as no group has, where an older version wrote it.
    #[serde(default = "unknown_members")]
    pub members: u16,
}

/// A cut that must stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinEntry {
    pub id: u64,
    pub owner: String,
    pub cut: u64,
    /// Microseconds since 1970 by this host's clock; none for as long as its owner wants.
    pub expires_at: Option<i64>,
    /// What the age clock says then; it decides where it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_age: Option<i64>,
}

/// Damage that was found: cuts from `from_seq` to `to_seq` may miss writes, or what it cost is in [`Manifest::lost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageEntry {
    pub what: String,
    pub from_seq: u64,
    /// The sequence of the sync that made it good; none while it is not.
    pub to_seq: Option<u64>,
    /// Whether the index still knows what lay there.
    #[serde(default)]
    pub indexed: bool,
    /// Whether all that it cost is told in pieces.
    #[serde(default)]
    pub in_pieces: bool,
    /// It stands for so many places, of which nothing is told any more but that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}

impl DamageEntry {
    /// Whether a cut misses something by it that no index knows any more.
    pub(crate) fn hides_from(&self, cut: WriteSeq) -> bool {
        !self.indexed && self.from_seq <= cut.raw() && self.to_seq.is_none_or(|to| to > cut.raw())
    }
}

impl SegmentInfo {
    pub(crate) fn file_name(&self, kind: LogKind) -> String {
        segment_name(kind, self.number)
    }

    /// Its index, once it was ended and that is on the disk.
    pub(crate) fn footer(&self) -> Option<&RunInfo> {
        self.sealed.as_ref()?.footer.as_ref()
    }
}

pub(crate) fn segment_name(kind: LogKind, number: u64) -> String {
    match kind {
        LogKind::Redo => format!("segment-{number:08}"),
        LogKind::Undo => format!("undo-{number:08}"),
    }
}

/// The file of a disk's replica.
pub(crate) fn replica_name(disk: &str) -> String {
    format!("replica/{disk}.raw")
}

impl RunInfo {
    pub(crate) fn file_name(&self, kind: LogKind) -> String {
        match self.file {
            Some(number) => format!("run-{number:08}"),
            None => segment_name(kind, self.first_segment),
        }
    }

    /// Whether it is an index of the segment of this number, or of others and that one.
    pub(crate) fn covers(&self, segment: u64) -> bool {
        (self.first_segment..=self.last_segment).contains(&segment)
    }
}

fn unknown_members() -> u16 {
    u16::MAX
}

impl CheckpointFile {
    /// Its two copies.
    pub(crate) fn file_names(&self) -> [String; 2] {
        let first = format!("checkpoints-{:08}", self.number);
        let second = format!("{first}-2");
        [first, second]
    }
}

impl Log {
    /// The sealed segments' bytes, footers included.
    pub(crate) fn sealed_bytes(&self) -> u64 {
        let sealed = self.segments.iter().filter_map(|segment| segment.sealed.as_ref());
        sealed.map(|sealed| sealed.bytes + sealed.footer.as_ref().map_or(0, |footer| footer.bytes)).sum()
    }

    /// Bytes of merged runs.
    pub(crate) fn merged_bytes(&self) -> u64 {
        self.runs.iter().filter(|run| run.file.is_some()).map(|run| run.bytes).sum()
    }

    /// The segment a page lies in, and its first page.
    pub(crate) fn segment_of(&self, page: u64) -> Option<&SegmentInfo> {
        let past = self.segments.partition_point(|segment| segment.base_page <= page);
        self.segments.get(past.checked_sub(1)?)
    }
}

impl StreamPoint {
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation.as_ref().and_then(|text| text.parse().ok())
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

/// The checksum of a manifest, which has its head already.
fn checksum(version: u32, bytes: &[u8]) -> u32 {
    let head = if version < 4 { 0 } else { crc32c::crc32c(&bytes[..12]) };
    crc32c::crc32c_append(head, &bytes[16..])
}

impl Manifest {
    /// What is wrong with an undo log whose last whole step ends at `reaches`, if it should go further.
    pub(crate) fn missing_before_images(&self, reaches: WriteSeq) -> Option<String> {
        let upto = self.before_images_upto();
        let is_short = reaches < upto && upto.raw() > self.retired_below;
        let last = self.undo.segments.last().map_or(0, |segment| segment.number);
        let name = segment_name(LogKind::Undo, last);
        is_short.then(|| format!("{name}: before-images end at {reaches}, they went up to {upto}"))
    }

    /// Reads what [`Manifest::save`] wrote.
    ///
    /// # Errors
    /// [`ManifestError`], naming what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged { what: what.to_owned() };
        if bytes.len() < 16 || bytes[..4] != MAGIC {
            return Err(damaged("the magic does not match"));
        }
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if !(VERSION_MIN..=VERSION).contains(&number(4)) {
            return Err(ManifestError::Version { found: number(4) });
        }
        let body = &bytes[16..];
        if body.len() != number(8) as usize || checksum(number(4), bytes) != number(12) {
            return Err(damaged("its length or checksum does not match"));
        }
        let mut manifest: Self = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
        if number(4) == 2 {
            manifest.must_resync = manifest.demand_of_version_2();
        }
        Ok(manifest)
    }

    /// In version 2 a demand for a resync was that no incarnation stood at the end of the last sealed segment.
    fn demand_of_version_2(&self) -> Option<u64> {
        let newest = self.redo.segments.iter().rev().find_map(|segment| segment.sealed.as_ref());
        let point = newest.map_or(&self.base, |sealed| &sealed.point);
        let is_demanded = point.incarnation.is_none() && point.last_seq > 0;
        let gap = self.gaps.last().filter(|gap| gap.end.is_none());
        is_demanded.then(|| gap.map_or(point.last_seq + 1, |gap| gap.begin))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("strings, numbers and lists");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&body);
        let checksum = checksum(VERSION, &bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn log(&self, kind: LogKind) -> &Log {
        match kind {
            LogKind::Redo => &self.redo,
            LogKind::Undo => &self.undo,
        }
    }

    pub(crate) fn log_mut(&mut self, kind: LogKind) -> &mut Log {
        match kind {
            LogKind::Redo => &mut self.redo,
            LogKind::Undo => &mut self.undo,
        }
    }

    /// Takes over which numbers have been taken in `other`.
    pub(crate) fn keep_numbers_of(&mut self, other: &Manifest) {
        self.generation = self.generation.max(other.generation);
        self.next_file = self.next_file.max(other.next_file);
        self.redo.next_segment = self.redo.next_segment.max(other.redo.next_segment);
        self.undo.next_segment = self.undo.next_segment.max(other.undo.next_segment);
    }

    /// Above what, and up to where, writes may be in the replica, or in a part of it, while a fold goes on or after one was
    /// cut short.
    pub(crate) fn being_written(&self) -> (WriteSeq, WriteSeq) {
        (self.applied(), WriteSeq::from_raw(self.retired_below.max(self.before_images_upto)))
    }

    pub(crate) fn applied(&self) -> WriteSeq {
        WriteSeq::from_raw(self.applied)
    }

    pub(crate) fn before_images_upto(&self) -> WriteSeq {
        WriteSeq::from_raw(self.before_images_upto)
    }

    /// Up to where nobody can want what a log has any more.
    pub(crate) fn done_upto(&self, kind: LogKind) -> WriteSeq {
        WriteSeq::from_raw(match kind {
            LogKind::Redo => self.applied,
            LogKind::Undo => self.retired_below,
        })
    }
}
