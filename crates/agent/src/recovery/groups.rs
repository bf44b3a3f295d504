//! Groups as this side knows them: an id, the site it belongs to, and the VMs of it whose journals are kept.
//!
//! Inside only ids are compared. A name is a label that is resolved here, once, for an operator; one that may mean
//! several things is an error that lists their ids. A VM that has left its group stays its former member: a
//! checkpoint from before has it, what came later does not.

use super::Recovery;
use super::failover::record::FailoverRecord;
use super::record::RecoveryRecord;
use super::vm::RecoveredVm;
use crate::error::{OperationError, Result};
use joint::choice::{Member, Pick};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::{GroupId, VmId};

/// A group whose journals are kept here.
#[derive(Debug, Clone)]
pub(super) struct KeptGroup {
    pub(super) id: GroupId,
    pub(super) name: String,
    pub(super) site: String,
    pub(super) members: Vec<Arc<RecoveredVm>>,
    /// VMs that have left it.
    pub(super) former: Vec<Arc<RecoveredVm>>,
}

/// The site of a peer that is known as `AGENT.SITE`.
pub(super) fn site_of(peer: &str) -> &str {
    peer.split_once('.').map_or(peer, |(_, site)| site)
}

impl KeptGroup {
    fn of(record: &RecoveryRecord, id: GroupId) -> Self {
        Self {
            id,
            name: record.group.clone(),
            site: site_of(&record.peer).to_owned(),
            members: Vec::new(),
            former: Vec::new(),
        }
    }

    /// A group that has failed over and none of whose VMs is known just now.
    fn of_failover(record: &FailoverRecord, id: GroupId) -> Self {
        let (name, site) = (record.group.clone(), record.site.clone());
        Self { id, name, site, members: Vec::new(), former: Vec::new() }
    }

    /// Those whose journals are kept here.
    pub(super) fn kept(&self) -> Vec<Member> {
        let members = self.members.iter().map(|vm| Member { vm: vm.id(), left: false });
        members.chain(self.former.iter().map(|vm| Member { vm: vm.id(), left: true })).collect()
    }

    /// Members and former members.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<RecoveredVm>> {
        self.members.iter().chain(&self.former)
    }

    /// The group without some of its VMs.
    pub(super) fn without(mut self, vms: &[Arc<RecoveredVm>]) -> Self {
        let is_left = |vm: &Arc<RecoveredVm>| !vms.iter().any(|other| other.id() == vm.id());
        self.members.retain(is_left);
        self.former.retain(is_left);
        self
    }

    /// Its name as it is unique here.
    pub(super) fn label(&self) -> String {
        format!("{}/{}", self.site, self.name)
    }

    /// Whether an operator's word may mean it.
    fn answers_to(&self, word: &str) -> bool {
        answers_to(word, &self.id.to_string(), &self.site, &self.name)
    }

    /// The VMs an operator names, among those that belong to the group or once did.
    pub(super) fn pick(&self, only: &[String], without: &[String]) -> Result<Pick> {
        match (only, without) {
            ([], []) => Ok(Pick::All),
            (only, []) => self.ids_of(only).map(Pick::Only),
            ([], without) => self.ids_of(without).map(Pick::Without),
            (_, _) => {
                Err(OperationError::invalid("give either the VMs that are meant or those that are not"))
            }
        }
    }

    fn ids_of(&self, words: &[String]) -> Result<Vec<VmId>> {
        let find = |word: &String| {
            let named = |vm: &&Arc<RecoveredVm>| vm.answers_to(word);
            let found = self.members.iter().find(named).or_else(|| self.former.iter().find(named));
            found.map(|vm| vm.id()).ok_or_else(|| {
                OperationError::not_found(format!("group {} has no VM {word:?}", self.label()))
            })
        };
        words.iter().map(find).collect()
    }
}

/// Whether a word is something's id, `site/name` or name.
pub(super) fn answers_to(word: &str, id: &str, site: &str, name: &str) -> bool {
    word == id || word == name || word.split_once('/') == Some((site, name))
}

impl Recovery {
    /// Every group whose journals are kept here, members sorted by their names.
    pub(super) fn kept_groups(&self) -> Vec<KeptGroup> {
        let mut groups: BTreeMap<GroupId, KeptGroup> = BTreeMap::new();
        let mut vms = self.list();
        vms.sort_by_key(|vm| (vm.name(), vm.id()));
        for vm in vms {
            let record = vm.record();
            let id = vm.group();
            let group = groups.entry(id).or_insert_with(|| KeptGroup::of(&record, id));
            match record.left {
                Some(_) => group.former.push(vm),
                None => group.members.push(vm),
            }
        }
        groups.into_values().collect()
    }

