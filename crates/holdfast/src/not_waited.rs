//! Commands that end while what they have asked for goes on, and what they say then.

use api::Operation;
use std::fmt;

/// Why a command ends before what it has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Timeout,
    Interrupt,
}

/// A command that ends while what it has asked for goes on.
#[derive(Debug)]
pub(crate) struct NotWaited {
    pub(crate) by: Ended,
    /// Where it is known.
    pub(crate) operation: Option<Box<Operation>>,
}

impl fmt::Display for NotWaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.by {
            Ended::Timeout => "the time to wait is over",
            Ended::Interrupt => "interrupted",
        })?;
        let Some(operation) = &self.operation else {
            return f.write_str(
                "; what was asked for goes on: `holdfast operation list` and `holdfast status` show it",
            );
        };
        let Operation { id, kind, about, .. } = operation.as_ref();
        write!(
            f,
            "; operation {id} ({kind} of {about}) goes on: `holdfast operation show {id}` tells how far it is, "
        )?;
        write!(f, "`holdfast operation wait {id}` waits for its end")?;
        if operation.allows("cancel") {
            write!(f, ", `holdfast operation cancel {id}` takes it back")?;
        }
        Ok(())
    }
}

impl std::error::Error for NotWaited {}

impl NotWaited {
    pub(crate) fn unknown(by: Ended) -> Self {
        Self { by, operation: None }
    }
}
