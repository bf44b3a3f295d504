//! The certificate that a client of this site has shown, an operator or a client of disks: looked at when it comes, and
//! from then on for as long as its connection stands.

use crate::pki::{CannotTell, Pki};
use anyhow::{Context, Result};
use rustls::pki_types::CertificateDer;
use std::time::Duration;
use tokio::time::sleep;

/// How often it is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct ShownCertificate {
    name: String,
    certificate: CertificateDer<'static>,
}

impl ShownCertificate {
    /// # Errors
    /// Where it is not good here.
    pub(crate) fn of(pki: &Pki, shown: Option<&[CertificateDer<'_>]>) -> Result<Self> {
        let certificate = shown.and_then(<[_]>::first).context("the client shows no certificate")?;
        Ok(Self { name: pki.own_name(certificate)?, certificate: certificate.clone().into_owned() })
    }

    /// Whose it is, `NAME.SITE`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Waits until it is not good any more, as it may have expired or been withdrawn; why. Where the system cannot say, it
    /// is as before.
    pub(crate) async fn until_refused(&self, pki: &Pki) -> anyhow::Error {
        loop {
            sleep(LOOK_INTERVAL).await;
            match pki.own_name(&self.certificate) {
                Err(error) if error.is::<CannotTell>() => {
                    tracing::warn!(name = self.name, error = format!("{error:#}"), "still let in");
                }
                Err(error) => return error.context("its connection is ended"),
                Ok(_) => {}
            }
        }
    }
}
