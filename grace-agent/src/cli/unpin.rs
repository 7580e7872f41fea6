//! `grace unpin`: takes away the probes that a killed agent left running for the next one.

use std::path::PathBuf;

use clap::Args;

use super::ask::Failure;
use super::run::default_state;
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::actions::own_cgroup::Cgroups;
use crate::error_chain::chain;
use crate::sources::ebpf;
use crate::state_dir::StateDir;

/// Arguments of `grace unpin`.
#[derive(Debug, Args)]
pub struct Unpin {
    /// The state folder of the agent [default: as for `grace run`]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Unpin {
    pub(super) fn go(self, _global: &Global, out: &mut Out) -> Answer {
        let dir = match self.state_dir {
            Some(dir) => super::ask::absolute(&dir),
            None => default_state()?,
        };
        // Held until the end, so that no agent starts meanwhile. A folder that is gone has no agent.
        let held = match dir.exists() {
            true => Some(StateDir::open(&dir).map_err(|err| Failure::No(chain(&err)))?),
            false => None,
        };
        let shown = escape(&dir.display().to_string()).into_owned();
        let dir = dir.canonicalize().unwrap_or(dir);
        let sets = ebpf::unpin(&dir).map_err(|err| Failure::Other(err.into()))?;
        // And the empty cgroups of what it had started.
        Cgroups::open(&dir).close();
        drop(held);
        if sets == 0 {
            return Err(Failure::No(format!("no agent with the state folder {shown} left probes pinned")));
        }
        out.line("detached: no probe of that agent runs any more")?;
        Ok(0)
    }
}
