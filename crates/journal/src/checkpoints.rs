//! Checkpoints by the million: facts about each, kept in memory for open segments and in files of pages
//! for sealed ones (`checkpoint_files.rs`), and which of them a list is to hold.
//!
//! A row on disk is 48 bytes:
//! ```text
//! 0  u64 id    8  u64 cut    16 i64 taken at    24 u64 bytes written since the one before
//! 32 u32 writes since the one before    36 u16 members    38 u16 entropy (1/4096 bit a byte)
//! 40 u8 kind   41 u8 flags: 1 first of its minute, 2 first of its quarter of an hour, 4 its entropy is not known
//! 42 [6] reserved
//! ```
//! Words of tags are in the manifest. Thinning asks the flags, so that it needs nothing but the row.

use crate::manifest::{CheckpointFile, TagEntry};
use std::time::Duration;
use types::{Checkpoint, CheckpointId, CheckpointKind, WallTime, WriteSeq};

pub(crate) const ROW_BYTES: usize = 48;
const MINUTE: i64 = 60_000_000;
const QUARTER: i64 = 15 * MINUTE;
const FIRST_OF_MINUTE: u8 = 1;
const FIRST_OF_QUARTER: u8 = 2;
/// Of rows that an older version wrote, those without a write are meant as well.
const ENTROPY_UNKNOWN: u8 = 4;

/// A checkpoint and what is known of the time since the one before it.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointFacts {
    pub checkpoint: Checkpoint,
    /// Guest writes since the one before.
    pub writes: u64,
    /// Bytes the guest wrote since the one before.
    pub bytes: u64,
    /// Shannon entropy of a sample of them, in 1/4096 bit a byte: 0 to 32768. None where they held no data.
    pub entropy: Option<u16>,
    /// Bytes of all disks that are damaged as of its cut: reading them fails.
    pub damaged_bytes: u64,
    pub(crate) flags: u8,
}

/// Which checkpoints are kept as they age. Tagged ones are always kept as long as the history reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thinning {
    /// All are kept up to this age,
    pub all: Duration,
    /// then one a minute up to this age, then one in 15 minutes.
    pub minutely: Duration,
}

impl Default for Thinning {
    fn default() -> Self {
        Self { all: Duration::from_secs(24 * 3600), minutely: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// Which checkpoints a list is to hold, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointQuery {
    /// From just above this cut (newest first: from just below).
    pub after: Option<WriteSeq>,
    pub from: Option<WallTime>,
    pub to: Option<WallTime>,
    pub kind: Option<CheckpointKind>,
    pub tag: Option<String>,
    pub newest_first: bool,
    /// Whether what thinning leaves out is left out.
    pub thinned: bool,
    /// Whether those are left out of which some bytes are damaged.
    pub undamaged: bool,
    pub limit: usize,
}

impl Default for CheckpointFacts {
    fn default() -> Self {
        let checkpoint = Checkpoint {
            id: CheckpointId(WriteSeq::ZERO),
            cut: WriteSeq::ZERO,
            kind: CheckpointKind::Automatic,
            taken_at: WallTime(0),
            members: 0,
            tag: String::new(),
        };
        Self { checkpoint, writes: 0, bytes: 0, entropy: None, damaged_bytes: 0, flags: 0 }
    }
}

impl CheckpointFacts {
    /// Shannon entropy of a sample of what the guest wrote, in bits a byte; none where it wrote no data.
    pub fn entropy_bits(&self) -> Option<f64> {
        self.entropy.map(|entropy| f64::from(entropy) / 4096.0)
    }

    pub(crate) fn cut(&self) -> WriteSeq {
        self.checkpoint.cut
    }

    /// What the manifest knows of a tagged one whose row is lost.
    pub(crate) fn of_tag(entry: &TagEntry) -> Self {
        let cut = WriteSeq::from_raw(entry.cut);
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: CheckpointKind::Tagged,
            taken_at: WallTime(entry.taken_at),
            members: entry.members,
            tag: entry.tag.clone(),
        };
        Self { checkpoint, ..Self::default() }
    }

    /// The flags of one taken at `now` after one taken at `before`.
    pub(crate) fn flags_after(before: Option<WallTime>, now: WallTime) -> u8 {
        let first =
            |unit: i64| before.is_none_or(|before| before.0.div_euclid(unit) != now.0.div_euclid(unit));
        (u8::from(first(MINUTE)) * FIRST_OF_MINUTE) | (u8::from(first(QUARTER)) * FIRST_OF_QUARTER)
    }

    /// Whether thinning keeps it at that age.
    pub(crate) fn is_kept(&self, thinning: &Thinning, age: Duration) -> bool {
        self.checkpoint.kind != CheckpointKind::Automatic
            || age <= thinning.all
            || self.flags & FIRST_OF_QUARTER != 0
            || (age <= thinning.minutely && self.flags & FIRST_OF_MINUTE != 0)
    }

    pub(crate) fn encode(&self) -> [u8; ROW_BYTES] {
        let mut row = [0; ROW_BYTES];
        row[..8].copy_from_slice(&self.checkpoint.id.0.raw().to_le_bytes());
        row[8..16].copy_from_slice(&self.checkpoint.cut.raw().to_le_bytes());
        row[16..24].copy_from_slice(&self.checkpoint.taken_at.0.to_le_bytes());
        row[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        row[32..36].copy_from_slice(&u32::try_from(self.writes).unwrap_or(u32::MAX).to_le_bytes());
        row[36..38].copy_from_slice(&self.checkpoint.members.to_le_bytes());
        row[38..40].copy_from_slice(&self.entropy.unwrap_or(0).to_le_bytes());
        row[40] = match self.checkpoint.kind {
            CheckpointKind::Automatic => 1,
            CheckpointKind::Tagged => 2,
        };
        row[41] = self.flags | if self.entropy.is_none() { ENTROPY_UNKNOWN } else { 0 };
        row
    }

    pub(crate) fn decode(row: &[u8], tags: &[TagEntry]) -> Result<Self, &'static str> {
        let number = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u16::from_le_bytes([row[at], row[at + 1]]);
        let cut = WriteSeq::from_raw(number(8));
        let (kind, tag) = match row[40] {
            1 => (CheckpointKind::Automatic, String::new()),
            2 => {
                let words = tags.binary_search_by_key(&cut.raw(), |entry| entry.cut).ok();
                (CheckpointKind::Tagged, words.map_or(String::new(), |at| tags[at].tag.clone()))
            }
            _ => return Err("a checkpoint of an unknown kind"),
        };
        let checkpoint = Checkpoint {
            id: CheckpointId(WriteSeq::from_raw(number(0))),
            cut,
            kind,
            taken_at: WallTime(number(16) as i64),
            members: half(36),
            tag,
        };
        let writes = u64::from(u32::from_le_bytes(row[32..36].try_into().expect("four bytes")));
        let is_known = row[41] & ENTROPY_UNKNOWN == 0 && writes > 0;
        let (entropy, flags) = (is_known.then(|| half(38)), row[41] & !ENTROPY_UNKNOWN);
        Ok(Self { checkpoint, writes, bytes: number(24), entropy, damaged_bytes: 0, flags })
    }
}

impl CheckpointQuery {
    pub(crate) fn wants(&self, facts: &CheckpointFacts) -> bool {
        let checkpoint = &facts.checkpoint;
        let after = self.after.is_none_or(|after| match self.newest_first {
            true => checkpoint.cut < after,
            false => checkpoint.cut > after,
        });
        after
            && self.from.is_none_or(|from| checkpoint.taken_at >= from)
            && self.to.is_none_or(|to| checkpoint.taken_at <= to)
            && self.kind.is_none_or(|kind| checkpoint.kind == kind)
            && self.tag.as_ref().is_none_or(|tag| checkpoint.tag == *tag)
    }

