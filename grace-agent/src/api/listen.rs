//! HTTP on loopback (`[http] listen`): the Model Context Protocol at `/mcp`, for clients that do not speak over stdin.
//!
//! Any process of the host, and any web page that a browser on it shows, can reach a loopback port. So each request must carry
//! the token, which lies in a file that only root reads; its `Host` must be of loopback and it must come from no web page
//! (`Origin`), which keeps pages out that rebind a name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::Client;
use super::mcp::Server;
use crate::config::Http;

/// Connections at the same time; one more waits.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request: an attachment in JSON, each character of which may be escaped.
const MAX_BODY: usize = 2 << 20;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token cannot be read or made.
    #[error("the token in {}: {why}", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A port that is bound, and the digest of its token.
pub struct Listening {
    listener: StdListener,
    token: [u8; 32],
    /// Where it listens.
    pub address: SocketAddr,
}

/// Binds what `config` says; none where it says nothing. The token is made where it is missing.
///
/// # Errors
/// Where the port cannot be had, or others could read the token.
pub fn bind(config: &Http, state: &Path) -> Result<Option<Listening>, ListenError> {
    let Some(address) = config.listen else { return Ok(None) };
    let path = config.token_file.clone().unwrap_or_else(|| state.join("http-token"));
    let token = token(&path).map_err(|err| ListenError::Token { path, why: err.to_string() })?;
    let fail = |source| ListenError::Bind { address, source };
    let listener = StdListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok(Some(Listening { listener, token: Sha256::digest(token.as_bytes()).into(), address }))
}

/// The token in `path`, which only the agent's user may read.
fn token(path: &Path) -> io::Result<String> {
    let open =
        || fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            make(path)?;
            open()?
        }
        opened => opened?,
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.mode() & 0o077 != 0 {
        return Err(io::Error::other("must be a regular file with mode 0600: others could read it"));
    }
    let mut text = String::new();
    File::take(file, 4096).read_to_string(&mut text)?;
    let text = text.trim();
    if text.len() < 16 {
        return Err(io::Error::other("is too short: at least 16 characters"));
    }
    Ok(text.to_owned())
}

fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0_u8; 32];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled < bytes.len() {
        return Err(io::Error::other("the kernel has no randomness yet"));
    }
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()
}

/// Serves until `shutdown` is ready. Every request is passed to the agent at `socket`, as the command line's are.
pub async fn serve(listening: Listening, socket: PathBuf, shutdown: impl Future<Output = ()> + Send) {
    let Listening { listener, token, address } = listening;
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(err) => {
            tracing::error!(%address, %err, "nothing listens");
            return;
        }
    };
    let hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts)
        .enforce_origin_validation()
        .with_max_request_body_bytes(MAX_BODY);
    let ending = config.cancellation_token.clone();
    let agent = Client::new(&socket);
    let mcp = StreamableHttpService::new(
        move || Ok(Server::new(agent.clone())),
        Arc::new(LocalSessionManager::default()),
        config,
    );
    let app = Router::new()
        .route_service("/mcp", mcp)
        .layer(middleware::from_fn_with_state(token, only_with_token));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
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
                tracing::warn!(error = %err, "cannot accept a connection on loopback");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(app.clone());
        connections.spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(err) = served {
                tracing::debug!(error = %err, "a connection on loopback ended early");
            }
            drop(slot);
        });
    }
    ending.cancel();
    connections.shutdown().await;
}

async fn only_with_token(State(token): State<[u8; 32]>, request: Request, next: Next) -> Response {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| <[u8; 32]>::from(Sha256::digest(token.trim().as_bytes())));
    // Digests are compared: how long that takes tells nothing of the token.
    if shown == Some(token) {
        return next.run(request).await;
    }
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Bearer")],
        "this needs the token of Grace's [http]\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_for_its_owner_alone_and_one_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let made = token(&path).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(token(&path).unwrap(), made);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(token(&path).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(token(&link).is_err());
    }
}
