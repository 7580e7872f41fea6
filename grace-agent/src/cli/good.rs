//! `grace good`: marks the commit that is checked out as the known-good one.

use std::path::PathBuf;

use clap::Args;

use super::ask::{absolute, with_agent};
use super::show::{Out, complain, escape};
use super::{Answer, Global};
use crate::api::code::GoodRequest;
use crate::api::view::GoodView;
use crate::cli::ask::Failure;

/// Arguments of `grace good`.
#[derive(Debug, Args)]
pub struct Good {
    /// Folders of repos that the configuration declares; none: every one of them
    #[arg(value_name = "REPO")]
    repos: Vec<PathBuf>,
    /// Also where tracked files are not as committed
    #[arg(long)]
    force: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Good {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let repos = self.repos.iter().map(|repo| absolute(repo)).collect();
        let request = GoodRequest { repos, force: self.force };
        let views: Vec<GoodView> =
            with_agent(&global.socket, async |agent| Ok(agent.post("/v1/good", &request).await?))?;
        let mut code = 0;
        for view in &views {
            let repo = escape(&view.repo.display().to_string()).into_owned();
            if let Some(why) = &view.error {
                code = 1;
                if !self.json {
                    complain(&Failure::No(format!("{repo}: {why}")));
                }
            }
            if self.json {
                out.json(view)?;
            } else if let Some(commit) = &view.commit {
                let but = match view.dirty.len() {
                    0 => String::new(),
                    n => format!(", but files that are not as in it: {n}"),
                };
                out.line(&format!("{repo}: commit {} is known-good{but}", escape(commit)))?;
            }
        }
        Ok(code)
    }
}
