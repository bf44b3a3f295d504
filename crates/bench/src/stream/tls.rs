//! The limit of the transport: the same TLS library moving bytes over loopback in one stream.

use super::pair::trust;
use crate::clock::Rate;
use agent::claimed::Claimed;
use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, Stream};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

const CHUNK: usize = 64 << 10;

/// Of `bytes`, encrypted by one thread and decrypted by another.
pub(super) fn one_stream(folder: &Path, bytes: u64) -> Result<Rate> {
    std::fs::create_dir_all(folder).context("make a folder")?;
    let _ = std::fs::remove_dir_all(folder.join("ours"));
    let _ = std::fs::remove_dir_all(folder.join("theirs"));
    let (ours, theirs) = trust(folder)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr()?;
    let (client, server) = (ours.client()?, theirs.stream_server(&Claimed::default())?);
    let receiving = std::thread::spawn(move || -> Result<u64> {
        let (mut socket, _) = listener.accept().context("accept")?;
        let mut tls = ServerConnection::new(server)?;
        let mut stream = Stream::new(&mut tls, &mut socket);
        let mut buf = vec![0; CHUNK];
        let mut received = 0;
        while received < bytes {
            received += stream.read(&mut buf).context("read")? as u64;
        }
        stream.write_all(&[1]).context("answer")?;
        Ok(received)
    });
    let mut socket = TcpStream::connect(address).context("connect")?;
    socket.set_nodelay(true)?;
    let mut tls = ClientConnection::new(client, ServerName::try_from("localhost")?)?;
    tls.set_buffer_limit(Some(1 << 20));
    let payload = vec![0x5a; CHUNK];
    let rate = Rate::of(bytes, || {
        let mut stream = Stream::new(&mut tls, &mut socket);
        for _ in 0..bytes / CHUNK as u64 {
            stream.write_all(&payload).context("write")?;
        }
        stream.flush()?;
        let mut done = [0];
        stream.read_exact(&mut done).context("hear that all has come")
    })?;
    receiving.join().expect("a panic aborts the process")?;
    Ok(rate)
}
