#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;

const DISK: DiskIndex = DiskIndex(0);

fn piece(start: u64, end: u64, from: u64, until: Option<u64>) -> LostPiece {
    LostPiece {
        disk: DISK,
        range: ByteRange::new(start, end - start),
        from: WriteSeq::from_raw(from),
        until: until.map(WriteSeq::from_raw),
    }
}

fn is_lost(lost: &Lost, at: u64, cut: u64) -> bool {
    lost.first_at(DISK, ByteRange::new(at, 1), WriteSeq::from_raw(cut)).is_some()
}

/// A small number below `most`, made up.
fn any(seed: &mut u64, most: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % most
}

/// Beside a table of every byte as of every cut.
#[test]
fn pieces_are_what_was_added_less_what_was_written_over() {
    for seed in 0..300 {
        let (mut seed, mut lost, mut now) = (seed, Lost::default(), 1);
        let mut table = vec![[false; 64]; 40];
        for _ in 0..12 {
            let start = any(&mut seed, 30);
            let end = start + 1 + any(&mut seed, 10);
            if any(&mut seed, 2) == 0 {
                let from = any(&mut seed, now);
                let until =
                    (any(&mut seed, 2) == 0).then(|| (from + 1 + any(&mut seed, now - from)).min(now));
                let known = table.clone();
                for at in start..end {
                    (from..until.unwrap_or(64)).for_each(|cut| table[at as usize][cut as usize] = true);
                }
                let added = lost.add([piece(start, end, from, until)]);
                for (at, cut) in (0..40).flat_map(|at| (0..64).map(move |cut| (at, cut))) {
                    let is_new = table[at as usize][cut as usize] && !known[at as usize][cut as usize];
                    let is_told = added.iter().any(|one| {
                        one.is_about(DISK, ByteRange::new(at, 1)) && one.is_at(WriteSeq::from_raw(cut))
                    });
                    assert_eq!(is_new, is_told, "{at} as of {cut}");
                }
            } else {
                now += 1 + any(&mut seed, 3);
                lost.write_over(DISK, ByteRange::new(start, end - start), WriteSeq::from_raw(now));
                // What was open ends with it; what is lost as of later cuts only is none of its business.
                for at in start..end {
                    (now..64).for_each(|cut| table[at as usize][cut as usize] = false);
                }
            }
            for cut in 0..64 {
                let cut_seq = WriteSeq::from_raw(cut);
                let bytes = (0..40).filter(|at| table[*at][cut as usize]).count() as u64;
                assert_eq!(lost.bytes_at(cut_seq), bytes, "as of {cut}");
                assert_eq!(lost.lost_from(cut_seq).is_some(), bytes > 0);
                for at in 0..40 {
                    assert_eq!(is_lost(&lost, at, cut), table[at as usize][cut as usize], "{at} as of {cut}");
                }
                let left = lost.left_of(DISK, ByteRange::new(0, 40), cut_seq);
                assert_eq!(left.iter().map(|part| part.len).sum::<u64>(), 40 - bytes);
            }
        }
        let manifest_of = |lost: &Lost| lost.entries().iter().map(LostPiece::from).collect::<Vec<_>>();
        assert_eq!(manifest_of(&lost), lost.pieces());
    }
}

#[test]
fn too_many_pieces_become_fewer_that_cost_more_and_never_less() {
    let one = |number: u64| {
        piece(number * 10, number * 10 + 3, 5 + number % 3, number.is_multiple_of(2).then_some(50))
    };
    let many = LOST_PIECES_MAX as u64 + 1000;
    let mut lost = Lost::default();
    lost.add((0..many).map(one));
    assert!(lost.pieces.len() <= LOST_PIECES_MAX);
    for number in 0..many {
        assert!(is_lost(&lost, number * 10 + 1, 8), "piece {number}");
        assert!(number.is_multiple_of(2) || is_lost(&lost, number * 10 + 1, 60));
    }
    lost.write_over(DISK, ByteRange::new(0, many * 10), WriteSeq::from_raw(100));
    assert_eq!(lost.lost_from(WriteSeq::MAX), None, "what is written over them ends all");
}

#[test]
fn what_can_be_opened_no_more_is_forgotten() {
    let mut lost = Lost::default();
    lost.add([piece(0, 5, 1, Some(7)), piece(5, 9, 1, None)]);
    lost.forget(WriteSeq::from_raw(6));
    assert_eq!(lost.pieces().len(), 2);
    lost.forget(WriteSeq::from_raw(7));
    assert_eq!(lost.pieces(), [piece(5, 9, 1, None)]);
}
