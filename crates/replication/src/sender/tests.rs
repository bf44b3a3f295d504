//! Events by hand, effects looked at.

use super::*;
use crate::wire::Compared;
use std::time::Duration;
use types::limits::{SEND_AGAIN_BYTES_PER_SECOND, SEND_AGAIN_INTERVAL};
use types::{BlockIndex, BlockRun, DiskIndex};

const MINE: Incarnation = Incarnation::from_bytes([1; 16]);
const DISK_BYTES: u64 = 100 << 16;

fn at(millis: u64) -> Monotonic {
    Monotonic(Duration::from_millis(millis))
}

fn seq(raw: u64) -> WriteSeq {
    WriteSeq::from_raw(raw)
}

fn idle() -> CaptureView {
    CaptureView {
        tracking: false,
        gap_open: false,
        deaf: false,
        dirty_blocks: 0,
        suspect_blocks: 0,
        unsettled_blocks: 0,
        spill_has_room: false,
        spill_lost: false,
        spills: false,
        buffered_bytes: 0,
        copies: 0,
        buffer_bytes_max: 1 << 20,
        released: seq(0),
        last: seq(0),
        drawn: seq(0),
        watermark: seq(0),
    }
}

struct Bench {
    sender: Sender,
    view: CaptureView,
    now: Monotonic,
}

impl Bench {
    fn new() -> Self {
        let config = SenderConfig {
            vm: VmId::from_bytes([0; 16]),
            epoch: Epoch::FIRST,
            incarnation: MINE,
            paused: false,
            kept: Vec::new(),
            suspects_because: SyncReason::Interrupted,
            disk_sizes: vec![DISK_BYTES],
        };
        let view = CaptureView { tracking: true, ..idle() };
        Self { sender: Sender::new(config, at(0)), view, now: at(0) }
    }

    fn step(&mut self, event: SenderEvent) -> Vec<SenderEffect> {
        let mut effects = Vec::new();
        self.sender.step(self.now, event, &self.view, &mut effects);
        effects
    }

    fn welcome(&mut self, durable: u64, incarnation: Option<Incarnation>) -> Vec<SenderEffect> {
        let welcome = Welcome {
            epoch: Epoch::FIRST,
            durable: seq(durable),
            incarnation,
            must_compare: false,
            seeded: false,
            missing: Vec::new(),
        };
        self.step(SenderEvent::Received(Message::Welcome(welcome)))
    }

    /// Up to `Journaling`, with nothing buffered.
    fn journaling() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.step(SenderEvent::Tick), [SenderEffect::Connect]);
        bench.step(SenderEvent::LinkUp);
        let effects = bench.welcome(0, None);
        assert!(effects.contains(&SenderEffect::Restart { floor: seq(0), differs: Differs::Allocated }));
        bench.view = CaptureView { gap_open: true, last: seq(1), watermark: seq(1), ..idle() };
        assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::CloseSync));
        bench.view = CaptureView { last: seq(2), watermark: seq(2), ..idle() };
        bench.step(SenderEvent::SyncClosed { closed: true });
        bench.step(SenderEvent::BatchSent { last: seq(2), watermark: seq(2), bytes: 100 });
        bench.ack(2);
        bench.view.released = seq(2);
        assert_eq!(bench.sender.state(), State::Journaling);
        bench
    }

    fn ack(&mut self, durable: u64) -> Vec<SenderEffect> {
        let ack = Ack {
            durable: seq(durable),
            watermark: seq(durable),
            applied: seq(0),
            journal_bytes: 0,
            history_seconds: 0,
            projected_history_seconds: None,
        };
        self.step(SenderEvent::Received(Message::Ack(ack)))
    }
}

#[test]
fn a_sync_ends_once_no_copy_waits_in_memory() {
    let mut bench = Bench::new();
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    bench.welcome(0, None);
    bench.view = CaptureView { gap_open: true, copies: 2, last: seq(1), watermark: seq(1), ..idle() };
    assert!(!bench.step(SenderEvent::Tick).contains(&SenderEffect::CloseSync));
    bench.view.copies = 0;
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::CloseSync));
}

