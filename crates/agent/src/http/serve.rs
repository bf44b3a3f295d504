//! The sockets of the API.

use super::App;
use super::routes::router;
use crate::link::notice_death;
use crate::pki::Pki;
use crate::refusals::Refusals;
use crate::waiting_room::WaitingRoom;
use anyhow::{Context, Result, bail};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::{ACCEPT_RETRY_DELAY, API_CONNECTIONS_MAX, API_HEAD_TIMEOUT};

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
    let local = router.clone();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, local).await {
            tracing::error!(%error, "the API is not served any more");
        }
    });
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
    tokio::spawn(accept(listener, router, pki.clone()));
    Ok(())
}

async fn accept(listener: TcpListener, router: Router, pki: Pki) {
    let room = Arc::new(WaitingRoom::default());
    let places = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
    let refusals = Arc::new(Refusals::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an API connection failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let (router, pki, places) = (router.clone(), pki.clone(), places.clone());
        let (place, refusals) = (room.enter(from.ip()), refusals.clone());
        tokio::spawn(async move {
            let served = async {
                let stream = place.within(shake_hands(&pki, stream)).await?;
                let _place = places.try_acquire().context("there are too many connections already")?;
                answer(stream, router).await;
                Ok::<_, anyhow::Error>(())
            };
            match served.await {
                Ok(()) => refusals.forget(from.ip()),
                Err(error) => refusals.log("API connection", from, &format!("{error:#}")),
            }
        });
    }
}

async fn shake_hands(pki: &Pki, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
    notice_death(&stream)?;
    TlsAcceptor::from(pki.api_server()?).accept(stream).await.context("TLS handshake")
}

/// Answers an operator's requests until it leaves, or does not finish the head of one in time.
async fn answer(stream: TlsStream<TcpStream>, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(API_HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "API connection ended");
    }
}
