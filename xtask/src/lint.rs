//! `cargo xtask lint`: the formatter and clippy, over everything, in one go.

use std::process::ExitCode;

use anyhow::Result;

use crate::{places, process, test};

/// Checks format and lints; every warning is an error.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn main(_: &Args) -> Result<ExitCode> {
    let clippy = ["clippy", "--workspace", "--all-targets"];
    let deny = ["--", "-D", "warnings"];
    let ebpf = places::root().join("grace-ebpf/Cargo.toml");

    let mut checks = Vec::new();
    let mut check = |args: &[&str]| {
        let mut cargo = process::cargo();
        cargo.args(args);
        checks.push(cargo);
    };
    check(&["fmt", "--all", "--check"]);
    check(&["fmt", "--check", "--manifest-path", &ebpf.to_string_lossy()]);
    check(&[&clippy[..], &deny].concat());
    if test::has_root_tests()? {
        check(&[&clippy[..], &["--features", test::ROOT_TESTS], &deny].concat());
    }

    // All of them, so that one run shows everything there is to mend.
    let mut failed = Vec::new();
    for command in &mut checks {
        if process::run(command).is_err() {
            failed.push(process::typed(command));
        }
    }
    if failed.is_empty() {
        println!("lint: all clean");
        return Ok(ExitCode::SUCCESS);
    }
    for command in failed {
        eprintln!("lint: failed: {command}");
    }
    Ok(ExitCode::FAILURE)
}
