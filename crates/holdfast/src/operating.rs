//! Commands that begin operations or wait for them: how far they are is told meanwhile, and whoever leaves is told that they
//! go on.

use crate::cli::{Limit, ListOperations, OperationCommand, Wait};
use crate::exit::TAKEN_BACK;
use crate::not_waited::{Ended, NotWaited};
use crate::print::{self, bytes};
use crate::telling::{Speed, Standing, Teller};
use crate::waiting::{PACE, percent};
use agent::clock;
use anyhow::{Context, Result};
use api::{Asking, Begun, Client, ClientError, Operation};
use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;
use types::Monotonic;
use types::limits::OPERATION_WAIT_SECONDS_MAX;

/// What came of a command that begins an operation.
pub(crate) enum Came<T> {
    /// It is done, and this is its answer.
    Done(T),
    /// It is not waited for.
    GoesOn(Box<Operation>),
}

impl<T> Came<T> {
    /// Prints the answer, or what goes on.
    pub(crate) fn print(&self, json: bool, text: impl FnOnce(&T) -> String) -> Result<()>
    where
        T: serde::Serialize,
    {
        match self {
            Self::Done(answer) => print::one(json, answer, text),
            Self::GoesOn(operation) => print::one(json, operation.as_ref(), print::operation),
        }
    }
}

/// Until when is waited.
#[derive(Debug, Clone, Copy)]
struct Deadline(Option<Monotonic>);

impl Deadline {
    fn of(limit: &Limit) -> Self {
        Self(limit.timeout.map(|seconds| clock::now().plus(Duration::from_secs(seconds))))
    }

    /// What one request waits, in whole seconds.
    fn seconds(self) -> u64 {
        let left = self.0.map(|until| until.since(clock::now()).as_millis().div_ceil(1000));
        let left = left.and_then(|left| u64::try_from(left).ok());
        left.unwrap_or(OPERATION_WAIT_SECONDS_MAX).min(OPERATION_WAIT_SECONDS_MAX)
    }

    fn is_over(self) -> bool {
        self.0.is_some_and(|until| clock::now() >= until)
    }
}

/// Asks for something that begins an operation, and waits for that as long as is wanted. `what` is done, in words.
pub(crate) async fn operated<T>(
    client: &Client,
    wait: &Wait,
    what: &str,
    ask: impl AsyncFn(Asking) -> Result<Begun<T>, ClientError>,
) -> Result<Came<T>> {
    // Asking again must not begin it again.
    let key = wait.idempotency_key.clone().unwrap_or_else(new_key);
    let asking = |wait_seconds| Asking { wait_seconds, key: Some(key.clone()) };
    let look = async || {
        let page = client.operations(&[("key", key.as_str()), ("limit", "1")]).await.ok()?;
        page.operations.into_iter().next()
    };
    let (follower, deadline) = (Follower::new(what), Deadline::of(&wait.limit));
    loop {
        let seconds = (!wait.no_wait).then(|| deadline.seconds());
        let answer = follower.follow(ask(asking(seconds)), &look).await?;
        let answer = answer.map_err(|error| follower.lost(error, &key))?;
        match answer {
            Begun::Done(answer) => return Ok(Came::Done(answer)),
            Begun::GoesOn(operation) if wait.no_wait => return Ok(Came::GoesOn(operation)),
            // Asked again, how it has ended is told at once.
            Begun::GoesOn(operation) if operation.ended_at.is_none() && deadline.is_over() => {
                return Err(NotWaited { by: Ended::Timeout, operation: Some(operation) }.into());
            }
            // Sooner than was asked for, perhaps.
            Begun::GoesOn(operation) if operation.ended_at.is_none() => tokio::time::sleep(PACE).await,
            Begun::GoesOn(_) => {}
        }
    }
}

