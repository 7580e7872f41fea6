//! `grace completions` and `grace man`: both made from the command line's own description.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

use super::ask::Failure;
use super::show::Out;
use super::{Answer, Global, description};

/// Arguments of `grace completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn go(self, _global: &Global, out: &mut Out) -> Answer {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut description(), "grace", &mut text);
        out.line(String::from_utf8_lossy(&text).trim_end())?;
        Ok(0)
    }
}

/// Arguments of `grace man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write grace.1 and a page for each subcommand into this folder
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    pub(super) fn go(self, _global: &Global, out: &mut Out) -> Answer {
        match self.folder {
            Some(folder) => {
                clap_mangen::generate_to(description(), &folder)
                    .with_context(|| format!("cannot write the manual into {}", folder.display()))?;
                if !out.quiet {
                    out.line(&format!("manual pages are in {}", folder.display()))?;
                }
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(description())
                    .render(&mut page)
                    .map_err(|err| Failure::Other(err.into()))?;
                out.line(String::from_utf8_lossy(&page).trim_end())?;
            }
        }
        Ok(0)
    }
}
