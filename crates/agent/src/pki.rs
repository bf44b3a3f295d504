//! Each site's own certificate authority, the agents' certificates, and whom a site trusts.
//!
//! A folder holds `site` (its name), `ca.pem`, `ca.key`, `agent.pem`, `agent.key` and `trust/SITE.pem`.
//! The stream trusts the CAs in `trust`, the API on TCP trusts the site's own. An agent's name stands in
//! its certificate as `AGENT.SITE.holdfast.internal`, beside the hosts it is reached at.

mod files;
mod pair;
mod request;
mod shown;
mod withdrawn;

use crate::certificate_name::{NAME_SUFFIX, agent_name};
use crate::config::check_label;
use crate::rights::{Purpose, Rights};
use crate::tls::TlsCache;
use anyhow::{Context, Result, bail};
pub(crate) use files::read_certificates;
use files::{lock, replace, write_new};
pub(crate) use pair::read_pair;
use pair::replace_pair;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use shown::is_authority;
pub use shown::{Shown, show};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

const CA_DAYS: i64 = 3650;

/// Files of the folder that no certificate may be written over.
const KEPT_NAMES: [&str; 1] = ["ca"];

/// A site's folder of keys and certificates.
#[derive(Debug, Clone)]
pub struct Pki {
    folder: PathBuf,
    pub(crate) tls: Arc<TlsCache>,
}

/// A certificate that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose: of an agent, an operator or a client.
    pub name: String,
    pub purpose: Purpose,
    /// Names and addresses it is reached at.
    pub hosts: Vec<String>,
    pub days: u32,
}

impl Wanted {
    /// What a certificate of a site says then.
    fn params(&self, site: &str) -> Result<CertificateParams> {
        let name = &self.name;
        check_label(name).map_err(|what| anyhow::anyhow!("name {name:?}: {what}"))?;
        let mut names = vec![format!("{name}.{site}{NAME_SUFFIX}")];
        names.extend(self.hosts.iter().cloned());
        let mut params =
            CertificateParams::new(names).context("a host that is neither a name nor an address")?;
        for uri in self.purpose.uris()? {
            params.subject_alt_names.push(SanType::URI(uri.try_into().context("name what it is for")?));
        }
        params.distinguished_name.push(DnType::CommonName, format!("{name} of {site}"));
        // Clients of the NBD port are not only rustls: GnuTLS under QEMU 10 refuses a certificate without the latter.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match self.purpose {
            Purpose::Agent => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Operator(_) | Purpose::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        // Of its own, also where the key is that of one before: it is withdrawn by this number.
        params.serial_number = Some(crate::state::random().to_vec().into());
        params.not_before = now() - Duration::hours(1);
        params.not_after = now() + Duration::days(i64::from(self.days));
        Ok(params)
    }
}

/// A peer's site may be trusted or not: what says so cannot be read just now.
#[derive(Debug, thiserror::Error)]
#[error("whether site {site} is trusted cannot be told")]
pub(crate) struct CannotTell {
    site: String,
}

