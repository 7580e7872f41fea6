//! `grace explain` and `grace triggers`: why something fired, and what can.

use clap::Args;

use super::ask::{segment, with_agent};
use super::show::{Out, escape, firing_line, paint};
use super::{Answer, Global};
use crate::api::view::{ExplainView, TriggerView};
use crate::triggers;

/// Arguments of `grace explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// A firing, such as f-12, or a trigger, such as config_drift
    #[arg(value_name = "ID|TRIGGER")]
    what: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let path = format!("/v1/explain/{}", segment(&self.what));
        let explain: ExplainView = with_agent(&global.socket, async |agent| Ok(agent.get(&path).await?))?;
        if self.json {
            out.document(&explain)?;
            return Ok(0);
        }
        if let Some(firing) = &explain.firing {
            out.line(&firing_line(firing, out.color))?;
            for (name, text) in [
                ("measured", &firing.measured),
                ("threshold", &firing.threshold),
                ("baseline", &firing.baseline),
            ] {
                out.line(&format!("  {name:<10} {}", escape(text)))?;
            }
            out.line(&format!("  {:<10} {}", "since", firing.since))?;
            let since = firing.escalated.as_ref().map(|at| format!(" since {at}")).unwrap_or_default();
            out.line(&format!("  {:<10} {}{since}", "route", firing.route.name()))?;
            if let (Some(at), Some(how)) = (&firing.cleared, &firing.cleared_by) {
                out.line(&format!("  {:<10} {at}: {}", "cleared", escape(how)))?;
            }
            if let Some(via) = firing.noticed_by {
                let via = serde_json::to_value(via).unwrap_or_default();
                out.line(&format!("  {:<10} by {}", "noticed", via.as_str().unwrap_or_default()))?;
            }
            if let Some(writer) = &firing.writer {
                let cgroup = writer.cgroup.as_deref().unwrap_or("unknown");
                let parent = writer.ppid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                out.line(&format!("  {:<10} cgroup {}, parent pid {parent}", "writer", escape(cgroup)))?;
            }
            for line in &firing.evidence {
                out.line(&format!("  {:<10} {}", "output", escape(line)))?;
            }
            for rung in &firing.remedy {
                let why = rung.why.as_deref().map(|w| format!(": {}", escape(w))).unwrap_or_default();
                let state = serde_json::to_value(rung.state).unwrap_or_default();
                out.line(&format!(
                    "  {:<10} {} {}{why}",
                    "remedy",
                    rung.action,
                    state.as_str().unwrap_or_default()
                ))?;
            }
            for record in &explain.journal {
                out.line(&format!(
                    "  {:<10} {} {}: {}",
                    "journal",
                    record.at,
                    record.kind,
                    escape(&record.text)
                ))?;
            }
            out.line("")?;
        }
        out.line(&paint(&explain.trigger, "1", out.color))?;
        for line in explain.help.lines() {
            out.line(&format!("  {}", escape(line)))?;
        }
        out.line(&format!("  Settings ([triggers.{}]):", explain.trigger))?;
        for line in explain.settings.lines() {
            out.line(&format!("    {}", escape(line)))?;
        }
        for note in &explain.notes {
            out.line(&format!("  {:<10} {}", "note", escape(note)))?;
        }
        for firing in &explain.holds {
            out.line(&firing_line(firing, out.color))?;
        }
        Ok(0)
    }
}

/// Arguments of `grace triggers`.
#[derive(Debug, Args)]
pub struct Triggers {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// The table of the README: what each is, without asking an agent
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

impl Triggers {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        if self.markdown {
            out.line(triggers::markdown().trim_end())?;
            return Ok(0);
        }
        let triggers: Vec<TriggerView> =
            with_agent(&global.socket, async |agent| Ok(agent.get("/v1/triggers").await?))?;
        for trigger in &triggers {
            if self.json {
                out.json(trigger)?;
            } else {
                out.line(&format!(
                    "{:<22} {} {} ({} watched, {} firing)",
                    trigger.name,
                    paint(&format!("{:<12}", trigger.route.name()), "2", out.color),
                    trigger.summary,
                    trigger.subjects,
                    trigger.holds
                ))?;
                for note in &trigger.notes {
                    out.line(&format!("{:<14} {}", "", escape(note)))?;
                }
            }
        }
        Ok(0)
    }
}
