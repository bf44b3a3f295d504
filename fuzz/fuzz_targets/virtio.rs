//! A guest that has put anything into its memory: descriptors, headers, ranges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splitter::vhost_user::parse_request;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY_BYTES: usize = 1 << 16;
const QUEUE_SIZE: u16 = 16;
const DISK_BYTES: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let len = bytes.len().min(MEMORY_BYTES);
    memory.write_slice(&bytes[..len], GuestAddress(0)).unwrap();
    for head in 0..=QUEUE_SIZE {
        if let Ok(request) = parse_request(&memory, GuestAddress(0), QUEUE_SIZE, head, DISK_BYTES) {
            request.assert_within(&memory, DISK_BYTES);
        }
    }
});
