//! `grace tasks mcp`: the queue of tasks for coding agents, on stdin and stdout. What is served stands in `api/mcp.rs`.

use std::os::fd::{AsFd, BorrowedFd};

use rmcp::ServiceExt;

use crate::api::client::Client;
use crate::api::mcp::Server;
use crate::cli::ask::Failure;

/// Serves until stdin ends.
pub(super) async fn serve(agent: Client) -> Result<(), Failure> {
    let wrong = |err: String| Failure::Other(anyhow::anyhow!("the Model Context Protocol on stdin: {err}"));
    // The descriptors themselves: the command line holds the lock on stdout, in another thread.
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(std::fs::File::from);
    let (input, output) = own(std::io::stdin().as_fd())
        .and_then(|input| Ok((input, own(std::io::stdout().as_fd())?)))
        .map_err(|err| wrong(err.to_string()))?;
    let transport = (tokio::fs::File::from_std(input), tokio::fs::File::from_std(output));
    let running =
        ServiceExt::serve(Server::new(agent), transport).await.map_err(|err| wrong(err.to_string()))?;
    running.waiting().await.map(drop).map_err(|err| wrong(err.to_string()))
}
