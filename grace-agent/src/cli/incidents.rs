//! `grace incidents`: firings that belong together, the cause first.

use clap::Args;

use super::ask::with_agent;
use super::show::{Out, escape, firing_line, paint};
use super::{Answer, Global};
use crate::api::view::IncidentView;
use crate::firing::State;

/// Arguments of `grace incidents`.
#[derive(Debug, Args)]
pub struct Incidents {
    /// Only those with a firing of this time, such as 1h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<std::time::Duration>,
    /// Only those that still hold
    #[arg(long)]
    open: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Incidents {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let path = match self.since {
            Some(since) => format!("/v1/incidents?since_s={}", since.as_secs()),
            None => "/v1/incidents".to_owned(),
        };
        let mut incidents: Vec<IncidentView> =
            with_agent(&global.socket, async |agent| Ok(agent.get(&path).await?))?;
        if self.open {
            incidents.retain(|incident| incident.state == State::Holds);
        }
        if incidents.is_empty() && !self.json && !out.quiet {
            out.line("no incidents")?;
        }
        for incident in &incidents {
            if self.json {
                out.json(incident)?;
                continue;
            }
            let state = match incident.state {
                State::Holds => "holds",
                State::Cleared => "cleared",
                State::Happened => "happened",
            };
            let again = incident.again.map(|id| format!(", back after {id}")).unwrap_or_default();
            out.line(&format!(
                "{} {state}, {} firing{}, since {}{again}: {}",
                paint(&incident.id.to_string(), "1", out.color),
                incident.firings.len(),
                if incident.firings.len() == 1 { "" } else { "s" },
                incident.since,
                escape(&incident.summary)
            ))?;
            for firing in &incident.firings {
                let mark = if firing.id == incident.id { " " } else { "└" };
                out.line(&format!("  {mark} {}", firing_line(firing, out.color)))?;
            }
        }
        Ok(0)
    }
}
