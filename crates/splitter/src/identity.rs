//! Which file a disk is and when it was last changed: what tells whether somebody else wrote to it meanwhile.
//!
//! Times are compared for equality, and how far they lie apart never proves a disk unchanged: a clock may have been put
//! back, and a second is long enough to write a whole disk. What equality cannot tell is left as unknown:
//!
//! - Two changes within one tick of the file system's clock leave the same time. So a disk is noted as *settled* only
//!   when its last change lies further back than a tick is long; what was noted before that proves nothing.
//! - Over a loss of power a file may have a new content and the time of an old one, so that no time proves anything
//!   of what was written before. What was written after the host came up again has a time from then on.
//!
//! ```text
//! 0  u64  size in bytes      8  u64  device     16 u64  inode      24 i64  the file was made, nanoseconds since 1970
//! 32 i64  its ctime          40 i64  its mtime  48 u32  flags: 1 these are known, 2 settled
//! 52 [8]  reserved           60 u32  CRC-32C of bytes 0-59
//! ```

use types::WallTime;

const FLAG_KNOWN: u32 = 1;
const FLAG_SETTLED: u32 = 2;

/// A file's time, in nanoseconds since 1970 by the clock of its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime(pub i64);

impl FileTime {
    fn is_before(self, moment: WallTime) -> bool {
        self.0 / 1000 < moment.0
    }
}

/// Which file a disk is, and when it was last changed by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIdentity {
    pub device: u64,
    pub inode: u64,
    /// An inode's number is used again; when the file was made is not.
    pub made_at: FileTime,
    /// Its ctime, which nobody can set.
    pub changed_at: FileTime,
    /// Its mtime.
    pub modified_at: FileTime,
    /// Whether any change from here on gives it other times.
    pub is_settled: bool,
}

impl DiskIdentity {
    /// Of a disk whose times tell nothing, because something else tells whether it was changed.
    pub fn without_times(device: u64, inode: u64) -> Self {
        let never = FileTime::default();
        Self { device, inode, made_at: never, changed_at: never, modified_at: never, is_settled: true }
    }

    /// Whether it is that file, whatever has become of its content.
    pub fn is_same_file(&self, other: &DiskIdentity) -> bool {
        (self.device, self.inode, self.made_at) == (other.device, other.inode, other.made_at)
    }
}

/// A disk with its size, as it was noted or is now. No identity: nothing tells when it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Noted {
    size_bytes: u64,
    identity: Option<DiskIdentity>,
}

impl Noted {
    pub(crate) const BYTES: usize = 64;

    pub(crate) fn new(size_bytes: u64, identity: Option<DiskIdentity>) -> Self {
        Self { size_bytes, identity }
    }

    /// This disk, with what it is seen as now.
    pub(crate) fn seen_as(self, identity: Option<DiskIdentity>) -> Self {
        Self { identity, ..self }
    }

    /// Whether nobody has changed the disk between this note and what is `now`.
    pub(crate) fn is_untouched(&self, now: &Noted) -> bool {
        let (Some(then), Some(of_now)) = (self.identity, now.identity) else { return false };
        self.size_bytes == now.size_bytes
            && then.is_settled
            && then.is_same_file(&of_now)
            && (then.changed_at, then.modified_at) == (of_now.changed_at, of_now.modified_at)
    }

    /// Whether nobody has changed the disk from `end` on, this note being of the time before and durable together with
    /// the file it is of.
    pub(crate) fn is_untouched_from(&self, now: &Noted, end: WallTime) -> bool {
        let (Some(then), Some(of_now)) = (self.identity, now.identity) else { return false };
        self.size_bytes == now.size_bytes
            && then.is_same_file(&of_now)
            // Older than what was durable: the clock was put back, or another content.
            && then.changed_at <= of_now.changed_at
            && of_now.changed_at.is_before(end)
    }

    pub(crate) fn encode(&self) -> [u8; Noted::BYTES] {
        let mut bytes = [0; Noted::BYTES];
        let mut flags = 0;
        bytes[..8].copy_from_slice(&self.size_bytes.to_le_bytes());
        if let Some(identity) = self.identity {
            flags = FLAG_KNOWN | if identity.is_settled { FLAG_SETTLED } else { 0 };
            bytes[8..16].copy_from_slice(&identity.device.to_le_bytes());
            bytes[16..24].copy_from_slice(&identity.inode.to_le_bytes());
            let times = [identity.made_at, identity.changed_at, identity.modified_at];
            for (at, time) in times.iter().enumerate() {
                bytes[24 + 8 * at..32 + 8 * at].copy_from_slice(&time.0.to_le_bytes());
            }
        }
        bytes[48..52].copy_from_slice(&flags.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Noted::BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let time_at = |at: usize| FileTime(u64_at(at).cast_signed());
        if u32_at(60) != crc32c::crc32c(&bytes[..60]) {
            return None;
        }
        let flags = u32_at(48);
        let identity = (flags & FLAG_KNOWN != 0).then(|| DiskIdentity {
            device: u64_at(8),
            inode: u64_at(16),
            made_at: time_at(24),
            changed_at: time_at(32),
            modified_at: time_at(40),
            is_settled: flags & FLAG_SETTLED != 0,
        });
        Some(Self { size_bytes: u64_at(0), identity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(at: i64) -> DiskIdentity {
        DiskIdentity { changed_at: FileTime(at), ..DiskIdentity::without_times(1, 2) }
    }

    fn noted(identity: DiskIdentity) -> Noted {
        Noted::new(1 << 20, Some(identity))
    }

    #[test]
    fn a_note_reads_back_and_a_damaged_one_does_not() {
        for identity in [None, Some(DiskIdentity { is_settled: false, ..changed(-7) }), Some(changed(9))] {
            let bytes = Noted::new(3 << 40, identity).encode();
            assert_eq!(Noted::decode(&bytes), Some(Noted::new(3 << 40, identity)));
            for at in 0..bytes.len() {
                let mut damaged = bytes;
                damaged[at] ^= 4;
                assert_eq!(Noted::decode(&damaged), None, "byte {at}");
            }
        }
    }

    #[test]
    fn a_disk_is_untouched_only_with_the_very_same_times() {
        let then = noted(changed(1_000));
        assert!(then.is_untouched(&then));
        for other in [999, 1_001, 0, -5, i64::MAX] {
            assert!(!then.is_untouched(&noted(changed(other))), "{other}");
        }
        let modified = DiskIdentity { modified_at: FileTime(1), ..changed(1_000) };
        let made = DiskIdentity { made_at: FileTime(1), ..changed(1_000) };
        for other in [modified, made, DiskIdentity { inode: 9, ..changed(1_000) }] {
            assert!(!then.is_untouched(&noted(other)), "{other:?}");
        }
        assert!(!then.is_untouched(&Noted::new(2 << 20, Some(changed(1_000)))), "another size");
        assert!(!then.is_untouched(&Noted::new(1 << 20, None)));
        let unsettled = noted(DiskIdentity { is_settled: false, ..changed(1_000) });
        assert!(!unsettled.is_untouched(&unsettled), "a change in the same tick has the same time");
    }

    #[test]
    fn a_disk_is_untouched_from_an_end_on_only_if_its_time_lies_between_the_note_and_that_end() {
        let then = noted(changed(5_000_000));
        let untouched = |at| then.is_untouched_from(&noted(changed(at)), WallTime(9_000));
        assert!(untouched(5_000_000) && untouched(8_999_999));
        assert!(!untouched(9_000_000) && !untouched(10_000_000), "changed since");
        assert!(!untouched(4_999_999), "the clock was put back");
    }
}
