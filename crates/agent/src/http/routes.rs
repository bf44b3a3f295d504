//! Every route, with the role it needs and what OpenAPI says of it.

use super::App;
use super::answer::{Answer, ApiError, Body, beside};
use super::asked::{Asked, KeyHeader, WaitQuery};
use super::guard::{Guarded, guard};
use super::operate::{Operated, operate};
use super::refused::RefusedLog;
use crate::clock;
use crate::error::OperationError;
use crate::ledger::Asker;
use crate::recovery::checkpoint_to_api;
use crate::rights::Role::{Admin, Builder, Operator, Viewer};
use crate::source::Command;
use api::{
    Alert, CheckpointPage, ClosedImage, Done, Failover, FailoverRequest, Image, OpenImageRequest, Operation,
    Problem, ProtectRequest, ProtectedVm, RecoveredVm, SeedRequest, Status,
};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::{Extension, Json, Router};
use journal::CheckpointQuery;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::timeout;
use types::CheckpointKind;
use types::limits::{COMMAND_TIMEOUT, PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(info(
    title = "Holdfast agent",
    description = "Continuous data protection for virtual machines: the API of the agent on a host.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Document;

fn routes() -> Guarded {
    Guarded::described_by(Document::openapi())
        .needs(Viewer, routes!(status))
        .needs(Viewer, routes!(list_alerts))
        .needs(Viewer, routes!(list_vms))
        .needs(Builder, routes!(protect))
        .needs(Viewer, routes!(show_vm))
        .needs(Builder, routes!(unprotect))
        .needs(Operator, routes!(pause))
        .needs(Operator, routes!(resume))
        .needs(Operator, routes!(resync))
        .needs(Operator, routes!(verify))
        .needs(Builder, routes!(seed))
        .needs(Viewer, routes!(list_recovered))
        .needs(Admin, routes!(forget))
        .needs(Viewer, routes!(list_checkpoints))
        .merge(super::journals::routes())
        .merge(super::locks::routes())
        .merge(super::groups::routes())
        .merge(super::changes::routes())
        .merge(super::operations::routes())
        .merge(super::audit::routes())
        .needs(Operator, routes!(failover))
        .needs(Operator, routes!(pause_failover))
        .needs(Operator, routes!(resume_failover))
        .needs(Operator, routes!(screenshot))
        .needs(Operator, routes!(commit))
        .needs(Operator, routes!(rollback))
        .needs(Viewer, routes!(list_images))
        .needs(Operator, routes!(open_image))
        .needs(Operator, routes!(close_image))
}

/// The router with the document it is described by.
pub(super) fn router(app: App) -> Router {
    let (router, document) = routes().into_router().split_for_parts();
    let refused = Arc::new(RefusedLog::default());
    let document = axum::routing::get(move || async move { Json(document) });
    let document = document.route_layer(from_fn(|request, next| guard(Viewer, request, next)));
    let router = router.route("/v1/openapi.json", document);
    router.layer(Extension(app.audit.clone())).layer(Extension(refused)).with_state(app)
}

/// The OpenAPI document of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_router().into_openapi()
}

/// The agent and everything on it.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(app): State<App>) -> Answer<Status> {
    let status = beside(move || {
        Ok(Status {
            site: app.site.clone(),
            agent: app.agent.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            run: app.run.0,
            alerts: app.alerts.list(),
            protected: app.source.vms_to_api(),
            recovered: app.recovery.vms_to_api(),
            images: app.recovery.list_images(),
        })
    });
    status.await.map(Json)
}

/// What is wrong, since when, and what to do about it.
#[utoipa::path(get, path = "/v1/alerts", responses((status = 200, body = [Alert])))]
async fn list_alerts(State(app): State<App>) -> Answer<Vec<Alert>> {
    Ok(Json(app.alerts.to_api()))
}

/// The VMs protected by this agent.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = [ProtectedVm])))]
async fn list_vms(State(app): State<App>) -> Answer<Vec<ProtectedVm>> {
    Ok(Json(app.source.vms_to_api()))
}

/// Protects a VM.
#[utoipa::path(post, path = "/v1/vms", params(WaitQuery, KeyHeader), request_body = ProtectRequest, responses(
    (status = 200, body = ProtectedVm),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn protect(State(app): State<App>, asked: Asked, Body(request): Body<ProtectRequest>) -> Operated {
    let (name, wanted) = (request.name.clone(), request.clone());
    let work = move |app: &App, asker: &Asker| {
        if wanted.qmp.is_none() {
            app.recovery.check_not_replicas(&wanted.disks)?;
        }
        app.source.protect(&wanted, asker).map(|vm| Some(vm.to_api()))
    };
    operate(app, asked, &request, work, move |app| app.source.vm_to_api(&name)).await
}

/// One protected VM.
#[utoipa::path(get, path = "/v1/vms/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn show_vm(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    Ok(Json(app.source.vm_to_api(&name)?))
}

