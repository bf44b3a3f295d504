//! A run of many pages against the same extents in memory.

use super::*;
use crate::fs_store::FsStore;
use crate::run_writer::RunWriter;
use crate::table::Table;
use proptest::prelude::*;

/// Extents in bursts: a place is written so often with one length that its versions fill pages, and then
/// with another.
fn extents() -> impl Strategy<Value = Vec<(u16, u64, u64, bool)>> {
    let burst = prop_oneof![
        6 => (Just(0u16), Just(8192u64), prop_oneof![Just(4096u64), Just(8192), Just(512)], 100usize..600),
        2 => (0u16..2, (0u64..8).prop_map(|block| block * 4096), Just(4096u64), 1usize..300),
        2 => (0u16..2, 0u64..(3 << 20), 1u64..100_000, 1usize..5),
    ];
    let burst = (burst, any::<bool>())
        .prop_map(|((disk, start, len, count), zero)| vec![(disk, start, len, zero); count]);
    // Zeroes over whole pieces, now and then so often that they fill pages too.
    let wide = (0u16..2, (0u64..4).prop_map(|at| at << 22), (1u64..40).prop_map(|len| len << 21), 1usize..4);
    let often = (0u16..2, Just(8u64 << 20), Just(8u64 << 20), 100usize..400);
    let wide = prop_oneof![4 => wide, 1 => often]
        .prop_map(|(disk, start, len, count)| vec![(disk, start, len, true); count]);
    let burst = prop_oneof![3 => burst, 1 => wide];
    proptest::collection::vec(burst, 1..12).prop_map(|bursts| bursts.concat())
}

/// Places asked for, most of them where the bursts are.
fn places() -> impl Strategy<Value = Vec<(u16, u64, u64, f64, f64)>> {
    let start = prop_oneof![3 => 0u64..20_000, 1 => 0u64..(3 << 20), 2 => 0u64..(80 << 20)];
    proptest::collection::vec((0u16..2, start, 1u64..70_000, 0.0f64..1.0, 0.0f64..1.0), 40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_run_fills_as_the_table_it_was_made_of(
        writes in extents(),
        asked in places(),
    ) {
        for kind in [LogKind::Redo, LogKind::Undo] {
            let mut table = Table::new(kind, 1, 0);
            for (seq, &(disk, start, len, zero)) in (1u64..).zip(&writes) {
                for range in crate::extent::pieces_of(ByteRange::new(start, len), zero) {
                    let payload = (!zero).then(|| crate::extent::PayloadPlace {
                        page: seq,
                        at: (range.start - start) as u32,
                    });
                    table.insert(Extent { disk: DiskIndex(disk), range, seq: WriteSeq::from_raw(seq), payload });
                }
            }
            let folder = tempfile::tempdir().expect("a folder");
            let store = FsStore::open(folder.path()).expect("a store");
            let file = store.open("run-00000001", true).expect("a file");
            let mut writer = RunWriter::begin(&*file, 0, kind, 7, 0);
            table.sorted().try_for_each(|extent| writer.push(&extent)).expect("written");
            let written = writer.finish().expect("written");
            let run = Run::new(kind, RunInfo {
                level: 1, file: Some(1), first_segment: 1, last_segment: 1, at: 0,
                bytes: written.bytes, entries: written.entries,
                first_seq: written.first_seq, last_seq: written.last_seq,
            });
            for &(disk, start, len, above, upto) in &asked {
                let cut = |share: f64| WriteSeq::from_raw((writes.len() as f64 * share) as u64);
                let (above, upto) = (cut(above.min(upto)), cut(above.max(upto)));
                for range in ByteRange::new(start, len).split_at_multiples(REGION_BYTES) {
                    let (mut ours, mut theirs) = (Cover::of(range), Cover::of(range));
                    run.fill(&store, &mut ours, DiskIndex(disk), above, upto).expect("a run that can be read");
                    table.fill(&mut theirs, DiskIndex(disk), range, above, upto);
                    prop_assert_eq!(ours.finish(), theirs.finish());
                }
            }
        }
    }
}
