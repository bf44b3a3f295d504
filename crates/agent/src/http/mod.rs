//! The control API: axum over a unix socket, and over mutual TLS on TCP.

mod answer;
mod groups;
mod journals;
mod routes;
mod serve;

pub use routes::openapi;
pub(crate) use serve::serve;

use crate::alerts::Alerts;
use crate::recovery::Recovery;
use crate::source::Source;
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
}