    /// The group an operator means, to fail it over.
    pub(super) fn group(&self, word: &str) -> Result<KeptGroup> {
        let found: Vec<_> = self.kept_groups().into_iter().filter(|group| group.answers_to(word)).collect();
        let found = narrow(found, |group| group.id.to_string() == word);
        let found = narrow(found, |group| !group.members.is_empty());
        one_of(found, word)
    }

    /// The group an operator means, to do something with its failover: also one whose VMs' records cannot be read.
    pub(super) fn failed_over_group(&self, word: &str) -> Result<KeptGroup> {
        let mut groups = self.kept_groups();
        for (id, record) in &*self.failovers() {
            if !groups.iter().any(|group| group.id == *id) {
                groups.push(KeptGroup::of_failover(record, *id));
            }
        }
        let found: Vec<_> = groups.into_iter().filter(|group| group.answers_to(word)).collect();
        let found = narrow(found, |group| group.id.to_string() == word);
        let is_undecided = |id| self.failovers().get(&id).map(FailoverRecord::is_undecided);
        let found = narrow(found, |group| is_undecided(group.id) == Some(true));
        let found = narrow(found, |group| is_undecided(group.id).is_some());
        let found = narrow(found, |group| !group.members.is_empty());
        let nobody = found.is_empty();
        one_of(found, word).map_err(|error| match nobody {
            true => OperationError::not_found(format!("group {word:?} has not failed over here")),
            false => error,
        })
    }

    /// The kept VM that a record names by its id.
    pub(super) fn vm_of_record(&self, id: &str) -> Option<Arc<RecoveredVm>> {
        self.list().into_iter().find(|vm| vm.id().to_string() == id)
    }

    /// The kept VM an operator means by its id, `site/name` or name. A name means who has it now before who had it.
    pub(crate) fn vm(&self, word: &str) -> Result<Arc<RecoveredVm>> {
        let found: Vec<_> = self.list().into_iter().filter(|vm| vm.answers_to(word)).collect();
        let found = narrow(found, |vm| vm.id().to_string() == word);
        let found = narrow(found, |vm| vm.record().left.is_none());
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(OperationError::not_found(format!(
                "no journal of a VM {word:?} is kept here; `holdfast status` shows those that are"
            ))),
            several => {
                let rows = several.iter().map(|vm| format!("{} ({})", vm.label(), vm.id()));
                Err(ambiguous("VM", word, rows.collect()))
            }
        }
    }
}

/// Only those that fit, where some do.
fn narrow<T>(found: Vec<T>, fits: impl Fn(&T) -> bool) -> Vec<T> {
    let (fit, others): (Vec<_>, Vec<_>) = found.into_iter().partition(fits);
    if fit.is_empty() { others } else { fit }
}

fn one_of(mut found: Vec<KeptGroup>, word: &str) -> Result<KeptGroup> {
    match found.len() {
        0 => Err(OperationError::not_found(format!(
            "no journals of a group {word:?} are kept here; fail over at the recovery side"
        ))),
        1 => Ok(found.remove(0)),
        _ => {
            let rows = found.iter().map(|group| format!("{} ({})", group.label(), group.id));
            Err(ambiguous("group", word, rows.collect()))
        }
    }
}

fn ambiguous(what: &str, word: &str, rows: Vec<String>) -> OperationError {
    OperationError::conflict(format!(
        "{what} {word:?} may be any of {}: name it by SITE/NAME or by its id",
        rows.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_word_is_an_id_a_name_or_a_site_and_a_name() {
        for word in ["0a", "paris/web", "web"] {
            assert!(answers_to(word, "0a", "paris", "web"), "{word}");
        }
        for word in ["0b", "rome/web", "paris/", "/web", "paris", "we", ""] {
            assert!(!answers_to(word, "0a", "paris", "web"), "{word}");
        }
    }

    #[test]
    fn a_site_is_what_follows_the_agents_name() {
        assert_eq!(site_of("agent-1.paris"), "paris");
        assert_eq!(site_of("agent-1.paris.example"), "paris.example");
        assert_eq!(site_of("paris"), "paris");
    }

    #[test]
    fn narrowing_never_leaves_nothing() {
        assert_eq!(narrow(vec![1, 2, 3], |n| *n > 1), [2, 3]);
        assert_eq!(narrow(vec![1, 2, 3], |n| *n > 3), [1, 2, 3]);
    }
}
