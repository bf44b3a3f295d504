//! Clients for whom there is no thread.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::disks_in_tests::Blank;
use crate::thread_start::refusing;

#[test]
fn a_client_without_a_thread_is_hung_up_on_and_takes_no_place() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(Blank::of(1 << 20));
    let export = Export { name: "vda".into(), description: String::new(), device };
    let server = Server::bind(&folder.path().join("socket"), vec![export]).unwrap();
    let (mut client, theirs) = UnixStream::pair().unwrap();
    refusing::set(true);
    server.shared.clone().start(theirs).unwrap_err();
    assert_eq!((client.read(&mut [0; 64]).unwrap(), server.connections()), (0, 0));
    refusing::set(false);
    let (mut client, theirs) = UnixStream::pair().unwrap();
    server.shared.clone().start(theirs).unwrap();
    assert!(client.read(&mut [0; 64]).unwrap() > 0, "it is greeted");
    assert_eq!(server.connections(), 1);
}
