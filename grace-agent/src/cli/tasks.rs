//! `grace tasks`: work for coding agents and people.

mod mcp;
mod outbox;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::ask::{Failure, with_agent};
use super::show::{Out, escape, escape_lines, paint};
use super::{Answer, Global};
use crate::api::tasks::{ChangeRequest, ClaimRequest, route_of};
use crate::api::view::{ClaimedView, TaskView};
use crate::tasks::{MAX_TEXT, render};

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
    /// Have it wait until another task is over
    After {
        /// Its number
        id: String,
        /// The other one's number
        #[arg(long, value_name = "ID")]
        on: String,
    },
    /// Evidence of a task as files: list it, or print one item
    Evidence {
        /// Its number
        id: String,
        /// The item's number or name [default: all are listed]
        item: Option<String>,
    },
    /// What is told to sinks: what waits, was sent, or was given up
    Outbox(outbox::Outbox),
    /// Tasks that were not filed because there were too many
    Refused {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Serve the queue to coding agents over the Model Context Protocol on stdin and stdout
    Mcp,
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
            Command::Outbox(outbox) => return outbox.go(global, out),
            Command::Refused { json } => return outbox::refused(global, json, out),
            Command::Evidence { id, item } => return evidence(global, &id, item.as_deref(), out),
            Command::Mcp => {
                with_agent(&global.socket, async |agent| mcp::serve(agent).await)?;
                return Ok(0);
            }
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
            Command::After { id, on } => (id, ChangeRequest::After { on }),
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

/// The route of a task.
fn route(id: &str) -> Result<String, Failure> {
    route_of(id)
        .ok_or_else(|| Failure::No(format!("no task `{}`: `grace tasks list` lists them", escape(id))))
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
    let mut after = "t-0".to_owned();
    let mut none = true;
    // Page by page: there may be more of them than fit into an answer.
    loop {
        let page: Vec<TaskView> = with_agent(&global.socket, async |agent| {
            Ok(agent.get(&format!("/v1/tasks?after={after}")).await?)
        })?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.id);
        none = false;
        for task in &page {
            if json {
                out.json(task)?;
                continue;
            }
            let by = task.claim.as_ref().map(|c| format!(", {}", escape(&c.agent))).unwrap_or_default();
            out.line(&format!(
                "{:<5} {:<9} {:<14} {} ({} times{by})",
                task.id, task.state, task.trigger, task.title, task.count
            ))?;
        }
    }
    if none && !json && !out.quiet {
        out.line("no tasks")?;
    }
    Ok(0)
}

fn show(task: &TaskView, out: &mut Out) -> Result<(), Failure> {
    out.line(&format!("{} {}", paint(&task.id, "1", out.color), escape(&task.title)))?;
    for line in render::terminal(task) {
        out.line(&format!("  {line}"))?;
    }
    for record in &task.history {
        out.line(&format!("  history {} {} {}", record.at, record.kind, escape(&record.text)))?;
    }
    Ok(())
}

/// The items of a task, or the content of one as it is: for files and pipes, so a terminal gets it escaped.
fn evidence(global: &Global, id: &str, item: Option<&str>, out: &mut Out) -> Answer {
    let task: TaskView = with_agent(&global.socket, async |agent| Ok(agent.get(&route(id)?).await?))?;
    let Some(wanted) = item else {
        for (n, item) in task.evidence.iter().enumerate() {
            out.line(&format!(
                "{n:>3} {:<24} {:<9} {:>7} bytes {} {}",
                escape(&item.name),
                item.trust,
                item.bytes,
                item.sha256,
                escape(&item.source)
            ))?;
        }
        return Ok(0);
    };
    let place = wanted.parse::<usize>().ok();
    let found = task
        .evidence
        .iter()
        .enumerate()
        .find(|(n, item)| place.map_or(item.name == wanted, |place| place == *n))
        .ok_or_else(|| Failure::No(format!("{} has no evidence `{}`", task.id, escape(wanted))))?;
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        out.line(&escape_lines(&found.1.text))?;
    } else {
        out.text(&found.1.text)?;
    }
    Ok(0)
}
