//! What two agents say to each other about one VM.

use super::body::{BodyReader, BodyWriter};
use super::frame::{VERSION, VERSION_MIN, WireError};
use batch::{BLOCK_HASH_BYTES, BlockHash, Pieces};
use bytes::Bytes;
use std::fmt;
use types::limits::{
    ARTIFACTS_MAX, BLOCK_BYTES, COMPARE_BLOCKS_MAX, DEFINITION_BYTES_MAX, DETAIL_BYTES_MAX, DISK_BYTES_MAX,
    DISKS_MAX, NAME_BYTES_MAX, SEND_AGAIN_RUNS_MAX,
};
use types::{
    BlockIndex, BlockRun, DiskIndex, DiskSpec, Epoch, GroupId, Incarnation, VmId, WallTime, WriteSeq,
};

/// From this version on blocks can be asked for again.
const SEND_AGAIN_VERSION: u16 = 4;

/// BLAKE3 of a file a definition names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactHash(pub [u8; 32]);

impl fmt::Display for ArtifactHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A file the definition names (kernel, initrd, firmware) that the recovery side must have too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactOffer {
    /// The name the definition knows it by.
    pub name: String,
    pub hash: ArtifactHash,
    pub size_bytes: u64,
}

/// The sender's opening words: all the recovery side has to know to keep this VM and to start it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The highest version of the protocol that the sender speaks. It stands in the message's header, where those that
    /// speak 3 have a zero.
    pub speaks: u16,
    pub vm: VmId,
    pub vm_name: String,
    pub group: GroupId,
    pub group_name: String,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    /// The sender has freed everything at or below; a journal that knows less has lost writes.
    pub acked: WriteSeq,
    pub last_seq: WriteSeq,
    pub sent_at: WallTime,
    pub history_seconds: u64,
    /// 0: as much as the disk holds.
    pub journal_bytes_max: u64,
    pub rpo_seconds: u32,
    pub checkpoint_interval_seconds: u32,
    /// The group has VMs on several hosts: it is consistent at its checkpoints and nowhere between.
    pub spans_hosts: bool,
    pub disks: Vec<DiskSpec>,
    /// The VM's definition, TOML; empty where the VM has none.
    pub definition: String,
    pub artifacts: Vec<ArtifactOffer>,
}

impl Hello {
    /// Whether blocks can be asked for again. Who cannot be asked compares everything instead.
    pub fn hears_of_blocks(&self) -> bool {
        self.speaks >= SEND_AGAIN_VERSION
    }
}

/// The receiver is ready; what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub epoch: Epoch,
    /// The last sequence durable in the journal.
    pub durable: WriteSeq,
    /// The incarnation that sequence belongs to; none where the journal is new, or where the stream must begin anew.
    pub incarnation: Option<Incarnation>,
    /// The journal has lost writes it acknowledged: what it has is to be compared, all of it. Then there is no
    /// incarnation.
    pub must_compare: bool,
    /// The replica was brought here by other means: it is to be compared, also where the journal is new.
    pub seeded: bool,
    pub missing: Vec<ArtifactHash>,
}

/// Everything at or below `durable` is in the journal for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub durable: WriteSeq,
    /// Every write of the VM at or below it is durable.
    pub watermark: WriteSeq,
    /// The replica stands here.
    pub applied: WriteSeq,
    pub journal_bytes: u64,
    pub history_seconds: u64,
    /// What its limits will leave of it, where that is less than what was asked for.
    pub projected_history_seconds: Option<u64>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactPart {
    pub hash: ArtifactHash,
    pub offset: u64,
    pub size_bytes: u64,
    pub bytes: Bytes,
}

/// Does the recovery side have the same? A run of blocks as the source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub disk: DiskIndex,
    pub first: BlockIndex,
    /// Every write to these blocks up to here is in the stream before this message; the hashes are of the
    /// blocks with them, and with none above.
    pub at: WriteSeq,
    /// One for each block, at most [`COMPARE_BLOCKS_MAX`].
    pub hashes: Vec<BlockHash>,
}

