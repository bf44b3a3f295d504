//! Listening for connections: one task each, and no more of them than there is room for.

use super::dispatch::dispatch;
use super::identify::{identify, watch_tls};
use crate::alerts::Alerts;
use crate::pki::Pki;
use crate::places::Places;
use crate::recovery::Recovery;
use crate::refusals::Refusals;
use crate::source::Source;
use crate::waiting_room::WaitingRoom;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use types::limits::{ACCEPT_RETRY_DELAY, STREAMS_MAX, STREAMS_OF_SITE_MAX};

const LISTEN_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Accepts connections on `address`, their packets marked with `dscp`, as soon as it can be listened on: what hinders it
/// is an alert, and the VMs protected here do not wait for it. Certificates and trust that have changed are read anew.
pub(crate) async fn listen(
    recovery: Arc<Recovery>,
    source: Arc<Source>,
    pki: Pki,
    (address, dscp): (SocketAddr, u8),
    alerts: Arc<Alerts>,
) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                alerts.clear("stream listener");
                tracing::info!(%address, "listening for streams");
                tokio::spawn(watch_tls(pki.clone(), alerts));
                return accept(recovery, source, pki, listener, dscp).await;
            }
            Err(error) => {
                let text = format!(
                    "no streams are accepted: cannot listen on {address}: {error}; tried again by itself"
                );
                alerts.raise("stream listener", text);
            }
        }
        tokio::time::sleep(LISTEN_RETRY_INTERVAL).await;
    }
}

async fn accept(recovery: Arc<Recovery>, source: Arc<Source>, pki: Pki, listener: TcpListener, dscp: u8) {
    let refusals = Arc::new(Refusals::default());
    let room = Arc::new(WaitingRoom::default());
    let places = Places::new(STREAMS_MAX, STREAMS_OF_SITE_MAX);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a stream failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let (recovery, source, pki, places) = (recovery.clone(), source.clone(), pki.clone(), places.clone());
        let (place, refusals) = (room.enter(from.ip()), refusals.clone());
        tokio::spawn(async move {
            let served = async {
                let (stream, peer) = place.within(identify(&pki, stream, dscp)).await?;
                let _place = places.enter(&format!("site {}", peer.site()))?;
                dispatch(recovery, source, &pki, stream, peer).await
            };
            match served.await {
                Ok(()) => refusals.forget(from.ip()),
                Err(error) => refusals.log("connection", from, &format!("{error:#}")),
            }
        });
    }
}
