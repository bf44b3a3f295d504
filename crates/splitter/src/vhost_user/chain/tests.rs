//! Chains as drivers make them, and as none does.

use super::*;
use vm_memory::GuestMemoryMmap;

const TABLE: GuestAddress = GuestAddress(0x1000);
const DISK_BYTES: u64 = 1 << 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn descriptor(
    memory: &GuestMemoryMmap<()>,
    table: u64,
    index: u64,
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
) {
    let bytes =
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    memory.write_slice(&bytes, GuestAddress(table + 16 * index)).unwrap();
}

fn header(memory: &GuestMemoryMmap<()>, at: u64, kind: u32, sector: u64) {
    let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

fn parse(memory: &GuestMemoryMmap<()>, head: u16) -> Result<Request, BrokenChain> {
    parse_request(memory, TABLE, 8, head, DISK_BYTES)
}

/// Header at 0x2000, data at 0x3000, status at 0x5000.
fn chain_of_three(memory: &GuestMemoryMmap<()>, kind: u32, sector: u64, len: u32, data_flags: u16) {
    header(memory, 0x2000, kind, sector);
    descriptor(memory, TABLE.0, 0, 0x2000, 16, NEXT, 1);
    descriptor(memory, TABLE.0, 1, 0x3000, len, data_flags | NEXT, 2);
    descriptor(memory, TABLE.0, 2, 0x5000, 1, WRITE, 0);
}

#[test]
fn a_write_and_a_read_are_what_a_driver_makes_of_them() {
    let memory = memory();
    chain_of_three(&memory, VIRTIO_BLK_T_OUT, 8, 4096, 0);
    let request = parse(&memory, 0).unwrap();
    assert_eq!(request.wanted, Wanted::Write { at: 4096, len: 4096 });
    assert_eq!(request.from_guest, vec![Piece { address: GuestAddress(0x3000), len: 4096 }]);
    assert_eq!(request.status, GuestAddress(0x5000));
    chain_of_three(&memory, VIRTIO_BLK_T_IN, 8, 512, WRITE);
    assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Read { at: 4096, len: 512 });
}

#[test]
fn header_and_status_may_lie_anywhere_in_the_chain() {
    let memory = memory();
    // The header in two parts, the second with data behind it; the status behind the data it goes with.
    header(&memory, 0x2000, VIRTIO_BLK_T_OUT, 0);
    descriptor(&memory, TABLE.0, 5, 0x2000, 10, NEXT, 6);
    descriptor(&memory, TABLE.0, 6, 0x200a, 6 + 512, NEXT, 7);
    descriptor(&memory, TABLE.0, 7, 0x4000, 3, WRITE, 0);
    let request = parse(&memory, 5).unwrap();
    assert_eq!(request.wanted, Wanted::Write { at: 0, len: 512 });
    assert_eq!(request.from_guest, vec![Piece { address: GuestAddress(0x2010), len: 512 }]);
    assert_eq!(request.status, GuestAddress(0x4002));
    // All of it in a table of its own.
    let table = 0x8000;
    descriptor(&memory, TABLE.0, 3, table, 3 * 16, INDIRECT, 0);
    descriptor(&memory, table, 0, 0x2000, 16, NEXT, 2);
    descriptor(&memory, table, 2, 0x3000, 1024, NEXT, 1);
    descriptor(&memory, table, 1, 0x5000, 1, WRITE, 0);
    assert_eq!(parse(&memory, 3).unwrap().wanted, Wanted::Write { at: 0, len: 1024 });
}

#[test]
fn what_the_device_does_not_have_is_refused_with_a_status() {
    let memory = memory();
    for (kind, sector, len, status) in [
        (VIRTIO_BLK_T_OUT, DISK_BYTES / 512, 512, Status::IoError),
        (VIRTIO_BLK_T_OUT, u64::MAX, 512, Status::IoError),
        (VIRTIO_BLK_T_OUT, u64::MAX / 512, 512, Status::IoError),
        (VIRTIO_BLK_T_OUT, 0, 100, Status::IoError),
        (77, 0, 512, Status::Unsupported),
        (VIRTIO_BLK_T_DISCARD, 0, 32, Status::Unsupported),
    ] {
        chain_of_three(&memory, kind, sector, len, 0);
        assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Refused(status), "{kind} {sector} {len}");
    }
    let segment = |sector: u64, sectors: u32, flags: u32| {
        let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        memory.write_slice(&bytes, GuestAddress(0x3000)).unwrap();
    };
    chain_of_three(&memory, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 0);
    segment(16, 8, 1);
    let zero = Wanted::Zero { range: ByteRange::new(8192, 4096), unmap: true };
    assert_eq!(parse(&memory, 0).unwrap().wanted, zero);
    segment(16, 8, 2);
    assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Refused(Status::Unsupported));
    segment(u64::MAX - 3, 8, 0);
    assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Refused(Status::IoError));
    chain_of_three(&memory, VIRTIO_BLK_T_DISCARD, 0, 16, 0);
    segment(0, 2048, 0);
    assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Discard { range: ByteRange::new(0, 1 << 20) });
    segment(0, 2049, 0);
    assert_eq!(parse(&memory, 0).unwrap().wanted, Wanted::Refused(Status::IoError));
}

