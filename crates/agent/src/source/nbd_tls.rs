//! Disks of protected VMs over TCP, for hypervisors on other hosts: NBD with STARTTLS and nothing without it.
//!
//! Exports are called `VM/DISK`. A client shows a certificate of this site, as at the API. What comes out of TLS
//! goes to the same server that unix sockets have, over a socket pair: one copy more than a local guest pays.
//!
//! Who has shown no certificate yet gets no thread, one of few places, of which an address has fewer, and one time limit
//! for all of its greeting and handshake. A client that goes away without a word is found out by TCP itself.

use super::Source;
use crate::alerts::Alerts;
use crate::pki::{Pki, agent_name};
use anyhow::{Context, Result};
use rustix::net::sockopt;
use splitter::Client;
use splitter::nbd::{BeforeTls, Next, serve_greeted};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream as PairedStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::{
    ACCEPT_RETRY_DELAY, CONNECT_TIMEOUT, NBD_KEEPALIVE_IDLE, NBD_KEEPALIVE_INTERVAL, NBD_KEEPALIVE_TRIES,
    NBD_TLS_CONNECTIONS_MAX, NBD_TLS_GREETINGS_MAX, NBD_TLS_GREETINGS_OF_ADDRESS_MAX, NBD_UNACKNOWLEDGED_MAX,
};

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
    let greetings = Arc::new(Semaphore::new(NBD_TLS_GREETINGS_MAX));
    let served = Arc::new(Semaphore::new(NBD_TLS_CONNECTIONS_MAX));
    let callers = Callers::default();
    loop {
        let place = greetings.clone().acquire_owned().await.expect("never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an NBD connection failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let Some(share) = callers.admit(from.ip()) else {
            tracing::debug!(%from, "NBD connection refused: too many of this address have not begun");
            continue;
        };
        let (source, pki, served) = (source.clone(), pki.clone(), served.clone());
        tokio::spawn(async move {
            let begun = timeout(CONNECT_TIMEOUT, begin(&pki, stream)).await;
            drop((place, share));
            let done = match begun {
                Ok(Ok(None)) => Ok(()),
                Ok(Ok(Some((stream, flags)))) => match served.try_acquire_owned() {
                    Ok(_place) => serve(&source, stream, flags).await,
                    Err(_) => Err(anyhow::anyhow!("{NBD_TLS_CONNECTIONS_MAX} connections are open already")),
                },
                Ok(Err(error)) => Err(error),
                Err(_) => Err(anyhow::anyhow!("the client does not finish its greeting and TLS handshake")),
            };
            if let Err(error) = done {
                tracing::warn!(%from, error = format!("{error:#}"), "NBD connection ended");
            }
        });
    }
}

/// How many connections of each address have not shown a certificate yet.
#[derive(Debug, Clone, Default)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, until it is dropped.
struct Share {
    callers: Callers,
    address: IpAddr,
}

impl Callers {
    fn admit(&self, address: IpAddr) -> Option<Share> {
        let mut open = self.0.lock().expect("a panic aborts the process");
        let count = open.entry(address).or_default();
        if *count == NBD_TLS_GREETINGS_OF_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Share { callers: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.callers.0.lock().expect("a panic aborts the process");
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Greets and shakes hands; none where the client leaves before.
async fn begin(pki: &Pki, mut stream: TcpStream) -> Result<Option<(TlsStream<TcpStream>, u32)>> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    find_out_if_gone(&stream).context("set TCP's keepalive")?;
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

/// A client whose host or link is gone says no farewell: its connection would count as one that is there for ever.
fn find_out_if_gone(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, NBD_KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, NBD_KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, NBD_KEEPALIVE_TRIES)?;
    let limit = u32::try_from(NBD_UNACKNOWLEDGED_MAX.as_millis()).expect("half a minute");
    Ok(sockopt::set_tcp_user_timeout(stream, limit)?)
}

async fn serve(source: &Arc<Source>, mut stream: TlsStream<TcpStream>, flags: u32) -> Result<()> {
    let client = Client::named(client_name(&stream));
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
            if let Err(error) = serve_greeted(&theirs, flags, &exports, client, chosen) {
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

/// Whoever has shown a certificate: by the name in it, or by its hash where it names none.
fn client_name(stream: &TlsStream<TcpStream>) -> String {
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match shown {
        Some(certificate) => match agent_name(certificate) {
            Ok(name) => format!("the holder of {name}'s certificate"),
            Err(_) => format!("the holder of certificate {}", blake3::hash(certificate).to_hex()),
        },
        None => "a client without a certificate".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_of_those_not_known_yet_and_gets_it_back() {
        let (callers, here, there) =
            (Callers::default(), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut shares: Vec<Share> =
            (0..NBD_TLS_GREETINGS_OF_ADDRESS_MAX).map(|_| callers.admit(here).expect("a share")).collect();
        assert!(callers.admit(here).is_none());
        assert!(callers.admit(there).is_some());
        shares.pop();
        shares.push(callers.admit(here).expect("a share again"));
        drop(shares);
        assert!(callers.0.lock().expect("no panic").is_empty());
    }
}
