//! Every kind of message with each field at its edges, and frames that are none. A kind that is new does not compile here
//! until it has a name, and fails the test until something is said with it.

use super::peer::{Said, numbered};
use batch::BlockHash;
use bytes::Bytes;
use replication::wire::{
    Ack, ArtifactHash, ArtifactOffer, ArtifactPart, ClockAnswer, Compare, Compared, CutMessage, CutRefusal,
    Hello, Join, Leave, Message, Refusal, Refuse, Welcome,
};
use types::limits::{
    ARTIFACT_BYTES_MAX, ARTIFACTS_MAX, BLOCK_BYTES, COMPARE_BLOCKS_MAX, DEFINITION_BYTES_MAX,
    DETAIL_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX, HISTORY_SECONDS_RANGE, JOURNAL_BYTES_RANGE,
    MESSAGE_BYTES_MAX, NAME_BYTES_MAX, SEND_AGAIN_RUNS_MAX,
};
use types::{
    BlockIndex, BlockRun, DiskIndex, DiskSpec, Epoch, GroupId, Incarnation, VmId, WallTime, WriteSeq,
};

/// What is said, with a name for it, and the kind of the message it is or pretends to be.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) name: String,
    /// None of frames that are of no kind.
    pub(super) kind: Option<&'static str>,
    pub(super) said: Said,
}

/// Every kind there is.
pub(super) const KINDS: [&str; 16] = [
    "hello",
    "welcome",
    "refuse",
    "batch",
    "ack",
    "artifact-part",
    "heartbeat",
    "compare",
    "compared",
    "ask-clock",
    "clock-answer",
    "join",
    "cut",
    "leave",
    "left",
    "send-again",
];

pub(super) fn kind(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => KINDS[0],
        Message::Welcome(_) => KINDS[1],
        Message::Refuse(_) => KINDS[2],
        Message::Batch(_) => KINDS[3],
        Message::Ack(_) => KINDS[4],
        Message::ArtifactPart(_) => KINDS[5],
        Message::Heartbeat => KINDS[6],
        Message::Compare(_) => KINDS[7],
        Message::Compared(_) => KINDS[8],
        Message::AskClock(_) => KINDS[9],
        Message::ClockAnswer(_) => KINDS[10],
        Message::Join(_) => KINDS[11],
        Message::Cut(_) => KINDS[12],
        Message::Leave(_) => KINDS[13],
        Message::Left(_) => KINDS[14],
        Message::SendAgain(_) => KINDS[15],
    }
}

/// Whom words are about: the speaker's own VM, and one of another site.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) hello: Hello,
    pub(super) durable: WriteSeq,
    pub(super) other_vm: VmId,
    pub(super) other_group: GroupId,
    /// Names of the other's.
    pub(super) other_names: [String; 2],
}

/// Every word, but batches, of which there is one that is none; what is in one is for `batches`.
pub(super) fn words(about: &About) -> Vec<Word> {
    let mut all: Vec<(String, Message)> = Vec::new();
    for (name, hello) in hellos(about) {
        all.push((format!("hello with {name}"), Message::Hello(Box::new(hello))));
    }
    all.extend(welcomes(about));
    all.extend(refusals());
    all.extend(acks(about));
    all.extend(parts(about));
    all.extend(comparisons(about));
    all.extend(blocks_again(about));
    all.extend(of_hosts(about));
    all.extend(farewells(about));
    all.push(("heartbeat".into(), Message::Heartbeat));
    all.push(("batch that is none".into(), Message::Batch(Bytes::from_static(b"not a batch").into())));
    all.push(("batch of nothing".into(), Message::Batch(Bytes::new().into())));
    for at in TIMES {
        all.push((format!("ask-clock at {at:?}"), Message::AskClock(at)));
        let answer = ClockAnswer { asked_at: at, says: WallTime(i64::MAX) };
        all.push((format!("clock-answer to {at:?}"), Message::ClockAnswer(answer)));
    }
    let messages = all.iter().map(|(name, message)| Word {
        name: name.clone(),
        kind: Some(kind(message)),
        said: message.into(),
    });
    messages.chain(malformed(about)).collect()
}

const TIMES: [WallTime; 4] = [WallTime(i64::MIN), WallTime(-1), WallTime(0), WallTime(i64::MAX)];

