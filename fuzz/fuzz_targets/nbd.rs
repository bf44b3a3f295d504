//! An NBD client that says anything: in the handshake, or once an export was picked.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use splitter::nbd::{BeforeTls, Export, Next, serve_greeted};
use splitter::{BlockDevice, Client, Extent, ExtentKind};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use types::ByteRange;

const SIZE: u64 = 1 << 20;

/// A disk in memory.
struct Memory(Mutex<Vec<u8>>);

impl BlockDevice for Memory {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[at as usize..at as usize + buf.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        self.0.lock().unwrap()[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.0.lock().unwrap()[range.start as usize..range.end() as usize].fill(0);
        Ok(())
    }

    fn zeroes_fast(&self) -> bool {
        false
    }

    fn cache(&self, range: ByteRange) -> io::Result<()> {
        assert!(range.fits(SIZE));
        Ok(())
    }

    fn unsent(&self, range: ByteRange, _most: usize) -> Option<Vec<(ByteRange, bool)>> {
        Some(vec![(range, true)])
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        assert!(range.fits(SIZE));
        Ok(vec![Extent { range, kind: ExtentKind::Data }])
    }
}

/// A client that says this before TLS, and then nothing more.
fn before_tls(mut said: &[u8]) {
    let (mut greeting, _) = BeforeTls::begin();
    loop {
        let wanted = greeting.wants();
        assert!((1..=BeforeTls::WANTS_MAX).contains(&wanted));
        if said.len() < wanted {
            return;
        }
        match greeting.take(&said[..wanted]) {
            Ok(step) if step.next == Next::More => said = &said[wanted..],
            _ => return,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, said)) = bytes.split_first() else { return };
    if how == 0 {
        before_tls(said);
        return;
    }
    let device = Arc::new(Memory(Mutex::new(vec![7; SIZE as usize])));
    let exports = [Export { name: "vda".into(), description: "a disk".into(), device }];
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut replies = client.try_clone().unwrap();
    // What is answered has to be taken, or nothing more would be.
    let taking = std::thread::spawn(move || io::copy(&mut replies, &mut io::sink()));
    let mut message = Vec::new();
    if how != 1 {
        // NBD_OPT_EXPORT_NAME: the rest is requests.
        message.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vda");
    }
    message.extend_from_slice(&said[..said.len().min(64 << 10)]);
    let speaking = std::thread::spawn(move || {
        let _ = client.write_all(&message);
        let _ = client.shutdown(std::net::Shutdown::Write);
    });
    let _ = serve_greeted(&server, 3, &exports, Client::named("a fuzzer"), |_| Ok(()));
    drop(server);
    speaking.join().unwrap();
    let _ = taking.join();
});
