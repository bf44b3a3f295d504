//! Which blocks are asked for again.

use super::*;
use proptest::prelude::*;
use types::{ByteRange, DiskIndex, WriteSeq};

fn seq(raw: u64) -> WriteSeq {
    WriteSeq::from_raw(raw)
}

fn piece(disk: u16, start: u64, len: u64) -> LostPiece {
    LostPiece { disk: DiskIndex(disk), range: ByteRange::new(start, len), from: seq(5), until: None }
}

fn run(disk: u16, first: u64, blocks: u64) -> BlockRun {
    BlockRun { disk: DiskIndex(disk), first: BlockIndex(first), blocks }
}

fn lost(pieces: impl IntoIterator<Item = LostPiece>) -> Lost {
    let mut lost = Lost::default();
    lost.add(pieces);
    lost
}

#[test]
fn the_blocks_of_what_is_lost_now_are_asked_for_and_no_others() {
    let old = LostPiece { until: Some(seq(9)), ..piece(0, 50 << 16, 4096) };
    let lost = lost([
        piece(0, 65_000, 1000),
        piece(0, (3 << 16) - 1, 1),
        piece(0, 7 << 16, 3 << 16),
        piece(2, 4096, 4096),
        old,
    ]);
    assert_eq!(runs(&lost), [run(0, 0, 3), run(0, 7, 3), run(2, 0, 1)]);
    assert!(!is_most(&lost, [10 << 16, 0, 4 << 16].into_iter()), "7 of 14");
    assert!(is_most(&lost, [10 << 16, 0, 3 << 16].into_iter()), "7 of 13");
}

#[test]
fn of_too_many_runs_the_nearest_become_one() {
    let runs = vec![run(0, 0, 1), run(0, 10, 1), run(0, 12, 5), run(0, 30, 1), run(1, 31, 1)];
    assert_eq!(bounded(runs.clone(), 4), [run(0, 0, 1), run(0, 10, 7), run(0, 30, 1), run(1, 31, 1)]);
    assert_eq!(bounded(runs.clone(), 2), [run(0, 0, 31), run(1, 31, 1)]);
    assert_eq!(bounded(runs, 1), [run(0, 0, 31), run(1, 31, 1)], "those of two disks never");
}

proptest! {
    #[test]
    fn whatever_is_lost_is_asked_for(
        pieces in proptest::collection::vec((0u16..3, 0u64..1 << 28, 1u64..1 << 18), 1..200),
        most in 3usize..40,
    ) {
        let lost = lost(pieces.into_iter().map(|(disk, start, len)| piece(disk, start, len)));
        let runs = bounded(runs(&lost), most);
        prop_assert!(runs.len() <= most);
        prop_assert!(runs.windows(2).all(|two| (two[0].disk, two[0].end()) < (two[1].disk, two[1].first.0)));
        for piece in lost.pieces() {
            let has = |run: &BlockRun| {
                run.disk == piece.disk && run.range(u64::MAX).without(piece.range).count() <= 2
                    && piece.range.without(run.range(u64::MAX)).count() == 0
            };
            prop_assert!(runs.iter().any(has));
        }
    }
}
