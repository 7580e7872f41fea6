//! `grace config`: check a configuration, show the one in force, its schema.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ask::{Failure, with_agent};
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::client::ClientError;
use crate::config;
use crate::error_chain::chain;

/// Arguments of `grace config`.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a configuration is good; exit 2 and the place where it is not
    Check {
        /// The file [default: /etc/grace/grace.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// The configuration in force at the agent, or what a file would give
    Show {
        /// The file instead of the agent's
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Every key with its default, explained and commented out
        #[arg(long, conflicts_with = "config")]
        defaults: bool,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// JSON Schema of the configuration
    Schema,
}

impl Config {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        match self.command {
            Command::Check { config, json } => {
                let result = config::Config::load(config.as_deref());
                if json {
                    let error = result.as_ref().err().map(|err| format!("{:#}", chain(err)));
                    out.document(&serde_json::json!({ "ok": result.is_ok(), "error": error }))?;
                    return Ok(if result.is_ok() { 0 } else { 2 });
                }
                let (_, file) = result.map_err(|err| Failure::Usage(chain(&err)))?;
                if !out.quiet {
                    out.line(&match file {
                        Some(file) => format!("{}: good", escape(&file.display().to_string())),
                        None => format!("no {}: the defaults are good", config::DEFAULT_FILE),
                    })?;
                }
            }
            Command::Show { defaults: true, .. } => {
                out.line(config::Config::commented_defaults().trim_end())?
            }
            Command::Show { config: Some(file), json, .. } => {
                let (config, _) =
                    config::Config::load(Some(&file)).map_err(|err| Failure::Usage(chain(&err)))?;
                show(&config, json, out)?;
            }
            Command::Show { config: None, json, .. } => {
                let asked = with_agent(&global.socket, async |agent| Ok(agent.get("/v1/config").await?));
                let config = match asked {
                    // No agent: what one would start with.
                    Err(Failure::Client(ClientError::NoAgent(_))) => {
                        config::Config::load(None).map_err(|err| Failure::Usage(chain(&err)))?.0
                    }
                    other => other?,
                };
                show(&config, json, out)?;
            }
            Command::Schema => out.document(&config::Config::schema())?,
        }
        Ok(0)
    }
}

fn show(config: &config::Config, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return out.document(config);
    }
    out.line(config.to_toml().trim_end())
}