fn seqs(about: &About) -> Vec<WriteSeq> {
    let edges = [WriteSeq::LIFT_MAX, WriteSeq::CUT_MAX, WriteSeq::FOREIGN_MAX];
    let around = edges.into_iter().flat_map(|edge| [edge.previous(), edge, edge.next()]);
    let near = [
        WriteSeq::ZERO,
        WriteSeq::from_raw(1),
        about.durable.previous(),
        about.durable,
        about.durable.next(),
    ];
    near.into_iter().chain(around).chain([WriteSeq::MAX.previous(), WriteSeq::MAX]).collect()
}

fn epochs() -> Vec<Epoch> {
    let edges = [Epoch::GREETING_MAX, Epoch::FOREIGN_MAX].map(|epoch| epoch.0);
    let around = edges.into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]);
    [0, 1, 2, 1025, 1026, 1 << 47].into_iter().chain(around).chain([u64::MAX]).map(Epoch).collect()
}

fn texts() -> Vec<String> {
    let long = |len: usize| "x".repeat(len);
    let of = ["", "a", ".", "..", "../../x", "a/b", "a\0b", "a\nb", "ü", "\u{202e}"].map(str::to_owned);
    of.into_iter()
        .chain([long(NAME_BYTES_MAX), long(NAME_BYTES_MAX + 1), long(DETAIL_BYTES_MAX + 1)])
        .collect()
}

const NUMBERS: [u64; 6] = [0, 1, 511, 1 << 32, u64::MAX - 1, u64::MAX];

fn hellos(about: &About) -> Vec<(String, Hello)> {
    let mut all = Vec::new();
    let mut with = |name: String, change: &dyn Fn(&mut Hello)| {
        let mut hello = about.hello.clone();
        change(&mut hello);
        all.push((name, hello));
    };
    with("nothing wrong".into(), &|_| {});
    with("another's VM".into(), &|hello| hello.vm = about.other_vm);
    with("another's group".into(), &|hello| hello.group = about.other_group);
    with("another's VM and group".into(), &|hello| {
        (hello.vm, hello.group) = (about.other_vm, about.other_group);
        [hello.vm_name, hello.group_name] = about.other_names.clone();
    });
    for text in texts() {
        let shown: String = text.chars().take(8).collect();
        with(format!("VM {shown:?}"), &|hello| hello.vm_name.clone_from(&text));
        with(format!("group {shown:?}"), &|hello| hello.group_name.clone_from(&text));
        with(format!("disk {shown:?}"), &|hello| hello.disks[0].name.clone_from(&text));
        with(format!("file {shown:?}"), &|hello| hello.artifacts[0].name.clone_from(&text));
    }
    for bytes in [0, 1, 511, 512, DISK_BYTES_MAX + 512, u64::MAX - 511, u64::MAX] {
        with(format!("a disk of {bytes} bytes"), &|hello| hello.disks[0].size_bytes = bytes);
    }
    for count in [0, 2, DISKS_MAX + 1] {
        let disk = |at: usize| DiskSpec { name: format!("d{at}"), size_bytes: 512 };
        with(format!("{count} disks"), &|hello| hello.disks = (0..count).map(disk).collect());
    }
    with("one disk twice".into(), &|hello| hello.disks.push(hello.disks[0].clone()));
    for bytes in [0, 1, ARTIFACT_BYTES_MAX, ARTIFACT_BYTES_MAX + 1, u64::MAX] {
        with(format!("a file of {bytes} bytes"), &|hello| hello.artifacts[0].size_bytes = bytes);
    }
    for count in [0, ARTIFACTS_MAX, ARTIFACTS_MAX + 1] {
        let file = about.hello.artifacts[0].clone();
        with(format!("{count} files"), &|hello| hello.artifacts = vec![file.clone(); count]);
    }
    for len in [0, DEFINITION_BYTES_MAX, DEFINITION_BYTES_MAX + 1] {
        with(format!("a definition of {len} bytes"), &|hello| hello.definition = "#".repeat(len));
    }
    with("a definition that is none".into(), &|hello| hello.definition = "[[[\0".into());
    for seq in seqs(about) {
        with(format!("acked {seq}"), &|hello| hello.acked = seq);
        with(format!("last {seq}"), &|hello| hello.last_seq = seq);
    }
    for time in TIMES {
        with(format!("time {time:?}"), &|hello| hello.sent_at = time);
    }
    let around = |range: (u64, u64)| [range.0 - 1, range.0, range.1, range.1 + 1];
    for number in NUMBERS.into_iter().chain(around(HISTORY_SECONDS_RANGE)) {
        with(format!("history {number}"), &|hello| hello.history_seconds = number);
    }
    for number in NUMBERS.into_iter().chain(around(JOURNAL_BYTES_RANGE)) {
        with(format!("journal of {number}"), &|hello| hello.journal_bytes_max = number);
    }
    for number in [0, 1, u32::MAX] {
        with(format!("RPO {number}"), &|hello| hello.rpo_seconds = number);
        with(format!("interval {number}"), &|hello| hello.checkpoint_interval_seconds = number);
    }
    with("another incarnation".into(), &|hello| hello.incarnation = Incarnation::from_bytes([0xff; 16]));
    with("incarnation zero".into(), &|hello| hello.incarnation = Incarnation::from_bytes([0; 16]));
    with("hosts".into(), &|hello| hello.spans_hosts = true);
    for epoch in epochs() {
        with(format!("epoch {}", epoch.0), &|hello| hello.epoch = epoch);
    }
    all
}

