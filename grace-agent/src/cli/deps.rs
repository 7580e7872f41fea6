//! `grace deps`: packages and programs, compared with their snapshots.

use clap::{Args, Subcommand};

use super::ask::{Failure, segment, with_agent};
use super::show::{Out, complain, escape};
use super::{Answer, Global};
use crate::api::code::EnvironmentsRequest;
use crate::api::view::DependencyView;

/// Arguments of `grace deps`.
#[derive(Debug, Args)]
pub struct Deps {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take what is installed now as the snapshot
    Snapshot {
        /// Environments; none: every one that is watched
        #[arg(value_name = "ENVIRONMENT")]
        environments: Vec<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Compare what is installed now with the snapshot (exit 1: something changed or is missing)
    Diff {
        /// An environment; none: every one that is watched
        environment: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

impl Deps {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        match self.what {
            What::Snapshot { environments, json } => {
                let request = EnvironmentsRequest { environments };
                let views: Vec<DependencyView> = with_agent(&global.socket, async |agent| {
                    Ok(agent.post("/v1/deps/snapshot", &request).await?)
                })?;
                print(&views, json, out, |view, out| {
                    out.line(&format!("{}: snapshot of {} taken", escape(&view.environment), view.total))
                })
            }
            What::Diff { environment, json } => {
                let query = environment.map(|name| format!("?environment={}", segment(&name)));
                let path = format!("/v1/deps/diff{}", query.unwrap_or_default());
                let views: Vec<DependencyView> =
                    with_agent(&global.socket, async |agent| Ok(agent.get(&path).await?))?;
                let code = print(&views, json, out, differences)?;
                let worse = views.iter().any(|view| view.changes.iter().any(|c| c.was.is_some()));
                Ok(if worse { 1 } else { code })
            }
        }
    }
}

/// Prints each view, or why there is none; exit code 1 where one could not be read.
fn print(
    views: &[DependencyView],
    json: bool,
    out: &mut Out,
    show: impl Fn(&DependencyView, &mut Out) -> Result<(), Failure>,
) -> Answer {
    if views.is_empty() && !json && !out.quiet {
        out.line("no environment is watched: [[environment]] in the configuration names one")?;
    }
    let mut code = 0;
    for view in views {
        if json {
            out.json(view)?;
        } else if view.trouble.is_none() {
            show(view, out)?;
        }
        if let Some(why) = &view.trouble {
            code = 1;
            if !json {
                complain(&Failure::No(format!("{}: {}", escape(&view.environment), escape(why))));
            }
        }
    }
    Ok(code)
}

fn differences(view: &DependencyView, out: &mut Out) -> Result<(), Failure> {
    let snapshot = view.snapshot.as_deref().unwrap_or("none");
    let count = view.changes.len() as u64 + view.more;
    let head =
        format!("{}: {count} of {} differ from the snapshot of {snapshot}", view.environment, view.total);
    out.line(&escape(&head))?;
    for change in &view.changes {
        let was = change.was.as_deref().unwrap_or("nothing");
        let is = change.is.as_deref().unwrap_or("missing");
        out.line(&escape(&format!("  {}  {is}, was {was}", change.name)))?;
        if let Some(undo) = &change.undo {
            out.line(&escape(&format!("    {undo}")))?;
        }
    }
    if view.more > 0 {
        out.line(&format!("  … and {} more", view.more))?;
    }
    Ok(())
}