#[test]
fn a_new_journal_gets_an_initial_sync_and_then_every_write() {
    let mut bench = Bench::journaling();
    bench.view.last = seq(3);
    bench.view.watermark = seq(3);
    assert_eq!(bench.step(SenderEvent::Tick), [SenderEffect::SendBatch { after: seq(2) }]);
    assert_eq!(bench.step(SenderEvent::Tick), [], "one batch is built at a time");
    bench.step(SenderEvent::BatchSent { last: seq(3), watermark: seq(3), bytes: 10 });
    assert_eq!(bench.ack(3), [SenderEffect::Release { up_to: seq(3) }]);
}

#[test]
fn a_short_loss_of_the_link_resumes_without_a_sync() {
    let mut bench = Bench::journaling();
    bench.view.last = seq(9);
    bench.view.watermark = seq(9);
    bench.step(SenderEvent::LinkLost);
    assert_eq!(bench.sender.state(), State::Journaling);
    bench.now = at(1000);
    assert_eq!(bench.step(SenderEvent::Tick), [SenderEffect::Connect]);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.welcome(5, Some(MINE));
    assert!(effects.contains(&SenderEffect::SendBatch { after: seq(5) }), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, SenderEffect::Restart { .. })));
    assert_eq!(bench.sender.state(), State::Journaling);
}

#[test]
fn a_lost_link_falls_back_to_the_bitmap_and_comes_back_through_it() {
    let mut bench = Bench::journaling();
    bench.step(SenderEvent::LinkLost);
    bench.view = CaptureView {
        tracking: true,
        gap_open: true,
        dirty_blocks: 4,
        last: seq(50),
        released: seq(2),
        ..idle()
    };
    bench.step(SenderEvent::Tick);
    assert_eq!(bench.sender.state(), State::Tracking { why: TrackingReason::BufferFull });
    bench.now = at(2000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.welcome(50, Some(MINE));
    assert!(effects.contains(&SenderEffect::LeaveTracking), "{effects:?}");
    assert_eq!(bench.sender.state(), State::BitmapSync);
    bench.view.tracking = false;
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::CopyBlocks));
    bench.view.dirty_blocks = 0;
    assert!(bench.step(SenderEvent::CopyDone { taken: true }).contains(&SenderEffect::CloseSync));
    bench.view.gap_open = false;
    bench.step(SenderEvent::SyncClosed { closed: true });
    assert_eq!(bench.sender.state(), State::Journaling);
}

#[test]
fn a_journal_that_lost_acknowledged_writes_is_compared() {
    let mut bench = Bench::journaling();
    bench.view.released = seq(40);
    bench.view.last = seq(45);
    bench.step(SenderEvent::LinkLost);
    bench.now = at(1000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.welcome(30, Some(MINE));
    assert!(effects.contains(&SenderEffect::Restart { floor: seq(30), differs: Differs::Suspect }));
    assert_eq!(bench.sender.state(), State::DeltaSync { why: SyncReason::PeerLostWrites });
}

#[test]
fn nothing_is_released_that_was_not_acknowledged() {
    let mut bench = Bench::journaling();
    let effects = bench.ack(99);
    assert_eq!(effects, [SenderEffect::Disconnect], "an acknowledgement of what was never sent");
}

#[test]
fn a_higher_epoch_fences_and_its_release_unfences() {
    let mut bench = Bench::journaling();
    let refuse = |released| {
        let why = Refusal::Fenced { epoch: Epoch(2), released };
        SenderEvent::Received(Message::Refuse(Refuse { why, detail: String::new() }))
    };
    let effects = bench.step(refuse(false));
    assert!(effects.contains(&SenderEffect::Disconnect));
    assert_eq!(bench.sender.state(), State::Fenced { epoch: Epoch(2) });
    bench.now = at(20_000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.step(refuse(true));
    assert!(effects.contains(&SenderEffect::AdoptEpoch(Epoch(2))));
    assert!(matches!(bench.sender.state(), State::Tracking { .. }));
}

#[test]
fn a_pause_stops_the_stream_and_keeps_the_bitmap() {
    let mut bench = Bench::journaling();
    let effects = bench.step(SenderEvent::Pause);
    assert!(effects.contains(&SenderEffect::StartTracking));
    assert!(effects.contains(&SenderEffect::Disconnect));
    bench.now = at(60_000);
    assert_eq!(bench.step(SenderEvent::Tick), []);
    assert!(bench.step(SenderEvent::Resume).contains(&SenderEffect::Connect));
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut bench = Bench::journaling();
    bench.now = at(11_000);
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::Disconnect));
    assert!(matches!(bench.sender.link(), Link::Down { .. }));
}

