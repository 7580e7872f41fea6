//! Reads along with test programs: which suite is running, how it ended.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// What a suite came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Suite {
    /// The test target, or target and kernel.
    pub(super) name: String,
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Ignored, or by its own word not able to run.
    pub(super) skipped: u64,
    pub(super) seconds: f64,
    /// Why tests could not run, as they said themselves.
    pub(super) reasons: Vec<String>,
    /// What else went wrong than a test.
    pub(super) troubles: Vec<String>,
}

impl Suite {
    /// One that came to nothing.
    pub(super) fn failed(name: &str, why: &str) -> Self {
        Self { name: name.to_owned(), failed: 1, troubles: vec![why.to_owned()], ..Self::default() }
    }

    /// Adds another's figures.
    pub(super) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.seconds += other.seconds;
        self.reasons.extend_from_slice(&other.reasons);
        self.troubles.extend_from_slice(&other.troubles);
    }
}

/// The reading of one program's output, or of `cargo test`'s, which runs many.
pub(super) struct Report {
    suites: Vec<Suite>,
    running: Option<(String, Instant)>,
    /// Where tests write why they could not run, and how much of it is read.
    skips: PathBuf,
    skips_read: usize,
}

impl Report {
    /// For one suite by its name, or for as many as cargo announces.
    pub(super) fn new(suite: Option<String>, skips: PathBuf) -> Self {
        let running = suite.map(|name| (name, Instant::now()));
        Self { suites: Vec::new(), running, skips, skips_read: 0 }
    }

    /// Takes a line of output.
    pub(super) fn line(&mut self, line: &str) {
        let line = plain(line);
        let line = line.trim();
        if let Some(name) = announced(line) {
            self.abandon();
            self.running = Some((name, Instant::now()));
        } else if let Some([passed, failed, ignored]) = result(line)
            && let Some((name, since)) = self.running.take()
        {
            let reasons = self.new_skips(&name);
            let skipped = reasons.len() as u64;
            // A suite without tests is no news.
            if passed + failed + ignored > 0 {
                self.suites.push(Suite {
                    name,
                    passed: passed.saturating_sub(skipped),
                    failed,
                    skipped: ignored + skipped,
                    seconds: since.elapsed().as_secs_f64(),
                    reasons,
                    troubles: Vec::new(),
                });
            }
        }
    }

    /// All suites, once the program has ended. A bad end counts as a failure even if no test failed.
    pub(super) fn end(mut self, good: bool, how: &str) -> Vec<Suite> {
        let crashed = self.running.is_some();
        self.abandon();
        if !good {
            if crashed && let Some(last) = self.suites.last_mut() {
                last.troubles.push(how.to_owned());
            } else if self.suites.iter().all(|suite| suite.failed == 0) {
                self.suites.push(Suite::failed("(the run)", how));
            }
        }
        self.suites
    }

    /// A suite that began and gave no result has crashed.
    fn abandon(&mut self) {
        if let Some((name, since)) = self.running.take() {
            let mut suite = Suite::failed(&name, &format!("{name}: ended without a result"));
            suite.seconds = since.elapsed().as_secs_f64();
            suite.reasons = self.new_skips(&name);
            suite.skipped = suite.reasons.len() as u64;
            self.suites.push(suite);
        }
    }

    fn new_skips(&mut self, suite: &str) -> Vec<String> {
        let text = fs::read_to_string(&self.skips).unwrap_or_default();
        let new = text.get(self.skips_read..).unwrap_or_default();
        self.skips_read = text.len();
        new.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{suite}: {line}")).collect()
    }
}

/// Without colours.
fn plain(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    text
}

/// The suite that cargo is about to run.
fn announced(line: &str) -> Option<String> {
    if let Some(of) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{of} (doc)"));
    }
    // "Running unittests src/lib.rs (target/debug/deps/xtask-0123456789abcdef)"
    let (what, program) = line.strip_prefix("Running ")?.split_once(" (")?;
    let stem = program.trim_end_matches(')').rsplit('/').next()?;
    let (name, hash) = stem.rsplit_once('-')?;
    let of_cargo = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let kind = if what.starts_with("unittests") { " (unit)" } else { "" };
    of_cargo.then(|| format!("{name}{kind}"))
}

/// Passed, failed, ignored of a "test result:" line.
fn result(line: &str) -> Option<[u64; 3]> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| {
        let part = counts.split("; ").find(|part| part.trim().ends_with(word))?;
        part.trim().split(' ').next()?.parse().ok()
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

#[cfg(test)]
mod tests {
    use super::{Report, Suite};

    fn read(output: &str, good: bool) -> Vec<Suite> {
        let mut report = Report::new(None, "/nonexistent".into());
        output.lines().for_each(|line| report.line(line));
        report.end(good, "cargo test ended with 101")
    }

    #[test]
    fn suites_are_named_and_counted() {
        let suites = read(
            "     Running unittests src/lib.rs (target/debug/deps/grace_agent-0123456789abcdef)\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             \x1b[1m\x1b[32m     Running\x1b[0m ../tests/cli.rs (target/debug/deps/cli-0123456789abcdef)\n\
             test result: \x1b[31mFAILED\x1b[m. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n\
             Doc-tests grace_common\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            false,
        );
        let seen: Vec<_> = suites.iter().map(|s| (s.name.as_str(), s.passed, s.failed, s.skipped)).collect();
        assert_eq!(seen, [("grace_agent (unit)", 3, 0, 1), ("cli", 1, 2, 0)]);
    }

    #[test]
    fn a_crash_and_a_bad_end_are_failures() {
        let crashed = "Running tests/a.rs (target/debug/deps/a-0123456789abcdef)\nrunning 1 test\n";
        assert_eq!(read(crashed, false)[0].failed, 1);
        assert_eq!(read("", false)[0].failed, 1);
        assert!(read("", true).is_empty());
    }

    #[test]
    fn what_a_test_could_not_do_is_not_passed() {
        let file = std::env::temp_dir().join(format!("grace-skips-{}", std::process::id()));
        std::fs::write(&file, "lsm_denies: no BPF LSM here\n").expect("writable");
        let mut report = Report::new(Some("kernel".to_owned()), file.clone());
        report.line(
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s",
        );
        std::fs::remove_file(file).expect("was there");
        let suite = report.end(true, "").remove(0);
        assert_eq!((suite.passed, suite.skipped), (1, 1));
        assert_eq!(suite.reasons, ["kernel: lsm_denies: no BPF LSM here"]);
    }
}
