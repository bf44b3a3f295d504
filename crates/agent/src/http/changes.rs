//! Routes that change what goes on: protections, groups, and whose a kept VM is.

use super::App;
use super::answer::{Answer, Body, beside};
use super::asked::{Asked, KeyHeader, WaitQuery};
use super::guard::Guarded;
use super::operate::{Operated, operate};
use crate::ledger::Asker;
use crate::rights::Role::Builder;
use api::{Change, ChangeRequest, Done, GroupChangeRequest, HandOverRequest, Operation, Problem};
use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::routes;

pub(super) fn routes() -> Guarded {
    Guarded::new()
        .needs(Builder, routes!(change_vm))
        .needs(Builder, routes!(change_group))
        .needs(Builder, routes!(hand_over))
}

/// Changes what a VM's protection is kept to, at once and with its history kept.
#[utoipa::path(patch, path = "/v1/vms/{name}", params(("name" = String, Path), WaitQuery, KeyHeader),
    request_body = ChangeRequest, responses(
    (status = 200, body = Change),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn change_vm(
    State(app): State<App>,
    asked: Asked,
    Path(name): Path<String>,
    Body(request): Body<ChangeRequest>,
) -> Operated {
    let wanted = request.clone();
    let work = move |app: &App, asker: &Asker| app.source.change_vm(&name, &wanted, asker).map(Some);
    operate(app, asked, &request, work, changed_before).await
}

/// Changes what all VMs of a group are kept to that are protected on this host.
#[utoipa::path(patch, path = "/v1/groups/{group}", params(("group" = String, Path), WaitQuery, KeyHeader),
    request_body = GroupChangeRequest, responses(
    (status = 200, body = Change),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn change_group(
    State(app): State<App>,
    asked: Asked,
    Path(group): Path<String>,
    Body(request): Body<GroupChangeRequest>,
) -> Operated {
    let wanted = request.clone();
    let work = move |app: &App, asker: &Asker| app.source.change_group(&group, &wanted, asker).map(Some);
    operate(app, asked, &request, work, changed_before).await
}

/// What whoever asks again is told once it is done: what it was before is what the operation has.
fn changed_before(_: &App) -> crate::error::Result<Change> {
    Ok(Change {
        is_done: true,
        vms: Vec::new(),
        notes: vec!["it is changed, as it was asked for before".into()],
    })
}

/// Hands a kept VM over to another agent of its site, which sends it from now on.
#[utoipa::path(post, path = "/v1/recovered/{name}/hand-over", params(("name" = String, Path)),
    request_body = HandOverRequest, responses(
    (status = 200, body = Done),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn hand_over(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(request): Body<HandOverRequest>,
) -> Answer<Done> {
    let what = beside(move || app.recovery.hand_over(&name, &request.to)).await?;
    Ok(Json(Done { done: true, what: Some(what) }))
}