fn welcomes(about: &About) -> Vec<(String, Message)> {
    let of = |epoch, durable, incarnation, missing| Welcome {
        epoch,
        durable,
        incarnation,
        must_compare: false,
        seeded: false,
        missing,
    };
    let (own, epoch) = (Some(about.hello.incarnation), about.hello.epoch);
    let mut all = Vec::new();
    for seq in seqs(about) {
        all.push((format!("welcome with {seq} of this stream"), of(epoch, seq, own, vec![])));
        all.push((format!("welcome with {seq} of none"), of(epoch, seq, None, vec![])));
        let other = Some(Incarnation::from_bytes([0xee; 16]));
        all.push((format!("welcome with {seq} of another stream"), of(epoch, seq, other, vec![])));
    }
    for epoch in epochs() {
        all.push((format!("welcome of epoch {}", epoch.0), of(epoch, WriteSeq::ZERO, None, vec![])));
    }
    for count in [1, ARTIFACTS_MAX, ARTIFACTS_MAX + 1] {
        let missing = vec![ArtifactHash([7; 32]); count];
        all.push((format!("welcome that misses {count}"), of(epoch, WriteSeq::ZERO, None, missing)));
    }
    for (must_compare, seeded) in [(true, false), (false, true), (true, true)] {
        let welcome = Welcome { must_compare, seeded, ..of(epoch, WriteSeq::ZERO, None, vec![]) };
        all.push((format!("welcome, compare {must_compare}, seeded {seeded}"), welcome));
    }
    // Flags that exclude each other: they are written as they are.
    let welcome = Welcome { must_compare: true, ..of(epoch, about.durable, own, vec![]) };
    all.push(("welcome that contradicts itself".into(), welcome));
    all.into_iter().map(|(name, welcome)| (name, Message::Welcome(welcome))).collect()
}

fn refusals() -> Vec<(String, Message)> {
    let mut reasons = vec![
        Refusal::JournalFull,
        Refusal::JournalFailed,
        Refusal::DisksDiffer,
        Refusal::Busy,
        Refusal::Protocol,
        Refusal::Version,
        Refusal::NotAccepted,
    ];
    for epoch in epochs() {
        reasons.extend([false, true].map(|released| Refusal::Fenced { epoch, released }));
    }
    let refuse =
        |why: Refusal| (format!("refuse: {why}"), Message::Refuse(Refuse { why, detail: "so".into() }));
    let mut all: Vec<_> = reasons.into_iter().map(refuse).collect();
    for detail in texts() {
        let shown: String = detail.chars().take(8).collect();
        all.push((format!("refuse: {shown:?}"), Message::Refuse(Refuse { why: Refusal::Busy, detail })));
    }
    all
}

fn acks(about: &About) -> Vec<(String, Message)> {
    let usual = Ack {
        durable: about.durable,
        watermark: about.durable,
        applied: WriteSeq::ZERO,
        journal_bytes: 1,
        history_seconds: 1,
        projected_history_seconds: None,
    };
    let mut all = Vec::new();
    for seq in seqs(about) {
        all.push((format!("ack of {seq}"), Ack { durable: seq, ..usual }));
        all.push((format!("ack with watermark {seq}"), Ack { watermark: seq, ..usual }));
        all.push((format!("ack with applied {seq}"), Ack { applied: seq, ..usual }));
    }
    for number in NUMBERS {
        all.push((format!("ack of a journal of {number}"), Ack { journal_bytes: number, ..usual }));
        all.push((format!("ack of a history of {number}"), Ack { history_seconds: number, ..usual }));
        let projected = Ack { projected_history_seconds: Some(number), ..usual };
        all.push((format!("ack that projects {number}"), projected));
    }
    all.into_iter().map(|(name, ack)| (name, Message::Ack(ack))).collect()
}