/// Ends a protection.
#[utoipa::path(delete, path = "/v1/vms/{name}", params(("name" = String, Path), WaitQuery, KeyHeader), responses(
    (status = 200, body = Done),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn unprotect(State(app): State<App>, asked: Asked, Path(name): Path<String>) -> Operated {
    let work = move |app: &App, asker: &Asker| {
        app.source.unprotect(&name, asker)?;
        Ok(Some(Done::as_asked()))
    };
    operate(app, asked, &(), work, |_| Ok(Done::as_asked())).await
}

/// Stops sending; the bitmap goes on.
#[utoipa::path(post, path = "/v1/vms/{name}/pause", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn pause(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let vm = app.source.vm(&name)?;
    shown(&name, vm.command_and_show(Command::Pause)).await?;
    Ok(Json(vm.to_api()))
}

/// Sends again, beginning with what changed meanwhile.
#[utoipa::path(post, path = "/v1/vms/{name}/resume", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn resume(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let vm = app.source.vm(&name)?;
    shown(&name, vm.command_and_show(Command::Resume)).await?;
    Ok(Json(vm.to_api()))
}

/// Compares both sides from the beginning and sends what differs; no checkpoint is taken until then.
#[utoipa::path(post, path = "/v1/vms/{name}/resync", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn resync(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let asked = {
        let (source, name) = (app.source.clone(), name.clone());
        beside(move || source.resync(&name)).await?
    };
    if let Some(begins) = asked {
        shown(&name, begins).await?;
    }
    Ok(Json(app.source.vm(&name)?.to_api()))
}

/// Compares both sides while the guest writes, and repairs what differs.
#[utoipa::path(post, path = "/v1/vms/{name}/verify", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn verify(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let vm = app.source.vm(&name)?;
    let state = vm.state_name();
    if state != "journaling" {
        return Err(OperationError::conflict(format!(
            "VM {name} is {state}: a comparison has a meaning only while it is journaling"
        ))
        .into());
    }
    shown(&name, vm.command_and_show(Command::Verify)).await?;
    Ok(Json(vm.to_api()))
}

/// Takes files as the first replicas of a VM that is not protected yet.
#[utoipa::path(post, path = "/v1/seeds", request_body = SeedRequest, responses(
    (status = 200, body = Done),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn seed(State(app): State<App>, Body(request): Body<SeedRequest>) -> Answer<Done> {
    beside(move || app.recovery.seed(&request)).await.map(Json)
}

/// The VMs whose journals this agent keeps.
#[utoipa::path(get, path = "/v1/recovered", responses((status = 200, body = [RecoveredVm])))]
async fn list_recovered(State(app): State<App>) -> Answer<Vec<RecoveredVm>> {
    beside(move || Ok(app.recovery.vms_to_api())).await.map(Json)
}

/// Forgets a kept VM and removes its journal, for good.
///
/// Of a VM that was unprotected here, and whose recovery side is gone for good, that side is told no more.
#[utoipa::path(delete, path = "/v1/recovered/{name}", params(("name" = String, Path), WaitQuery, KeyHeader), responses(
    (status = 200, body = Done),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn forget(State(app): State<App>, asked: Asked, Path(name): Path<String>) -> Operated {
    let done = |what| Done { done: true, what: Some(what) };
    let again = journal_removed(&name);
    let work = move |app: &App, asker: &Asker| Ok(forget_one(app, &name, asker)?.map(done));
    operate(app, asked, &(), work, move |_| Ok(done(again))).await
}

