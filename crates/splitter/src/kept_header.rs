//! What stands before and behind the bits of a dirty map and a region log, and whether those are believed.
//!
//! ```text
//! 0   [4]  magic "HFDM" or "HFRL"   4  u32  version, 2      8   [16] VM          24  [16] boot id
//! 40  [16] incarnation      56  u64  acknowledged up to
//! 64  [16] the incarnation before, until this one is acknowledged   80  u64  acknowledged up to in that one
//! 88  u32  flags: 1 stopped cleanly, 2 some of the bits say no more than that a block is suspect, 4 with a sum of bits
//! 92  u32  number of disks
//! 96  i64  the agent was last there, microseconds since 1970      104 u32  CRC-32C of the bits, after a clean stop
//! 108 u32  CRC-32C of bytes 0-107
//! 112 ..   bits of each disk, one disk behind the other, each on whole bytes, least significant first
//!     ..   behind the bits: what each disk was last noted as, 64 bytes each (`identity.rs`)
//! ```

use crate::identity::{DiskIdentity, Noted};
use std::io;
use types::limits::REGION_LOG_NOTE_LATE_MAX;
use types::{Incarnation, VmId, WallTime, WriteSeq};

/// 2: what each disk was noted as lies behind the bits, and is compared for equality.
/// 1: the first; it told when the agent was last there, and a disk changed up to 10 s after that counted as unchanged,
///    which proves nothing. Such a file is never believed.
const VERSION: u32 = 2;
const FLAG_CLEAN: u32 = 1;
const FLAG_SUSPECTS: u32 = 2;
const FLAG_SUM: u32 = 4;

/// A stream that a kept map can be continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub incarnation: Incarnation,
    /// Bits were cleared for acknowledgements up to here: a journal must know at least as much.
    pub acked: WriteSeq,
}

/// What a file of bits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A dirty map.
    Blocks,
    /// A dirty-region log.
    Regions,
}

impl FileKind {
    fn magic(self) -> [u8; 4] {
        match self {
            FileKind::Blocks => *b"HFDM",
            FileKind::Regions => *b"HFRL",
        }
    }
}

/// A boot of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    pub id: [u8; 16],
    /// When it began, by this host's clock as it stands now.
    pub at: WallTime,
}

/// What becomes of what is said to a file of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It is written down.
    Kept,
    /// Nothing is kept any more, and what is on the disk will not be believed.
    GivenUp,
    /// Nothing can be kept, and what is on the disk would be believed: nothing may be written to the VM's disks.
    Stuck,
    /// The agent has said that nothing is written any more: whatever is, must not be.
    Closed,
}

/// Where each disk's bits begin where one bit is for `unit` bytes, and how many bytes all have.
pub(crate) fn places(disks: &[(u64, Option<DiskIdentity>)], unit: u64) -> (Vec<usize>, usize) {
    let mut len = 0;
    let place = |(size, _): &(u64, Option<DiskIdentity>)| {
        let at = len;
        len += size.div_ceil(unit).div_ceil(8) as usize;
        at
    };
    let places = disks.iter().map(place).collect();
    (places, len)
}

/// What stands before the bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) vm: VmId,
    pub(crate) boot_id: [u8; 16],
    pub(crate) current: Kept,
    pub(crate) before: Kept,
    pub(crate) clean: bool,
    /// Of the bits, once nothing changes them any more: what rots of them until the next start is not believed.
    pub(crate) bits_sum: Option<u32>,
    pub(crate) suspects: bool,
    pub(crate) disks: u32,
    pub(crate) seen_at: WallTime,
}

const NOTHING: Kept = Kept { incarnation: Incarnation::from_bytes([0; 16]), acked: WriteSeq::MAX };

impl Header {
    pub(crate) const BYTES: usize = 112;

    /// Of a map that says nothing yet.
    pub(crate) fn empty(vm: VmId, boot_id: [u8; 16], disks: usize) -> Self {
        Self {
            vm,
            boot_id,
            current: NOTHING,
            before: NOTHING,
            clean: false,
            bits_sum: None,
            suspects: false,
            disks: disks as u32,
            seen_at: WallTime(0),
        }
    }

