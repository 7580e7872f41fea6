//! The configuration: TOML in, typed values with defaults out, clear errors for everything else.
//!
//! The table and key names are a contract (see README). Unknown keys are errors with line, column and the nearest
//! valid key.

use std::fmt::Write as _;
use std::fs::File as Disk;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{Restart, RestartPolicy};

/// Where the configuration lies when nobody names another.
pub const DEFAULT_FILE: &str = "/etc/grace/grace.toml";

/// The largest file that is read as a configuration, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Whether Grace may change the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Judge and report; change nothing.
    #[default]
    Observe,
    /// Repair what Grace was told to own.
    Repair,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether Grace may change the host.
    pub mode: Mode,
    /// Processes that Grace starts and keeps running.
    pub process: Vec<Process>,
    /// Configs and secrets whose known-good content Grace keeps.
    pub file: Vec<File>,
    /// Limits over everything that Grace does.
    pub policy: Policy,
    /// Settings of single triggers.
    pub triggers: Triggers,
    /// How events are recorded for `grace replay`.
    pub record: Record,
}

/// A process that Grace starts and supervises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Name, unique: letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// Program (absolute path) and arguments. No shell.
    pub command: Vec<String>,
    /// Working folder. Default `/`.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Environment; it replaces the agent's own but for PATH, HOME and LANG.
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// User to run as, by name or number. Default: the agent's.
    #[serde(default)]
    pub user: Option<String>,
    /// Which ends call for a restart: `always`, `on_failure`, `never`.
    #[serde(default)]
    pub restart: Restart,
    /// Restarts allowed within `interval`. Default 5.
    #[serde(default = "Process::burst")]
    pub burst: u32,
    /// The window of `burst`. Default `10m`.
    #[serde(default = "Process::interval")]
    pub interval: Span,
    /// Delay before the second restart in a row, doubling from there. Default `200ms`.
    #[serde(default = "Process::backoff")]
    pub backoff: Span,
    /// Upper bound of the delay. Default `5m`.
    #[serde(default = "Process::backoff_max")]
    pub backoff_max: Span,
    /// A process that ran this long is healthy again: the next restart is at once. Default `10m`.
    #[serde(default = "Process::stable")]
    pub stable: Span,
    /// 0 is shed first, 100 never. Default 50.
    #[serde(default = "Process::importance")]
    pub importance: u8,
}

impl Process {
    fn burst() -> u32 {
        5
    }
    fn interval() -> Span {
        Span::secs(600)
    }
    fn backoff() -> Span {
        Span::millis(200)
    }
    fn backoff_max() -> Span {
        Span::secs(300)
    }
    fn stable() -> Span {
        Span::secs(600)
    }
    fn importance() -> u8 {
        50
    }

    /// What the engine needs to know of it.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy {
            burst: self.burst,
            interval_ms: self.interval.as_millis(),
            backoff_ms: self.backoff.as_millis(),
            backoff_max_ms: self.backoff_max.as_millis(),
            stable_ms: self.stable.as_millis(),
            restart: self.restart,
        }
    }
}

/// A config or a secret that Grace owns. `grace snapshot PATH` adds one at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path of a regular file.
    pub path: PathBuf,
    /// True: content is never shown, only digests.
    #[serde(default)]
    pub secret: bool,
    /// Executables (paths, `*` allowed) whose change becomes the new known-good.
    #[serde(default)]
    pub writers: Vec<String>,
}

/// Limits over everything that Grace does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Changes to the host allowed within `host_interval`; past it everything is held. Default 2000.
    pub host_burst: u32,
    /// The window of `host_burst`. Default `10m`.
    pub host_interval: Span,
}

impl Default for Policy {
    fn default() -> Self {
        Self { host_burst: 2000, host_interval: Span::secs(600) }
    }
}

/// Settings of single triggers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// `config_drift`.
    pub config_drift: ConfigDrift,
    /// `health_gap`.
    pub health_gap: HealthGap,
}

/// Settings of `config_drift`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigDrift {
    /// The same change coming back this often is a fight: stop, file a task. Default 3.
    pub conflict_count: u32,
    /// The window of `conflict_count`, and how long a fight must rest before it is forgotten. Default `10m`.
    pub conflict_window: Span,
    /// How often every owned file is looked at although nothing was noticed. Default `60s`.
    pub sweep: Span,
}

