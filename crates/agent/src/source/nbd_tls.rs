//! Disks of protected VMs over TCP, for hypervisors on other hosts: NBD with STARTTLS and nothing without it.
//!
//! Exports are called `VM/DISK`. A client shows a certificate of this site, and is served the disks that this names: of
//! others it does not learn that they are there. What comes out of TLS
//! goes to the same server that unix sockets have, over a socket pair: one copy more than a local guest pays.
//!
//! Until a client has shown who it is it has no thread and no place but one in the [`WaitingRoom`].

use super::Source;
use crate::alerts::Alerts;
use crate::link::notice_death;
use crate::pki::Pki;
use crate::places::Places;
use crate::refusals::Refusals;
use crate::rights::Rights;
use crate::shown::ShownCertificate;
use crate::waiting_room::WaitingRoom;
use anyhow::{Context, Result, bail};
use splitter::Client;
use splitter::nbd::{BeforeTls, Next, serve_greeted};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as PairedStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::{ACCEPT_RETRY_DELAY, NBD_TLS_CONNECTIONS_MAX, NBD_TLS_CONNECTIONS_OF_ONE_MAX};

const LISTEN_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Serves the disks on `address`, as soon as it can be listened on.
pub(crate) async fn serve_disks(source: Arc<Source>, pki: Pki, address: SocketAddr, alerts: Arc<Alerts>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let text = format!(
                    "no disks are served over TCP: cannot listen on {address}: {error}; tried again by itself"
                );
                alerts.raise("NBD listener", text);
            }
        }
        tokio::time::sleep(LISTEN_RETRY_INTERVAL).await;
    };
    alerts.clear("NBD listener");
    tracing::info!(%address, "disks are served over TCP");
    let room = Arc::new(WaitingRoom::default());
    let places = Places::new(NBD_TLS_CONNECTIONS_MAX, NBD_TLS_CONNECTIONS_OF_ONE_MAX);
    let refusals = Arc::new(Refusals::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an NBD connection failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let (source, pki, places) = (source.clone(), pki.clone(), places.clone());
        let (place, refusals) = (room.enter(from.ip()), refusals.clone());
        tokio::spawn(async move {
            let served = async {
                let Some((stream, flags)) = place.within(begin(&pki, stream)).await? else { return Ok(()) };
                serve(&source, &pki, &places, stream, flags).await
            };
            match served.await {
                Ok(()) => refusals.forget(from.ip()),
                Err(error) => refusals.log("NBD connection", from, &format!("{error:#}")),
            }
        });
    }
}

/// Greets and shakes hands; none where the client leaves before.
async fn begin(pki: &Pki, mut stream: TcpStream) -> Result<Option<(TlsStream<TcpStream>, u32)>> {
    notice_death(&stream)?;
    let Some(flags) = greet(&mut stream).await.context("greet")? else { return Ok(None) };
    let acceptor = TlsAcceptor::from(pki.nbd_server()?);
    let stream = acceptor.accept(stream).await.context("TLS handshake")?;
    Ok(Some((stream, flags)))
}

/// The client's flags, once TLS begins with the next byte.
async fn greet(stream: &mut TcpStream) -> io::Result<Option<u32>> {
    let (mut greeting, hello) = BeforeTls::begin();
    stream.write_all(&hello).await?;
    let mut buf = [0; BeforeTls::WANTS_MAX];
    loop {
        let wanted = &mut buf[..greeting.wants()];
        stream.read_exact(wanted).await?;
        let step = greeting.take(wanted)?;
        stream.write_all(&step.reply).await?;
        match step.next {
            Next::More => {}
            Next::Tls { flags } => return Ok(Some(flags)),
            Next::Leave => return Ok(None),
        }
    }
}

async fn serve(
    source: &Arc<Source>,
    pki: &Pki,
    places: &Arc<Places>,
    mut stream: TlsStream<TcpStream>,
    flags: u32,
) -> Result<()> {
    let shown = ShownCertificate::of(pki, stream.get_ref().1.peer_certificates())?;
    let rights = Rights::of(shown.certificate())?;
    let name = format!("the holder of {}'s certificate", shown.name());
    if rights.disks.is_empty() {
        bail!("{name} may open no disk: issue one with `holdfast pki issue --client NAME --disk VM/DISK`");
    }
    let _place = places.enter(&name)?;
    let client = Client::named(name);
    let (ours, theirs) = PairedStream::pair().context("make a socket pair")?;
    let source = source.clone();
    std::thread::Builder::new()
        .name("nbd-tls".into())
        .spawn(move || {
            let (exports, vms) = source.remote_exports(|vm, disk| rights.opens(vm, disk));
            let chosen = |at: usize| vms[at].admit_remote(theirs.try_clone()?);
            if let Err(error) = serve_greeted(&theirs, flags, &exports, client, chosen) {
                tracing::debug!(%error, "NBD connection over TLS ended");
            }
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        })
        .context("start a thread")?;
    ours.set_nonblocking(true).context("use a socket pair")?;
    let mut ours = UnixStream::from_std(ours).context("use a socket pair")?;
    tokio::select! {
        // How it ends is told by the thread; a client that hangs up is nothing to tell of.
        _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut ours, 256 << 10, 256 << 10) => Ok(()),
        why = shown.until_refused(pki) => Err(why),
    }
}
