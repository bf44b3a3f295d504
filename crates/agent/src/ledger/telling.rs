//! What operators are told of a side's operations: in the words of the API, and in alerts.

use super::{Asker, Operations, OwnPlan, Subject};
use crate::clock;
use crate::error::{OperationError, Result};
use operations::{Control, Failure, Ledger as _, OperationId, Pass, Record, Standing};
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use types::WallTime;

impl<P: OwnPlan> Operations<P> {
    /// All that go on, and those that have ended lately.
    pub(crate) fn to_api(&self) -> Vec<api::Operation> {
        let book = self.book();
        book.all().map(|(record, control)| to_api(record, control)).collect()
    }

    /// The one of that id, if there is one; whoever asks has heard how it has ended.
    pub(crate) fn show(&self, id: OperationId) -> Option<api::Operation> {
        let (record, control) = self.find(id)?;
        self.note_heard(&record);
        Some(to_api(&record, &control))
    }

    /// Asks for an operation to be taken back. Its plan: where nobody carries it out just now somebody is to.
    ///
    /// # Errors
    /// Where there is no way back.
    pub(crate) fn cancel(&self, id: OperationId) -> Result<Option<P>> {
        let Some((record, control)) = self.find(id) else { return Ok(None) };
        let refuse =
            |why: &str| OperationError::conflict(format!("operation {id} cannot be cancelled: {why}"));
        if record.standing.is_end() {
            return Err(refuse("it has ended"));
        }
        control.cancel().map_err(|late| refuse(&late.to_string()))?;
        Ok(Some(record.plan))
    }

    /// Asks for what an operation cannot do or undo to be left as it is. Its plan, as above.
    ///
    /// # Errors
    /// Where there is nothing that may be left.
    pub(crate) fn leave(&self, id: OperationId) -> Result<Option<P>> {
        let Some((record, control)) = self.find(id) else { return Ok(None) };
        if !may_be_left(&record, &control) {
            return Err(OperationError::conflict(format!(
                "nothing of operation {id} can be left: only what it stands at, and what costs nothing but room where it is \
                 not done"
            )));
        }
        control.leave();
        Ok(Some(record.plan))
    }

    /// Has whoever asks hear how an operation ends; none where there is no such operation, and nothing is told to him.
    pub(crate) fn listen(&self, id: OperationId, asker: &Asker) -> Option<()> {
        self.find(id)?;
        {
            let mut listeners = self.lock_listeners();
            let of_this = listeners.entry(id).or_default();
            of_this.retain(|asker| !asker.has_gone());
            of_this.push(asker.clone());
        }
        // Perhaps it has ended before that, and whoever ends it tells the others only.
        let is_end = self.find(id).map(|(record, _)| record.standing.is_end());
        if is_end != Some(false) {
            self.listens_no_more(id, asker);
        }
        if is_end == Some(true) {
            asker.hears();
        }
        is_end.map(|_| ())
    }

    fn listens_no_more(&self, id: OperationId, asker: &Asker) {
        let mut listeners = self.lock_listeners();
        let Some(of_this) = listeners.get_mut(&id) else { return };
        of_this.retain(|other| !other.is(asker));
        if of_this.is_empty() {
            listeners.remove(&id);
        }
    }

