//! Requests to an agent's API as other programs make them: over TCP with a certificate, and on the socket as a user.

use lab::Site;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// What an agent has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Answer {
    /// The words of a problem.
    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

/// Issues a certificate of a site, whose files are called `name`.
pub(crate) fn issue(site: &Site, arguments: &[&str]) {
    let output =
        site.command().args(["pki", "issue", "--dir"]).arg(site.pki()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A connection to the API of a site, with the certificate and key that are called `name`.
pub(crate) struct Connection(StreamOwned<ClientConnection, TcpStream>);

impl Connection {
    pub(crate) fn open(site: &Site, name: &str, port: u16) -> Self {
        let pki = site.pki();
        let read = |name: &str| CertificateDer::pem_file_iter(pki.join(name)).unwrap().map(Result::unwrap);
        let mut roots = RootCertStore::empty();
        read("ca.pem").for_each(|root| roots.add(root).unwrap());
        let certificates = read(&format!("{name}.pem")).collect();
        let key = PrivateKeyDer::from_pem_file(pki.join(format!("{name}.key"))).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates, key)
            .unwrap();
        let host = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(Arc::new(config), host).unwrap();
        Self(StreamOwned::new(tls, TcpStream::connect(("127.0.0.1", port)).unwrap()))
    }

    /// The certificate that the agent shows.
    pub(crate) fn shown(mut self) -> CertificateDer<'static> {
        assert_eq!(self.ask("GET", "/v1/status", "").unwrap().status, 200);
        self.0.conn.peer_certificates().unwrap()[0].clone()
    }

    /// Asks for something; the connection stays.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        exchange(&mut self.0, method, path, body)
    }
}

/// The same on the socket, as whoever runs this.
pub(crate) fn ask_socket(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    exchange(&mut UnixStream::connect(socket).unwrap(), method, path, body).unwrap()
}

fn exchange(stream: &mut (impl Read + Write), method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    stream.flush()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?.to_ascii_lowercase();
    let len = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; len.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
    Ok(Answer { status, head, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// Debian's own.
const PYTHON: &str = "/usr/bin/python3";
const CLIENT: &str = "
import http.client, socket, sys
class Local(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
try:
    local = Local('holdfast')
    local.request(sys.argv[2], sys.argv[3])
    answer = local.getresponse()
    print(answer.status, answer.read().decode())
except OSError as error:
    print(0, error.errno)
";

/// The same as a user whom this host does not know, of this group and these others: the status, 0 for none, and what was
/// said.
pub(crate) fn ask_as(group: u32, others: &[u32], socket: &Path, method: &str, path: &str) -> (u16, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65533", "--regid", &group.to_string()]);
    match others {
        [] => command.arg("--clear-groups"),
        others => {
            let others: Vec<_> = others.iter().map(u32::to_string).collect();
            command.args(["--groups", &others.join(",")])
        }
    };
    command.args([PYTHON, "-c", CLIENT]).arg(socket).args([method, path]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (status, rest) = said.split_once(' ').unwrap_or_else(|| panic!("{output:?}"));
    (status.parse().unwrap(), rest.trim().to_owned())
}
