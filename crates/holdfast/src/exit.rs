//! What a failure means to a script.

use api::ClientError;
use std::process::ExitCode;

pub(crate) const DAMAGED: u8 = 7;
pub(crate) const NOT_ALL_RUN: u8 = 8;

/// Prints an error and gives the exit code for its kind.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("holdfast: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Connect { .. }) => 6,
        Some(ClientError::Refused(problem)) => match problem.status {
            422 | 400 => 2,
            404 => 3,
            409 => 4,
            503 => 5,
            _ => 1,
        },
        Some(ClientError::Http(_) | ClientError::Answer(_)) | None => 1,
    }
}