    /// Whether a file may hold something the query wants.
    pub(crate) fn may_be_in(&self, file: &CheckpointFile) -> bool {
        let after = self.after.is_none_or(|after| match self.newest_first {
            true => file.first_cut < after.raw(),
            false => file.last_cut > after.raw(),
        });
        after
            && self.from.is_none_or(|from| file.last_at >= from.0)
            && self.to.is_none_or(|to| file.first_at <= to.0)
    }

    /// Whether no page on this side of a page's first and last row can hold more.
    pub(crate) fn skips_page(&self, first: &CheckpointFacts, last: &CheckpointFacts) -> bool {
        match (self.after, self.newest_first) {
            (Some(after), true) => first.cut() >= after,
            (Some(after), false) => last.cut() <= after,
            (None, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back() {
        let mut facts = CheckpointFacts {
            writes: 7,
            bytes: 1 << 40,
            entropy: Some(32_768),
            flags: 3,
            ..Default::default()
        };
        facts.checkpoint.cut = WriteSeq::from_raw(99);
        facts.checkpoint.kind = CheckpointKind::Tagged;
        facts.checkpoint.tag = "before".into();
        let tags = [TagEntry { cut: 99, tag: "before".into(), taken_at: 0, members: 0 }];
        assert_eq!(CheckpointFacts::decode(&facts.encode(), &tags), Ok(facts.clone()));
        let unknown = CheckpointFacts { entropy: None, ..facts.clone() };
        assert_eq!(CheckpointFacts::decode(&unknown.encode(), &tags), Ok(unknown));
        // Older versions took what was not written into account.
        let nothing_written = CheckpointFacts { writes: 0, ..facts };
        assert_eq!(
            CheckpointFacts::decode(&nothing_written.encode(), &tags).map(|facts| facts.entropy),
            Ok(None)
        );
        assert!(CheckpointFacts::decode(&[9; ROW_BYTES], &tags).is_err());
    }

    #[test]
    fn thinning_keeps_all_then_one_a_minute_then_one_in_a_quarter() {
        let thinning = Thinning::default();
        let day = 24 * 60 * MINUTE;
        let at = |seconds: i64| WallTime(seconds * 1_000_000);
        let mut before = None;
        let mut kept = [0; 3];
        for second in (0..7200).step_by(5) {
            let flags = CheckpointFacts::flags_after(before, at(second));
            before = Some(at(second));
            let mut facts = CheckpointFacts { flags, ..Default::default() };
            facts.checkpoint.taken_at = at(second);
            for (count, now) in kept.iter_mut().zip([day / 2, 2 * day, 9 * day]) {
                *count += u32::from(facts.is_kept(&thinning, WallTime(now).since(at(second))));
            }
        }
        assert_eq!(kept, [1440, 120, 8]);
    }
}
