//! `grace tasks outbox`: what sinks are told, and what was given up; `grace tasks refused`: what was not even filed.

use clap::{Args, Subcommand};

use crate::api::tasks::{OutboxView, RetryRequest, UnfiledView};
use crate::cli::ask::with_agent;
use crate::cli::show::{Out, escape};
use crate::cli::{Answer, Global};

/// Arguments of `grace tasks outbox`.
#[derive(Debug, Args)]
pub(super) struct Outbox {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only what was given up
    #[arg(long)]
    dead: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try again now what was given up or waits
    Retry {
        /// Its number [default: all]
        seq: Option<i64>,
    },
}

impl Outbox {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        if let Some(Command::Retry { seq }) = self.command {
            let tried: u64 = with_agent(&global.socket, async |agent| {
                Ok(agent.post("/v1/tasks/outbox/retry", &RetryRequest { seq }).await?)
            })?;
            if !out.quiet {
                out.line(&format!("{tried} entries are tried again"))?;
            }
            return Ok(u8::from(tried == 0 && seq.is_some()));
        }
        let route = format!("/v1/tasks/outbox?dead={}", self.dead);
        let entries: Vec<OutboxView> =
            with_agent(&global.socket, async |agent| Ok(agent.get(&route).await?))?;
        if entries.is_empty() && !self.json && !out.quiet {
            out.line("nothing")?;
        }
        for entry in &entries {
            if self.json {
                out.json(entry)?;
                continue;
            }
            let why = if entry.why.is_empty() { String::new() } else { format!(": {}", escape(&entry.why)) };
            let next = entry.next.as_ref().map(|next| format!(", next {next}")).unwrap_or_default();
            let external = entry.external.as_ref().map(|x| format!(" as {}", escape(x))).unwrap_or_default();
            out.line(&format!(
                "{:<5} {:<8} {:<10} {} {}{external}, {} tries{next}{why}",
                entry.seq, entry.state, entry.sink, entry.task, entry.event, entry.tries
            ))?;
        }
        Ok(0)
    }
}

/// `grace tasks refused`.
pub(super) fn refused(global: &Global, json: bool, out: &mut Out) -> Answer {
    let refused: Vec<UnfiledView> =
        with_agent(&global.socket, async |agent| Ok(agent.get("/v1/tasks/refused").await?))?;
    if refused.is_empty() && !json && !out.quiet {
        out.line("none")?;
    }
    for one in &refused {
        if json {
            out.json(one)?;
        } else {
            out.line(&format!(
                "{:<22} {} by [tasks] {}, last {}",
                one.trigger, one.count, one.limit, one.last
            ))?;
        }
    }
    Ok(0)
}
