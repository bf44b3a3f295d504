//! Whoever has asked for an operation, handed down to those who begin it and carry it out.
//!
//! ```text
//!          ┌── its end is told ──▶ Told ── another is carried out for him ──┐
//! Waits ◀──┼────────────────────────────────────────────────────────────────┘
//!          └── he leaves, or his connection ends ──▶ Gone
//! ```
//!
//! What holds: an end counts as heard only by who waits at that moment, and who has been counted does not leave without it.

use operations::{OperationId, RequestKey};
use std::any::Any;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Somebody who asks. By default one who stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker(Arc<Asking>);

#[derive(Debug, Default)]
struct Asking {
    /// What he calls his request.
    key: Option<RequestKey>,
    state: watch::Sender<State>,
    /// What he has until his operation is recorded, or he is refused.
    place: Mutex<Option<Box<dyn Any + Send>>>,
    /// He goes once it is recorded.
    is_in_haste: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    begun: Option<OperationId>,
    ear: Ear,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ear {
    #[default]
    Waits,
    Told,
    Gone,
}

/// Dropped with what waits for the answer.
#[derive(Debug)]
pub(crate) struct Presence(Asker);

impl Asker {
    /// One who is there as long as his presence is kept.
    pub(crate) fn present() -> (Presence, Self) {
        Self::with(Asking::default())
    }

    /// One who asks for something new. He has `place` until that is recorded, and goes then if he does not wait.
    pub(crate) fn of_request(
        key: Option<RequestKey>,
        place: Box<dyn Any + Send>,
        waits: bool,
    ) -> (Presence, Self) {
        let place = Mutex::new(Some(place));
        Self::with(Asking { key, place, is_in_haste: !waits, ..Asking::default() })
    }

    fn with(asking: Asking) -> (Presence, Self) {
        let asker = Self(Arc::new(asking));
        (Presence(asker.clone()), asker)
    }

    /// For what is begun though nobody asks.
    pub(crate) fn nobody() -> Self {
        Self::present().1
    }

    pub(super) fn key(&self) -> Option<RequestKey> {
        self.0.key.clone()
    }

    /// What he has asked for is recorded.
    pub(super) fn has_begun(&self, id: OperationId) {
        self.0.place.lock().expect("a panic aborts the process").take();
        self.0.state.send_modify(|state| {
            state.begun = Some(id);
            if self.0.is_in_haste {
                state.ear = Ear::Gone;
            }
        });
    }

    /// Whether he hears the end that is told now.
    pub(super) fn hears(&self) -> bool {
        let mut hears = false;
        self.0.state.send_if_modified(|state| {
            hears = state.ear != Ear::Gone;
            let is_new = state.ear == Ear::Waits;
            if is_new {
                state.ear = Ear::Told;
            }
            is_new
        });
        hears
    }

    /// Another operation is carried out for him, whose end he has not heard.
    pub(super) fn waits_again(&self) {
        self.0.state.send_if_modified(|state| {
            let was_told = state.ear == Ear::Told;
            if was_told {
                state.ear = Ear::Waits;
            }
            was_told
        });
    }

    /// Whether that is he.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn has_gone(&self) -> bool {
        self.0.state.borrow().ear == Ear::Gone
    }
}

impl Presence {
    /// Waits until what he has asked for is recorded.
    pub(crate) async fn begun(&self) -> OperationId {
        let state = self.until(|state| state.begun.is_some()).await;
        state.begun.expect("that was waited for")
    }

    /// Waits until an end is told to him.
    pub(crate) async fn told(&self) {
        self.until(|state| state.ear == Ear::Told).await;
    }

    /// He waits no longer. Not where an end is just being told to him, which he is to hear first.
    pub(crate) fn leave(&self) -> bool {
        let mut leaves = false;
        self.0.0.state.send_if_modified(|state| {
            leaves = state.ear != Ear::Told;
            if leaves {
                state.ear = Ear::Gone;
            }
            leaves
        });
        leaves
    }

    async fn until(&self, is_so: impl FnMut(&State) -> bool) -> State {
        let mut state = self.0.0.state.subscribe();
        let seen = state.wait_for(is_so).await.map(|state| *state);
        seen.expect("he who is present keeps it")
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.0.state.send_modify(|state| state.ear = Ear::Gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_counted_as_hearing_does_not_leave_without_it_and_who_has_left_hears_nothing() {
        let (presence, asker) = Asker::present();
        assert!(asker.hears() && asker.hears());
        assert!(!presence.leave(), "he is being told just now");
        asker.waits_again();
        assert!(presence.leave());
        asker.waits_again();
        assert!(!asker.hears());
        let (presence, asker) = Asker::present();
        drop(presence);
        assert!(!asker.hears() && asker.has_gone());
        let (_presence, asker) = Asker::of_request(None, Box::new(()), false);
        asker.has_begun(OperationId::from_bytes([1; 16]));
        assert!(!asker.hears(), "he has not waited for its end");
    }

    #[test]
    fn a_place_is_given_back_once_the_operation_is_recorded_or_nobody_works_for_it_any_more() {
        for begins in [true, false] {
            let place = Arc::new(());
            let (presence, asker) = Asker::of_request(None, Box::new(place.clone()), true);
            drop(presence);
            assert_eq!(Arc::strong_count(&place), 2, "whoever works for him goes on");
            let asker = Some(asker).filter(|_| begins);
            asker.iter().for_each(|asker| asker.has_begun(OperationId::from_bytes([1; 16])));
            assert_eq!(Arc::strong_count(&place), 1);
        }
    }
}
