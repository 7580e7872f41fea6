//! The socket's routes about tasks: claim, heartbeat, attach, complete, release, reopen, cancel.

use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path as Segment, State};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::control::Peer;
use super::server::{Answer, Body, Shared, parse};
use crate::tasks::Change;

/// The routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/claim", post(claim))
        .route("/v1/tasks/{id}", get(task).post(change))
}

async fn tasks(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.tasks()).await
}

async fn task(State(shared): State<Shared>, Segment(id): Segment<String>) -> Answer {
    shared.ask(move |control| control.task(&id)).await
}

/// The body of `POST /v1/tasks/claim`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Which; none: the one that came most often.
    #[serde(default)]
    pub id: Option<String>,
    /// Who works on it.
    pub agent: String,
    /// For how long without a heartbeat, in seconds; none: as configured.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

async fn claim(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let request: ClaimRequest = parse(body)?;
    shared.ask(move |control| control.claim_task(&request, peer)).await
}

/// The body of `POST /v1/tasks/{id}`: what is to be done with it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ChangeRequest {
    /// Still at it.
    Heartbeat {
        /// The claim's.
        token: String,
        /// For how long from now, in seconds.
        #[serde(default)]
        lease_s: Option<u64>,
    },
    /// Something that was found.
    Attach {
        /// The claim's.
        token: String,
        /// What it is.
        name: String,
        /// The content.
        text: String,
    },
    /// Done, as far as whoever worked on it can tell.
    Complete {
        /// The claim's.
        token: String,
        /// What was done.
        summary: String,
    },
    /// Given up.
    Release {
        /// The claim's.
        token: String,
        /// Why.
        why: String,
    },
    /// To be worked on again.
    Reopen {
        /// Why.
        why: String,
    },
    /// Not to be worked on.
    Cancel {
        /// Why.
        why: String,
    },
}

impl From<ChangeRequest> for Change {
    fn from(request: ChangeRequest) -> Self {
        match request {
            ChangeRequest::Heartbeat { token, lease_s } => {
                Self::Heartbeat { token, lease: lease_s.map(Duration::from_secs) }
            }
            ChangeRequest::Attach { token, name, text } => Self::Attach { token, name, text },
            ChangeRequest::Complete { token, summary } => Self::Complete { token, summary },
            ChangeRequest::Release { token, why } => Self::Release { token, why },
            ChangeRequest::Reopen { why } => Self::Reopen { why },
            ChangeRequest::Cancel { why } => Self::Cancel { why },
        }
    }
}

async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Segment(id): Segment<String>,
    body: Body,
) -> Answer {
    let request: ChangeRequest = parse(body)?;
    shared.ask(move |control| control.change_task(&id, request.into(), peer)).await
}
