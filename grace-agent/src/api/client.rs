//! The asking side of the socket: what the command line and `inject` speak to the agent with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::view::FiringView;

/// A little longer than the server gives itself: its own words about it are better than ours.
const TIMEOUT: Duration = Duration::from_secs(75);

/// Why the agent could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent at {path}: start it with `grace run` (as root, for the kernel probes)", path = .0.display())]
    NoAgent(PathBuf),
    /// The socket is not for this user.
    #[error("{path} is not for this user: run as root or as the agent's own user", path = .0.display())]
    Denied(PathBuf),
    /// The agent says no: not found.
    #[error("{0}")]
    NotFound(String),
    /// The agent says no: refused.
    #[error("{0}")]
    Refused(String),
    /// The agent says no: the request is wrong.
    #[error("{0}")]
    Bad(String),
    /// The agent failed, or ended meanwhile.
    #[error("the agent did not answer: {0}")]
    Failed(String),
}

/// An agent's socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent at `socket`; nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for a document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Sends a document and takes the answer.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|err| ClientError::Bad(err.to_string()))?;
        self.call(Method::POST, path, body.into()).await
    }

    /// The same for what may take hours: hashing weights. An agent that ends ends it.
    pub async fn post_and_wait<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|err| ClientError::Bad(err.to_string()))?;
        let (_connection, response) = self.send(Method::POST, path, body.into()).await?;
        let status = response.status();
        read(status, &collect(response).await?)
    }

    /// Removes what `path` names.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// Every change of a firing from now on.
    pub async fn follow(&self) -> Result<Follow, ClientError> {
        let (sender, response) = in_time(self.send(Method::GET, "/v1/firings/stream", Bytes::new())).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(problem(status, &collect(response).await?));
        }
        Ok(Follow { body: response.into_body(), buffer: Vec::new(), _connection: sender })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let (status, bytes) = in_time(async {
            let (_connection, response) = self.send(method, path, body).await?;
            Ok((response.status(), collect(response).await?))
        })
        .await?;
        read(status, &bytes)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|err| match err.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::NotADirectory => ClientError::NoAgent(self.socket.clone()),
            _ => ClientError::Failed(err.to_string()),
        })?;
        let failed = |err: hyper::Error| ClientError::Failed(err.to_string());
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // It ends with the sender; what goes wrong the request itself tells.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "grace")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|err| ClientError::Bad(err.to_string()))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        Ok((sender, response))
    }
}

/// A hung agent must not hang whoever asks it.
async fn in_time<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_elapsed| {
        Err(ClientError::Failed(format!("nothing came within {} s", TIMEOUT.as_secs())))
    })
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await.map_err(|err| ClientError::Failed(err.to_string()))?;
    Ok(body.to_bytes())
}

fn read<T: DeserializeOwned>(status: StatusCode, bytes: &[u8]) -> Result<T, ClientError> {
    if !status.is_success() {
        return Err(problem(status, bytes));
    }
    serde_json::from_slice(bytes)
        .map_err(|err| ClientError::Failed(format!("its answer is of another version ({err})")))
}

fn problem(status: StatusCode, body: &[u8]) -> ClientError {
    let said = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|v| v["error"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    match status {
        StatusCode::NOT_FOUND => ClientError::NotFound(said),
        StatusCode::FORBIDDEN => ClientError::Refused(said),
        s if s.is_client_error() => ClientError::Bad(said),
        _ => ClientError::Failed(said),
    }
}

/// A stream of firings.
pub struct Follow {
    body: Incoming,
    buffer: Vec<u8>,
    _connection: SendRequest<Full<Bytes>>,
}

/// What the stream brought.
#[derive(Debug)]
pub enum Followed {
    /// A firing is new or has changed.
    Firing(Box<FiringView>),
    /// So many changes came too fast and were left out.
    Lost(u64),
}

impl Follow {
    /// The next change; none when the agent has ended.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            // An event ends with an empty line.
            while let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(followed) = decode(&event) {
                    return Some(followed);
                }
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

fn decode(event: &[u8]) -> Option<Followed> {
    let text = std::str::from_utf8(event).ok()?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim_start);
    let data = field("data:")?;
    match field("event:") {
        Some("lost") => data.parse().ok().map(Followed::Lost),
        _ => serde_json::from_str(data).ok().map(|f| Followed::Firing(Box::new(f))),
    }
}
