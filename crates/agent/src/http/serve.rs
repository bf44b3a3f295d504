//! The sockets of the API.

use super::App;
use super::routes::router;
use crate::pki::Pki;
use anyhow::{Context, Result, bail};
use axum::Router;
use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::CONNECT_TIMEOUT;

/// Handshakes done but not yet taken up.
const ACCEPTED_AHEAD: usize = 16;

/// Serves the API on a unix socket, for the agent's own user only, and on TCP if an address is given.
pub(crate) async fn serve(app: App, socket: &Path, listen: Option<SocketAddr>, pki: &Pki) -> Result<()> {
    if UnixStream::connect(socket).await.is_ok() {
        bail!("an agent answers at {} already", socket.display());
    }
    let _ = std::fs::remove_file(socket);
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .context("protect the API socket")?;
    let alerts = app.alerts.clone();
    let router = router(app);
    spawn(listener, router.clone());
    if let Some(address) = listen
        && let Err(error) = serve_tls(router, address, pki).await
    {
        // The VMs protected here must be served all the same.
        let cure = "restart the agent once that is mended";
        alerts.raise("API on TCP", format!("the API is not served on {address}: {error:#}; {cure}"));
    }
    Ok(())
}

async fn serve_tls(router: Router, address: SocketAddr, pki: &Pki) -> Result<()> {
    pki.api_server().context("prepare TLS for the API")?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    tracing::info!(%address, "API listening");
    let (accepted, ready) = mpsc::channel(ACCEPTED_AHEAD);
    tokio::spawn(shake_hands(listener, pki.clone(), accepted));
    spawn(TlsListener { address, ready }, router);
    Ok(())
}

fn spawn<L: Listener<Addr: std::fmt::Debug>>(listener: L, router: Router) {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the API is not served any more");
        }
    });
}

/// Connections whose handshake is done; a slow one holds up nobody.
struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

async fn shake_hands(
    listener: TcpListener,
    pki: Pki,
    accepted: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an API connection failed");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                continue;
            }
        };
        let acceptor = match pki.api_server() {
            Ok(config) => TlsAcceptor::from(config),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "API connection refused");
                continue;
            }
        };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            match timeout(CONNECT_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(accepted.send((stream, from)).await),
                Ok(Err(error)) => tracing::warn!(%from, %error, "API connection refused"),
                Err(_) => tracing::warn!(%from, "an API connection did not finish its handshake"),
            }
        });
    }
}
