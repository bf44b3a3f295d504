//! Overlays as they were before their maps had checksums: read once, and kept on in files of the newer form.
//!
//! ```text
//! map, live:   0  [4] magic "HFOV"   4  u32 1   8  u64 blocks   16  [16] boot id   32  bits, LSB first
//! ```
//! `live` of nothing but zeroes for blocks and boot id: a flush had failed, and which writes it was about is not known.

use super::map_file::MAGIC;
use crate::store::{Store, StoreFile};
use std::io;

const HEADER_BYTES: usize = 32;
const NAMES: [&str; 2] = ["map", "live"];

/// What an overlay of version 1 has.
#[derive(Debug)]
pub(super) struct Version1 {
    /// Blocks as of the last flush, and as they are now.
    pub(super) flushed: Vec<u8>,
    pub(super) own: Vec<u8>,
    pub(super) has_failed: bool,
}

impl Version1 {
    /// The overlay whose files are named `PREFIX.map` and `PREFIX.live`, if it is of this version.
    pub(super) fn load(
        store: &dyn Store,
        prefix: &str,
        blocks: u64,
        boot_id: [u8; 16],
    ) -> io::Result<Result<Option<Self>, &'static str>> {
        let [map, live] = NAMES.map(|name| format!("{prefix}.{name}"));
        if !store.exists(&map)? {
            return Ok(Ok(None));
        }
        let (map, live) = (store.open(&map, false)?, store.open(&live, true)?);
        let flushed = match bits_of(&*map, blocks, None)? {
            Ok(Some(flushed)) => flushed,
            Ok(None) => return Ok(Ok(None)),
            Err(what) => return Ok(Err(what)),
        };
        let now = match bits_of(&*live, blocks, Some(header_of(blocks, boot_id)))? {
            Ok(now) => now,
            Err(what) => return Ok(Err(what)),
        };
        let mut header = [0; HEADER_BYTES];
        let has_failed = live.read_at(0, &mut header).is_ok() && header == header_of(0, [0; 16]);
        Ok(Ok(Some(Self { own: now.unwrap_or_else(|| flushed.clone()), flushed, has_failed })))
    }

    /// Removes its files for good, once others have what they had.
    pub(super) fn remove(store: &dyn Store, prefix: &str) -> io::Result<()> {
        // The one that tells whether there is one goes first.
        NAMES.iter().try_for_each(|name| store.remove(&format!("{prefix}.{name}")))?;
        // 1. An agent takes the overlay up and removes these. 2. The guest writes and flushes. 3. The power goes, and
        // with it that the names are gone. 4. What is found here would go over what was flushed.
        store.sync_folder()
    }
}

fn header_of(blocks: u64, boot_id: [u8; 16]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&1_u32.to_le_bytes());
    header[8..16].copy_from_slice(&blocks.to_le_bytes());
    header[16..].copy_from_slice(&boot_id);
    header
}

/// The bits of a file; none where it is empty, or does not begin as it has to.
fn bits_of(
    file: &dyn StoreFile,
    blocks: u64,
    wanted: Option<[u8; HEADER_BYTES]>,
) -> io::Result<Result<Option<Vec<u8>>, &'static str>> {
    let len = file.len()?;
    if len < HEADER_BYTES as u64 {
        return Ok(Ok(None));
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header)?;
    if wanted.is_some_and(|wanted| header != wanted) {
        return Ok(Ok(None));
    }
    let bytes = blocks.div_ceil(8);
    if len != HEADER_BYTES as u64 + bytes || header[..16] != header_of(blocks, [0; 16])[..16] {
        return Ok(Err("not a map of a disk of this size"));
    }
    let mut bits = vec![0; bytes as usize];
    file.read_at(HEADER_BYTES as u64, &mut bits)?;
    Ok(Ok(Some(bits)))
}
