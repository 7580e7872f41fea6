//! Reads a configuration file and judges it: every complaint has file, line, column and the line itself.
//!
//! Three passes over one document, each only where the one before found nothing: TOML's syntax; keys that the schema
//! does not know (all of them, with the nearest valid key); then types and values. The document with its spans is
//! kept until the end, so that values can be judged on the typed [`Config`] and still be pointed at.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, Span};
use crate::code_facts::Ecosystem;
use crate::reported::{NAME_MAX, is_name, is_value};

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/grace/grace.toml";

/// A configuration is written by hand; anything larger is a mistake.
const MAX_BYTES: u64 = 1024 * 1024;

/// More complaints than this about one file help nobody.
const MAX_PROBLEMS: usize = 20;

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("{}: cannot be read", plain_path(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than 1 MiB.
    #[error("{}: is larger than 1 MiB, too large for a configuration", plain_path(path))]
    TooBig {
        /// The file.
        path: PathBuf,
    },
    /// Its content is wrong: at least one problem.
    #[error("{}", Report(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, in the order of the file.
        problems: Vec<Problem>,
    },
}

/// One complaint about a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, one line.
    pub message: String,
    /// The line itself, control characters replaced.
    pub source_line: String,
    /// How many characters of the line are meant.
    pub width: usize,
}

/// A value that has the right type and is wrong all the same, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The way from the top of the document.
    pub at: Vec<Step>,
    /// What is wrong, one line.
    pub message: String,
}

/// One step of the way to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A key of a table.
    Key(&'static str),
    /// An element of an array, from 0.
    Index(usize),
}

impl Config {
    /// The configuration at `path`, which must exist; without one that of [`DEFAULT_FILE`], or the defaults where
    /// there is none. Also says which file it was.
    pub fn load(path: Option<&Path>) -> Result<(Self, Option<PathBuf>), ConfigError> {
        match path {
            Some(path) => Ok((Self::parse(&read(path)?, path)?, Some(path.to_owned()))),
            None => Self::load_default(Path::new(DEFAULT_FILE)),
        }
    }

    fn load_default(path: &Path) -> Result<(Self, Option<PathBuf>), ConfigError> {
        match read(path) {
            Ok(bytes) => Ok((Self::parse(&bytes, path)?, Some(path.to_owned()))),
            Err(ConfigError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok((Self::default(), None))
            }
            Err(err) => Err(err),
        }
    }

    /// The configuration that `bytes` say; `origin` is what complaints call the file.
    pub fn parse(bytes: &[u8], origin: &Path) -> Result<Self, ConfigError> {
        let invalid = |mut problems: Vec<Problem>| {
            problems.sort_by_key(|p| (p.line, p.column));
            ConfigError::Invalid { path: origin.to_owned(), problems }
        };
        let text = std::str::from_utf8(bytes).map_err(|err| {
            let good = bytes.get(..err.valid_up_to()).unwrap_or_default();
            let lossy = String::from_utf8_lossy(bytes);
            let at = String::from_utf8_lossy(good).len();
            invalid(vec![Problem::new(&lossy, at..at + 1, "is not UTF-8 from here on")])
        })?;
        let from_toml = |err: toml::de::Error| {
            invalid(vec![Problem::new(text, err.span().unwrap_or(0..0), err.message())])
        };

        let document = DeTable::parse(text).map_err(from_toml)?;
        let schema = Self::schema();
        let mut unknown = Vec::new();
        unknown_keys(document.get_ref(), &schema, &schema, "", &mut |at, message| {
            unknown.push(Problem::new(text, at, &message));
        });
        if !unknown.is_empty() {
            return Err(invalid(unknown));
        }

        let config: Self = toml::from_str(text).map_err(from_toml)?;
        let wrong = config.validate();
        if wrong.is_empty() {
            return Ok(config);
        }
        Err(invalid(
            wrong.iter().map(|w| Problem::new(text, span_of(&document, &w.at), &w.message)).collect(),
        ))
    }

    /// What is wrong although every type is right. Empty: nothing.
    #[must_use]
    fn validate(&self) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let mut names = BTreeMap::new();
        for (i, process) in self.process.iter().enumerate() {
            let at = [Step::Key("process"), Step::Index(i)];
            for wrong in process.validate() {
                out.0.push(Invalid { at: [&at[..], &wrong.at].concat(), message: wrong.message });
            }
            if let Some(first) = names.insert(process.name.as_str(), i) {
                let name = process.name.escape_debug();
                let first = first + 1;
                out.push(
                    &[&at[..], &[Step::Key("name")]].concat(),
                    format!("`{name}` is already declared by [[process]] number {first}"),
                );
            }
        }

        let mut paths = BTreeMap::new();
        for (i, file) in self.file.iter().enumerate() {
            let at = |key| [Step::Key("file"), Step::Index(i), Step::Key(key)];
            if let Err(why) = check_path(&file.path) {
                out.push(&at("path"), why);
            }
            self.validate_folder(i, &mut out);
            // `components` drops `//` and `/./`: the same name spelled twice is one file.
            if let Some(first) = paths.insert(file.path.components().collect::<PathBuf>(), i) {
                let path = shown(&file.path);
                let first = first + 1;
                out.push(&at("path"), format!("`{path}` is already owned by [[file]] number {first}"));
            }
            for (n, writer) in file.writers.iter().enumerate() {
                if !writer.starts_with(['/', '*']) || writer.contains('\0') {
                    // An executable is known by its whole path: a bare name would never match one.
                    let writer = writer.escape_debug();
                    out.push(
                        &[&at("writers")[..], &[Step::Index(n)]].concat(),
                        format!("`{writer}` is not the absolute path of an executable (`*` allowed)"),
                    );
                }
            }
        }

