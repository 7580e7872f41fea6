//! The socket's routes about code: endpoints, packages, repos, risk.

use std::path::PathBuf;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path as Segment, Query, State};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::control::Peer;
use super::server::{Answer, Body, Failure, Shared, check_paths, parse};

/// The routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/endpoints/{name}/accept", post(accept_endpoint))
        .route("/v1/good", post(good))
        .route("/v1/risk", get(risk))
        .route("/v1/deps/diff", get(dependencies))
        .route("/v1/deps/snapshot", post(snapshot_dependencies))
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DependenciesParams {
    environment: Option<String>,
}

async fn dependencies(
    State(shared): State<Shared>,
    params: Result<Query<DependenciesParams>, QueryRejection>,
) -> Answer {
    let Query(params) = params.map_err(|err| Failure(err.status(), err.body_text()))?;
    let environments: Vec<String> = params.environment.into_iter().collect();
    shared.ask(move |control| control.dependencies(&environments)).await
}

/// The body of `POST /v1/deps/snapshot`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentsRequest {
    /// Names; none: every environment.
    #[serde(default)]
    pub environments: Vec<String>,
}

async fn snapshot_dependencies(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Answer {
    let EnvironmentsRequest { environments } = parse(body)?;
    shared.ask(move |control| control.snapshot_dependencies(&environments, peer)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RiskParams {
    path: Option<PathBuf>,
}

async fn risk(State(shared): State<Shared>, params: Result<Query<RiskParams>, QueryRejection>) -> Answer {
    let Query(RiskParams { path }) = params.map_err(|err| Failure(err.status(), err.body_text()))?;
    check_paths(path.as_slice())?;
    shared.ask(move |control| control.risk(path.as_deref())).await
}
