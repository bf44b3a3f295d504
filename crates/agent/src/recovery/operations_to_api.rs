//! Operations for the operator: told in the words of the API, and cancelled.

use super::Recovery;
use super::plans::Plan;
use crate::clock;
use crate::error::{OperationError, Result};
use operations::{Control, OperationId, Plan as _, Record, Standing};
use std::sync::Arc;
use types::WallTime;

impl Recovery {
    /// All that go on, and those that have ended lately; the newest first.
    pub(crate) fn list_operations(&self) -> Vec<api::Operation> {
        let book = self.operations.book();
        let mut rows: Vec<_> = book.all().collect();
        rows.sort_by_key(|(record, _)| std::cmp::Reverse((record.began_at, record.id)));
        rows.into_iter().map(|(record, control)| to_api(record, control)).collect()
    }

    /// One of them; whoever asks has heard how it has ended.
    pub(crate) fn show_operation(&self, word: &str) -> Result<api::Operation> {
        let (record, control) = self.operation(word)?;
        self.note_heard(&record);
        Ok(to_api(&record, &control))
    }

    /// Has an operation taken back. Where nobody carries it out just now that is done here.
    pub(crate) fn cancel_operation(&self, word: &str) -> Result<api::Operation> {
        let (record, control) = self.operation(word)?;
        let id = record.id;
        let refuse =
            |why: &str| OperationError::conflict(format!("operation {id} cannot be cancelled: {why}"));
        if record.standing.is_end() {
            return Err(refuse("it has ended"));
        }
        control.cancel().map_err(|late| refuse(&late.to_string()))?;
        self.go_on_by_itself(id, &record.plan);
        self.show_operation(word)
    }

    fn operation(&self, word: &str) -> Result<(Record<Plan>, Arc<Control>)> {
        let id = word.parse::<OperationId>().ok();
        let book = self.operations.book();
        let found = id.and_then(|id| book.get(id)).map(|(record, control)| (record.clone(), control.clone()));
        found.ok_or_else(|| {
            OperationError::not_found(format!(
                "there is no operation {word:?}; `holdfast operation list` shows those that are known"
            ))
        })
    }
}

fn to_api(record: &Record<Plan>, control: &Control) -> api::Operation {
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

fn time(unix_seconds: i64) -> String {
    clock::to_text(WallTime(unix_seconds.saturating_mul(1_000_000)))
}
