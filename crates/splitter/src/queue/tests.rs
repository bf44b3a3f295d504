//! A queue whose threads the system refuses, and flushes beside syncs of the agent's own.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::capture::Capture;
use crate::disks_in_tests::{Plain, held, protected};
use crate::thread_start::refusing;

fn write(token: u64) -> Job {
    Job { token, action: Action::Write { at: token << 16, bytes: vec![7; 512].into() }, durable: false }
}

/// Looks and waits until so many jobs are done.
fn finish(queue: &mut DiskQueue, jobs: usize) -> Vec<Done> {
    let mut all = Vec::new();
    while all.len() < jobs {
        match queue.next_done() {
            Some(done) => all.push(done),
            None => queue.wait(&[]),
        }
    }
    all
}

#[test]
fn what_has_no_thread_waits_for_one_and_is_never_done_by_the_queues_own() {
    let (device, capture) = held();
    let mut queue = DiskQueue::new(device, None).unwrap();
    refusing::set(true);
    queue.submit(write(1));
    queue.workers.hold(2, WriteSeq::ZERO);
    for _ in 0..3 {
        assert!(queue.next_done().is_none());
        queue.wait(&[]);
    }
    assert_eq!(capture.status().writes, 0, "this thread would wait for what it holds itself");
    refusing::set(false);
    let released = std::thread::spawn(move || {
        while capture.status().writes == 0 {
            std::thread::yield_now();
        }
        capture.release(capture.status().last);
    });
    let mut tokens: Vec<_> = finish(&mut queue, 2).iter().map(|done| done.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [1, 2]);
    released.join().unwrap();
}

#[test]
fn a_flush_through_the_ring_is_told_what_a_sync_of_the_agents_own_was() {
    let file = Arc::new(tempfile::tempfile().unwrap());
    let local = Plain { size_bytes: 1 << 30, file: Some(file), ..Plain::default() };
    let (disk, _) = protected(Box::new(local.clone()), None);
    let disk = Arc::new(disk);
    local.fails_sync.store(true, std::sync::atomic::Ordering::SeqCst);
    disk.sync().unwrap_err();
    let mut queue = DiskQueue::new(disk, None).unwrap();
    let flush = |token| Job { token, action: Action::Flush, durable: false };
    queue.submit(flush(1));
    assert_eq!(finish(&mut queue, 1)[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
    queue.submit(flush(2));
    finish(&mut queue, 1)[0].result.as_ref().unwrap();
}

fn read(token: u64) -> Job {
    Job { token, action: Action::Read { at: 0, len: 512 }, durable: false }
}

/// A queue of a disk that waits, with a write and a read that were asked for since.
fn that_waits() -> (DiskQueue, Arc<ProtectedDisk>, Arc<Capture>) {
    let (disk, capture) = protected(Box::new(Plain { size_bytes: 1 << 30, ..Plain::default() }), None);
    let disk = Arc::new(disk);
    let mut queue = DiskQueue::new(disk.clone(), None).unwrap();
    disk.set_course(Course::Waits);
    queue.submit(write(1));
    queue.submit(read(2));
    assert!(queue.next_done().is_none());
    (queue, disk, capture)
}

#[test]
fn what_waits_is_done_once_the_disk_goes_on_and_not_before() {
    let (mut queue, disk, capture) = that_waits();
    // Whatever else wakes the queue begins nothing.
    disk.set_course(Course::Waits);
    queue.wait(&[]);
    assert!(queue.next_done().is_none());
    assert_eq!(capture.status().writes, 0);
    let goes_on = std::thread::spawn(move || disk.set_course(Course::GoesOn));
    let done = finish(&mut queue, 2);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!(capture.status().writes, 1);
    goes_on.join().unwrap();
}

#[test]
fn what_waits_is_not_begun_for_somebody_who_leaves_and_he_is_told_nothing() {
    let (mut queue, disk, capture) = that_waits();
    queue.end_patience();
    queue.submit(write(3));
    let done = finish(&mut queue, 3);
    assert!(done.iter().all(|done| matches!(done.result, Ok(Answer::Abandoned))), "{done:?}");
    drop(queue);
    disk.set_course(Course::GoesOn);
    assert_eq!(capture.status().writes, 0);
}

#[test]
fn what_waits_fails_where_the_disk_is_to_stop_and_so_does_what_comes() {
    let (mut queue, disk, capture) = that_waits();
    disk.set_course(Course::Fails);
    queue.submit(write(3));
    let done = finish(&mut queue, 3);
    assert!(done.iter().all(|done| done.result.is_err()), "{done:?}");
    assert_eq!(capture.status().writes, 0);
}