impl Pki {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), tls: Arc::default() }
    }

    /// The path of a file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the site's certificate authority; the path of its certificate.
    ///
    /// # Errors
    /// Where there is one already.
    pub fn init(&self, site: &str) -> Result<PathBuf> {
        check_label(site).map_err(|what| anyhow::anyhow!("site {site:?}: {what}"))?;
        let _alone = lock(&self.folder)?;
        let path = self.folder.join("ca.pem");
        if path.exists() {
            bail!(
                "{} exists already; a second authority would cut off every agent of the first",
                path.display()
            );
        }
        std::fs::create_dir_all(self.folder.join("trust")).context("make the folder")?;
        let key = KeyPair::generate().context("generate a key")?;
        let mut params = ca_params(site);
        params.not_before = now() - Duration::hours(1);
        params.not_after = now() + Duration::days(CA_DAYS);
        let certificate = params.self_signed(&key).context("sign the CA certificate")?;
        write_new(&self.folder.join("ca.key"), &key.serialize_pem())?;
        write_new(&self.folder.join("site"), site)?;
        write_new(&path, &certificate.pem())?;
        Ok(path)
    }

    /// Issues a certificate for an agent, under `stem`.pem and `stem`.key.
    ///
    /// # Errors
    /// Where the site has no authority yet.
    pub fn issue(&self, agent: &str, stem: &str, hosts: &[String], days: u32) -> Result<PathBuf> {
        let (name, hosts) = (agent.to_owned(), hosts.to_vec());
        self.issue_for(&Wanted { name, purpose: Purpose::Agent, hosts, days }, stem)
    }

    /// Issues a certificate under `stem`.pem and `stem`.key.
    ///
    /// # Errors
    /// Where the site has no authority yet.
    pub fn issue_for(&self, wanted: &Wanted, stem: &str) -> Result<PathBuf> {
        check_stem(stem)?;
        let _alone = lock(&self.folder)?;
        let params = wanted.params(&self.site()?)?;
        let issuer = self.issuer()?;
        let key = KeyPair::generate().context("generate a key")?;
        let certificate = params.signed_by(&key, &issuer).context("sign the certificate")?;
        replace_pair(&self.folder, stem, &key.serialize_pem(), &certificate.pem())?;
        Ok(self.folder.join(format!("{stem}.pem")))
    }

    /// What signs for the site.
    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let key = self.read("ca.key")?;
        Ok(Issuer::new(ca_params(&self.site()?), KeyPair::from_pem(&key).context("read the CA's key")?))
    }

    /// Trusts another site's authority from now on.
    ///
    /// # Errors
    /// Where the file is not an authority's certificate.
    pub fn trust(&self, site: &str, certificate: &Path) -> Result<PathBuf> {
        check_label(site).map_err(|what| anyhow::anyhow!("site {site:?}: {what}"))?;
        let pem = std::fs::read_to_string(certificate)
            .with_context(|| format!("read {}", certificate.display()))?;
        let found = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
            anyhow::anyhow!("{} is not a PEM certificate: {error}", certificate.display())
        })?;
        if !is_authority(&found)? {
            bail!(
                "{} is no authority's certificate: the other site's ca.pem is wanted",
                certificate.display()
            );
        }
        let path = self.folder.join("trust").join(format!("{site}.pem"));
        let _alone = lock(&self.folder)?;
        std::fs::create_dir_all(self.folder.join("trust")).context("make the folder")?;
        replace(&path, &pem)?;
        Ok(path)
    }

    /// The site's name.
    ///
    /// # Errors
    /// Where the site has no authority yet.
    pub fn site(&self) -> Result<String> {
        Ok(self.read("site")?.trim().to_owned())
    }

    /// The name of a peer whose certificate some trusted site has issued, `AGENT.SITE`: but only where
    /// that is the site it names. Each site vouches for its own agents and for nobody else's.
    ///
    /// # Errors
    /// Where the certificate names no agent, or another site than the one that has issued it, or is not an agent's.
    pub fn peer_name(&self, certificates: Option<&[CertificateDer<'_>]>, role: PeerRole) -> Result<String> {
        let certificate =
            certificates.and_then(|chain| chain.first()).context("the peer shows no certificate")?;
        let name = agent_name(certificate)?;
        let site = site_of(&name)?;
        let ours = self.site().is_ok_and(|ours| ours == site);
        let authority = if ours { "ca.pem".to_owned() } else { format!("trust/{site}.pem") };
        self.check(certificate, &name, &self.folder.join(authority), role)?;
        if !Rights::of(certificate)?.is_agent {
            bail!("the peer calls itself {name}, but its certificate is not an agent's");
        }
        Ok(name)
    }

    /// The name of somebody whose certificate this site has issued, `NAME.SITE`.
    ///
    /// # Errors
    /// Where the certificate names nobody, or is not good here or not any more.
    pub(crate) fn own_name(&self, certificate: &CertificateDer<'_>) -> Result<String> {
        let name = agent_name(certificate)?;
        self.check(certificate, &name, &self.file("ca.pem"), PeerRole::Connects)?;
        Ok(name)
    }

    /// Checks that the authority in a file has issued a certificate that is good now, and was not withdrawn.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        name: &str,
        authority: &Path,
        role: PeerRole,
    ) -> Result<()> {
        let site = site_of(name)?;
        let leaf = webpki::EndEntityCert::try_from(certificate).context("read the peer's certificate")?;
        let trusted =
            read_certificates(authority).map_err(|error| match error.downcast_ref::<io::Error>() {
                Some(io) if io.kind() != io::ErrorKind::NotFound => {
                    error.context(CannotTell { site: site.to_owned() })
                }
                _ => error.context(format!("the peer calls itself {name}, but site {site} is not trusted")),
            })?;
        let anchors = anchors(&trusted).context("use a trusted CA")?;
        verify_at(&leaf, &anchors, now(), role).map_err(|error| {
            let why = match error {
                webpki::Error::CertExpired { .. } => {
                    "its certificate has expired: renew it with `holdfast pki issue`".to_owned()
                }
                webpki::Error::CertNotValidYet { .. } => {
                    "its certificate is not valid yet: compare the clocks of both hosts".to_owned()
                }
                other => format!("site {site} has not issued its certificate: {other}"),
            };
            anyhow::anyhow!("the peer calls itself {name}, but {why}")
        })?;
        let withdrawn = withdrawn::holds(&self.folder, site, certificate);
        if withdrawn.map_err(|error| error.context(CannotTell { site: site.to_owned() }))? {
            bail!("the peer calls itself {name}, but its certificate was withdrawn");
        }
        Ok(())
    }

    /// Whether somebody's certificate is known to be withdrawn, whoever has issued it.
    pub(crate) fn is_withdrawn(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(name) = agent_name(certificate) else { return false };
        site_of(&name).is_ok_and(|site| withdrawn::holds(&self.folder, site, certificate).unwrap_or(false))
    }

    /// Takes a certificate that a site has issued from now on no more, by its serial number; the own site's where none is
    /// named. The path of the list.
    ///
    /// # Errors
    /// Where that is no serial number, or the list cannot be written.
    pub fn withdraw(&self, site: Option<&str>, serial: &str) -> Result<PathBuf> {
        let site = site.map_or_else(|| self.site(), |site| Ok(site.to_owned()))?;
        check_label(&site).map_err(|what| anyhow::anyhow!("site {site:?}: {what}"))?;
        let _alone = lock(&self.folder)?;
        withdrawn::add(&self.folder, &site, serial, "")
    }

    /// The same of the one in a file.
    ///
    /// # Errors
    /// As [`Pki::withdraw`], and where it names nobody.
    pub fn withdraw_file(&self, file: &Path) -> Result<PathBuf> {
        let certificates = read_certificates(file)?;
        let name = agent_name(&certificates[0])?;
        let _alone = lock(&self.folder)?;
        withdrawn::add(&self.folder, site_of(&name)?, &withdrawn::serial(&certificates[0])?, &name)
    }

    /// Whether the agent's own certificate is good now and will be so after `ahead`. One that is missing, or that another
    /// authority has issued, is not looked at.
    ///
    /// # Errors
    /// Where it has expired or will have, with what is to be done.
    pub(crate) fn check_own(&self, ahead: Duration) -> Result<()> {
        let (Ok(shown), Ok(authorities)) = (self.certificates("agent.pem"), self.certificates("ca.pem"))
        else {
            return Ok(());
        };
        let leaf = webpki::EndEntityCert::try_from(&shown[0]).context("read the agent's certificate")?;
        let anchors = anchors(&authorities).context("use the site's own CA")?;
        let has_expired = |at| {
            let verified = verify_at(&leaf, &anchors, at, PeerRole::Connects);
            matches!(verified, Err(webpki::Error::CertExpired { .. }))
        };
        let cure = "renew it with `holdfast pki issue`, nothing has to be restarted";
        if !has_expired(now() + ahead) {
            return Ok(());
        }
        if has_expired(now()) {
            bail!("this agent's certificate has expired, and no other agent talks to it: {cure}");
        }
        bail!("this agent's certificate expires within {} days: {cure}", ahead.whole_days());
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!("read {}: run `holdfast pki init` and `pki issue` first", path.display())
        })
    }

    pub(crate) fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>> {
        read_certificates(&self.folder.join(name))
    }
}

