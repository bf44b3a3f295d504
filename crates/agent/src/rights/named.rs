//! What a certificate is for, as it names it itself: URIs among its alternative names.
//!
//! | URI | What it gives |
//! |---|---|
//! | `holdfast:agent` | streams, to and from agents |
//! | `holdfast:role/ROLE` | the API over TCP |
//! | `holdfast:disk/VM` and `holdfast:disk/VM/DISK` | disks over TCP |
//!
//! One that names nothing of these is from before there were roles: it is taken as an agent's, and opens nothing else.
//! What a later version may name gives nothing here.

use super::role::Role;
use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use types::is_plain_name;

const SCHEME: &str = "holdfast:";
const AGENT: &str = "holdfast:agent";
const ROLE: &str = "holdfast:role/";
const DISK: &str = "holdfast:disk/";

/// Whom a certificate is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Agent,
    Operator(Role),
    /// Whoever opens these disks over TCP, each `VM` or `VM/DISK`.
    Client(Vec<String>),
}

impl Purpose {
    /// What a certificate says of it.
    ///
    /// # Errors
    /// Where a disk's name is none.
    pub(crate) fn uris(&self) -> Result<Vec<String>> {
        match self {
            Self::Agent => Ok(vec![AGENT.to_owned()]),
            Self::Operator(role) => Ok(vec![format!("{ROLE}{role}")]),
            Self::Client(disks) => disks.iter().map(|disk| disk_uri(disk)).collect(),
        }
    }
}

fn disk_uri(disk: &str) -> Result<String> {
    let parts = disk.split('/').collect::<Vec<_>>();
    if parts.len() > 2 || !parts.iter().all(|part| is_plain_name(part)) {
        bail!("{disk:?} is no disk: give VM/DISK, or VM for all disks of one");
    }
    Ok(format!("{DISK}{disk}"))
}

/// What a certificate is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) is_agent: bool,
    pub(crate) role: Option<Role>,
    /// Each `VM` or `VM/DISK`.
    pub(crate) disks: Vec<String>,
}

impl Rights {
    /// # Errors
    /// Where it is no certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let leaf = webpki::EndEntityCert::try_from(certificate).context("read a certificate")?;
        Ok(Self::named(leaf.valid_uri_names()))
    }

    /// What these URIs give together.
    pub(crate) fn named<'a>(uris: impl Iterator<Item = &'a str>) -> Self {
        let ours = uris.filter(|uri| uri.starts_with(SCHEME)).collect::<Vec<_>>();
        let after = |prefix| ours.iter().filter_map(move |uri| uri.strip_prefix(prefix));
        Self {
            is_agent: ours.is_empty() || ours.contains(&AGENT),
            role: after(ROLE).filter_map(|name| name.parse().ok()).max(),
            disks: after(DISK).map(str::to_owned).collect(),
        }
    }

    /// Whether it opens a disk of a VM.
    pub(crate) fn opens(&self, vm: &str, disk: &str) -> bool {
        self.disks.iter().any(|named| match named.split_once('/') {
            Some((of, only)) => of == vm && only == disk,
            None => named == vm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(uris: &[&str]) -> Rights {
        Rights::named(uris.iter().copied())
    }

    #[test]
    fn a_certificate_gives_what_it_names_and_nothing_else() {
        let agent = rights(&["holdfast:agent"]);
        assert_eq!((agent.is_agent, agent.role, agent.disks.len()), (true, None, 0));
        let builder = rights(&["https://example.org", "holdfast:role/builder"]);
        assert_eq!((builder.is_agent, builder.role), (false, Some(Role::Builder)));
        let client = rights(&["holdfast:disk/web", "holdfast:disk/db/vdb"]);
        assert_eq!((client.is_agent, client.role), (false, None));
        assert!(client.opens("web", "vda") && client.opens("web", "vdb") && client.opens("db", "vdb"));
        assert!(!client.opens("db", "vda") && !client.opens("webb", "vda") && !client.opens("vdb", "vdb"));
    }

    #[test]
    fn a_certificate_of_before_roles_is_an_agents_and_one_of_a_later_version_gives_nothing_unknown() {
        let before = rights(&["https://example.org"]);
        assert_eq!((before.is_agent, before.role, before.disks.len()), (true, None, 0));
        let later = rights(&["holdfast:role/auditor", "holdfast:disks"]);
        assert_eq!(later, Rights::default());
    }

    #[test]
    fn only_disks_names_become_part_of_a_certificate() {
        for wrong in ["", "/", "web/", "/vda", "web/vda/x", "web vda", "*"] {
            assert!(Purpose::Client(vec![wrong.into()]).uris().is_err(), "{wrong:?}");
        }
        let right = Purpose::Client(vec!["web".into(), "db.2/vd_a".into()]).uris().unwrap();
        assert_eq!(right, ["holdfast:disk/web", "holdfast:disk/db.2/vd_a"]);
    }
}
