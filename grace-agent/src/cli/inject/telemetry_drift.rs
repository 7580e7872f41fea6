//! The fault for `telemetry_drift`: a real HTTP server on loopback whose answers lose a field.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::task::{Watcher, pause};
use super::{PATIENCE, Stop, Teller};
use crate::api::client::Client;
use crate::api::view::EndpointView;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

const GOOD: &str = r#"{"data":[{"id":"m-1","owner":"nobody at all","size":3}],"total":1}"#;
const BAD: &str = r#"{"data":[{"id":"m-1","size":"3"}],"total":1}"#;

/// The server, bound and not yet serving.
pub(super) struct Server {
    listener: std::net::TcpListener,
    url: String,
}

impl Server {
    /// On a free port of loopback.
    pub(super) fn bind() -> Result<Self, Failure> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let address = listener.local_addr().context("cannot listen on loopback")?;
        listener.set_nonblocking(true).context("cannot listen on loopback")?;
        Ok(Self { listener, url: format!("http://{address}/v1/models") })
    }

    /// What the agent needs to know.
    pub(super) fn config(&self) -> String {
        format!("[[endpoint]]\nname = \"inject\"\nurl = \"{}\"\nevery = \"100ms\"\n", self.url)
    }
}

/// The story.
pub(super) async fn tell(
    agent: &Client,
    server: Server,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let body = Arc::new(Mutex::new(GOOD));
    let set = |text| *body.lock().unwrap_or_else(PoisonError::into_inner) = text;
    let listener = tokio::net::TcpListener::from_std(server.listener).context("cannot serve")?;
    tokio::spawn(serve(listener, Arc::clone(&body)));
    let began = Stopwatch::start();
    loop {
        let endpoints: Vec<EndpointView> = agent.get("/v1/endpoints").await?;
        let learned = endpoints.first().and_then(|e| e.learned_from).unwrap_or(0);
        if learned >= 5 {
            teller.tell("learned", &format!("{} from {learned} answers", server.url))?;
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::No("the agent does not learn what the answers look like".to_owned()));
        }
        pause(stop).await?;
    }
    let mut watcher = Watcher::new(agent, Subject::Endpoint("inject".to_owned())).await?;
    teller.fault = Some(Stopwatch::start());
    set(BAD);
    teller.tell("fault", "the server answers without /data/*/owner, and /data/*/size is a string")?;
    watcher.task(teller, stop).await?;
    set(GOOD);
    teller.tell("undone", "the server answers as before")?;
    watcher.cleared(teller, stop).await
}

async fn serve(listener: tokio::net::TcpListener, body: Arc<Mutex<&'static str>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = [0; 4096];
        // Whoever asks and goes away again is asked nothing.
        let _ = stream.read(&mut head).await;
        let text = *body.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}
