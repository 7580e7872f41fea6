//! `cargo xtask test`: every test that this machine can run, in its own kernel and in others, and a plain word
//! about those it cannot.
//!
//! A test that finds at run time that it cannot do its work appends a line `name: reason` to the file named by
//! $GRACE_TEST_SKIPS and returns; it is then counted as skipped and its reason is shown. In a guest $GRACE_GUEST
//! names the kernel.

mod report;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::report::{Report, Suite};
use crate::process::Built;
use crate::setup::{self, Part};
use crate::vm::{self, Ended, Guest};
use crate::{build, places, process};

/// The feature of the tests that need root: the targets `kernel` and `crash`.
pub(crate) const ROOT_TESTS: &str = "grace-agent/root-tests";
/// The test target that is also run in guests.
const GUEST_TARGET: &str = "kernel";
/// For a whole suite in an emulated processor.
const GUEST_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// Each has one processor.
const GUESTS_AT_ONCE: usize = 2;

/// Runs all tests: unit, property, replay and command line; as root also those that load probes, here and in
/// other kernels.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the kernel tests in 5.10, 6.1, 6.12 and 6.18, not in 6.12 alone
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
    suites.extend(in_guests(args, &built, &mut not_run));

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

/// The kernel tests in other kernels.
fn in_guests(args: &Args, built: &[Built], not_run: &mut NotRun) -> Vec<Suite> {
    let kernels: &[&str] = if args.all_kernels { &vm::TESTED } else { &[vm::DEFAULT] };
    let mut refuse = |why: String| {
        not_run.push((format!("kernel tests in guests ({})", kernels.join(", ")), why));
        Vec::new()
    };
    if args.no_vm {
        return refuse("--no-vm".to_owned());
    }
    if !process::is_root() {
        return refuse("not root: start this as root".to_owned());
    }
    let Some(test) = built.iter().find(|built| built.is_test && built.target == GUEST_TARGET) else {
        return refuse(format!("there is no test target named {GUEST_TARGET}"));
    };
    if let Err(why) = vm::ready() {
        return refuse(format!("{why:#}"));
    }

    let queue: Mutex<VecDeque<&str>> = Mutex::new(kernels.iter().copied().collect());
    let done = Mutex::new((Vec::new(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..GUESTS_AT_ONCE.min(kernels.len()) {
            scope.spawn(|| {
                while let Some(name) = lock(&queue).pop_front() {
                    let outcome = in_guest(name, test, args.filter.as_deref());
                    let mut done = lock(&done);
                    match outcome {
                        Ok(suite) => done.0.push(suite),
                        Err(why) => done.1.push((format!("kernel tests in {name}"), format!("{why:#}"))),
                    }
                }
            });
        }
    });
    let (mut suites, reasons) = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    not_run.extend(reasons);
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    suites
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One suite in one kernel. An error: it could not be run.
fn in_guest(name: &str, test: &Built, filter: Option<&str>) -> Result<Suite> {
    let Some(kernel) = vm::kernel(name)? else {
        anyhow::bail!("apt's mirror has no such kernel any more");
    };
    eprintln!("test: {GUEST_TARGET} in {name} ({})", kernel.package);
    let suite = format!("{GUEST_TARGET} in {name}");
    let started = Instant::now();
    // A guest that dies by itself is tried again, once: emulation is not perfect. A failed test never is.
    for last in [false, true] {
        let skips = skips_file(name)?;
        let guest = guest(name, test, filter, &skips);
        let report = Mutex::new(Report::new(Some(suite.clone()), skips));
        let (out, err) = (Prefixed::new(name, Some(&report)), Prefixed::new(name, None));
        let ended = guest.run(&kernel, out, err)?;
        let report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (good, why) = match ended {
            Ended::Status(status) => (status == 0, format!("{name}: the tests ended with status {status}")),
            Ended::OutOfTime => (false, format!("{name}: out of time after {} s", GUEST_TIMEOUT.as_secs())),
            Ended::Died(how) => {
                eprintln!("test: {name}: {how}");
                if !last {
                    eprintln!("test: {name}: trying once more");
                    continue;
                }
                (false, format!("{name}: the guest died twice; its kernel's log: {}", log(name).display()))
            }
        };
        let mut suites = report.end(good, &why).into_iter();
        let mut found = suites.next().unwrap_or_else(|| Suite::failed(&suite, &why));
        for more in suites {
            found.add(&more);
        }
        found.seconds = started.elapsed().as_secs_f64();
        return Ok(found);
    }
    anyhow::bail!("the guest was not run")
}

fn log(name: &str) -> PathBuf {
    places::root().join(format!("target/xtask-test/{name}.log"))
}

fn guest(name: &str, test: &Built, filter: Option<&str>, skips: &Path) -> Guest {
    let mut command: Vec<OsString> = vec![test.path.clone().into(), "--test-threads".into(), "1".into()];
    command.extend(filter.map(OsString::from));
    let ours: [(&str, OsString); 4] = [
        ("CARGO_MANIFEST_DIR", test.package.clone().into()),
        ("GRACE_GUEST", name.into()),
        ("GRACE_TEST_SKIPS", skips.into()),
        ("TMPDIR", vm::SCRATCH.into()),
    ];
    Guest {
        command,
        directory: test.package.clone(),
        folders: vec![places::root()],
        environment: process::environment().chain(ours.map(|(key, value)| (key.into(), value))).collect(),
        timeout: GUEST_TIMEOUT,
        log: Some(log(name)),
    }
}

/// Shows whole lines with the kernel's name before them, and has them read.
struct Prefixed<'a> {
    name: &'a str,
    report: Option<&'a Mutex<Report>>,
    line: Vec<u8>,
}

impl<'a> Prefixed<'a> {
    fn new(name: &'a str, report: Option<&'a Mutex<Report>>) -> Self {
        Self { name, report, line: Vec::new() }
    }

    fn show(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        println!("[{}] {}", self.name, line.trim_end());
        if let Some(report) = self.report {
            lock(report).line(&line);
        }
        self.line.clear();
    }
}

impl Write for Prefixed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                self.show();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Prefixed<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.show();
        }
    }
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
