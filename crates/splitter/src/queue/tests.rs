//! A queue whose threads the system refuses, and flushes beside syncs of the agent's own.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
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
