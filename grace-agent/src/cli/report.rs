//! `grace heartbeat`, `queue`, `latency`, `error`, `accuracy`: what an application says of itself, from a script.
//!
//! They differ in what they send, and in nothing else.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::ask::{Failure, with_agent};
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::view::RecordsAnswer;
use crate::reported::{Reported, TRACE_MAX};

/// Longest file that is read for a trace; of that the agent keeps begin and end.
const READ_MAX: u64 = 8 * TRACE_MAX as u64;

/// Arguments of `grace heartbeat`.
#[derive(Debug, Args)]
pub struct Heartbeat {
    /// What is alive, such as coding_agent
    name: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Heartbeat {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        send(Reported::Heartbeat { name: self.name }, self.json, global, out)
    }
}

/// Arguments of `grace queue`.
#[derive(Debug, Args)]
pub struct Queue {
    /// The queue, such as message_bus
    name: String,
    /// How many wait in it
    #[arg(allow_negative_numbers = true)]
    depth: f64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Queue {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        send(Reported::Queue { name: self.name, depth: self.depth }, self.json, global, out)
    }
}

/// Arguments of `grace latency`.
#[derive(Debug, Args)]
pub struct Latency {
    /// The route, such as /api/chat
    route: String,
    /// How long an answer took, in milliseconds
    #[arg(allow_negative_numbers = true)]
    ms: f64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Latency {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        send(Reported::Latency { route: self.route, ms: self.ms }, self.json, global, out)
    }
}

/// Arguments of `grace error`.
#[derive(Debug, Args)]
pub struct Error {
    /// Its type, such as ImportError
    #[arg(value_name = "KIND")]
    error: String,
    /// A file with its trace; -: standard input
    #[arg(long, value_name = "FILE|-")]
    trace: Option<PathBuf>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Error {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let trace = self.trace.as_deref().map(read).transpose()?;
        send(Reported::Error { error: self.error, trace }, self.json, global, out)
    }
}

/// Arguments of `grace accuracy`.
#[derive(Debug, Args)]
pub struct Accuracy {
    /// The model, such as grace_reasoning
    model: String,
    /// How good its answers are; more is better
    #[arg(allow_negative_numbers = true)]
    value: f64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Accuracy {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        send(Reported::Accuracy { model: self.model, value: self.value }, self.json, global, out)
    }
}

fn send(record: Reported, json: bool, global: &Global, out: &mut Out) -> Answer {
    // What the agent would refuse for its form is a wrong usage; it need not be asked.
    let record = record.checked().map_err(Failure::Usage)?;
    let answer: RecordsAnswer =
        with_agent(&global.socket, async |agent| Ok(agent.post("/v1/records", &record).await?))?;
    if json {
        out.document(&answer)?;
    }
    match answer.refused.first() {
        None => {
            if !json && !out.quiet {
                out.line("taken in")?;
            }
            Ok(0)
        }
        Some(refused) => Err(Failure::Client(crate::api::client::ClientError::Refused(format!(
            "not taken in: {}",
            escape(&refused.reason)
        )))),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(READ_MAX)
            .read_to_end(&mut bytes)
            .context("cannot read the trace from stdin")?;
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(READ_MAX).read_to_end(&mut bytes))
            .with_context(|| format!("cannot read the trace {}", path.display()))?;
    }
    // A trace is evidence, whatever it is encoded in.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
