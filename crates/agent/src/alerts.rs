//! What is wrong with the agent as a whole, for the operator to see until it is mended.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Standing alerts, one per cause.
#[derive(Debug, Default)]
pub(crate) struct Alerts(Mutex<BTreeMap<String, String>>);

impl Alerts {
    /// Raises an alert, logged where it is new or another.
    pub(crate) fn raise(&self, cause: impl Into<String>, text: String) {
        let cause = cause.into();
        let before = self.lock().insert(cause.clone(), text.clone());
        if before.as_ref() != Some(&text) {
            tracing::error!(cause, "{text}");
        }
    }

    /// The cause is gone.
    pub(crate) fn clear(&self, cause: &str) {
        if self.lock().remove(cause).is_some() {
            tracing::info!(cause, "mended");
        }
    }

    pub(crate) fn list(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().expect("a panic aborts the process")
    }
}
