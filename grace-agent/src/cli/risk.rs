//! `grace risk`: how likely files need a repair soon, as the history of their repo says.

use std::path::PathBuf;

use clap::Args;

use super::ask::{absolute, segment, with_agent};
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::view::RiskView;

/// Files shown to people where none is named.
const SHOWN: usize = 20;

/// Arguments of `grace risk`.
#[derive(Debug, Args)]
pub struct Risk {
    /// Files below a declared repo; none: all of them, the riskiest first
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Risk {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let queries: Vec<String> = match self.files.is_empty() {
            true => vec!["/v1/risk".to_owned()],
            false => {
                let named = |file: &PathBuf| absolute(file).to_string_lossy().into_owned();
                self.files.iter().map(|file| format!("/v1/risk?path={}", segment(&named(file)))).collect()
            }
        };
        let views: Vec<RiskView> = with_agent(&global.socket, async |agent| {
            let mut views = Vec::new();
            for query in &queries {
                views.append(&mut agent.get::<Vec<RiskView>>(query).await?);
            }
            Ok(views)
        })?;
        if self.json {
            for view in &views {
                out.json(view)?;
            }
            return Ok(0);
        }
        if views.is_empty() && !out.quiet {
            out.line("nothing is rated: [[repo]] in the configuration names a repo")?;
        }
        let shown = if self.files.is_empty() { SHOWN } else { usize::MAX };
        let mut model = None;
        for view in views.iter().take(shown) {
            if model != Some(&view.model) && !out.quiet {
                out.line(&escape(&view.model))?;
            }
            model = Some(&view.model);
            let reasons = view.reasons.join("; ");
            let line = format!("{:>6.1} %  {}  {reasons}", view.risk * 100.0, view.path.display());
            out.line(escape(&line).trim_end())?;
        }
        if views.len() > shown && !out.quiet {
            out.line(&format!("… and {} more: --json has them all", views.len() - shown))?;
        }
        Ok(0)
    }
}
