//! Writes that wait for the recovery side, and those who hold them.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::capture::tests::capture;
use crate::sync_gate::{OnTimeout, Others, SyncPolicy, SyncState};
use batch::Kind;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use types::{ByteRange, DiskIndex};

/// Where the test would hang without it.
const FOR_EVER: Duration = Duration::from_secs(30);

fn synchronous(on_timeout: OnTimeout) -> Arc<Capture> {
    let capture = capture(1 << 20);
    let policy = SyncPolicy { timeout: std::time::Duration::from_millis(20), on_timeout };
    capture.set_sync(Some(policy), Others::NONE);
    assert!(capture.return_to_sync());
    Arc::new(capture)
}

/// Writes on a thread of its own, as a guest does; it ends when the guest is told.
fn write_and_hold(capture: &Arc<Capture>) -> std::thread::JoinHandle<()> {
    let capture = capture.clone();
    std::thread::spawn(move || {
        let payload = Bytes::from(vec![7; 4096]);
        let range = ByteRange::new(0, 4096);
        capture.begin_write(DiskIndex(0), range).unwrap();
        let seq = capture.commit(DiskIndex(0), Kind::Write, range, &payload);
        capture.hold(seq);
        assert!(capture.status().released >= seq || capture.status().sync != SyncState::Synchronous);
    })
}

#[test]
fn in_synchronous_mode_the_guest_is_told_once_the_write_is_durable() {
    let capture = synchronous(OnTimeout::Hold);
    let before = capture.status().last;
    let guest = write_and_hold(&capture);
    while capture.status().last == before {
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert!(!guest.is_finished(), "held beyond the time limit");
    capture.release(capture.status().last);
    guest.join().unwrap();
    assert_eq!(capture.status().sync, SyncState::Synchronous);
}

#[test]
fn a_stalled_link_degrades_and_the_stream_rejoins_when_it_has_caught_up() {
    let capture = synchronous(OnTimeout::Degrade);
    write_and_hold(&capture).join().unwrap();
    assert_eq!(capture.status().sync, SyncState::Degraded);
    write_and_hold(&capture).join().unwrap();
    capture.release(capture.status().last);
    assert!(capture.return_to_sync());
    assert!(!capture.return_to_sync(), "news only once");
    assert_eq!(capture.status().sync, SyncState::Synchronous);
}

/// A pause, a sync, a local write that failed, a monitor that is lost.
#[test]
fn while_writes_pass_for_a_gap_in_the_stream_the_mode_does_not_say_that_they_wait() {
    let capture = synchronous(OnTimeout::Hold);
    assert_eq!(capture.status().sync, SyncState::Synchronous);
    capture.start_tracking();
    assert_eq!(capture.status().sync, SyncState::Degraded);
    write_and_hold(&capture).join().unwrap();
    capture.leave_tracking();
    assert_eq!(capture.status().sync, SyncState::Degraded, "what was written meanwhile is not there yet");
    assert!(!capture.return_to_sync());

    let capture = synchronous(OnTimeout::Hold);
    capture.lose_writes();
    assert_eq!(capture.status().sync, SyncState::Degraded);
}

#[test]
fn a_guest_is_told_once_the_other_vms_of_the_group_are_as_far() {
    let capture = synchronous(OnTimeout::Hold);
    capture.follow_others(Others { up_to: WriteSeq::ZERO, missing: false, caught_up: true });
    let patience = Arc::new(Patience::default());
    let seq = committed(&capture, 1);
    let told = hold_with(&capture, &patience, seq);
    capture.release(seq);
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "no image of the group has it yet");
    assert!(!capture.may_acknowledge(seq));
    capture.follow_others(Others { up_to: seq, missing: false, caught_up: true });
    assert!(told.recv_timeout(FOR_EVER).unwrap());
    assert_eq!(capture.status().sync, SyncState::Synchronous);
}

#[test]
fn where_another_vm_of_the_group_misses_writes_nothing_is_promised() {
    let capture = synchronous(OnTimeout::Hold);
    capture.follow_others(Others { up_to: WriteSeq::ZERO, missing: false, caught_up: true });
    let patience = Arc::new(Patience::default());
    let told = hold_with(&capture, &patience, committed(&capture, 1));
    capture.follow_others(Others { up_to: WriteSeq::ZERO, missing: true, caught_up: false });
    assert!(told.recv_timeout(FOR_EVER).unwrap(), "a guest does not stand still for another's sync");
    assert_eq!(capture.status().sync, SyncState::Degraded);
    assert!(!capture.return_to_sync());
    // Not before it would be promised at once: each write would have to wait in vain otherwise.
    capture.follow_others(Others { up_to: WriteSeq::ZERO, missing: false, caught_up: false });
    assert!(!capture.return_to_sync());
    capture.follow_others(Others { up_to: WriteSeq::ZERO, missing: false, caught_up: true });
    assert!(capture.return_to_sync());
}

