//! What is refused for want of a role, in the agent's log: whoever has no rights does not fill that either.

use crate::rights::Caller;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use types::Monotonic;

/// A line about one caller, and not the next before this is over.
const QUIET: Duration = Duration::from_secs(10);
/// Callers whose last line is known.
const KNOWN_MAX: usize = 1024;
/// What is told of a path.
const PATH_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct RefusedLog(Mutex<BTreeMap<String, Quiet>>);

#[derive(Debug)]
struct Quiet {
    since: Monotonic,
    /// What was not told of since then.
    untold: u64,
}

impl RefusedLog {
    pub(super) fn note(&self, caller: &Caller, what: &str, path: &str, now: Monotonic) {
        if let Some(untold) = self.is_to_be_told(caller.to_string(), now) {
            let path: String = path.chars().take(PATH_BYTES_MAX).collect();
            tracing::warn!(%caller, path, untold, "refused: {what}");
        }
    }

    /// How many were not told of since the last line about him, where there is to be one.
    fn is_to_be_told(&self, who: String, now: Monotonic) -> Option<u64> {
        let mut known = self.0.lock().expect("a panic aborts the process");
        if known.len() >= KNOWN_MAX && !known.contains_key(&who) {
            known.retain(|_, quiet| now.since(quiet.since) < QUIET);
        }
        let is_full = known.len() >= KNOWN_MAX;
        match known.get_mut(&who) {
            Some(quiet) if now.since(quiet.since) < QUIET => {
                quiet.untold += 1;
                None
            }
            // So many at once are somebody's doing, and tell nothing more.
            None if is_full => None,
            _ => {
                known.insert(who, Quiet { since: now, untold: 0 }).map_or(Some(0), |quiet| Some(quiet.untold))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_is_refused_again_and_again_is_told_of_once_in_a_while_with_how_often_it_was() {
        let log = RefusedLog::default();
        let at = |seconds| Monotonic::default().plus(Duration::from_secs(seconds));
        let told = |who: &str, seconds| log.is_to_be_told(who.to_owned(), at(seconds));
        assert_eq!(told("eva", 1), Some(0));
        assert!((0..100).all(|_| told("eva", 2).is_none()));
        assert_eq!((told("max", 2), told("eva", 11)), (Some(0), Some(100)));
        assert!(
            (0..2 * KNOWN_MAX)
                .filter_map(|number| told(&format!("user {number}"), 12))
                .all(|untold| untold == 0)
        );
        assert!(log.0.lock().unwrap().len() <= KNOWN_MAX);
        assert_eq!(told("anna", 30), Some(0), "who has been quiet is forgotten");
    }
}
