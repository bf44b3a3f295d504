//! Ports for the agents of a lab: below those that the kernel gives to whoever connects somewhere, so that none is taken by
//! a stranger while its agent is killed and started again; and each given once, to one lab of all on this machine. Who
//! has a number holds an abstract socket named after it until its process ends, so nothing is left over.

use anyhow::{Result, bail};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

/// Linux gives 32768 and above to connections, if nobody has set something else.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What this process has claimed, for as long as it lives.
static CLAIMED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port nobody listens on, and which nobody else is given while this process lives.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<u16> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Two processes begin at different places, so that they seldom ask for one number.
    let first = std::process::id() as usize * 101 + claimed.len();
    let found = (0..PORTS.len()).find_map(|turn| {
        let port = PORTS.start + ((first + turn) % PORTS.len()) as u16;
        let claim = claim(port)?;
        Some((port, claim))
    });
    let Some((port, claim)) = found else { bail!("none of the ports {PORTS:?} is free") };
    claimed.push(claim);
    Ok(port)
}

/// The claim of a port that is nobody's, neither a lab's nor a listener's.
fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("holdfast-lab-port-{port}")).ok()?;
    let claim = UnixListener::bind_addr(&name).ok()?;
    // Both, for a listener on all addresses may leave room for one on a single address.
    let free = |host: &str| TcpListener::bind((host, port)).is_ok();
    (free("127.0.0.1") && free("0.0.0.0")).then_some(claim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_port_is_given_twice_or_of_those_that_connections_get() {
        let ports: BTreeSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 200);
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(ports.iter().all(|port| *port < lowest), "{ports:?}, connections get {lowest} and above");
    }

    #[test]
    fn what_another_lab_has_claimed_or_anybody_listens_on_is_not_free() {
        let port = free_port().unwrap();
        assert!(claim(port).is_none(), "claimed already");
        // Its claim is of this process; another number is bound by somebody who claims nothing.
        let other = PORTS.clone().rev().find(|&port| claim(port).is_some()).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", other)).unwrap();
        assert!(claim(other).is_none(), "bound");
    }
}
