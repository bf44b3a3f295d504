//! Errors as problem documents, bodies that have to arrive in time, and operations run beside the sockets.

use crate::error::{ErrorKind, OperationError};
use api::Problem;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use types::limits::API_BODY_TIMEOUT;

/// An operation's error on its way out.
#[derive(Debug)]
pub(super) struct ApiError(OperationError);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        Self(error)
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(OperationError::invalid(rejection.body_text()))
    }
}

/// A JSON body whose faults are problem documents too. It arrives in time, or its connection is given up.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let arrived = timeout(API_BODY_TIMEOUT, Json::<T>::from_request(request, state)).await;
        let Json(body) = arrived.map_err(|_| {
            let seconds = API_BODY_TIMEOUT.as_secs();
            OperationError::invalid(format!("the request's body did not arrive within {seconds} s"))
        })??;
        Ok(Self(body))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind, title) = match self.0.kind {
            ErrorKind::Invalid | ErrorKind::InUse => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request is not valid")
            }
            ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict", "It does not fit the present state"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not possible now"),
            ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something broke"),
        };
        if self.0.kind == ErrorKind::Internal {
            tracing::error!(error = self.0.detail, "request failed");
        }
        let problem = Problem {
            kind: format!("about:blank#{kind}"),
            title: title.into(),
            status: status.as_u16(),
            detail: self.0.detail,
        };
        let mut response = (status, Json(problem)).into_response();
        let content_type = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// Runs what waits for disks or processes on a thread of its own.
pub(super) async fn beside<T: Send + 'static>(
    operation: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let handle = tokio::runtime::Handle::current();
    let run = move || {
        let _entered = handle.enter();
        operation()
    };
    match tokio::task::spawn_blocking(run).await {
        Ok(result) => result.map_err(ApiError),
        Err(_) => Err(ApiError(OperationError::unavailable("the agent is stopping"))),
    }
}