/// The answer to a [`Compare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    pub disk: DiskIndex,
    pub first: BlockIndex,
    /// Bit `n` is set where block `first + n` differs.
    pub differs: u64,
}

/// An agent that protects VMs of a group joins the one that coordinates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    pub group_name: String,
    /// VMs of the group on the joining host; none where it leaves.
    pub vms: u16,
}

/// A VM is protected no more: the first and only word of a connection of its own. Said again until it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    pub vm: VmId,
    pub group: GroupId,
    pub epoch: Epoch,
    /// The last sequence its group had drawn: no later cut has the VM.
    pub at: WriteSeq,
}

/// Why a host does not make a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutRefusal {
    /// The number was drawn before; this is the highest that was. Anything but the two highest numbers.
    Passed(WriteSeq),
    /// A VM of the group misses writes in its stream until a sync is done.
    Syncing,
}

/// What a coordinator says to a host, and a host answers, to make a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutMessage {
    /// Welcome to the group.
    Joined { group: GroupId },
    /// Hold acknowledgements and draw exactly this sequence.
    Prepare { cut: WriteSeq },
    /// Done, or why not.
    Prepared { cut: WriteSeq, refused: Option<CutRefusal> },
    /// Let go; and where all hosts have made the cut, put this mark into every stream.
    Settle { cut: WriteSeq, mark: Option<Bytes> },
    /// The marks of a cut are durable in all streams of the host.
    Durable { cut: WriteSeq },
}

/// The answer to a question for the time: what was asked, and what the receiver's clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockAnswer {
    pub asked_at: WallTime,
    pub says: WallTime,
}

/// Why a receiver will not, or no longer, take the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A higher epoch exists. `released` says the operator has rolled the failover back, and the sender
    /// may go on with the higher epoch.
    Fenced { epoch: Epoch, released: bool },
    /// The journal has no room; the sender tracks changes until it has.
    JournalFull,
    /// The journal's disk fails.
    JournalFailed,
    /// The disks are not the ones the journal was made for.
    DisksDiffer,
    /// Another connection holds the stream of this VM.
    Busy,
    /// What was said does not follow the protocol.
    Protocol,
    /// The other side speaks another version of the protocol.
    Version,
    /// The receiver's operator turned this VM away.
    NotAccepted,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Fenced { epoch, released: false } => write!(f, "fenced: epoch {epoch} has taken over"),
            Refusal::Fenced { epoch, released: true } => {
                write!(f, "failover rolled back: go on with epoch {epoch}")
            }
            Refusal::JournalFull => f.write_str("journal full"),
            Refusal::JournalFailed => f.write_str("journal failed"),
            Refusal::DisksDiffer => f.write_str("disks differ"),
            Refusal::Busy => f.write_str("stream busy"),
            Refusal::Protocol => f.write_str("protocol error"),
            Refusal::Version => f.write_str("protocol version"),
            Refusal::NotAccepted => f.write_str("not accepted"),
        }
    }
}

/// A refusal with words for the operator on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    pub why: Refusal,
    pub detail: String,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Hello(Box<Hello>),
    Welcome(Welcome),
    Refuse(Refuse),
    /// A batch, verbatim; whether it is one is checked by the receiver.
    Batch(Pieces),
    Ack(Ack),
    ArtifactPart(ArtifactPart),
    Heartbeat,
    Compare(Compare),
    Compared(Compared),
    /// What time is it at the other side? With the asker's own time, to be told back.
    AskClock(WallTime),
    ClockAnswer(ClockAnswer),
    Join(Join),
    Cut(CutMessage),
    Leave(Leave),
    /// The receiver has written down that this VM has left.
    Left(VmId),
    /// All that the recovery side has lost of the newest state, in ascending runs that have no block in common: it is to be
    /// sent again. Whatever was asked for before is in it, or there.
    SendAgain(Vec<BlockRun>),
}

