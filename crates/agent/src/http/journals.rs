//! Routes of journals: looking, setting, pinning, moving; promotion of images.

use super::App;
use super::answer::{Answer, Body, beside};
use super::asked::{Asked, KeyHeader, WaitQuery};
use super::guard::Guarded;
use super::operate::{Operated, operate};
use crate::ledger::Asker;
use crate::rights::Role::{Admin, Builder, Operator, Viewer};
use api::{
    Done, Image, Journal, JournalSettings, MoveRequest, Operation, Pin, PinRequest, Problem, PromoteRequest,
};
use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::routes;

pub(super) fn routes() -> Guarded {
    Guarded::new()
        .needs(Viewer, routes!(show_journal))
        .needs(Admin, routes!(set_journal))
        .needs(Builder, routes!(move_journal))
        .needs(Operator, routes!(pin))
        .needs(Builder, routes!(unpin))
        .needs(Operator, routes!(promote))
}

/// The journal of a kept VM, in full.
#[utoipa::path(get, path = "/v1/recovered/{name}/journal", params(("name" = String, Path)), responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn show_journal(State(app): State<App>, Path(name): Path<String>) -> Answer<Journal> {
    beside(move || app.recovery.show_journal(&name)).await.map(Json)
}

/// Changes settings of a journal.
#[utoipa::path(patch, path = "/v1/recovered/{name}/journal", params(("name" = String, Path)),
    request_body = JournalSettings, responses(
    (status = 200, body = Journal),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn set_journal(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(settings): Body<JournalSettings>,
) -> Answer<Journal> {
    beside(move || app.recovery.set_journal(&name, &settings)).await.map(Json)
}

/// Moves a journal to another folder.
#[utoipa::path(post, path = "/v1/recovered/{name}/journal/move", params(("name" = String, Path), WaitQuery, KeyHeader),
    request_body = MoveRequest, responses(
    (status = 200, body = Journal),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn move_journal(
    State(app): State<App>,
    asked: Asked,
    Path(name): Path<String>,
    Body(request): Body<MoveRequest>,
) -> Operated {
    let (word, folder) = (name.clone(), request.folder.clone());
    let work = move |app: &App, asker: &Asker| app.recovery.move_journal(&word, &folder, asker).map(Some);
    operate(app, asked, &request, work, move |app| app.recovery.show_journal(&name)).await
}

/// Pins a cut of a kept VM, so that retention leaves it.
#[utoipa::path(post, path = "/v1/recovered/{name}/pins", params(("name" = String, Path)),
    request_body = PinRequest, responses(
    (status = 200, body = Pin),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn pin(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(request): Body<PinRequest>,
) -> Answer<Pin> {
    beside(move || app.recovery.pin(&name, &request)).await.map(Json)
}

/// Takes a pin away.
#[utoipa::path(delete, path = "/v1/recovered/{name}/pins/{id}",
    params(("name" = String, Path), ("id" = u64, Path)), responses(
    (status = 200, body = Done),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn unpin(State(app): State<App>, Path((name, id)): Path<(String, u64)>) -> Answer<Done> {
    beside(move || app.recovery.unpin(&name, id)).await?;
    Ok(Json(Done::as_asked()))
}

/// Turns a writable image into plain disks, while it is used.
#[utoipa::path(post, path = "/v1/images/{id}/promote", params(("id" = String, Path), WaitQuery, KeyHeader),
    request_body = PromoteRequest, responses(
    (status = 200, body = Image),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn promote(
    State(app): State<App>,
    asked: Asked,
    Path(id): Path<String>,
    Body(request): Body<PromoteRequest>,
) -> Operated {
    let (image, wanted) = (id.clone(), request.clone());
    // What cannot be done now is tried again by itself, and waited for.
    let work = move |app: &App, asker: &Asker| {
        app.recovery.promote_image(&image, &wanted, asker)?;
        Ok(None)
    };
    operate(app, asked, &request, work, move |app| app.recovery.show_image(&id)).await
}
