use super::*;

const DISK: DiskIndex = DiskIndex(1);

fn seq(raw: u64) -> WriteSeq {
    WriteSeq::from_raw(raw)
}

fn extent(start: u64, end: u64, at: u64) -> Extent {
    Extent { disk: DISK, range: ByteRange::new(start, end - start), seq: seq(at), payload: None }
}

fn unread(start: u64, end: u64, at: u64) -> Unread {
    Unread { disk: DISK, range: ByteRange::new(start, end - start), seq: seq(at) }
}

/// First byte, the one behind the last, and the cuts; by place.
fn told(mut pieces: Vec<LostPiece>) -> Vec<(u64, u64, u64, Option<u64>)> {
    pieces.sort_by_key(|piece| piece.range.start);
    let told = pieces.iter().map(|piece| {
        (piece.range.start, piece.range.end(), piece.from.raw(), piece.until.map(WriteSeq::raw))
    });
    told.collect()
}

#[test]
fn a_write_is_lost_until_something_lies_over_it() {
    let writes = [extent(0, 100, 4), extent(0, 100, 5), extent(10, 20, 7), extent(15, 30, 9)];
    assert_eq!(
        told(of_writes(&[unread(10, 40, 5)], &writes)),
        [(10, 20, 5, Some(7)), (20, 30, 5, Some(9)), (30, 40, 5, None)]
    );
    assert_eq!(told(of_writes(&[unread(10, 40, 5)], &[])), [(10, 40, 5, None)]);
}

#[test]
fn a_before_image_is_lost_below_its_write_down_to_the_one_before() {
    let images = [extent(0, 12, 3), extent(10, 20, 4), extent(10, 40, 9), extent(0, 50, 11)];
    assert_eq!(
        told(of_before_images(&[unread(10, 40, 9)], &images)),
        [(10, 12, 4, Some(9)), (12, 20, 4, Some(9)), (20, 40, 0, Some(9))]
    );
}

#[test]
fn a_block_of_the_replica_is_lost_from_the_last_write_with_a_before_image_until_something_lies_over_it() {
    let (images, writes) = ([extent(0, 20, 3), extent(10, 20, 6)], [extent(15, 40, 9)]);
    assert_eq!(
        told(of_replica(DISK, &[ByteRange::new(5, 25)], &images, &writes)),
        [(5, 10, 3, None), (10, 15, 6, None), (15, 20, 6, Some(9)), (20, 30, 0, Some(9))]
    );
}

/// A small number below `most`, made up.
fn any(seed: &mut u64, most: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % most
}

/// Extents that ascend, and those of them that cannot be read.
fn made_up(mut seed: u64, first: u64) -> (Vec<Extent>, Vec<Unread>) {
    let (mut extents, mut spoilt) = (Vec::new(), Vec::new());
    for at in first..first + 3 + any(&mut seed, 12) {
        let start = any(&mut seed, 30);
        let end = start + 1 + any(&mut seed, 10);
        extents.push(extent(start, end, at));
        if any(&mut seed, 2) == 0 {
            spoilt.push(unread(start, end, at));
        }
    }
    (extents, spoilt)
}

/// Whether a byte is lost as of a cut, by `pieces`.
fn is_lost(pieces: &[LostPiece], byte: u64, cut: u64) -> bool {
    pieces.iter().any(|piece| piece.range.overlaps(ByteRange::new(byte, 1)) && piece.is_at(seq(cut)))
}

/// Byte by byte, as of every cut.
#[test]
fn what_is_lost_is_what_the_rules_say_of_every_byte() {
    for seed in 0..300 {
        let (extents, spoilt) = made_up(seed, 3);
        let over =
            |byte: u64| extents.iter().filter(move |extent| extent.range.overlaps(ByteRange::new(byte, 1)));
        let is_spoilt = |extent: &Extent| spoilt.iter().any(|unread| unread.seq == extent.seq);
        let (writes, images) = (of_writes(&spoilt, &extents), of_before_images(&spoilt, &extents));
        for (byte, cut) in (0..40).flat_map(|byte| (0..30).map(move |cut| (byte, cut))) {
            let newest = over(byte).rfind(|write| write.seq <= seq(cut));
            assert_eq!(
                is_lost(&writes, byte, cut),
                newest.is_some_and(is_spoilt),
                "{seed}: {byte} as of {cut}"
            );
            let next = over(byte).find(|image| image.seq > seq(cut));
            assert_eq!(
                is_lost(&images, byte, cut),
                next.is_some_and(is_spoilt),
                "{seed}: {byte} as of {cut}"
            );
        }
        let (later, _) = made_up(seed + 1000, 20);
        let replica = of_replica(DISK, &[ByteRange::new(5, 25)], &extents, &later);
        for (byte, cut) in (0..40).flat_map(|byte| (0..40).map(move |cut| (byte, cut))) {
            let has_image = over(byte).any(|image| image.seq > seq(cut));
            let is_over =
                |write: &Extent| write.range.overlaps(ByteRange::new(byte, 1)) && write.seq <= seq(cut);
            let is_expected = (5..30).contains(&byte) && !has_image && !later.iter().any(is_over);
            assert_eq!(is_lost(&replica, byte, cut), is_expected, "{seed}: {byte} as of {cut}");
        }
    }
}

/// Each record costs what was open below it, and not what was ever written there.
#[test]
fn many_records_under_many_writes_to_one_place_cost_their_sum() {
    let place = |number: u64| number % 250 * 4;
    let extents = (1..20_001).map(|number| extent(place(number), place(number) + 4, number));
    let extents: Vec<Extent> = extents.collect();
    let spoilt: Vec<Unread> =
        extents[..1000].iter().map(|one| Unread { disk: DISK, range: one.range, seq: one.seq }).collect();
    let at_most = 8 * (extents.len() + spoilt.len());
    for (what, cost) in [
        ("writes", &(|| of_writes(&spoilt, &extents)) as &dyn Fn() -> Vec<LostPiece>),
        ("before-images", &|| of_before_images(&spoilt, &extents)),
        ("the replica", &|| {
            of_replica(DISK, &[ByteRange::new(0, 1000)], &extents[..10_000], &extents[10_000..])
        }),
    ] {
        let looked_at = crate::lost::during(|| assert!(!cost().is_empty()));
        assert!(looked_at <= at_most, "{what}: {looked_at} steps");
    }
}