impl Message {
    /// The version of the protocol that it came with.
    pub(super) fn version(&self) -> u16 {
        if let Message::SendAgain(_) = self { SEND_AGAIN_VERSION } else { VERSION_MIN }
    }

    pub(super) fn kind(&self) -> u16 {
        match self {
            Message::Hello(_) => 1,
            Message::Welcome(_) => 2,
            Message::Refuse(_) => 3,
            Message::Batch(_) => 4,
            Message::Ack(_) => 5,
            Message::ArtifactPart(_) => 6,
            Message::Heartbeat => 7,
            Message::Compare(_) => 8,
            Message::Compared(_) => 9,
            Message::AskClock(_) => 10,
            Message::ClockAnswer(_) => 11,
            Message::Join(_) => 12,
            Message::Cut(_) => 13,
            Message::Leave(_) => 14,
            Message::Left(_) => 15,
            Message::SendAgain(_) => 16,
        }
    }

    pub(super) fn encode_body(&self) -> Pieces {
        let mut body = BodyWriter::default();
        match self {
            Message::Hello(hello) => encode_hello(hello, &mut body),
            Message::Welcome(welcome) => {
                body.u64(welcome.epoch.0).u64(welcome.durable.raw());
                let flags = u8::from(welcome.incarnation.is_some()) | u8::from(welcome.seeded) << 1;
                body.u8(flags | u8::from(welcome.must_compare) << 2);
                body.bytes(&welcome.incarnation.map_or([0; 16], Incarnation::to_bytes));
                body.u16(welcome.missing.len() as u16);
                for hash in &welcome.missing {
                    body.bytes(&hash.0);
                }
            }
            Message::Refuse(refuse) => {
                let (code, epoch) = refusal_to_raw(refuse.why);
                let cut = refuse.detail.floor_char_boundary(DETAIL_BYTES_MAX);
                body.u16(VERSION).u16(code).u64(epoch.0).text(&refuse.detail[..cut]);
            }
            Message::Batch(batch) => return batch.clone(),
            Message::Ack(ack) => {
                body.u64(ack.durable.raw()).u64(ack.watermark.raw()).u64(ack.applied.raw());
                body.u64(ack.journal_bytes).u64(ack.history_seconds);
                body.u64(ack.projected_history_seconds.unwrap_or(u64::MAX));
            }
            Message::ArtifactPart(part) => {
                body.bytes(&part.hash.0).u64(part.offset).u64(part.size_bytes).bytes(&part.bytes);
            }
            Message::Heartbeat => {}
            Message::Compare(compare) => {
                body.u16(compare.disk.0).u64(compare.first.0).u64(compare.at.raw());
                body.u16(compare.hashes.len() as u16);
                for hash in &compare.hashes {
                    body.bytes(&hash.0);
                }
            }
            Message::Compared(compared) => {
                body.u16(compared.disk.0).u64(compared.first.0).u64(compared.differs);
            }
            Message::Join(join) => {
                body.text(&join.group_name).u16(join.vms);
            }
            Message::Cut(message) => encode_cut(message, &mut body),
            Message::Leave(leave) => {
                body.bytes(&leave.vm.to_bytes()).bytes(&leave.group.to_bytes());
                body.u64(leave.epoch.0).u64(leave.at.raw());
            }
            Message::Left(vm) => {
                body.bytes(&vm.to_bytes());
            }
            Message::SendAgain(runs) => {
                body.u16(runs.len() as u16);
                for run in runs {
                    body.u16(run.disk.0).u64(run.first.0).u64(run.blocks);
                }
            }
            Message::AskClock(asked_at) => {
                body.u64(asked_at.0 as u64);
            }
            Message::ClockAnswer(answer) => {
                body.u64(answer.asked_at.0 as u64).u64(answer.says.0 as u64);
            }
        }
        body.finish().into()
    }

