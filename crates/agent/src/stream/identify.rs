//! Who has connected: the handshake, and whether anybody can be let in at all.

use crate::alerts::Alerts;
use crate::claimed::Claimed;
use crate::link::{PeerIdentity, prepare};
use crate::pki::{PeerRole, Pki};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Shakes hands with whoever has connected.
pub(super) async fn identify(
    pki: &Pki,
    stream: TcpStream,
    dscp: u8,
) -> Result<(TlsStream<TcpStream>, PeerIdentity)> {
    prepare(&stream, dscp)?;
    let claimed = Claimed::default();
    let acceptor = TlsAcceptor::from(pki.stream_server(&claimed)?);
    let stream = acceptor.accept(stream).await.with_context(|| match claimed.name() {
        Some(name) => format!("TLS handshake with a peer that calls itself {name}"),
        None => "TLS handshake".to_owned(),
    })?;
    let peer = PeerIdentity::of(pki, stream.get_ref().1.peer_certificates(), PeerRole::Connects)?;
    Ok((stream, peer))
}

/// Says as long as it is so that no peer can be let in, and why.
pub(super) async fn watch_tls(pki: Pki, alerts: Arc<Alerts>) {
    loop {
        match pki.stream_server(&Claimed::default()) {
            Ok(_) => match pki.unreadable_trust() {
                None => alerts.clear("stream TLS"),
                Some(why) => alerts.raise("stream TLS", format!("peers of some sites are refused: {why}")),
            },
            Err(error) => alerts.raise("stream TLS", format!("no streams are accepted: {error:#}")),
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
