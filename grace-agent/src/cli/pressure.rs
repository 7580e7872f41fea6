//! `grace pressure`: how full each resource of the host is, and from whom load would be taken first.

use clap::Args;

use super::ask::with_agent;
use super::show::{Out, escape, paint};
use super::{Answer, Global};
use crate::api::gpu::PressureView;

/// Arguments of `grace pressure`.
#[derive(Debug, Args)]
pub struct Pressure {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Pressure {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let view: PressureView =
            with_agent(&global.socket, async |agent| Ok(agent.get("/v1/pressure").await?))?;
        if self.json {
            out.document(&view)?;
            return Ok(0);
        }
        if view.readings.is_empty() {
            out.line("nothing was looked at yet")?;
        } else {
            out.line(&paint(&format!("{:<28} {:>8} {:>8}", "RESOURCE", "USED", "LIMIT"), "1", out.color))?;
        }
        for reading in &view.readings {
            let used = format!("{:>6.1} %", reading.percent);
            let over = reading.limit.is_some_and(|limit| reading.percent > limit);
            let sgr = if reading.firing.is_some() {
                "31"
            } else if over {
                "33"
            } else {
                "0"
            };
            let limit = reading.limit.map_or_else(|| "-".to_owned(), |limit| format!("{limit} %"));
            let firing =
                reading.firing.map(|id| format!("  {id} holds: `grace explain {id}`")).unwrap_or_default();
            out.line(&format!(
                "{:<28} {} {limit:>8}{firing}",
                escape(&reading.resource),
                paint(&used, sgr, out.color)
            ))?;
        }
        if !view.processes.is_empty() {
            let steps: Vec<String> =
                view.steps.iter().map(|step| format!("{step:?}").to_lowercase()).collect();
            let how = if steps.is_empty() { "not at all".to_owned() } else { steps.join(", then ") };
            out.line("")?;
            out.line(&format!("load is taken from the first, {how}:"))?;
        }
        for process in &view.processes {
            let memory =
                process.memory_bytes.map(|bytes| format!(", {} MiB", bytes >> 20)).unwrap_or_default();
            let waits: Vec<String> = [
                ("cpu", process.cpu_wait_percent),
                ("memory", process.memory_wait_percent),
                ("io", process.io_wait_percent),
            ]
            .into_iter()
            .filter_map(|(what, percent)| Some(format!("{what} {:.1} %", percent.filter(|p| *p > 0.0)?)))
            .collect();
            let waits =
                if waits.is_empty() { String::new() } else { format!(", waits for {}", waits.join(", ")) };
            let preference =
                process.preference.as_deref().map(|p| format!(", {}", escape(p))).unwrap_or_default();
            let shed = process.shed.map(|step| format!(", shed: {}", format!("{step:?}").to_lowercase()));
            let importance = match process.importance {
                100 => "never".to_owned(),
                importance => format!("importance {importance}"),
            };
            out.line(&format!(
                "  {} ({importance}{memory}{waits}{preference}{})",
                escape(&process.process),
                shed.unwrap_or_default()
            ))?;
        }
        Ok(0)
    }
}