    pub(super) fn decode_body(kind: u16, bytes: Bytes) -> Result<Self, WireError> {
        if kind == 4 {
            return Ok(Message::Batch(bytes.into()));
        }
        let mut body = BodyReader::new(bytes);
        let message = match kind {
            1 => decode_hello(&mut body).map(|hello| Message::Hello(Box::new(hello))),
            2 => decode_welcome(&mut body).map(Message::Welcome),
            3 => decode_refuse(&mut body).map(Message::Refuse),
            5 => decode_ack(&mut body).map(Message::Ack),
            6 => decode_artifact_part(&mut body).map(Message::ArtifactPart),
            7 => Ok(Message::Heartbeat),
            8 => decode_compare(&mut body).map(Message::Compare),
            9 => decode_compared(&mut body).map(Message::Compared),
            10 => body.u64().map(|at| Message::AskClock(WallTime(at as i64))),
            11 => decode_clock_answer(&mut body).map(Message::ClockAnswer),
            12 => decode_join(&mut body).map(Message::Join),
            13 => decode_cut(&mut body).map(Message::Cut),
            14 => decode_leave(&mut body).map(Message::Leave),
            15 => body.array().map(|vm| Message::Left(VmId::from_bytes(vm))),
            16 => decode_send_again(&mut body).map(Message::SendAgain),
            _ => return Err(WireError::Kind { kind }),
        };
        message
            .and_then(|message| body.end().map(|()| message))
            .map_err(|what| WireError::Body { kind, what })
    }
}

fn encode_hello(hello: &Hello, body: &mut BodyWriter) {
    body.bytes(&hello.vm.to_bytes()).text(&hello.vm_name);
    body.bytes(&hello.group.to_bytes()).text(&hello.group_name);
    body.u64(hello.epoch.0).bytes(&hello.incarnation.to_bytes());
    body.u64(hello.acked.raw()).u64(hello.last_seq.raw()).u64(hello.sent_at.0 as u64);
    body.u64(hello.history_seconds).u64(hello.journal_bytes_max);
    body.u32(hello.rpo_seconds).u32(hello.checkpoint_interval_seconds).u8(hello.spans_hosts.into());
    body.u16(hello.disks.len() as u16);
    for disk in &hello.disks {
        body.text(&disk.name).u64(disk.size_bytes);
    }
    body.text(&hello.definition);
    body.u16(hello.artifacts.len() as u16);
    for artifact in &hello.artifacts {
        body.text(&artifact.name).bytes(&artifact.hash.0).u64(artifact.size_bytes);
    }
}

fn decode_hello(body: &mut BodyReader) -> Result<Hello, &'static str> {
    let vm = VmId::from_bytes(body.array()?);
    let vm_name = body.text(NAME_BYTES_MAX)?;
    let group = GroupId::from_bytes(body.array()?);
    let group_name = body.text(NAME_BYTES_MAX)?;
    let epoch = body.epoch()?;
    let incarnation = Incarnation::from_bytes(body.array()?);
    let acked = body.seq()?;
    let last_seq = body.seq()?;
    let sent_at = WallTime(body.u64()? as i64);
    let history_seconds = body.u64()?;
    let journal_bytes_max = body.u64()?;
    let rpo_seconds = body.u32()?;
    let checkpoint_interval_seconds = body.u32()?;
    let spans_hosts = body.u8()? != 0;
    let disks = (0..bounded(body.u16()?, DISKS_MAX)?)
        .map(|_| Ok(DiskSpec { name: body.text(NAME_BYTES_MAX)?, size_bytes: body.u64()? }))
        .collect::<Result<_, &'static str>>()?;
    let definition = body.text(DEFINITION_BYTES_MAX)?;
    let artifacts = (0..bounded(body.u16()?, ARTIFACTS_MAX)?)
        .map(|_| {
            let name = body.text(NAME_BYTES_MAX)?;
            Ok(ArtifactOffer { name, hash: ArtifactHash(body.array()?), size_bytes: body.u64()? })
        })
        .collect::<Result<_, &'static str>>()?;
    Ok(Hello {
        speaks: VERSION_MIN, // The header says more.
        vm,
        vm_name,
        group,
        group_name,
        epoch,
        incarnation,
        acked,
        last_seq,
        sent_at,
        history_seconds,
        journal_bytes_max,
        rpo_seconds,
        checkpoint_interval_seconds,
        spans_hosts,
        disks,
        definition,
        artifacts,
    })
}

