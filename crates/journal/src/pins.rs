//! Pins: cuts that must stay readable. An open image holds one as long as it lives; one with an owner is
//! kept in the manifest, until it is taken away or expires.

use crate::age::micros;
use crate::checkpoint_files::CheckpointError;
use crate::history::History;
use crate::manifest::PinEntry;
use crate::state::State;
use crate::view::Shared;
use std::io;
use std::time::Duration;
use types::{WallTime, WriteSeq};

/// Why a cut was not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("no consistent state of the VM at {cut}")]
    NotConsistent { cut: WriteSeq },
    /// Whether there is one nobody can tell.
    #[error("cannot tell whether the VM can be opened at {cut}")]
    Unread {
        cut: WriteSeq,
        #[source]
        source: CheckpointError,
    },
    #[error("cannot save the pin")]
    Manifest(#[source] io::Error),
}

/// A pin that is kept over restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub id: u64,
    pub owner: String,
    pub cut: WriteSeq,
    pub expires_at: Option<WallTime>,
}

/// When a pin ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Counted by the age clock.
    pub after: Duration,
    /// The same as a label.
    pub at: WallTime,
}

impl Shared {
    /// Whether `cut` was given out, as consistent, and holds whatever was found or sent since: somebody has pinned it,
    /// and the index still knows all that it shows, so that reads either show it or fail.
    fn is_promised(&self, cut: WriteSeq) -> bool {
        let mut pins = self.manifest.pins.iter().map(|pin| pin.cut);
        let is_pinned = pins.any(|pin| pin == cut.raw()) || self.image_pins.values().any(|pin| *pin == cut);
        is_pinned && self.timeline.reaches(cut) && self.lost_at(cut).is_none()
    }
}

/// The pins of a journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pins<'a> {
    pub(crate) state: &'a State,
}

impl Pins<'_> {
    /// Pins `cut` for an image, until [`Pins::unpin_image`].
    pub(crate) fn pin_image(&self, cut: WriteSeq) -> Result<u64, PinError> {
        let is_consistent = History { state: self.state }.is_consistent(cut);
        let mut shared = self.state.write_shared();
        // It may have been retired, or a gap been found, since.
        let is_good = matches!(is_consistent, Ok(true)) && shared.timeline.is_consistent_checkpoint(cut);
        if !is_good && !shared.is_promised(cut) {
            return Err(match is_consistent {
                Err(source) => PinError::Unread { cut, source },
                Ok(_) => PinError::NotConsistent { cut },
            });
        }
        let id = shared.next_image_pin;
        shared.next_image_pin += 1;
        shared.image_pins.insert(id, cut);
        Ok(id)
    }

    pub(crate) fn unpin_image(&self, id: u64) {
        self.state.write_shared().image_pins.remove(&id);
    }

    /// Pins `cut` for `owner`, over restarts, until [`Pins::unpin`] or it expires. The pin's number.
    pub(crate) fn pin(&self, owner: &str, cut: WriteSeq, expiry: Option<Expiry>) -> Result<u64, PinError> {
        // Held by memory until it is on the disk.
        let guard = self.pin_image(cut)?;
        let mut id = 0;
        let now = self.state.read_shared().age.now;
        let saved = self.state.change_manifest_alone(|manifest| {
            manifest.next_pin += 1;
            id = manifest.next_pin;
            manifest.pins.push(PinEntry {
                id,
                owner: owner.to_owned(),
                cut: cut.raw(),
                expires_at: expiry.map(|expiry| expiry.at.0),
                expires_age: expiry.map(|expiry| now.saturating_add(micros(expiry.after))),
            });
        });
        self.unpin_image(guard);
        saved.map(|()| id).map_err(PinError::Manifest)
    }

    /// Takes away the pins for which `gone` holds. How many.
    pub(crate) fn unpin(&self, gone: impl Fn(&Pin) -> bool) -> io::Result<usize> {
        let pins = self.list();
        let numbers: Vec<u64> = pins.iter().filter(|pin| gone(pin)).map(|pin| pin.id).collect();
        if !numbers.is_empty() {
            self.state
                .change_manifest_alone(|manifest| manifest.pins.retain(|pin| !numbers.contains(&pin.id)))?;
        }
        Ok(numbers.len())
    }

    /// The pins that are kept over restarts.
    pub(crate) fn list(&self) -> Vec<Pin> {
        let shared = self.state.read_shared();
        let pins = shared.manifest.pins.iter();
        pins.map(|pin| Pin {
            id: pin.id,
            owner: pin.owner.clone(),
            cut: WriteSeq::from_raw(pin.cut),
            expires_at: pin.expires_at.map(WallTime),
        })
        .collect()
    }

    pub(crate) fn expire(&self, now: WallTime) -> io::Result<usize> {
        let expired: Vec<u64> = {
            let shared = self.state.read_shared();
            let is_over = |pin: &&PinEntry| match (pin.expires_age, pin.expires_at) {
                (Some(age), _) => age <= shared.age.now,
                (None, at) => at.is_some_and(|at| at <= now.0),
            };
            shared.manifest.pins.iter().filter(is_over).map(|pin| pin.id).collect()
        };
        self.unpin(|pin| expired.contains(&pin.id))
    }
}
