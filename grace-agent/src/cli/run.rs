//! `grace run`: the agent in the foreground.

use std::path::PathBuf;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::ask::Failure;
use super::{Answer, Global};
use crate::config::{ConfigError, Mode};

/// Where root's agent keeps its state.
const STATE: &str = "/var/lib/grace";

/// What runs the agent.
pub type Agent = fn(RunOptions) -> anyhow::Result<()>;

/// How to run the agent.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The configuration; none: the default file, or defaults.
    pub config: Option<PathBuf>,
    /// Where its state lies.
    pub state_dir: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// Overrides the configuration's mode.
    pub mode: Option<Mode>,
    /// Prints no picture and no line per firing.
    pub quiet: bool,
    /// Uses colour.
    pub color: bool,
}

/// Arguments of `grace run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration [default: /etc/grace/grace.toml if it exists, else the defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where snapshots, journal and logs lie [default: /var/lib/grace; without root ~/.local/state/grace]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Whether Grace may change the host [default: the configuration's, else observe]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
}

impl Run {
    pub(super) fn go(self, global: &Global, agent: Agent) -> Answer {
        let filter = EnvFilter::try_from_env("GRACE_LOG")
            // What an endpoint's certificate is refused for stands in `status`, not in the log at each poll.
            .unwrap_or_else(|_| {
                let level = if global.quiet { "error" } else { "warn" };
                EnvFilter::new(format!("{level},rustls_platform_verifier=off"))
            });
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .init();
        let state_dir = match self.state_dir {
            Some(dir) => super::ask::absolute(&dir),
            None => default_state()?,
        };
        let options = RunOptions {
            config: self.config,
            state_dir,
            socket: super::ask::absolute(&global.socket),
            mode: self.mode,
            quiet: global.quiet,
            color: global.colored(),
        };
        agent(options).map(|()| 0).map_err(|err| match err.downcast::<ConfigError>() {
            Ok(config) => Failure::Usage(crate::error_chain::chain(&config)),
            Err(err) => Failure::Other(err),
        })
    }
}

pub(super) fn default_state() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(STATE));
    }
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))
        .ok_or_else(|| Failure::Usage("no HOME: name the state folder with --state-dir".to_owned()))?;
    Ok(base.join("grace"))
}
