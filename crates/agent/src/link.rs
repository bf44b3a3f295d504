//! Connecting to a peer: TCP, TLS, and who is at the other end.

use crate::pki::{PeerRole, Pki};
use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use types::limits::CONNECT_TIMEOUT;

/// `HOST:PORT` of a peer.
pub(crate) fn split_peer(peer: &str) -> Option<(&str, u16)> {
    let (host, port) = peer.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(host).zip(port.parse().ok().filter(|&port| port != 0))
}

/// Connects and shakes hands. Certificates are read anew each time, so renewed ones are used at once.
pub(crate) async fn connect(pki: &Pki, peer: &str) -> Result<(TlsStream<TcpStream>, String)> {
    let (host, port) = split_peer(peer).context("a peer is HOST:PORT")?;
    let connector = TlsConnector::from(pki.client()?);
    let name = ServerName::try_from(host.to_owned()).context("the peer's host is no host name")?;
    let connecting = async {
        let stream = TcpStream::connect((host, port)).await.with_context(|| format!("connect to {peer}"))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        connector.connect(name, stream).await.with_context(|| format!("shake hands with {peer}"))
    };
    let stream = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .with_context(|| format!("{peer} does not answer within {} s", CONNECT_TIMEOUT.as_secs()))??;
    let name = pki.peer_name(stream.get_ref().1.peer_certificates(), PeerRole::IsConnectedTo)?;
    Ok((stream, name))
}
