//! `grace tasks`: work for coding agents and people.

use clap::{Args, Subcommand};

use super::ask::{Failure, with_agent};
use super::show::{Out, escape, escape_lines, paint};
use super::{Answer, Global};
use crate::api::view::TaskView;

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
}

impl Tasks {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let tasks: Vec<TaskView> =
            with_agent(&global.socket, async |agent| Ok(agent.get("/v1/tasks").await?))?;
        match self.command {
            Command::List { json } => {
                if tasks.is_empty() && !json && !out.quiet {
                    out.line("no tasks")?;
                }
                for task in &tasks {
                    if json {
                        out.json(task)?;
                    } else {
                        out.line(&format!(
                            "{:<5} {:<9} {:<14} {} ({} times)",
                            task.id, task.state, task.trigger, task.title, task.count
                        ))?;
                    }
                }
            }
            Command::Show { id, json } => {
                let task = tasks.iter().find(|t| t.id == id).ok_or_else(|| {
                    Failure::No(format!("no task `{}`: `grace tasks list` lists them", escape(&id)))
                })?;
                if json {
                    out.document(task)?;
                    return Ok(0);
                }
                out.line(&format!("{} {}", paint(&task.id, "1", out.color), task.title))?;
                out.line(&format!(
                    "  {:<11} {}, {} times, by {}",
                    "state", task.state, task.count, task.trigger
                ))?;
                out.line(&format!("  {:<11} {}", "done when", task.acceptance))?;
                for item in &task.evidence {
                    out.line(&format!("  {:<11} {} ({})", "evidence", item.name, item.trust))?;
                    for line in escape_lines(&item.text).lines() {
                        out.line(&format!("  {:<11}   {line}", ""))?;
                    }
                }
                for record in &task.history {
                    out.line(&format!("  {:<11} {} {}", "history", record.at, escape(&record.text)))?;
                }
            }
        }
        Ok(0)
    }
}
