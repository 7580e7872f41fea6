//! `cargo xtask test`: every test that this machine can run, in its own kernel and in others, and a plain word
//! about those it cannot.
//!
//! A test that finds at run time that it cannot do its work appends a line `name: reason` to the file named by
//! $GRACE_TEST_SKIPS and returns; it is then counted as skipped and its reason is shown. In a guest $GRACE_GUEST
//! names the kernel, and $GRACE_TEST_FS the file systems to test on: `ext4=/mnt/grace-test,xfs=/mnt/grace-xfs,…`.

mod guests;
mod report;

use std::fs;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::report::{Report, Suite};
use crate::setup::{self, Part};
use crate::{build, places, process};

/// The feature of the tests that need root: the targets `kernel` and `crash`.
pub(crate) const ROOT_TESTS: &str = "grace-agent/root-tests";

/// Runs all tests: unit, property, replay and command line; as root also those that load probes, here and in
/// other kernels.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the guest tests in 5.10, 6.1, 6.12 and 6.18, not in 5.10 and 6.12 alone
    #[arg(long)]
    all_kernels: bool,
    /// Run no guests
    #[arg(long, conflicts_with = "all_kernels")]
    no_vm: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// What did not run, and why.
type NotRun = Vec<(String, String)>;

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let mut not_run = NotRun::new();
    setup::ensure(Part::Agent)?;
    if let Some(why) = build::ebpf_or_why_not()? {
        eprintln!("{why}");
        not_run.push((
            "tests of the kernel probes".to_owned(),
            why.lines().next().unwrap_or_default().to_owned(),
        ));
    }
    // They say themselves that they did not run.
    if let Err(err) = setup::ensure(Part::Clients) {
        eprintln!("test: the Python client is not tested: {err:#}");
    }
    if let Err(err) = setup::ensure(Part::Weights) {
        eprintln!("test: weights of real libraries are not tested: {err:#}");
    }
    let mut features = Vec::new();
    if !process::is_root() {
        not_run.push((
            "tests that need root (kernel, crash)".to_owned(),
            "not root: start this as root".to_owned(),
        ));
    } else if !has_root_tests()? {
        not_run.push(("tests that need root".to_owned(), format!("there is no feature {ROOT_TESTS}")));
    } else {
        features = vec!["--features", ROOT_TESTS];
        mount_kernel_file_systems();
    }

    let mut cargo = process::cargo();
    let built = process::build(cargo.args(["test", "--workspace", "--no-run"]).args(&features))?;
    let mut suites = on_host(&features, args.filter.as_deref())?;
    suites.extend(guests::run(args, &built, &mut not_run));

    Ok(conclude(&suites, &not_run))
}

/// Whether grace-agent has the feature [`ROOT_TESTS`].
pub(crate) fn has_root_tests() -> Result<bool> {
    let mut cargo = process::cargo();
    let text = process::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_slice(&text)?;
    let packages = metadata["packages"].as_array().context("cargo metadata named no packages")?;
    let Some((package, feature)) = ROOT_TESTS.split_once('/') else { return Ok(false) };
    Ok(packages.iter().any(|p| p["name"] == package && p["features"].get(feature).is_some()))
}

/// What the kernel tests read. A container or a bare system may not have it mounted.
fn mount_kernel_file_systems() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let has = |kind: &str, at: &str| {
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).any(|words| words[1..3] == [at, kind])
    };
    for (kind, at) in
        [("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf"), ("securityfs", "/sys/kernel/security")]
    {
        if has(kind, at) {
            continue;
        }
        match process::output(process::program("mount").args(["-t", kind, kind, at])) {
            Ok(_) => eprintln!("test: mounted {kind} on {at}"),
            Err(err) => eprintln!("test: {at} stays without {kind}: {err:#}"),
        }
    }
}

/// A fresh file for the reasons of tests that could not do their work.
fn skips_file(of: &str) -> Result<PathBuf> {
    let dir = places::root().join("target/xtask-test");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let file = dir.join(format!("{of}.skips"));
    fs::write(&file, "").with_context(|| file.display().to_string())?;
    Ok(file)
}

/// `cargo test`, shown as it comes and read along.
fn on_host(features: &[&str], filter: Option<&str>) -> Result<Vec<Suite>> {
    let skips = skips_file("host")?;
    let mut cargo = process::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(features).args(filter);
    cargo.env("GRACE_TEST_SKIPS", &skips).env("CARGO_TERM_PROGRESS_WHEN", "never");
    if io::stdout().is_terminal() {
        cargo.args(["--color", "always"]);
    }
    // cargo names the suite on stderr and the suite prints its result on stdout: only one pipe keeps their order.
    let (from, to) = io::pipe()?;
    cargo.stdin(std::process::Stdio::null()).stdout(to.try_clone()?).stderr(to);
    let mut child = cargo.spawn().with_context(|| format!("cannot start `{}`", process::typed(&cargo)))?;
    // It holds our ends of the pipe, which would never end.
    drop(cargo);

    let mut report = Report::new(None, skips);
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        io::stdout().write_all(&line)?;
        report.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    Ok(report.end(status.success(), &format!("cargo test ended with {status}")))
}

/// The closing words; the last line is for whoever counts.
fn conclude(suites: &[Suite], not_run: &NotRun) -> ExitCode {
    let width = suites.iter().map(|suite| suite.name.len()).max().unwrap_or_default().max(5);
    println!("\n{:<width$}  {:>6}  {:>6}  {:>7}  {:>7}", "suite", "passed", "failed", "skipped", "seconds");
    let mut sum = Suite::default();
    for suite in suites {
        let Suite { name, passed, failed, skipped, seconds, .. } = suite;
        println!("{name:<width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7.1}");
        sum.add(suite);
    }
    if !sum.troubles.is_empty() {
        println!("\nwent wrong:");
        sum.troubles.iter().for_each(|trouble| println!("  {trouble}"));
    }
    if !not_run.is_empty() || !sum.reasons.is_empty() {
        println!("\nNOT run:");
        not_run.iter().for_each(|(what, why)| println!("  {what}: {why}"));
        sum.reasons.iter().for_each(|reason| println!("  {reason}"));
    }
    let skipped = if sum.skipped > 0 { format!(", {} skipped", sum.skipped) } else { String::new() };
    println!("\n{} passed, {} failed{skipped}", sum.passed, sum.failed);
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
