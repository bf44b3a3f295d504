//! A lock on the history that is kept of a VM, until a date: nothing of it goes before, whoever asks for that.
//!
//! What holds: it is over once as much time was seen to pass, by the age of the journal, as there was until the date when it
//! was set, and this host's clock has come to the date as well. So a clock that jumps ahead frees nothing, and one that is set
//! back only keeps it for longer; so does a host that is off, for then nothing is seen to pass.
//!
//! It is made longer by one person, and lifted by two together; no one person shortens it.

use crate::clock;
use crate::error::{OperationError, Result};
use crate::rights::Person;
use crate::state::random;
use journal::Settings;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::WallTime;
use types::limits::{LIFT_SECONDS, LOCK_SECONDS_MAX};

/// A lock, as `state/journals/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetentionLock {
    /// Microseconds since 1970, by this host's clock.
    pub(super) until: i64,
    /// How old the journal is then at the least, in microseconds.
    pub(super) until_aged: i64,
    pub(super) set_at: i64,
    pub(super) set_by: String,
    /// That it be lifted, as one person has asked; gone once it is made longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lift: Option<LiftAsked>,
}

/// What time it is: as a label, and by what was seen to pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: WallTime,
    pub(super) aged: Duration,
}

impl Now {
    pub(super) fn of(journal: &journal::Journal) -> Self {
        Self { wall: clock::wall(), aged: journal.aged(clock::now()) }
    }

    fn aged_micros(self) -> i64 {
        i64::try_from(self.aged.as_micros()).unwrap_or(i64::MAX)
    }
}

impl RetentionLock {
    /// A lock until then, in the place of the one there is.
    ///
    /// # Errors
    /// Where it would be shorter, or is not one that anybody means.
    pub(super) fn until(before: Option<&Self>, until: WallTime, by: &str, now: Now) -> Result<Self> {
        if let Some(before) = before.filter(|before| until.0 < before.until) {
            return Err(OperationError::conflict(format!(
                "it is locked until {} already: a lock is made longer, and never shorter",
                before.until_text()
            )));
        }
        let more = until.0.saturating_sub(now.wall.0);
        let most = i64::try_from(LOCK_SECONDS_MAX * 1_000_000).unwrap_or(i64::MAX);
        if !(1..=most).contains(&more) {
            return Err(OperationError::invalid(format!(
                "{} is no end of a lock: it must come after now ({}, by the recovery side's clock), and within {} days",
                clock::to_text(until),
                clock::to_text(now.wall),
                LOCK_SECONDS_MAX / 86_400
            )));
        }
        let aged = now.aged_micros().saturating_add(more);
        Ok(Self {
            until: until.0,
            // A clock that has jumped ahead meanwhile makes it no shorter.
            until_aged: before.map_or(aged, |before| before.until_aged.max(aged)),
            set_at: now.wall.0,
            set_by: by.to_owned(),
            lift: None,
        })
    }

    pub(super) fn is_over(&self, now: Now) -> bool {
        now.wall.0 >= self.until && now.aged_micros() >= self.until_aged
    }

    pub(super) fn until_text(&self) -> String {
        clock::to_text(WallTime(self.until))
    }

    /// How much time is still to be seen to pass, whatever the clock says.
    pub(super) fn left(&self, now: Now) -> Duration {
        let left = self.until_aged.saturating_sub(now.aged_micros());
        Duration::from_micros(u64::try_from(left).unwrap_or(0))
    }
}

/// When a lock that is asked for ends.
pub(super) fn asked_until(asked: &api::LockRequest, now: WallTime) -> Result<WallTime> {
    let micros = |seconds: u64| i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    match (asked.until.as_deref(), asked.for_seconds) {
        (Some(text), None) => end_of(text).ok_or_else(|| {
            OperationError::invalid(format!(
                "{text:?} is no date and no time: use 2027-01-31, to the end of that day (UTC), or RFC 3339, as \
                 2027-01-31T12:00:00Z"
            ))
        }),
        (None, Some(seconds)) => Ok(WallTime(now.0.saturating_add(micros(seconds)))),
        _ => Err(OperationError::invalid("say until when, or for how long: one of the two")),
    }
}

/// A time, or the end of a day.
fn end_of(text: &str) -> Option<WallTime> {
    clock::from_text(text).or_else(|| clock::from_text(&format!("{text}T23:59:59Z")))
}

/// Which of what is set would keep less history than before, in words.
pub(super) fn shrinks(before: &Settings, after: &Settings) -> Option<&'static str> {
    let limit = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
    let is_less = [
        (after.history < before.history, "a shorter history"),
        (limit(after.bytes_hard) < limit(before.bytes_hard), "a lower hard limit"),
        (limit(after.bytes_soft) < limit(before.bytes_soft), "a lower soft limit"),
        (after.thinning.all < before.thinning.all, "a shorter time for which all checkpoints are kept"),
        (after.thinning.minutely < before.thinning.minutely, "a shorter time for which one a minute is kept"),
        (after.tagged_history < before.tagged_history, "a shorter time for tagged checkpoints"),
        (after.let_go != before.let_go, "letting go of the newest whole checkpoint"),
    ];
    is_less.into_iter().find_map(|(is, what)| is.then_some(what))
}

/// That a lock be lifted, as one person has asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LiftAsked {
    pub(super) id: String,
    pub(super) by: Person,
    asked_at: i64,
    /// How old the journal is, in microseconds, when it counts no more.
    until_aged: i64,
}

impl LiftAsked {
    pub(super) fn new(by: Person, now: Now) -> Self {
        let id = random()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let until_aged = now.aged_micros().saturating_add(LIFT_SECONDS.cast_signed() * 1_000_000);
        Self { id, by, asked_at: now.wall.0, until_aged }
    }

    fn stands(&self, now: Now) -> bool {
        now.aged_micros() < self.until_aged
    }

    /// Whether `by` may confirm it as `id`.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, id: &str, by: &Person, now: Now) -> std::result::Result<(), String> {
        if self.id != id {
            return Err(format!(
                "request {id} to lift it does not stand; {} does, by {}",
                self.id, self.by.who
            ));
        }
        if !self.stands(now) {
            return Err(format!("request {id} to lift it is over: it is asked for anew"));
        }
        match self.by.may_be(by) {
            true => Err(format!(
                "{} has asked for it, and {} are not two persons: another confirms it, with a certificate of its own name",
                self.by.who, by.who
            )),
            false => Ok(()),
        }
    }

    fn to_api(&self, now: Now) -> api::LiftAsked {
        let left = self.until_aged.saturating_sub(now.aged_micros()) / 1_000_000;
        api::LiftAsked {
            id: self.id.clone(),
            by: self.by.who.clone(),
            asked_at: clock::to_text(WallTime(self.asked_at)),
            seconds_left: left.unsigned_abs(),
        }
    }
}

impl RetentionLock {
    /// What was asked for and counts now.
    pub(super) fn lift(&self, now: Now) -> Option<&LiftAsked> {
        self.lift.as_ref().filter(|lift| lift.stands(now))
    }

    pub(super) fn lift_to_api(&self, now: Now) -> Option<api::LiftAsked> {
        self.lift(now).map(|lift| lift.to_api(now))
    }
}
