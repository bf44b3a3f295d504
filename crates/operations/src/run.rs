//! Going through an operation's steps, forward or back, from wherever its record stands.
//!
//! What must be durable before what:
//!
//! 1. The record, before the first step: an operation that nobody knows of has done nothing.
//! 2. What a step found out, before the next one: it goes with the record that says that the step is done.
//! 3. That it goes back, before the first undo: an agent that starts again does not go forward over what is half undone.
//! 4. Its end, after the last step.

use crate::at::At;
use crate::control::{Control, Progress};
use crate::plan::{Failure, Plan, Trouble, Work};
use crate::record::{Record, Standing};

/// A record could not be made durable. It counts as not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operation's record is not written: {0}")]
pub struct LedgerError(pub String);

/// Keeps the records.
pub trait Ledger<P> {
    /// Replaces an operation's record; once this returns, the new one survives a crash.
    ///
    /// # Errors
    /// If that cannot be promised.
    fn keep(&self, record: &Record<P>) -> Result<(), LedgerError>;
}

/// How a pass through the steps has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// The record says how.
    Ended,
    /// It is to be tried again, a while later.
    Stands(Trouble),
}

/// Goes on with an operation until it has ended or stands. `now` is the Unix time, for the record.
pub fn go_on<P: Plan>(
    record: &mut Record<P>,
    work: &dyn Work<P>,
    ledger: &dyn Ledger<P>,
    control: &Control,
    now: &dyn Fn() -> i64,
) -> Pass {
    let mut run = Run { record, work, ledger, control, now };
    let pass = loop {
        let stepped = match run.record.standing.clone() {
            Standing::Done | Standing::TakenBack { .. } => break Pass::Ended,
            Standing::Forward { next } => run.forward(next),
            Standing::Back { left, why } => run.back(left, why),
        };
        control.set_progress(Progress::default());
        if let Err(trouble) = stepped {
            break Pass::Stands(trouble);
        }
        control.set_trouble(None);
    };
    control.set_trouble(match &pass {
        Pass::Ended => None,
        Pass::Stands(trouble) => Some(trouble.0.clone()),
    });
    pass
}

/// One pass.
struct Run<'a, P> {
    record: &'a mut Record<P>,
    work: &'a dyn Work<P>,
    ledger: &'a dyn Ledger<P>,
    control: &'a Control,
    now: &'a dyn Fn() -> i64,
}

impl<P: Plan> Run<'_, P> {
    fn forward(&mut self, next: usize) -> Result<(), Trouble> {
        let steps = self.record.plan.steps();
        let Some(&step) = steps.get(next) else { return self.put(Standing::Done) };
        let is_final = !self.record.has_way_back();
        if is_final {
            // An agent that starts again has a gate that is open.
            let _ = self.control.shut();
        } else if self.control.check().is_err() {
            // This step was perhaps begun by an agent that has ended.
            return self.turn_back(next, Failure::Cancelled.to_string());
        }
        let mut plan = self.record.plan.clone();
        let done = match self.work.is_done(&plan, step) {
            Ok(true) => Ok(()),
            Ok(false) => self.run_step(&mut plan, step, is_final),
            Err(Trouble(why)) => Err(Failure::NotNow(why)),
        };
        // What a step has found out is not lost where its end cannot be written; one that fails has kept what counts.
        if done.is_ok() {
            self.record.plan = plan;
        }
        let is_final = is_final || !self.record.has_way_back();
        match done {
            Ok(()) => self.done_with(&steps, next, is_final),
            Err(Failure::Cancelled) if !is_final => self.turn_back(next, Failure::Cancelled.to_string()),
            Err(Failure::Refused(why)) if !is_final => self.turn_back(next, format!("{step}: {why}")),
            Err(failure) => {
                let trouble = Trouble(format!("{step}: {failure}"));
                if !is_final {
                    return Err(trouble);
                }
                self.leave(step, trouble, Standing::Forward { next: next + 1 })
            }
        }
    }

    fn run_step(&mut self, plan: &mut P, step: P::Step, is_final: bool) -> Result<(), Failure> {
        let (record, ledger, control) = (&mut *self.record, self.ledger, self.control);
        let mut keep = |plan: &P| {
            let kept = Record { plan: plan.clone(), ..record.clone() };
            let is_final = !kept.has_way_back();
            if is_final && record.has_way_back() {
                control.shut().map_err(|_| Failure::Cancelled)?;
            }
            // In memory too, and first: whatever is written after this has it.
            *record = kept;
            ledger.keep(record).map_err(|error| Failure::NotNow(error.to_string()))?;
            Ok(is_final)
        };
        let mut at = At { keep: &mut keep, control, is_final };
        self.work.run(plan, step, &mut at)
    }

    /// A step is done. Before one from which there is no way back, a cancel that was taken is heard.
    fn done_with(&mut self, steps: &[P::Step], next: usize, is_final: bool) -> Result<(), Trouble> {
        let is_last_way_back = steps.get(next + 1).is_none_or(|step| self.record.plan.is_final(*step));
        if !is_final && is_last_way_back && self.control.shut().is_err() {
            return self.turn_back(next, Failure::Cancelled.to_string());
        }
        self.put(Standing::Forward { next: next + 1 })
    }

    /// Back from a step, which may have been done in part.
    fn turn_back(&mut self, from: usize, why: String) -> Result<(), Trouble> {
        self.put(Standing::Back { left: from + 1, why })
    }

    fn back(&mut self, left: usize, why: String) -> Result<(), Trouble> {
        let Some(last) = left.checked_sub(1) else { return self.put(Standing::TakenBack { why }) };
        let steps = self.record.plan.steps();
        if let Some(&step) = steps.get(last)
            && let Err(Trouble(what)) = self.work.undo(&self.record.plan, step)
        {
            let trouble = Trouble(format!("undo of {step}: {what}"));
            return self.leave(step, trouble, Standing::Back { left: last, why });
        }
        self.put(Standing::Back { left: last, why })
    }

    /// Goes past what fails, where an operator has it left as it is; the record says so.
    fn leave(&mut self, step: P::Step, trouble: Trouble, standing: Standing) -> Result<(), Trouble> {
        if !self.record.plan.may_be_left(step) || !self.control.take_leave() {
            return Err(trouble);
        }
        let mut changed = Record { standing, ..self.record.clone() };
        changed.left_undone.push(trouble.0);
        self.replace(changed)
    }

    /// Changes the record, on disk first.
    fn put(&mut self, standing: Standing) -> Result<(), Trouble> {
        let ended_at = standing.is_end().then(self.now);
        self.replace(Record { standing, ended_at, ..self.record.clone() })
    }

    fn replace(&mut self, changed: Record<P>) -> Result<(), Trouble> {
        self.ledger.keep(&changed).map_err(|error| Trouble(error.to_string()))?;
        *self.record = changed;
        Ok(())
    }
}
