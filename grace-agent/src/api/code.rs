//! The socket's routes about code: endpoints, packages, repos, risk.

use std::path::PathBuf;

use axum::Router;
use axum::extract::{Extension, Path as Segment, State};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::control::Peer;
use super::server::{Answer, Body, Shared, check_paths, parse};

/// The routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/endpoints/{name}/accept", post(accept_endpoint))
        .route("/v1/good", post(good))
}

/// A body without a word in it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

async fn endpoints(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.endpoints()).await
}

async fn accept_endpoint(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Segment(name): Segment<String>,
    body: Body,
) -> Answer {
    let Nothing {} = parse(body)?;
    shared.ask(move |control| control.accept_endpoint(&name, peer)).await
}

/// The body of `POST /v1/good`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoodRequest {
    /// Absolute paths of repos; none: every one that is declared.
    #[serde(default)]
    pub repos: Vec<PathBuf>,
    /// Also where files are not as committed.
    #[serde(default)]
    pub force: bool,
}

async fn good(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let GoodRequest { repos, force } = parse(body)?;
    check_paths(&repos)?;
    shared.ask(move |control| control.mark_good(&repos, force, peer)).await
}
