//! Talking to the agent from a subcommand: one small runtime, failures with their exit codes.

use std::path::{Path, PathBuf};

use crate::api::client::{Client, ClientError};

/// Why a subcommand could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent could not be asked, or says no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer is no.
    #[error("{0}")]
    No(String),
    /// Used wrongly, or a wrong configuration.
    #[error("{0}")]
    Usage(String),
    /// Something else, with its causes.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
    /// stdout is closed: whoever read it has seen enough.
    #[error("stdout is closed")]
    Closed,
}

impl Failure {
    /// The exit code that a script can rely on.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Client(ClientError::NoAgent(_) | ClientError::Failed(_)) => 3,
            Self::Client(ClientError::Denied(_) | ClientError::Refused(_)) => 4,
            Self::Client(ClientError::NotFound(_)) | Self::No(_) => 1,
            Self::Client(ClientError::Bad(_)) | Self::Usage(_) | Self::Other(_) => 2,
            Self::Closed => 0,
        }
    }
}

/// Runs `talk` with the agent at `socket`.
pub fn with_agent<T, F: Future<Output = Result<T, Failure>>>(
    socket: &Path,
    talk: impl FnOnce(Client) -> F,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::Other(anyhow::Error::new(err).context("cannot start the runtime")))?;
    runtime.block_on(talk(Client::new(socket)))
}

/// `path` made absolute against this program's folder. Nothing is resolved: the agent does that, and refuses links.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let mut out = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// `text` as one segment of a URL's path.
#[must_use]
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
