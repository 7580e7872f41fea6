//! `grace pause` and `grace resume`: maintenance windows. Firings are still reported; nothing is repaired and no task is
//! filed until the window ends.

use std::path::PathBuf;

use clap::Args;

use super::ask::{Failure, absolute, with_agent};
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::server::{PauseRequest, ResumeRequest};
use crate::api::view::PauseView;
use crate::firing::{Scope, Subject};

/// Arguments of `grace pause`.
#[derive(Debug, Args)]
#[command(
    after_help = "SUBJECT is `all`, a path, the name of a process, `trigger:NAME`, or KIND:NAME as `grace \
                        firings --json` names subjects (`process:worker`, `host:memory`)."
)]
pub struct Pause {
    /// What shall rest; none: list what does
    #[arg(value_name = "SUBJECT", requires = "span", requires = "why")]
    subject: Option<String>,
    /// For how long, such as 30m or 2h
    #[arg(long = "for", id = "span", value_name = "TIME", requires = "subject", value_parser = humantime::parse_duration)]
    span: Option<std::time::Duration>,
    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT", requires = "subject")]
    why: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let (Some(subject), Some(span), Some(why)) = (&self.subject, self.span, &self.why) else {
            let pauses: Vec<PauseView> =
                with_agent(&global.socket, async |agent| Ok(agent.get("/v1/pauses").await?))?;
            if pauses.is_empty() && !self.json && !out.quiet {
                out.line("nothing is paused")?;
            }
            return self.print(&pauses, out);
        };
        let request = PauseRequest { scope: scope(subject)?, seconds: span.as_secs(), why: why.clone() };
        let pause: PauseView =
            with_agent(&global.socket, async |agent| Ok(agent.post("/v1/pause", &request).await?))?;
        self.print(&[pause], out)
    }

    fn print(&self, pauses: &[PauseView], out: &mut Out) -> Answer {
        for pause in pauses {
            if self.json {
                out.json(pause)?;
            } else if !out.quiet {
                out.line(&format!(
                    "{} rests until {}: {} ({})",
                    escape(&pause.subject),
                    pause.until,
                    escape(&pause.why),
                    escape(&pause.by)
                ))?;
            }
        }
        Ok(0)
    }
}

/// Arguments of `grace resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// What shall rest no more, as `grace pause` lists it; `all` also closes the breaker
    #[arg(value_name = "SUBJECT")]
    subject: String,
}

impl Resume {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let request = ResumeRequest { scope: scope(&self.subject)? };
        let (): () =
            with_agent(&global.socket, async |agent| Ok(agent.post("/v1/resume", &request).await?))?;
        if !out.quiet {
            out.line(&format!("{} is looked after again", escape(&self.subject)))?;
        }
        Ok(0)
    }
}

/// What a person means by `text`.
fn scope(text: &str) -> Result<Scope, Failure> {
    if text == "all" {
        return Ok(Scope::All);
    }
    if let Some(name) = text.strip_prefix("trigger:") {
        if crate::triggers::specs().iter().any(|spec| spec.name == name) {
            return Ok(Scope::Trigger(name.to_owned()));
        }
        return Err(Failure::Usage(format!("no trigger `{}`: `grace triggers` lists them", escape(name))));
    }
    if text.starts_with(['/', '.']) {
        return Ok(Scope::Subject(Subject::File(absolute(&PathBuf::from(text)))));
    }
    let Some((kind, name)) = text.split_once(':') else {
        return Ok(Scope::Subject(Subject::Process(text.to_owned())));
    };
    let subject = serde_json::json!({ "kind": kind, "name": name });
    serde_json::from_value(subject).map(Scope::Subject).map_err(|_not_a_kind| {
        Failure::Usage(format!(
            "`{}` is no kind of subject: say `all`, a path, a process, `trigger:NAME` or KIND:NAME as in `grace \
             firings --json`",
            escape(kind)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_said_as_people_say_it() {
        let of = |text: &str| scope(text).map_err(|err| err.to_string());
        assert_eq!(of("all"), Ok(Scope::All));
        assert_eq!(of("worker"), Ok(Scope::Subject(Subject::Process("worker".into()))));
        assert_eq!(of("/etc/a.conf"), Ok(Scope::Subject(Subject::File("/etc/a.conf".into()))));
        assert_eq!(of("host:memory"), Ok(Scope::Subject(Subject::Host("memory".into()))));
        assert_eq!(of("trigger:health_gap"), Ok(Scope::Trigger("health_gap".into())));
        assert!(of("trigger:nonsense").is_err());
        assert!(of("nonsense:x").unwrap_err().contains("no kind of subject"));
    }
}
