//! The operations of this side for the operator.

use super::Source;
use crate::error::Result;
use operations::OperationId;
use std::sync::Arc;

impl Source {
    /// All that go on, and those that have ended lately.
    pub(crate) fn list_operations(&self) -> Vec<api::Operation> {
        self.operations.to_api()
    }

    /// One of them, if it is of this side; whoever asks has heard how it has ended.
    pub(crate) fn show_operation(&self, id: OperationId) -> Option<api::Operation> {
        self.operations.show(id)
    }

    /// Has an operation taken back, if it is of this side. Where nobody carries it out just now that is done here.
    pub(crate) fn cancel_operation(self: &Arc<Self>, id: OperationId) -> Result<Option<api::Operation>> {
        if let Some(plan) = self.operations.cancel(id)? {
            self.go_on_by_itself(id, &plan);
        }
        Ok(self.show_operation(id))
    }
}
