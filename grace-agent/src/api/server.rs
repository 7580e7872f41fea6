//! The listening side: HTTP/1.1 on a Unix stream socket, one route a method of [`Control`].
//!
//! Whoever connects is root or the agent's own user, which the kernel says (SO_PEERCRED), not the client. Everything
//! is bounded all the same: connections, headers, bodies, time. [`Control`] blocks, so it is called off the event
//! loop.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Path as Segment, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;

use super::control::{Control, ControlError, FiringsQuery, Peer};
use super::view::FiringView;
use crate::config::Process;
use crate::file_state::ContentKind;
use crate::firing::{Route, Scope};
use crate::reported::Reported;

/// Connections served at the same time; one more waits until another ends.
const MAX_CONNECTIONS: usize = 128;
/// How long a client may take to send its request's head, also between two requests of a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take; streams are free once they have begun.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How large a request may be.
const MAX_BODY: usize = 1024 * 1024;
/// How long answers that are under way get at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How many paths one request may name.
const MAX_PATHS: usize = 10_000;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An agent answers there.
    #[error("another grace (pid {pid}) listens on the socket {}: stop it, or name another one with --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Whose it is; 0 where it lives in another pid namespace.
        pid: u32,
    },
    /// Something else lies there, and Grace deletes nothing that is not its own.
    #[error("{} exists and is not a socket: it is left alone; name another one with --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}: run as root, or name another socket with --socket", path.display())]
    Io {
        /// Such as `create folder`.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the socket, mode 0600 from its first moment.
///
/// The folder is made if only its last component is missing. A socket that nobody answers on is replaced; one that is answered on, or
/// anything that is not a socket, is left alone.
pub fn bind(path: &Path) -> Result<StdListener, BindError> {
    let fail = |doing, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| BindError::Io { doing, path, source }
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::DirBuilder::new().mode(0o755).create(folder) {
        // Said again, because a strict umask would have made it unreadable for those who only ask where the agent is.
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
            .map_err(fail("set the mode of folder", folder))?,
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        Err(err) => return Err(fail("create folder", folder)(err)),
    }

    // Two agents that start at once must not take each other's new socket for a stale one.
    let lock = rustix::fs::open(
        folder,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|err| fail("open folder", folder)(err.into()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|err| fail("lock folder", folder)(err.into()))?;

    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(fail("look at", path)(err)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match who_listens(path) {
            Ok(pid) => return Err(BindError::InUse { path: path.to_owned(), pid }),
            Err(Errno::CONNREFUSED) => {
                fs::remove_file(path).map_err(fail("remove the stale socket", path))?;
            }
            Err(err) => return Err(fail("ask who listens on", path)(err.into())),
        },
    }

    private_listener(path).map_err(|err| fail("listen on", path)(err.into()))
}

/// Process id of whoever listens on the socket at `path`; 0 where it cannot be told.
fn who_listens(path: &Path) -> rustix::io::Result<u32> {
    // Not blocking: an agent that hangs with a full queue is there all the same.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Ok(0),
        Err(err) => return Err(err),
    }
    Ok(net::sockopt::socket_peercred(&socket).map_or(0, |peer| peer.pid.as_raw_pid().unsigned_abs()))
}

/// A listening socket whose file is 0600 from birth: Linux gives the file the mode that the unbound socket has
/// (`unix_bind_bsd` in net/unix/af_unix.c), which other than the umask is nobody else's.
fn private_listener(path: &Path) -> rustix::io::Result<StdListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, 128)?;
    Ok(StdListener::from(socket))
}

/// Serves `control` on `listener` until `shutdown` is ready: then streams end, and answers under way get two seconds.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn Control>,
    owner_uid: u32,
    shutdown: impl Future<Output = ()> + Send,
) {
    let (ending, ended) = watch::channel(false);
    let app = router(Shared { control, owner_uid, ended: ended.clone() });
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);

    loop {
        while connections.try_join_next().is_some() {}
        // The slot first: a client beyond the last one waits in the kernel's queue and costs nothing.
        let next = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                // Out of file descriptors, most likely: serving goes on, but not in a tight loop.
                tracing::warn!(error = %err, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let peer = Peer { pid: peer.pid().map_or(0, i32::unsigned_abs), uid: peer.uid() };
        let service = TowerToHyperService::new(app.clone().layer(Extension(peer)));
        let mut ended = ended.clone();
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let result = tokio::select! {
                result = &mut connection => result,
                () = over(&mut ended) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(err) = result {
                tracing::debug!(error = %err, pid = peer.pid, "connection ended early");
            }
            drop(slot);
        });
    }

    drop(listener);
    // Nobody listens where no connection is open.
    ending.send(true).unwrap_or_default();
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::debug!("answers that were still under way are dropped");
    }
}

/// Waits for the end of serving, or of the server itself.
async fn over(ended: &mut watch::Receiver<bool>) {
    drop(ended.wait_for(|ended| *ended).await);
}

