//! The life of a kept VM's journal: when it is open, who uses it, and what has to end before the next life begins.
//!
//! Whoever uses a journal holds a lease, and a lease is of one life. A life ends in order: no lease is given any more,
//! those that were given come back, and only then the journal is closed and its folder is another's: of the next life, of
//! whoever moves it, of whoever deletes it. So no fold, scrub, stream or half opened image of one life ever meets the
//! files of the next.
//!
//! Images live longer than a life, for a guest may run on one. An image that is being opened has a lease like others;
//! once it is served it *stays*: it is bound to the life, and the next life binds it anew before anybody else gets a lease
//! there. A journal with images that stay is neither moved nor deleted, and none comes to stay while either is waited for.
//!
//! ```text
//!              ┌─ cannot be opened ─┐
//!              ▼                    │
//!   ┌───▶ Closed ── begin ──▶ Opening ── opened ──▶ Binding ── all bound ──▶ Open ◀─┐
//!   │       │  ▲                                                              │     │ gives up waiting
//!   │       │  └────────────── closed, for it failed ────────────────┐        ▼     │
//!   │       └─ moved or deleted while closed ─┐                      └──── Closing ─┘
//!   │                                         ▼                               │
//!   └── moved, or not deleted after all ─── Taken ◀── closed, to be taken ────┘
//!                                             └── deleted ──▶ Gone
//! ```

use std::collections::{BTreeMap, BTreeSet};

/// What a journal is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Its VM's stream, from the moment the greeting is accepted.
    Stream,
    Upkeep,
    /// One step of a scrub.
    Scrub,
    /// An image that is being opened, or given up.
    Image,
    /// Somebody looks at it, sets or pins something, or fences it.
    Look,
}

impl Use {
    /// The word for it to an operator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "its stream",
            Self::Upkeep => "upkeep",
            Self::Scrub => "a scrub",
            Self::Image => "an image that is being opened or closed",
            Self::Look => "somebody who looks at it",
        }
    }
}

/// Why a journal is closed while its VM is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It failed, or was full: the next life begins from what its disk has.
    Failed,
    /// Somebody wants its folder.
    Taken(Task),
}

/// What a journal's folder is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Move,
    Delete,
}

/// Where a journal's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Opening,
    /// It is open, and its images are bound to it before it is used.
    Binding,
    Open,
    Closing(Reason),
    /// Its folder is another's, who alone touches it.
    Taken(Task),
    /// It was deleted.
    Gone,
}

/// The number of a lease, never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(u64);

/// Why somebody gets no lease, or does not get a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is in another state.
    State(State),
    /// Images of it are open, or are being opened.
    Images,
}

/// One kept VM's journal; `I` names its images.
#[derive(Debug, Clone)]
pub struct Life<I> {
    state: State,
    leases: BTreeMap<LeaseId, Use>,
    given: u64,
    /// Images that stay, and of those whether this life has them yet.
    images: BTreeMap<I, bool>,
}

impl<I: Ord + Clone> Default for Life<I> {
    fn default() -> Self {
        Self { state: State::Closed, leases: BTreeMap::new(), given: 0, images: BTreeMap::new() }
    }
}

impl<I: Ord + Clone> Life<I> {
    pub fn state(&self) -> State {
        self.state
    }

    /// What it is being used for.
    pub fn uses(&self) -> BTreeSet<Use> {
        self.leases.values().copied().collect()
    }

    /// Images that stay.
    pub fn images(&self) -> impl Iterator<Item = &I> {
        self.images.keys()
    }

    /// Takes the journal into use.
    ///
    /// # Errors
    /// [`Refused::State`] where it is not open.
    pub fn lease(&mut self, what: Use) -> Result<LeaseId, Refused> {
        if self.state != State::Open {
            return Err(Refused::State(self.state));
        }
        self.given += 1;
        let lease = LeaseId(self.given);
        self.leases.insert(lease, what);
        Ok(lease)
    }

    /// A use has ended; true where that was the last one a close waits for.
    pub fn give_back(&mut self, lease: LeaseId) -> bool {
        self.leases.remove(&lease).is_some() && self.may_close()
    }

