//! The sockets of the API, and who is at the other end of each connection.

use super::App;
use super::routes::router;
use crate::link::notice_death;
use crate::pki::Pki;
use crate::places::{Place, Places};
use crate::refusals::Refusals;
use crate::rights::{Caller, LocalRights, Role};
use crate::shown::ShownCertificate;
use crate::waiting_room::WaitingRoom;
use anyhow::{Context, Result, bail};
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::{
    ACCEPT_RETRY_DELAY, API_CONNECTIONS_MAX, API_CONNECTIONS_OF_ONE_MAX, API_HEAD_TIMEOUT,
    API_REFUSED_CONNECTIONS_MAX, API_REFUSED_CONNECTIONS_OF_ONE_MAX, CONNECT_TIMEOUT,
};

/// Modes of the socket: with no group named, and with some, whose members the agent tells from others itself.
const OWN: u32 = 0o600;
const SHARED: u32 = 0o666;

/// The places at a door of the API. Whoever only looks has his own, and whoever has no role a few: neither takes those of
/// operators, who come when something has to be done.
struct Door {
    operators: Arc<Places>,
    viewers: Arc<Places>,
    refused: Arc<Places>,
}

impl Default for Door {
    fn default() -> Self {
        let half = || Places::new(API_CONNECTIONS_MAX / 2, API_CONNECTIONS_OF_ONE_MAX);
        let refused = Places::new(API_REFUSED_CONNECTIONS_MAX, API_REFUSED_CONNECTIONS_OF_ONE_MAX);
        Self { operators: half(), viewers: half(), refused }
    }
}

impl Door {
    fn enter(&self, caller: &Caller) -> Result<Place> {
        let places = match caller.role() {
            None => &self.refused,
            Some(Role::Viewer) => &self.viewers,
            Some(Role::Operator | Role::Builder | Role::Admin) => &self.operators,
        };
        places.enter(&caller.to_string())
    }
}

/// Serves the API on a unix socket, for the agent's own user and for the groups that have a role, and on TCP if an address
/// is given.
pub(crate) async fn serve(
    app: App,
    (socket, rights): (&Path, LocalRights),
    listen: Option<SocketAddr>,
    pki: &Pki,
) -> Result<()> {
    if UnixStream::connect(socket).await.is_ok() {
        bail!("an agent answers at {} already", socket.display());
    }
    let _ = std::fs::remove_file(socket);
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let mode = if rights.names_any() { SHARED } else { OWN };
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(mode))
        .context("protect the API socket")?;
    let alerts = app.alerts.clone();
    let router = router(app);
    tokio::spawn(accept_local(listener, router.clone(), rights));
    if let Some(address) = listen
        && let Err(error) = serve_tls(router, address, pki).await
    {
        // The VMs protected here must be served all the same.
        let cure = "restart the agent once that is mended";
        alerts.raise("API on TCP", format!("the API is not served on {address}: {error:#}; {cure}"));
    }
    Ok(())
}

/// Answers users of this host. Those without a role cost a few places and a moment each.
async fn accept_local(listener: UnixListener, router: Router, rights: LocalRights) {
    let door = Door::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection at the API's socket failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let caller = match rights.caller(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "connection at the API's socket refused");
                continue;
            }
        };
        let place = match door.enter(&caller) {
            Err(error) if !caller.is_own() => {
                tracing::debug!(%caller, %error, "connection at the API's socket refused");
                continue;
            }
            place => place,
        };
        let answered = answer(stream, router.clone(), caller);
        tokio::spawn(async move {
            let _place = place;
            answered.await;
        });
    }
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
    let door = Arc::new(Door::default());
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
        let (router, pki, door) = (router.clone(), pki.clone(), door.clone());
        let (place, refusals) = (room.enter(from.ip()), refusals.clone());
        tokio::spawn(async move {
            let served = async {
                let stream = place.within(shake_hands(&pki, stream)).await?;
                let shown = ShownCertificate::of(&pki, stream.get_ref().1.peer_certificates())?;
                let caller = Caller::of_certificate(shown.name(), shown.certificate(), from)?;
                let _place = door.enter(&caller)?;
                tokio::select! {
                    () = answer(stream, router, caller) => Ok(()),
                    why = shown.until_refused(&pki) => Err(why),
                }
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

/// Answers a caller's requests until it leaves, or does not finish the head of one in time. Who has no role is told so, and
/// not for long.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    caller: Caller,
) {
    if caller.role().is_some() {
        serve_requests(stream, router, caller).await;
    } else {
        let _ = timeout(CONNECT_TIMEOUT, serve_requests(stream, router, caller)).await;
    }
}

async fn serve_requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    caller: Caller,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(API_HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "API connection ended");
    }
}

#[cfg(test)]
mod tests;