fn decode_welcome(body: &mut BodyReader) -> Result<Welcome, &'static str> {
    let epoch = body.epoch()?;
    let durable = body.seq()?;
    let flags = body.u8()?;
    if flags & !7 != 0 || flags & 5 == 5 {
        return Err("unknown flags");
    }
    let incarnation = Incarnation::from_bytes(body.array()?);
    let missing = (0..bounded(body.u16()?, ARTIFACTS_MAX)?)
        .map(|_| body.array().map(ArtifactHash))
        .collect::<Result<_, _>>()?;
    let known = flags & 1 != 0;
    Ok(Welcome {
        epoch,
        durable,
        incarnation: known.then_some(incarnation),
        must_compare: flags & 4 != 0,
        seeded: flags & 2 != 0,
        missing,
    })
}

fn decode_refuse(body: &mut BodyReader) -> Result<Refuse, &'static str> {
    let _their_version = body.u16()?;
    let code = body.u16()?;
    let epoch = body.epoch()?;
    let detail = body.text(DETAIL_BYTES_MAX)?;
    Ok(Refuse { why: refusal_from_raw(code, epoch)?, detail })
}

fn decode_ack(body: &mut BodyReader) -> Result<Ack, &'static str> {
    Ok(Ack {
        durable: body.seq()?,
        watermark: body.seq()?,
        applied: body.seq()?,
        journal_bytes: body.u64()?,
        history_seconds: body.u64()?,
        projected_history_seconds: Some(body.u64()?).filter(|&seconds| seconds != u64::MAX),
    })
}

fn decode_artifact_part(body: &mut BodyReader) -> Result<ArtifactPart, &'static str> {
    Ok(ArtifactPart {
        hash: ArtifactHash(body.array()?),
        offset: body.u64()?,
        size_bytes: body.u64()?,
        bytes: body.rest(),
    })
}

fn decode_compare(body: &mut BodyReader) -> Result<Compare, &'static str> {
    let disk = DiskIndex(body.u16()?);
    let first = BlockIndex(body.u64()?);
    let at = body.seq()?;
    let hashes = (0..bounded(body.u16()?, COMPARE_BLOCKS_MAX)?)
        .map(|_| body.array::<BLOCK_HASH_BYTES>().map(BlockHash))
        .collect::<Result<Vec<_>, _>>()?;
    if hashes.is_empty() {
        return Err("nothing to compare");
    }
    Ok(Compare { disk, first, at, hashes })
}

fn decode_compared(body: &mut BodyReader) -> Result<Compared, &'static str> {
    Ok(Compared { disk: DiskIndex(body.u16()?), first: BlockIndex(body.u64()?), differs: body.u64()? })
}

fn decode_clock_answer(body: &mut BodyReader) -> Result<ClockAnswer, &'static str> {
    Ok(ClockAnswer { asked_at: WallTime(body.u64()? as i64), says: WallTime(body.u64()? as i64) })
}

fn decode_join(body: &mut BodyReader) -> Result<Join, &'static str> {
    Ok(Join { group_name: body.text(NAME_BYTES_MAX)?, vms: body.u16()? })
}

fn decode_leave(body: &mut BodyReader) -> Result<Leave, &'static str> {
    Ok(Leave {
        vm: VmId::from_bytes(body.array()?),
        group: GroupId::from_bytes(body.array()?),
        epoch: Epoch(body.u64()?),
        at: WriteSeq::from_raw(body.u64()?),
    })
}

