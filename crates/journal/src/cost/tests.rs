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
    let writes = [extent(0, 100, 4), extent(10, 20, 7), extent(15, 30, 9), extent(0, 100, 5)];
    assert_eq!(
        told(of_write(unread(10, 40, 5), &writes)),
        [(10, 20, 5, Some(7)), (20, 30, 5, Some(9)), (30, 40, 5, None)]
    );
    assert_eq!(told(of_write(unread(10, 40, 5), &[])), [(10, 40, 5, None)]);
}

#[test]
fn a_before_image_is_lost_below_its_write_down_to_the_one_before() {
    let images = [extent(0, 12, 3), extent(10, 20, 4), extent(10, 40, 9), extent(0, 50, 11)];
    assert_eq!(
        told(of_before_image(unread(10, 40, 9), &images)),
        [(10, 20, 4, Some(9)), (20, 40, 0, Some(9))]
    );
}

#[test]
fn a_block_of_the_replica_is_lost_from_the_last_write_with_a_before_image_until_something_lies_over_it() {
    let (images, writes) = ([extent(0, 20, 3), extent(10, 20, 6)], [extent(15, 40, 9)]);
    assert_eq!(
        told(of_replica(DISK, ByteRange::new(5, 25), &images, &writes)),
        [(5, 10, 3, None), (10, 15, 6, None), (15, 20, 6, Some(9)), (20, 30, 0, Some(9))]
    );
}