/// Checks what the files of a pair are to be called.
fn check_stem(stem: &str) -> Result<()> {
    check_label(stem).map_err(|what| anyhow::anyhow!("name {stem:?}: {what}"))?;
    if KEPT_NAMES.contains(&stem) {
        bail!("{stem}.pem and {stem}.key are the site's own: take another name");
    }
    Ok(())
}

/// The site of whoever is called `NAME.SITE`.
fn site_of(name: &str) -> Result<&str> {
    let (_, site) = name.split_once('.').context("the peer's certificate has no agent's name")?;
    check_label(site).map_err(|what| anyhow::anyhow!("the peer's site {site:?}: {what}"))?;
    Ok(site)
}

fn anchors<'a>(authorities: &'a [CertificateDer<'_>]) -> Result<Vec<TrustAnchor<'a>>, webpki::Error> {
    authorities.iter().map(webpki::anchor_from_trusted_cert).collect()
}

fn verify_at(
    leaf: &webpki::EndEntityCert<'_>,
    anchors: &[TrustAnchor<'_>],
    at: OffsetDateTime,
    role: PeerRole,
) -> Result<(), webpki::Error> {
    let usage = match role {
        PeerRole::Connects => webpki::KeyUsage::client_auth(),
        PeerRole::IsConnectedTo => webpki::KeyUsage::server_auth(),
    };
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, anchors, &[], at, usage, None, None).map(drop)
}

/// Which end of a connection a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    Connects,
    IsConnectedTo,
}