fn parts(about: &About) -> Vec<(String, Message)> {
    let ArtifactOffer { hash, size_bytes, .. } = about.hello.artifacts[0].clone();
    let of = |hash, offset, size_bytes, len: usize| ArtifactPart {
        hash,
        offset,
        size_bytes,
        bytes: vec![9; len].into(),
    };
    let mut all = vec![
        ("all of a file, of another content", of(hash, 0, size_bytes, size_bytes as usize)),
        ("nothing of a file", of(hash, 0, size_bytes, 0)),
        ("nothing behind a file", of(hash, size_bytes, size_bytes, 0)),
        ("more than a file", of(hash, 0, size_bytes, size_bytes as usize + 1)),
        ("a file of another size", of(hash, 0, u64::MAX, 1)),
        ("a file of no size", of(hash, 0, 0, 0)),
        ("a file nobody offered", of(ArtifactHash([1; 32]), 0, size_bytes, 1)),
        ("as much as a message holds", of(hash, 0, size_bytes, 4 << 20)),
    ];
    for offset in NUMBERS {
        all.push(("a part far out", of(hash, offset, size_bytes, 1)));
    }
    all.into_iter()
        .map(|(name, part)| (format!("artifact-part: {name}"), Message::ArtifactPart(part)))
        .collect()
}

fn blocks_again(about: &About) -> Vec<(String, Message)> {
    let blocks = about.hello.disks[0].size_bytes.div_ceil(BLOCK_BYTES);
    let run = |disk, first, blocks| BlockRun { disk: DiskIndex(disk), first: BlockIndex(first), blocks };
    let most = DISK_BYTES_MAX / BLOCK_BYTES;
    let mut all = vec![Vec::new(), vec![run(0, 0, 1); 2], vec![run(0, 5, 1), run(0, 0, 1)]];
    for disk in [0, 1, DISKS_MAX as u16, u16::MAX] {
        for first in [0, blocks - 1, blocks, most - 1, most, u64::MAX] {
            all.extend([0, 1, blocks, most, u64::MAX].map(|blocks| vec![run(disk, first, blocks)]));
        }
    }
    for count in [SEND_AGAIN_RUNS_MAX, SEND_AGAIN_RUNS_MAX + 1, usize::from(u16::MAX)] {
        all.push((0..count as u64).map(|at| run(0, at, 1)).collect());
    }
    let name = |runs: &Vec<BlockRun>| format!("send-again of {} runs from {:?} on", runs.len(), runs.first());
    all.into_iter().map(|runs| (name(&runs), Message::SendAgain(runs))).collect()
}

fn comparisons(about: &About) -> Vec<(String, Message)> {
    let blocks = about.hello.disks[0].size_bytes.div_ceil(BLOCK_BYTES);
    let of = |disk, first, at, hashes: usize| Compare {
        disk: DiskIndex(disk),
        first: BlockIndex(first),
        at,
        hashes: vec![BlockHash([3; 32]); hashes],
    };
    let mut all = Vec::new();
    for disk in [0, 1, u16::MAX] {
        for first in [0, blocks - 1, blocks, u64::MAX - 15, u64::MAX] {
            all.push(Message::Compare(of(disk, first, about.durable, 1)));
            all.extend([0, 1, u64::MAX].map(|differs| {
                Message::Compared(Compared { disk: DiskIndex(disk), first: BlockIndex(first), differs })
            }));
        }
    }
    for seq in seqs(about) {
        all.push(Message::Compare(of(0, 0, seq, 1)));
    }
    for hashes in [0, COMPARE_BLOCKS_MAX, COMPARE_BLOCKS_MAX + 1, usize::from(u16::MAX)] {
        all.push(Message::Compare(of(0, 0, about.durable, hashes)));
    }
    let name = |message: &Message| match message {
        Message::Compare(asked) => format!(
            "compare {} of disk {} from {} at {}",
            asked.hashes.len(),
            asked.disk.0,
            asked.first.0,
            asked.at
        ),
        other => format!("{other:?}"),
    };
    all.into_iter().map(|message| (name(&message), message)).collect()
}

