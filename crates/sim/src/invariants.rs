//! What must hold after every event, by name.

use crate::image_model::SECTOR;
use crate::recovery::RecoveryVm;
use crate::retained::{all_checkpoints, all_facts};
use crate::rot::Expected;
use crate::source::{Playback, SourceVm};
use crate::spoilt::Spoilt;
use journal::{CheckpointFacts, Image, Journal, Mode, ReadError, Settings, Upkeep};
use std::sync::Arc;
use types::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, WINDOW_BYTES};
use types::{BlockIndex, ByteRange, CheckpointKind, DiskIndex, Monotonic, WriteSeq};

/// The marks that begin and end a sync have room in a full buffer.
const SYNC_MARKS_BYTES: u64 = 256;

/// A VM at both its sites, with the disk it began with.
pub(crate) struct Pair {
    pub(crate) source: SourceVm,
    pub(crate) recovery: RecoveryVm,
    pub(crate) initial: Vec<u8>,
}

/// Every checkpoint that can be opened shows the disk exactly as the guest had it at its cut, but for what was damaged below
/// it: that cannot be read, and it says so. How many there are, and how many of them are damaged.
pub(crate) fn invariant_image_at_checkpoint_equals_guest_disk_then(pair: &Pair) -> (u64, u64) {
    let Some(journal) = &pair.recovery.journal else { return (0, 0) };
    let checkpoints = all_facts(journal);
    let mut guest = pair.source.playback(&pair.initial);
    for facts in &checkpoints {
        let checkpoint = &facts.checkpoint;
        let what = || format!("checkpoint {}", checkpoint.id);
        match facts.damaged_bytes {
            0 => compare(&mut guest, journal, checkpoint.cut, &pair.recovery.spoilt(), what),
            _ => compare_damaged(&mut guest, journal, facts, &pair.recovery.spoilt()),
        }
    }
    let damaged = checkpoints.iter().filter(|facts| facts.damaged_bytes > 0).count();
    (checkpoints.len() as u64, damaged as u64)
}

/// The tail of the group is one moment in all its VMs.
pub(crate) fn invariant_tail_is_one_moment(pairs: &[Pair]) {
    let journals: Option<Vec<Arc<Journal>>> =
        pairs.iter().map(|pair| pair.recovery.journal.clone()).collect();
    let Some(journals) = journals else { return };
    if let Some(cut) = newest_common_cut(&journals) {
        for (pair, journal) in pairs.iter().zip(&journals) {
            let mut guest = pair.source.playback(&pair.initial);
            compare(&mut guest, journal, cut, &pair.recovery.spoilt(), || format!("tail {cut}"));
        }
    }
}

/// A checkpoint is there only when everything below it is durable.
pub(crate) fn invariant_checkpoint_never_precedes_its_writes(pair: &Pair) {
    let Some(journal) = &pair.recovery.journal else { return };
    let status = journal.status();
    for checkpoint in all_checkpoints(journal) {
        assert!(checkpoint.cut <= status.watermark, "checkpoint {} is above the watermark", checkpoint.id);
    }
}

/// In synchronous mode whatever a guest was told of while the mode was kept is in the newest image there is: of all VMs of
/// the group that have a state there, as of one moment.
pub(crate) fn invariant_what_was_promised_is_at_the_other_side(pairs: &[Pair]) {
    let promised = pairs.iter().map(|pair| pair.source.promised).max().unwrap_or_default();
    if promised == WriteSeq::ZERO {
        return;
    }
    // Whoever opens the group knows nothing of the source: its journals say who is of it.
    let kept = pairs.iter().filter(|pair| pair.recovery.has_journal());
    let journals: Option<Vec<Arc<Journal>>> = kept.map(|pair| pair.recovery.journal.clone()).collect();
    let Some(mut journals) = journals else { return };
    journals.retain(|journal| journal.newest_consistent(WriteSeq::MAX).is_some());
    let newest = newest_common_cut(&journals);
    // None: a VM has just ended its first sync, and the others have not said yet that they are as far. Then an
    // operator is told so, and opens the group without it.
    assert!(
        newest.is_none() || newest >= Some(promised),
        "invariant_what_was_promised_is_at_the_other_side: {promised}, newest {newest:?}"
    );
}