/// Runs of blocks that a disk can have, in their order.
fn decode_send_again(body: &mut BodyReader) -> Result<Vec<BlockRun>, &'static str> {
    let count = bounded(body.u16()?, SEND_AGAIN_RUNS_MAX)?;
    let mut runs: Vec<BlockRun> = Vec::with_capacity(count.into());
    for _ in 0..count {
        let run =
            BlockRun { disk: DiskIndex(body.u16()?), first: BlockIndex(body.u64()?), blocks: body.u64()? };
        let end = run.first.0.checked_add(run.blocks).filter(|end| *end <= DISK_BYTES_MAX / BLOCK_BYTES);
        if run.blocks == 0 || end.is_none() || usize::from(run.disk.0) >= DISKS_MAX {
            return Err("a run of blocks that no disk has");
        }
        if runs.last().is_some_and(|last| (last.disk, last.end()) > (run.disk, run.first.0)) {
            return Err("runs of blocks that do not ascend");
        }
        runs.push(run);
    }
    if runs.is_empty() {
        return Err("nothing to send again");
    }
    Ok(runs)
}

fn encode_cut(message: &CutMessage, body: &mut BodyWriter) {
    match message {
        CutMessage::Joined { group } => body.u8(1).bytes(&group.to_bytes()),
        CutMessage::Prepare { cut } => body.u8(2).u64(cut.raw()),
        CutMessage::Prepared { cut, refused } => body.u8(3).u64(cut.raw()).u64(match refused {
            None => u64::MAX,
            Some(CutRefusal::Syncing) => u64::MAX - 1,
            Some(CutRefusal::Passed(last)) => last.raw(),
        }),
        CutMessage::Settle { cut, mark } => {
            body.u8(4).u64(cut.raw()).bytes(mark.as_deref().unwrap_or_default())
        }
        CutMessage::Durable { cut } => body.u8(5).u64(cut.raw()),
    };
}

fn decode_cut(body: &mut BodyReader) -> Result<CutMessage, &'static str> {
    let what = body.u8()?;
    if what == 1 {
        return Ok(CutMessage::Joined { group: GroupId::from_bytes(body.array()?) });
    }
    let cut = body.seq()?;
    Ok(match what {
        2 => CutMessage::Prepare { cut },
        3 => {
            let refused = match body.u64()? {
                u64::MAX => None,
                raw if raw == u64::MAX - 1 => Some(CutRefusal::Syncing),
                raw if raw > WriteSeq::FOREIGN_MAX.raw() => return Err("a sequence that no agent comes to"),
                raw => Some(CutRefusal::Passed(WriteSeq::from_raw(raw))),
            };
            CutMessage::Prepared { cut, refused }
        }
        4 => CutMessage::Settle { cut, mark: Some(body.rest()).filter(|mark| !mark.is_empty()) },
        5 => CutMessage::Durable { cut },
        _ => return Err("unknown word about a cut"),
    })
}

fn bounded(count: u16, max: usize) -> Result<u16, &'static str> {
    if usize::from(count) <= max { Ok(count) } else { Err("a list is longer than its limit") }
}

fn refusal_to_raw(why: Refusal) -> (u16, Epoch) {
    match why {
        Refusal::Fenced { epoch, released: false } => (1, epoch),
        Refusal::Fenced { epoch, released: true } => (2, epoch),
        Refusal::JournalFull => (3, Epoch(0)),
        Refusal::JournalFailed => (4, Epoch(0)),
        Refusal::DisksDiffer => (5, Epoch(0)),
        Refusal::Busy => (6, Epoch(0)),
        Refusal::Protocol => (7, Epoch(0)),
        Refusal::Version => (8, Epoch(0)),
        Refusal::NotAccepted => (9, Epoch(0)),
    }
}

fn refusal_from_raw(code: u16, epoch: Epoch) -> Result<Refusal, &'static str> {
    Ok(match code {
        1 => Refusal::Fenced { epoch, released: false },
        2 => Refusal::Fenced { epoch, released: true },
        3 => Refusal::JournalFull,
        4 => Refusal::JournalFailed,
        5 => Refusal::DisksDiffer,
        6 => Refusal::Busy,
        7 => Refusal::Protocol,
        8 => Refusal::Version,
        9 => Refusal::NotAccepted,
        _ => return Err("unknown refusal"),
    })
}
