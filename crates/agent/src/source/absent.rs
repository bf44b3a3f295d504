//! VMs that an image of their group may have though nothing of theirs is being sent, for they are being taken up or let
//! go: what the others of the group could promise meanwhile is void.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(super) struct Absent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The group of each, by the VM's name.
    groups: BTreeMap<String, String>,
    /// There are protections of which nothing is known.
    has_unknown: bool,
}

/// As long as this lives the VM is absent.
#[derive(Debug)]
#[must_use]
pub(super) struct IsAbsent<'a> {
    all: &'a Absent,
    vm: String,
}

impl Absent {
    pub(super) fn note(&self, vm: &str, group: &str) -> IsAbsent<'_> {
        self.lock().groups.insert(vm.to_owned(), group.to_owned());
        IsAbsent { all: self, vm: vm.to_owned() }
    }

    /// A protection cannot be read: it may be of any group.
    pub(super) fn note_unknown(&self) {
        self.lock().has_unknown = true;
    }

    pub(super) fn has_of(&self, group: &str) -> bool {
        let inner = self.lock();
        inner.has_unknown || inner.groups.values().any(|its| its == group)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl Drop for IsAbsent<'_> {
    fn drop(&mut self) {
        self.all.lock().groups.remove(&self.vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_lacks_a_vm_until_it_is_taken_up_and_all_where_one_is_unknown() {
        let absent = Absent::default();
        let web = absent.note("web", "shop");
        assert!(absent.has_of("shop") && !absent.has_of("other"));
        drop(web);
        assert!(!absent.has_of("shop"));
        absent.note_unknown();
        assert!(absent.has_of("shop") && absent.has_of("other"));
    }
}
