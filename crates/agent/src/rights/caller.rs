//! Who asks for something at the API.

use super::named::Rights;
use super::role::Role;
use crate::fingerprint::fingerprint;
use anyhow::Result;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// Whoever is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Over TCP, by a certificate: the name in it, and its fingerprint.
    Certificate { name: String, fingerprint: String, role: Option<Role>, from: SocketAddr },
    /// On the socket, by the user that the system says it is.
    User { uid: u32, pid: Option<i32>, role: Option<Role> },
}

impl Caller {
    /// Whoever has shown this certificate, which the site has issued.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn of_certificate(name: &str, shown: &CertificateDer<'_>, from: SocketAddr) -> Result<Self> {
        let (name, fingerprint) = (name.to_owned(), fingerprint(shown));
        Ok(Self::Certificate { name, fingerprint, role: Rights::of(shown)?.role, from })
    }

    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::Certificate { role, .. } | Self::User { role, .. } => *role,
        }
    }

    /// Who that is, as far as one is told from another.
    pub(crate) fn person(&self) -> Person {
        match self {
            Self::Certificate { name, fingerprint, .. } => {
                Person { who: name.clone(), fingerprint: Some(fingerprint.clone()), is_own: false }
            }
            Self::User { uid, .. } => {
                Person { who: format!("uid {uid}"), fingerprint: None, is_own: self.is_own() }
            }
        }
    }

    /// Whether it is the agent's own user of this host, or root.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::User { uid, .. } if is_own_user(*uid))
    }

    /// What would give it a role.
    pub(crate) fn cure(&self) -> &'static str {
        match self {
            Self::Certificate { .. } => {
                "a role stands in a certificate, `holdfast pki issue --operator NAME --role ROLE`"
            }
            Self::User { .. } => "[rights] in agent.toml names the group of a role, root has all",
        }
    }
}

/// One person, as far as one is told from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Person {
    /// The name in a certificate, or the number of a user.
    pub(crate) who: String,
    fingerprint: Option<String>,
    /// The agent's own user of its host, or root, who can be that one.
    is_own: bool,
}

impl Person {
    /// Whether the two may be one: somebody has the certificate of the other, one of the same name, or his user. Whose
    /// certificate a user of the host has nobody can tell.
    pub(crate) fn may_be(&self, other: &Self) -> bool {
        let has_one_certificate = self.fingerprint.is_some() && self.fingerprint == other.fingerprint;
        let are_of_two_kinds = self.fingerprint.is_some() != other.fingerprint.is_some();
        self.who == other.who || has_one_certificate || are_of_two_kinds || (self.is_own && other.is_own)
    }
}

/// The agent's own user, or root.
pub(super) fn is_own_user(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { name, .. } => write!(f, "the holder of {name}'s certificate"),
            Self::User { uid, .. } => write!(f, "user {uid} of this host"),
        }
    }
}