fn of_hosts(about: &About) -> Vec<(String, Message)> {
    let mut all = Vec::new();
    let names = texts().into_iter().chain(about.other_names.clone());
    for (group_name, vms) in names.flat_map(|name| [0, 1, u16::MAX].map(|vms| (name.clone(), vms))) {
        all.push(Message::Join(Join { group_name, vms }));
    }
    all.push(Message::Cut(CutMessage::Joined { group: about.other_group }));
    all.push(Message::Cut(CutMessage::Joined { group: GroupId::from_bytes([0; 16]) }));
    for cut in seqs(about) {
        let refused = [CutRefusal::Syncing, CutRefusal::Passed(cut), CutRefusal::Passed(cut.next())];
        let answers = [None].into_iter().chain(refused.map(Some));
        all.extend(answers.map(|refused| Message::Cut(CutMessage::Prepared { cut, refused })));
        all.push(Message::Cut(CutMessage::Prepare { cut }));
        all.push(Message::Cut(CutMessage::Settle { cut, mark: None }));
        all.push(Message::Cut(CutMessage::Settle { cut, mark: Some(Bytes::from_static(b"none")) }));
        all.push(Message::Cut(CutMessage::Durable { cut }));
    }
    let name = |message: &Message| format!("{message:?}").chars().take(90).collect();
    all.into_iter().map(|message| (name(&message), message)).collect()
}

fn farewells(about: &About) -> Vec<(String, Message)> {
    let mut all = Vec::new();
    let nobody = (VmId::from_bytes([0xab; 16]), GroupId::from_bytes([0xab; 16]));
    for (vm, group) in [
        (about.other_vm, about.other_group),
        (about.other_vm, about.hello.group),
        (about.hello.vm, about.other_group),
        nobody,
    ] {
        for epoch in epochs() {
            all.push(Message::Leave(Leave { vm, group, epoch, at: about.durable }));
        }
        all.extend(
            seqs(about).into_iter().map(|at| Message::Leave(Leave { vm, group, epoch: Epoch(9), at })),
        );
        all.push(Message::Left(vm));
    }
    let name = |message: &Message| format!("{message:?}").chars().take(120).collect();
    all.into_iter().map(|message| (name(&message), message)).collect()
}

/// Frames that are no message, or one that is cut off, or twice as long as it says.
fn malformed(about: &About) -> Vec<Word> {
    let good = |message: &Message| match Said::from(message) {
        Said::Numbered(frame) | Said::Raw(frame) => frame,
    };
    let hello = good(&Message::Hello(Box::new(about.hello.clone())));
    let heartbeat = good(&Message::Heartbeat);
    let raw = |name: &str, frame: Vec<u8>| Word { name: name.into(), kind: None, said: Said::Raw(frame) };
    let framed =
        |name: &str, frame: Vec<u8>| Word { name: name.into(), kind: None, said: Said::Numbered(frame) };
    let with = |frame: &[u8], at: usize, bytes: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut all = vec![
        raw("nothing but zeroes", vec![0; 4096]),
        raw("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        framed("another magic", with(&heartbeat, 0, b"HFW2")),
        raw("a wrong checksum", with(&numbered(&heartbeat, 1), 24, &[1, 2, 3, 4])),
        framed("a body that is not there", with(&heartbeat, 8, &4u32.to_le_bytes())),
        raw("half a header", heartbeat[..HALF].to_vec()),
        raw("half a body", numbered(&hello, 1)[..hello.len() - 1].to_vec()),
        framed("reserved fields", with(&with(&heartbeat, 12, &[0xff; 4]), 28, &[0xff; 4])),
    ];
    for version in [0u16, 1, 2, 5, u16::MAX] {
        all.push(framed("another version", with(&heartbeat, 4, &version.to_le_bytes())));
    }
    for kind in [0u16, KINDS.len() as u16 + 1, u16::MAX] {
        all.push(framed("an unknown kind", with(&heartbeat, 6, &kind.to_le_bytes())));
    }
    for len in [MESSAGE_BYTES_MAX as u32 - 32, MESSAGE_BYTES_MAX as u32 - 31, u32::MAX] {
        all.push(framed("a length that is not true", with(&heartbeat, 8, &len.to_le_bytes())));
    }
    for number in [0, 2, u64::MAX] {
        all.push(raw("another number", numbered(&heartbeat, number)));
    }
    // Every kind with an empty body, with a byte more than it has, and with lengths in it that are not true.
    for kind in 1..=KINDS.len() as u16 {
        all.push(framed("an empty body", with(&heartbeat, 6, &kind.to_le_bytes())));
        for body in [vec![0xff; 64], vec![0; 64], vec![0xff; 4096]] {
            let mut frame = with(&heartbeat, 6, &kind.to_le_bytes());
            frame[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
            frame.extend(body);
            all.push(framed("a body of one byte only", frame));
        }
    }
    let mut longer = with(&hello, 8, &(hello.len() as u32 - 31).to_le_bytes());
    longer.push(0);
    all.push(framed("a byte behind the last field", longer));
    all
}

/// Of a header's 32 bytes.
const HALF: usize = 16;
