//! Containing damage: what was found is written down, the cuts it touches cannot be opened, and the source
//! is asked to compare everything. Nothing is thrown away: older checkpoints stay, newer ones appear
//! once the source's sync has drained.
//!
//! The demand for that stands until it is met. How traffic could write it over, if it were no more than what the
//! stream says of itself: (1) a scrub finds damage, and the stream's incarnation is forgotten, so that the source may
//! not resume; (2) before its connection is closed its next batch comes, and brings the incarnation with it; (3) the
//! source resumes, and what was lost never comes again. So the demand is a field of its own, in the manifest too, and
//! while it stands nothing is taken but a stream that begins anew, on a connection that was told of it.

use crate::append::Appender;
use crate::manifest::{DamageEntry, Manifest};
use crate::payload;
use crate::state::State;
use crate::timeline::Timeline;
use crate::writer::Takes;
use std::io;
use types::WriteSeq;

/// What was found wrong, and that it was contained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where, and what is wrong.
    pub what: String,
    /// Cuts from here on may miss writes, until the source has sent everything again.
    pub from: WriteSeq,
    /// The index knows what lay there, so that reading it fails instead of showing older bytes.
    pub indexed: bool,
}

impl Damage {
    /// Whether it was found before. What was made good stays where it lies until retention drops it, and is found
    /// each time somebody looks: newer cuts do not need it.
    pub(crate) fn is_known(&self, manifest: &Manifest) -> bool {
        manifest.damage.iter().any(|entry| entry.what == self.what)
    }

    /// Writes it down. The open segment is sealed already, so that the gaps in the manifest are those of
    /// its end.
    pub(crate) fn record(&self, manifest: &mut Manifest, timeline: &mut Timeline) {
        if self.is_known(manifest) {
            return;
        }
        timeline.open_gap(self.from);
        timeline.demand_resync(self.from);
        timeline.write_to(manifest);
        let newest = manifest.redo.segments.iter_mut().rev().find_map(|segment| segment.sealed.as_mut());
        let point = newest.map_or(&mut manifest.base, |sealed| &mut sealed.point);
        // Without an incarnation the source cannot resume, whatever program reads this next.
        point.incarnation = None;
        let (what, from_seq, indexed) = (self.what.clone(), self.from.raw(), self.indexed);
        manifest.damage.push(DamageEntry { what, from_seq, to_seq: None, indexed });
    }
}

/// Contains damage found while the journal is open; whether it was not known yet. Then the stream must be
/// closed, so that the source learns that it has to send everything again.
pub(crate) fn contain(state: &State, appender: &Appender, damage: &Damage) -> io::Result<bool> {
    if damage.is_known(&state.read_shared().manifest) {
        return Ok(false);
    }
    let mut writer = appender.lock_writer();
    appender.seal_redo(&mut writer)?;
    let mut timeline = state.read_shared().timeline.clone();
    state.change_manifest(
        |manifest| damage.record(manifest, &mut timeline),
        |shared, manifest| {
            shared.timeline.open_gap(damage.from);
            shared.timeline.demand_resync(damage.from);
            shared.set_manifest(manifest, |_| {});
        },
    )?;
    // Whoever streams now does not know of it.
    writer.takes = Takes::NothingMore;
    payload::forget(state.uid);
    Ok(true)
}

/// Writes down that damage was made good, once a sync that began after it has drained.
pub(crate) fn settle(state: &State) -> io::Result<()> {
    let made_good = {
        let shared = state.read_shared();
        let waiting = shared.manifest.damage.iter().any(|damage| damage.to_seq.is_none());
        (waiting && !shared.timeline.is_gap_open()).then(|| shared.timeline.last_seq.raw())
    };
    let Some(upto) = made_good else { return Ok(()) };
    state.change_manifest_alone(|manifest| {
        for damage in manifest.damage.iter_mut().filter(|damage| damage.to_seq.is_none()) {
            damage.to_seq = Some(upto);
        }
    })
}
