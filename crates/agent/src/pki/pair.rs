//! A key and its certificate, `STEM.key` and `STEM.pem`: replaced as one.
//!
//! What holds: whenever the two files are read, and wherever replacing them was cut short, the certificate that lies there
//! has its key beside it. For that the key's file holds both keys while the certificate is replaced:
//!
//! 1. `STEM.key`: the new key, and the old one behind it. The certificate is the old one, and its key is there.
//! 2. `STEM.pem`: the new certificate. Its key is there since step 1.
//! 3. `STEM.key`: the new key alone.
//!
//! Each step is one file renamed over another, and durable before the next. Whoever reads takes of the keys the one that
//! the certificate is of. Between reading the one and the other all steps may be done: then both are read again.

use super::files::{read_certificates, read_keys, replace};
use anyhow::{Result, bail};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};

/// How often both are read again where they do not fit.
const TRIES: usize = 5;

/// What a step replaces.
#[derive(Debug)]
struct Step {
    path: PathBuf,
    text: String,
}

/// The steps in which a pair takes the place of what is there.
fn steps(folder: &Path, stem: &str, key: &str, certificate: &str) -> Vec<Step> {
    let [key_path, path] = ["key", "pem"].map(|kind| folder.join(format!("{stem}.{kind}")));
    // Of what is not there, or is no key, nothing has to stay.
    let old =
        read_keys(&key_path).ok().and_then(|_| std::fs::read_to_string(&key_path).ok()).unwrap_or_default();
    let step = |path: &Path, text: String| Step { path: path.to_path_buf(), text };
    vec![
        step(&key_path, format!("{key}{old}")),
        step(&path, certificate.to_owned()),
        step(&key_path, key.to_owned()),
    ]
}

/// Puts a pair in the place of the one that is there.
///
/// # Errors
/// Where a file cannot be written. Then the pair that can be read is the old or the new one.
pub(super) fn replace_pair(folder: &Path, stem: &str, key: &str, certificate: &str) -> Result<()> {
    steps(folder, stem, key, certificate).iter().try_for_each(|step| replace(&step.path, &step.text))
}

/// A certificate, with what it was issued by, and its key, which lie in two files.
///
/// # Errors
/// Where one is missing or damaged, or none of the keys is the certificate's.
pub(crate) fn read_pair(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    for _ in 0..TRIES {
        let certificates = read_certificates(certificate)?;
        if let Some(key) = read_keys(key)?.into_iter().find(|key| is_of(key, &certificates)) {
            return Ok((certificates, key));
        }
    }
    bail!(
        "{} is not the key of {}: run `holdfast pki issue` again, or put the right one there",
        key.display(),
        certificate.display()
    )
}

/// Whether this is the key of the first of these.
pub(super) fn is_of(key: &PrivateKeyDer<'static>, certificates: &[CertificateDer<'static>]) -> bool {
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates.to_vec(), key.clone_key(), &provider).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    fn read(pki: &Pki) -> Result<Vec<CertificateDer<'static>>> {
        read_pair(&pki.file("agent.pem"), &pki.file("agent.key")).map(|(certificates, _)| certificates)
    }

    #[test]
    fn a_pair_is_whole_wherever_its_renewal_is_cut_short() {
        for made in 0..=3 {
            let folder = tempfile::tempdir().unwrap();
            let (pki, other) = (Pki::new(folder.path().join("a")), Pki::new(folder.path().join("b")));
            for pki in [&pki, &other] {
                pki.init("berlin").unwrap();
                pki.issue("host-1", "agent", &[], 30).unwrap();
            }
            let text = |name| std::fs::read_to_string(other.file(name)).unwrap();
            let (key, certificate) = (text("agent.key"), text("agent.pem"));
            let steps = steps(&folder.path().join("a"), "agent", &key, &certificate);
            assert_eq!(steps.len(), 3);
            for step in &steps[..made] {
                replace(&step.path, &step.text).unwrap();
            }
            let found = read(&pki).unwrap_or_else(|error| panic!("{made}: {error:#}"));
            assert_eq!(found == read(&other).unwrap(), made >= 2);
            // Whoever tries again has the new one alone.
            replace_pair(&folder.path().join("a"), "agent", &key, &certificate).unwrap();
            assert_eq!(std::fs::read_to_string(pki.file("agent.key")).unwrap(), key);
            assert_eq!(read(&pki).unwrap(), read(&other).unwrap());
        }
    }

    #[test]
    fn a_pair_is_whole_whenever_it_is_read_while_it_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new(folder.path());
        pki.init("berlin").unwrap();
        pki.issue("host-1", "agent", &[], 30).unwrap();
        let renewing = {
            let pki = pki.clone();
            std::thread::spawn(move || {
                for _ in 0..60 {
                    pki.issue("host-1", "agent", &[], 30).unwrap();
                }
            })
        };
        while !renewing.is_finished() {
            read(&pki).unwrap();
        }
        renewing.join().unwrap();
    }
}
