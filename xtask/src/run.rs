//! `cargo xtask run`: builds Grace and becomes it.

use std::env;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::{build, process};

/// Builds Grace and runs it: `grace run ARGS`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What follows `grace run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let grace = build::agent(true)?;
    let mut command = process::program(&grace);
    command.arg("run").args(&args.args);
    if !process::is_root() {
        let for_all = process::typed(&command);
        for (flag, place) in [("--state-dir", "state"), ("--socket", "grace.sock")] {
            if !is_given(flag, &args.args) {
                command.arg(flag).arg(own_dir()?.join(place));
            }
        }
        eprintln!(
            "Not root: Grace runs degraded, without kernel probes and without the right to repair the host."
        );
        eprintln!("For all of it: sudo {for_all}");
    }
    // Our place is its own from here on: signals, terminal and exit status.
    let err = command.exec();
    Err(err).with_context(|| format!("cannot start {}", grace.display()))
}

fn is_given(flag: &str, args: &[OsString]) -> bool {
    args.iter().any(|arg| {
        let rest = arg.to_str().and_then(|arg| arg.strip_prefix(flag));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// A folder that only this user can use.
fn own_dir() -> Result<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let dir = match env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => Path::new(&dir).join("grace"),
        None => PathBuf::from(format!("/tmp/grace-{me}")),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(|| dir.display().to_string())?;
    // In /tmp someone else may have been there first, or may have laid a link.
    let found = dir.symlink_metadata().with_context(|| dir.display().to_string())?;
    if !found.is_dir() || found.uid() != me || found.mode() & 0o022 != 0 {
        bail!(
            "{} is not a folder of ours alone: remove it, or name others with --state-dir and --socket",
            dir.display()
        );
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::is_given;

    #[test]
    fn flags_are_found_in_both_spellings() {
        let args = ["--socket=/run/x".into(), "--state-dir".into(), "/var/x".into()];
        assert!(is_given("--socket", &args) && is_given("--state-dir", &args));
        assert!(!is_given("--sock", &args) && !is_given("--config", &args));
    }
}
