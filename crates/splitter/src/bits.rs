//! Runs of bits in bytes, least significant first, as the dirty map and the region log have them in their files.

use std::ops::Range;

/// The bytes that hold a run's bits; of no bits, none.
pub(crate) fn bytes_of(run: &Range<u64>) -> Range<usize> {
    if run.is_empty() { 0..0 } else { (run.start / 8) as usize..((run.end - 1) / 8 + 1) as usize }
}

/// Of the byte at this place, which bits belong to the run.
fn mask(run: &Range<u64>, byte: usize) -> u8 {
    let first = byte as u64 * 8;
    let from = run.start.max(first) - first;
    let to = run.end.min(first + 8) - first;
    ((0xff_u16 << from) & (0xff_u16 >> (8 - to))) as u8
}

/// Whether all bits of a run are what is asked for.
pub(crate) fn are(bits: &[u8], run: &Range<u64>, set: bool) -> bool {
    bytes_of(run).all(|at| {
        let mask = mask(run, at);
        bits[at] & mask == if set { mask } else { 0 }
    })
}

/// Sets or clears a run in `part`, the bytes from place `at` on.
pub(crate) fn put(part: &mut [u8], at: usize, run: &Range<u64>, set: bool) {
    for byte in bytes_of(run) {
        let mask = mask(run, byte);
        let place = &mut part[byte - at];
        *place = if set { *place | mask } else { *place & !mask };
    }
}

/// Runs of bits that are set, in order.
pub(crate) fn set_runs(bits: &[u8]) -> impl Iterator<Item = Range<u64>> {
    let word = |at: usize| {
        let mut word = [0; 8];
        let bytes = bits.get(at * 8..).unwrap_or(&[]);
        let len = bytes.len().min(8);
        word[..len].copy_from_slice(&bytes[..len]);
        u64::from_le_bytes(word)
    };
    let all = crate::bitmap::runs(0..bits.len() as u64 * 8, word);
    all.filter_map(|(run, is_set)| is_set.then_some(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_say_what_bits_one_by_one_would(
            steps in proptest::collection::vec((any::<bool>(), 0u64..96, 0u64..96), 1..20),
        ) {
            let (mut bits, mut plain) = ([0; 12], [false; 96]);
            for (set, from, to) in steps {
                let run = from..to.max(from);
                run.clone().for_each(|at| plain[at as usize] = set);
                let bytes = bytes_of(&run);
                put(&mut bits[bytes.clone()], bytes.start, &run, set);
                prop_assert!(are(&bits, &run, set));
                prop_assert!(run.is_empty() || !are(&bits, &run, !set));
            }
            let found: Vec<u64> = set_runs(&bits).flatten().collect();
            let expected: Vec<u64> = (0..96).filter(|at| plain[*at as usize]).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
