//! A client for the agent's API, over its unix socket or mutual TLS on TCP.

use crate::audit::AuditPage;
use crate::changes::*;
use crate::journals::*;
use crate::model::*;
use crate::operations::*;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where the agent is.
#[derive(Debug, Clone)]
pub enum Endpoint {
    Unix(PathBuf),
    /// Host, port, and what to present and to trust.
    Tls {
        host: String,
        port: u16,
        config: Arc<rustls::ClientConfig>,
    },
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers at {place}; start it, or name its socket with `--socket`")]
    Connect {
        place: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection to the agent failed: {0}")]
    Http(String),
    #[error("{}", .0.detail)]
    Refused(Problem),
    #[error("the agent's answer could not be read: {0}")]
    Answer(String),
}

/// How an operation is asked for.
#[derive(Debug, Clone, Default)]
pub struct Asking {
    /// How long the agent waits for its end before it answers, in seconds; without this it answers once it has begun.
    pub wait_seconds: Option<u64>,
    /// Whoever asks for the same again by this gets the same operation.
    pub key: Option<String>,
}

/// What came of asking for an operation.
#[derive(Debug)]
pub enum Begun<T> {
    /// It is done, and this is its answer; or there was nothing to begin.
    Done(T),
    /// It goes on, or how it has ended is in it.
    GoesOn(Box<Operation>),
}

/// Calls the agent's API.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
}

impl Client {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    pub async fn protect(
        &self,
        request: &ProtectRequest,
        asking: &Asking,
    ) -> Result<Begun<ProtectedVm>, ClientError> {
        self.operate(Method::POST, "/v1/vms", Some(body(request)?), asking).await
    }

    pub async fn protected_vm(&self, name: &str) -> Result<ProtectedVm, ClientError> {
        self.get(&format!("/v1/vms/{}", escape(name))).await
    }

    pub async fn pause(&self, name: &str) -> Result<ProtectedVm, ClientError> {
        self.post(&format!("/v1/vms/{}/pause", escape(name)), &()).await
    }

    pub async fn resume(&self, name: &str) -> Result<ProtectedVm, ClientError> {
        self.post(&format!("/v1/vms/{}/resume", escape(name)), &()).await
    }

    pub async fn resync(&self, name: &str) -> Result<ProtectedVm, ClientError> {
        self.post(&format!("/v1/vms/{}/resync", escape(name)), &()).await
    }

    pub async fn verify(&self, name: &str) -> Result<ProtectedVm, ClientError> {
        self.post(&format!("/v1/vms/{}/verify", escape(name)), &()).await
    }

    pub async fn seed(&self, request: &SeedRequest) -> Result<Done, ClientError> {
        self.post("/v1/seeds", request).await
    }

    pub async fn unprotect(&self, name: &str, asking: &Asking) -> Result<Begun<Done>, ClientError> {
        self.operate(Method::DELETE, &format!("/v1/vms/{}", escape(name)), None, asking).await
    }

    pub async fn forget(&self, name: &str, asking: &Asking) -> Result<Begun<Done>, ClientError> {
        self.operate(Method::DELETE, &format!("/v1/recovered/{}", escape(name)), None, asking).await
    }

    pub async fn change_vm(
        &self,
        name: &str,
        request: &ChangeRequest,
        asking: &Asking,
    ) -> Result<Begun<Change>, ClientError> {
        let path = format!("/v1/vms/{}", escape(name));
        self.operate(Method::PATCH, &path, Some(body(request)?), asking).await
    }

    pub async fn change_group(
        &self,
        group: &str,
        request: &GroupChangeRequest,
        asking: &Asking,
    ) -> Result<Begun<Change>, ClientError> {
        let path = format!("/v1/groups/{}", escape(group));
        self.operate(Method::PATCH, &path, Some(body(request)?), asking).await
    }

    pub async fn hand_over(&self, vm: &str, to: &str) -> Result<Done, ClientError> {
        let request = HandOverRequest { to: to.to_owned() };
        self.post(&format!("/v1/recovered/{}/hand-over", escape(vm)), &request).await
    }

    pub async fn groups(&self) -> Result<Vec<Group>, ClientError> {
        self.get("/v1/groups").await
    }

    pub async fn alerts(&self) -> Result<Vec<Alert>, ClientError> {
        self.get("/v1/alerts").await
    }

    pub async fn tag(&self, group: &str, tag: &str) -> Result<Checkpoint, ClientError> {
        let request = TagRequest { tag: tag.to_owned() };
        self.post(&format!("/v1/groups/{}/checkpoints", escape(group)), &request).await
    }