        let policy = |key| [Step::Key("policy"), Step::Key(key)];
        out.at_least_one(
            &policy("host_burst"),
            self.policy.host_burst,
            "to change nothing set mode = \"observe\"",
        );
        out.longer_than_zero(&policy("host_interval"), self.policy.host_interval);

        let drift = |key| [Step::Key("triggers"), Step::Key("config_drift"), Step::Key(key)];
        let set = &self.triggers.config_drift;
        out.at_least_one(
            &drift("conflict_count"),
            set.conflict_count,
            "1 stops at the first return of a change",
        );
        if set.conflict_window < Span::secs(1) {
            out.push(&drift("conflict_window"), "must be at least `1s`");
        }
        if set.sweep < Span::secs(1) {
            out.push(&drift("sweep"), "must be at least `1s`: a sweep reads every owned file");
        }

        for (i, quiet) in self.policy.quiet.iter().enumerate() {
            let at = |key| [Step::Key("policy"), Step::Key("quiet"), Step::Index(i), Step::Key(key)];
            for (key, text) in [("from", &quiet.from), ("to", &quiet.to)] {
                if quiet_time(text).is_none() {
                    out.push(
                        &at(key),
                        format!("`{}` is not a time of the day such as `22:00`", text.escape_debug()),
                    );
                }
            }
            if quiet.from == quiet.to {
                out.push(
                    &at("to"),
                    "must not be the same as `from`: for all of the day set mode = \"observe\"",
                );
            }
            for day in quiet.days.iter().filter(|day| !DAYS.contains(&day.as_str())) {
                out.push(&at("days"), format!("`{}` is not one of {}", day.escape_debug(), DAYS.join(", ")));
            }
            if let Some(zone) = quiet.zone.as_ref().filter(|zone| jiff::tz::TimeZone::get(zone).is_err()) {
                out.push(&at("zone"), format!("`{}` is not a time zone of this host", zone.escape_debug()));
            }
        }

        let model = |key| [Step::Key("triggers"), Step::Key("model_integrity"), Step::Key(key)];
        let set = &self.triggers.model_integrity;
        if !(set.accuracy_drop_percent > 0.0 && set.accuracy_drop_percent < 100.0) {
            out.push(&model("accuracy_drop_percent"), "must be above 0 and below 100 percent");
        }
        out.at_least_one(&model("samples"), set.samples, "a baseline of one value is the least");
        if set.samples > 20 {
            out.push(&model("samples"), "must be at most 20: a baseline is made of so many");
        }
        out.at_least_one(
            &model("conflict_count"),
            set.conflict_count,
            "1 stops at the first return of a change",
        );
        out.longer_than_zero(&model("conflict_window"), set.conflict_window);
        for (i, model) in self.model.iter().enumerate() {
            let at = |key| [Step::Key("model"), Step::Index(i), Step::Key(key)];
            if model.name.is_empty() || model.name.len() > 256 {
                out.push(&at("name"), "must have 1 to 256 bytes");
            }
            if self.model[..i].iter().any(|other| other.name == model.name) {
                out.push(&at("name"), format!("`{}` is there already", model.name.escape_debug()));
            }
            if let Err(why) = check_path(Path::new(&model.path)) {
                out.push(&at("path"), why);
            }
            if let Err(err) = glob::Pattern::new(&model.path) {
                out.push(&at("path"), format!("is no pattern: {err}"));
            }
            for (key, why) in model.wrongs() {
                out.push(&at(key), why);
            }
            for name in model.restart.iter().filter(|name| !self.process.iter().any(|p| p.name == **name)) {
                out.push(&at("restart"), format!("no [[process]] is called `{}`", name.escape_debug()));
            }
        }

        let pressure = |key| [Step::Key("pressure"), Step::Key(key)];
        let set = &self.pressure;
        for (key, percent) in [
            ("cpu", set.cpu),
            ("memory", set.memory),
            ("swap", set.swap),
            ("memory_stall", set.memory_stall),
            ("io_stall", set.io_stall),
            ("files", set.files),
            ("pids", set.pids),
            ("disk", set.disk),
            ("inodes", set.inodes),
            ("conntrack", set.conntrack),
            ("thermal", set.thermal),
            ("process_memory", set.process_memory),
        ] {
            if !(percent > set.margin && percent <= 100.0) {
                out.push(
                    &pressure(key),
                    "must be above `margin`, and at most 100 percent (100: never fires)",
                );
            }
        }
        if !(0.0..=50.0).contains(&set.margin) {
            out.push(&pressure("margin"), "must be from 0 to 50 points");
        }
        out.longer_than_zero(&pressure("sustained"), set.sustained);

