//! One end of a stream in this process, with a valid certificate and no manners: it says whatever it is told to, in frames
//! that may be wrong in any way.

use agent::pki::Pki;
use replication::wire::{FrameReader, FrameWriter, HEADER_BYTES, Message};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Nobody takes longer to say something, or to hang up, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is said: the bytes of one message, as they are or to be numbered first.
#[derive(Debug, Clone)]
pub(super) enum Said {
    /// It gets the number that is due, and a checksum.
    Numbered(Vec<u8>),
    /// Just so.
    Raw(Vec<u8>),
}

impl From<&Message> for Said {
    fn from(message: &Message) -> Self {
        let (header, body) = FrameWriter::default().encode(message);
        Self::Numbered([&header[..], &body.joined()].concat())
    }
}

/// A frame with its number, and a checksum over what it has become.
pub(super) fn numbered(frame: &[u8], number: u64) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[16..24].copy_from_slice(&number.to_le_bytes());
    frame[24..28].fill(0);
    let crc = crc32c::crc32c(&frame);
    frame[24..28].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    /// It has hung up, in whatever way.
    End,
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

pub(super) struct Peer {
    wire: Box<dyn Wire>,
    said: u64,
    frames: FrameReader,
}

impl Peer {
    /// Connects to an agent, with the certificate of the folder's site.
    pub(super) fn connect(pki: &Path, port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let config = Pki::new(pki).client().unwrap();
        let tls = ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
        Self::new(StreamOwned::new(tls, stream))
    }

    /// Takes a connection of an agent; none where it does not shake hands.
    pub(super) fn accept(config: &Arc<ServerConfig>, stream: TcpStream) -> Option<Self> {
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).ok()?, stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).ok()?;
        }
        Some(Self::new(tls))
    }

    fn new(wire: impl Wire + 'static) -> Self {
        Self { wire: Box::new(wire), said: 0, frames: FrameReader::default() }
    }

    /// Says something. That it cannot be said any more is for whoever listens.
    pub(super) fn say(&mut self, said: &Said) {
        let bytes = match said {
            Said::Numbered(frame) => {
                self.said += 1;
                numbered(frame, self.said)
            }
            Said::Raw(bytes) => bytes.clone(),
        };
        let _ = self.wire.write_all(&bytes).and_then(|()| self.wire.flush());
    }

    pub(super) fn tell(&mut self, message: &Message) {
        self.say(&message.into());
    }

    /// The next message.
    ///
    /// # Panics
    /// Where neither that comes nor an end.
    pub(super) fn hear(&mut self) -> Heard {
        let mut header = [0; HEADER_BYTES];
        if let Err(error) = self.wire.read_exact(&mut header) {
            return ended(&error);
        }
        let header = self.frames.header(&header).unwrap();
        let mut body = vec![0; header.body_len];
        match self.wire.read_exact(&mut body) {
            Ok(()) => Heard::Message(self.frames.message(&header, body.into()).unwrap()),
            Err(error) => ended(&error),
        }
    }

    /// Listens until something comes that `wanted` takes; none where the connection ends before.
    pub(super) fn hear_until<T>(&mut self, mut wanted: impl FnMut(Message) -> Option<T>) -> Option<T> {
        loop {
            match self.hear() {
                Heard::Message(message) => {
                    if let Some(found) = wanted(message) {
                        return Some(found);
                    }
                }
                Heard::End => return None,
            }
        }
    }
}

fn ended(error: &io::Error) -> Heard {
    let waits = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    assert!(!waits, "the agent neither answers nor hangs up");
    Heard::End
}

/// TLS for agents that connect, with the certificate of the folder's site.
pub(super) fn server(pki: &Path) -> Arc<ServerConfig> {
    let certificates = CertificateDer::pem_file_iter(pki.join("agent.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.join("agent.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key);
    Arc::new(config.unwrap())
}
