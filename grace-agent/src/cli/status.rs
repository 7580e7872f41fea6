//! `grace status`: how the agent is.

use clap::Args;

use super::ask::with_agent;
use super::show::{Out, status_page};
use super::{Answer, Global};
use crate::api::view::StatusView;

/// Arguments of `grace status`.
#[derive(Debug, Args)]
pub struct Status {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let status: StatusView =
            with_agent(&global.socket, async |agent| Ok(agent.get("/v1/status").await?))?;
        if self.json {
            out.document(&status)?;
        } else {
            out.line(&status_page(&status, false, out.color))?;
        }
        Ok(0)
    }
}
