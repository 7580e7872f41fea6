//! The Python in which tests use the official client of the Model Context Protocol: a venv in the target folder.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{places, process};

/// The package, of the major version that `tests/clients/mcp_client.py` is written for.
const PACKAGE: &str = "mcp>=2,<3";

fn folder() -> PathBuf {
    places::root().join("target/mcp-python")
}

/// Whether it is there.
pub(crate) fn is_there() -> bool {
    let found = process::program(folder().join("bin/python")).args(["-c", "import mcp"]).output();
    found.is_ok_and(|out| out.status.success())
}

/// Makes it.
pub(crate) fn make() -> Result<()> {
    eprintln!("setup: getting {PACKAGE} with pip…");
    process::run(process::program("python3").args(["-m", "venv"]).arg(folder()))
        .context("python3 makes no venv (Debian: python3-venv)")?;
    let mut pip = process::program(folder().join("bin/pip"));
    process::run(pip.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]))
        .context("the client of the Model Context Protocol could not be had")
}
