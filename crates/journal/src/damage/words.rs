//! The words for damage, which are bounded: of very much that is damaged not every place has its own.

use crate::cover::LogKind;
use crate::lost::LostPiece;
use crate::manifest::{DamageEntry, Manifest};
use crate::segment::SegmentError;
use types::limits::{DAMAGE_TOLD_MAX, DAMAGE_TOLD_TOGETHER_MAX};

/// A place that is damaged, in words, and what that has cost.
#[derive(Debug, Clone)]
pub(crate) struct Spoilt {
    pub(crate) what: String,
    pub(crate) pieces: Vec<LostPiece>,
}

/// Of many the last ones as one.
pub(super) fn in_bounded_words(found: Vec<Spoilt>) -> Vec<Spoilt> {
    in_so_many(found, DAMAGE_TOLD_TOGETHER_MAX)
}

/// What costs nothing as one, and first: it is known by its words alone, which are the same each time that the same is found.
pub(super) fn costless_as_one(found: Vec<Spoilt>) -> Vec<Spoilt> {
    let (costless, costly) = found.into_iter().partition(|one| one.pieces.is_empty());
    in_so_many(costless, 1).into_iter().chain::<Vec<_>>(costly).collect()
}

fn in_so_many(mut found: Vec<Spoilt>, most: usize) -> Vec<Spoilt> {
    if found.len() > most {
        let rest = found.split_off(most);
        let last = found.last_mut().expect("there are as many");
        last.what = format!("{}, and {} more places", last.what, rest.len());
        last.pieces.extend(rest.into_iter().flat_map(|found| found.pieces));
    }
    found
}

/// At most so many entries whose costs are told in pieces: of more the oldest become one. What is known is known by its pieces,
/// but where an opening finds that a segment is missing: that has words of its own.
pub(super) fn bound(manifest: &mut Manifest) {
    if manifest.damage.len() <= DAMAGE_TOLD_MAX {
        return;
    }
    let missing: Vec<String> = [LogKind::Redo, LogKind::Undo]
        .into_iter()
        .flat_map(|kind| manifest.log(kind).segments.iter().map(move |info| info.file_name(kind)))
        .map(|name| SegmentError::Missing { name }.to_string())
        .collect();
    bound_those(&mut manifest.damage, &missing);
}

/// Without those in these words.
fn bound_those(damage: &mut Vec<DamageEntry>, kept: &[String]) {
    let is_bounded = |entry: &DamageEntry| entry.in_pieces && !kept.contains(&entry.what);
    let count = damage.iter().filter(|entry| is_bounded(entry)).count();
    let Some(excess) = count.checked_sub(DAMAGE_TOLD_MAX).filter(|excess| *excess > 0) else { return };
    let mut oldest = Vec::new();
    damage.retain(|entry| {
        let goes = oldest.len() <= excess && is_bounded(entry);
        oldest.extend(goes.then(|| entry.clone()));
        !goes
    });
    damage.insert(0, as_one(&oldest));
}

fn as_one(entries: &[DamageEntry]) -> DamageEntry {
    let more = entries.iter().fold(0u64, |more, entry| more.saturating_add(entry.more.unwrap_or(1)));
    DamageEntry {
        what: format!("{more} more places, which were told when they were found"),
        from_seq: entries.iter().map(|entry| entry.from_seq).min().unwrap_or(0),
        // Made good once all of them are.
        to_seq: entries.iter().map(|entry| entry.to_seq).try_fold(0u64, |last, to| to.map(|to| last.max(to))),
        indexed: true,
        in_pieces: true,
        more: Some(more),
    }
}

#[cfg(test)]
mod tests;