/// What was forgotten, for the operator.
fn forget_one(app: &App, name: &str, asker: &Asker) -> crate::error::Result<Option<String>> {
    let Some(departed) = app.source.departure(name) else {
        return Ok(app.recovery.forget(name, asker)?.map(|()| journal_removed(name)));
    };
    match app.recovery.vm(name) {
        Ok(kept) if name != departed => Err(OperationError::conflict(format!(
            "VM {name:?} may be {} ({}), which is kept here, or {departed}, which was protected here and whose recovery \
             side is not told yet: name it by its id",
            kept.label(),
            kept.id()
        ))),
        _ => app.source.forget_departure(&departed).map(|()| Some(departure_forgotten(name))),
    }
}

fn journal_removed(name: &str) -> String {
    format!("the journal of {name} is removed")
}

fn departure_forgotten(name: &str) -> String {
    format!(
        "the recovery side is not told any more that {name} has left; its journal there stays, until `holdfast vm forget` \
         there"
    )
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Page {
    /// From the page before.
    cursor: Option<String>,
    /// 1 to 1000, default 100.
    limit: Option<usize>,
    /// Taken at this time (RFC 3339) or later.
    from: Option<String>,
    /// Taken at this time (RFC 3339) or earlier.
    to: Option<String>,
    /// `automatic` or `tagged`.
    kind: Option<String>,
    /// With these words.
    tag: Option<String>,
    /// Newest first; oldest first by default.
    #[serde(default)]
    newest_first: bool,
}

impl Page {
    fn to_query(&self) -> Result<CheckpointQuery, OperationError> {
        let time = |text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => clock::from_text(text).map(Some).ok_or_else(|| {
                OperationError::invalid(format!("{text:?} is no time: use RFC 3339, as 2026-01-31T12:00:00Z"))
            }),
        };
        let after = match &self.cursor {
            None => None,
            Some(cursor) => Some(
                cursor
                    .parse()
                    .map_err(|()| OperationError::invalid(format!("cursor {cursor:?} is none of ours")))?,
            ),
        };
        let kind = match self.kind.as_deref() {
            None => None,
            Some("automatic") => Some(CheckpointKind::Automatic),
            Some("tagged") => Some(CheckpointKind::Tagged),
            Some(other) => {
                return Err(OperationError::invalid(format!("no kind {other:?}: use automatic or tagged")));
            }
        };
        let limit = self.limit.unwrap_or(PAGE_ROWS_DEFAULT).clamp(1, PAGE_ROWS_MAX);
        let (from, to) = (time(&self.from)?, time(&self.to)?);
        Ok(CheckpointQuery {
            after,
            from,
            to,
            kind,
            tag: self.tag.clone(),
            newest_first: self.newest_first,
            thinned: false,
            undamaged: false,
            limit,
        })
    }
}

/// The checkpoints of a kept VM that can be opened.
#[utoipa::path(get, path = "/v1/recovered/{name}/checkpoints", params(("name" = String, Path), Page), responses(
    (status = 200, body = CheckpointPage),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn list_checkpoints(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Answer<CheckpointPage> {
    let query = page.to_query()?;
    let vm = app.recovery.vm(&name)?;
    let journal = vm
        .journal()
        .ok_or_else(|| OperationError::unavailable(format!("the journal of VM {name} is not open")))?;
    let limit = query.limit;
    let one_more = CheckpointQuery { limit: limit + 1, thinned: true, ..query };
    let journal::Listed { mut rows, unread } = beside(move || Ok(journal.checkpoints(&one_more))).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|last| last.checkpoint.cut.to_string());
    let unread = unread.iter().map(ToString::to_string).collect();
    Ok(Json(CheckpointPage { checkpoints: rows.iter().map(checkpoint_to_api).collect(), next, unread }))
}

