//! The route of the audit record.

use super::App;
use super::answer::{Answer, beside};
use super::guard::Guarded;
use crate::audit::AuditQuery;
use crate::clock;
use crate::error::OperationError;
use crate::rights::Role::Admin;
use api::{AuditPage, Problem};
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use types::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use utoipa::IntoParams;
use utoipa_axum::routes;

pub(super) fn routes() -> Guarded {
    Guarded::new().needs(Admin, routes!(list_audit))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct AuditParams {
    /// Asked for at this time (RFC 3339) or later.
    since: Option<String>,
    /// From the page before.
    cursor: Option<String>,
    /// 1 to 1000, default 100.
    limit: Option<usize>,
}

impl AuditParams {
    fn to_query(&self) -> Result<AuditQuery, OperationError> {
        let time = |text: &String| {
            clock::from_text(text).ok_or_else(|| {
                OperationError::invalid(format!("{text:?} is no time: use RFC 3339, as 2026-01-31T12:00:00Z"))
            })
        };
        let number = |text: &String| {
            text.parse().map_err(|_| OperationError::invalid(format!("cursor {text:?} is none of ours")))
        };
        Ok(AuditQuery {
            since: self.since.as_ref().map(time).transpose()?,
            before: self.cursor.as_ref().map(number).transpose()?,
            limit: self.limit.unwrap_or(PAGE_ROWS_DEFAULT).clamp(1, PAGE_ROWS_MAX),
        })
    }
}

/// The changes that were asked of this agent, the newest first: who, from where, what, and how it ended.
#[utoipa::path(get, path = "/v1/audit", params(AuditParams), responses(
    (status = 200, body = AuditPage),
    (status = 422, body = Problem, content_type = "application/problem+json"),
))]
async fn list_audit(State(app): State<App>, Query(params): Query<AuditParams>) -> Answer<AuditPage> {
    let query = params.to_query()?;
    beside(move || Ok(app.audit.list(&query)?)).await.map(Json)
}
