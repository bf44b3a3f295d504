//! Who keeps whom out at the API's door over TCP.

use super::*;
use crate::pki::Wanted;
use crate::rights::Purpose;
use crate::tls::operator_client;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

struct Stage {
    folder: tempfile::TempDir,
    pki: Pki,
    address: SocketAddr,
}

impl Stage {
    async fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new(folder.path());
        pki.init("berlin").unwrap();
        pki.issue("host-1", "agent", &["localhost".into()], 30).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        tokio::spawn(accept(listener, router, pki.clone()));
        Self { folder, pki, address }
    }

    fn issue(&self, name: &str, purpose: Purpose) {
        let wanted = Wanted { name: name.into(), purpose, hosts: Vec::new(), days: 30 };
        self.pki.issue_for(&wanted, name).unwrap();
    }

    async fn connect(&self, name: &str) -> ClientStream<TcpStream> {
        let file = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        let config = operator_client(&self.pki.file("ca.pem"), &file("pem"), &file("key")).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(config).connect(host, stream).await.unwrap()
    }
}

/// Whether a connection is answered, and stands on; one that is not taken is closed.
async fn is_answered(stream: &mut ClientStream<TcpStream>) -> bool {
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let mut answer = [0; 4096];
    match asked {
        Ok(()) => {
            stream.read(&mut answer).await.is_ok_and(|read| answer[..read].starts_with(b"HTTP/1.1 200"))
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_looks_or_has_no_role_keeps_no_operator_out_however_many_connections_he_makes() {
    let stage = Stage::set().await;
    stage.issue("hypervisor-7", Purpose::Client(vec!["web".into()]));
    stage.issue("anna", Purpose::Operator(Role::Operator));
    let viewers: Vec<_> = (0..=API_CONNECTIONS_MAX / 2 / API_CONNECTIONS_OF_ONE_MAX)
        .map(|number| format!("viewer-{number}"))
        .collect();
    let mut kept = Vec::new();
    for viewer in &viewers {
        stage.issue(viewer, Purpose::Operator(Role::Viewer));
        let mut taken = 0;
        for _ in 0..API_CONNECTIONS_OF_ONE_MAX + 4 {
            let mut connection = stage.connect(viewer).await;
            taken += usize::from(is_answered(&mut connection).await);
            kept.push(connection);
        }
        assert!(taken <= API_CONNECTIONS_OF_ONE_MAX, "{viewer} has {taken}");
    }
    for _ in 0..API_CONNECTIONS_MAX {
        kept.push(stage.connect("hypervisor-7").await);
    }
    let mut anna = stage.connect("anna").await;
    assert!(timeout(Duration::from_secs(60), is_answered(&mut anna)).await.unwrap());
}
