//! What a failure means to a script.

use crate::not_waited::{Ended, NotWaited};
use api::ClientError;
use std::process::ExitCode;

pub(crate) const DAMAGED: u8 = 7;
pub(crate) const NOT_ALL_RUN: u8 = 8;
/// As what does not fit the present state.
pub(crate) const TAKEN_BACK: u8 = 4;
const STILL_GOING: u8 = 9;
const FORBIDDEN: u8 = 10;
/// As a shell has it of what SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Prints an error and gives the exit code for its kind.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("holdfast: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(ended) = error.downcast_ref::<NotWaited>() {
        return match ended.by {
            Ended::Timeout => STILL_GOING,
            Ended::Interrupt => INTERRUPTED,
        };
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Connect { .. }) => 6,
        Some(ClientError::Refused(problem)) => match problem.status {
            422 | 400 => 2,
            404 => 3,
            409 => 4,
            503 => 5,
            403 => FORBIDDEN,
            _ => 1,
        },
        Some(ClientError::Http(_) | ClientError::Answer(_)) | None => 1,
    }
}