#[test]
fn a_full_journal_is_a_state_the_operator_can_see_and_it_is_left_by_itself() {
    let mut bench = Bench::journaling();
    let refuse = Refuse { why: Refusal::JournalFull, detail: "no space".into() };
    bench.step(SenderEvent::Received(Message::Refuse(refuse)));
    assert_eq!(bench.sender.state(), State::Failed { why: Failure::Refused(Refusal::JournalFull) });
    bench.now = at(6_000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    bench.welcome(2, Some(MINE));
    assert_eq!(bench.sender.state(), State::Journaling);
}

#[test]
fn after_a_restart_only_what_is_marked_is_sent_if_the_journal_knows_the_stream() {
    let before = Incarnation::from_bytes([7; 16]);
    let welcomed = |durable, incarnation| {
        let mut bench = Bench::new();
        bench.sender.config.kept = vec![KeptStream { incarnation: before, acked: seq(50) }];
        bench.step(SenderEvent::Tick);
        bench.step(SenderEvent::LinkUp);
        let effects = bench.welcome(durable, Some(incarnation));
        (effects, bench.sender.state())
    };
    let (effects, state) = welcomed(60, before);
    assert!(effects.contains(&SenderEffect::Restart { floor: seq(60), differs: Differs::Marked }));
    assert_eq!(state, State::BitmapSync);
    for (durable, incarnation) in [(49, before), (60, Incarnation::from_bytes([8; 16]))] {
        let (effects, state) = welcomed(durable, incarnation);
        let floor = seq(durable);
        assert!(effects.contains(&SenderEffect::Restart { floor, differs: Differs::Suspect }), "{effects:?}");
        assert_eq!(state, State::DeltaSync { why: SyncReason::UnknownStream });
    }
}

#[test]
fn a_comparison_is_asked_for_once_everything_it_is_about_was_sent() {
    let mut bench = Bench::journaling();
    bench.view = CaptureView {
        suspect_blocks: 16,
        unsettled_blocks: 16,
        last: seq(9),
        watermark: seq(9),
        ..bench.view
    };
    let effects = bench.step(SenderEvent::Tick);
    assert!(effects.contains(&SenderEffect::HashBlocks), "{effects:?}");
    let compare = Compare {
        disk: types::DiskIndex(0),
        first: types::BlockIndex(0),
        at: seq(9),
        hashes: vec![batch::BlockHash([1; 32])],
    };
    let asks =
        |effects: &[SenderEffect]| effects.contains(&SenderEffect::Send(Message::Compare(compare.clone())));
    bench.view.suspect_blocks = 0;
    assert!(!asks(&bench.step(SenderEvent::Hashed(Some(compare.clone())))));
    assert!(asks(&bench.step(SenderEvent::BatchSent { last: seq(9), watermark: seq(9), bytes: 10 })));
    let compared = Compared { disk: types::DiskIndex(0), first: types::BlockIndex(0), differs: 1 };
    let effects = bench.step(SenderEvent::Received(Message::Compared(compared)));
    assert!(effects.contains(&SenderEffect::Settle(compared)));
    assert_eq!(bench.sender.state(), State::Journaling, "a comparison alone makes no gap");
    let effects = bench.step(SenderEvent::Received(Message::Compared(compared)));
    assert!(effects.contains(&SenderEffect::Disconnect), "an answer nobody asked for");
}

/// A sender that has asked for a comparison of blocks 5 and 6 of disk 0.
fn comparing() -> Bench {
    let mut bench = Bench::journaling();
    bench.view = CaptureView { suspect_blocks: 2, unsettled_blocks: 2, ..bench.view };
    bench.step(SenderEvent::Tick);
    bench.view.suspect_blocks = 0;
    let compare = Compare {
        disk: types::DiskIndex(0),
        first: types::BlockIndex(5),
        at: seq(2),
        hashes: vec![batch::BlockHash([1; 32]); 2],
    };
    let effects = bench.step(SenderEvent::Hashed(Some(compare.clone())));
    assert!(effects.contains(&SenderEffect::Send(Message::Compare(compare))));
    bench
}

#[test]
fn an_answer_about_other_blocks_than_were_asked_for_ends_the_connection() {
    for (disk, first) in [(65_535, 5), (0, 0), (0, 6), (0, u64::MAX), (1, 5)] {
        let mut bench = comparing();
        let compared =
            Compared { disk: types::DiskIndex(disk), first: types::BlockIndex(first), differs: u64::MAX };
        let effects = bench.step(SenderEvent::Received(Message::Compared(compared)));
        assert!(effects.contains(&SenderEffect::Disconnect), "{effects:?}");
        assert!(!effects.iter().any(|effect| matches!(effect, SenderEffect::Settle(_))), "{effects:?}");
    }
}

#[test]
fn an_answer_says_nothing_of_blocks_behind_the_run() {
    let mut bench = comparing();
    let answer = |differs| Compared { disk: types::DiskIndex(0), first: types::BlockIndex(5), differs };
    let effects = bench.step(SenderEvent::Received(Message::Compared(answer(u64::MAX))));
    assert!(effects.contains(&SenderEffect::Settle(answer(3))), "{effects:?}");
}

#[test]
fn no_counter_is_lifted_by_a_peer_to_what_others_refuse_to_hear() {
    let near = WriteSeq::from_raw(WriteSeq::FOREIGN_MAX.raw() - 1000);
    for durable in [WriteSeq::MAX, WriteSeq::MAX.previous(), near, WriteSeq::LIFT_MAX.next()] {
        let mut bench = Bench::new();
        bench.step(SenderEvent::Tick);
        bench.step(SenderEvent::LinkUp);
        let effects = bench.welcome(durable.raw(), None);
        assert!(effects.contains(&SenderEffect::Disconnect), "{effects:?}");
        assert!(!effects.iter().any(|effect| matches!(effect, SenderEffect::Restart { .. })), "{effects:?}");
    }
}

#[test]
fn what_was_drawn_here_may_be_in_a_journal_however_high_it_is() {
    let mut bench = Bench::new();
    bench.view.drawn = seq(WriteSeq::LIFT_MAX.raw() + 9);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let durable = WriteSeq::LIFT_MAX.raw() + 9;
    let restart = SenderEffect::Restart { floor: seq(durable), differs: Differs::Suspect };
    assert!(bench.welcome(durable, None).contains(&restart));
}

#[test]
fn no_epoch_is_lifted_by_a_peer_to_what_others_refuse_to_hear() {
    let welcome = |epoch| {
        let (durable, incarnation, must_compare, seeded) = (seq(0), None, false, false);
        Message::Welcome(Welcome { epoch, durable, incarnation, must_compare, seeded, missing: Vec::new() })
    };
    let released = |epoch| {
        let why = Refusal::Fenced { epoch, released: true };
        Message::Refuse(Refuse { why, detail: String::new() })
    };
    let said = |ours, message| {
        let mut bench = Bench::new();
        bench.sender.config.epoch = ours;
        bench.step(SenderEvent::Tick);
        bench.step(SenderEvent::LinkUp);
        let effects = bench.step(SenderEvent::Received(message));
        let adopts = effects.iter().any(|effect| matches!(effect, SenderEffect::AdoptEpoch(_)));
        let told = effects.iter().any(|effect| matches!(effect, SenderEffect::Disbelieved(_)));
        assert_eq!(told, bench.sender.state() == State::Failed { why: Failure::Disbelieved });
        assert_eq!(told, effects.contains(&SenderEffect::Disconnect) && !adopts, "{effects:?}");
        adopts
    };
    for far in [Epoch::FOREIGN_MAX, Epoch::LIFT_MAX.next()] {
        assert!(!said(Epoch::FIRST, welcome(far)));
        assert!(!said(Epoch::FIRST, released(far)));
    }
    assert!(said(Epoch::FIRST, welcome(Epoch::LIFT_MAX)));
    assert!(said(Epoch::LIFT_MAX, welcome(Epoch::LIFT_MAX.next())), "an honest failover after one that lied");
}

#[test]
fn a_link_lost_before_the_first_acknowledgement_costs_no_comparison() {
    let mut bench = Bench::new();
    let before = Incarnation::from_bytes([7; 16]);
    bench.sender.config.kept = vec![KeptStream { incarnation: before, acked: seq(50) }];
    for at_ms in [0, 60_000] {
        bench.now = at(at_ms);
        bench.step(SenderEvent::Tick);
        bench.step(SenderEvent::LinkUp);
        let effects = bench.welcome(60, Some(before));
        assert!(effects.contains(&SenderEffect::Restart { floor: seq(60), differs: Differs::Marked }));
        assert_eq!(bench.sender.state(), State::BitmapSync);
        bench.view = CaptureView { gap_open: true, last: seq(61), watermark: seq(61), ..idle() };
        bench.view.released = seq(60);
        bench.step(SenderEvent::LinkLost);
    }
    // Once something of the new stream is durable, a journal without it has lost it.
    bench.now = at(120_000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    bench.welcome(60, Some(before));
    bench.step(SenderEvent::BatchSent { last: seq(61), watermark: seq(61), bytes: 10 });
    bench.ack(61);
    bench.step(SenderEvent::LinkLost);
    bench.now = at(180_000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.welcome(61, Some(before));
    assert!(effects.contains(&SenderEffect::Restart { floor: seq(61), differs: Differs::Suspect }));
}

#[test]
fn copies_are_made_only_where_nothing_waits_for_the_link() {
    let mut bench = Bench::new();
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    bench.welcome(0, None);
    let copies = |bench: &mut Bench, buffered_bytes, spills| {
        let view = CaptureView { gap_open: true, dirty_blocks: 9, last: seq(1), watermark: seq(1), ..idle() };
        bench.view = CaptureView { buffered_bytes, spills, ..view };
        bench.step(SenderEvent::Tick).contains(&SenderEffect::CopyBlocks)
    };
    let max = idle().buffer_bytes_max;
    assert!(!copies(&mut bench, max / 4, false), "a quarter full");
    assert!(!copies(&mut bench, 0, true), "writes lie in the spill");
    assert!(copies(&mut bench, 0, false));
    bench.step(SenderEvent::CopyDone { taken: false });
    assert!(!copies(&mut bench, 0, false), "there was no room just now");
    bench.now = at(60_000);
    assert!(bench.step(SenderEvent::Received(Message::Heartbeat)).contains(&SenderEffect::CopyBlocks));
}

#[test]
fn a_sync_that_could_not_be_closed_is_not_closed_again_at_once() {
    let mut bench = Bench::journaling();
    bench.view = CaptureView { gap_open: true, ..bench.view };
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::CloseSync));
    // Who carries out effects answers at once: another one here, and nothing else is ever done.
    for event in [SenderEvent::SyncClosed { closed: false }, SenderEvent::Tick] {
        assert!(!bench.step(event).contains(&SenderEffect::CloseSync));
    }
    bench.view.dirty_blocks = 1;
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::CopyBlocks), "what was marked meanwhile");
    bench.view.dirty_blocks = 0;
    bench.step(SenderEvent::CopyDone { taken: true });
    bench.now = at(5_000);
    assert!(bench.step(SenderEvent::Received(Message::Heartbeat)).contains(&SenderEffect::CloseSync));
}