    /// An image that was opened under this lease stays. The lease is given back apart from that.
    ///
    /// # Errors
    /// Where the folder is about to be another's: the image is to be given up, which the lease still allows.
    pub fn stay(&mut self, lease: LeaseId, image: I) -> Result<(), Refused> {
        assert!(self.leases.contains_key(&lease), "an image comes to stay under a lease of this life");
        match self.state {
            State::Open | State::Closing(Reason::Failed) => {
                self.images.insert(image, true);
                Ok(())
            }
            State::Closing(Reason::Taken(_)) => Err(Refused::State(self.state)),
            State::Closed | State::Opening | State::Binding | State::Taken(_) | State::Gone => {
                unreachable!("no lease of a life is left once it has ended")
            }
        }
    }

    /// An image stays no longer: it was given up, or cannot be served just now.
    pub fn leave(&mut self, image: &I) {
        self.images.remove(image);
        self.begin_if_bound();
    }

    /// Begins to open the journal.
    ///
    /// # Errors
    /// [`Refused::State`] where it is not closed: it is open, or not to be opened now.
    pub fn begin(&mut self) -> Result<(), Refused> {
        match self.state {
            State::Closed => self.go(State::Opening),
            other => return Err(Refused::State(other)),
        }
        Ok(())
    }

    /// It cannot be opened.
    pub fn not_opened(&mut self) {
        self.go(State::Closed);
    }

    /// It is open: these images are bound to it now, one after the other. Where there are none it is in use at once.
    pub fn opened(&mut self) -> Vec<I> {
        self.go(State::Binding);
        self.images.values_mut().for_each(|bound| *bound = false);
        self.begin_if_bound();
        self.images.iter().filter(|(_, bound)| !**bound).map(|(image, _)| image.clone()).collect()
    }

    /// An image reads from this life now.
    pub fn bound(&mut self, image: &I) {
        if let Some(bound) = self.images.get_mut(image) {
            *bound = true;
        }
        self.begin_if_bound();
    }

    fn begin_if_bound(&mut self) {
        if self.state == State::Binding && self.images.values().all(|bound| *bound) {
            self.go(State::Open);
        }
    }

    /// Wants the journal closed. No lease is given from here on. Those that were are told to end by whoever performs this;
    /// once [`may_close`](Self::may_close) says so the journal is closed, and [`closed`](Self::closed) called.
    ///
    /// # Errors
    /// [`Refused::Images`] where its folder is wanted and images need it; [`Refused::State`] where it is neither open nor,
    /// for its folder, closed.
    pub fn close(&mut self, reason: Reason) -> Result<(), Refused> {
        let for_image = self.leases.values().any(|what| *what == Use::Image);
        match (self.state, reason) {
            (State::Open | State::Closed, Reason::Taken(_)) if for_image || !self.images.is_empty() => {
                return Err(Refused::Images);
            }
            (State::Closed, Reason::Taken(task)) => self.go(State::Taken(task)),
            (State::Open, _) => self.go(State::Closing(reason)),
            (other, _) => return Err(Refused::State(other)),
        }
        Ok(())
    }

    /// Whether nobody uses it any more whose end a close waits for.
    pub fn may_close(&self) -> bool {
        matches!(self.state, State::Closing(_)) && self.leases.is_empty()
    }

    /// It was closed: this life has ended.
    pub fn closed(&mut self) {
        assert!(self.may_close(), "a journal is closed once nobody uses it");
        match self.state {
            State::Closing(Reason::Taken(task)) => self.go(State::Taken(task)),
            _ => self.go(State::Closed),
        }
    }

    /// Whoever wanted it closed does not wait any longer: it goes on as it was.
    pub fn give_up_closing(&mut self) {
        self.go(State::Open);
    }

    /// Its folder is nobody's again: it was moved, or is not deleted after all.
    pub fn give_folder_back(&mut self) {
        self.go(State::Closed);
    }

    /// It was deleted.
    pub fn deleted(&mut self) {
        self.go(State::Gone);
    }

    fn go(&mut self, next: State) {
        assert!(is_edge(self.state, next), "a journal that is {:?} does not become {next:?}", self.state);
        self.state = next;
    }
}

/// The edges of the diagram above.
fn is_edge(from: State, to: State) -> bool {
    match from {
        State::Closed => matches!(to, State::Opening | State::Taken(_)),
        State::Opening => matches!(to, State::Closed | State::Binding),
        State::Binding => matches!(to, State::Open),
        State::Open => matches!(to, State::Closing(_)),
        State::Closing(Reason::Failed) => matches!(to, State::Closed | State::Open),
        State::Closing(Reason::Taken(task)) => to == State::Taken(task) || to == State::Open,
        State::Taken(task) => to == State::Closed || (task == Task::Delete && to == State::Gone),
        State::Gone => false,
    }
}

#[cfg(test)]
mod tests;