#[test]
fn a_range_is_no_longer_than_the_driver_was_told() {
    let memory = memory();
    let asked = |kind: u32, sectors: u32| {
        chain_of_three(&memory, kind, 0, 16, 0);
        let bytes = [&8u64.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
        memory.write_slice(&bytes, GuestAddress(0x3000)).unwrap();
        parse_request(&memory, TABLE, 8, 0, 64 << 40).unwrap().wanted
    };
    let range = ByteRange::new(4096, 2 << 30);
    assert_eq!(asked(VIRTIO_BLK_T_DISCARD, DISCARD_SECTORS_MAX), Wanted::Discard { range });
    assert_eq!(asked(VIRTIO_BLK_T_WRITE_ZEROES, DISCARD_SECTORS_MAX), Wanted::Zero { range, unmap: false });
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for sectors in [DISCARD_SECTORS_MAX + 1, u32::MAX] {
            assert_eq!(asked(kind, sectors), Wanted::Refused(Status::IoError), "{sectors} sectors");
        }
    }
}

#[test]
fn chains_that_no_driver_makes_are_broken() {
    let memory = memory();
    header(&memory, 0x2000, VIRTIO_BLK_T_OUT, 0);
    let broken = |head: u16, why: BrokenChain| assert_eq!(parse(&memory, head).unwrap_err(), why);
    // Round in a circle.
    descriptor(&memory, TABLE.0, 0, 0x2000, 16, NEXT, 0);
    broken(0, BrokenChain::TooLong);
    broken(8, BrokenChain::Index);
    descriptor(&memory, TABLE.0, 0, 0x2000, 16, NEXT, 99);
    broken(0, BrokenChain::Index);
    // No status; no header; nothing at all.
    descriptor(&memory, TABLE.0, 0, 0x2000, 16, 0, 0);
    broken(0, BrokenChain::NoStatus);
    descriptor(&memory, TABLE.0, 0, 0x5000, 1, WRITE, 0);
    broken(0, BrokenChain::NoHeader);
    descriptor(&memory, TABLE.0, 0, 0x2000, 0, 0, 0);
    broken(0, BrokenChain::NoHeader);
    // To be read from behind one to be written to.
    descriptor(&memory, TABLE.0, 0, 0x5000, 1, WRITE | NEXT, 1);
    descriptor(&memory, TABLE.0, 1, 0x2000, 16, 0, 0);
    broken(0, BrokenChain::Order);
    // Outside of the memory: the header, the table, an address that overflows.
    descriptor(&memory, TABLE.0, 0, 1 << 40, 16, NEXT, 1);
    descriptor(&memory, TABLE.0, 1, 0x5000, 1, WRITE, 0);
    broken(0, BrokenChain::Unmapped);
    descriptor(&memory, TABLE.0, 0, u64::MAX - 8, 16, INDIRECT, 0);
    broken(0, BrokenChain::Unmapped);
    descriptor(&memory, TABLE.0, 0, 0x2000, 16, NEXT, 1);
    descriptor(&memory, TABLE.0, 1, u64::MAX, 1, WRITE, 0);
    parse(&memory, 0).unwrap();
    descriptor(&memory, TABLE.0, 1, u64::MAX, 2, WRITE, 0);
    broken(0, BrokenChain::Unmapped);
    // Tables within tables, of half an entry, with more behind them.
    descriptor(&memory, TABLE.0, 0, 0x8000, 16, INDIRECT, 0);
    descriptor(&memory, 0x8000, 0, 0x8000, 16, INDIRECT, 0);
    broken(0, BrokenChain::Indirect);
    descriptor(&memory, TABLE.0, 0, 0x8000, 17, INDIRECT, 0);
    broken(0, BrokenChain::Indirect);
    descriptor(&memory, TABLE.0, 0, 0x8000, 16, INDIRECT | NEXT, 0);
    broken(0, BrokenChain::Indirect);
    // More than anybody needs at once.
    chain_of_three(&memory, VIRTIO_BLK_T_OUT, 0, u32::MAX, 0);
    broken(0, BrokenChain::TooLarge);
}
