//! Who was refused last at a port, and why: the same again is not worth a line of the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

/// Addresses whose last refusal is known.
const KNOWN_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<IpAddr, String>>);

impl Refusals {
    pub(crate) fn log(&self, what: &str, from: SocketAddr, why: &str) {
        let mut known = self.0.lock().expect("a panic aborts the process");
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        if known.insert(from.ip(), why.to_owned()).is_none_or(|before| before != why) {
            tracing::warn!(%from, error = why, "{what} refused");
        }
    }

    pub(crate) fn forget(&self, from: IpAddr) {
        self.0.lock().expect("a panic aborts the process").remove(&from);
    }
}
