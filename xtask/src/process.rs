//! Other programs: how they are started, and what is said when they fail.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::places;

/// Whether we may do everything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program without what cargo told this one about its own package, which would make another build differ
/// from the one typed by hand.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    for (key, _) in env::vars_os().filter(|(key, _)| is_about_us(key)) {
        command.env_remove(key);
    }
    command
}

/// The environment that [`program`] gives.
pub(crate) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    env::vars_os().filter(|(key, _)| !is_about_us(key))
}

fn is_about_us(key: &OsStr) -> bool {
    let key = key.to_string_lossy();
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    prefixes.iter().any(|prefix| key.starts_with(prefix)) || key == "LD_LIBRARY_PATH"
}

/// The cargo that runs us, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(places::root());
    command
}

/// A command line as one would type it, for messages.
pub(crate) fn typed(command: &Command) -> String {
    let program = command.get_program();
    // Nobody types where rustup keeps its cargo.
    let is_cargo = Path::new(program).file_name().is_some_and(|name| name == "cargo");
    let program = if is_cargo { OsStr::new("cargo") } else { program };
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// A word for the shell.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs it with our own streams; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", typed(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", typed(command));
    }
    Ok(())
}

/// Runs it and returns what it printed; an error, with what it complained of, if it fails.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{}`", typed(command)))?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed ({}): {}", typed(command), out.status, why.trim());
    }
    Ok(out.stdout)
}

/// [`output`] as text without the last line's end.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).trim_end().to_owned())
}

/// A program that cargo has built.
#[derive(Debug)]
pub(crate) struct Built {
    /// The target's name: a binary's or a test's.
    pub(crate) target: String,
    /// Whether it is a test harness.
    pub(crate) is_test: bool,
    /// The package's folder, where cargo runs tests.
    pub(crate) package: PathBuf,
    /// The program.
    pub(crate) path: PathBuf,
}

/// Runs a cargo command that builds, and returns the programs it made. What it says goes to stderr.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Built>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", typed(command)))?;
    let mut built = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no pipe from cargo")?).lines() {
        built.extend(serde_json::from_str(&line?).ok().as_ref().and_then(executable));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})", typed(command));
    }
    Ok(built)
}

fn executable(message: &Value) -> Option<Built> {
    Some(Built {
        path: message["executable"].as_str()?.into(),
        target: message["target"]["name"].as_str()?.to_owned(),
        is_test: message["profile"]["test"].as_bool()?,
        package: Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf(),
    })
}

/// Our stderr, for the stdout of a program whose output is only about its progress.
pub(crate) fn to_stderr() -> Stdio {
    io::stderr().into()
}
