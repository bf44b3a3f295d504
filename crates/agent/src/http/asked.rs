//! How an operation is asked for: how long whoever asks waits for its end, and what he calls his request.
//!
//! What holds: of requests with the same name one at a time is looked at, until what it begins is recorded. So asking twice
//! begins an operation once.

use super::answer::ApiError;
use crate::error::OperationError;
use axum::extract::{FromRequestParts, Query};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use operations::RequestKey;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::limits::{OPERATION_REQUESTS_MAX, OPERATION_WAIT_SECONDS_MAX};
use utoipa::IntoParams;

const KEY_HEADER: &str = "idempotency-key";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// Wait so many seconds for the operation's end, 0 to 3600; without it the answer is there once it has begun.
    #[param(required = false)]
    wait: Option<u64>,
}

impl WaitQuery {
    pub(super) fn to_wait(&self) -> Result<Option<Duration>, OperationError> {
        match self.wait {
            Some(seconds) if seconds > OPERATION_WAIT_SECONDS_MAX => Err(OperationError::invalid(format!(
                "wait={seconds}: one request waits {OPERATION_WAIT_SECONDS_MAX} s at most; wait again with \
                 `/v1/operations/ID?wait=…`, or ask for the same with the same idempotency key"
            ))),
            seconds => Ok(seconds.map(Duration::from_secs)),
        }
    }
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "what the document says of a header")]
pub(super) struct KeyHeader {
    /// A name of 1 to 128 bytes for this request: whoever asks for the same again by it gets the same operation.
    #[param(rename = "idempotency-key", required = false)]
    idempotency_key: Option<String>,
}

/// What a request says of how it asks.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) wait: Option<Duration>,
    key: Option<String>,
    /// What is asked for, but for the body.
    line: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::<WaitQuery>::try_from_uri(&parts.uri);
        let Query(query) = query.map_err(|rejection| OperationError::invalid(rejection.body_text()))?;
        let line = format!("{} {}", parts.method, parts.uri.path());
        Ok(Self { wait: query.to_wait()?, key: key_of(&parts.headers)?, line })
    }
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, OperationError> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => key.to_str().map(|key| Some(key.to_owned())).map_err(|_| {
            OperationError::invalid("an idempotency key is made of letters, digits and signs of ASCII")
        }),
        (Some(_), Some(_)) => Err(OperationError::invalid("a request has one idempotency key")),
    }
}

impl Asked {
    /// The name of the request, with the request, of which a digest is enough to know it again.
    pub(super) fn key(&self, body: &impl Serialize) -> anyhow::Result<Option<RequestKey>> {
        let Some(key) = self.key.clone() else { return Ok(None) };
        let body = serde_json::to_vec(body)?;
        let mut digest = blake3::Hasher::new();
        digest.update(self.line.as_bytes()).update(b"\n").update(&body);
        Ok(Some(RequestKey { key, request: format!("blake3:{}", digest.finalize().to_hex()) }))
    }
}

/// The requests that have begun nothing yet.
#[derive(Debug)]
pub(crate) struct Requests {
    keys: Arc<Mutex<BTreeSet<String>>>,
    places: Arc<Semaphore>,
}

/// Of one of them.
struct Place {
    keys: Arc<Mutex<BTreeSet<String>>>,
    key: Option<String>,
    _place: OwnedSemaphorePermit,
}

impl Default for Requests {
    fn default() -> Self {
        Self { keys: Arc::default(), places: Arc::new(Semaphore::new(OPERATION_REQUESTS_MAX)) }
    }
}

impl Requests {
    /// A place for a request, once there is one; kept until it has begun something, or is refused.
    ///
    /// # Errors
    /// Where another request of that name has one.
    pub(super) async fn enter(
        &self,
        key: Option<&RequestKey>,
    ) -> Result<Box<dyn Any + Send>, OperationError> {
        let place = self.places.clone().acquire_owned().await.expect("it is never closed");
        let key = key.map(|key| key.key.clone());
        let taken = |key: &String| !self.keys.lock().expect("a panic aborts the process").insert(key.clone());
        if let Some(key) = key.as_ref().filter(|key| taken(key)) {
            return Err(OperationError::conflict(format!(
                "a request with the idempotency key {key:?} is being looked at just now: try again in a moment"
            )));
        }
        Ok(Box::new(Place { keys: self.keys.clone(), key, _place: place }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.keys.lock().expect("a panic aborts the process").remove(key);
        }
    }
}
