//! `grace tasks`: work for coding agents and people.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::ask::{Failure, with_agent};
use super::show::{Out, escape, escape_lines, paint};
use super::{Answer, Global};
use crate::api::tasks::{ChangeRequest, ClaimRequest};
use crate::api::view::{ClaimedView, TaskView};
use crate::tasks::MAX_TEXT;

/// Arguments of `grace tasks`.
#[derive(Debug, Args)]
pub struct Tasks {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All tasks, oldest first
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// One task with its evidence
    Show {
        /// Its number, such as t-3
        id: String,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Take a task: it is nobody else's until it is released, completed, or its lease is over
    Claim {
        /// Its number [default: the one that came most often]
        id: Option<String>,
        /// Who works on it
        #[arg(long, value_name = "NAME")]
        agent: String,
        /// For how long without a heartbeat [default: [tasks] lease]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        lease: Option<Duration>,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Say that it is still worked on
    Heartbeat {
        #[command(flatten)]
        held: Held,
        /// For how long from now [default: [tasks] lease]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        lease: Option<Duration>,
    },
    /// Add something that was found: a log, a patch, a measurement
    Attach {
        #[command(flatten)]
        held: Held,
        /// What it is
        #[arg(long, value_name = "TEXT")]
        name: String,
        /// A file of text, at most 256 KiB; `-`: stdin
        file: PathBuf,
    },
    /// Say that it is done; it counts as repaired when Grace saw the trigger stay clear
    Complete {
        #[command(flatten)]
        held: Held,
        /// What was done
        #[arg(long, value_name = "TEXT")]
        summary: String,
    },
    /// Give it up: it waits for somebody else
    Release {
        #[command(flatten)]
        held: Held,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// Have one that was submitted, verified or cancelled worked on again
    Reopen {
        /// Its number
        id: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// Say that nobody shall work on it
    Cancel {
        /// Its number
        id: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
}

/// A task that is claimed.
#[derive(Debug, Args)]
struct Held {
    /// Its number
    id: String,
    /// What `claim` printed
    #[arg(long, env = "GRACE_TASK_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: String,
}

impl Tasks {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let change = match self.command {
            Command::List { json } => return list(global, json, out),
            Command::Show { id, json } => {
                let task: TaskView =
                    with_agent(&global.socket, async |agent| Ok(agent.get(&route(&id)?).await?))?;
                if json {
                    out.document(&task)?;
                } else {
                    show(&task, out)?;
                }
                return Ok(0);
            }
            Command::Claim { id, agent, lease, json } => {
                let request = ClaimRequest { id, agent, lease_s: lease.map(|span| span.as_secs()) };
                let claimed: ClaimedView = with_agent(&global.socket, async |agent| {
                    Ok(agent.post("/v1/tasks/claim", &request).await?)
                })?;
                if json {
                    out.document(&claimed)?;
                } else {
                    show(&claimed.task, out)?;
                    out.line(&format!("  {:<11} {} (GRACE_TASK_TOKEN)", "token", claimed.token))?;
                }
                return Ok(0);
            }
            Command::Heartbeat { held, lease } => {
                let lease_s = lease.map(|span| span.as_secs());
                (held.id, ChangeRequest::Heartbeat { token: held.token, lease_s })
            }
            Command::Attach { held, name, file } => {
                (held.id, ChangeRequest::Attach { token: held.token, name, text: text_of(&file)? })
            }
            Command::Complete { held, summary } => {
                (held.id, ChangeRequest::Complete { token: held.token, summary })
            }
            Command::Release { held, why } => (held.id, ChangeRequest::Release { token: held.token, why }),
            Command::Reopen { id, why } => (id, ChangeRequest::Reopen { why }),
            Command::Cancel { id, why } => (id, ChangeRequest::Cancel { why }),
        };
        let (id, request) = change;
        let task: TaskView =
            with_agent(&global.socket, async |agent| Ok(agent.post(&route(&id)?, &request).await?))?;
        if !out.quiet {
            let until = task.claim.map(|claim| format!(" until {}", claim.lease_until)).unwrap_or_default();
            out.line(&format!("{} is {}{until}", task.id, task.state))?;
        }
        Ok(0)
    }
}

/// The route of a task. Its number goes into a path, so nothing else may.
fn route(id: &str) -> Result<String, Failure> {
    let number = id.strip_prefix("t-").filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    match number {
        Some(_) => Ok(format!("/v1/tasks/{id}")),
        None => Err(Failure::No(format!("no task `{}`: `grace tasks list` lists them", escape(id)))),
    }
}

/// Text of a file or of stdin; what is no text is kept as far as it can be shown.
fn text_of(file: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_TEXT as u64 + 1;
    if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes).context("cannot read stdin")?;
    } else {
        std::fs::File::open(file)
            .and_then(|opened| opened.take(most).read_to_end(&mut bytes))
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn list(global: &Global, json: bool, out: &mut Out) -> Answer {
    let tasks: Vec<TaskView> = with_agent(&global.socket, async |agent| Ok(agent.get("/v1/tasks").await?))?;
    if tasks.is_empty() && !json && !out.quiet {
        out.line("no tasks")?;
    }
    for task in &tasks {
        if json {
            out.json(task)?;
        } else {
            let by = task.claim.as_ref().map(|c| format!(", {}", escape(&c.agent))).unwrap_or_default();
            out.line(&format!(
                "{:<5} {:<9} {:<14} {} ({} times{by})",
                task.id, task.state, task.trigger, task.title, task.count
            ))?;
        }
    }
    Ok(0)
}

fn show(task: &TaskView, out: &mut Out) -> Result<(), Failure> {
    out.line(&format!("{} {}", paint(&task.id, "1", out.color), task.title))?;
    out.line(&format!("  {:<11} {}, {} times, by {}", "state", task.state, task.count, task.trigger))?;
    if let Some(claim) = &task.claim {
        out.line(&format!("  {:<11} {} until {}", "claim", escape(&claim.agent), claim.lease_until))?;
    }
    out.line(&format!("  {:<11} {}", "done when", task.acceptance))?;
    for item in &task.evidence {
        out.line(&format!("  {:<11} {} ({})", "evidence", escape(&item.name), item.trust))?;
        for line in escape_lines(&item.text).lines() {
            out.line(&format!("  {:<11}   {line}", ""))?;
        }
    }
    for record in &task.history {
        out.line(&format!("  {:<11} {} {} {}", "history", record.at, record.kind, escape(&record.text)))?;
    }
    Ok(())
}