/// Fails a group over to this side.
#[utoipa::path(post, path = "/v1/groups/{group}/failover", params(("group" = String, Path), WaitQuery, KeyHeader),
    request_body = FailoverRequest, responses(
    (status = 200, body = Failover),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn failover(
    State(app): State<App>,
    asked: Asked,
    Path(group): Path<String>,
    Body(request): Body<FailoverRequest>,
) -> Operated {
    let (word, wanted) = (group.clone(), request.clone());
    let work = move |app: &App, asker: &Asker| app.recovery.failover(&word, &wanted, asker).map(Some);
    operate(app, asked, &request, work, move |app| app.recovery.show_failover(&group)).await
}

/// Makes a failover final.
#[utoipa::path(post, path = "/v1/groups/{group}/failover/commit", params(("group" = String, Path), WaitQuery, KeyHeader), responses(
    (status = 200, body = Failover),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn commit(State(app): State<App>, asked: Asked, Path(group): Path<String>) -> Operated {
    let word = group.clone();
    let work = move |app: &App, asker: &Asker| app.recovery.commit(&word, asker).map(Some);
    operate(app, asked, &(), work, move |app| app.recovery.show_failover(&group)).await
}

/// Pauses the VMs of a failover.
#[utoipa::path(post, path = "/v1/groups/{group}/failover/pause", params(("group" = String, Path)), responses(
    (status = 200, body = Failover),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn pause_failover(State(app): State<App>, Path(group): Path<String>) -> Answer<Failover> {
    beside(move || app.recovery.set_paused(&group, true)).await.map(Json)
}

/// Lets the VMs of a failover go on.
#[utoipa::path(post, path = "/v1/groups/{group}/failover/resume", params(("group" = String, Path)), responses(
    (status = 200, body = Failover),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn resume_failover(State(app): State<App>, Path(group): Path<String>) -> Answer<Failover> {
    beside(move || app.recovery.set_paused(&group, false)).await.map(Json)
}

/// What a VM of a failover shows on its screen.
#[utoipa::path(get, path = "/v1/groups/{group}/failover/vms/{vm}/screenshot",
    params(("group" = String, Path), ("vm" = String, Path)), responses(
    (status = 200, body = Vec<u8>, content_type = "image/png"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn screenshot(
    State(app): State<App>,
    Path((group, vm)): Path<(String, String)>,
) -> Result<impl IntoResponse, ApiError> {
    let png = beside(move || app.recovery.screenshot(&group, &vm)).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png))
}

/// Undoes a failover.
#[utoipa::path(post, path = "/v1/groups/{group}/failover/rollback", params(("group" = String, Path), WaitQuery, KeyHeader), responses(
    (status = 200, body = Failover),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn rollback(State(app): State<App>, asked: Asked, Path(group): Path<String>) -> Operated {
    let word = group.clone();
    let work = move |app: &App, asker: &Asker| app.recovery.rollback(&word, asker).map(Some);
    operate(app, asked, &(), work, move |app| app.recovery.show_failover(&group)).await
}

/// The open images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = [Image])))]
async fn list_images(State(app): State<App>) -> Answer<Vec<Image>> {
    Ok(Json(app.recovery.list_images()))
}

/// Opens an image.
#[utoipa::path(post, path = "/v1/images", request_body = OpenImageRequest, responses(
    (status = 200, body = Image),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn open_image(State(app): State<App>, Body(request): Body<OpenImageRequest>) -> Answer<Image> {
    beside(move || app.recovery.open_image(&request)).await.map(Json)
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
struct CloseQuery {
    /// Also one of a committed failover that is not promoted, with all that its VM wrote.
    #[param(required = false)]
    discard: bool,
}

/// Closes an image and throws its overlay away. The disks of one that was promoted stay.
#[utoipa::path(delete, path = "/v1/images/{id}", params(("id" = String, Path), CloseQuery), responses(
    (status = 200, body = ClosedImage),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn close_image(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<CloseQuery>,
) -> Answer<ClosedImage> {
    let closed = beside(move || app.recovery.close_image(&id, query.discard)).await?;
    let kept = closed.kept.into_iter().map(|path| path.display().to_string()).collect();
    Ok(Json(ClosedImage { done: true, kept, lost: closed.lost }))
}

/// Waits until a VM's row shows what was commanded: whoever waits for its end must not take the state of before for it.
async fn shown(name: &str, seen: oneshot::Receiver<()>) -> Result<(), OperationError> {
    match timeout(COMMAND_TIMEOUT, seen).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(OperationError::conflict(format!("VM {name} is being stopped"))),
        Err(_) => Err(OperationError::unavailable(format!(
            "VM {name} does not answer, as where a disk hangs. What was asked for is done once it does: \
             `holdfast vm show {name}` shows it"
        ))),
    }
}
