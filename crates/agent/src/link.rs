//! Connecting to a peer: TCP, TLS, and who is at the other end.

use crate::pki::{CannotTell, PeerRole, Pki};
use anyhow::{Context, Result};
use replication::wire::FrameWriter;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use types::limits::{CONNECT_TIMEOUT, TCP_PROBE_AFTER, TCP_PROBE_INTERVAL, TCP_SILENCE_MAX};

/// Who a peer has shown to be, and with what.
#[derive(Debug)]
pub(crate) struct PeerIdentity {
    pub(crate) name: String,
    certificates: Vec<CertificateDer<'static>>,
    role: PeerRole,
}

impl PeerIdentity {
    /// Whoever shows these certificates, if its site is trusted and has issued them.
    pub(crate) fn of(pki: &Pki, shown: Option<&[CertificateDer<'_>]>, role: PeerRole) -> Result<Self> {
        let name = pki.peer_name(shown, role)?;
        let certificates = shown.unwrap_or_default().iter().map(|shown| shown.clone().into_owned()).collect();
        Ok(Self { name, certificates, role })
    }

    /// The site that has issued its certificate.
    pub(crate) fn site(&self) -> &str {
        self.name.split_once('.').map_or("", |(_, site)| site)
    }

    /// Looks again: trust may have been withdrawn since, a certificate may have expired. Where the system cannot say,
    /// as without descriptors left, the peer is trusted as before.
    ///
    /// # Errors
    /// Why the peer would not be let in now.
    pub(crate) fn check(&self, pki: &Pki) -> Result<()> {
        match pki.peer_name(Some(&self.certificates), self.role) {
            Err(error) if error.is::<CannotTell>() => {
                tracing::warn!(peer = self.name, error = format!("{error:#}"), "still trusted");
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// Which end does not take the other's certificate. That does not mend itself, as a link that is down may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// We do not take the peer's.
    Here,
    /// The peer does not take ours.
    There,
}

/// Who shows a certificate that is good, and may not be let in with it.
#[derive(Debug, thiserror::Error)]
#[error("the peer is not let in")]
struct NotLetIn;

impl TurnedAway {
    /// Whether a connection failed by that.
    pub(crate) fn of(error: &anyhow::Error) -> Option<Self> {
        if error.is::<NotLetIn>() {
            return Some(Self::Here);
        }
        error.chain().find_map(|cause| Self::of_io(cause.downcast_ref()?))
    }

    /// The same of a connection that had begun: with TLS 1.3 a peer looks at our certificate only then.
    pub(crate) fn of_io(error: &std::io::Error) -> Option<Self> {
        use rustls::AlertDescription as Alert;
        match error.get_ref()?.downcast_ref()? {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Some(Self::Here),
            rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied,
            ) => Some(Self::There),
            _ => None,
        }
    }

    /// What that means, before the words of whoever found it.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Here => {
                "the recovery side's certificate is not taken here: see that its site is trusted (`holdfast pki trust`), \
                 and that `--peer` is a name its certificate was issued for"
            }
            Self::There => {
                "the recovery side does not take this agent's certificate: see that its site trusts this one (`holdfast \
                 pki trust` there), and that the certificate has not expired"
            }
        }
    }
}

/// A connection that stands.
pub(crate) struct Connected {
    pub(crate) reader: ReadHalf<TlsStream<TcpStream>>,
    pub(crate) writer: WriteHalf<TlsStream<TcpStream>>,
    /// Numbers what is said from the first word on.
    pub(crate) first: FrameWriter,
    pub(crate) peer: PeerIdentity,
}

/// `HOST:PORT` of a peer.
pub(crate) fn split_peer(peer: &str) -> Option<(&str, u16)> {
    let (host, port) = peer.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(host).zip(port.parse().ok().filter(|&port| port != 0))
}

/// Connects and shakes hands. Renewed certificates are used at once.
pub(crate) async fn connect(pki: &Pki, peer: &str, dscp: u8) -> Result<Connected> {
    let (host, port) = split_peer(peer).context("a peer is HOST:PORT")?;
    let connector = TlsConnector::from(pki.client()?);
    let name = ServerName::try_from(host.to_owned()).context("the peer's host is no host name")?;
    let connecting = async {
        let stream = TcpStream::connect((host, port)).await.with_context(|| format!("connect to {peer}"))?;
        prepare(&stream, dscp)?;
        connector.connect(name, stream).await.with_context(|| format!("shake hands with {peer}"))
    };
    let stream = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .with_context(|| format!("{peer} does not answer within {} s", CONNECT_TIMEOUT.as_secs()))??;
    let shown = stream.get_ref().1.peer_certificates();
    let peer = PeerIdentity::of(pki, shown, PeerRole::IsConnectedTo).context(NotLetIn)?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connected { reader, writer, first: FrameWriter::default(), peer })
}

/// Sets what every TCP connection has: no delay, and an end once nobody is at the other end any more, which the system
/// would not notice of one that is quiet.
pub(crate) fn notice_death(stream: &TcpStream) -> Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let probes = TCP_SILENCE_MAX.saturating_sub(TCP_PROBE_AFTER).as_secs() / TCP_PROBE_INTERVAL.as_secs();
    let set = || {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, TCP_PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, TCP_PROBE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(stream, u32::try_from(probes).unwrap_or(u32::MAX))?;
        sockopt::set_tcp_user_timeout(stream, TCP_SILENCE_MAX.as_millis() as u32)
    };
    set().context("have a connection end when its other end is gone")
}

/// Sets what every connection of a stream has: what all have, and its class of service.
pub(crate) fn prepare(stream: &TcpStream, dscp: u8) -> Result<()> {
    use rustix::net::sockopt;
    notice_death(stream)?;
    if dscp == 0 {
        return Ok(());
    }
    // The DSCP is the upper six bits of the field.
    let field = dscp << 2;
    match stream.peer_addr().context("ask for the peer's address")? {
        std::net::SocketAddr::V4(_) => sockopt::set_ip_tos(stream, field),
        std::net::SocketAddr::V6(_) => sockopt::set_ipv6_tclass(stream, field.into()),
    }
    .context("set the DSCP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_of_streams_are_marked_where_that_is_wished() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        for dscp in [0, 10, 63] {
            let address = listener.local_addr().expect("an address");
            let stream = TcpStream::connect(address).await.expect("a connection");
            prepare(&stream, dscp).expect("options that can be set");
            assert_eq!(rustix::net::sockopt::ip_tos(&stream).expect("an option"), dscp << 2);
            assert!(stream.nodelay().expect("an option"));
            use rustix::net::sockopt;
            assert!(sockopt::socket_keepalive(&stream).expect("an option"));
            assert_eq!(sockopt::tcp_keepidle(&stream).expect("an option"), TCP_PROBE_AFTER);
            assert_eq!(sockopt::tcp_keepintvl(&stream).expect("an option"), TCP_PROBE_INTERVAL);
            assert_eq!(sockopt::tcp_keepcnt(&stream).expect("an option"), 3);
            let millis = TCP_SILENCE_MAX.as_millis() as u32;
            assert_eq!(sockopt::tcp_user_timeout(&stream).expect("an option"), millis);
        }
    }
}
