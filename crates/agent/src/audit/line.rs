//! The record's lines: JSON, one object each, which is `asked` or `ended`.

use crate::clock;
use crate::rights::{Caller, Role};
use serde::{Deserialize, Serialize};
use types::limits::AUDIT_PATH_BYTES_MAX;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Asked(Asked),
    Ended(Ended),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    /// Given when it is written, from 1.
    pub(super) number: u64,
    pub(super) at: String,
    pub(super) door: Door,
    /// The name in a certificate, or a user's number.
    pub(super) who: String,
    /// Of the certificate.
    pub(super) fingerprint: Option<String>,
    /// An address, or a process.
    pub(super) from: String,
    pub(super) role: Option<Role>,
    pub(super) method: String,
    pub(super) path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Door {
    Socket,
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) number: u64,
    pub(super) at: String,
    /// None where whoever asked has left before the answer.
    pub(super) status: Option<u16>,
    /// As which it goes on.
    pub(super) operation: Option<String>,
}

impl Asked {
    pub(super) fn now(caller: &Caller, method: &str, path: &str) -> Self {
        let (door, who, fingerprint, from) = match caller {
            Caller::Certificate { name, fingerprint, from, .. } => {
                (Door::Tcp, name.clone(), Some(fingerprint.clone()), from.to_string())
            }
            Caller::User { uid, pid, .. } => {
                let from = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
                (Door::Socket, format!("uid {uid}"), None, from)
            }
        };
        let (at, role) = (clock::to_text(clock::wall()), caller.role());
        let (method, path) = (method.to_owned(), short(path));
        Self { number: 0, at, door, who, fingerprint, from, role, method, path }
    }
}

/// A path of which no more is recorded than tells what was asked for: else a few requests would take the place of all others.
fn short(path: &str) -> String {
    if path.len() <= AUDIT_PATH_BYTES_MAX {
        return path.to_owned();
    }
    let kept = (0..=AUDIT_PATH_BYTES_MAX).rev().find_map(|end| path.get(..end)).unwrap_or_default();
    format!("{kept}… ({} bytes)", path.len())
}
