//! `grace diff`: how an owned file differs from what is kept of it.

use std::path::PathBuf;

use clap::Args;

use super::ask::{absolute, with_agent};
use super::at::At;
use super::show::{Out, escape, paint};
use super::{Answer, Global};
use crate::api::server::PathRequest;
use crate::api::store::{DiffContent, DiffView};

/// Arguments of `grace diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// An owned file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The snapshot to compare with, by number or by time (`2h`, `2026-11-24 10:00`) [default: the current one]
    #[arg(long, value_name = "ID|TIME")]
    at: Option<At>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let path = absolute(&self.path);
        let view: DiffView = with_agent(&global.socket, async |agent| {
            let at = match &self.at {
                Some(at) => Some(at.version(&agent, &path).await?),
                None => None,
            };
            Ok(agent.post("/v1/diff", &PathRequest { path, at }).await?)
        })?;
        let differs = u8::from(!view.drift.is_empty());
        if self.json {
            out.json(&view)?;
            return Ok(differs);
        }
        for line in view.diff.lines() {
            let sgr = match line.as_bytes() {
                [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] => "1",
                [b'+', ..] => "32",
                [b'-', ..] => "31",
                [b'@', ..] => "36",
                _ => "",
            };
            // What the file holds may be anything; tabs are harmless and belong to it.
            let line = line.split('\t').map(escape).collect::<Vec<_>>().join("\t");
            out.line(&if sgr.is_empty() { line } else { paint(&line, sgr, out.color) })?;
        }
        let name = escape(&view.path.display().to_string()).into_owned();
        let said = match view.content {
            DiffContent::Same | DiffContent::Text => None,
            DiffContent::Binary => Some("binary content differs"),
            DiffContent::Secret => Some("the secret differs; its content is not shown"),
            DiffContent::TooLarge => Some("content differs; it is too large to be compared line by line"),
            DiffContent::Missing => Some("there is no such regular file now"),
        };
        if let Some(said) = said {
            out.line(&format!("{name}: {said}"))?;
        }
        // The content was shown, or was said to differ.
        let rest: Vec<&String> = view.drift.iter().filter(|d| !d.starts_with("content")).collect();
        if view.content != DiffContent::Missing {
            for drift in rest {
                out.line(&format!("{name}: {}", escape(drift)))?;
            }
        }
        if view.drift.is_empty() && !out.quiet {
            out.line(&format!("{name}: as in snapshot {}", view.snapshot))?;
        }
        Ok(differs)
    }
}
