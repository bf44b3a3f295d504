//! What the API is of, and the operations of both its sides as one list.

use super::asked::Requests;
use crate::alerts::Alerts;
use crate::audit::Audit;
use crate::config::Config;
use crate::error::{OperationError, Result};
use crate::ledger::Asker;
use crate::recovery::Recovery;
use crate::source::Source;
use api::Operation;
use operations::{OperationId, RequestKey};
use std::sync::Arc;
use types::RunNumber;

/// What the handlers work on.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) site: String,
    pub(crate) agent: String,
    pub(crate) run: RunNumber,
    pub(crate) source: Arc<Source>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) alerts: Arc<Alerts>,
    pub(crate) audit: Arc<Audit>,
    /// For operations that have not begun.
    pub(crate) requests: Arc<Requests>,
}

impl App {
    pub(crate) fn new(
        config: &Config,
        run: RunNumber,
        source: Arc<Source>,
        recovery: Arc<Recovery>,
        alerts: Arc<Alerts>,
        audit: Arc<Audit>,
    ) -> Self {
        let (site, agent) = (config.site.clone(), config.agent.clone());
        Self { site, agent, run, source, recovery, alerts, audit, requests: Arc::default() }
    }

    /// All that go on, and those that have ended lately; the newest first.
    pub(super) fn list_operations(&self) -> Vec<Operation> {
        let mut all = self.recovery.list_operations();
        all.extend(self.source.list_operations());
        all.sort_by(|one, other| (&other.began_at, &other.id).cmp(&(&one.began_at, &one.id)));
        all
    }

    /// One of them; whoever asks has heard how it has ended.
    pub(super) fn show_operation(&self, id: OperationId) -> Result<Operation> {
        let found = self.recovery.show_operation(id).or_else(|| self.source.show_operation(id));
        found.ok_or_else(|| no_such(id))
    }

    /// One of them, for somebody who has not waited for its end.
    pub(super) fn look_at_operation(&self, id: OperationId) -> Result<Operation> {
        let id_text = id.to_string();
        self.list_operations()
            .into_iter()
            .find(|operation| operation.id == id_text)
            .ok_or_else(|| no_such(id))
    }

    pub(super) fn operation_of_key(&self, key: &RequestKey) -> Result<Option<OperationId>> {
        match self.recovery.operation_of_key(key)? {
            Some(id) => Ok(Some(id)),
            None => self.source.operation_of_key(key),
        }
    }

    /// The operation that was under way already when a request of that name asked for it.
    pub(super) fn operation_joined_by(&self, key: &str) -> Option<OperationId> {
        self.recovery.operation_joined_by(key).or_else(|| self.source.operation_joined_by(key))
    }

    /// Has whoever asks hear how an operation ends.
    pub(super) fn listen(&self, id: OperationId, asker: &Asker) -> Result<()> {
        let side = self.recovery.listen_to_operation(id, asker);
        side.or_else(|| self.source.listen_to_operation(id, asker)).ok_or_else(|| no_such(id))
    }

    pub(super) fn cancel_operation(&self, id: OperationId, asker: &Asker) -> Result<()> {
        let found = match self.recovery.cancel_operation(id, asker)? {
            Some(()) => Some(()),
            None => self.source.cancel_operation(id, asker)?,
        };
        found.ok_or_else(|| no_such(id))
    }

    pub(super) fn leave_operation(&self, id: OperationId, asker: &Asker) -> Result<()> {
        let found = match self.recovery.leave_operation(id, asker)? {
            Some(()) => Some(()),
            None => self.source.leave_operation(id, asker)?,
        };
        found.ok_or_else(|| no_such(id))
    }
}

fn no_such(id: OperationId) -> OperationError {
    OperationError::not_found(format!(
        "there is no operation {id}; `holdfast operation list` shows those that are known"
    ))
}