#[test]
fn the_sync_of_a_vm_that_is_not_heard_any_more_is_not_closed() {
    let mut bench = Bench::journaling();
    bench.view = CaptureView { gap_open: true, deaf: true, ..bench.view };
    for at_ms in [0, 5_000] {
        bench.now = at(at_ms);
        assert!(!bench.step(SenderEvent::Received(Message::Heartbeat)).contains(&SenderEffect::CloseSync));
    }
    assert_eq!(bench.sender.state(), State::BitmapSync);
}

#[test]
fn blocks_hashed_for_a_link_that_is_gone_are_suspect_again() {
    let mut bench = Bench::journaling();
    bench.view = CaptureView { suspect_blocks: 16, unsettled_blocks: 16, ..bench.view };
    bench.step(SenderEvent::Tick);
    assert!(bench.step(SenderEvent::LinkLost).contains(&SenderEffect::ForgetCompares));
    bench.now = at(1000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    bench.welcome(2, Some(MINE));
    let compare = Compare {
        disk: types::DiskIndex(0),
        first: types::BlockIndex(0),
        at: seq(2),
        hashes: vec![batch::BlockHash([1; 32])],
    };
    let effects = bench.step(SenderEvent::Hashed(Some(compare)));
    assert!(effects.contains(&SenderEffect::ForgetCompares));
    assert!(!effects.iter().any(|effect| matches!(effect, SenderEffect::Send(Message::Compare(_)))));
}

#[test]
fn a_buffer_half_full_goes_to_the_spill_with_and_without_a_link() {
    let mut bench = Bench::journaling();
    bench.view.spill_has_room = true;
    bench.view.buffered_bytes = bench.view.buffer_bytes_max / 2;
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::Spill));
    assert!(!bench.step(SenderEvent::Tick).contains(&SenderEffect::Spill), "one at a time");
    bench.step(SenderEvent::LinkLost);
    assert!(bench.step(SenderEvent::Spilled).contains(&SenderEffect::Spill));
}

