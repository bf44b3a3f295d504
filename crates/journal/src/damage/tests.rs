#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::lost::during;

const DISK: DiskIndex = DiskIndex(0);

/// One that is in two blocks of three.
fn piece(number: u64) -> LostPiece {
    let range = ByteRange::new((number * 3 * 64 + 60) << 10, 8 << 10);
    LostPiece { disk: DISK, range, from: WriteSeq::from_raw(5), until: None }
}

/// It goes through all that is lost, and whoever is told of it has what others wait for.
#[test]
fn what_is_to_be_compared_is_reckoned_once_however_many_are_told() {
    let lost = 1000;
    for (disk_blocks, is_most) in [(lost * 30, false), (lost * 3, true)] {
        let disks = [DiskEntry { name: "vda".into(), size_bytes: disk_blocks << 16, summed_below: 0 }];
        let mut timeline = Timeline::default();
        timeline.lose((0..lost - 1).map(piece).collect());
        let mut shown = timeline.clone();
        let damage = Damage::of_pieces("rot".into(), vec![piece(lost - 1)]);
        let mut demand = Demand(None);
        let reckoned = during(|| demand = damage.demand(&mut timeline, &disks));
        assert!(reckoned >= lost as usize, "it goes through all that is lost");
        assert_eq!(demand.0.is_some(), is_most);
        let told = during(|| damage.tell(demand, &mut shown));
        assert!(told < 20 && timeline == shown, "{told} pieces are looked at again");
    }
}
