//! Answering what begins an operation: with the operation once that is recorded, or with its end, for whoever waits.
//!
//! It is carried out in a thread of its own, whatever becomes of the request: whoever has asked may have gone before its end,
//! and then hears of it by the operation, and by an alert where it was taken back.

use super::App;
use super::answer::ApiError;
use super::asked::Asked;
use crate::error::{OperationError, Result};
use crate::ledger::{Asker, Presence, in_thread};
use api::Operation;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use operations::OperationId;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

pub(super) type Operated = std::result::Result<Response, ApiError>;

/// Has `work` done for who has asked; it gives none where another carries the operation out, or nobody does just now.
/// `again` is what is answered once it is done, where that is not known from `work`.
pub(super) async fn operate<T: Serialize + Send + 'static>(
    app: App,
    asked: Asked,
    body: &(impl Serialize + Sync),
    work: impl FnOnce(&App, &Asker) -> Result<Option<T>> + Send + 'static,
    again: impl FnOnce(&App) -> Result<T> + Send + 'static,
) -> Operated {
    let until = asked.wait.map(|wait| Instant::now() + wait);
    let key = asked.key(body).map_err(OperationError::from)?;
    let place = app.requests.enter(key.as_ref()).await?;
    if let Some(key) = &key
        && let Some(id) = app.operation_of_key(key)?
    {
        drop(place);
        let (presence, asker) = Asker::present();
        app.listen(id, &asker)?;
        return ended(app, id, presence, until, again).await;
    }
    let (presence, asker) = Asker::of_request(key, place, until.is_some());
    let (tell, mut told) = oneshot::channel();
    let work = {
        let app = app.clone();
        move || drop(tell.send(work(&app, &asker)))
    };
    in_thread(work).map_err(|error| {
        OperationError::unavailable(format!("no thread can be started for the operation: {error}"))
    })?;
    let begun = tokio::select! {
        biased;
        id = presence.begun() => Ok(id),
        // It was refused, or there is nothing to begin.
        answer = &mut told => Err(answer),
    };
    let answer = match begun {
        Err(answer) => answer,
        Ok(id) => match answer_until(&mut told, until).await {
            Some(answer) => answer,
            None if presence.leave() => return accepted(&app, id),
            // Its end is just being told.
            None => told.await,
        },
    };
    match answer.map_err(|_| OperationError::unavailable("the agent is stopping"))? {
        Ok(Some(answer)) => Ok(Json(answer).into_response()),
        Ok(None) => {
            let id = presence.begun().await;
            ended(app, id, presence, until, again).await
        }
        Err(error) => Err(error.into()),
    }
}

/// What is told until then; none where that is not before.
async fn answer_until<T>(
    told: &mut oneshot::Receiver<T>,
    until: Option<Instant>,
) -> Option<std::result::Result<T, oneshot::error::RecvError>> {
    timeout_at(until?, told).await.ok()
}

/// Waits for the end of an operation that whoever is present listens to, and answers as if he had asked for it.
async fn ended<T: Serialize + Send + 'static>(
    app: App,
    id: OperationId,
    presence: Presence,
    until: Option<Instant>,
    again: impl FnOnce(&App) -> Result<T> + Send + 'static,
) -> Operated {
    if until.is_none() || !hears(&presence, until).await {
        return accepted(&app, id);
    }
    let operation = app.show_operation(id)?;
    match (operation.state.as_str(), operation.why) {
        ("taken-back", why) => {
            let why = why.unwrap_or_default();
            Err(OperationError::conflict(format!("operation {id} was taken back: {why}")).into())
        }
        _ => super::answer::beside(move || again(&app)).await.map(|answer| Json(answer).into_response()),
    }
}

/// Whether an end is told until then; he has left where it is not.
async fn hears(presence: &Presence, until: Option<Instant>) -> bool {
    let Some(until) = until else { return !presence.leave() };
    timeout_at(until, presence.told()).await.is_ok() || !presence.leave()
}

/// An operation itself, as it is at its end or once `wait` is over.
pub(super) async fn at_end(
    app: &App,
    id: OperationId,
    presence: Presence,
    wait: Option<Duration>,
) -> std::result::Result<Operation, ApiError> {
    hears(&presence, wait.map(|wait| Instant::now() + wait)).await;
    Ok(app.show_operation(id)?)
}

/// It goes on: where it can be looked at, and what it is just now.
fn accepted(app: &App, id: OperationId) -> Operated {
    // Nobody has heard an end who has left.
    let operation = app.look_at_operation(id)?;
    Ok(going_on(&operation))
}

pub(super) fn going_on(operation: &Operation) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(operation)).into_response();
    let place = HeaderValue::try_from(format!("/v1/operations/{}", operation.id));
    response.headers_mut().insert(header::LOCATION, place.expect("an id is digits and letters"));
    response
}
