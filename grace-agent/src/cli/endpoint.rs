//! `grace endpoint`: the polled endpoints, what is known of their answers, and taking new ones as known.

use clap::{Args, Subcommand};

use super::ask::{Failure, segment, with_agent};
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::code::Nothing;
use crate::api::view::EndpointView;

/// Arguments of `grace endpoint`.
#[derive(Debug, Args)]
pub struct Endpoint {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The endpoints and their last answers
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// What is known of an endpoint's answers, as JSON Schema
    Show {
        /// Its name; without one in the configuration, its URL
        name: String,
    },
    /// Take an endpoint's answers as they are now as known, and go on to learn from there
    Accept {
        /// Its name; without one in the configuration, its URL
        name: String,
    },
}

impl Endpoint {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        match self.what {
            What::List { json } => list(global, json, out),
            What::Show { name } => {
                let view = all(global)?.into_iter().find(|view| view.name == name).ok_or_else(|| {
                    Failure::No(format!("no endpoint `{}`: `grace endpoint list` lists them", escape(&name)))
                })?;
                match (&view.schema, &view.openapi) {
                    (Some(schema), _) => out.document(schema)?,
                    (None, Some(document)) => {
                        return Err(Failure::No(format!(
                            "{} says it",
                            escape(&document.display().to_string())
                        )));
                    }
                    (None, None) => {
                        return Err(Failure::No("nothing is known of its answers yet".to_owned()));
                    }
                }
                Ok(0)
            }
            What::Accept { name } => {
                let path = format!("/v1/endpoints/{}/accept", segment(&name));
                let view: EndpointView =
                    with_agent(&global.socket, async |agent| Ok(agent.post(&path, &Nothing {}).await?))?;
                out.line(&format!("{}: its answers as they are now are known", escape(&view.name)))?;
                Ok(0)
            }
        }
    }
}

fn all(global: &Global) -> Result<Vec<EndpointView>, Failure> {
    with_agent(&global.socket, async |agent| Ok(agent.get("/v1/endpoints").await?))
}

fn list(global: &Global, json: bool, out: &mut Out) -> Answer {
    let views = all(global)?;
    if views.is_empty() && !json && !out.quiet {
        out.line("no endpoint is declared: [[endpoint]] in the configuration names one")?;
    }
    for view in &views {
        if json {
            out.json(view)?;
            continue;
        }
        let known = match (&view.openapi, view.learned_from) {
            (Some(document), _) => format!("declared by {}", document.display()),
            (None, Some(n)) => format!("learned from {n} answers"),
            (None, None) => "nothing learned yet".to_owned(),
        };
        let last = match (&view.asked, &view.trouble) {
            (_, Some(why)) => why.clone(),
            (Some(at), None) => format!("answered at {at}"),
            (None, None) => "not asked yet".to_owned(),
        };
        let name = if view.name == view.url { String::new() } else { format!("{}  ", view.name) };
        out.line(&escape(&format!("{name}{}  {known}  {last}", view.url)))?;
    }
    Ok(0)
}
