//! Disks of protected VMs over TCP, for hypervisors on other hosts: NBD with STARTTLS and nothing without it.
//!
//! Exports are called `VM/DISK`. A client shows a certificate of this site, as at the API. What comes out of TLS
//! goes to the same server that unix sockets have, over a socket pair: one copy more than a local guest pays.

use super::Source;
use crate::alerts::Alerts;
use crate::pki::Pki;
use anyhow::{Context, Result};
use splitter::nbd::{before_tls, serve_greeted};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as PairedStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use types::limits::{CONNECT_TIMEOUT, NBD_TLS_CONNECTIONS_MAX};

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
    let places = Arc::new(Semaphore::new(NBD_TLS_CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let accepted = listener.accept().await;
        let (source, pki) = (source.clone(), pki.clone());
        tokio::spawn(async move {
            let served = match accepted {
                Ok((stream, from)) => serve(&source, &pki, stream).await.map_err(|error| (Some(from), error)),
                Err(error) => Err((None, error.into())),
            };
            if let Err((from, error)) = served {
                tracing::warn!(?from, error = format!("{error:#}"), "NBD connection ended");
            }
            drop(place);
        });
    }
}

async fn serve(source: &Arc<Source>, pki: &Pki, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let stream = stream.into_std().context("greet")?;
    let greeting = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
        let mut stream = stream;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let flags = before_tls(&mut stream)?;
        stream.set_read_timeout(None)?;
        stream.set_nonblocking(true)?;
        Ok((stream, flags))
    });
    let (stream, flags) = greeting.await.expect("a panic aborts the process").context("greet")?;
    let Some(flags) = flags else { return Ok(()) };
    let acceptor = TlsAcceptor::from(pki.api_server()?);
    let stream = TcpStream::from_std(stream).context("begin TLS")?;
    let mut stream = timeout(CONNECT_TIMEOUT, acceptor.accept(stream))
        .await
        .context("the client does not finish its TLS handshake")?
        .context("TLS handshake")?;
    let (ours, theirs) = PairedStream::pair().context("make a socket pair")?;
    let source = source.clone();
    std::thread::Builder::new()
        .name("nbd-tls".into())
        .spawn(move || {
            let kept = theirs.try_clone();
            let (exports, vms) = source.remote_exports();
            let chosen = |at: usize| {
                if let Ok(kept) = kept {
                    vms[at].note_remote(kept);
                }
            };
            if let Err(error) = serve_greeted(&theirs, flags, &exports, chosen) {
                tracing::debug!(%error, "NBD connection over TLS ended");
            }
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        })
        .context("start a thread")?;
    ours.set_nonblocking(true).context("use a socket pair")?;
    let mut ours = UnixStream::from_std(ours).context("use a socket pair")?;
    // How it ends is told by the thread; a client that hangs up is nothing to tell of.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut ours, 256 << 10, 256 << 10).await;
    Ok(())
}
