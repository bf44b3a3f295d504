//! Asking many at once, each of whom may hang on its disk, within one bound.

use crate::clock;
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Those whose answers came, with them; and those who have not answered.
type Answers<V, T> = (Vec<(Arc<V>, T)>, Vec<Arc<V>>);

/// Asks each in a thread of its own, and waits for the answers no longer than `within`, all together. Who has not
/// answered goes on by itself and is not listened to any more.
pub(super) fn side_by_side<V: Send + Sync + 'static, T: Send + 'static>(
    whom: &[Arc<V>],
    within: Duration,
    ask: impl Fn(&V) -> T + Copy + Send + 'static,
) -> Answers<V, T> {
    let (tell, told) = mpsc::channel();
    for (at, one) in whom.iter().cloned().enumerate() {
        let tell = tell.clone();
        let asked = move || {
            let answer = ask(&one);
            // Whoever has the answers is the last who has these.
            drop(one);
            let _ = tell.send((at, answer));
        };
        // Without a thread for it there is no answer either.
        let _ = std::thread::Builder::new().name("side-by-side".into()).spawn(asked);
    }
    drop(tell);
    let until = clock::now().plus(within);
    let mut answers = Vec::new();
    while let Ok((at, answer)) = told.recv_timeout(until.since(clock::now())) {
        answers.push((at, answer));
    }
    let has_answered: BTreeSet<usize> = answers.iter().map(|(at, _)| *at).collect();
    let silent = whom.iter().enumerate().filter(|(at, _)| !has_answered.contains(at));
    let silent = silent.map(|(_, one)| one.clone()).collect();
    (answers.into_iter().map(|(at, answer)| (whom[at].clone(), answer)).collect(), silent)
}
