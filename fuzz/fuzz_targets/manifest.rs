//! The manifest: its body, with length and checksum put right, as each version had it.
#![no_main]

use journal::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for version in [2u32, 4] {
        let mut bytes = b"HFJM".to_vec();
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let head = if version < 4 { 0 } else { crc32c::crc32c(&bytes) };
        bytes.extend_from_slice(&crc32c::crc32c_append(head, body).to_le_bytes());
        bytes.extend_from_slice(body);
        let _ = Manifest::decode(&bytes);
    }
    let _ = Manifest::decode(body);
});
