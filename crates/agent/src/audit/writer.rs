//! The thread that writes the record, so that nobody else waits for its disk longer than he wants to.

use super::line::{Asked, Ended, Line};
use super::log::Log;
use crate::alerts::Alerts;
use crate::clock;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What is wrong where the record cannot be written.
pub(super) const ALERT: &str = "audit record";
/// How often it is tried whether a record that could not be written can be again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
const TOO_LATE: u16 = 503;

#[derive(Debug)]
pub(super) enum Job {
    /// And where its number, or why it has none, is to be told.
    Asked(Asked, oneshot::Sender<Result<u64, String>>),
    Ended(Ended),
}

pub(super) fn start(folder: PathBuf, jobs: Receiver<Job>, alerts: Arc<Alerts>) -> io::Result<()> {
    let writer = Writer { folder, log: None, alerts };
    std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&jobs)).map(drop)
}

struct Writer {
    folder: PathBuf,
    log: Option<Log>,
    alerts: Arc<Alerts>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.log.is_none() {
                match self.open_and_try() {
                    Ok(()) => self.alerts.clear(ALERT),
                    Err(error) => self.raise(&error),
                }
            }
            match jobs.recv_timeout(RETRY_INTERVAL) {
                Ok(job) => self.take(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Asked(asked, reply) => {
                let written = self.write_asked(asked).inspect_err(|error| self.raise(error));
                let told = written.map_err(|error| error.to_string());
                if let Err(Ok(number)) = reply.send(told) {
                    // Whoever asked was told meanwhile that it is not done.
                    let at = clock::to_text(clock::wall());
                    self.write_end(Ended { number, at, status: Some(TOO_LATE), operation: None });
                }
            }
            Job::Ended(ended) => self.write_end(ended),
        }
    }

    fn write_asked(&mut self, mut asked: Asked) -> io::Result<u64> {
        let number = self.log()?.number();
        asked.number = number;
        self.add(&Line::Asked(asked))?;
        Ok(number)
    }

    fn write_end(&mut self, ended: Ended) {
        if let Err(error) = self.add(&Line::Ended(ended)) {
            let text =
                format!("how a change has ended is not recorded in {}: {error}", self.folder.display());
            self.alerts.raise(ALERT, text);
        }
    }

    fn add(&mut self, line: &Line) -> io::Result<()> {
        tell(line);
        let added = self.log()?.add(line);
        match &added {
            Ok(()) => self.alerts.clear(ALERT),
            // After an error of a flush the file tells nothing of what is on the disk.
            Err(_) => self.log = None,
        }
        added
    }

    /// That a file can be opened tells nothing of whether it can be written to.
    fn open_and_try(&mut self) -> io::Result<()> {
        let mut log = Log::open(&self.folder)?;
        log.try_to_write()?;
        self.log = Some(log);
        Ok(())
    }

    fn log(&mut self) -> io::Result<&mut Log> {
        if self.log.is_none() {
            self.log = Some(Log::open(&self.folder)?);
        }
        Ok(self.log.as_mut().expect("it was just opened"))
    }

    fn raise(&self, error: &io::Error) {
        let place = self.folder.display();
        self.alerts
            .raise(ALERT, format!("changes are refused, for they cannot be recorded in {place}: {error}"));
    }
}

/// In the log as well, which may go to where nobody of this host changes it.
fn tell(line: &Line) {
    match line {
        Line::Asked(asked) => {
            let Asked { number, who, fingerprint, from, method, path, .. } = asked;
            tracing::info!(number, who, fingerprint, from, method, path, "change asked for");
        }
        Line::Ended(Ended { number, status, operation, .. }) => {
            tracing::info!(number, status, operation, "change answered");
        }
    }
}
