//! TLS made of a site's folder. The files are read once, and again when one of them has changed: a connection costs no
//! reading, whoever makes it, and renewed certificates and trust are used at once.
//!
//! No session is resumed: whoever comes back shows its certificate again.

use crate::claimed::{Claimed, NotesName, Withdrawn};
use crate::pki::{Pki, read_certificates, read_pair};
use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Between agents and from our own commands.
const NEW_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// For clients of others: NBD's document demands TLS 1.2, and some speak nothing newer.
const NEW_AND_OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// What is made of a folder's files, as long as these do not change.
#[derive(Debug, Default)]
pub(crate) struct TlsCache {
    client: Cached<Client>,
    streams: Cached<Door>,
    site: Cached<Door>,
}

/// How a file looked, so that a change is seen: its time, its number and its length.
type Look = (PathBuf, Option<(i64, i64, u64, u64)>);

#[derive(Debug)]
struct Cached<T>(Mutex<Option<(Vec<Look>, Arc<T>)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Cached<T> {
    /// What was made of files that look so, or else is made now. It is kept where `is_whole`.
    fn get(
        &self,
        looks: Vec<Look>,
        make: impl FnOnce() -> Result<T>,
        is_whole: impl FnOnce(&T) -> bool,
    ) -> Result<Arc<T>> {
        let mut kept = self.0.lock().expect("a panic aborts the process");
        if let Some((before, made)) = &*kept
            && *before == looks
        {
            return Ok(made.clone());
        }
        let made = Arc::new(make()?);
        *kept = is_whole(&made).then(|| (looks, made.clone()));
        Ok(made)
    }
}

#[derive(Debug)]
struct Client {
    config: Arc<ClientConfig>,
    trust: Trust,
}

/// Who is let in, and what is shown to them.
#[derive(Debug)]
struct Door {
    verifier: Arc<dyn ClientCertVerifier>,
    shown: Arc<dyn ResolvesServerCert>,
    trust: Trust,
}

/// The authorities in a folder, and those that could not be read.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    left_out: Vec<String>,
}

