//! Places for connections at a port: how many there are, and how many of them one may have, so that none who is let in takes
//! those of all others.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    of_one_max: usize,
    had: Mutex<Had>,
}

#[derive(Debug, Default)]
struct Had {
    all: usize,
    by: BTreeMap<String, usize>,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    who: String,
}

impl Places {
    pub(crate) fn new(max: usize, of_one_max: usize) -> Arc<Self> {
        Arc::new(Self { max, of_one_max, had: Mutex::default() })
    }

    /// A place for somebody.
    ///
    /// # Errors
    /// Where he has his share already, or all are taken.
    pub(crate) fn enter(self: &Arc<Self>, who: &str) -> Result<Place> {
        let mut had = self.lock();
        if had.by.get(who).is_some_and(|his| *his >= self.of_one_max) {
            bail!("{who} has {} connections already, which is as many as one may have", self.of_one_max);
        }
        if had.all >= self.max {
            bail!("there are too many connections already");
        }
        had.all += 1;
        *had.by.entry(who.to_owned()).or_default() += 1;
        Ok(Place { places: self.clone(), who: who.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Had> {
        self.had.lock().expect("a panic aborts the process")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut had = self.places.lock();
        had.all -= 1;
        if let Some(his) = had.by.get_mut(&self.who) {
            *his -= 1;
            if *his == 0 {
                had.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_his_share_of_the_places_and_leaves_the_others_theirs() {
        let places = Places::new(4, 2);
        let his: Vec<_> = (0..2).map(|_| places.enter("a").unwrap()).collect();
        let refused = places.enter("a").unwrap_err().to_string();
        assert!(refused.contains("a has 2 connections"), "{refused}");
        let others = [places.enter("b").unwrap(), places.enter("c").unwrap()];
        assert!(places.enter("d").unwrap_err().to_string().contains("too many"));
        drop(his);
        let _again = places.enter("a").unwrap();
        drop(others);
        assert_eq!(places.lock().by.keys().collect::<Vec<_>>(), ["a"], "who has left is not known any more");
    }
}