    /// Forgets a host of a group that will not come back.
    pub async fn remove_host(&self, group: &str, host: &str) -> Result<Done, ClientError> {
        let path = format!("/v1/groups/{}/hosts/{}", escape(group), escape(host));
        self.call(Method::DELETE, &path, None).await
    }

    /// A page of checkpoints; `query` is the rest of the query, each part with its `&`.
    pub async fn checkpoints(
        &self,
        vm: &str,
        limit: usize,
        query: &[(&str, &str)],
    ) -> Result<CheckpointPage, ClientError> {
        let query: String = query.iter().map(|(name, value)| format!("&{name}={}", escape(value))).collect();
        self.get(&format!("/v1/recovered/{}/checkpoints?limit={limit}{query}", escape(vm))).await
    }

    pub async fn journal(&self, vm: &str) -> Result<Journal, ClientError> {
        self.get(&format!("/v1/recovered/{}/journal", escape(vm))).await
    }

    pub async fn set_journal(&self, vm: &str, settings: &JournalSettings) -> Result<Journal, ClientError> {
        let path = format!("/v1/recovered/{}/journal", escape(vm));
        self.call(Method::PATCH, &path, Some(body(settings)?)).await
    }

    pub async fn lock_journal(&self, vm: &str, request: &LockRequest) -> Result<Journal, ClientError> {
        let path = format!("/v1/recovered/{}/journal/lock", escape(vm));
        self.post(&path, request).await
    }

    pub async fn lock_group(&self, group: &str, request: &LockRequest) -> Result<Vec<Journal>, ClientError> {
        self.post(&format!("/v1/groups/{}/lock", escape(group)), request).await
    }

    pub async fn ask_to_lift(&self, vm: &str) -> Result<Journal, ClientError> {
        self.post(&format!("/v1/recovered/{}/journal/lock/lift", escape(vm)), &()).await
    }

    pub async fn confirm_lift(&self, vm: &str, id: &str) -> Result<Journal, ClientError> {
        self.post(&format!("/v1/recovered/{}/journal/lock/lift/{}", escape(vm), escape(id)), &()).await
    }

    pub async fn withdraw_lift(&self, vm: &str, id: &str) -> Result<Journal, ClientError> {
        let path = format!("/v1/recovered/{}/journal/lock/lift/{}", escape(vm), escape(id));
        self.call(Method::DELETE, &path, None).await
    }

    pub async fn move_journal(
        &self,
        vm: &str,
        folder: &str,
        asking: &Asking,
    ) -> Result<Begun<Journal>, ClientError> {
        let request = MoveRequest { folder: folder.to_owned() };
        let path = format!("/v1/recovered/{}/journal/move", escape(vm));
        self.operate(Method::POST, &path, Some(body(&request)?), asking).await
    }

    pub async fn pin(&self, vm: &str, request: &PinRequest) -> Result<Pin, ClientError> {
        self.post(&format!("/v1/recovered/{}/pins", escape(vm)), request).await
    }

    pub async fn unpin(&self, vm: &str, id: u64) -> Result<Done, ClientError> {
        self.call(Method::DELETE, &format!("/v1/recovered/{}/pins/{id}", escape(vm)), None).await
    }

    pub async fn promote(
        &self,
        image: &str,
        request: &PromoteRequest,
        asking: &Asking,
    ) -> Result<Begun<Image>, ClientError> {
        let path = format!("/v1/images/{}/promote", escape(image));
        self.operate(Method::POST, &path, Some(body(request)?), asking).await
    }

