//! Whether what guests ask of a disk is carried out: where another side has taken over, an operator may have chosen that
//! it waits, or fails.
//!
//! What holds: of a request that is taken after [`Course::set`] has returned nothing reaches the disk unless it goes on.
//! What was begun before ends as it would have.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// What becomes of a guest's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Course {
    /// They are carried out.
    #[default]
    GoesOn,
    /// They wait until it is another.
    Waits,
    /// They fail, those that wait too.
    Fails,
}

/// The course of one disk, and the queues that may have requests waiting.
#[derive(Debug, Default)]
pub(crate) struct CourseOf {
    course: AtomicU8,
    queues: Mutex<Vec<Weak<OwnedFd>>>,
}

impl CourseOf {
    pub(crate) fn get(&self) -> Course {
        match self.course.load(Ordering::SeqCst) {
            1 => Course::Waits,
            2 => Course::Fails,
            _ => Course::GoesOn,
        }
    }

    /// Whoever has requests waiting is woken.
    pub(crate) fn set(&self, course: Course) {
        let number = match course {
            Course::GoesOn => 0,
            Course::Waits => 1,
            Course::Fails => 2,
        };
        self.course.store(number, Ordering::SeqCst);
        let queues = self.queues.lock().expect("a panic aborts the process");
        for wake in queues.iter().filter_map(Weak::upgrade) {
            // One that cannot count higher wakes anyway.
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        }
    }

    /// Has a queue's descriptor for events written to whenever the course is set.
    pub(crate) fn wakes(&self, wake: &Arc<OwnedFd>) {
        let mut queues = self.queues.lock().expect("a panic aborts the process");
        queues.retain(|known| known.strong_count() > 0);
        queues.push(Arc::downgrade(wake));
    }
}
