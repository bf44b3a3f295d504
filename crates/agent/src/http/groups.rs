//! Routes of groups: looking, taking a checkpoint, forgetting a host.

use super::App;
use super::answer::{Answer, Body, beside};
use super::guard::Guarded;
use crate::recovery::mark_to_api;
use crate::rights::Role::{Builder, Operator, Viewer};
use api::{Checkpoint, Done, Group, Problem, TagRequest};
use axum::Json;
use axum::extract::{Path, State};
use utoipa_axum::routes;

pub(super) fn routes() -> Guarded {
    Guarded::new()
        .needs(Viewer, routes!(list_groups))
        .needs(Operator, routes!(tag))
        .needs(Builder, routes!(remove_host))
}

/// The groups this agent has a part in.
#[utoipa::path(get, path = "/v1/groups", responses((status = 200, body = [Group])))]
async fn list_groups(State(app): State<App>) -> Answer<Vec<Group>> {
    let groups = beside(move || {
        let mut groups: Vec<Group> = app.source.groups_here().iter().map(|group| group.to_api()).collect();
        groups.extend(app.recovery.groups());
        Ok(groups)
    });
    groups.await.map(Json)
}

/// Takes a checkpoint of a protected group with a person's words.
#[utoipa::path(post, path = "/v1/groups/{group}/checkpoints", params(("group" = String, Path)),
    request_body = TagRequest, responses(
    (status = 200, body = Checkpoint),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
async fn tag(
    State(app): State<App>,
    Path(group): Path<String>,
    Body(request): Body<TagRequest>,
) -> Answer<Checkpoint> {
    // Hosts of the group may have to answer first.
    beside(move || app.source.tag(&group, &request.tag)).await.map(|mark| Json(mark_to_api(&mark)))
}

/// Forgets a host of a group that will not come back. Refused while it is connected.
#[utoipa::path(delete, path = "/v1/groups/{group}/hosts/{host}",
    params(("group" = String, Path), ("host" = String, Path)), responses(
    (status = 200, body = Done),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn remove_host(State(app): State<App>, Path((group, host)): Path<(String, String)>) -> Answer<Done> {
    beside(move || app.source.remove_host(&group, &host)).await?;
    Ok(Json(Done::as_asked()))
}