impl Default for ConfigDrift {
    fn default() -> Self {
        Self { conflict_count: 3, conflict_window: Span::secs(600), sweep: Span::secs(60) }
    }
}

/// Settings of `health_gap`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthGap {
    /// A restarted process that ran this long is seen as running again. Default `2s`.
    pub settle: Span,
}

impl Default for HealthGap {
    fn default() -> Self {
        Self { settle: Span::secs(2) }
    }
}

/// How events are recorded for `grace replay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Keep the event stream on disk. Default true.
    pub enabled: bool,
    /// At most this much of it, in MiB. Default 64.
    pub max_mib: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self { enabled: true, max_mib: 64 }
    }
}

/// A duration as people write it: `10s`, `1m 30s`, `200ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(std::time::Duration);

impl Span {
    /// Whole seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(std::time::Duration::from_secs(n))
    }

    /// Whole milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(std::time::Duration::from_millis(n))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// In milliseconds, saturating.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map(Self).map_err(|err| {
            serde::de::Error::custom(format!(
                "`{}` is not a duration such as `10s` or `5m`: {err}",
                text.escape_debug()
            ))
        })
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("the configuration {path} is larger than 1 MiB", path = .0.display())]
    TooLarge(PathBuf),
    /// Something in it is wrong.
    #[error("{0}")]
    Wrong(String),
}

impl Config {
    /// The configuration in `path`, or in [`DEFAULT_FILE`] where it exists and no other is named, else the defaults;
    /// and the file that it came from.
    pub fn load(path: Option<&Path>) -> Result<(Self, Option<PathBuf>), ConfigError> {
        let path = match path {
            Some(path) => path,
            None if Path::new(DEFAULT_FILE).exists() => Path::new(DEFAULT_FILE),
            None => return Ok((Self::default(), None)),
        };
        let fail = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        Disk::open(path).map_err(fail)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(ConfigError::TooLarge(path.to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|err| {
            let good =
                String::from_utf8_lossy(&err.as_bytes()[..err.utf8_error().valid_up_to()]).into_owned();
            ConfigError::Wrong(mark(path, &good, good.len(), "this is not UTF-8"))
        })?;
        let config = Self::parse(path, &text)?;
        Ok((config, Some(path.to_owned())))
    }

    /// The configuration in `text`; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|err| {
            let at = err.span().map_or(0, |span| span.start);
            ConfigError::Wrong(mark(path, text, at, &explain(err.message(), text, at)))
        })?;
        config.check().map_err(|problem| {
            // Where in the text: the value in question, as it is written there.
            let at = problem.near.and_then(|near| text.find(&near)).unwrap_or(0);
            ConfigError::Wrong(mark(path, text, at, &problem.what))
        })?;
        Ok(config)
    }

    /// What TOML alone does not rule out, for a configuration that did not come from a file.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map_err(|problem| ConfigError::Wrong(problem.what))
    }

    fn check(&self) -> Result<(), Problem> {
        let mut names = std::collections::BTreeSet::new();
        for process in &self.process {
            let name = &process.name;
            let wrong = |what: String| Err(Problem { what, near: Some(format!("\"{name}\"")) });
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
                return wrong(format!(
                    "process name `{}`: take 1 to 64 letters, digits, `-`, `_` or `.`, not `.` first",
                    name.escape_debug()
                ));
            }
            if !names.insert(name) {
                return wrong(format!("process `{name}` is declared twice"));
            }
            match process.command.first() {
                None => {
                    return wrong(format!(
                        "process `{name}`: `command` is empty; it takes a program and its arguments"
                    ));
                }
                Some(program) if !program.starts_with('/') => {
                    return wrong(format!(
                        "process `{name}`: `{}` is not an absolute path; no shell and no PATH is searched",
                        program.escape_debug()
                    ));
                }
                Some(_) => {}
            }
            if process.command.iter().any(|word| word.contains('\0')) {
                return wrong(format!("process `{name}`: `command` contains a NUL character"));
            }
            if process.importance > 100 {
                return wrong(format!(
                    "process `{name}`: `importance` goes from 0 (shed first) to 100 (never)"
                ));
            }
            if process.cwd.as_ref().is_some_and(|cwd| !cwd.is_absolute()) {
                return wrong(format!("process `{name}`: `cwd` is not an absolute path"));
            }
        }
        let mut paths = std::collections::BTreeSet::new();
        for file in &self.file {
            let shown = file.path.display().to_string();
            let wrong = |what: String| Err(Problem { what, near: Some(shown.clone()) });
            if !file.path.is_absolute() {
                return wrong(format!("file `{shown}`: not an absolute path"));
            }
            if !paths.insert(&file.path) {
                return wrong(format!("file `{shown}` stands twice"));
            }
        }
        let drift = &self.triggers.config_drift;
        for (key, span) in [("sweep", drift.sweep), ("conflict_window", drift.conflict_window)] {
            if span < Span::secs(1) {
                let what = format!("triggers.config_drift.{key}: at least 1s");
                return Err(Problem { what, near: Some(key.to_owned()) });
            }
        }
        Ok(())
    }

    /// JSON Schema of the configuration.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Config).to_value()
    }

    /// Every key with its default, each behind its explanation, all commented out: a file to begin with. Made from the
    /// schema, so it never differs from what is read.
    #[must_use]
    pub fn commented_defaults() -> String {
        let schema = Self::schema();
        let mut out = String::from("# Configuration of Grace. Every key stands here with its default.\n");
        let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
        describe_table(&schema, &schema, &defaults, "", &mut out);
        out
    }
}