/// Whatever differs between guest and journal is marked, or lies in the buffer above what is durable.
pub(crate) fn invariant_dirty_marks_cover_every_unsent_block(pair: &Pair) {
    let (Some(agent), Some(journal)) = (&pair.source.agent, &pair.recovery.journal) else { return };
    let status = journal.status();
    if status.incarnation != Some(agent.sender().incarnation()) || agent.sender().acked() == WriteSeq::ZERO {
        return; // The two have not met since the agent started: everything counts as unsent.
    }
    if status.last_seq < agent.sender().acked() {
        return; // The end of the log has rotted with what was acknowledged: everything is compared once they meet.
    }
    let guest = pair.source.disk.content();
    let Some(on_the_way) = agent.on_the_way(status.last_seq) else {
        return; // The stream will be begun anew, with all marked that was not acknowledged.
    };
    let lost = journal.to_send_again();
    for (at, ours) in guest.chunks(BLOCK_BYTES as usize).enumerate() {
        let block = BlockIndex(at as u64);
        let range = block.range(guest.len() as u64);
        let mut theirs = vec![0; ours.len()];
        // What cannot be read any more has to be sent again; the other side asks for what it knows to be lost.
        let is_asked_for = lost.iter().any(|run| (run.first.0..run.end()).contains(&block.0));
        let equal = match journal.read_at(DiskIndex(0), WriteSeq::MAX, range.start, &mut theirs) {
            Ok(()) => ours == theirs,
            // Nobody knows of it yet.
            Err(_) if pair.recovery.is_lost_unseen(range) => continue,
            Err(ReadError::LostBytes { .. }) if is_asked_for => continue,
            Err(ReadError::Damaged { .. } | ReadError::LostBytes { .. }) => false,
            Err(error) => panic!("a journal that can be read: {error}"),
        };
        let covered = agent.capture().is_dirty(DiskIndex(0), block)
            || agent.capture().is_suspect(DiskIndex(0), block)
            || on_the_way.iter().any(|record| record.overlaps(range));
        assert!(equal || covered, "invariant_dirty_marks_cover_every_unsent_block: block {at}");
    }
}

/// While a group has failed over, nothing of the old epoch is appended.
pub(crate) fn invariant_one_writer_per_epoch(pair: &Pair, fenced_at: Option<WriteSeq>) {
    if let (Some(at), Some(journal)) = (fenced_at, &pair.recovery.journal) {
        assert_eq!(journal.status().last_seq, at, "invariant_one_writer_per_epoch");
    }
}

/// Both sides at rest are equal.
pub(crate) fn invariant_at_rest_both_sides_are_equal(pair: &Pair) {
    let journal = pair.recovery.journal.as_ref().expect("at rest the journal is open");
    let cut = journal.newest_consistent(WriteSeq::MAX).expect("a consistent tail");
    let guest = pair.source.disk.content();
    let image = Image::open(journal.clone(), cut, None, [0; 16]).expect("an image of the tail");
    let mut kept = vec![0; guest.len()];
    image.read_at(DiskIndex(0), 0, &mut kept).expect("an image that can be read");
    assert!(guest == kept, "at rest both sides are equal");
}

/// Once both sides are equal and the disks work, all that is old can be folded, whatever was damaged on the way.
pub(crate) fn invariant_nothing_keeps_old_history_from_going(pair: &mut Pair, how: &Upkeep<'_>) {
    let journal = pair.recovery.journal.as_ref().expect("at rest the journal is open");
    let settings = journal.status().settings;
    journal.set(Settings { bytes_soft: 1, mode: Mode::RollForward, ..settings });
    while pair.recovery.keep_up(how).expect("invariant_nothing_keeps_old_history_from_going").more {}
}

