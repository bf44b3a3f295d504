//! Certificates whose key never leaves its host: it is made there together with a request, which the authority signs
//! elsewhere.
//!
//! A request is a PKCS#10 file, as other tools make and show it too, signed with the key it is for. What a certificate says
//! is what whoever signs says. A request that asks for something else is refused, so that neither is mistaken.
//!
//! The new key waits in `STEM.request.key` until its certificate is there; then both take the place of the pair in use.

use super::files::{lock, read_certificates, read_keys, replace};
use super::pair::{is_of, replace_pair};
use super::{PeerRole, Pki, Wanted, check_stem, site_of};
use crate::certificate_name::agent_name;
use anyhow::{Context, Result, bail};
use rcgen::{CertificateSigningRequestParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const KEY_SUFFIX: &str = ".request.key";

impl Pki {
    /// Makes a key under `stem`, and a request for a certificate of it; the request's path.
    ///
    /// # Errors
    /// Where a name is none, or the site is not known.
    pub fn request(&self, wanted: &Wanted, stem: &str, site: Option<&str>) -> Result<PathBuf> {
        check_stem(stem)?;
        let site = site.map_or_else(|| self.site(), |site| Ok(site.to_owned()));
        let mut params = wanted.params(&site.context("which site is this? Say it with --site")?)?;
        // Whoever signs gives the number.
        params.serial_number = None;
        let key = KeyPair::generate().context("generate a key")?;
        let request = params.serialize_request(&key).context("make the request")?;
        let _alone = lock(&self.folder)?;
        std::fs::create_dir_all(self.file("trust")).context("make the folder")?;
        replace(&self.file(&format!("{stem}{KEY_SUFFIX}")), &key.serialize_pem())?;
        let path = self.file(&format!("{stem}.csr"));
        replace(&path, &request.pem().context("write the request")?)?;
        Ok(path)
    }

    /// Signs a request with the site's authority, and writes the certificate to a file.
    ///
    /// # Errors
    /// Where the request is not whole, or is not for what is wanted.
    pub fn sign(&self, request: &Path, wanted: &Wanted, to: &Path) -> Result<()> {
        let asked = read_request(request)?;
        let params = wanted.params(&self.site()?)?;
        let names = |of: &[SanType]| of.iter().map(told).collect::<BTreeSet<_>>();
        let (asks, gets) = (names(&asked.params.subject_alt_names), names(&params.subject_alt_names));
        if asks != gets {
            let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
            bail!(
                "the request is for {}, and what you say is {}: say the same, or have it made anew",
                list(asks),
                list(gets)
            );
        }
        let certificate =
            params.signed_by(&asked.public_key, &self.issuer()?).context("sign the certificate")?;
        replace(to, &certificate.pem())
    }

    /// Takes a certificate that was signed for a request of here into use, with its key; its path. The site's authority
    /// comes with it where there is none here yet.
    ///
    /// # Errors
    /// Where no key here is the certificate's, or the authority has not issued it.
    pub fn install(&self, signed: &Path, authority: Option<&Path>) -> Result<PathBuf> {
        let _alone = lock(&self.folder)?;
        let certificates = read_certificates(signed)?;
        let stem = self.stem_of(&certificates)?;
        let name = agent_name(&certificates[0])?;
        let (ours, site) = (self.file("ca.pem"), self.site().ok());
        let named = site_of(&name)?;
        if let Some(site) = site.as_ref().filter(|site| *site != named) {
            bail!("the certificate is {name}'s, and this is a folder of site {site}");
        }
        if let Some(theirs) = authority.filter(|_| ours.exists())
            && read_certificates(theirs)? != read_certificates(&ours)?
        {
            bail!(
                "{} is another authority than {}: remove that one first if it is meant",
                theirs.display(),
                ours.display()
            );
        }
        // Before it is in its place: whoever has the key of what lies there is let in as an admin.
        self.check(&certificates[0], &name, authority.unwrap_or(&ours), PeerRole::Connects)
            .context("the authority in ca.pem (--ca) has to have issued it")?;
        if let Some(theirs) = authority {
            let text =
                std::fs::read_to_string(theirs).with_context(|| format!("read {}", theirs.display()))?;
            replace(&ours, &text)?;
        }
        if site.is_none() {
            replace(&self.file("site"), named)?;
        }
        let key = self.file(&format!("{stem}{KEY_SUFFIX}"));
        let text = std::fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
        let signed = std::fs::read_to_string(signed).with_context(|| format!("read {}", signed.display()))?;
        replace_pair(&self.folder, &stem, &text, &signed)?;
        std::fs::remove_file(&key).with_context(|| format!("remove {}", key.display()))?;
        Ok(self.file(&format!("{stem}.pem")))
    }

    /// What the pair is called for whose request a certificate was signed.
    fn stem_of(&self, certificates: &[CertificateDer<'static>]) -> Result<String> {
        let rows =
            std::fs::read_dir(&self.folder).with_context(|| format!("list {}", self.folder.display()))?;
        for row in rows {
            let path = row.with_context(|| format!("list {}", self.folder.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(stem) = name.strip_suffix(KEY_SUFFIX) else { continue };
            if read_keys(&path)?.iter().any(|key| is_of(key, certificates)) {
                return Ok(stem.to_owned());
            }
        }
        bail!(
            "no key in {} is the certificate's: it was not requested here, or it is in use already",
            self.folder.display()
        )
    }
}

/// Reads a request, which whoever made it has signed with its key.
fn read_request(path: &Path) -> Result<CertificateSigningRequestParams> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    CertificateSigningRequestParams::from_pem(&text)
        .with_context(|| format!("{} is no request that is signed with its key", path.display()))
}

fn told(name: &SanType) -> String {
    match name {
        SanType::DnsName(name) => name.to_string(),
        SanType::IpAddress(address) => address.to_string(),
        SanType::URI(uri) => uri.to_string(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rights::Purpose;

    #[test]
    fn an_authority_that_has_not_issued_the_certificate_does_not_become_the_sites_own() {
        let folder = tempfile::tempdir().unwrap();
        let [host, ours, other] = ["host", "ours", "other"].map(|name| Pki::new(folder.path().join(name)));
        for authority in [&ours, &other] {
            authority.init("berlin").unwrap();
        }
        let (name, hosts) = ("host-2".to_owned(), vec!["localhost".to_owned()]);
        let wanted = Wanted { name, purpose: Purpose::Agent, hosts, days: 30 };
        let request = host.request(&wanted, "agent", Some("berlin")).unwrap();
        let signed = folder.path().join("agent.pem");
        ours.sign(&request, &wanted, &signed).unwrap();
        host.install(&signed, Some(&other.file("ca.pem"))).unwrap_err();
        assert!(!host.file("ca.pem").exists() && !host.file("site").exists());
        host.install(&signed, Some(&ours.file("ca.pem"))).unwrap();
        assert_eq!(host.site().unwrap(), "berlin");
        assert_eq!(host.certificates("ca.pem").unwrap(), ours.certificates("ca.pem").unwrap());
    }

    #[test]
    fn of_two_who_change_a_folder_at_once_neither_loses_what_the_other_has_written() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new(folder.path());
        pki.init("berlin").unwrap();
        std::thread::scope(|scope| {
            for one in 1..=4 {
                let pki = &pki;
                scope.spawn(move || {
                    for number in 1..=20 {
                        pki.withdraw(None, &format!("{one}{number:02}")).unwrap();
                        pki.issue("host-1", "agent", &[], 30).unwrap();
                    }
                });
            }
        });
        let list = std::fs::read_to_string(pki.file("trust/berlin.withdrawn")).unwrap();
        assert_eq!(list.lines().count(), 80);
        super::super::read_pair(&pki.file("agent.pem"), &pki.file("agent.key")).unwrap();
        assert_eq!(read_keys(&pki.file("agent.key")).unwrap().len(), 1);
    }
}