#[test]
fn a_spill_that_is_lost_costs_a_sync_of_what_was_not_acknowledged() {
    let mut bench = Bench::journaling();
    bench.view = CaptureView { last: seq(9), watermark: seq(9), spill_lost: true, ..bench.view };
    assert!(bench.step(SenderEvent::Tick).contains(&SenderEffect::Disconnect));
    bench.now = at(1000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let effects = bench.welcome(5, Some(MINE));
    assert!(effects.contains(&SenderEffect::Restart { floor: seq(5), differs: Differs::Marked }));
    assert_eq!(bench.sender.state(), State::BitmapSync);
}

#[test]
fn an_exceeded_bound_stops_the_stream_until_the_operator_lets_it_go_on() {
    let mut bench = Bench::journaling();
    let effects = bench.step(SenderEvent::Bounds { exceeded: true });
    assert!(effects.contains(&SenderEffect::StartTracking) && effects.contains(&SenderEffect::Disconnect));
    assert_eq!(bench.sender.state(), State::Failed { why: Failure::BoundExceeded });
    bench.now = at(60_000);
    assert_eq!(bench.step(SenderEvent::Tick), []);
    assert!(bench.step(SenderEvent::Bounds { exceeded: false }).contains(&SenderEffect::Connect));
}

#[test]
fn a_replica_brought_by_other_means_is_compared_not_sent() {
    let mut bench = Bench::new();
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    let welcome = Welcome {
        epoch: Epoch::FIRST,
        durable: seq(0),
        incarnation: None,
        must_compare: false,
        seeded: true,
        missing: Vec::new(),
    };
    let effects = bench.step(SenderEvent::Received(Message::Welcome(welcome)));
    assert!(effects.contains(&SenderEffect::Restart { floor: seq(0), differs: Differs::Suspect }));
    assert_eq!(bench.sender.state(), State::DeltaSync { why: SyncReason::Preseeded });
}

#[test]
fn what_a_journal_has_lost_is_compared_since_zeroes_are_lost_too() {
    for (durable, must_compare) in [(50, true), (50, false), (0, true)] {
        let mut bench = Bench::new();
        bench.step(SenderEvent::Tick);
        bench.step(SenderEvent::LinkUp);
        let welcome = Welcome {
            epoch: Epoch::FIRST,
            durable: seq(durable),
            incarnation: None,
            must_compare,
            seeded: false,
            missing: Vec::new(),
        };
        let effects = bench.step(SenderEvent::Received(Message::Welcome(welcome)));
        let restart = SenderEffect::Restart { floor: seq(durable), differs: Differs::Suspect };
        assert!(effects.contains(&restart), "{effects:?}");
        assert_eq!(bench.sender.state(), State::DeltaSync { why: SyncReason::PeerLostWrites });
    }
}

fn run(first: u64, blocks: u64) -> BlockRun {
    BlockRun { disk: DiskIndex(0), first: BlockIndex(first), blocks }
}

fn asks(bench: &mut Bench, runs: Vec<BlockRun>) -> Vec<SenderEffect> {
    bench.step(SenderEvent::Received(Message::SendAgain(runs)))
}

fn taken(effects: &[SenderEffect]) -> Option<&[BlockRun]> {
    effects.iter().find_map(|effect| match effect {
        SenderEffect::SendAgain(runs) => Some(&runs[..]),
        _ => None,
    })
}

/// A sync of what is marked, from its gap to its end.
fn syncs(bench: &mut Bench) {
    bench.view.gap_open = true;
    bench.step(SenderEvent::Tick);
    assert_eq!(bench.sender.state(), State::BitmapSync);
    bench.view.gap_open = false;
    bench.step(SenderEvent::SyncClosed { closed: true });
    assert_eq!(bench.sender.state(), State::Journaling);
}

#[test]
fn blocks_that_are_asked_for_again_are_marked_and_nothing_is_compared() {
    let mut bench = Bench::journaling();
    let effects = asks(&mut bench, vec![run(3, 2), run(99, 50)]);
    assert_eq!(taken(&effects), Some(&[run(3, 2), run(99, 50)][..]));
    let compares = |effect: &SenderEffect| {
        matches!(
            effect,
            SenderEffect::SuspectEverything | SenderEffect::Restart { .. } | SenderEffect::HashBlocks
        )
    };
    assert!(!effects.iter().any(compares), "{effects:?}");
    syncs(&mut bench);
}

#[test]
fn whoever_asks_for_blocks_all_the_time_is_heard_after_each_sync_and_at_a_fixed_rate() {
    let mut bench = Bench::journaling();
    assert!(taken(&asks(&mut bench, vec![run(1, 1)])).is_some());
    // The sync has not ended.
    bench.now = at(3_600_000);
    bench.step(SenderEvent::Received(Message::Heartbeat));
    assert_eq!(taken(&asks(&mut bench, vec![run(2, 1)])), None);
    assert_eq!(taken(&asks(&mut bench, vec![run(0, 100)])), None);
    bench.view.gap_open = true;
    bench.step(SenderEvent::Tick);
    bench.view.gap_open = false;
    let effects = bench.step(SenderEvent::SyncClosed { closed: true });
    assert_eq!(taken(&effects), Some(&[run(0, 100)][..]), "the newest of those that waited");
    syncs(&mut bench);
    // So much as would have been sent by now, and no sooner than that.
    bench.now = at(3_600_000 + SEND_AGAIN_INTERVAL.as_millis() as u64 - 1);
    bench.step(SenderEvent::Received(Message::Heartbeat));
    assert_eq!(taken(&asks(&mut bench, vec![run(5, 1)])), None);
    bench.now = at(3_600_000 + SEND_AGAIN_INTERVAL.as_millis() as u64);
    assert_eq!(taken(&bench.step(SenderEvent::Tick)), Some(&[run(5, 1)][..]));
}

#[test]
fn a_long_list_of_blocks_takes_its_time_before_the_next_is_heard() {
    let size = 1 << 40;
    let mut again = again::Again::new(at(0));
    again.want(vec![run(0, size >> 16)]);
    assert!(again.take(at(0)).is_some());
    again.sync_ended();
    again.want(vec![run(0, 1)]);
    let seconds = size / SEND_AGAIN_BYTES_PER_SECOND;
    assert!(again.take(at((seconds - 1) * 1000)).is_none());
    assert!(again.take(at(seconds * 1000)).is_some());
}

#[test]
fn blocks_that_no_disk_has_are_not_believed() {
    for runs in [
        vec![run(100, 1)],
        vec![run(0, 1), BlockRun { disk: DiskIndex(1), ..run(0, 1) }],
        vec![run(1 << 29, 1 << 20)],
    ] {
        let mut bench = Bench::journaling();
        let effects = asks(&mut bench, runs.clone());
        assert!(effects.iter().any(|effect| matches!(effect, SenderEffect::Disbelieved(_))), "{runs:?}");
        assert_eq!(
            (taken(&effects), bench.sender.state()),
            (None, State::Failed { why: Failure::Disbelieved })
        );
        assert!(effects.contains(&SenderEffect::Disconnect));
    }
}

#[test]
fn blocks_are_asked_for_of_a_stream_that_was_welcomed_and_forgotten_with_its_link() {
    let mut bench = Bench::new();
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    assert!(asks(&mut bench, vec![run(0, 1)]).contains(&SenderEffect::Disconnect), "nobody was welcomed");
    let mut bench = Bench::journaling();
    assert!(taken(&asks(&mut bench, vec![run(1, 1)])).is_some());
    syncs(&mut bench);
    assert_eq!(taken(&asks(&mut bench, vec![run(2, 1)])), None);
    bench.step(SenderEvent::LinkLost);
    bench.now = at(3_600_000);
    bench.step(SenderEvent::Tick);
    bench.step(SenderEvent::LinkUp);
    assert_eq!(taken(&bench.welcome(0, Some(MINE))), None, "the welcome is followed by what is still lost");
}