/// What is wrong with a value, and a piece of text to look for where the place is wanted.
struct Problem {
    what: String,
    near: Option<String>,
}

/// `file:line:column: what`, the line, and a caret below the place.
fn mark(path: &Path, text: &str, at: usize, what: &str) -> String {
    let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let begin = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let line = text[begin..].lines().next().unwrap_or_default();
    let number = text[..begin].matches('\n').count() + 1;
    let column = text[begin..at].chars().count() + 1;
    // The line is the user's own text, but it may hold anything.
    let shown: String =
        line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).take(160).collect();
    let space: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let mut out = String::new();
    let _ = write!(out, "{}:{number}:{column}: {what}\n  | {shown}\n  | {space}^", path.display());
    out
}

/// The parser's words, with the nearest valid key where one was not known.
fn explain(message: &str, text: &str, at: usize) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.trim().to_owned() };
    let Some((key, rest)) = rest.split_once('`') else { return message.to_owned() };
    let valid: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let mut out = format!("unknown key `{}`", key.escape_debug());
    let table = text.get(..at).and_then(|before| {
        before.lines().rev().map(str::trim).find(|l| l.starts_with('[') && !l.contains(key))
    });
    if let Some(table) = table {
        let _ = write!(out, " in {table}");
    }
    let nearest = valid
        .iter()
        .map(|v| (strsim::damerau_levenshtein(key, v), *v))
        .filter(|(distance, v)| *distance <= 1 + v.len() / 3)
        .min();
    match nearest {
        Some((_, nearest)) => {
            let _ = write!(out, "; did you mean `{nearest}`?");
        }
        None => {
            let _ = write!(out, "; valid keys: {}", valid.join(", "));
        }
    }
    out
}