/// Waits for the end of an operation as long as is wanted.
async fn ended(client: &Client, id: &str, limit: &Limit) -> Result<Operation> {
    let (follower, deadline) = (Follower::new(&format!("operation {id}")), Deadline::of(limit));
    let look = async || client.operation(id).await.ok();
    loop {
        let operation = follower.follow(client.wait_for_operation(id, deadline.seconds()), &look).await??;
        if operation.ended_at.is_some() {
            return Ok(operation);
        }
        if deadline.is_over() {
            return Err(NotWaited { by: Ended::Timeout, operation: Some(Box::new(operation)) }.into());
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Tells of an operation while something is waited for.
struct Follower {
    what: String,
    begun: Monotonic,
    teller: RefCell<Teller>,
    speed: RefCell<(String, Speed)>,
    seen: RefCell<Option<Box<Operation>>>,
}

impl Follower {
    fn new(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            begun: clock::now(),
            teller: RefCell::new(Teller::patient()),
            speed: RefCell::default(),
            seen: RefCell::default(),
        }
    }

    /// What `work` gives, unless somebody interrupts it.
    async fn follow<T>(
        &self,
        work: impl Future<Output = T>,
        look: &impl AsyncFn() -> Option<Operation>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let looking = async {
                tokio::time::sleep(PACE).await;
                look().await
            };
            tokio::select! {
                biased;
                done = &mut work => {
                    self.teller.borrow().end();
                    return Ok(done);
                }
                listened = &mut interrupt => {
                    listened.context("listen for interrupts")?;
                    self.teller.borrow().end();
                    return Err(NotWaited { by: Ended::Interrupt, operation: self.seen.take() }.into());
                }
                seen = looking => self.tell(seen),
            }
        }
    }

    fn tell(&self, seen: Option<Operation>) {
        let standing = match &seen {
            Some(operation) => self.standing(operation),
            None => {
                let seconds = clock::now().since(self.begun).as_secs();
                let text = format!("{}: {seconds} s, waiting for the agent's answer", self.what);
                Standing { key: self.what.clone(), share: None, text }
            }
        };
        self.teller.borrow_mut().tell(&standing);
        if let Some(operation) = seen {
            *self.seen.borrow_mut() = Some(Box::new(operation));
        }
    }

    /// The step, how far it is, and what it stands at.
    fn standing(&self, operation: &Operation) -> Standing {
        let Operation { step, steps_done, steps, bytes_done, bytes_total, .. } = operation;
        let step = step.clone().unwrap_or_else(|| operation.state.clone());
        let back = match &operation.why {
            Some(why) => format!(", going back: {why}"),
            None => String::new(),
        };
        let trouble = match &operation.trouble {
            Some(trouble) => format!(", stands and is tried again: {trouble}"),
            None => String::new(),
        };
        let count = if operation.why.is_some() { *steps_done } else { (steps_done + 1).min(steps.len()) };
        let at = format!("{}: {step} ({count} of {})", self.what, steps.len());
        if *bytes_total == 0 {
            let text = format!("{at}{back}{trouble}");
            return Standing { key: text.clone(), share: None, text };
        }
        let share = (*bytes_done as f64 / *bytes_total as f64).min(1.0);
        let ((percent, tenth), rate) = (percent(share), self.rate(&step, *bytes_done));
        Standing {
            key: format!("{at} {tenth}{back}{trouble}"),
            share: Some(share),
            text: format!(
                "{at}, {percent}, {} of {}{rate}{back}{trouble}",
                bytes(*bytes_done),
                bytes(*bytes_total)
            ),
        }
    }

    /// How fast a step is.
    fn rate(&self, step: &str, bytes_done: u64) -> String {
        let mut speed = self.speed.borrow_mut();
        if speed.0 != step {
            *speed = (step.to_owned(), Speed::default());
        }
        speed.1.of(bytes_done)
    }

    /// The agent has gone, and perhaps comes back.
    fn lost(&self, error: ClientError, key: &str) -> anyhow::Error {
        let is_lost = matches!(error, ClientError::Http(_));
        let error = anyhow::Error::new(error);
        if !is_lost {
            return error;
        }
        error.context(match self.seen.borrow().as_ref() {
            Some(operation) => format!(
                "operation {0} goes on once the agent is back: `holdfast operation wait {0}`",
                operation.id
            ),
            None => format!(
                "whether it has begun is not known: the same command with `--idempotency-key {key}` begins it once"
            ),
        })
    }
}

fn new_key() -> String {
    agent::random().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) async fn operation(client: &Client, command: OperationCommand, json: bool) -> Result<ExitCode> {
    match command {
        OperationCommand::List(list) => {
            list_operations(client, &list, json).await?;
            Ok(ExitCode::SUCCESS)
        }
        OperationCommand::Show { id } => {
            print::one(json, &client.operation(&id).await?, print::operation)?;
            Ok(ExitCode::SUCCESS)
        }
        OperationCommand::Wait { id, limit } => {
            let operation = ended(client, &id, &limit).await?;
            print::one(json, &operation, print::operation)?;
            let is_done = operation.state == "done";
            Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(TAKEN_BACK) })
        }
        OperationCommand::Cancel { id, no_wait, limit } => {
            let operation = client.cancel_operation(&id).await?;
            let operation = if no_wait { operation } else { ended(client, &id, &limit).await? };
            print::one(json, &operation, print::operation)?;
            Ok(ExitCode::SUCCESS)
        }
        OperationCommand::Leave { id, no_wait, limit } => {
            let operation = client.leave_operation(&id).await?;
            let operation = if no_wait { operation } else { ended(client, &id, &limit).await? };
            print::one(json, &operation, print::operation)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list_operations(client: &Client, list: &ListOperations, json: bool) -> Result<()> {
    let limit = Some(list.limit.to_string());
    let running = list.running.then(|| "true".to_owned());
    let query = [
        ("limit", &limit),
        ("cursor", &list.cursor),
        ("state", &list.state),
        ("kind", &list.kind),
        ("vm", &list.vm),
        ("group", &list.group),
        ("key", &list.idempotency_key),
        ("running", &running),
    ];
    let query: Vec<_> =
        query.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect();
    print::one(json, &client.operations(&query).await?, print::operations)
}
