//! Who a peer says it is, although its certificate is refused. Nobody believes it; the log names it.

use crate::certificate_name::agent_name;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
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

/// Refuses whom `verifier` refuses, and notes the name.
#[derive(Debug)]
pub(crate) struct NotesName {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) claimed: Claimed,
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
        self.verifier.verify_client_cert(end_entity, intermediates, now)
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
