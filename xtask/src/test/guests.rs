//! The tests that are also run in other kernels: one boot for each kernel, all their targets in it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::report::{Report, Suite};
use super::{Args, NotRun, skips_file};
use crate::process::Built;
use crate::vm::{self, Ended, Guest};
use crate::{places, process};

/// The test targets that are also run in guests, those of them that there are, in this order.
const TARGETS: [&str; 5] = ["kernel", "probes", "coverage", "pressure", "power"];
/// Those of them that are about the disk or the controllers of cgroups more than about the kernel: in the newest of the
/// usual kernels alone, unless all kernels are asked for.
const ONCE: [&str; 2] = ["pressure", "power"];
/// For all of them in an emulated processor.
const TIMEOUT: Duration = Duration::from_mins(30);
/// Each has one processor.
const AT_ONCE: usize = 2;

/// Runs in a guest, with a filter (or an empty word) and the test programs: one after another, whatever becomes of
/// those before, each announced as cargo does it, for the report.
const SCRIPT: &str = r#"
filter=$1 status=0
shift
for test; do
	echo "     Running $test ($test)"
	"$test" --test-threads 1 ${filter:+"$filter"} || status=$?
done
exit $status
"#;

/// The guest tests in other kernels.
pub(super) fn run(args: &Args, built: &[Built], not_run: &mut NotRun) -> Vec<Suite> {
    let kernels: &[&str] = if args.all_kernels { &vm::TESTED } else { &vm::DEFAULT };
    let mut refuse = |why: String| {
        not_run.push((format!("tests in guests ({})", kernels.join(", ")), why));
        Vec::new()
    };
    if args.no_vm {
        return refuse("--no-vm".to_owned());
    }
    if !process::is_root() {
        return refuse("not root: start this as root".to_owned());
    }
    let is_target = |name: &str| built.iter().find(|built| built.is_test && built.target == name);
    let tests: Vec<&Built> = TARGETS.into_iter().filter_map(is_target).collect();
    if tests.is_empty() {
        return refuse(format!("there is no test target named {}", TARGETS.join(" or ")));
    }
    if let Err(why) = vm::ready() {
        return refuse(format!("{why:#}"));
    }

    let queue: Mutex<VecDeque<&str>> = Mutex::new(kernels.iter().copied().collect());
    let done = Mutex::new((Vec::new(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(kernels.len()) {
            scope.spawn(|| {
                while let Some(name) = pop(&queue) {
                    let kernel = match vm::kernel(name) {
                        Ok(Some(kernel)) => Ok(kernel),
                        Ok(None) => Err("apt's mirror has no such kernel any more".to_owned()),
                        Err(why) => Err(format!("{why:#}")),
                    };
                    let outcome = match kernel {
                        Ok(kernel) => {
                            let all = args.all_kernels || kernels.last() == Some(&name);
                            let wanted = |test: &&&Built| all || !ONCE.contains(&test.target.as_str());
                            let tests: Vec<&Built> = tests.iter().filter(wanted).copied().collect();
                            in_guest(name, &kernel, &tests, args.filter.as_deref())
                                .map_err(|why| format!("{why:#}"))
                        }
                        Err(mut why) => {
                            if let Some(next) = instead_of(name, kernels) {
                                why.push_str(&format!("; {next} takes its place"));
                                lock(&queue).push_back(next);
                            }
                            Err(why)
                        }
                    };
                    let mut done = lock(&done);
                    match outcome {
                        Ok(suites) => done.0.push((name, suites)),
                        Err(why) => done.1.push((format!("tests in {name}"), why)),
                    }
                }
            });
        }
    });
    let (mut by_kernel, reasons) = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    not_run.extend(reasons);
    by_kernel.sort_by_key(|(name, _)| vm::TESTED.iter().position(|tested| tested == name));
    by_kernel.into_iter().flat_map(|(_, suites)| suites).collect()
}

/// The next newer of the tested kernels for one that cannot be had, unless it is run anyway.
fn instead_of(missing: &str, wanted: &[&str]) -> Option<&'static str> {
    let at = vm::TESTED.iter().position(|name| *name == missing)?;
    vm::TESTED.get(at + 1).copied().filter(|next| !wanted.contains(next))
}