    pub(super) fn lock_listeners(&self) -> MutexGuard<'_, BTreeMap<OperationId, Vec<Asker>>> {
        self.listeners.lock().expect("a panic aborts the process")
    }

    /// Whether somebody hears how an operation has ended, as the answer to what he has asked.
    pub(super) fn is_heard(&self, id: OperationId, asker: Option<&Asker>) -> bool {
        let listeners = self.lock_listeners().remove(&id);
        let all = listeners.into_iter().flatten().chain(asker.cloned());
        // Each of them is told.
        all.filter(Asker::hears).count() > 0
    }

    fn find(&self, id: OperationId) -> Option<(Record<P>, Arc<Control>)> {
        self.book().get(id).map(|(record, control)| (record.clone(), control.clone()))
    }

    pub(super) fn tell_standing(&self, record: &Record<P>, pass: &Pass, is_heard: bool) {
        let (kind, about, id) = (record.plan.kind(), record.plan.about(), record.id);
        let meanwhile = record.plan.meanwhile();
        match (pass, &record.standing) {
            (Pass::Stands(trouble), _) => self.alerts.raise(
                cause(id),
                format!("{kind} of {about}: {trouble}{meanwhile}; operation {id} is tried again by itself"),
            ),
            (Pass::Ended, Standing::TakenBack { why }) if is_heard => {
                tracing::info!(%id, kind, about, why, "an operation was taken back, and whoever asked is told");
                self.note_heard(record);
            }
            // Whoever has cancelled it knows; and so does whoever was told before somebody else came to it.
            (Pass::Ended, Standing::TakenBack { why })
                if record.heard || *why == Failure::Cancelled.to_string() =>
            {
                self.note_heard(record);
            }
            (Pass::Ended, Standing::TakenBack { .. }) => self.tell_taken_back(record),
            (Pass::Ended, _) => {
                tracing::info!(%id, kind, about, "an operation is done");
                self.alerts.clear(cause(id));
            }
        }
    }

    pub(super) fn tell_taken_back(&self, record: &Record<P>) {
        let Standing::TakenBack { why } = &record.standing else { return };
        let (kind, about, id) = (record.plan.kind(), record.plan.about(), record.id);
        self.alerts.raise(
            cause(id),
            format!(
                "{kind} of {about} was taken back, and nothing of it is left: {why}; ask for it again where it is still wanted \
                 (once `holdfast operation show {id}` has told of it, this alert ends)"
            ),
        );
    }

    pub(super) fn tell_lost(&self, name: &str, error: &anyhow::Error) {
        let text = format!(
            "what is recorded of operation {name} cannot be gone on with: {error:#}; see with `holdfast failover list` and \
             `holdfast status` what it was about and roll that back, or restore the file from a backup; then restart the \
             agent"
        );
        self.alerts.raise(format!("operation {name}"), text);
    }

    /// One that was refused may begin all the same, with the next agent.
    pub(super) fn tell_unrecorded(&self, record: &Record<P>, stays: &anyhow::Error) {
        let (kind, about, file) = (record.plan.kind(), record.plan.about(), self.file_name(record.id));
        self.alerts.raise(
            cause(record.id),
            format!(
                "{kind} of {about} was refused, but its record {file} may be in the state folder and cannot be removed \
                 ({stays:#}): the agent's next start would begin it. Remove that file, and restart the agent"
            ),
        );
    }

    /// Somebody has heard how an operation was taken back.
    pub(crate) fn note_heard(&self, record: &Record<P>) {
        if !matches!(record.standing, Standing::TakenBack { .. }) {
            return;
        }
        // Where that cannot be written down it is told once more, by the next agent.
        if !record.heard
            && let Err(error) = self.keep(&Record { heard: true, ..record.clone() })
        {
            tracing::warn!(id = %record.id, %error, "that its end was heard is not written down");
        }
        // Perhaps it is one too many meanwhile, and its record was removed before that wrote it anew.
        if self.find(record.id).is_none()
            && let Err(error) = self.state.remove(&self.file_name(record.id))
        {
            tracing::warn!(id = %record.id, error = format!("{error:#}"), "the record of an old operation stays");
        }
        self.alerts.clear(cause(record.id));
    }
}

fn to_api<P: OwnPlan>(record: &Record<P>, control: &Control) -> api::Operation {
    let steps: Vec<_> = record.plan.steps().iter().map(ToString::to_string).collect();
    let (state, steps_done, why) = match &record.standing {
        Standing::Forward { next } => ("going", *next, None),
        Standing::Back { left, why } => ("going-back", *left, Some(why.clone())),
        Standing::Done => ("done", steps.len(), None),
        Standing::TakenBack { why } => ("taken-back", 0, Some(why.clone())),
    };
    let progress = control.progress();
    let Subject { vm, vm_id, group, group_id, image } = record.plan.subject();
    let allowed = [
        ("cancel", record.has_way_back() && control.check().is_ok()),
        ("leave", may_be_left(record, control)),
    ];
    api::Operation {
        id: record.id.to_string(),
        kind: record.plan.kind().to_owned(),
        about: record.plan.about(),
        vm,
        vm_id: vm_id.map(|id| id.to_string()),
        group,
        group_id: group_id.map(|id| id.to_string()),
        image,
        idempotency_key: record.key.as_ref().map(|key| key.key.clone()),
        state: state.to_owned(),
        step: record.step().map(|(_, step)| step.to_string()),
        steps_done,
        steps,
        bytes_done: progress.done,
        bytes_total: progress.total,
        why,
        trouble: control.trouble(),
        left_undone: record.left_undone.clone(),
        allowed_actions: allowed.into_iter().filter(|(_, may)| *may).map(|(word, _)| word.into()).collect(),
        began_at: time(record.began_at),
        ended_at: record.ended_at.map(time),
    }
}

/// It stands, at what may be left.
fn may_be_left<P: OwnPlan>(record: &Record<P>, control: &Control) -> bool {
    let stands_at = record.step().filter(|_| control.trouble().is_some());
    stands_at.is_some_and(|(_, step)| record.plan.may_be_left(step))
}

pub(super) fn cause(id: OperationId) -> String {
    format!("operation {id}")
}

/// Unix time in seconds, a label.
pub(super) fn unix_time() -> i64 {
    clock::wall().0 / 1_000_000
}

fn time(unix_seconds: i64) -> String {
    clock::to_text(WallTime(unix_seconds.saturating_mul(1_000_000)))
}
