//! A guest's disk driver at its smallest: one NBD connection, one request at a time, so that a test knows of
//! each write whether it was acknowledged. And the discards of a whole disk, which are many at once.

use crate::guest_files::run_quietly;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

/// What Linux asks for when a guest's `mkfs` or `fstrim` discards a whole disk: 2 GiB at a time, several at once.
const DISCARD_ALL: &str = "
import nbd, os, sys
refused = []
def ended(error):
    if error:
        refused.append(error)
    return 1
h = nbd.NBD()
h.connect_uri(os.environ['URI'])
size = h.get_size()
at = 0
while at < size:
    while h.aio_in_flight() >= 32:
        h.poll(-1)
    h.aio_trim(min(2 << 30, size - at), at, completion=ended)
    at += 2 << 30
while h.aio_in_flight() > 0:
    h.poll(-1)
sys.exit(len(refused) > 0)
";

/// Discards all of an export, as a guest's `mkfs` does.
///
/// # Errors
/// Where a discard is refused, or libnbd's Python is not there.
pub fn discard_all(uri: &str) -> Result<()> {
    // Debian's own Python, which Debian's libnbd is for, whatever other one there may be.
    run_quietly(Command::new("/usr/bin/python3").args(["-c", DISCARD_ALL]).env("URI", uri))
}

/// A connection to an export.
#[derive(Debug)]
pub struct NbdClient {
    stream: UnixStream,
    cookie: u64,
}

impl NbdClient {
    /// Connects to an export on a socket.
    ///
    /// # Errors
    /// Where nobody answers as an NBD server does.
    pub fn connect(socket: &str, export: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).context("read the greeting")?;
        ensure!(&greeting[..16] == b"NBDMAGICIHAVEOPT", "not a newstyle NBD server");
        // Fixed newstyle, no zeroes behind the export's facts.
        stream.write_all(&3u32.to_be_bytes())?;
        // NBD_OPT_EXPORT_NAME.
        let mut option = b"IHAVEOPT".to_vec();
        option.extend(1u32.to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        stream.write_all(&option)?;
        let mut facts = [0; 10];
        stream.read_exact(&mut facts).context("read the export's facts")?;
        Ok(Self { stream, cookie: 0 })
    }

    /// How long an answer may take; none for ever.
    ///
    /// # Errors
    /// Where it cannot be set.
    pub fn set_patience(&self, patience: Option<Duration>) -> Result<()> {
        self.stream.set_read_timeout(patience).context("set a time limit")
    }

    /// Writes, and returns once that is acknowledged.
    ///
    /// # Errors
    /// Where the connection fails or the server says so.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.request(1, at, bytes.len(), bytes)
    }

    /// Reads.
    ///
    /// # Errors
    /// As [`NbdClient::write`].
    pub fn read(&mut self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.request(0, at, buf.len(), &[])?;
        self.stream.read_exact(buf).context("read the data")
    }

    /// Returns once everything that was written is durable.
    ///
    /// # Errors
    /// As [`NbdClient::write`].
    pub fn flush(&mut self) -> Result<()> {
        self.request(3, 0, 0, &[])
    }

    fn request(&mut self, command: u16, at: u64, len: usize, payload: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request).context("send a request")?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).context("read the reply")?;
        ensure!(reply[..4] == 0x6744_6698_u32.to_be_bytes(), "not a simple reply");
        ensure!(reply[8..] == self.cookie.to_be_bytes(), "a reply to another request");
        match u32::from_be_bytes(reply[4..8].try_into()?) {
            0 => Ok(()),
            error => bail!("the server says error {error}"),
        }
    }
}
