//! What was changed here at a door of the API: when, by whom, from where, what, and how it ended.
//!
//! What holds: a change begins only once it stands in the record durably. Where that cannot be done, because the disk is
//! full or broken or does not answer in time, the change is refused and there is an alert. How it ended is written behind
//! it; where that fails it is shown as not known, and there is an alert as well.

mod line;
mod log;
mod reading;
mod writer;

use crate::alerts::Alerts;
use crate::clock;
use crate::error::OperationError;
use crate::rights::Caller;
use api::AuditPage;
use line::{Asked, Ended};
pub(crate) use reading::AuditQuery;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use tokio::sync::oneshot;
use tokio::time::timeout;
use types::limits::AUDIT_TIMEOUT;
use writer::{ALERT, Job};

/// What waits to be written at most. A disk that hangs lets no more changes begin, so this is not reached otherwise.
const WAITING_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Audit {
    folder: PathBuf,
    queue: SyncSender<Job>,
    alerts: Arc<Alerts>,
}

/// A change that stands in the record, and whose end does not yet.
#[derive(Debug)]
pub(crate) struct Begun {
    audit: Arc<Audit>,
    number: u64,
    has_ended: bool,
}

impl Audit {
    /// The record in a folder, which is made. Nothing here waits for the disk.
    pub(crate) fn in_folder(folder: &Path, alerts: Arc<Alerts>) -> std::io::Result<Arc<Self>> {
        let (queue, jobs) = sync_channel(WAITING_MAX);
        writer::start(folder.to_path_buf(), jobs, alerts.clone())?;
        Ok(Arc::new(Self { folder: folder.to_path_buf(), queue, alerts }))
    }

    /// Has it written down that a change is asked for.
    ///
    /// # Errors
    /// Where that is not done in time: then the change may not be made.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        caller: &Caller,
        method: &str,
        path: &str,
    ) -> Result<Begun, OperationError> {
        let asked = Asked::now(caller, method, path);
        let (reply, mut written) = oneshot::channel();
        if self.queue.try_send(Job::Asked(asked, reply)).is_err() {
            return Err(self.not_recorded_and_nobody_knows("too much waits to be written"));
        }
        let told = match timeout(AUDIT_TIMEOUT, &mut written).await {
            Ok(told) => told.unwrap_or_else(|_| Err("the agent is stopping".into())),
            Err(_) => {
                let refused = self.not_recorded_and_nobody_knows("the disk does not answer");
                // From here on nobody hears that it was written after all, and it is written that it was refused.
                written.close();
                match written.try_recv() {
                    Ok(told) => told,
                    Err(_) => return Err(refused),
                }
            }
        };
        let number = told.map_err(|error| self.not_recorded(&error))?;
        Ok(Begun { audit: self.clone(), number, has_ended: false })
    }

    /// Where the thread that writes could not tell: it clears the alert when it writes again.
    fn not_recorded_and_nobody_knows(&self, why: &str) -> OperationError {
        let place = self.folder.display();
        self.alerts
            .raise(ALERT, format!("changes are refused, for they cannot be recorded in {place}: {why}"));
        self.not_recorded(why)
    }

    fn not_recorded(&self, why: &str) -> OperationError {
        let place = self.folder.display();
        OperationError::unavailable(format!(
            "nothing is changed, for it cannot be recorded in {place}: {why}; make room there, or mend the disk"
        ))
    }

    /// A page of the record.
    ///
    /// # Errors
    /// Where a file of it cannot be read.
    pub(crate) fn list(&self, query: &AuditQuery) -> anyhow::Result<AuditPage> {
        reading::list(&self.folder, query)
    }
}

impl Begun {
    /// How it ended: with which status, and as which operation it goes on.
    pub(crate) fn end(mut self, status: u16, operation: Option<String>) {
        self.write(Some(status), operation);
    }

    fn write(&mut self, status: Option<u16>, operation: Option<String>) {
        self.has_ended = true;
        let ended = Ended { number: self.number, at: clock::to_text(clock::wall()), status, operation };
        if self.audit.queue.try_send(Job::Ended(ended)).is_err() {
            let why = "how a change has ended is not recorded: too much waits to be written";
            self.audit.alerts.raise(ALERT, why.to_owned());
        }
    }
}

impl Drop for Begun {
    /// Whoever asked has left before the answer.
    fn drop(&mut self) {
        if !self.has_ended {
            self.write(None, None);
        }
    }
}

#[cfg(test)]
mod tests;