#[derive(Clone)]
pub(super) struct Shared {
    control: Arc<dyn Control>,
    owner_uid: u32,
    ended: watch::Receiver<bool>,
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/firings", get(firings))
        .route("/v1/firings/stream", get(stream))
        .route("/v1/explain/{what}", get(explain))
        .route("/v1/triggers", get(triggers))
        .route("/v1/snapshots", get(snapshots))
        .route("/v1/snapshot", post(snapshot))
        .route("/v1/verify", post(verify))
        .route("/v1/restore", post(restore))
        .route("/v1/forget", post(forget))
        .route("/v1/processes", post(add_process))
        .route("/v1/processes/{name}", delete(remove_process))
        .route("/v1/incidents", get(incidents))
        .route("/v1/pauses", get(pauses))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/config", get(config))
        .route("/v1/records", post(records))
        .route("/v1/scan", get(scanned).post(scan))
        .merge(super::code::routes())
        .merge(super::gpu::routes())
        .merge(super::store::routes())
        .merge(super::tasks::routes())
        .fallback(async || Failure(StatusCode::NOT_FOUND, "there is no such route".to_owned()))
        .method_not_allowed_fallback(async || {
            Failure(StatusCode::METHOD_NOT_ALLOWED, "this route has another method".to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(shared.clone(), only_root_and_owner))
        .with_state(shared)
}

async fn only_root_and_owner(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.uid == 0 || peer.uid == shared.owner_uid {
        return next.run(request).await;
    }
    tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a request");
    let owner = shared.owner_uid;
    Failure(StatusCode::FORBIDDEN, format!("uid {} may not ask this agent: only 0 and {owner} may", peer.uid))
        .into_response()
}

async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_elapsed| {
        let why =
            format!("no answer within {} s; what was asked may still be done", REQUEST_TIMEOUT.as_secs());
        Failure(StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    })
}

async fn status(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| Ok(control.status())).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FiringsParams {
    since_s: Option<u64>,
    trigger: Option<String>,
    limit: Option<usize>,
    route: Option<Route>,
}

async fn firings(
    State(shared): State<Shared>,
    params: Result<Query<FiringsParams>, QueryRejection>,
) -> Answer {
    let query = firings_query(params)?;
    shared.ask(move |control| control.firings(&query)).await
}

fn firings_query(params: Result<Query<FiringsParams>, QueryRejection>) -> Result<FiringsQuery, Failure> {
    let Query(params) = params.map_err(|err| Failure(err.status(), err.body_text()))?;
    Ok(FiringsQuery {
        since_s: params.since_s,
        trigger: params.trigger,
        limit: params.limit,
        route: params.route,
    })
}

async fn stream(State(shared): State<Shared>) -> Response {
    // Subscribed before the answer's head goes out: a client that has it misses nothing from then on.
    let changes = shared.control.follow();
    let events =
        futures_util::stream::unfold((changes, shared.ended), |(mut changes, mut ended)| async move {
            let event = tokio::select! {
                () = over(&mut ended) => None,
                event = next_event(&mut changes) => event,
            }?;
            Some((Ok::<_, Infallible>(event), (changes, ended)))
        });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

async fn next_event(changes: &mut broadcast::Receiver<FiringView>) -> Option<Event> {
    match changes.recv().await {
        Ok(firing) => Some(Event::default().json_data(&firing).unwrap_or_else(|err| {
            // A path that is not UTF-8 cannot be told in JSON; that something happened can.
            Event::default().event("error").data(err.to_string())
        })),
        Err(RecvError::Lagged(lost)) => Some(Event::default().event("lost").data(lost.to_string())),
        Err(RecvError::Closed) => None,
    }
}

async fn explain(State(shared): State<Shared>, Segment(what): Segment<String>) -> Answer {
    shared.ask(move |control| control.explain(&what)).await
}

async fn triggers(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| Ok(control.triggers())).await
}

async fn snapshots(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.snapshots()).await
}

/// The body of `POST /v1/snapshot`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Absolute paths.
    pub paths: Vec<PathBuf>,
    /// What kind of content; none: as it was, config for a new one.
    #[serde(default)]
    pub kind: Option<ContentKind>,
}

async fn snapshot(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let SnapshotRequest { paths, kind } = parse(body)?;
    check_paths(&paths)?;
    shared.ask(move |control| Ok(control.snapshot(&paths, kind, peer))).await
}

/// The body of `POST /v1/verify`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathsRequest {
    /// Absolute paths; none: every owned file.
    pub paths: Vec<PathBuf>,
}

async fn verify(State(shared): State<Shared>, body: Body) -> Answer {
    let PathsRequest { paths } = parse(body)?;
    check_paths(&paths)?;
    shared.ask(move |control| Ok(control.verify(&paths))).await
}

/// The body of `POST /v1/restore` and `POST /v1/forget`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// The snapshot to put back; none: the current one.
    #[serde(default)]
    pub at: Option<u64>,
}

async fn restore(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let PathRequest { path, at } = parse(body)?;
    check_paths(std::slice::from_ref(&path))?;
    shared.ask(move |control| Ok(control.restore(&path, at, peer))).await
}

async fn forget(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let PathRequest { path, at: _ } = parse(body)?;
    check_paths(std::slice::from_ref(&path))?;
    shared.ask(move |control| Ok(control.forget(&path, peer))).await
}

