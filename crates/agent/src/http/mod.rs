//! The control API: axum over a unix socket, and over mutual TLS on TCP.

mod answer;
mod app;
mod groups;
mod journals;
mod operations;
mod routes;
mod serve;

pub(crate) use app::App;
pub use routes::openapi;
pub(crate) use serve::serve;
