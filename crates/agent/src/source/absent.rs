//! VMs that an image of their group may have though nothing of theirs is being sent, for they are being let go: what the
//! others of the group could promise meanwhile is void.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(super) struct Absent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Who is absent of which group, once for each that says so.
    noted: BTreeMap<u64, String>,
    next: u64,
    /// There are protections of which nothing is known.
    has_unknown: bool,
}

/// As long as this lives the VM is absent.
#[derive(Debug)]
#[must_use]
pub(super) struct IsAbsent<'a> {
    all: &'a Absent,
    at: u64,
}

impl Absent {
    /// A VM of a group, by the group's id.
    pub(super) fn note(&self, group: &str) -> IsAbsent<'_> {
        let mut inner = self.lock();
        inner.next += 1;
        let at = inner.next;
        inner.noted.insert(at, group.to_owned());
        IsAbsent { all: self, at }
    }

    /// A protection cannot be read: it may be of any group.
    pub(super) fn note_unknown(&self) {
        self.lock().has_unknown = true;
    }

    pub(super) fn has_of(&self, group: &str) -> bool {
        let inner = self.lock();
        inner.has_unknown || inner.noted.values().any(|its| its == group)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl Drop for IsAbsent<'_> {
    fn drop(&mut self) {
        self.all.lock().noted.remove(&self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_lacks_each_vm_until_it_is_let_go_and_all_where_one_is_unknown() {
        let absent = Absent::default();
        let web = absent.note("shop");
        let again = absent.note("shop");
        assert!(absent.has_of("shop") && !absent.has_of("other"));
        drop(web);
        assert!(absent.has_of("shop"), "another is being let go");
        drop(again);
        assert!(!absent.has_of("shop"));
        absent.note_unknown();
        assert!(absent.has_of("shop") && absent.has_of("other"));
    }
}
