//! Whom the disks of a group still take that has failed over: whoever had to do with them before, and no newcomer.
//!
//! A guest that runs on must not lose its disk over a restart of the agent: it is known by its process, which is older than
//! the fence, or, on another host, by having had the disk. What is started later is most likely the same VM once more,
//! while it runs at the other site.

use std::collections::BTreeSet;
use std::time::Duration;

/// What the kernel tells the start of a process in.
const TICK: Duration = Duration::from_millis(10);

/// What is known of the moment when another side has taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// When that was, since the host came up; zero where it has come up since.
    pub since: Duration,
    /// The labels of clients that had the disk before and are not processes of this host.
    pub known: BTreeSet<String>,
}

impl Fence {
    /// Whether it takes a process that was started then, since the host came up, to the tick before.
    pub(crate) fn takes_process(&self, started: Option<Duration>) -> bool {
        started.is_some_and(|started| started + TICK <= self.since)
    }

    pub(crate) fn takes_named(&self, label: &str) -> bool {
        self.known.contains(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_there_before_the_fence_is_taken_and_nobody_else() {
        let fence = Fence { since: Duration::from_secs(100), known: ["a host".to_owned()].into() };
        assert!(fence.takes_process(Some(Duration::from_millis(99_990))));
        assert!(!fence.takes_process(Some(Duration::from_millis(99_995))), "it may be a moment younger");
        assert!(!fence.takes_process(Some(Duration::from_secs(101))) && !fence.takes_process(None));
        assert!(fence.takes_named("a host") && !fence.takes_named("another"));
        assert!(!Fence::default().takes_process(Some(Duration::ZERO)), "the host has come up since");
    }
}