        if !(0.0..=100.0).contains(&self.probes.budget_percent) {
            let at = [Step::Key("probes"), Step::Key("budget_percent")];
            out.push(&at, "must be a share of one core between 0 and 100");
        }
        let health = |key| [Step::Key("triggers"), Step::Key("health_gap"), Step::Key(key)];
        out.longer_than_zero(&health("gpu_busy_for"), self.triggers.health_gap.gpu_busy_for);
        if !(0.0..1.0).contains(&self.triggers.health_gap.gpu_busy_share) {
            out.push(&health("gpu_busy_share"), "must be a share below 1; 0: never");
        }
        out.longer_than_zero(&health("blocked"), self.triggers.health_gap.blocked);
        if let Some(spinning) = self.triggers.health_gap.spinning {
            out.longer_than_zero(&health("spinning"), spinning);
        }
        let set = &self.triggers.health_gap;
        for (key, factor) in [
            ("heartbeat_factor", set.heartbeat_factor),
            ("log_factor", set.log_factor),
            ("flat_factor", set.flat_factor),
        ] {
            out.above_one(&health(key), factor);
        }
        for (key, span) in [
            ("heartbeat_at_least", set.heartbeat_at_least),
            ("log_at_least", set.log_at_least),
            ("flat_at_least", set.flat_at_least),
        ] {
            if span < Span::secs(1) {
                out.push(&health(key), "must be at least `1s`");
            }
        }
        out.at_least_one(&health("learn"), set.learn, "nothing is normal without a past");

        let spike = |key| [Step::Key("triggers"), Step::Key("latency_spike"), Step::Key(key)];
        let set = &self.triggers.latency_spike;
        for (key, factor) in [
            ("queue_factor", set.queue_factor),
            ("route_factor", set.route_factor),
            ("syscall_factor", set.syscall_factor),
        ] {
            out.above_one(&spike(key), factor);
        }
        for (key, least) in [
            ("queue_at_least", set.queue_at_least),
            ("route_at_least_ms", set.route_at_least_ms),
            ("syscall_at_least_ms", set.syscall_at_least_ms),
        ] {
            out.not_negative(&spike(key), least);
        }
        for (key, share) in [("backlog", set.backlog), ("clear", set.clear)] {
            if !(share > 0.0 && share <= 1.0) {
                out.push(&spike(key), "must be above 0 and at most 1");
            }
        }
        out.at_least_one(&spike("learn"), set.learn, "nothing is normal without a past");
        if let Some(after) = set.relearn_after {
            out.longer_than_zero(&spike("relearn_after"), after);
        }

        let reported = |name: &str| {
            let named = if is_name(name) { Ok(()) } else { Err(name.escape_debug()) };
            named.map_err(|name| {
                format!("`{name}` is not a name: 1 to {NAME_MAX} bytes without control characters")
            })
        };
        let declared = |process: &Option<String>| match process {
            Some(name)
                if !self.process.iter().any(|p| p.name == *name)
                    && !self.hook.iter().any(|h| h.scales() && h.name == *name) =>
            {
                Err(format!("there is no [[process]] named `{}`", name.escape_debug()))
            }
            _ => Ok(()),
        };
        let mut queues = BTreeMap::new();
        for (i, queue) in self.queue.iter().enumerate() {
            let at = |key| [Step::Key("queue"), Step::Index(i), Step::Key(key)];
            out.unless(&at("name"), reported(&queue.name));
            out.unless(&at("process"), declared(&queue.process));
            if let Some(first) = queues.insert(queue.name.as_str(), i + 1) {
                let name = queue.name.escape_debug();
                out.push(&at("name"), format!("`{name}` is already [[queue]] number {first}"));
            }
        }
        let mut routes = BTreeMap::new();
        for (i, route) in self.route.iter().enumerate() {
            let at = |key| [Step::Key("route"), Step::Index(i), Step::Key(key)];
            out.unless(&at("name"), reported(&route.name));
            out.unless(&at("process"), declared(&route.process));
            if route.budget_ms.is_some_and(|ms| !is_value(ms) || ms <= 0.0) {
                out.push(&at("budget_ms"), "must be more than 0 milliseconds");
            }
            if let Some(first) = routes.insert(route.name.as_str(), i + 1) {
                let name = route.name.escape_debug();
                out.push(&at("name"), format!("`{name}` is already [[route]] number {first}"));
            }
        }
        if self.records.bits().is_none() {
            let at = [Step::Key("records"), Step::Key("mode")];
            let mode = self.records.mode.escape_debug();
            out.push(
                &at,
                format!("`{mode}` is no mode such as \"0660\": three or four octal digits, at most 0777"),
            );
        }
        if self.records.group.as_deref().is_some_and(|group| group.is_empty() || group.contains([':', '\0']))
        {
            out.push(&[Step::Key("records"), Step::Key("group")], "must be a group's name or number");
        }

        let feed = |key| [Step::Key("triggers"), Step::Key("error_feed"), Step::Key(key)];
        out.at_least_one(
            &feed("count"),
            self.triggers.error_feed.count,
            "1 fires at the first error of a kind",
        );
        if self.triggers.error_feed.window < Span::secs(1) {
            out.push(&feed("window"), "must be at least `1s`");
        }

        let record = [Step::Key("record"), Step::Key("max_mib")];
        out.at_least_one(&record, self.record.max_mib, "to record nothing set enabled = false");

