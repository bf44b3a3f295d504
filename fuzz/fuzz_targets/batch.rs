//! Batches: header, tables, frames. The checksum of header and tables is put right first, so that what is
//! behind it is reached.
#![no_main]

use batch::{Batch, Form};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// Where the header's checksum stands.
const CRC_AT: usize = 72;

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    if let Ok(header) = Batch::parse_header(&bytes, bytes.len())
        && let Some(tables) = bytes.get(..Batch::tables_bytes(&header)).map(<[u8]>::to_vec)
    {
        let mut head = tables[..batch::HEADER_BYTES].to_vec();
        head[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &tables[batch::HEADER_BYTES..]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let bytes = Bytes::from(bytes);
    for form in [Form::Stream, Form::Undo] {
        if let Ok(batch) = Batch::parse_as(form, bytes.clone()) {
            let _ = (batch.verify(), batch.verify_stored());
            for at in 0..batch.entries().len() {
                if let Ok(payload) = batch.payload(at) {
                    let _ = batch::decode_mark(&payload);
                }
            }
        }
    }
});
