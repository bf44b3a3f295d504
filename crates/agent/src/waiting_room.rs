//! Connections that have not shown yet who they are: few at once, few of one address, and none for long.
//!
//! Whoever comes is let in; where there is no room, whoever has waited longest goes, of the same address if that has its
//! share already, else of the address that has most. One that means it is done in a moment, so those that only wait
//! give way to it, however many they are. What a connection has to do until it is known has one deadline for all of it.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::timeout;
use types::limits::{CONNECT_TIMEOUT, UNKNOWN_CONNECTIONS_MAX, UNKNOWN_CONNECTIONS_OF_ADDRESS_MAX};

/// The room of one port.
#[derive(Debug, Default)]
pub(crate) struct WaitingRoom(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order they came. Dropping the sender tells a connection to go.
    places: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<WaitingRoom>,
    number: u64,
    given_away: oneshot::Receiver<()>,
}

impl WaitingRoom {
    /// Lets a connection in, and another one go if need be.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr) -> Place {
        // Of one network of IPv6 anybody has as many addresses as he likes.
        let from = network(from);
        let mut waiting = self.lock();
        if let Some(number) = waiting.to_go(from) {
            waiting.places.remove(&number);
        }
        let number = waiting.next;
        waiting.next += 1;
        let (keep, given_away) = oneshot::channel();
        waiting.places.insert(number, (from, keep));
        Place { room: self.clone(), number, given_away }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl Waiting {
    /// Who must go before one more comes from an address.
    fn to_go(&self, from: IpAddr) -> Option<u64> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, _) in self.places.values() {
            *counts.entry(*address).or_default() += 1;
        }
        let crowded = if counts.get(&from).copied().unwrap_or(0) >= UNKNOWN_CONNECTIONS_OF_ADDRESS_MAX {
            from
        } else if self.places.len() >= UNKNOWN_CONNECTIONS_MAX {
            *counts.iter().max_by_key(|(_, count)| **count)?.0
        } else {
            return None;
        };
        self.places.iter().find(|(_, (address, _))| *address == crowded).map(|(number, _)| *number)
    }
}

/// An IPv4 address, or the network of an IPv6 one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

impl Place {
    /// Does what a connection has to do until it is known.
    ///
    /// # Errors
    /// As the work says; where it takes too long, or the place is needed for somebody else.
    pub(crate) async fn within<T>(mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = timeout(CONNECT_TIMEOUT, work) => match done {
                Ok(done) => done,
                Err(_) => bail!("it has not shown who it is within {} s", CONNECT_TIMEOUT.as_secs()),
            },
            _ = &mut self.given_away => bail!("too many connections that do not show who they are"),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_gone(place: &mut Place) -> bool {
        place.given_away.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_longest_wait_of_a_crowded_address_ends_for_one_more() {
        let room = Arc::new(WaitingRoom::default());
        let mut other = room.enter(address(1));
        let mut crowd: Vec<_> =
            (0..UNKNOWN_CONNECTIONS_OF_ADDRESS_MAX).map(|_| room.enter(address(2))).collect();
        assert!(!crowd.iter_mut().any(is_gone));
        let mut last = room.enter(address(2));
        assert!(is_gone(&mut crowd[0]) && !is_gone(&mut crowd[1]) && !is_gone(&mut last));
        assert!(!is_gone(&mut other), "another address is not touched");
    }

    #[test]
    fn a_full_room_is_made_free_by_the_address_that_has_most_of_it() {
        let room = Arc::new(WaitingRoom::default());
        let mut crowd: Vec<_> =
            (0..UNKNOWN_CONNECTIONS_OF_ADDRESS_MAX).map(|_| room.enter(address(1))).collect();
        let mut single: Vec<_> = (0..UNKNOWN_CONNECTIONS_MAX - crowd.len())
            .map(|at| room.enter(address(2 + (at % 250) as u8)))
            .collect();
        let _newcomer = room.enter(address(255));
        assert!(is_gone(&mut crowd[0]) && !single.iter_mut().any(is_gone));
        drop((crowd, single));
        assert_eq!(room.lock().places.len(), 1);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_their_places() {
        let first: IpAddr = "2001:db8:1:2::1".parse().expect("an address");
        let second: IpAddr = "2001:db8:1:2:ffff::9".parse().expect("an address");
        assert_eq!(network(first), network(second));
        assert_eq!(network("::ffff:10.0.0.1".parse().expect("an address")), address(1));
    }
}
