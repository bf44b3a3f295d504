//! What operators are told of a side's operations: in the words of the API, and in alerts.

use super::{Operations, OwnPlan};
use crate::clock;
use crate::error::{OperationError, Result};
use operations::{Control, Failure, Ledger as _, OperationId, Pass, Record, Standing};
use std::sync::Arc;
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
        self.alerts.clear(cause(record.id));
    }
}

fn to_api<P: OwnPlan>(record: &Record<P>, control: &Control) -> api::Operation {
    let steps = record.plan.steps().len();
    let (state, steps_done, why) = match &record.standing {
        Standing::Forward { next } => ("going", *next, None),
        Standing::Back { left, why } => ("going-back", *left, Some(why.clone())),
        Standing::Done => ("done", steps, None),
        Standing::TakenBack { why } => ("taken-back", 0, Some(why.clone())),
    };
    let progress = control.progress();
    api::Operation {
        id: record.id.to_string(),
        kind: record.plan.kind().to_owned(),
        about: record.plan.about(),
        state: state.to_owned(),
        step: record.step().map(|(_, step)| step.to_string()),
        steps_done,
        steps,
        bytes_done: progress.done,
        bytes_total: progress.total,
        why,
        trouble: control.trouble(),
        can_be_cancelled: record.has_way_back() && control.check().is_ok(),
        began_at: time(record.began_at),
        ended_at: record.ended_at.map(time),
    }
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
