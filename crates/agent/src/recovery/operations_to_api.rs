//! The operations of this side for the operator.

use super::Recovery;
use super::plans::Plan;
use crate::error::Result;
use crate::ledger::Asker;
use operations::{OperationId, RequestKey};

impl Recovery {
    /// All that go on, and those that have ended lately.
    pub(crate) fn list_operations(&self) -> Vec<api::Operation> {
        self.operations.to_api()
    }

    /// One of them, if it is of this side; whoever asks has heard how it has ended.
    pub(crate) fn show_operation(&self, id: OperationId) -> Option<api::Operation> {
        self.operations.show(id)
    }

    /// Has an operation taken back, if it is of this side. Where nobody carries it out just now that is done here.
    pub(crate) fn cancel_operation(&self, id: OperationId, asker: &Asker) -> Result<Option<()>> {
        let plan = self.operations.cancel(id)?;
        plan.map(|plan| self.go_on_for(id, &plan, asker)).transpose()
    }

    /// Has what an operation cannot do or undo left as it is, if it is of this side.
    pub(crate) fn leave_operation(&self, id: OperationId, asker: &Asker) -> Result<Option<()>> {
        let plan = self.operations.leave(id)?;
        plan.map(|plan| self.go_on_for(id, &plan, asker)).transpose()
    }

    fn go_on_for(&self, id: OperationId, plan: &Plan, asker: &Asker) -> Result<()> {
        drop(self.operations.join(id, asker)?);
        self.go_on_by_itself(id, plan);
        Ok(())
    }

    /// The operation that a request of before has begun, by what it is called, if it is of this side.
    pub(crate) fn operation_of_key(&self, key: &RequestKey) -> Result<Option<OperationId>> {
        self.operations.same(key)
    }

    /// The operation that was under way already when a request of that name asked for it.
    pub(crate) fn operation_joined_by(&self, key: &str) -> Option<OperationId> {
        self.operations.joined_by(key)
    }

    /// Has whoever asks hear how an operation ends; none where it is not of this side.
    pub(crate) fn listen_to_operation(&self, id: OperationId, asker: &Asker) -> Option<()> {
        self.operations.listen(id, asker)
    }
}
