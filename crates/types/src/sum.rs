//! Comparing checksums, in one place.

/// Whether bytes are what their checksum says. Under a fuzzer (`--cfg fuzzing`) always: what parsers do with
/// fields that no disk spoils, but somebody could forge, would never be reached otherwise.
pub const fn sum_matches(found: u32, expected: u32) -> bool {
    found == expected || cfg!(fuzzing)
}
