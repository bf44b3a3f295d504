//! Routes of operations: looking, waiting, cancelling, leaving.

use super::App;
use super::answer::{Answer, ApiError};
use super::asked::WaitQuery;
use super::guard::Guarded;
use super::operate::{Operated, at_end, going_on};
use crate::error::OperationError;
use crate::ledger::{Asker, in_thread};
use crate::rights::Role::{Operator, Viewer};
use api::{Operation, OperationPage, Problem};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use operations::OperationId;
use serde::Deserialize;
use tokio::sync::oneshot;
use types::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use utoipa::IntoParams;
use utoipa_axum::routes;

const STATES: [&str; 4] = ["going", "going-back", "done", "taken-back"];

pub(super) fn routes() -> Guarded {
    Guarded::new()
        .needs(Viewer, routes!(list_operations))
        .needs(Viewer, routes!(show_operation))
        .needs(Operator, routes!(cancel_operation))
        .needs(Operator, routes!(leave_operation))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    /// From the page before.
    cursor: Option<String>,
    /// 1 to 1000, default 100.
    #[param(required = false)]
    limit: Option<usize>,
    /// `going`, `going-back`, `done` or `taken-back`.
    state: Option<String>,
    /// `failover`, `commit`, `rollback`, `move`, `forget`, `promote`, `protect` or `unprotect`.
    kind: Option<String>,
    /// Of this VM: its id, its name or `SITE/NAME`.
    vm: Option<String>,
    /// Of this group: its id, its name or `SITE/NAME`.
    group: Option<String>,
    /// Of this image: its id.
    image: Option<String>,
    /// What the request of this idempotency key has begun, or has found under way.
    key: Option<String>,
    /// Only those that have not ended.
    #[param(required = false)]
    running: bool,
}

impl Wanted {
    fn check(&self) -> Result<(), OperationError> {
        match self.state.as_deref().filter(|state| !STATES.contains(state)) {
            Some(state) => {
                Err(OperationError::invalid(format!("no state {state:?}: use {}", STATES.join(", "))))
            }
            None => Ok(()),
        }
    }

    /// `joined` was begun by another request than the one of the wanted key.
    fn fits(&self, operation: &Operation, joined: Option<&str>) -> bool {
        let is = |wanted: &Option<String>, have: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| have == Some(wanted))
        };
        is(&self.state, Some(&operation.state))
            && is(&self.kind, Some(&operation.kind))
            && is(&self.image, operation.image.as_deref())
            && (is(&self.key, operation.idempotency_key.as_deref()) || joined == Some(&operation.id))
            && is_named(&self.vm, operation.vm_id.as_deref(), operation.vm.as_deref())
            && is_named(&self.group, operation.group_id.as_deref(), operation.group.as_deref())
            && (!self.running || operation.ended_at.is_none())
    }
}

/// By its id, its label or the name in that.
fn is_named(wanted: &Option<String>, id: Option<&str>, label: Option<&str>) -> bool {
    let Some(wanted) = wanted.as_deref() else { return true };
    let name = label.map(|label| label.rsplit_once('/').map_or(label, |(_, name)| name));
    [id, label, name].contains(&Some(wanted))
}

/// What goes on at this agent, and what has ended lately; the newest first.
#[utoipa::path(get, path = "/v1/operations", params(Wanted), responses(
    (status = 200, body = OperationPage),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn list_operations(
    State(app): State<App>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Answer<OperationPage> {
    let Query(wanted) = wanted.map_err(|rejection| OperationError::invalid(rejection.body_text()))?;
    wanted.check()?;
    let after = wanted.cursor.as_deref().map(place_of).transpose()?;
    let limit = wanted.limit.unwrap_or(PAGE_ROWS_DEFAULT).clamp(1, PAGE_ROWS_MAX);
    let is_behind = |operation: &Operation| {
        after.is_none_or(|(began_at, id)| {
            (operation.began_at.as_str(), operation.id.as_str()) < (began_at, id)
        })
    };
    let mut operations: Vec<_> = app.list_operations();
    let joined = wanted.key.as_deref().and_then(|key| app.operation_joined_by(key));
    let joined = joined.map(|id| id.to_string());
    operations.retain(|operation| wanted.fits(operation, joined.as_deref()) && is_behind(operation));
    let more = operations.len() > limit;
    operations.truncate(limit);
    let next = operations.last().filter(|_| more).map(|last| format!("{}/{}", last.began_at, last.id));
    Ok(Json(OperationPage { operations, next }))
}

/// Where the page before has ended.
fn place_of(cursor: &str) -> Result<(&str, &str), OperationError> {
    let place = cursor.split_once('/').filter(|(_, id)| id.parse::<OperationId>().is_ok());
    place.ok_or_else(|| OperationError::invalid(format!("cursor {cursor:?} is none of ours")))
}

/// One operation; with `wait` once it has ended, or that time is over.
#[utoipa::path(get, path = "/v1/operations/{id}", params(("id" = String, Path), WaitQuery), responses(
    (status = 200, body = Operation),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn show_operation(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Answer<Operation> {
    let (id, wait) = (parse(&id)?, wait_of(query)?);
    let (presence, asker) = Asker::present();
    app.listen(id, &asker)?;
    at_end(&app, id, presence, wait).await.map(Json)
}

/// Has an operation taken back, where there is a way back; answers once that is asked for, or with `wait` at its end.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", params(("id" = String, Path), WaitQuery), responses(
    (status = 200, body = Operation),
    (status = 202, body = Operation, description = "It is on its way back.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn cancel_operation(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Operated {
    told_to(app, parse(&id)?, query, App::cancel_operation).await
}

/// Has what an operation cannot do or undo left as it is, where that costs nothing but room; it is then gone on with.
#[utoipa::path(post, path = "/v1/operations/{id}/leave", params(("id" = String, Path), WaitQuery), responses(
    (status = 200, body = Operation),
    (status = 202, body = Operation, description = "It goes on.", headers(("location" = String))),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
async fn leave_operation(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Operated {
    told_to(app, parse(&id)?, query, App::leave_operation).await
}

/// An operation is told something, and gone on with where nobody does.
async fn told_to(
    app: App,
    id: OperationId,
    query: Result<Query<WaitQuery>, QueryRejection>,
    tell: fn(&App, OperationId, &Asker) -> crate::error::Result<()>,
) -> Operated {
    let wait = wait_of(query)?;
    let (presence, asker) = Asker::present();
    let (answer, mut answered) = oneshot::channel();
    let work = {
        let app = app.clone();
        move || drop(answer.send(tell(&app, id, &asker)))
    };
    in_thread(work)
        .map_err(|error| OperationError::unavailable(format!("no thread can be started for it: {error}")))?;
    tokio::select! {
        biased;
        refused = &mut answered => {
            refused.map_err(|_| OperationError::unavailable("the agent is stopping"))??;
        }
        _ = presence.begun() => {}
    }
    let operation = at_end(&app, id, presence, wait).await?;
    Ok(match operation.ended_at {
        Some(_) => Json(operation).into_response(),
        None => going_on(&operation),
    })
}

fn wait_of(query: Result<Query<WaitQuery>, QueryRejection>) -> Result<Option<std::time::Duration>, ApiError> {
    let Query(query) = query.map_err(|rejection| OperationError::invalid(rejection.body_text()))?;
    Ok(query.to_wait()?)
}

fn parse(word: &str) -> Result<OperationId, OperationError> {
    word.parse().map_err(|_| {
        OperationError::not_found(format!(
            "there is no operation {word:?}; `holdfast operation list` shows those that are known"
        ))
    })
}