fn pop<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    lock(queue).pop_front()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The suites in one kernel. An error: they could not be run.
fn in_guest(name: &str, kernel: &vm::Kernel, tests: &[&Built], filter: Option<&str>) -> Result<Vec<Suite>> {
    let targets: Vec<&str> = tests.iter().map(|test| test.target.as_str()).collect();
    eprintln!("test: {} in {name} ({})", targets.join(", "), kernel.package);
    // A guest that dies by itself is tried again, once: emulation is not perfect. A failed test never is.
    for last in [false, true] {
        let skips = skips_file(name)?;
        let guest = guest(name, tests, filter, &skips)?;
        let report = Mutex::new(Report::new(None, skips));
        let (out, err) = (Prefixed::new(name, Some(&report)), Prefixed::new(name, None));
        let ended = guest.run(kernel, out, err)?;
        let report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (good, why) = match ended {
            Ended::Status(status) => (status == 0, format!("{name}: the tests ended with status {status}")),
            Ended::OutOfTime => (false, format!("{name}: out of time after {} s", TIMEOUT.as_secs())),
            Ended::Died(how) => {
                eprintln!("test: {name}: {how}");
                if !last {
                    eprintln!("test: {name}: trying once more");
                    continue;
                }
                (false, format!("{name}: the guest died twice; its kernel's log: {}", log(name).display()))
            }
        };
        let mut suites = report.end(good, &why);
        if suites.is_empty() && filter.is_none() {
            suites.push(Suite::failed("(the run)", &format!("{name}: not one test ran")));
        }
        for suite in &mut suites {
            suite.name = format!("{} in {name}", suite.name);
        }
        return Ok(suites);
    }
    anyhow::bail!("the guest was not run")
}

fn log(name: &str) -> PathBuf {
    places::root().join(format!("target/xtask-test/{name}.log"))
}

fn guest(name: &str, tests: &[&Built], filter: Option<&str>, skips: &Path) -> Result<Guest> {
    // All are of the agent's package.
    let package = &tests.first().context("no tests")?.package;
    let mut command: Vec<OsString> = ["sh", "-c", SCRIPT, "tests"].map(OsString::from).to_vec();
    command.push(filter.unwrap_or_default().into());
    command.extend(tests.iter().map(|test| test.path.clone().into_os_string()));
    let ours: [(&str, OsString); 4] = [
        ("CARGO_MANIFEST_DIR", package.into()),
        ("GRACE_GUEST", name.into()),
        ("GRACE_TEST_SKIPS", skips.into()),
        ("TMPDIR", vm::SCRATCH.into()),
    ];
    Ok(Guest {
        command,
        directory: package.clone(),
        folders: vec![places::root()],
        environment: process::environment().chain(ours.map(|(key, value)| (key.into(), value))).collect(),
        timeout: TIMEOUT,
        log: Some(log(name)),
    })
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

#[cfg(test)]
mod tests {
    use super::{SCRIPT, instead_of};
    use crate::process;
    use crate::test::report::Report;
    use crate::vm;

    #[test]
    fn a_kernel_that_is_gone_is_replaced_by_the_next() {
        assert_eq!(instead_of("5.10-cloud", &vm::DEFAULT), Some("6.1-cloud"));
        assert_eq!(instead_of("6.1-cloud", &vm::DEFAULT), None);
        assert_eq!(instead_of("5.10-cloud", &vm::TESTED), None);
        assert_eq!(instead_of("6.18-cloud", &vm::TESTED), None);
    }

    #[test]
    fn each_program_is_a_suite_and_a_failed_one_stops_none() {
        let dir = std::env::temp_dir().join(format!("grace-guests-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("writable");
        let result = "0 ignored; 0 measured; 0 filtered out; finished in 0s";
        let programs = [
            (
                "kernel-0123456789abcdef",
                format!("echo \"test result: FAILED. 1 passed; 1 failed; {result}\"; exit 101"),
            ),
            ("crashed-0123456789abcdef", "exit 134".to_owned()),
            ("coverage-0123456789abcdef", format!("echo \"test result: ok. $# passed; 0 failed; {result}\"")),
        ]
        .map(|(name, script)| {
            let path = dir.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writable");
            process::output(process::program("chmod").arg("755").arg(&path)).expect("runs");
            path
        });
        let mut sh = process::program("sh");
        let out = sh.args(["-c", SCRIPT, "tests", "a name"]).args(programs).output().expect("runs");
        std::fs::remove_dir_all(&dir).expect("was there");

        let mut report = Report::new(None, "/nonexistent".into());
        String::from_utf8_lossy(&out.stdout).lines().for_each(|line| report.line(line));
        let suites = report.end(out.status.success(), "ended");
        let seen: Vec<_> = suites.iter().map(|s| (s.name.as_str(), s.passed, s.failed)).collect();
        // The last was given three words: --test-threads, 1 and the filter.
        assert_eq!(seen, [("kernel", 1, 1), ("crashed", 0, 1), ("coverage", 3, 0)]);
        assert_eq!(out.status.code(), Some(134));
    }
}
