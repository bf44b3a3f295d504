//! What an operation is made of, and who does it.

use crate::at::At;
use crate::lock::Lock;
use std::collections::BTreeSet;
use std::fmt;

/// All that was chosen of one operation. Its steps follow from it alone, the same each time they are
/// asked for. Records count them: the steps of a plan that was ever released stay as they are, and others are another plan.
pub trait Plan: Clone {
    /// One step. Its `Display` is what an operator reads: `copy the journal`.
    type Step: Copy + fmt::Debug + fmt::Display;

    /// The steps in their order, at least one.
    fn steps(&self) -> Vec<Self::Step>;

    /// Whether there is no way back once this step has begun. All after it are final as well. A step that comes to such a
    /// point only while it runs writes that down in the plan, by [`At::keep`].
    fn is_final(&self, step: Self::Step) -> bool;

    /// Whether the operation may end without this step done, or undone, where that cannot be and an operator says so:
    /// what is left then costs room, and nothing else.
    fn may_be_left(&self, step: Self::Step) -> bool;

    /// What nobody else may change meanwhile.
    fn locks(&self) -> BTreeSet<Lock>;

    /// With which others it is counted: of each kind so many go on at once, whatever others do. None for what ends something:
    /// it always begins, and there is no more of it than of what it locks.
    fn counts_as(&self) -> Option<&'static str>;
}

/// Why a step could not be done or undone now. It is tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

/// Why a step was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It would fail again: the operation is taken back, or, where there is no way back, tried again nevertheless.
    #[error("{0}")]
    Refused(String),
    /// It may be done later: nothing is taken back for it.
    #[error("{0}")]
    NotNow(String),
    /// An operator has cancelled the operation, and the step has stopped for that.
    #[error("cancelled by an operator")]
    Cancelled,
}

/// Does the steps of a plan. Each of its functions may be cut short at any instruction, and is then called again with
/// what was written down last.
pub trait Work<P: Plan> {
    /// Whether a step needs nothing more, however that came to be. It changes nothing.
    ///
    /// # Errors
    /// Where it cannot be found out now.
    fn is_done(&self, plan: &P, step: P::Step) -> Result<bool, Trouble>;

    /// Does a step, also one that was done in part. What it finds out that later steps need it puts into the plan; what
    /// it is about to make and could not find again it [keeps](At::keep) there first.
    ///
    /// # Errors
    /// As [`Failure`] says.
    fn run(&self, plan: &mut P, step: P::Step, at: &mut At<'_, P>) -> Result<(), Failure>;

    /// Takes a step back, also one that was done in part, not at all, or is taken back already.
    ///
    /// # Errors
    /// Where it cannot be taken back now.
    fn undo(&self, plan: &P, step: P::Step) -> Result<(), Trouble>;
}