    /// The streams it can be continued from.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let streams = [self.current, self.before].into_iter();
        streams.filter(|kept| kept.incarnation != NOTHING.incarnation).collect()
    }

    pub(crate) fn begin(&mut self, incarnation: Incarnation, floor: WriteSeq) {
        self.before = Kept { acked: floor, ..self.current };
        self.current = Kept { incarnation, acked: floor };
    }

    /// The stream is acknowledged up to here. With its first acknowledgement the stream before is forgotten: bits are
    /// cleared from then on for writes that a journal which is still at that one does not have.
    pub(crate) fn acknowledged(&mut self, up_to: WriteSeq) {
        if up_to > self.current.acked {
            self.current.acked = up_to;
            self.before = NOTHING;
        }
    }

    /// Nothing is written any more.
    pub(crate) fn stop(&mut self, bits: &[u8]) {
        self.clean = true;
        self.bits_sum = Some(crc32c::crc32c(bits));
    }

    /// A clean stop counts once: from here on the agent writes. Whether there had been one.
    pub(crate) fn go_on(&mut self) -> bool {
        self.bits_sum = None;
        std::mem::take(&mut self.clean)
    }

    pub(crate) fn encode(&self, kind: FileKind) -> [u8; Header::BYTES] {
        let mut bytes = [0; Header::BYTES];
        bytes[..4].copy_from_slice(&kind.magic());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.vm.to_bytes());
        bytes[24..40].copy_from_slice(&self.boot_id);
        for (at, kept) in [(40, self.current), (64, self.before)] {
            bytes[at..at + 16].copy_from_slice(&kept.incarnation.to_bytes());
            bytes[at + 16..at + 24].copy_from_slice(&kept.acked.raw().to_le_bytes());
        }
        let flags =
            [(self.clean, FLAG_CLEAN), (self.suspects, FLAG_SUSPECTS), (self.bits_sum.is_some(), FLAG_SUM)];
        let flags = flags.into_iter().map(|(is_set, flag)| if is_set { flag } else { 0 }).sum::<u32>();
        bytes[88..92].copy_from_slice(&flags.to_le_bytes());
        bytes[92..96].copy_from_slice(&self.disks.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.seen_at.0.to_le_bytes());
        bytes[104..108].copy_from_slice(&self.bits_sum.unwrap_or(0).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..108]);
        bytes[108..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(kind: FileKind, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Header::BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sixteen = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes");
        let kept = |at: usize| Kept {
            incarnation: Incarnation::from_bytes(sixteen(at)),
            acked: WriteSeq::from_raw(u64::from_le_bytes(
                bytes[at + 16..at + 24].try_into().expect("eight bytes"),
            )),
        };
        let sound = bytes[..4] == kind.magic()
            && u32_at(4) == VERSION
            && u32_at(108) == crc32c::crc32c(&bytes[..108]);
        sound.then(|| Self {
            vm: VmId::from_bytes(sixteen(8)),
            boot_id: sixteen(24),
            current: kept(40),
            before: kept(64),
            clean: u32_at(88) & FLAG_CLEAN != 0,
            bits_sum: (u32_at(88) & FLAG_SUM != 0).then(|| u32_at(104)),
            suspects: u32_at(88) & FLAG_SUSPECTS != 0,
            disks: u32_at(92),
            seen_at: WallTime(i64::from_le_bytes(bytes[96..104].try_into().expect("eight bytes"))),
        })
    }
}

/// A kept file in its parts.
pub(crate) struct KeptFile {
    pub(crate) header: Header,
    pub(crate) bits: Vec<u8>,
    noted: Vec<Noted>,
}

impl KeptFile {
    /// Takes a file of this VM and these disks apart; none where it is another's, or of another form, or damaged.
    pub(crate) fn of(
        kind: FileKind,
        bytes: &[u8],
        vm: VmId,
        disks: &[(u64, Option<DiskIdentity>)],
        bits_len: usize,
    ) -> Option<Self> {
        let header = Header::decode(kind, bytes).filter(|header| header.vm == vm)?;
        let table_at = Header::BYTES + bits_len;
        if header.disks as usize != disks.len() || bytes.len() != table_at + disks.len() * Noted::BYTES {
            return None;
        }
        let bits = &bytes[Header::BYTES..table_at];
        if header.bits_sum.is_some_and(|sum| sum != crc32c::crc32c(bits)) {
            tracing::warn!(vm = %vm, "a map of what is to be sent has rotted, and everything is compared");
            return None;
        }
        let noted: Option<Vec<Noted>> = bytes[table_at..].chunks(Noted::BYTES).map(Noted::decode).collect();
        Some(Self { header, bits: bits.to_vec(), noted: noted? })
    }

    fn all(&self, now: &[Noted], same: impl Fn(&Noted, &Noted) -> bool) -> bool {
        self.noted.iter().zip(now).all(|(then, now)| same(then, now))
    }

    /// Whether nobody has changed any disk since it was noted.
    pub(crate) fn is_untouched(&self, now: &[Noted]) -> bool {
        self.all(now, Noted::is_untouched)
    }

    /// Whether the host has been down since, in the middle of the agent's work as far as anything tells, and nobody has
    /// changed any disk since the agent was there.
    ///
    /// That it was not killed first, and somebody else wrote right after, nothing tells: an agent that is there notes the
    /// disks every [`REGION_LOG_NOTE_INTERVAL`](types::limits::REGION_LOG_NOTE_INTERVAL), so a change long after the
    /// last note is somebody else's; but one soon after it may be either's.
    pub(crate) fn is_untouched_but_by_the_agent(&self, now: &[Noted], boot: Boot) -> bool {
        let end = boot.at.min(self.header.seen_at.plus(REGION_LOG_NOTE_LATE_MAX));
        // Who has stopped writes nothing more.
        !self.header.clean
            && self.header.boot_id != boot.id
            // A clock that says that the host came up before the agent was last there has been put back.
            && self.header.seen_at <= boot.at
            && self.all(now, |then, now| then.is_untouched_from(now, end))
    }
}

/// What every disk is noted as now.
pub(crate) fn noted(disks: &[(u64, Option<DiskIdentity>)]) -> Vec<Noted> {
    disks.iter().map(|(size, identity)| Noted::new(*size, *identity)).collect()
}

/// Why nothing may be written to a disk.
pub(crate) fn refused(keeping: Keeping) -> io::Error {
    io::Error::other(match keeping {
        Keeping::Closed => "the agent stops, and nothing is written any more",
        _ => {
            "what is written could not be kept in mind over the agent's death: its state folder cannot be written"
        }
    })
}
