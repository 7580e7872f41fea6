//! `grace replay`: a recorded event stream judged again, under its own configuration or another.

use std::path::PathBuf;

use clap::Args;

use super::ask::Failure;
use super::show::{Out, firing_line};
use super::{Answer, Global};
use crate::api::view::FiringView;
use crate::config::Config;
use crate::error_chain::chain;
use crate::firing::Firing;
use crate::recording;
use crate::replay::{Replayed, replay};

/// Arguments of `grace replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// A recording, such as /var/lib/grace/events/00000001.jsonl
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Judge under this configuration and show what differs (exit 1 where something does)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object a line: the firings
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) fn go(self, _global: &Global, out: &mut Out) -> Answer {
        let (recorded, events) = recording::read(&self.file).map_err(|err| Failure::Usage(chain(&err)))?;
        let was = replay(&recorded, &events);
        let now = match &self.config {
            Some(file) => {
                let (config, _) = Config::load(Some(file)).map_err(|err| Failure::Usage(chain(&err)))?;
                Some(replay(&config, &events))
            }
            None => None,
        };
        let shown = now.as_ref().unwrap_or(&was);
        for firing in &shown.firings {
            let view = view(firing);
            if self.json {
                out.json(&view)?;
            } else {
                out.line(&firing_line(&view, out.color))?;
            }
        }
        let Some(now) = &now else {
            if !self.json && !out.quiet {
                out.line(&format!("{} events, {} firings", was.events, was.firings.len()))?;
            }
            return Ok(0);
        };
        let differences = differences(&was, now);
        if !self.json && !out.quiet {
            out.line(&format!(
                "{} events: {} firings as recorded, {} under {}",
                was.events,
                was.firings.len(),
                now.firings.len(),
                self.config.as_ref().map(|c| c.display().to_string()).unwrap_or_default()
            ))?;
            for line in &differences {
                out.line(line)?;
            }
        }
        Ok(u8::from(!differences.is_empty()))
    }
}

/// Firings in the time of the recording: it is not this boot's, so no wall time is claimed.
fn view(firing: &Firing) -> FiringView {
    FiringView::new(firing, |at| format!("boot+{:.6}s", at.0 as f64 / 1e9))
}

fn differences(was: &Replayed, now: &Replayed) -> Vec<String> {
    let key = |f: &Firing| {
        let rungs: Vec<String> = f.remedy.iter().map(|r| format!("{} {:?}", r.action, r.state)).collect();
        format!("{} {} {} [{}]", f.trigger, f.subject, f.summary, rungs.join(", "))
    };
    let (was, now): (Vec<String>, Vec<String>) =
        (was.firings.iter().map(key).collect(), now.firings.iter().map(key).collect());
    let gone = was.iter().filter(|k| !now.contains(k)).map(|k| format!("- {}", super::show::escape(k)));
    let new = now.iter().filter(|k| !was.contains(k)).map(|k| format!("+ {}", super::show::escape(k)));
    gone.chain(new).collect()
}
