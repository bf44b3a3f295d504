//! Each change comes into the audit record on its way in, and its end on its way out.

use super::answer::ApiError;
use crate::audit::Audit;
use crate::error::OperationError;
use crate::rights::Caller;
use axum::extract::Request;
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Where an answer names the operation that goes on.
const OPERATIONS: &str = "/v1/operations/";

/// Whether a request is for a change.
pub(super) fn is_change(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Lets a change through once it stands in the record.
pub(super) async fn record(caller: Caller, request: Request, next: Next) -> Response {
    let Some(audit) = request.extensions().get::<Arc<Audit>>().cloned() else {
        return ApiError::from(OperationError::unavailable("there is no audit record")).into_response();
    };
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    match audit.begin(&caller, request.method().as_str(), &path).await {
        Ok(begun) => {
            let response = next.run(request).await;
            begun.end(response.status().as_u16(), operation(&response));
            response
        }
        Err(error) => ApiError::from(error).into_response(),
    }
}

fn operation(response: &Response) -> Option<String> {
    let place = response.headers().get(header::LOCATION)?.to_str().ok()?;
    place.strip_prefix(OPERATIONS).map(str::to_owned)
}
