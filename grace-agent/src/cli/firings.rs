//! `grace firings`: what fired and what was done about it; with `--follow` as it happens.

use clap::Args;

use super::ask::{Failure, segment, with_agent};
use super::show::{Out, firing_line};
use super::{Answer, Global};
use crate::api::client::{ClientError, Followed};
use crate::api::view::FiringView;
use crate::firing::{Route, State};

/// Arguments of `grace firings`.
#[derive(Debug, Args)]
pub struct Firings {
    /// Only those that began within this time, such as `1h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<std::time::Duration>,
    /// Only those of this trigger
    #[arg(long, value_name = "NAME")]
    trigger: Option<String>,
    /// Only those that are to be mended by this one now: self_healing, coding_agent
    #[arg(long, value_name = "ROUTE")]
    route: Option<Route>,
    /// Those that hold now, then every change as it happens
    #[arg(long, short)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Firings {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let mut query = vec!["limit=10000".to_owned()];
        // Up to the next second: `--since 500ms` must not mean none.
        query.extend(self.since.map(|since| format!("since_s={}", since.as_millis().div_ceil(1000))));
        query.extend(self.trigger.as_ref().map(|name| format!("trigger={}", segment(name))));
        query.extend(self.route.map(|route| format!("route={}", route.name())));
        let path = format!("/v1/firings?{}", query.join("&"));
        with_agent(&global.socket, async |agent| {
            // The stream first: nothing that happens between the two is missed; a line may come twice.
            let stream = if self.follow { Some(agent.follow().await?) } else { None };
            let firings: Vec<FiringView> = agent.get(&path).await?;
            let shown = firings.iter().filter(|f| !self.follow || f.state == State::Holds);
            for firing in shown {
                self.print(firing, out)?;
            }
            let Some(mut stream) = stream else {
                if firings.is_empty() && !self.json && !out.quiet {
                    out.line("nothing has fired")?;
                }
                return Ok(0);
            };
            out.flush()?;
            loop {
                let next = tokio::select! {
                    next = stream.next() => next,
                    _ = tokio::signal::ctrl_c() => return Ok(0),
                };
                match next {
                    Some(Followed::Firing(firing)) => {
                        if self.trigger.as_ref().is_none_or(|name| *name == firing.trigger)
                            && self.route.is_none_or(|route| route == firing.route)
                        {
                            self.print(&firing, out)?;
                        }
                    }
                    Some(Followed::Lost(n)) if self.json => out.json(&serde_json::json!({ "lost": n }))?,
                    Some(Followed::Lost(n)) => {
                        out.line(&format!("… {n} changes came too fast to be shown"))?
                    }
                    None => return Err(Failure::Client(ClientError::Failed("it has ended".into()))),
                }
                out.flush()?;
            }
        })
    }

    fn print(&self, firing: &FiringView, out: &mut Out) -> Result<(), Failure> {
        if self.json { out.json(firing) } else { out.line(&firing_line(firing, out.color)) }
    }
}
