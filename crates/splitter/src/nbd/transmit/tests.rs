//! Clients that ask and do not take the answers, or leave before there are any.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::device::Extent;
use crate::disks_in_tests::{Blank, held};
use crate::nbd::export::Export;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

const SIZE: u64 = 1 << 30;
/// Requests that the test would send; their answers are many times what may be kept.
const ASKED_MAX: usize = 1 << 20;

/// Every second 64 KiB is a hole.
fn fragmented(range: ByteRange, most: usize) -> Vec<Extent> {
    assert!(most <= EXTENTS_MAX, "no more is looked at than is told");
    let kind = |at: u64| if at.is_multiple_of(1 << 17) { ExtentKind::Hole } else { ExtentKind::Data };
    let pieces = range.split_at_multiples(1 << 16).take(most);
    pieces.map(|range| Extent { range, kind: kind(range.start) }).collect()
}

fn request(command: u16, cookie: u64, start: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(REQUEST_MAGIC.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(start.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Sends as many of a request as the server reads without an answer being taken; how many that were, and then takes
/// all answers. `answer` takes one.
fn flood(contexts: Vec<Context>, one: &[u8], mut answer: impl FnMut(&mut UnixStream)) -> usize {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let device = Arc::new(Blank { size_bytes: SIZE, extents: fragmented });
        let export = Export { name: "vda".into(), description: String::new(), device };
        transmit(
            &Agreed { export: &export, structured: true, contexts },
            &theirs,
            Client::of_process(&theirs),
        )
    });
    let mut client = ours;
    client.set_write_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let many = one.repeat(1024);
    let mut sent = 0;
    let is_full = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    while sent < ASKED_MAX * one.len() {
        match client.write(&many[sent % many.len()..]) {
            Ok(len) => sent += len,
            Err(error) if is_full(&error) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let whole = sent / one.len();
    (0..whole).for_each(|_| answer(&mut client));
    client.set_write_timeout(None).unwrap();
    if !sent.is_multiple_of(one.len()) {
        client.write_all(&one[sent % one.len()..]).unwrap();
        answer(&mut client);
    }
    client.write_all(&request(command::DISCONNECT, 0, 0, 0)).unwrap();
    server.join().unwrap().unwrap();
    whole
}

#[test]
fn a_client_that_takes_no_refusals_is_read_no_further_and_goes_on_when_it_does() {
    // Behind the end of the disk.
    let one = request(command::TRIM, 7, SIZE, 512);
    let asked = flood(Vec::new(), &one, |client| {
        let mut reply = [0; 16];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], errno::EINVAL.to_be_bytes());
    });
    assert!(asked < ASKED_MAX / 2, "{asked} requests are answered, and none of the answers taken");
}

#[test]
fn a_client_that_takes_no_block_status_is_read_no_further_and_goes_on_when_it_does() {
    let one = request(command::BLOCK_STATUS, 7, 0, 1 << 29);
    let asked = flood(vec![Context::Allocation], &one, |client| {
        let mut head = [0; 20];
        client.read_exact(&mut head).unwrap();
        let len = u32::from_be_bytes(head[16..].try_into().unwrap()) as usize;
        assert_eq!(len, 4 + 8 * EXTENTS_MAX);
        let mut rest = vec![0; len];
        client.read_exact(&mut rest).unwrap();
    });
    // As many as fill the socket and the inbox, which is more than are worked on.
    assert!(asked < ASKED_MAX / 16, "{asked} requests are worked on, and none of the answers taken");
}

#[test]
fn a_client_that_leaves_with_every_place_taken_by_held_writes_is_let_go_and_told_nothing() {
    let (mut client, theirs) = UnixStream::pair().unwrap();
    let hanging_up = theirs.try_clone().unwrap();
    let (device, capture) = held();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let export = Export { name: "vda".into(), description: String::new(), device };
        let agreed = Agreed { export: &export, structured: false, contexts: Vec::new() };
        let served = transmit(&agreed, &theirs, Client::of_process(&theirs));
        drop(theirs);
        tell.send(served.is_ok())
    });
    for cookie in 0..NBD_REQUESTS_IN_FLIGHT_MAX as u64 {
        let mut write = request(command::WRITE, cookie, cookie << 16, 512);
        write.resize(write.len() + 512, 7);
        client.write_all(&write).unwrap();
    }
    while capture.status().writes == 0 {
        std::thread::yield_now();
    }
    // As the agent does when it ends. Nothing more is read from this client, which would tell.
    hanging_up.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(told.recv_timeout(std::time::Duration::from_secs(30)).unwrap(), "it ends, and in order");
    drop(hanging_up);
    let mut said = Vec::new();
    client.read_to_end(&mut said).unwrap();
    assert!(said.is_empty(), "no write is answered that the other side does not have");
    let status = capture.status();
    assert_eq!(status.writes, NBD_REQUESTS_IN_FLIGHT_MAX as u64, "all are made and in the stream");
}
