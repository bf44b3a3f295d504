//! Clients that ask and do not take the answers.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::device::Extent;
use crate::nbd::server::Export;
use bytes::Bytes;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

const SIZE: u64 = 1 << 30;
/// Requests that the test would send; their answers are many times what may be kept.
const ASKED_MAX: usize = 1 << 20;

/// Every second 64 KiB is a hole.
#[derive(Debug)]
struct Fragmented;

impl BlockDevice for Fragmented {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _at: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write(&self, _at: u64, _bytes: Bytes) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _range: ByteRange, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
    fn zeroes_fast(&self) -> bool {
        true
    }
    fn cache(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn unsent(&self, _range: ByteRange, _most: usize) -> Option<Vec<(ByteRange, bool)>> {
        None
    }
    fn discard(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let kind = |at: u64| if at.is_multiple_of(1 << 17) { ExtentKind::Hole } else { ExtentKind::Data };
        let pieces = range.split_at_multiples(1 << 16);
        Ok(pieces.map(|range| Extent { range, kind: kind(range.start) }).collect())
    }
    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        assert!(most <= EXTENTS_MAX, "no more is looked at than is told");
        Ok(self.extents(range)?.into_iter().take(most).collect())
    }
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
        let device = Arc::new(Fragmented);
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
