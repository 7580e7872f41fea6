//! `cargo xtask build`: the eBPF object, then the agent that carries it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::setup::{self, Part};
use crate::{build_ebpf, places, process};

/// Builds the agent with its kernel probes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Quick to build, with debug checks
    #[arg(long)]
    debug: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let built = agent(args.release || !args.debug)?;
    println!("{}", built.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds `grace` and says where it is.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    setup::ensure(Part::Agent)?;
    if let Some(why) = ebpf_or_why_not()? {
        eprintln!("{why}");
    }
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "grace-agent", "--bin", "grace"]);
    if release {
        cargo.arg("--release");
    }
    let built = process::build(&mut cargo)?;
    let grace = built.into_iter().find(|built| built.target == "grace" && !built.is_test);
    Ok(grace.context("cargo built no program named grace")?.path)
}

/// Builds the eBPF object. What is missing for it is no error but a warning, returned: the agent also runs
/// without. Probes that do not compile are an error.
pub(crate) fn ebpf_or_why_not() -> Result<Option<String>> {
    let plan = setup::ensure(Part::Ebpf).and_then(|()| build_ebpf::Plan::make(None));
    let why = match plan {
        Ok(plan) => {
            plan.carry_out(false)?;
            return Ok(None);
        }
        Err(why) => why,
    };
    let left = places::bpf_dir().join(build_ebpf::OBJECT);
    let then = if left.exists() {
        format!("An older object is there and is used as it is: {}", left.display())
    } else {
        "Grace is built WITHOUT its kernel probes: no syscall, exit or file events".to_owned()
    };
    Ok(Some(format!("warning: the eBPF object could not be built: {why:#}\nwarning: {then}")))
}
