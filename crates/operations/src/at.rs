//! What a step in progress may say and ask.

use crate::control::{Control, Progress};
use crate::plan::Failure;

/// Writes a plan down, and says whether there is no way back from then on.
type Keep<'a, P> = &'a mut dyn FnMut(&P) -> Result<bool, Failure>;

/// Where a step in progress stands, for the step itself.
pub struct At<'a, P> {
    pub(crate) keep: Keep<'a, P>,
    pub(crate) control: &'a Control,
    pub(crate) is_final: bool,
}

impl<P> At<'_, P> {
    /// Makes what a step has chosen durable, before it does what could not be found again without; or that from here on
    /// there is no way back, as [the plan](Plan::is_final) then says.
    ///
    /// # Errors
    /// If it is not: also since an operator has cancelled the operation before it had no way back.
    pub fn keep(&mut self, plan: &P) -> Result<(), Failure> {
        self.is_final = (self.keep)(plan)?;
        Ok(())
    }

    /// Says how far the step is.
    pub fn progress(&self, progress: Progress) {
        self.control.set_progress(progress);
    }

    /// # Errors
    /// If an operator has cancelled the operation and there is a way back: the step is to leave off, wherever it is.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_final { Ok(()) } else { self.control.check().map_err(|_| Failure::Cancelled) }
    }

    /// The same for who does the steps of a plan that is a kind of this one.
    pub fn with_kind<Q, T>(&mut self, whole: impl Fn(&Q) -> P, step: impl FnOnce(&mut At<'_, Q>) -> T) -> T {
        let (keep, control, is_final) = (&mut self.keep, self.control, self.is_final);
        let mut keep_kind = |kind: &Q| keep(&whole(kind));
        let mut at = At { keep: &mut keep_kind, control, is_final };
        let done = step(&mut at);
        self.is_final = at.is_final;
        done
    }
}
