//! A queue whose threads the system refuses.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::disks_in_tests::held;
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