async fn add_process(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let process: Process = parse(body)?;
    shared.ask(move |control| control.add_process(process, peer)).await
}

async fn remove_process(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Segment(name): Segment<String>,
) -> Answer {
    shared.ask(move |control| control.remove_process(&name, peer)).await
}

async fn incidents(
    State(shared): State<Shared>,
    params: Result<Query<FiringsParams>, QueryRejection>,
) -> Answer {
    let query = firings_query(params)?;
    shared.ask(move |control| control.incidents(&query)).await
}

async fn pauses(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.pauses()).await
}

/// The body of `POST /v1/pause`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// Of what.
    pub scope: Scope,
    /// For how long, in seconds.
    pub seconds: u64,
    /// Why.
    pub why: String,
}

async fn pause(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let PauseRequest { scope, seconds, why } = parse(body)?;
    shared.ask(move |control| control.pause(scope, seconds, &why, peer)).await
}

/// The body of `POST /v1/resume`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// Of what.
    pub scope: Scope,
}

async fn resume(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let ResumeRequest { scope } = parse(body)?;
    shared.ask(move |control| control.resume(&scope, peer)).await
}

async fn config(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| Ok(control.config())).await
}

/// One record, or an array of them. A bad one costs no good one anything.
async fn records(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Body) -> Answer {
    let records = match parse::<serde_json::Value>(body)? {
        serde_json::Value::Array(records) => records,
        record => vec![record],
    };
    let read = |record| serde_json::from_value::<Reported>(record).map_err(|err| err.to_string());
    let records = records.into_iter().map(|record| read(record).and_then(Reported::checked)).collect();
    shared.ask(move |control| Ok(control.report(records, peer))).await
}

async fn scan(State(shared): State<Shared>, Extension(peer): Extension<Peer>) -> Answer {
    shared.ask(move |control| control.scan(peer)).await
}

async fn scanned(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| Ok(control.scanned())).await
}

pub(super) type Answer = Result<Response, Failure>;
pub(super) type Body = Result<Bytes, BytesRejection>;

/// An error as the client sees it: `{"error": "…"}`.
pub(super) struct Failure(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<ControlError> for Failure {
    fn from(err: ControlError) -> Self {
        let status = match &err {
            ControlError::NotFound(_) => StatusCode::NOT_FOUND,
            ControlError::Bad(_) => StatusCode::BAD_REQUEST,
            ControlError::Refused(_) => StatusCode::FORBIDDEN,
            ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, err.to_string())
    }
}

impl Shared {
    /// Asks off the event loop and makes the answer there, too: a long list takes its time.
    pub(super) async fn ask<T: Serialize + Send + 'static>(
        self,
        question: impl FnOnce(&dyn Control) -> Result<T, ControlError> + Send + 'static,
    ) -> Answer {
        let failed = |why: String| Failure(StatusCode::INTERNAL_SERVER_ERROR, why);
        let answered = tokio::task::spawn_blocking(move || {
            let answer = question(&*self.control)?;
            serde_json::to_vec(&answer)
                .map_err(|err| failed(format!("the answer cannot be told in JSON: {err}")))
        });
        // A panic in one answer is that answer's end, not the agent's.
        let bytes = answered.await.map_err(|err| failed(format!("the agent failed to answer: {err}")))??;
        Ok(([(axum::http::header::CONTENT_TYPE, "application/json")], bytes).into_response())
    }
}

pub(super) fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let bytes = body.map_err(|err| Failure(err.status(), err.body_text()))?;
    serde_json::from_slice(&bytes).map_err(|err| {
        Failure(StatusCode::BAD_REQUEST, format!("the request is not what this route takes: {err}"))
    })
}

pub(super) fn check_paths(paths: &[PathBuf]) -> Result<(), Failure> {
    let bad = |why| Err(Failure(StatusCode::BAD_REQUEST, why));
    if paths.len() > MAX_PATHS {
        return bad(format!("{} paths at once are too many: at most {MAX_PATHS}", paths.len()));
    }
    for path in paths {
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return bad(format!("`{}` is not an absolute path", path.to_string_lossy().escape_debug()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn reason(err: &BindError) -> String {
        err.to_string()
    }

    #[test]
    fn a_socket_is_private_from_birth_and_replaces_only_what_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/grace.sock");

        let first = bind(&path).unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);

        let err = bind(&path).unwrap_err();
        let expected =
            format!("another grace (pid {}) listens on the socket {}", std::process::id(), path.display());
        assert!(reason(&err).starts_with(&expected), "{err}");
        assert!(UnixStream::connect(&path).is_ok(), "the first one still listens");

        drop(first);
        let _second = bind(&path).expect("nobody answers on the file that stayed behind");

        let other = dir.path().join("file");
        fs::write(&other, "precious").unwrap();
        assert!(matches!(bind(&other), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&other).unwrap(), b"precious");

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(bind(&link), Err(BindError::NotASocket { .. })), "a link is not followed");

        let deep = dir.path().join("no/such/grace.sock");
        assert!(reason(&bind(&deep).unwrap_err()).starts_with("cannot create folder"));
        assert!(!dir.path().join("no").exists());
    }
}
