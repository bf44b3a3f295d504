//! The name of an agent as it stands in a certificate.

use anyhow::{Context, Result};
use rustls::pki_types::CertificateDer;

/// What every agent's name ends with.
pub(crate) const NAME_SUFFIX: &str = ".holdfast.internal";

/// The agent's name in a certificate, `AGENT.SITE`, whoever has issued it.
///
/// # Errors
/// Where it names no agent.
pub(crate) fn agent_name(certificate: &CertificateDer<'_>) -> Result<String> {
    let leaf = webpki::EndEntityCert::try_from(certificate).context("read the peer's certificate")?;
    let name = leaf.valid_dns_names().find_map(|name| name.strip_suffix(NAME_SUFFIX));
    name.map(str::to_owned).context("the peer's certificate has no agent's name")
}
