//! Routes of locks on what is kept here: of a VM's history, and of those of a group.

use super::App;
use super::answer::{Answer, Body, beside};
use super::guard::Guarded;
use crate::rights::Caller;
use crate::rights::Role::Admin;
use api::{Journal, LockRequest, Problem};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use utoipa_axum::routes;

pub(super) fn routes() -> Guarded {
    Guarded::new()
        .needs(Admin, routes!(lock_journal))
        .needs(Admin, routes!(lock_group))
        .needs(Admin, routes!(ask_to_lift))
        .needs(Admin, routes!(confirm_lift, withdraw_lift))
}

/// Locks a kept VM's history until a date, or makes its lock longer. Nothing of it goes before.
#[utoipa::path(post, path = "/v1/recovered/{name}/journal/lock", params(("name" = String, Path)),
    request_body = LockRequest, responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn lock_journal(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(request): Body<LockRequest>,
) -> Answer<Journal> {
    beside(move || app.recovery.lock_journal(&name, &request, &caller.person().who)).await.map(Json)
}

/// The same of all VMs whose journals are kept of a group now; of one that joins it later it is asked for anew.
#[utoipa::path(post, path = "/v1/groups/{group}/lock", params(("group" = String, Path)),
    request_body = LockRequest, responses(
    (status = 200, body = [Journal]),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn lock_group(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(group): Path<String>,
    Body(request): Body<LockRequest>,
) -> Answer<Vec<Journal>> {
    beside(move || app.recovery.lock_group(&group, &request, &caller.person().who)).await.map(Json)
}

/// Asks that the lock of a VM's history be lifted. It stands until another person confirms that, for a day.
#[utoipa::path(post, path = "/v1/recovered/{name}/journal/lock/lift", params(("name" = String, Path)), responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn ask_to_lift(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Journal> {
    beside(move || app.recovery.ask_to_lift(&name, &caller.person())).await.map(Json)
}

/// Lifts the lock of a VM's history, as another person has asked.
#[utoipa::path(post, path = "/v1/recovered/{name}/journal/lock/lift/{id}",
    params(("name" = String, Path), ("id" = String, Path)), responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn confirm_lift(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((name, id)): Path<(String, String)>,
) -> Answer<Journal> {
    beside(move || app.recovery.confirm_lift(&name, &id, &caller.person())).await.map(Json)
}

/// Takes a request to lift a lock back.
#[utoipa::path(delete, path = "/v1/recovered/{name}/journal/lock/lift/{id}",
    params(("name" = String, Path), ("id" = String, Path)), responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn withdraw_lift(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((name, id)): Path<(String, String)>,
) -> Answer<Journal> {
    beside(move || app.recovery.withdraw_lift(&name, &id, &caller.person())).await.map(Json)
}
