//! Fingerprints by which two people compare over the telephone what lies at both: SHA-256, as `openssl x509 -fingerprint
//! -sha256` shows it.

use aws_lc_rs::digest::{SHA256, digest};

/// Of the bytes of a certificate or a request.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
