//! What the recovery side has written down of a VM, and greetings: the product's decisions, done.

use super::lives::Lived;
use super::site::{PEER, SITE, Site};
use crate::recovery::RecoveryVm;
use joint::admission::{Accept, Answer, Journal, Kept, Open, Other, Side, Terms, Vm, decide};
use joint::life::{State, Use};
use replication::Opened;
use replication::wire::{Hello, Refusal, Refuse};
use std::time::Duration;
use types::{GroupId, VmId, WriteSeq};

/// Nothing is kept shorter.
const HISTORY_SECONDS_MIN: u64 = 60;
/// A greeting is asked about so often.
const ASKED_MAX: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct KeptRecord {
    pub(super) name: String,
    pub(super) group: (GroupId, String),
    pub(super) terms: Terms,
    /// The last sequence of its group when it left.
    pub(super) left: Option<WriteSeq>,
}

/// What else is kept, as a greeting finds it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: VmId,
    pub(super) group: (GroupId, String),
    pub(super) name: String,
    pub(super) left: bool,
}

fn failed(detail: impl ToString) -> Refuse {
    Refuse { why: Refusal::JournalFailed, detail: detail.to_string() }
}

pub(super) fn journal_of(recovery: &RecoveryVm, state: State) -> Journal {
    match &recovery.journal {
        Some(journal) if state == State::Open => {
            let (epoch, disks) = (journal.status().epoch, journal.disks());
            Journal::Open(Open { epoch, disks, no_room: None })
        }
        _ => Journal::Away(state),
    }
}

impl KeptRecord {
    pub(super) fn to_vm(&self, journal: Journal) -> Vm<'_> {
        Vm {
            site: SITE,
            peer: PEER,
            name: &self.name,
            group: self.group.0,
            group_name: &self.group.1,
            left: self.left.is_some(),
            forgotten: false,
            terms: self.terms,
            journal,
        }
    }
}

/// Answers a greeting, as the agent does.
pub(super) fn admit(
    (recovery, lived): (&mut RecoveryVm, &mut Lived),
    record: &mut Option<KeptRecord>,
    (site, others): (&Site, &[Known]),
    hello: &Hello,
) -> Result<Opened, Refuse> {
    let others: Vec<_> = others.iter().map(to_other).collect();
    for _ in 0..ASKED_MAX {
        let vm = match record {
            None => Kept::Not,
            Some(record) => Kept::Is(record.to_vm(journal_of(recovery, lived.life.state()))),
        };
        let (failover, history_seconds_min) = (site.failover(hello.group), HISTORY_SECONDS_MIN);
        let side = Side {
            peer: PEER,
            site: SITE,
            vm,
            failover,
            group_site: None,
            others: &others,
            history_seconds_min,
        };
        match decide(hello, &side) {
            Answer::Refuse(refuse) => return Err(refuse),
            Answer::Make(terms) => {
                keep_to(recovery, terms);
                lived.life.begin().expect("nobody else knows of it yet");
                let mut made = Ok(());
                if recovery.has_journal() {
                    recovery.reopen();
                } else {
                    made = recovery.make(hello);
                }
                lived.opened(recovery);
                made?;
                let group = (hello.group, hello.group_name.clone());
                *record = Some(KeptRecord { name: hello.vm_name.clone(), group, terms, left: None });
            }
            Answer::Open => {
                lived.opens(recovery);
                if lived.life.state() != State::Open {
                    return Err(failed("it cannot be opened now"));
                }
            }
            Answer::Accept(Accept { terms, .. }) => {
                let known = record.as_mut().expect("only what is kept is let in");
                assert!(
                    terms.history_seconds >= known.terms.history_seconds,
                    "invariant_history_never_shrinks_by_a_peer: {terms:?} of {:?}",
                    known.terms
                );
                known.terms = terms;
                keep_to(recovery, terms);
                let journal = recovery.journal.clone().expect("it is open");
                site.invariant_nothing_is_accepted_without_authority(hello, journal.status().epoch);
                if hello.epoch > journal.status().epoch {
                    journal.fence(hello.epoch, Duration::ZERO).map_err(failed)?;
                }
                lived.stream = lived.life.lease(Use::Stream).ok();
                return recovery.begin(hello);
            }
        }
    }
    Err(Refuse { why: Refusal::Busy, detail: "it comes and goes".into() })
}

/// Keeps the history that was agreed on.
fn keep_to(recovery: &mut RecoveryVm, terms: Terms) {
    recovery.settings.history = Duration::from_secs(terms.history_seconds);
    if let Some(journal) = &recovery.journal {
        let history = recovery.settings.history;
        journal.set(journal::Settings { history, ..journal.status().settings });
    }
}

pub(super) fn to_other(known: &Known) -> Other<'_> {
    let Known { id, ref name, group: (group, ref group_name), left } = *known;
    Other { id, site: SITE, peer: PEER, name, group, group_name, left }
}
