//! What a certificate or a request is, for people: whose, what for, until when, and its fingerprint, which two of them compare
//! over the telephone.

use super::files::read_certificates;
use super::withdrawn::serial;
use crate::clock;
use crate::fingerprint::fingerprint;
use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::Serialize;
use std::net::IpAddr;
use std::path::Path;
use types::WallTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// A certificate, told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `certificate`, `authority` or `request`.
    pub kind: &'static str,
    pub subject: String,
    /// All that it names: agents, hosts, roles, disks.
    pub names: Vec<String>,
    pub issuer: Option<String>,
    pub serial: Option<String>,
    pub from: Option<String>,
    pub until: Option<String>,
    /// SHA-256.
    pub fingerprint: String,
}

/// What is in a file.
///
/// # Errors
/// Where it is neither a certificate nor a request.
pub fn show(path: &Path) -> Result<Shown> {
    let damaged = || format!("read {}", path.display());
    if let Ok(request) = CertificateSigningRequestDer::from_pem_file(path) {
        return told_request(&request).with_context(damaged);
    }
    told(&read_certificates(path)?[0]).with_context(damaged)
}

/// Whether a certificate is one that others may be issued by.
pub(super) fn is_authority(certificate: &CertificateDer<'_>) -> Result<bool> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("read the certificate")?;
    Ok(parsed.is_ca())
}

fn told(certificate: &CertificateDer<'_>) -> Result<Shown> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("read the certificate")?;
    let names = parsed.subject_alternative_name().context("read its names")?;
    let time = |at: ASN1Time| clock::to_text(WallTime(at.timestamp().saturating_mul(1_000_000)));
    Ok(Shown {
        kind: if parsed.is_ca() { "authority" } else { "certificate" },
        subject: parsed.subject().to_string(),
        names: names.map(|names| names.value.general_names.iter().map(name).collect()).unwrap_or_default(),
        issuer: Some(parsed.issuer().to_string()),
        serial: Some(serial(certificate)?),
        from: Some(time(parsed.validity().not_before)),
        until: Some(time(parsed.validity().not_after)),
        fingerprint: fingerprint(certificate),
    })
}

fn told_request(request: &[u8]) -> Result<Shown> {
    let (_, parsed) = X509CertificationRequest::from_der(request).context("read the request")?;
    let mut names = Vec::new();
    for extension in parsed.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(found) = extension {
            names.extend(found.general_names.iter().map(name));
        }
    }
    let (kind, subject) = ("request", parsed.certification_request_info.subject.to_string());
    let fingerprint = fingerprint(request);
    Ok(Shown { kind, subject, names, issuer: None, serial: None, from: None, until: None, fingerprint })
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.map_or_else(|_| format!("{bytes:?}"), |address| address.to_string())
        }
        other => other.to_string(),
    }
}
