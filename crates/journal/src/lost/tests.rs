#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use types::limits::LOST_PIECES_MAX;

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
                assert_eq!(lost.by_cut().bytes_at(cut_seq), bytes, "as of {cut}");
                assert_eq!(lost.by_cut().lost_from(cut_seq).is_some(), bytes > 0);
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
    assert_eq!(lost.by_cut().lost_from(WriteSeq::MAX), None, "what is written over them ends all");
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

/// As many as are kept, none of which lies next to another; `until` says which were written over.
fn many(until: Option<u64>) -> Lost {
    let mut lost = Lost::default();
    lost.add((0..LOST_PIECES_MAX as u64).map(|number| piece(number * 20, number * 20 + 10, 5, until)));
    assert_eq!(lost.pieces.len(), LOST_PIECES_MAX);
    lost
}

/// This is done for each record of a batch while nobody can read.
#[test]
fn a_write_over_one_of_many_pieces_looks_at_few() {
    let mut lost = many(None);
    for number in 0..LOST_PIECES_MAX as u64 {
        let write = ByteRange::new(number * 7919 % LOST_PIECES_MAX as u64 * 20, 10);
        let looked_at = during(|| lost.write_over(DISK, write, WriteSeq::from_raw(10 + number)));
        assert!(looked_at < 20, "{looked_at} pieces are looked at for write {number}");
    }
    assert_eq!(lost.newest_bytes(), 0);
}

#[test]
fn writes_that_make_two_of_one_piece_look_at_few_where_there_are_too_many() {
    let mut lost = many(None);
    let writes = LOST_PIECES_MAX;
    let looked_at = during(|| {
        for number in 0..writes as u64 {
            let write = ByteRange::new(number * 20 + 4, 1);
            lost.write_over(DISK, write, WriteSeq::from_raw(10 + number));
        }
    });
    assert!(lost.pieces.len() <= LOST_PIECES_MAX);
    assert!(looked_at < 100 * writes, "{looked_at} pieces are looked at for {writes} writes");
}

#[test]
fn reads_among_many_pieces_look_at_few_and_see_what_is_lost() {
    for lost in [many(None), many(Some(9))] {
        for number in 0..LOST_PIECES_MAX as u64 {
            let (at, cut) = (ByteRange::new(number * 20, 20), WriteSeq::from_raw(7));
            let looked_at = during(|| {
                assert_eq!(lost.first_at(DISK, at, cut).map(|piece| piece.range.start), Some(at.start));
                assert_eq!(lost.of_at(DISK, at, cut), [ByteRange::new(at.start, 10)]);
                assert_eq!(lost.left_of(DISK, at, cut), [ByteRange::new(at.start + 10, 10)]);
            });
            assert!(looked_at < 20, "{looked_at} pieces are looked at for piece {number}");
        }
    }
}

#[test]
fn a_list_of_checkpoints_counts_what_is_lost_once() {
    let lost = many(Some(9));
    let rows = 10_000;
    let looked_at = during(|| {
        for cut in 0..rows as u64 {
            let bytes = if (5..9).contains(&cut) { LOST_PIECES_MAX as u64 * 10 } else { 0 };
            assert_eq!(lost.clone().by_cut().bytes_at(WriteSeq::from_raw(cut)), bytes);
        }
    });
    assert!(looked_at < 3 * LOST_PIECES_MAX + 2 * rows, "{looked_at} pieces are looked at for {rows} rows");
}

/// Pieces that became one may have bytes in common with others.
#[test]
fn a_byte_that_two_pieces_have_is_counted_once() {
    let pieces = [piece(0, 30, 1, Some(9)), piece(10, 20, 3, None), piece(15, 40, 5, Some(7))];
    let by_cut = ByCut::of(&pieces);
    for (cut, bytes, from) in
        [(0, 0, None), (1, 30, Some(1)), (5, 40, Some(1)), (8, 30, Some(1)), (9, 10, Some(3))]
    {
        let cut = WriteSeq::from_raw(cut);
        assert_eq!((by_cut.bytes_at(cut), by_cut.lost_from(cut)), (bytes, from.map(WriteSeq::from_raw)));
    }
}

/// A manifest is foreign bytes.
#[test]
fn a_piece_of_no_cut_at_all_is_none() {
    let log = r#"{"segments":[],"runs":[],"next_segment":1,"next_page":0}"#;
    let piece_of =
        |from: u64, until: u64| format!(r#"{{"disk":0,"start":0,"len":512,"from":{from},"until":{until}}}"#);
    let text = format!(
        r#"{{"vm":"","vm_name":"","disks":[{{"name":"vda","size_bytes":4096}}],"epoch":1,"applied":0,"retired_below":0,
        "gaps":[],"lost":[{},{},{}],"base":{{"last_seq":0,"watermark":0,"incarnation":null}},"redo":{log},"undo":{log},
        "checkpoints":[],"next_file":0,"tags":[],"pins":[],"next_pin":0,"damage":[]}}"#,
        piece_of(9, 5),
        piece_of(7, 7),
        piece_of(2, 4)
    );
    let lost = Lost::of_manifest(&serde_json::from_str(&text).unwrap());
    assert_eq!(lost.by_cut().bytes_at(WriteSeq::from_raw(3)), 512);
    assert_eq!(lost.pieces(), [piece(0, 512, 2, Some(4))]);
}
