//! `grace undo`: takes back what was done for an incident.

use clap::Args;

use super::ask::{Failure, with_agent};
use super::show::{Out, complain, escape};
use super::{Answer, Global};
use crate::api::store::{UndoRequest, UndoView};
use crate::firing::FiringId;

/// Arguments of `grace undo`.
#[derive(Debug, Args)]
#[command(
    after_help = "A restore is taken back by making what it displaced the known-good state, and putting that in \
                        place; the state before stays a snapshot. What cannot be taken back is said, and ends with 1."
)]
pub struct Undo {
    /// An incident or a firing, such as f-12
    #[arg(value_name = "INCIDENT")]
    incident: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Undo {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let incident = FiringId::try_from(self.incident.clone()).map_err(|_not_one| {
            Failure::Usage(format!("`{}` is no incident: they are called f-12", escape(&self.incident)))
        })?;
        let views: Vec<UndoView> = with_agent(&global.socket, async |agent| {
            Ok(agent.post("/v1/undo", &UndoRequest { incident }).await?)
        })?;
        if views.is_empty() {
            return Err(Failure::No(format!(
                "{incident}: nothing was done, so there is nothing to take back"
            )));
        }
        let mut code = 0;
        for view in &views {
            code |= u8::from(view.error.is_some());
            if self.json {
                out.json(view)?;
                continue;
            }
            let what = format!("{} {} {}", view.firing, view.action, view.subject);
            match (&view.done, &view.error) {
                (_, Some(why)) => {
                    out.flush()?;
                    complain(&Failure::No(format!("{what}: {why}")));
                }
                (Some(done), None) if !out.quiet => {
                    out.line(&format!("{}: {}", escape(&what), escape(done)))?;
                    if let Some(kept) = &view.quarantined {
                        out.line(&format!(
                            "  what was in place is kept in {}",
                            escape(&kept.display().to_string())
                        ))?;
                    }
                }
                _ => {}
            }
        }
        Ok(code)
    }
}