/// A checkpoint that could be opened goes by retention alone, and something to fail over to stays.
pub(crate) fn invariant_history_goes_only_by_retention(pair: &mut Pair, now: Monotonic) {
    if let Some(journal) = &pair.recovery.journal {
        pair.recovery.retained.follow(now, journal, pair.source.leaves_out());
    }
}

/// What waits, in memory or in the spill, is within its bounds whatever has happened.
pub(crate) fn invariant_memory_is_bounded(pair: &Pair) {
    if let Some(agent) = &pair.source.agent {
        let status = agent.capture().status();
        let most = status.buffer_bytes_max + SYNC_MARKS_BYTES;
        assert!(status.buffered_bytes <= most, "invariant_memory_is_bounded: {status:?}");
        let spill = agent.spill();
        assert!(spill.bytes <= spill.bytes_max, "invariant_memory_is_bounded: {spill:?}");
    }
    let waits = pair.recovery.waiting_bytes();
    let most = WINDOW_BYTES + BATCH_BYTES_MAX;
    assert!(waits <= most, "invariant_memory_is_bounded: {waits} bytes wait for the journal");
}

/// Had the power gone at this moment, and everything not synced with it, what was told as durable would be there, and every
/// checkpoint that could be opened.
pub(crate) fn invariant_nothing_acknowledged_rests_on_what_was_not_synced(pair: &Pair) {
    let RecoveryVm { store, journal: Some(journal), told, settings, .. } = &pair.recovery else { return };
    let left = store.fork_of_what_is_synced();
    let expected = Expected::of(&left);
    let opened = Journal::open(Arc::new(left.clone()), *settings).expect("what is synced is a journal");
    let name = "invariant_nothing_acknowledged_rests_on_what_was_not_synced";
    let lost_from = expected.judge(&opened, &left, *told).unwrap_or(WriteSeq::MAX);
    let (there, left) = (all_checkpoints(journal), all_checkpoints(&opened.journal));
    for checkpoint in there.into_iter().filter(|checkpoint| checkpoint.cut < lost_from) {
        assert!(left.contains(&checkpoint), "{name}: checkpoint {} is gone", checkpoint.cut);
    }
    for pin in journal.pins() {
        assert!(opened.journal.pins().contains(&pin), "{name}: the pin of {} is gone", pin.cut);
    }
}

/// What a person has pinned can be opened as it was, whatever was folded since.
pub(crate) fn invariant_pinned_cuts_stay(pair: &Pair) {
    let Some(journal) = &pair.recovery.journal else { return };
    let kept = journal.pins();
    for (id, cut) in &pair.recovery.pins {
        assert!(kept.iter().any(|pin| pin.id == *id && pin.cut == *cut), "the pin of {cut} is gone");
        let mut guest = pair.source.playback(&pair.initial);
        let what = || format!("pin of {cut}");
        compare_any(&mut guest, journal, *cut, &pair.recovery.spoilt(), true, what);
    }
}

/// What people said to a checkpoint stays with it.
pub(crate) fn invariant_words_of_a_tag_stay(pair: &Pair) {
    let Some(journal) = &pair.recovery.journal else { return };
    for checkpoint in all_checkpoints(journal) {
        let words =
            if checkpoint.kind == CheckpointKind::Tagged { words_of(checkpoint.cut) } else { String::new() };
        assert_eq!(checkpoint.tag, words, "invariant_words_of_a_tag_stay");
    }
}

/// The VM as of a cut is what the guest's disk was then.
pub(crate) fn compare_at(pair: &Pair, cut: WriteSeq, what: &str) {
    let journal = pair.recovery.journal.as_ref().expect("only what is open is chosen");
    let mut guest = pair.source.playback(&pair.initial);
    compare(&mut guest, journal, cut, &pair.recovery.spoilt(), || what.to_owned());
}