/// A write that is held with a patience; what becomes of it.
fn hold_with(capture: &Arc<Capture>, patience: &Arc<Patience>, seq: WriteSeq) -> Receiver<bool> {
    let (capture, patience) = (capture.clone(), patience.clone());
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(capture.hold_for(seq, &patience)));
    told
}

fn committed(capture: &Capture, byte: u8) -> WriteSeq {
    let range = ByteRange::new(0, 4096);
    capture.begin_write(DiskIndex(0), range).unwrap();
    capture.commit(DiskIndex(0), Kind::Write, range, &Bytes::from(vec![byte; 4096]))
}

#[test]
fn whoever_leaves_is_not_told_of_writes_that_the_other_side_does_not_have() {
    for on_timeout in [OnTimeout::Hold, OnTimeout::Degrade] {
        let capture = synchronous(on_timeout);
        // Not so soon that it could be this that ends the wait.
        capture.set_sync(Some(SyncPolicy { timeout: FOR_EVER, on_timeout }), Others::NONE);
        capture.return_to_sync();
        let patience = Arc::new(Patience::default());
        let told: Vec<_> =
            [1, 2].map(|byte| hold_with(&capture, &patience, committed(&capture, byte))).into();
        std::thread::sleep(Duration::from_millis(50));
        capture.end_patience(&patience);
        assert!(told.iter().all(|told| !told.recv_timeout(FOR_EVER).unwrap()));
        assert!(!capture.hold_for(committed(&capture, 3), &patience), "it has left");
        // They are what they were: in the stream, and marked until the other side has them.
        let status = capture.status();
        assert_eq!((status.sync, status.gap_open), (SyncState::Synchronous, false));
        assert!(status.buffered_bytes > 3 * 4096);
        // Another who stays is told when it may be.
        let staying = Arc::new(Patience::default());
        let told = hold_with(&capture, &staying, committed(&capture, 4));
        std::thread::sleep(Duration::from_millis(50));
        assert!(told.try_recv().is_err());
        capture.release(capture.status().last);
        assert!(told.recv_timeout(FOR_EVER).unwrap());
    }
}

#[test]
fn whoever_leaves_is_told_of_what_comes_soon() {
    let capture = synchronous(OnTimeout::Hold);
    let patience = Arc::new(Patience::default());
    let told = hold_with(&capture, &patience, committed(&capture, 1));
    patience.ends_at.set(Deadline::after(FOR_EVER)).unwrap();
    capture.end_patience(&patience);
    std::thread::sleep(Duration::from_millis(50));
    assert!(told.try_recv().is_err(), "it waits for a little");
    capture.release(capture.status().last);
    assert!(told.recv_timeout(FOR_EVER).unwrap());
}

#[test]
fn a_gap_lets_go_of_what_is_held() {
    for end in [Capture::start_tracking, Capture::lose_writes, Capture::suspect_everything] {
        let capture = synchronous(OnTimeout::Hold);
        let told = hold_with(&capture, &Arc::default(), committed(&capture, 1));
        end(&capture);
        assert!(told.recv_timeout(FOR_EVER).unwrap());
    }
}

/// An operator changes the mode while the guest writes and waits.
#[test]
fn a_mode_that_is_changed_holds_from_when_the_stream_has_caught_up_and_lets_go_at_once() {
    let capture = Arc::new(capture(1 << 20));
    write_and_hold(&capture).join().unwrap();
    let others = Others { up_to: types::WriteSeq::ZERO, missing: false, caught_up: false };
    let hold = SyncPolicy { timeout: FOR_EVER, on_timeout: OnTimeout::Hold };
    capture.set_sync(Some(hold), others);
    assert_eq!(capture.status().sync, SyncState::Degraded, "there is nothing to promise yet");
    assert!(!capture.return_to_sync(), "the others of its group have not caught up");
    capture.follow_others(Others::NONE);
    assert!(capture.return_to_sync());
    let guest = write_and_hold(&capture);
    while capture.status().last == capture.status().released {
        std::thread::yield_now();
    }
    // Shorter from now on, also for who waits already.
    capture.set_sync(Some(SyncPolicy { on_timeout: OnTimeout::Degrade, ..hold }), Others::NONE);
    let soon = SyncPolicy { timeout: Duration::from_millis(10), on_timeout: OnTimeout::Degrade };
    capture.set_sync(Some(soon), Others::NONE);
    guest.join().unwrap();
    assert_eq!(capture.status().sync, SyncState::Degraded);
    capture.release(capture.status().last);
    capture.set_sync(Some(hold), Others::NONE);
    assert!(capture.return_to_sync());
    let guest = write_and_hold(&capture);
    while capture.status().last == capture.status().released {
        std::thread::yield_now();
    }
    capture.set_sync(None, Others::NONE);
    guest.join().unwrap();
    assert_eq!(capture.status().sync, SyncState::Asynchronous);
}