    pub async fn open_image(&self, request: &OpenImageRequest) -> Result<Image, ClientError> {
        self.post("/v1/images", request).await
    }

    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.get("/v1/images").await
    }

    /// `discard` closes one of a committed failover that is not promoted, with all that was written to it.
    pub async fn close_image(&self, id: &str, discard: bool) -> Result<ClosedImage, ClientError> {
        let query = if discard { "?discard=true" } else { "" };
        self.call(Method::DELETE, &format!("/v1/images/{}{query}", escape(id)), None).await
    }

    pub async fn failover(
        &self,
        group: &str,
        request: &FailoverRequest,
        asking: &Asking,
    ) -> Result<Begun<Failover>, ClientError> {
        let path = format!("/v1/groups/{}/failover", escape(group));
        self.operate(Method::POST, &path, Some(body(request)?), asking).await
    }

    pub async fn commit(&self, group: &str, asking: &Asking) -> Result<Begun<Failover>, ClientError> {
        let path = format!("/v1/groups/{}/failover/commit", escape(group));
        self.operate(Method::POST, &path, Some(body(&())?), asking).await
    }

    pub async fn rollback(&self, group: &str, asking: &Asking) -> Result<Begun<Failover>, ClientError> {
        let path = format!("/v1/groups/{}/failover/rollback", escape(group));
        self.operate(Method::POST, &path, Some(body(&())?), asking).await
    }

    pub async fn pause_failover(&self, group: &str) -> Result<Failover, ClientError> {
        self.post(&format!("/v1/groups/{}/failover/pause", escape(group)), &()).await
    }

    /// A page of operations; `query` has a name and a value for each thing that is wanted.
    pub async fn operations(&self, query: &[(&str, &str)]) -> Result<OperationPage, ClientError> {
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        self.get(&format!("/v1/operations?{}", query.join("&"))).await
    }

    pub async fn operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.get(&format!("/v1/operations/{}", escape(id))).await
    }

    /// An operation at its end, or as it is once so many seconds are over.
    pub async fn wait_for_operation(&self, id: &str, seconds: u64) -> Result<Operation, ClientError> {
        self.get(&format!("/v1/operations/{}?wait={seconds}", escape(id))).await
    }

    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.post(&format!("/v1/operations/{}/cancel", escape(id)), &()).await
    }

    pub async fn leave_operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.post(&format!("/v1/operations/{}/leave", escape(id)), &()).await
    }

    /// A page of the audit record; `query` is the rest of the query.
    pub async fn audit(&self, limit: usize, query: &[(&str, &str)]) -> Result<AuditPage, ClientError> {
        let query: String = query.iter().map(|(name, value)| format!("&{name}={}", escape(value))).collect();
        self.get(&format!("/v1/audit?limit={limit}{query}")).await
    }

    /// A PNG.
    pub async fn screenshot(&self, group: &str, vm: &str) -> Result<Bytes, ClientError> {
        let path = format!("/v1/groups/{}/failover/vms/{}/screenshot", escape(group), escape(vm));
        Ok(self.fetch(Method::GET, &path, None, None).await?.1)
    }

    pub async fn resume_failover(&self, group: &str) -> Result<Failover, ClientError> {
        self.post(&format!("/v1/groups/{}/failover/resume", escape(group)), &()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, Some(body(request)?)).await
    }

    /// Asks for what may begin an operation.
    async fn operate<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        asking: &Asking,
    ) -> Result<Begun<T>, ClientError> {
        let wait = asking.wait_seconds.map_or_else(String::new, |seconds| format!("?wait={seconds}"));
        let key = asking.key.as_deref();
        match self.fetch(method, &format!("{path}{wait}"), body, key).await? {
            (StatusCode::ACCEPTED, answer) => Ok(Begun::GoesOn(Box::new(read(&answer)?))),
            (_, answer) => Ok(Begun::Done(read(&answer)?)),
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        read(&self.fetch(method, path, body, None).await?.1)
    }

    async fn fetch(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        key: Option<&str>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        match &self.endpoint {
            Endpoint::Unix(socket) => {
                let place = socket.display().to_string();
                let stream = UnixStream::connect(socket)
                    .await
                    .map_err(|source| ClientError::Connect { place, source })?;
                exchange(stream, method, path, body, key).await
            }
            Endpoint::Tls { host, port, config } => {
                let place = format!("{host}:{port}");
                let failed = |source| ClientError::Connect { place: place.clone(), source };
                let name =
                    ServerName::try_from(host.clone()).map_err(|error| failed(io::Error::other(error)))?;
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                let connector = TlsConnector::from(config.clone());
                let stream = connector.connect(name, stream).await.map_err(failed)?;
                exchange(stream, method, path, body, key).await
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    key: Option<&str>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let http = |error: hyper::Error| ClientError::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(connection);
    let head = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "holdfast")
        .header("content-type", "application/json");
    let head = key.into_iter().fold(head, |head, key| head.header("idempotency-key", key));
    let request = head
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| ClientError::Http(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(http)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| ClientError::Answer(error.to_string()))?
        .to_bytes();
    if !status.is_success() {
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| problem_of(status, &body));
        return Err(ClientError::Refused(problem));
    }
    Ok((status, body))
}

fn body(request: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(request).map_err(|error| ClientError::Answer(error.to_string()))
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(answer).map_err(|error| ClientError::Answer(error.to_string()))
}

fn problem_of(status: StatusCode, body: &[u8]) -> Problem {
    Problem {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("error").into(),
        status: status.as_u16(),
        detail: format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)])),
    }
}

/// Percent-encodes everything but unreserved characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