fn compare(
    guest: &mut Playback<'_>,
    journal: &Arc<Journal>,
    cut: WriteSeq,
    spoilt: &Spoilt,
    what: impl Fn() -> String,
) {
    compare_any(guest, journal, cut, spoilt, spoilt.decayed.has_unfound(), what);
}

/// The same, of one that may be damaged.
fn compare_any(
    guest: &mut Playback<'_>,
    journal: &Arc<Journal>,
    cut: WriteSeq,
    spoilt: &Spoilt,
    may_be_damaged: bool,
    what: impl Fn() -> String,
) {
    let torn = guest.up_to(cut);
    let expected = &guest.content;
    let image = Image::open(journal.clone(), cut, None, [0; 16]).expect("a consistent cut can be opened");
    let mut found = vec![0; expected.len()];
    if let Err(error) = image.read_at(DiskIndex(0), 0, &mut found) {
        assert!(may_be_damaged, "{}, which is whole, cannot be read: {error:?}", what());
        compare_sectors(&guest.content, &torn, &image, spoilt);
        return;
    }
    if found == *expected {
        return;
    }
    // A cut may fall between the pieces of one large write, which no disk promises to be one.
    for at in (0..expected.len()).filter(|&at| expected[at] != found[at]) {
        let byte = ByteRange::new(at as u64, 1);
        assert!(
            torn.iter().any(|range| range.overlaps(byte)),
            "invariant_image_at_checkpoint_equals_guest_disk_then: {}, byte {at}",
            what()
        );
    }
}

fn compare_damaged(
    guest: &mut Playback<'_>,
    journal: &Arc<Journal>,
    facts: &CheckpointFacts,
    spoilt: &Spoilt,
) {
    let cut = facts.checkpoint.cut;
    let torn = guest.up_to(cut);
    let image = Image::open(journal.clone(), cut, None, [0; 16]).expect("a damaged checkpoint can be opened");
    let unread = compare_sectors(&guest.content, &torn, &image, spoilt);
    let (least, most) = (facts.damaged_bytes.div_ceil(SECTOR as u64), facts.damaged_bytes);
    // What no scrub has come by is not counted.
    let most = if spoilt.decayed.has_unfound() { u64::MAX } else { most };
    assert!(
        (least..=most).contains(&unread),
        "{} bytes of checkpoint {cut} are damaged, {unread} sectors",
        facts.damaged_bytes
    );
}

/// Sector by sector: it is what it was, or cannot be read, where it may have been damaged and nowhere else. How many cannot.
fn compare_sectors(content: &[u8], torn: &[ByteRange], image: &Image, spoilt: &Spoilt) -> u64 {
    let (cut, mut unread) = (image.cut(), 0);
    for (number, expected) in content.chunks(SECTOR).enumerate() {
        let sector = ByteRange::new((number * SECTOR) as u64, expected.len() as u64);
        let mut found = vec![0; expected.len()];
        if let Err(error) = image.read_at(DiskIndex(0), sector.start, &mut found) {
            unread += 1;
            assert!(
                spoilt.may_be_lost(sector, cut),
                "invariant_damage_costs_what_it_damages: sector {number} of checkpoint {cut}: {error:?}"
            );
            continue;
        }
        assert!(
            found == expected || torn.iter().any(|range| range.overlaps(sector)),
            "invariant_damage_shows_nothing_wrong: sector {number} of checkpoint {cut}"
        );
    }
    unread
}

/// The newest moment at which all of them can be opened.
pub(crate) fn newest_common_cut(journals: &[Arc<Journal>]) -> Option<WriteSeq> {
    let mut cut = WriteSeq::MAX;
    loop {
        let newest = |at_most, journal: &Arc<Journal>| journal.newest_consistent(at_most);
        let lowest = journals.iter().try_fold(cut, newest)?;
        if lowest == cut {
            return Some(cut);
        }
        cut = lowest;
    }
}

/// What somebody says to a checkpoint.
pub(crate) fn words_of(cut: WriteSeq) -> String {
    format!("before {cut}")
}