impl Pki {
    /// TLS for connecting to peers: they must be of a trusted site, and we show our certificate.
    ///
    /// # Errors
    /// Where keys or certificates are missing or damaged.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let make = || {
            let mut trust = self.trusted()?;
            self.add_own(&mut trust)?;
            let (certificates, key) = self.own_pair()?;
            let mut config = ClientConfig::builder_with_protocol_versions(NEW_ONLY)
                .with_root_certificates(trust.roots.clone())
                .with_client_auth_cert(certificates, key)
                .context("use the agent's certificate")?;
            config.resumption = Resumption::disabled();
            Ok(Client { config: Arc::new(config), trust })
        };
        let made = self.tls.client.get(self.looks(), make, |made| made.trust.left_out.is_empty())?;
        Ok(made.config.clone())
    }

    /// TLS for a peer that connects: of a trusted site, with a certificate. Who it says it is goes into `claimed`.
    ///
    /// # Errors
    /// Where keys or certificates are missing or damaged, or nobody is trusted yet.
    pub fn stream_server(&self, claimed: &Claimed) -> Result<Arc<ServerConfig>> {
        Ok(self.server(&*self.streams()?, NEW_ONLY, claimed))
    }

    /// TLS for operators that connect: certified by the site itself.
    ///
    /// # Errors
    /// Where keys or certificates are missing or damaged.
    pub fn api_server(&self) -> Result<Arc<ServerConfig>> {
        Ok(self.server(&*self.site_only()?, NEW_ONLY, &Claimed::default()))
    }

    /// TLS for clients of disks: certified by the site itself, and of the old version too.
    ///
    /// # Errors
    /// Where keys or certificates are missing or damaged.
    pub(crate) fn nbd_server(&self) -> Result<Arc<ServerConfig>> {
        Ok(self.server(&*self.site_only()?, NEW_AND_OLD, &Claimed::default()))
    }

    /// What of the trusted sites cannot be used; their peers are refused, the others are not.
    pub(crate) fn unreadable_trust(&self) -> Option<String> {
        let streams = self.streams().ok()?;
        (!streams.trust.left_out.is_empty()).then(|| streams.trust.left_out.join("; "))
    }

    fn streams(&self) -> Result<Arc<Door>> {
        let make = || {
            let mut trust = self.trusted()?;
            if trust.roots.is_empty() && trust.left_out.is_empty() {
                bail!(
                    "no site is trusted: run `holdfast pki trust` with the CA certificate of the other site"
                );
            }
            self.add_own(&mut trust)?;
            self.door(trust)
        };
        self.tls.streams.get(self.looks(), make, |door| door.trust.left_out.is_empty())
    }

    fn site_only(&self) -> Result<Arc<Door>> {
        let make = || {
            let mut trust = Trust { roots: RootCertStore::empty(), left_out: Vec::new() };
            for certificate in self.certificates("ca.pem")? {
                trust.roots.add(certificate).context("use the CA certificate")?;
            }
            self.door(trust)
        };
        self.tls.site.get(self.looks(), make, |_| true)
    }

    /// A group may have VMs on several hosts of this site, whose agents talk to each other.
    fn add_own(&self, trust: &mut Trust) -> Result<()> {
        for certificate in self.certificates("ca.pem").unwrap_or_default() {
            trust.roots.add(certificate).context("use the site's own CA")?;
        }
        Ok(())
    }

    fn door(&self, trust: Trust) -> Result<Door> {
        let provider = provider();
        let roots = Arc::new(trust.roots.clone());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .context("use the trusted CAs")?;
        let (certificates, key) = self.own_pair()?;
        let shown =
            CertifiedKey::from_der(certificates, key, &provider).context("use the agent's certificate")?;
        Ok(Door { verifier, shown: Arc::new(SingleCertAndKey::from(shown)), trust })
    }

    /// Those that can be read: one broken file does not cut off the sites of the others.
    fn trusted(&self) -> Result<Trust> {
        let mut trust = Trust { roots: RootCertStore::empty(), left_out: Vec::new() };
        for path in self.trust_files()? {
            let added = read_certificates(&path).and_then(|certificates| {
                certificates.into_iter().try_for_each(|certificate| {
                    trust.roots.add(certificate).with_context(|| format!("use {}", path.display()))
                })
            });
            if let Err(error) = added {
                trust.left_out.push(format!("{error:#}"));
            }
        }
        Ok(trust)
    }

    /// The files in `trust`, in order.
    fn trust_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.file("trust");
        let rows = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("list {}", folder.display()))?,
        };
        let mut found = Vec::new();
        for row in rows {
            let path = row.context("list trusted sites")?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// How everything that TLS is made of looks now. It is taken before the files are read: a change in between makes
    /// them be read once more.
    fn looks(&self) -> Vec<Look> {
        let own = ["ca.pem", "agent.pem", "agent.key"].map(|name| self.file(name));
        own.into_iter().chain(self.trust_files().unwrap_or_default()).map(look_at).collect()
    }

    /// A server for one connection.
    fn server(
        &self,
        door: &Door,
        versions: &[&'static SupportedProtocolVersion],
        claimed: &Claimed,
    ) -> Arc<ServerConfig> {
        let (pki, verifier) = (self.clone(), door.verifier.clone());
        let is_withdrawn = Withdrawn(Box::new(move |certificate| pki.is_withdrawn(certificate)));
        let verifier = NotesName { verifier, claimed: claimed.clone(), is_withdrawn };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions that are built in")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(door.shown.clone());
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// The agent's own certificate and its key.
    fn own_pair(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        read_pair(&self.file("agent.pem"), &self.file("agent.key"))
    }
}

fn look_at(path: PathBuf) -> Look {
    let facts = std::fs::metadata(&path).ok();
    let look = facts.map(|facts| (facts.mtime(), facts.mtime_nsec(), facts.ino(), facts.len()));
    (path, look)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// TLS for the operator's commands: our own site's agents, shown an operator's certificate.
///
/// # Errors
/// Where a file is missing or damaged.
pub fn operator_client(ca: &Path, certificate: &Path, key: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for root in read_certificates(ca)? {
        roots.add(root).context("use the CA certificate")?;
    }
    let (certificates, key) = read_pair(certificate, key)?;
    let config = ClientConfig::builder_with_protocol_versions(NEW_ONLY)
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .context("use the operator's certificate")?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_when_they_change_and_a_broken_one_cuts_off_its_own_site_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, theirs] = ["ours", "theirs"].map(|site| {
            let pki = Pki::new(folder.path().join(site));
            pki.init(site).expect("an authority");
            pki.issue("a", "agent", &[], 30).expect("a certificate");
            pki
        });
        assert!(ours.stream_server(&Claimed::default()).is_err(), "nobody is trusted");
        ours.trust("theirs", &theirs.file("ca.pem")).expect("a CA");
        let first = ours.streams().expect("somebody is trusted");
        assert!(Arc::ptr_eq(&first, &ours.streams().expect("as before")));
        ours.issue("a", "agent", &[], 60).expect("a renewed one");
        let renewed = ours.streams().expect("as before");
        assert!(!Arc::ptr_eq(&first, &renewed));
        std::fs::write(ours.file("trust/broken.pem"), "nothing").expect("a file");
        assert_eq!(ours.streams().expect("the others").trust.roots.len(), 2);
        assert!(ours.unreadable_trust().expect("one is left out").contains("broken.pem"));
        std::fs::remove_file(ours.file("trust/broken.pem")).expect("a file");
        assert_eq!(ours.unreadable_trust(), None);
        std::fs::remove_file(ours.file("trust/theirs.pem")).expect("a file");
        assert!(ours.stream_server(&Claimed::default()).is_err(), "trust is withdrawn");
    }
}
