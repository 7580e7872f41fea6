//! The socket's routes about tasks: list, claim, heartbeat, attach, complete, release, reopen, cancel, and the outbox.

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path as Segment, Query, State};
use axum::routing::{get, post};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control::Peer;
use super::server::{Answer, Body, Failure, Shared, parse};
use crate::tasks::Change;

/// The routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/claim", post(claim))
        .route("/v1/tasks/outbox", get(outbox))
        .route("/v1/tasks/outbox/retry", post(retry))
        .route("/v1/tasks/refused", get(refused))
        .route("/v1/tasks/{id}", get(task).post(change))
}

/// Which tasks to list: a page of at most 200.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TasksQuery {
    /// Only those in this state; `waiting`: open or reopened.
    #[serde(default)]
    pub state: Option<String>,
    /// Only those behind this one, such as `t-200`.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// `grace tasks outbox --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxView {
    /// Its place.
    pub seq: i64,
    /// The sink's name.
    pub sink: String,
    /// The task.
    pub task: String,
    /// What happened to the task: `filed`, `raised`, `reopened`, `submitted`, `verified`, `cancelled`.
    pub event: String,
    /// When.
    pub at: String,
    /// `waiting`, `sent`, or `dead`: given up.
    pub state: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried again, where it waits for that.
    pub next: Option<String>,
    /// Why it was not taken the last time. Escaped text of the sink's.
    pub why: String,
    /// What the sink made of the task, such as the number of an issue.
    pub external: Option<String>,
}

/// Tasks that were not filed: `grace tasks refused --json`, one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnfiledView {
    /// The trigger whose firings asked for them.
    pub trigger: String,
    /// The limit of `[tasks]` that was reached.
    pub limit: String,
    /// How many, in all.
    pub count: u64,
    /// When the last one was.
    pub last: String,
}

async fn tasks(State(shared): State<Shared>, params: Result<Query<TasksQuery>, QueryRejection>) -> Answer {
    let query = query(params)?;
    shared.ask(move |control| control.tasks(&query)).await
}

async fn refused(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.refused_tasks()).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboxParams {
    #[serde(default)]
    dead: bool,
}

async fn outbox(State(shared): State<Shared>, params: Result<Query<OutboxParams>, QueryRejection>) -> Answer {
    let dead = query(params)?.dead;
    shared.ask(move |control| control.outbox(dead)).await
}

/// The body of `POST /v1/tasks/outbox/retry`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Which entry; none: all that were given up or wait.
    #[serde(default)]
    pub seq: Option<i64>,
}

async fn retry(State(shared): State<Shared>, body: Body) -> Answer {
    let request: RetryRequest = parse(body)?;
    shared.ask(move |control| control.retry_outbox(request.seq)).await
}

fn query<T>(params: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    params.map(|Query(query)| query).map_err(|err| Failure(err.status(), err.body_text()))
}

/// The route of a task. Its number goes into a path, so nothing else may.
#[must_use]
pub fn route_of(id: &str) -> Option<String> {
    let number = id.strip_prefix("t-").filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    number.map(|number| format!("/v1/tasks/t-{number}"))
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
    /// Not before another one is over.
    After {
        /// The other task.
        on: String,
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
            ChangeRequest::After { on } => Self::After { on },
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
