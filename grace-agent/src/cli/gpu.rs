//! `grace gpu`: every GPU of the host, what is wrong with it and what to do, and who uses it.

use clap::Args;

use super::ask::with_agent;
use super::show::{Out, escape, paint};
use super::{Answer, Global};
use crate::api::gpu::{GpuView, GpusView, ProblemView};
use crate::api::view::Health;

/// Arguments of `grace gpu`.
#[derive(Debug, Args)]
pub struct Gpu {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Gpu {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let view: GpusView = with_agent(&global.socket, async |agent| Ok(agent.get("/v1/gpu").await?))?;
        if self.json {
            out.document(&view)?;
            return Ok(0);
        }
        let sgr = if view.state == Health::Degraded { "31" } else { "2" };
        out.line(&paint(&escape(&view.detail), sgr, out.color))?;
        problems(out, "", &view.problems)?;
        if !view.gpus.is_empty() {
            out.line(&paint(&heading(), "1", out.color))?;
        }
        for gpu in &view.gpus {
            let sgr = match gpu.health.as_str() {
                "ok" => "32",
                _ => "31",
            };
            out.line(&row(gpu, &paint(&format!("{:<8}", escape(&gpu.health)), sgr, out.color)))?;
            problems(out, "     ", &gpu.problems)?;
            let sample = &gpu.sample;
            for process in &sample.processes {
                let whose = process.process.as_deref().map(|name| format!("process {}", escape(name)));
                let memory =
                    process.memory.map_or_else(|| "?".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
                let sm = process.sm.map(|sm| format!(", {sm} % busy")).unwrap_or_default();
                let instance = process.gpu_instance.map(|id| format!(", instance {id}")).unwrap_or_default();
                out.line(&format!(
                    "     pid {} {} {}: {memory}{sm}{instance}",
                    process.pid,
                    escape(&process.comm),
                    whose.as_deref().unwrap_or("(not declared)")
                ))?;
            }
        }
        Ok(0)
    }
}

fn problems(out: &mut Out, indent: &str, problems: &[ProblemView]) -> Result<(), super::ask::Failure> {
    for problem in problems {
        out.line(&format!(
            "{indent}{} {} {}",
            paint("!", "31", out.color),
            paint(&problem.firing.to_string(), "2", out.color),
            escape(&problem.summary)
        ))?;
        out.line(&format!("{indent}  {} {}", paint("→", "2", out.color), escape(&problem.advice)))?;
    }
    Ok(())
}

fn heading() -> String {
    format!(
        "{:<4} {:<8} {:<24} {:>6} {:>19} {:>13} {:>6}  {}",
        "GPU", "HEALTH", "NAME", "BUSY", "MEMORY (MiB)", "POWER (W)", "HEAT", "ERRORS"
    )
}

fn row(gpu: &GpuView, health: &str) -> String {
    let of = &gpu.sample;
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut name = of.name.strip_prefix("NVIDIA ").unwrap_or(&of.name).to_owned();
    name.truncate(name.char_indices().nth(24).map_or(name.len(), |(at, _)| at));
    let memory =
        of.memory_used.zip(of.memory_total).map(|(used, total)| format!("{} of {}", used >> 20, total >> 20));
    let power = match (of.power_w, of.power_limit_w) {
        (Some(now), Some(limit)) => Some(format!("{now:.0} of {limit:.0}")),
        (Some(now), None) => Some(format!("{now:.0}")),
        _ => None,
    };
    let mut errors = Vec::new();
    match of.ecc_uncorrected {
        Some(0) => errors.push("none".to_owned()),
        Some(n) => errors.push(format!("{n} uncorrected")),
        None => errors.push("-".to_owned()),
    }
    if !of.throttled.is_empty() {
        errors.push(of.throttled.join(" "));
    }
    if of.mig == Some(true) {
        errors.push(format!("cut into {}", of.mig_devices.len()));
    }
    format!(
        "{:<4} {health} {:<24} {:>6} {:>19} {:>13} {:>6}  {}",
        of.index,
        escape(&name),
        text(of.utilization.map(|percent| format!("{percent} %"))),
        text(memory),
        text(power),
        text(of.temperature_c.map(|c| format!("{c} °C"))),
        escape(&errors.join(", "))
    )
}