        for (i, path) in self.scan.paths.iter().enumerate() {
            if let Err(why) = check_path(path) {
                out.push(&[Step::Key("scan"), Step::Key("paths"), Step::Index(i)], why);
            }
        }
        self.validate_code(&mut out);
        out.0.extend(self.snapshots.validate());
        out.0.extend(self.gpu.validate());
        self.validate_processes(&mut out);
        self.validate_tasks(&mut out);
        out.0
    }

    /// The same for what only folders and patterns have.
    fn validate_folder(&self, i: usize, out: &mut Wrongs) {
        let file = &self.file[i];
        out.0.extend(super::snapshots::validate_folder(file, i));
    }

    /// The same for the tables about code.
    fn validate_code(&self, out: &mut Wrongs) {
        let mut names = BTreeMap::new();
        for (i, endpoint) in self.endpoint.iter().enumerate() {
            let at = |key| [Step::Key("endpoint"), Step::Index(i), Step::Key(key)];
            let url = endpoint.url.parse::<hyper::Uri>();
            let fits = |uri: &hyper::Uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
            };
            if !url.as_ref().is_ok_and(fits) {
                let url = endpoint.url.escape_debug();
                out.push(
                    &at("url"),
                    format!("`{url}` is not an http:// or https:// URL (a token goes into headers)"),
                );
            }
            let name = endpoint.name();
            if name.is_empty() || name.len() > 256 || name.contains(char::is_control) {
                out.push(&at("name"), "must have 1 to 256 characters, none of them a control character");
            }
            if let Some(first) = names.insert(name, i) {
                let (name, first) = (name.escape_debug(), first + 1);
                let key = if endpoint.name.is_some() { "name" } else { "url" };
                out.push(&at(key), format!("`{name}` is already declared by [[endpoint]] number {first}"));
            }
            if endpoint.every < Span::millis(100) {
                out.push(&at("every"), "must be at least `100ms`");
            }
            if endpoint.timeout.get().is_zero() || endpoint.timeout > Span::secs(60) {
                out.push(&at("timeout"), "must be longer than zero and at most `60s`");
            }
            if hyper::Method::from_bytes(endpoint.method.as_bytes()).is_err() {
                out.push(&at("method"), "must be an HTTP method such as `GET`");
            }
            for (name, value) in &endpoint.headers {
                if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_err()
                    || hyper::header::HeaderValue::from_str(value).is_err()
                {
                    out.push(&at("headers"), format!("`{}` cannot be sent as a header", name.escape_debug()));
                }
            }
            if let Some(Err(why)) = endpoint.openapi.as_deref().map(check_path) {
                out.push(&at("openapi"), why);
            }
            for (key, value) in [("learn", endpoint.learn), ("confirm", endpoint.confirm)] {
                out.at_least_one(&at(key), value.unwrap_or(1), "leave it out for the default");
            }
        }
        let mut names = BTreeMap::new();
        for (i, environment) in self.environment.iter().enumerate() {
            let at = |key| [Step::Key("environment"), Step::Index(i), Step::Key(key)];
            let name = environment.name.as_str();
            if name.is_empty() || name.len() > 256 || name.contains(char::is_control) {
                out.push(&at("name"), "must have 1 to 256 characters, none of them a control character");
            }
            if name.starts_with("process/") {
                out.push(
                    &at("name"),
                    "must not begin with `process/`: that is how those of the processes are called",
                );
            }
            if let Some(first) = names.insert(name, i) {
                let (name, first) = (name.escape_debug(), first + 1);
                out.push(
                    &at("name"),
                    format!("`{name}` is already declared by [[environment]] number {first}"),
                );
            }
            if environment.paths.is_empty() {
                out.push(&at("paths"), "must name where it lies");
            }
            for (n, path) in environment.paths.iter().enumerate() {
                let bare = environment.kind == Ecosystem::Binary && path.components().count() == 1;
                if let Err(why) = check_path(path)
                    && (!bare || path.is_absolute())
                {
                    out.push(&[&at("paths")[..], &[Step::Index(n)]].concat(), why);
                }
            }
            out.globs(&at("ignore"), &environment.ignore);
        }
        let mut paths = BTreeMap::new();
        for (i, repo) in self.repo.iter().enumerate() {
            let at = |key| [Step::Key("repo"), Step::Index(i), Step::Key(key)];
            if let Err(why) = check_path(&repo.path) {
                out.push(&at("path"), why);
            }
            if let Some(first) = paths.insert(repo.path.components().collect::<PathBuf>(), i) {
                let (path, first) = (shown(&repo.path), first + 1);
                out.push(&at("path"), format!("`{path}` is already named by [[repo]] number {first}"));
            }
            out.globs(&at("critical"), &repo.critical);
            if repo.risk_threshold.is_some_and(|risk| !(risk > 0.0 && risk <= 1.0)) {
                out.push(&at("risk_threshold"), "must be above 0 and at most 1");
            }
        }
        let trigger = |name, key| [Step::Key("triggers"), Step::Key(name), Step::Key(key)];
        let drift = &self.triggers.telemetry_drift;
        out.at_least_one(
            &trigger("telemetry_drift", "learn"),
            drift.learn,
            "one answer is the least to learn from",
        );
        out.at_least_one(
            &trigger("telemetry_drift", "confirm"),
            drift.confirm,
            "1 fires at the first answer",
        );
        for (name, poll) in [
            ("dependency_regression", self.triggers.dependency_regression.poll),
            ("code_diff", self.triggers.code_diff.poll),
        ] {
            if poll < Span::millis(100) {
                out.push(&trigger(name, "poll"), "must be at least `100ms`");
            }
        }
        let risk = &self.triggers.predicted_failure;
        if !(0.0..=1.0).contains(&risk.threshold) {
            out.push(&trigger("predicted_failure", "threshold"), "must be from 0 to 1");
        } else if !(0.0..=risk.threshold).contains(&risk.clear) {
            out.push(&trigger("predicted_failure", "clear"), "must be from 0 to `threshold`");
        }
        out.at_least_one(&trigger("predicted_failure", "commits"), risk.commits, "2000 is the default");
    }
}