/// The keys of one table of the schema.
fn describe_table(
    schema: &serde_json::Value,
    table: &serde_json::Value,
    defaults: &serde_json::Value,
    name: &str,
    out: &mut String,
) {
    let Some(properties) = table["properties"].as_object() else { return };
    let resolve = |value: &serde_json::Value| -> serde_json::Value {
        let target = value["$ref"].as_str().or_else(|| value["allOf"][0]["$ref"].as_str());
        let found = target.and_then(|r| schema["$defs"].get(r.trim_start_matches("#/$defs/")));
        found.unwrap_or(value).clone()
    };
    let text = |value: &serde_json::Value, resolved: &serde_json::Value| {
        value["description"]
            .as_str()
            .or(resolved["description"].as_str())
            .unwrap_or_default()
            .replace('\n', " ")
    };
    // Values first, then tables: TOML wants it so.
    for (key, value) in properties {
        let resolved = resolve(value);
        let is_table = resolved["properties"].is_object();
        let is_list = resolve(&value["items"])["properties"].is_object();
        if !is_table && !is_list {
            let default = defaults
                .get(key)
                .filter(|d| !d.is_null())
                .or_else(|| value.get("default").filter(|d| !d.is_null()));
            let shown = default.map_or_else(|| "…".to_owned(), ToString::to_string);
            let _ = write!(out, "\n# {}\n# {key} = {shown}\n", text(value, &resolved));
        }
    }
    for (key, value) in properties {
        let resolved = resolve(value);
        let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        let item = resolve(&value["items"]);
        if resolved["properties"].is_object() {
            let _ = write!(out, "\n# {}\n# [{full}]\n", text(value, &resolved));
            describe_table(
                schema,
                &resolved,
                defaults.get(key).unwrap_or(&serde_json::Value::Null),
                &full,
                out,
            );
        } else if item["properties"].is_object() {
            let _ = write!(out, "\n# {}\n# [[{full}]]\n", text(value, &item));
            describe_table(schema, &item, &serde_json::Value::Null, &full, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        match Config::parse(Path::new("grace.toml"), text) {
            Ok(config) => panic!("taken: {config:?}"),
            Err(err) => err.to_string(),
        }
    }

    #[test]
    fn errors_name_place_and_way_out() {
        for (text, want) in [
            ("mod = \"repair\"", "grace.toml:1:1: unknown key `mod`; did you mean `mode`?"),
            (
                "[[process]]\nname = \"a\"\nbakoff = \"1s\"\n",
                "grace.toml:3:1: unknown key `bakoff` in [[process]]; did you mean `backoff`?",
            ),
            ("[[proces]]", "did you mean `process`?"),
            ("xyzzy = 1", "valid keys: mode, process, file"),
            ("mode = \"fix\"", "grace.toml:1:8: unknown variant `fix`, expected `observe` or `repair`"),
            ("mode = ", "grace.toml:1:8"),
            (
                "[[process]]\nname = \"a\"\ncommand = [\"/bin/x\"]\nbackoff = \"soon\"",
                "grace.toml:4:11: `soon` is not a duration",
            ),
            ("[[process]]\nname = \"a\"\ncommand = []", "grace.toml:2:8: process `a`: `command` is empty"),
            ("[[process]]\nname = \"a\"\ncommand = [\"x\"]", "`x` is not an absolute path"),
            ("[[process]]\nname = \"../a\"\ncommand = [\"/x\"]", "grace.toml:2:8: process name `../a`"),
            ("[[process]]\ncommand = [\"/x\"]", "missing field `name`"),
            ("[[file]]\npath = \"etc/x\"", "file `etc/x`: not an absolute path"),
            ("[[file]]\npath = \"/x\"\n[[file]]\npath = \"/x\"", "file `/x` stands twice"),
            ("[[process]]\nname = \"a\"\ncommand = [\"/x\"]\nimportance = 101", "`importance` goes from 0"),
            ("[triggers.config_drift]\nsweep = \"1ms\"", "triggers.config_drift.sweep: at least 1s"),
            ("[triggers.config_drift]\nconflict = 3", "unknown key `conflict` in [triggers.config_drift]; "),
        ] {
            let got = error(text);
            assert!(got.contains(want), "{text:?}\n got {got}\nwant {want}");
        }
        assert!(error("\n\nmod = 1").ends_with("  | mod = 1\n  | ^"));
    }

    #[test]
    fn the_commented_defaults_are_the_defaults() {
        let text = Config::commented_defaults();
        for key in
            ["mode", "[[process]]", "[[file]]", "[policy]", "[triggers.config_drift]", "conflict_count = 3"]
        {
            assert!(text.contains(key), "{key} is missing in\n{text}");
        }
        // Uncommented without the tables that have no default they are a configuration, the default one.
        let bare: String = text
            .lines()
            .scan(false, |skip, line| {
                if line.starts_with("# [") {
                    *skip = line.starts_with("# [[");
                }
                Some(if *skip { "" } else { line.strip_prefix("# ").unwrap_or_default() })
            })
            .filter(|line| line.starts_with('[') || line.contains(" = "))
            .map(|line| format!("{line}\n"))
            .collect();
        let parsed = Config::parse(Path::new("defaults"), &bare);
        assert_eq!(parsed.expect(&bare), Config::default());
    }

    #[test]
    fn a_configuration_survives_being_shown() {
        let text = "mode = \"repair\"\n[[process]]\nname = \"a\"\ncommand = [\"/bin/x\"]\nbackoff = \"1m 30s\"\n[[file]]\npath = \"/etc/x\"\nsecret = true\n";
        let config = Config::parse(Path::new("x"), text).expect("good");
        let shown = toml::to_string(&config).expect("TOML");
        assert_eq!(Config::parse(Path::new("x"), &shown).expect(&shown), config);
    }
}
