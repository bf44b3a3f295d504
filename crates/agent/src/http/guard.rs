//! Routes with the role that each needs. A route comes into the API by [`Guarded::needs`] and by no other way, so that
//! there is none without a role; what it needs is in the API's document as well.

use super::App;
use super::answer::ApiError;
use super::recording::{is_change, record};
use super::refused::RefusedLog;
use crate::clock;
use crate::error::OperationError;
use crate::rights::{Caller, Role};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{Operation, Paths};
use utoipa::openapi::{Content, Ref, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

/// What a route needs, in the API's document.
const NEEDED: &str = "x-holdfast-role";

/// Routes that look at who asks.
pub(super) struct Guarded(OpenApiRouter<App>);

impl Guarded {
    pub(super) fn new() -> Self {
        Self(OpenApiRouter::new())
    }

    pub(super) fn described_by(document: utoipa::openapi::OpenApi) -> Self {
        Self(OpenApiRouter::with_openapi(document))
    }

    /// Adds routes, all methods of which need this role.
    pub(super) fn needs(self, role: Role, (schemas, mut paths, methods): UtoipaMethodRouter<App>) -> Self {
        describe(&mut paths, role);
        let methods = methods.route_layer(from_fn(move |request, next| guard(role, request, next)));
        Self(self.0.routes((schemas, paths, methods)))
    }

    pub(super) fn merge(self, other: Self) -> Self {
        Self(self.0.merge(other.0))
    }

    pub(super) fn into_router(self) -> OpenApiRouter<App> {
        self.0
    }
}

/// Lets whoever has the role through, and a change once it is recorded.
pub(super) async fn guard(needed: Role, request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        // Whoever serves a connection says who is at its other end.
        return ApiError::from(OperationError::forbidden("it is not known who asks")).into_response();
    };
    if let Err(refused) = check(needed, &caller) {
        if let Some(log) = request.extensions().get::<Arc<RefusedLog>>() {
            let what = format!("{} needs the role {needed}", request.method());
            log.note(&caller, &what, request.uri().path(), clock::now());
        }
        return ApiError::from(refused).into_response();
    }
    if is_change(request.method()) { record(caller, request, next).await } else { next.run(request).await }
}

fn check(needed: Role, caller: &Caller) -> Result<(), OperationError> {
    let has = match caller.role() {
        Some(role) if role >= needed => return Ok(()),
        Some(role) => format!("has the role {role}"),
        None => "has no role here".to_owned(),
    };
    Err(OperationError::forbidden(format!(
        "this needs the role {needed}, and {caller} {has}: {}",
        caller.cure()
    )))
}

fn describe(paths: &mut Paths, role: Role) {
    for item in paths.paths.values_mut() {
        let methods = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
            &mut item.head,
            &mut item.options,
            &mut item.trace,
        ];
        methods.into_iter().flatten().for_each(|operation| describe_one(operation, role));
    }
}

fn describe_one(operation: &mut Operation, role: Role) {
    let needed = Extensions::builder().add(NEEDED, role.name()).build();
    operation.extensions.get_or_insert_default().merge(needed);
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let refused = ResponseBuilder::new()
        .description(format!("Whoever asks has not the role {role}"))
        .content("application/problem+json", problem);
    operation.responses.responses.insert("403".to_owned(), refused.build().into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const DOCUMENT: &str = include_str!("../../../../docs/operate/rights.md");

    #[test]
    fn each_role_may_what_those_below_it_may_and_who_has_none_may_nothing() {
        for needed in Role::ALL {
            let user = |role| Caller::User { uid: 7, pid: None, role };
            for has in Role::ALL {
                assert_eq!(check(needed, &user(Some(has))).is_ok(), has >= needed, "{has} for {needed}");
            }
            let refused = check(needed, &user(None)).unwrap_err().detail;
            assert!(refused.contains(&format!("needs the role {needed}")), "{refused}");
        }
    }

    /// Rows of the table: `| ROLE | `METHOD PATH` and more | ...`
    fn told() -> BTreeMap<String, String> {
        let mut told = BTreeMap::new();
        for role in Role::ALL {
            let rows = DOCUMENT.lines().filter(|line| line.starts_with(&format!("| {role} | `")));
            for route in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
                assert_eq!(
                    told.insert(route.to_owned(), role.to_string()),
                    None,
                    "{route} stands there twice"
                );
            }
        }
        told
    }

    #[test]
    fn the_table_of_rights_in_the_docs_is_what_each_route_needs() {
        let document = serde_json::to_value(crate::http::openapi()).unwrap();
        let mut needed = BTreeMap::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let role = operation[NEEDED].as_str().unwrap_or("none").to_owned();
                needed.insert(format!("{} {path}", method.to_uppercase()), role);
            }
        }
        assert_eq!(told(), needed);
    }
}
