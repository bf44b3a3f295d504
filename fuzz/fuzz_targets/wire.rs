//! Messages of the stream: headers and bodies of every kind. Checksums are put right first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replication::wire::{FrameReader, HEADER_BYTES};

/// Where a message's checksum stands.
const CRC_AT: usize = 24;

fuzz_target!(|input: &[u8]| {
    let mut reader = FrameReader::default();
    let mut rest = input;
    while let Some((head, body)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let mut head = *head;
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let body = &body[..len.min(body.len())];
        head[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), body);
        head[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        let Ok(header) = reader.header(&head) else { return };
        if header.body_len != body.len() {
            return;
        }
        if reader.message(&header, body.to_vec().into()).is_err() {
            return;
        }
        rest = &rest[HEADER_BYTES + body.len()..];
    }
});
