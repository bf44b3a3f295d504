//! Which checkpoints of a group on this host are complete at the recovery side, and since when.
//!
//! A checkpoint is complete once every stream's mark is durable there, on every host. Those that are on their way are
//! in the order of their cuts; once one is complete, those before it are of no interest any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use types::{Monotonic, VmId, WriteSeq};

/// Cuts that are on their way; older ones are forgotten, they will not be the newest.
const PENDING_MAX: usize = 1024;

/// The cuts that are on their way, and when the newest that is complete was taken.
#[derive(Debug, Default)]
pub struct Completion {
    pending: VecDeque<Pending>,
    /// When the newest complete checkpoint that has a VM was taken, of each VM.
    newest_complete: BTreeMap<VmId, Monotonic>,
    newest_durable: WriteSeq,
}

#[derive(Debug)]
struct Pending {
    cut: WriteSeq,
    taken_at: Monotonic,
    /// Each VM's mark that is not yet durable.
    waiting: BTreeMap<VmId, WriteSeq>,
    /// The VMs here that the checkpoint has.
    members: Vec<VmId>,
    /// Each other host whose marks are not.
    hosts: BTreeSet<String>,
}

impl Completion {
    /// A cut's marks are in the streams here, at these places; `hosts` have theirs.
    pub fn marked(
        &mut self,
        cut: WriteSeq,
        taken_at: Monotonic,
        marks: BTreeMap<VmId, WriteSeq>,
        hosts: impl IntoIterator<Item = String>,
    ) {
        let members = marks.keys().copied().collect();
        let hosts = hosts.into_iter().collect();
        self.pending.push_back(Pending { cut, taken_at, waiting: marks, members, hosts });
        if self.pending.len() > PENDING_MAX {
            self.pending.pop_front();
        }
    }

    /// A VM's stream is durable so far.
    pub fn durable(&mut self, vm: VmId, up_to: WriteSeq) {
        for pending in &mut self.pending {
            if pending.waiting.get(&vm).is_some_and(|&mark| mark <= up_to) {
                pending.waiting.remove(&vm);
            }
        }
        let here = self.pending.iter().filter(|pending| pending.waiting.is_empty());
        let newest = here.map(|pending| pending.cut).max().unwrap_or(WriteSeq::ZERO);
        self.newest_durable = self.newest_durable.max(newest);
        self.complete();
    }

    /// The marks of a cut are durable in all streams of a host. It says nothing about those before, whose marks a stream
    /// that began anew there may have lost.
    pub fn host_durable(&mut self, host: &str, cut: WriteSeq) {
        for pending in self.pending.iter_mut().filter(|pending| pending.cut == cut) {
            pending.hosts.remove(host);
        }
        self.complete();
    }

    /// A VM has left the group.
    pub fn left(&mut self, vm: VmId) {
        self.newest_complete.remove(&vm);
        self.restarted();
    }

    /// A stream began anew, or the hosts are others: marks of before will not be acknowledged as such.
    pub fn restarted(&mut self) {
        self.pending.clear();
    }

    /// When the newest complete checkpoint of a VM was taken, of those of this run.
    pub fn newest_complete(&self, vm: VmId) -> Option<Monotonic> {
        self.newest_complete.get(&vm).copied()
    }

    /// The newest cut whose marks are durable in all streams of this host.
    pub fn newest_durable(&self) -> WriteSeq {
        self.newest_durable
    }

    fn complete(&mut self) {
        let done = |pending: &Pending| pending.waiting.is_empty() && pending.hosts.is_empty();
        let Some(newest) = self.pending.iter().rposition(done) else { return };
        for done in self.pending.drain(..=newest).filter(done) {
            self.newest_complete.extend(done.members.into_iter().map(|vm| (vm, done.taken_at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WEB: VmId = VmId::from_bytes([1; 16]);
    const DB: VmId = VmId::from_bytes([2; 16]);

    fn seq(raw: u64) -> WriteSeq {
        WriteSeq::from_raw(raw)
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    #[test]
    fn a_checkpoint_is_complete_once_all_marks_are_durable_everywhere() {
        let mut completion = Completion::default();
        completion.marked(
            seq(10),
            at(1),
            BTreeMap::from([(WEB, seq(11)), (DB, seq(12))]),
            ["beta".to_owned()],
        );
        completion.durable(WEB, seq(11));
        completion.host_durable("beta", seq(10));
        assert_eq!(completion.newest_complete(WEB), None);
        assert_eq!(completion.newest_durable(), WriteSeq::ZERO);
        completion.durable(DB, seq(20));
        assert_eq!(completion.newest_complete(WEB), Some(at(1)));
        assert_eq!(completion.newest_complete(DB), Some(at(1)));
        assert_eq!(completion.newest_durable(), seq(10));
    }

    #[test]
    fn a_host_that_has_a_later_cut_is_not_taken_to_have_an_earlier_one() {
        let mut completion = Completion::default();
        for (cut, second) in [(10, 1), (20, 2)] {
            let hosts = ["beta".to_owned(), "gamma".to_owned()];
            completion.marked(seq(cut), at(second), BTreeMap::from([(WEB, seq(cut + 1))]), hosts);
        }
        completion.durable(WEB, seq(30));
        completion.host_durable("gamma", seq(10));
        // Whatever beta had of the first was lost.
        completion.host_durable("beta", seq(20));
        assert_eq!(completion.newest_complete(WEB), None);
        completion.host_durable("gamma", seq(20));
        assert_eq!(completion.newest_complete(WEB), Some(at(2)));
    }

    #[test]
    fn marks_of_a_stream_that_began_anew_are_not_waited_for() {
        let mut completion = Completion::default();
        completion.marked(seq(10), at(1), BTreeMap::from([(WEB, seq(11))]), []);
        completion.restarted();
        completion.durable(WEB, seq(99));
        assert_eq!(completion.newest_complete(WEB), None);
        completion.marked(seq(110), at(2), BTreeMap::from([(WEB, seq(111))]), []);
        completion.durable(WEB, seq(111));
        assert_eq!(completion.newest_complete(WEB), Some(at(2)));
        completion.left(WEB);
        assert_eq!(completion.newest_complete(WEB), None);
    }
}
