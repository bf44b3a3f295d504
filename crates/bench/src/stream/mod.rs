//! The stream's figures: from the capture of a write on one agent to its being durable at another.
//!
//! The protected side runs in this process, so that writes are given to the capture itself and no front end
//! is measured with it; the recovery side is a process of its own. Between them is TLS on loopback.

mod compare;
mod crash;
mod cuts;
mod headline;
mod lag;
mod mirror;
mod outage;
mod pair;
mod tls;

use crate::Run;
use crate::figures::Figure;
use anyhow::Result;
pub(crate) use mirror::Qmp;
pub(crate) use pair::{Pair, run_agent};

/// Runs every section that is wanted.
pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    run.sections(&[
        ("headline", headline::run),
        ("lag", lag::run),
        ("outage", outage::run),
        ("crash", crash::run),
        ("compare", compare::run),
        ("cuts", cuts::run),
        ("mirror", mirror::run),
    ])
}
