//! Why an operation was not done, for the operator.

use std::fmt;

/// The kind of error, which decides the HTTP status and the CLI's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// What it names is not there.
    NotFound,
    /// Whoever asks may not.
    Forbidden,
    /// It does not fit the state things are in.
    Conflict,
    /// Somebody has what it needs, perhaps an agent that is just ending.
    InUse,
    /// It may succeed later.
    Unavailable,
    /// Something broke.
    Internal,
}

/// An operation that was not done.
#[derive(Debug)]
pub struct OperationError {
    pub kind: ErrorKind,
    /// What happened and what to do about it.
    pub detail: String,
}

impl OperationError {
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, detail: detail.into() }
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::NotFound, detail: detail.into() }
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Conflict, detail: detail.into() }
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Forbidden, detail: detail.into() }
    }

    pub fn in_use(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::InUse, detail: detail.into() }
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Unavailable, detail: detail.into() }
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for OperationError {}

impl From<anyhow::Error> for OperationError {
    fn from(error: anyhow::Error) -> Self {
        Self { kind: ErrorKind::Internal, detail: format!("{error:#}") }
    }
}

/// The result of an operation.
pub type Result<T> = std::result::Result<T, OperationError>;

/// An error with all that caused it, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
