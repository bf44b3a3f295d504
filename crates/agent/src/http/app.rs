//! What the API is of.

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
