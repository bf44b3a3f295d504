//! Every route, with what OpenAPI says of it.

use super::App;
use super::answer::{Answer, ApiError, Body, beside};
use crate::clock;
use crate::error::OperationError;
use crate::recovery::checkpoint_to_api;
use crate::source::Command;
use api::{
    Alert, CheckpointPage, ClosedImage, Done, Failover, FailoverRequest, Image, OpenImageRequest, Problem,
    ProtectRequest, ProtectedVm, RecoveredVm, SeedRequest, Status,
};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::{Json, Router};
use journal::CheckpointQuery;
use serde::Deserialize;
use types::CheckpointKind;
use types::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(info(
    title = "Holdfast agent",
    description = "Continuous data protection for virtual machines: the API of the agent on a host.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Document;

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(list_alerts))
        .routes(routes!(list_vms, protect))
        .routes(routes!(show_vm, unprotect))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(resync))
        .routes(routes!(verify))
        .routes(routes!(seed))
        .routes(routes!(list_recovered))
        .routes(routes!(forget))
        .routes(routes!(list_checkpoints))
        .merge(super::journals::routes())
        .merge(super::groups::routes())
        .merge(super::operations::routes())
        .routes(routes!(failover))
        .routes(routes!(pause_failover))
        .routes(routes!(resume_failover))
        .routes(routes!(screenshot))
        .routes(routes!(commit))
        .routes(routes!(rollback))
        .routes(routes!(list_images, open_image))
        .routes(routes!(close_image))
}

/// The router with the document it is described by.
pub(super) fn router(app: App) -> Router {
    let (router, document) = routes().split_for_parts();
    let document = axum::routing::get(move || async move { Json(document) });
    router.route("/v1/openapi.json", document).with_state(app)
}

/// The OpenAPI document of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().to_openapi()
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
#[utoipa::path(post, path = "/v1/vms", request_body = ProtectRequest, responses(
    (status = 200, body = ProtectedVm),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn protect(State(app): State<App>, Body(request): Body<ProtectRequest>) -> Answer<ProtectedVm> {
    beside(move || {
        if request.qmp.is_none() {
            app.recovery.check_not_replicas(&request.disks)?;
        }
        app.source.protect(&request).map(|vm| vm.to_api())
    })
    .await
    .map(Json)
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
#[utoipa::path(delete, path = "/v1/vms/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = Done),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn unprotect(State(app): State<App>, Path(name): Path<String>) -> Answer<Done> {
    beside(move || app.source.unprotect(&name)).await?;
    Ok(Json(Done::as_asked()))
}

/// Stops sending; the bitmap goes on.
#[utoipa::path(post, path = "/v1/vms/{name}/pause", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn pause(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let vm = app.source.vm(&name)?;
    vm.command(Command::Pause);
    settle(|| vm.state_name() == "paused").await;
    Ok(Json(vm.to_api()))
}

/// Sends again, beginning with what changed meanwhile.
#[utoipa::path(post, path = "/v1/vms/{name}/resume", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn resume(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    let vm = app.source.vm(&name)?;
    vm.command(Command::Resume);
    // Whoever waits for the sync must not take the state of before for its end.
    settle(|| !matches!(vm.state_name().as_str(), "paused" | "failed")).await;
    Ok(Json(vm.to_api()))
}

/// Compares both sides from the beginning and sends what differs; no checkpoint is taken until then.
#[utoipa::path(post, path = "/v1/vms/{name}/resync", params(("name" = String, Path)), responses(
    (status = 200, body = ProtectedVm),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
async fn resync(State(app): State<App>, Path(name): Path<String>) -> Answer<ProtectedVm> {
    {
        let (source, name) = (app.source.clone(), name.clone());
        beside(move || source.resync(&name)).await?;
    }
    let vm = app.source.vm(&name)?;
    settle(|| vm.state_name() == "delta-sync").await;
    Ok(Json(vm.to_api()))
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
    vm.command(Command::Verify);
    settle(|| vm.lock_status().verify.is_some()).await;
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
#[utoipa::path(delete, path = "/v1/recovered/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = Done),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn forget(State(app): State<App>, Path(name): Path<String>) -> Answer<Done> {
    let what = beside(move || forget_one(&app, &name)).await?;
    Ok(Json(Done { done: true, what: Some(what) }))
}

/// What was forgotten, for the operator.
fn forget_one(app: &App, name: &str) -> crate::error::Result<String> {
    let Some(departed) = app.source.departure(name) else {
        return app.recovery.forget(name).map(|()| format!("the journal of {name} is removed"));
    };
    match app.recovery.vm(name) {
        Ok(kept) if name != departed => Err(OperationError::conflict(format!(
            "VM {name:?} may be {} ({}), which is kept here, or {departed}, which was protected here and whose recovery \
             side is not told yet: name it by its id",
            kept.label(),
            kept.id()
        ))),
        _ => app.source.forget_departure(&departed).map(|()| departure_forgotten(name)),
    }
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
#[utoipa::path(post, path = "/v1/groups/{group}/failover", params(("group" = String, Path)),
    request_body = FailoverRequest, responses(
    (status = 200, body = Failover),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn failover(
    State(app): State<App>,
    Path(group): Path<String>,
    Body(request): Body<FailoverRequest>,
) -> Answer<Failover> {
    beside(move || app.recovery.failover(&group, &request)).await.map(Json)
}

/// Makes a failover final.
#[utoipa::path(post, path = "/v1/groups/{group}/failover/commit", params(("group" = String, Path)), responses(
    (status = 200, body = Failover),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn commit(State(app): State<App>, Path(group): Path<String>) -> Answer<Failover> {
    beside(move || app.recovery.commit(&group)).await.map(Json)
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
#[utoipa::path(post, path = "/v1/groups/{group}/failover/rollback", params(("group" = String, Path)), responses(
    (status = 200, body = Failover),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn rollback(State(app): State<App>, Path(group): Path<String>) -> Answer<Failover> {
    beside(move || app.recovery.rollback(&group)).await.map(Json)
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

/// Waits shortly for what was commanded to be seen; the answer shows the state either way.
async fn settle(seen: impl Fn() -> bool) {
    let until = clock::now().plus(std::time::Duration::from_secs(2));
    while !seen() && clock::now() < until {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