fn ca_params(site: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Holdfast site {site} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(crate::clock::wall().0 / 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rights::Role;

    /// A site that trusts another, and what the other's CA makes of `params`.
    fn shown(change: impl FnOnce(&mut CertificateParams)) -> Result<String> {
        let folder = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        Pki::new(&ours).init("ours")?;
        Pki::new(&theirs).init("theirs")?;
        Pki::new(&ours).trust("theirs", &theirs.join("ca.pem"))?;
        let key = KeyPair::from_pem(&std::fs::read_to_string(theirs.join("ca.key"))?)?;
        let issuer = Issuer::new(ca_params("theirs"), key);
        let mut params = CertificateParams::new(vec![format!("a.theirs{NAME_SUFFIX}")])?;
        params.not_before = now() - Duration::days(2);
        params.not_after = now() + Duration::days(2);
        change(&mut params);
        let certificate = params.signed_by(&KeyPair::generate()?, &issuer)?;
        Pki::new(&ours).peer_name(Some(&[certificate.der().clone()]), PeerRole::Connects)
    }

    #[test]
    fn a_certificate_is_good_for_its_time_and_its_site_only() {
        assert_eq!(shown(|_| {}).expect("a good one"), "a.theirs");
        let expired = shown(|params| params.not_after = now() - Duration::days(1)).expect_err("expired");
        assert!(format!("{expired:#}").contains("expired"), "{expired:#}");
        let early = shown(|params| params.not_before = now() + Duration::days(1)).expect_err("not yet valid");
        assert!(format!("{early:#}").contains("not valid yet"), "{early:#}");
        let ours = |params: &mut CertificateParams| {
            *params = CertificateParams::new(vec![format!("a.ours{NAME_SUFFIX}")]).expect("a name");
        };
        let operators = |params: &mut CertificateParams| {
            let uris = Purpose::Operator(Role::Admin).uris().expect("URIs");
            let names = uris.into_iter().map(|uri| SanType::URI(uri.try_into().expect("a URI")));
            params.subject_alt_names.extend(names);
        };
        let operators = shown(operators).expect_err("not an agent");
        assert!(format!("{operators:#}").contains("not an agent's"), "{operators:#}");
        let wrong = shown(ours).expect_err("the other site speaks for ours");
        assert!(format!("{wrong:#}").contains("has not issued its certificate"), "{wrong:#}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_trust_withdrawn() {
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, theirs] = ["ours", "theirs"].map(|site| {
            let pki = Pki::new(folder.path().join(site));
            pki.init(site).expect("an authority");
            pki
        });
        theirs.issue("a", "agent", &[], 30).expect("a certificate");
        let trusted = ours.trust("theirs", &theirs.file("ca.pem")).expect("a CA");
        let certificates = theirs.certificates("agent.pem").expect("a certificate");
        let look = || ours.peer_name(Some(&certificates), PeerRole::Connects);
        assert_eq!(look().expect("a trusted one"), "a.theirs");
        std::fs::remove_file(&trusted).expect("a file");
        let withdrawn = look().expect_err("nobody trusts it any more");
        assert!(!withdrawn.is::<CannotTell>(), "{withdrawn:#}");
        // As good as a system without descriptors: something is there, and cannot be read.
        std::fs::create_dir(&trusted).expect("a folder");
        let unknown = look().expect_err("nothing can be read there");
        assert!(unknown.is::<CannotTell>(), "{unknown:#}");
    }

    #[test]
    fn a_certificate_that_is_withdrawn_is_good_no_more_and_a_list_that_is_damaged_tells_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::new(folder.path());
        pki.init("ours").expect("an authority");
        for name in ["a", "b"] {
            pki.issue(name, name, &[], 30).expect("a certificate");
        }
        let look = |name: &str| {
            let shown = pki.certificates(&format!("{name}.pem")).expect("a certificate");
            pki.own_name(&shown[0]).and_then(|_| pki.peer_name(Some(&shown), PeerRole::Connects))
        };
        look("a").expect("a good one");
        let list = pki.withdraw_file(&pki.file("a.pem")).expect("a list");
        let withdrawn = look("a").expect_err("it was withdrawn");
        assert!(format!("{withdrawn:#}").contains("was withdrawn") && !withdrawn.is::<CannotTell>());
        look("b").expect("another one");
        pki.issue("a", "a", &[], 30).expect("a new one");
        look("a").expect("it has another serial number");
        std::fs::write(list, "what is this\n").expect("a file");
        assert!(look("b").expect_err("nobody can tell").is::<CannotTell>());
    }

    #[test]
    fn an_agents_own_certificate_is_told_of_before_it_expires() {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::new(folder.path());
        let ahead = Duration::days(14);
        pki.check_own(ahead).expect("nothing to be looked at");
        pki.init("ours").expect("an authority");
        pki.issue("a", "agent", &[], 15).expect("a certificate");
        pki.check_own(ahead).expect("a good one");
        pki.issue("a", "agent", &[], 13).expect("a certificate");
        let told = pki.check_own(ahead).expect_err("too short").to_string();
        assert!(told.contains("expires within 14 days"), "{told}");
    }
}
