//! The control API: axum over a unix socket, and over mutual TLS on TCP.

mod answer;
mod app;
mod asked;
mod audit;
mod changes;
mod groups;
mod guard;
mod journals;
mod locks;
mod operate;
mod operations;
mod recording;
mod refused;
mod routes;
mod serve;

pub(crate) use app::App;
pub use routes::openapi;
pub(crate) use serve::serve;
