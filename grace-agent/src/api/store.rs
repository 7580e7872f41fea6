//! The socket's routes about what Grace keeps, and their documents: differences, the way back from a repair, the store's
//! own health.

use std::path::PathBuf;

use axum::Router;
use axum::extract::{Extension, State};
use axum::routing::post;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::code::Nothing;
use super::control::Peer;
use super::server::{Answer, Body, PathRequest, Shared, check_paths, parse};
use crate::file_state::Digest;
use crate::firing::{FiringId, Subject};

/// The routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/diff", post(diff))
        .route("/v1/undo", post(undo))
        .route("/v1/store/check", post(check))
}

/// `grace diff --json`: a kept version against the file as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiffView {
    /// Absolute path.
    pub path: PathBuf,
    /// The version that it is compared with.
    pub snapshot: u64,
    /// What can be shown of the content.
    pub content: DiffContent,
    /// What differs, in words: content, mode, owner, attributes. Empty: nothing does.
    pub drift: Vec<String>,
    /// A unified diff from the version to the file; empty where there is none to show. Hostile text.
    pub diff: String,
    /// Lines that only the file has, and lines that only the version has.
    pub added: u64,
    /// See `added`.
    pub removed: u64,
}

/// See [`DiffView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiffContent {
    /// The same.
    Same,
    /// Text that differs.
    Text,
    /// Not text, and it differs.
    Binary,
    /// A secret that differs: its content is not shown.
    Secret,
    /// Larger than what is compared line by line, and it differs.
    TooLarge,
    /// There is no regular file now.
    Missing,
}

async fn diff(State(shared): State<Shared>, body: Body) -> Answer {
    let PathRequest { path, at } = parse(body)?;
    check_paths(std::slice::from_ref(&path))?;
    shared.ask(move |control| control.diff(&path, at)).await
}

/// The body of `POST /v1/undo`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// A firing, or the incident that it began.
    pub incident: FiringId,
}

/// What became of one action that `grace undo` was to take back. `--json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UndoView {
    /// The firing that it repaired.
    pub firing: FiringId,
    /// What it was about.
    pub subject: Subject,
    /// The verb that is taken back.
    pub action: String,
    /// What was done.
    pub done: Option<String>,
    /// Why it cannot be taken back.
    pub error: Option<String>,
    /// Where what was in place until now lies.
    pub quarantined: Option<PathBuf>,
}

async fn undo(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let UndoRequest { incident } = parse(body)?;
    shared.ask(move |control| control.undo(incident, peer)).await
}

/// `grace verify --store --json`: whether what is kept still is what it was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct StoreView {
    /// Contents that were read.
    pub contents: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Those that were damaged and were taken anew from a file.
    pub mended: Vec<RotView>,
    /// Those that are damaged or missing.
    pub lost: Vec<RotView>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// A content of the store that is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RotView {
    /// What it should be.
    pub sha256: Digest,
    /// What is wrong.
    pub why: String,
    /// Files that need it, or the one that it was taken from.
    pub files: Vec<PathBuf>,
}

async fn check(State(shared): State<Shared>, body: Body) -> Answer {
    let Nothing {} = parse(body)?;
    shared.ask(|control| control.check_store()).await
}
