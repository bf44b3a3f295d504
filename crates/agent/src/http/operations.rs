//! Routes of operations: looking, cancelling.

use super::App;
use super::answer::{Answer, beside};
use crate::error::OperationError;
use api::{Operation, Problem};
use axum::Json;
use axum::extract::{Path, State};
use operations::OperationId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_operations))
        .routes(routes!(show_operation))
        .routes(routes!(cancel_operation))
}

/// What goes on at this agent, and what has ended lately; the newest first.
#[utoipa::path(get, path = "/v1/operations", responses((status = 200, body = [Operation])))]
async fn list_operations(State(app): State<App>) -> Answer<Vec<Operation>> {
    let mut all = app.recovery.list_operations();
    all.extend(app.source.list_operations());
    all.sort_by(|one, other| (&other.began_at, &other.id).cmp(&(&one.began_at, &one.id)));
    Ok(Json(all))
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Operation),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn show_operation(State(app): State<App>, Path(id): Path<String>) -> Answer<Operation> {
    let show = |id| app.recovery.show_operation(id).or_else(|| app.source.show_operation(id));
    let found = parse(&id).and_then(show);
    Ok(Json(found.ok_or_else(|| no_such(&id))?))
}

/// Has an operation taken back, where there is a way back; answers once that is asked for.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, body = Operation),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn cancel_operation(State(app): State<App>, Path(id): Path<String>) -> Answer<Operation> {
    let cancel = move || {
        let parsed = parse(&id).ok_or_else(|| no_such(&id))?;
        let found = match app.recovery.cancel_operation(parsed)? {
            Some(found) => Some(found),
            None => app.source.cancel_operation(parsed)?,
        };
        found.ok_or_else(|| no_such(&id))
    };
    beside(cancel).await.map(Json)
}

fn parse(word: &str) -> Option<OperationId> {
    word.parse().ok()
}

fn no_such(word: &str) -> OperationError {
    OperationError::not_found(format!(
        "there is no operation {word:?}; `holdfast operation list` shows those that are known"
    ))
}