#[derive(Default)]
pub(super) struct Wrongs(pub(super) Vec<Invalid>);

impl Wrongs {
    pub(super) fn push(&mut self, at: &[Step], message: impl fmt::Display) {
        let key = at.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(*key),
            Step::Index(_) => None,
        });
        self.0.push(Invalid { at: at.to_vec(), message: format!("{}: {message}", key.unwrap_or("value")) });
    }

    pub(super) fn unless(&mut self, at: &[Step], fits: Result<(), String>) {
        if let Err(why) = fits {
            self.push(at, why);
        }
    }

    pub(super) fn at_least_one(&mut self, at: &[Step], value: u32, instead: &str) {
        if value == 0 {
            self.push(at, format!("must be at least 1; {instead}"));
        }
    }

    fn globs(&mut self, at: &[Step], patterns: &[String]) {
        for (n, pattern) in patterns.iter().enumerate() {
            if let Err(err) = globset::Glob::new(pattern) {
                self.push(&[at, &[Step::Index(n)]].concat(), err.to_string().escape_debug().to_string());
            }
        }
    }

    pub(super) fn above_one(&mut self, at: &[Step], factor: f64) {
        if !(factor > 1.0 && factor.is_finite()) {
            self.push(at, "must be a number above 1");
        }
    }

    pub(super) fn not_negative(&mut self, at: &[Step], value: f64) {
        if !(value >= 0.0 && value.is_finite()) {
            self.push(at, "must not be negative");
        }
    }

    pub(super) fn longer_than_zero(&mut self, at: &[Step], value: Span) {
        if value.get().is_zero() {
            self.push(at, "must be longer than zero");
        }
    }
}

/// Days of the week as the configuration writes them.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// `HH:MM`.
#[must_use]
pub fn quiet_time(text: &str) -> Option<jiff::civil::Time> {
    jiff::civil::Time::strptime("%H:%M", text).ok()
}

pub(super) fn check_path(path: &Path) -> Result<(), String> {
    let text = path.to_string_lossy();
    if text.contains('\0') {
        return Err("no path can contain a NUL character".to_owned());
    }
    if !path.is_absolute() {
        return Err(format!("`{}` is not an absolute path", shown(path)));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("`{}` must not contain `..`", shown(path)));
    }
    Ok(())
}

pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooBig { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Calls `complain` for every key below `table` that `schema` does not have.
fn unknown_keys(
    table: &DeTable<'_>,
    schema: &Value,
    root: &Value,
    place: &str,
    complain: &mut impl FnMut(Range<usize>, String),
) {
    let schema = resolve(schema, root);
    let Some(known) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (key, value) in table {
        let name: &str = key.get_ref();
        let Some(below) = known.get(name) else {
            let place = if place.is_empty() { "at the top level".to_owned() } else { format!("in {place}") };
            let name_shown = name.escape_debug();
            let hint = match nearest(name, known.keys()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => {
                    let keys: Vec<String> = known.keys().map(|k| format!("`{k}`")).collect();
                    format!("; valid are {}", keys.join(", "))
                }
            };
            complain(key.span(), format!("unknown key `{name_shown}` {place}{hint}"));
            continue;
        };
        match value.get_ref() {
            DeValue::Table(inner) => {
                let path = place.trim_matches(['[', ']']);
                let dot = if path.is_empty() { "" } else { "." };
                unknown_keys(inner, below, root, &format!("[{path}{dot}{name}]"), complain);
            }
            DeValue::Array(elements) => {
                let Some(items) = resolve(below, root).get("items") else { continue };
                for element in elements.iter() {
                    if let DeValue::Table(inner) = element.get_ref() {
                        unknown_keys(inner, items, root, &format!("[[{name}]]"), complain);
                    }
                }
            }
            _ => {}
        }
    }
}

/// `schema`, or what its `$ref` points at.
pub(super) fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    target.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

fn nearest<'a>(word: &str, keys: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    // 0.8 takes `comand` and `retsart` for what they mean, and `heartbeat` for nothing that exists.
    keys.map(|key| (strsim::jaro_winkler(word, key), key.as_str()))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

/// The bytes of the value at `way`, or of the nearest thing above it that the document has.
fn span_of(document: &Spanned<DeTable<'_>>, way: &[Step]) -> Range<usize> {
    let mut span = 0..0;
    let mut table = Some(document.get_ref());
    let mut array = None;
    for step in way {
        let below = match step {
            Step::Key(key) => table.and_then(|t| t.iter().find(|(k, _)| k.get_ref() == key)).map(|(_, v)| v),
            Step::Index(i) => array.and_then(|a: &toml::de::DeArray<'_>| a.get(*i)),
        };
        let Some(value) = below else { break };
        // A table that was never opened by a header has no place of its own.
        if !value.span().is_empty() {
            span = value.span();
        }
        table = value.get_ref().as_table();
        array = value.get_ref().as_array();
    }
    span
}

impl Problem {
    fn new(text: &str, at: Range<usize>, message: &str) -> Self {
        let start = floor(text, at.start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let meant = text.get(start..floor(text, at.end.max(start))).unwrap_or_default();
        let meant = meant.lines().next().unwrap_or_default().chars().count();
        Self {
            line: before.matches('\n').count() + 1,
            column: column + 1,
            message: message.trim_end().lines().map(plain).collect::<Vec<_>>().join("; "),
            source_line: plain(line),
            width: meant.clamp(1, line.chars().count().saturating_sub(column).max(1)),
        }
    }
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// One column a character, none of which the terminal obeys: the caret below must point at what is meant.
fn plain(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if obeyed(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

fn plain_path(path: &Path) -> String {
    plain(&path.to_string_lossy())
}

struct Report<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, problems) = self;
        for (i, p) in problems.iter().take(MAX_PROBLEMS).enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            writeln!(f, "{}:{}:{}: {}", plain_path(path), p.line, p.column, p.message)?;
            let number = p.line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(f, "{gutter} |")?;
            writeln!(f, "{number} | {}", p.source_line)?;
            write!(f, "{gutter} | {}{}", " ".repeat(p.column.saturating_sub(1)), "^".repeat(p.width))?;
        }
        match problems.len().saturating_sub(MAX_PROBLEMS) {
            0 => Ok(()),
            more => write!(f, "\n\n… and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The report about `text`, as the file `c.toml`.
    fn report(text: impl AsRef<[u8]>) -> String {
        match Config::parse(text.as_ref(), Path::new("c.toml")) {
            Ok(_) => "accepted".to_owned(),
            Err(err) => err.to_string(),
        }
    }

    /// The first line of the report.
    fn first(text: &str) -> String {
        report(text).lines().next().unwrap_or_default().to_owned()
    }

    /// A `[[process]]` with `extra` as its fourth line.
    fn process(extra: &str) -> String {
        format!("[[process]]\nname = \"w\"\ncommand = [\"/bin/true\"]\n{extra}\n")
    }

    /// A `[[file]]` with `extra` as its third line.
    fn file(extra: &str) -> String {
        format!("[[file]]\npath = \"/etc/a\"\n{extra}\n")
    }

    #[test]
    fn what_is_right_is_accepted() {
        assert_eq!(report(""), "accepted");
        assert_eq!(report("mode = \"repair\""), "accepted");
        assert_eq!(report(process("env = { A = \"b\" }\nbackoff = \"1s\"")), "accepted");
        assert_eq!(report(file("writers = [\"/usr/bin/dpkg\", \"*/cp\"]")), "accepted");
        assert_eq!(
            report("\u{feff}mode = \"repair\""),
            "accepted",
            "an editor's byte order mark is no error"
        );
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_line_and_the_nearest_key() {
        assert_eq!(
            report(process("bakoff = \"1s\"")),
            "c.toml:4:1: unknown key `bakoff` in [[process]]; did you mean `backoff`?\n\
             \x20 |\n\
             4 | bakoff = \"1s\"\n\
             \x20 | ^^^^^^"
        );
        assert_eq!(
            first("[triggers.config_drift]\nsweeep = \"1s\""),
            "c.toml:2:1: unknown key `sweeep` in [triggers.config_drift]; did you mean `sweep`?"
        );
        assert_eq!(
            first("moode = 1"),
            "c.toml:1:1: unknown key `moode` at the top level; did you mean `mode`?"
        );
    }

    #[test]
    fn an_unknown_key_like_no_other_lists_the_valid_ones() {
        assert_eq!(
            first("[record]\nzzz = 1"),
            "c.toml:2:1: unknown key `zzz` in [record]; valid are `enabled`, `max_mib`"
        );
    }

    #[test]
    fn all_unknown_keys_are_told_at_once_in_the_order_of_the_file() {
        let text = report("zzz = 1\n[policy]\nhost_brust = 1\n");
        let (a, b) = (text.find("c.toml:1:1").unwrap(), text.find("c.toml:3:1").unwrap());
        assert!(a < b, "{text}");
    }

    #[test]
    fn an_environment_may_have_any_key() {
        assert_eq!(report(process("[process.env]\nanything = \"x\"")), "accepted");
    }

    #[test]
    fn syntax_errors_have_line_and_column() {
        assert!(first("mode = \n").starts_with("c.toml:1:8: "), "{}", first("mode = \n"));
        assert!(first("a\n[").starts_with("c.toml:1:2: "), "{}", first("a\n["));
        assert!(first("mode=\"observe\"\nmode=\"repair\"").starts_with("c.toml:2:1: duplicate key"));
    }

    #[test]
    fn wrong_types_and_durations_have_line_and_column() {
        assert_eq!(
            first(&process("burst = \"five\"")),
            "c.toml:4:9: invalid type: string \"five\", expected u32"
        );
        assert_eq!(
            first(&process("backoff = \"soon\"")),
            "c.toml:4:11: `soon` is not a duration such as `10s` or `5m`: expected number at 0"
        );
        assert_eq!(
            first("mode = \"repare\""),
            "c.toml:1:8: unknown variant `repare`, expected `observe` or `repair`"
        );
        assert_eq!(first("[[file]]\nsecret = true"), "c.toml:1:1: missing field `path`");
        assert!(first(&process("importance = 300")).starts_with("c.toml:4:14: "));
    }

    #[test]
    fn values_are_judged_where_they_stand() {
        for (text, expected) in [
            (process("importance = 101"), "c.toml:4:14: importance: must be from 0 to 100, not 101"),
            (
                process("burst = 0"),
                "c.toml:4:9: burst: must be at least 1; to restart never set restart = \"never\"",
            ),
            (process("interval = \"0s\""), "c.toml:4:12: interval: must be longer than zero"),
            (process("backoff = \"1h\""), "c.toml:4:11: backoff: must not be longer than backoff_max (`5m`)"),
            (process("cwd = \"here\""), "c.toml:4:7: cwd: `here` is not an absolute path"),
            (process("user = \"\""), "c.toml:4:8: user: must be a user's name or number"),
            (
                process("env = { \"A=B\" = \"c\" }"),
                "c.toml:4:7: env: `A=B` is not a variable: names have no `=`, nothing has a NUL character",
            ),
            (
                "[[process]]\nname = \"a b\"\ncommand = [\"/bin/true\"]".to_owned(),
                "c.toml:2:8: name: `a b` is not a process name: 1 to 64 letters, digits, `-`, `_`, `.`, not `.` first",
            ),
            (
                "[[process]]\nname = \"a\"\ncommand = []".to_owned(),
                "c.toml:3:11: command: must not be empty: it starts with the program's absolute path",
            ),
            (
                "[[process]]\nname = \"a\"\ncommand = [\"sleep\", \"1\"]".to_owned(),
                "c.toml:3:12: command: `sleep` is not an absolute path",
            ),
            (
                "[[process]]\nname = \"a\"\ncommand = [\"/bin/a\", \"\\u0000\"]".to_owned(),
                "c.toml:3:22: command: no argument can contain a NUL character",
            ),
            (
                "[[process]]\nname = \"..\"\ncommand = [\"/bin/true\"]".to_owned(),
                "c.toml:2:8: name: `..` is not a process name: 1 to 64 letters, digits, `-`, `_`, `.`, not `.` first",
            ),
            (process("") + &process(""), "c.toml:6:8: name: `w` is already declared by [[process]] number 1"),
            ("[[file]]\npath = \"a/b\"".to_owned(), "c.toml:2:8: path: `a/b` is not an absolute path"),
            ("[[file]]\npath = \"/a/../b\"".to_owned(), "c.toml:2:8: path: `/a/../b` must not contain `..`"),
            ("[[file]]\npath = \"/a/b/\"".to_owned(), "accepted"),
            (
                file("") + "[[file]]\npath = \"/etc//./a\"",
                "c.toml:5:8: path: `/etc//./a` is already owned by [[file]] number 1",
            ),
            (
                file("writers = [\"/a\", \"dpkg\"]"),
                "c.toml:3:18: writers: `dpkg` is not the absolute path of an executable (`*` allowed)",
            ),
            (
                "[policy]\nhost_burst = 0".to_owned(),
                "c.toml:2:14: host_burst: must be at least 1; to change nothing set mode = \"observe\"",
            ),
            (
                "[[queue]]\nname = \"\"".to_owned(),
                "c.toml:2:8: name: `` is not a name: 1 to 256 bytes without control characters",
            ),
            (
                "[[queue]]\nname = \"q\"\nprocess = \"w\"".to_owned(),
                "c.toml:3:11: process: there is no [[process]] named `w`",
            ),
            (
                "[[queue]]\nname = \"q\"\n[[queue]]\nname = \"q\"".to_owned(),
                "c.toml:4:8: name: `q` is already [[queue]] number 1",
            ),
            (
                "[[route]]\nname = \"/a\"\nbudget_ms = 0".to_owned(),
                "c.toml:3:13: budget_ms: must be more than 0 milliseconds",
            ),
            (
                "[[route]]\nname = \"/a\"\nbudget_ms = nan".to_owned(),
                "c.toml:3:13: budget_ms: must be more than 0 milliseconds",
            ),
            (
                "[[route]]\nname = \"/a\"\n[[route]]\nname = \"/a\"".to_owned(),
                "c.toml:4:8: name: `/a` is already [[route]] number 1",
            ),
            (
                "[records]\nmode = \"1777\"".to_owned(),
                "c.toml:2:8: mode: `1777` is no mode such as \"0660\": three or four octal digits, at most 0777",
            ),
            ("[records]\ngroup = \"\"".to_owned(), "c.toml:2:9: group: must be a group's name or number"),
            (
                "[triggers.config_drift]\nsweep = \"10ms\"".to_owned(),
                "c.toml:2:9: sweep: must be at least `1s`: a sweep reads every owned file",
            ),
            (
                process("heartbeat = \"10ms\""),
                "c.toml:4:13: heartbeat: must be at least `1s`: heartbeats are judged by the second",
            ),
            (
                "[triggers.health_gap]\nlog_factor = 1.0".to_owned(),
                "c.toml:2:14: log_factor: must be a number above 1",
            ),
            (
                "[triggers.latency_spike]\nbacklog = 80.0".to_owned(),
                "c.toml:2:11: backlog: must be above 0 and at most 1",
            ),
        ] {
            assert_eq!(first(&text), expected);
        }
    }

    #[test]
    fn values_of_the_tables_about_code_are_judged_where_they_stand() {
        let endpoint = |extra: &str| format!("[[endpoint]]\nurl = \"http://h/x?m=a@b\"\n{extra}\n");
        for right in [
            endpoint("headers = { authorization = \"Bearer x\" }"),
            "[[endpoint]]\nurl = \"https://[::1]:8443\"".to_owned(),
            "[[environment]]\nname = \"t\"\nkind = \"binary\"\npaths = [\"git\", \"/bin/sh\"]".to_owned(),
            "[[repo]]\npath = \"/srv/app\"\ncritical = [\"backend/**\", \"*.{py,js}\"]".to_owned(),
        ] {
            assert_eq!(report(&right), "accepted", "{right}");
        }
        for (text, expected) in [
            (
                "[[endpoint]]\nurl = \"ftp://h/\"".to_owned(),
                "c.toml:2:7: url: `ftp://h/` is not an http:// or https:// URL (a token goes into headers)",
            ),
            (
                "[[endpoint]]\nurl = \"http://u:p@h/\"".to_owned(),
                "c.toml:2:7: url: `http://u:p@h/` is not an http:// or https:// URL (a token goes into headers)",
            ),
            (endpoint("every = \"1ms\""), "c.toml:3:9: every: must be at least `100ms`"),
            (
                endpoint("timeout = \"2m\""),
                "c.toml:3:11: timeout: must be longer than zero and at most `60s`",
            ),
            (
                endpoint("headers = { \"a b\" = \"c\" }"),
                "c.toml:3:11: headers: `a b` cannot be sent as a header",
            ),
            (endpoint("openapi = \"x.yaml\""), "c.toml:3:11: openapi: `x.yaml` is not an absolute path"),
            (
                endpoint("") + &endpoint(""),
                "c.toml:5:7: url: `http://h/x?m=a@b` is already declared by [[endpoint]] number 1",
            ),
            (
                "[[environment]]\nname = \"a\"\nkind = \"python\"\npaths = [\"venv\"]".to_owned(),
                "c.toml:4:10: paths: `venv` is not an absolute path",
            ),
            (
                "[[environment]]\nname = \"process/w\"\nkind = \"system\"\npaths = [\"/\"]".to_owned(),
                "c.toml:2:8: name: must not begin with `process/`: that is how those of the processes are called",
            ),
            (
                "[[repo]]\npath = \"/srv/app\"\n[[repo]]\npath = \"/srv//app\"".to_owned(),
                "c.toml:4:8: path: `/srv//app` is already named by [[repo]] number 1",
            ),
            (
                "[[repo]]\npath = \"/srv/app\"\nrisk_threshold = 1.5".to_owned(),
                "c.toml:3:18: risk_threshold: must be above 0 and at most 1",
            ),
            (
                "[triggers.predicted_failure]\nclear = 0.8".to_owned(),
                "c.toml:2:9: clear: must be from 0 to `threshold`",
            ),
            (
                "[triggers.predicted_failure]\nthreshold = nan".to_owned(),
                "c.toml:2:13: threshold: must be from 0 to 1",
            ),
        ] {
            assert_eq!(first(&text), expected);
        }
        assert!(first("[[repo]]\npath = \"/r\"\ncritical = [\"a[\"]").starts_with("c.toml:3:13: critical: "));
        let ignore = "[[environment]]\nname = \"a\"\nkind = \"system\"\npaths = [\"/\"]\nignore = [\"a[\"]";
        assert!(first(ignore).starts_with("c.toml:5:11: ignore: "));
    }

    #[test]
    fn text_that_is_not_utf8_is_pointed_at() {
        assert_eq!(
            report(b"mode = 1\n\xff\xfe"),
            "c.toml:2:1: is not UTF-8 from here on\n  |\n2 | \u{fffd}\u{fffd}\n  | ^"
        );
    }

    #[test]
    fn reports_carry_no_character_that_a_terminal_obeys() {
        for text in ["mode = \"\\u001b]0;x\\u0007\"", "\u{1b}[2J = 1", "\"\u{202e}x\" = 1", "[\u{7}"] {
            let shown = report(text);
            assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown:?}");
            assert_ne!(shown, "accepted");
        }
    }

    #[test]
    fn tabs_do_not_shift_the_caret() {
        let text = report("[record]\n\tzzz = 1");
        assert!(text.ends_with("\n2 |  zzz = 1\n  |  ^^^"), "{text}");
    }

    #[test]
    fn a_hundred_problems_are_cut() {
        let text: String = (0..100).map(|i| format!("zzz{i} = 1\n")).collect();
        assert!(report(text).ends_with("\n\n… and 80 more"));
    }

    #[test]
    fn files_that_cannot_be_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let load = |name: &str| Config::load(Some(&path(name))).unwrap_err();

        assert!(matches!(load("missing"), ConfigError::Unreadable { .. }));
        assert!(matches!(Config::load(Some(dir.path())), Err(ConfigError::Unreadable { .. })));
        assert!(matches!(Config::load(Some(Path::new("/dev/zero"))), Err(ConfigError::TooBig { .. })));
        assert_eq!(Config::load(Some(Path::new("/dev/null"))).unwrap().0, Config::default());
        std::fs::write(path("big"), vec![b'#'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(matches!(load("big"), ConfigError::TooBig { .. }));
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grace.toml");
        assert_eq!(Config::load_default(&path).unwrap(), (Config::default(), None));
        std::fs::write(&path, "mode = \"repair\"").unwrap();
        let (config, file) = Config::load_default(&path).unwrap();
        assert_eq!((config.mode, file), (crate::config::Mode::Repair, Some(path.clone())));
        std::fs::write(&path, "mode = 3").unwrap();
        assert!(matches!(Config::load_default(&path), Err(ConfigError::Invalid { .. })));
    }
}
