//! The listening side of the socket: HTTP/1.1 and JSON, for root and for the agent's own user only.
//!
//! Routes map one to one to `control::Control`, which is called off the event loop because it blocks. What a peer can
//! use up is bounded: connections, header time, body size, answer time.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response, Sse as SseResponse};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use super::control::{Control, ControlError, FiringsQuery, Peer};
use crate::config::Process;
use crate::file_state::ContentKind;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// Largest request body, in bytes.
const BODY: usize = 1 << 20;
/// A request's head must have arrived by then.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("another grace (pid {pid}) listens on the socket {path}: stop it, or name another one with --socket", path = .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Its owner.
        pid: String,
    },
    /// Something else lies there.
    #[error("{path} exists and is not a socket: it is left alone; name another one with --socket", path = .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot make the socket {path}: run as root, or name another one with --socket", path = .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the socket, with mode 0600 from its first moment. The umask that does this belongs to the whole process: call
/// it before any thread is started.
pub fn bind(path: &Path) -> Result<StdListener, BindError> {
    let refused = |source| BindError::Refused { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match StdStream::connect(path) {
            Ok(stream) => {
                let peer = rustix::net::sockopt::socket_peercred(&stream);
                let pid = peer.map_or_else(|_| "unknown".to_owned(), |p| p.pid.as_raw_nonzero().to_string());
                return Err(BindError::InUse { path: path.to_owned(), pid });
            }
            // Nobody listens any more: what a crashed agent left.
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(refused)?
            }
            Err(err) => return Err(refused(err)),
        },
        Err(_) => {
            if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
                fs::create_dir(folder).map_err(refused)?;
            }
        }
    }
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = StdListener::bind(path);
    rustix::process::umask(before);
    bound.map_err(refused)
}

/// Serves until `shutdown` is ready. Peers other than root and `owner` (a user id) get 403.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn Control>,
    owner: u32,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(control);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    // Out of descriptors, for example: it passes.
                    tracing::warn!(%err, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let router = match peer(&stream) {
            Some(peer) if peer.uid == 0 || peer.uid == owner => router.clone().layer(Extension(peer)),
            _ => Router::new().fallback(|| async {
                refusal(StatusCode::FORBIDDEN, "only root and the agent's own user may use this socket")
            }),
        };
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(64 << 10);
            let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
            if let Err(err) = served {
                tracing::debug!(%err, "a connection ended badly");
            }
            drop(slot);
        });
    }
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    let cred = stream.peer_cred().ok()?;
    Some(Peer { pid: cred.pid().and_then(|p| u32::try_from(p).ok()).unwrap_or(0), uid: cred.uid() })
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
}

fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Json(Problem { error: why })).into_response()
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refusal(status, &self.to_string())
    }
}

type Shared = State<Arc<dyn Control>>;
type Answer<T> = Result<Json<T>, ControlError>;

/// Body of `POST /v1/snapshot`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Absolute paths.
    pub paths: Vec<PathBuf>,
    /// What kind of content.
    #[serde(default)]
    pub kind: Option<ContentKind>,
}

/// Body of `POST /v1/verify`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathsRequest {
    /// Absolute paths; none: every owned file.
    pub paths: Vec<PathBuf>,
}

/// Body of `POST /v1/restore` and `POST /v1/forget`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// The snapshot to put back; none: the current one.
    #[serde(default)]
    pub at: Option<u64>,
}

#[derive(Deserialize)]
struct FiringsParams {
    since_s: Option<u64>,
    trigger: Option<String>,
    limit: Option<usize>,
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(c): Shared| off(move || c.status())))
        .route("/v1/triggers", get(|State(c): Shared| off(move || c.triggers())))
        .route("/v1/config", get(|State(c): Shared| off(move || c.config())))
        .route(
            "/v1/firings",
            get(|State(c): Shared, Query(q): Query<FiringsParams>| {
                let query = FiringsQuery { since_s: q.since_s, trigger: q.trigger, limit: q.limit };
                try_off(move || c.firings(&query))
            }),
        )
        .route("/v1/firings/stream", get(stream))
        .route(
            "/v1/explain/{what}",
            get(|State(c): Shared, UrlPath(what): UrlPath<String>| try_off(move || c.explain(&what))),
        )
        .route("/v1/snapshots", get(|State(c): Shared| try_off(move || c.snapshots())))
        .route(
            "/v1/snapshot",
            post(|State(c): Shared, Extension(peer): Extension<Peer>, Json(r): Json<SnapshotRequest>| {
                off(move || c.snapshot(&r.paths, r.kind, peer))
            }),
        )
        .route(
            "/v1/verify",
            post(|State(c): Shared, Json(r): Json<PathsRequest>| off(move || c.verify(&r.paths))),
        )
        .route(
            "/v1/restore",
            post(|State(c): Shared, Extension(peer): Extension<Peer>, Json(r): Json<PathRequest>| {
                off(move || c.restore(&r.path, r.at, peer))
            }),
        )
        .route(
            "/v1/forget",
            post(|State(c): Shared, Extension(peer): Extension<Peer>, Json(r): Json<PathRequest>| {
                off(move || c.forget(&r.path, peer))
            }),
        )
        .route(
            "/v1/processes",
            post(|State(c): Shared, Extension(peer): Extension<Peer>, Json(process): Json<Process>| {
                try_off(move || c.add_process(process, peer))
            }),
        )
        .route(
            "/v1/processes/{name}",
            delete(|State(c): Shared, Extension(peer): Extension<Peer>, UrlPath(name): UrlPath<String>| {
                try_off(move || c.remove_process(&name, peer))
            }),
        )
        .route("/v1/tasks", get(|State(c): Shared| try_off(move || c.tasks())))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "no such route; see `grace --help`") })
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(control)
}

/// `call` on a blocking thread.
async fn off<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map(Json)
        .map_err(|err| ControlError::Failed(format!("the agent failed on this request: {err}")))
}

async fn try_off<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Answer<T> {
    off(call).await.and_then(|Json(result)| result.map(Json))
}

/// Every change of a firing, as server-sent events. A reader that is too slow is told how many it missed.
async fn stream(State(control): Shared) -> impl IntoResponse {
    let events = futures_util::stream::unfold(control.follow(), |mut follow| async move {
        let event = match follow.recv().await {
            Ok(firing) => Sse::default().json_data(firing).ok()?,
            Err(RecvError::Lagged(n)) => Sse::default().event("lost").data(n.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), follow))
    });
    SseResponse::new(events).keep_alive(KeepAlive::default())
}
