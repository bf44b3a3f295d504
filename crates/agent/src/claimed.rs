//! Who a peer says it is, although its certificate is refused. Nobody believes it; the log names it.

use crate::certificate_name::agent_name;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::fmt;
use std::sync::{Arc, Mutex};

/// The name in the last certificate that was shown to a server.
#[derive(Debug, Clone, Default)]
pub struct Claimed(Arc<Mutex<Option<String>>>);

impl Claimed {
    /// The name, `AGENT.SITE`.
    pub fn name(&self) -> Option<String> {
        self.0.lock().expect("a panic aborts the process").clone()
    }
}

/// Refuses whom `verifier` refuses, and whose certificate was withdrawn, and notes the name.
#[derive(Debug)]
pub(crate) struct NotesName {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) claimed: Claimed,
    pub(crate) is_withdrawn: Withdrawn,
}

/// Whether a certificate was withdrawn.
pub(crate) struct Withdrawn(pub(crate) Box<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>);

impl fmt::Debug for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Withdrawn")
    }
}

impl ClientCertVerifier for NotesName {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        *self.claimed.0.lock().expect("a panic aborts the process") = agent_name(end_entity).ok();
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        // Said here, so that whoever shows it learns why.
        if (self.is_withdrawn.0)(end_entity) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
