//! `[[process]]` and `[[hook]]`: what Grace is told of the processes that it keeps running, and of the commands that it runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load::{Invalid, Step, Wrongs, check_path};
use super::{Config, Span};
use crate::event::{Restart, RestartPolicy};

/// A process that Grace keeps running: one that it starts (`command`), one that somebody else starts (`match_exe`), or a systemd
/// unit (`unit`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Name, unique: letters, digits, `-`, `_`, `.`; at most 64.
    #[schemars(example = &"worker")]
    pub name: String,
    /// Program (absolute path) and arguments. No shell. With `match_exe`: how to start it again; without it is only watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(example = ["/usr/bin/python3", "/srv/app/worker.py"])]
    pub command: Vec<String>,
    /// A process that somebody else starts is known by the path of its executable, such as
    /// `/usr/sbin/nginx`; `*` and `?` allowed. The oldest that
    /// fits is meant.
    #[serde(default)]
    pub match_exe: Option<String>,
    /// And, or instead, by its arguments with spaces between, such as `nginx: master process *`.
    #[serde(default)]
    pub match_cmdline: Option<String>,
    /// A systemd unit, such as `nginx.service`, which systemd starts and stops for Grace. `worker@` with `replicas`: its instances `worker@1`, ….
    #[serde(default)]
    pub unit: Option<String>,
    /// Working folder. Default `/`.
    #[serde(default)]
    #[schemars(example = &"/srv/app")]
    pub cwd: Option<PathBuf>,
    /// Environment; it replaces the agent's own but for PATH, HOME and LANG.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User to run as, by name or number, with the groups that it is in. Default: the agent's.
    #[serde(default)]
    #[schemars(example = &"nobody")]
    pub user: Option<String>,
    /// Group to run as, by name or number. Default: the user's.
    #[serde(default)]
    #[schemars(example = &"nogroup")]
    pub group: Option<String>,
    /// Resource limits, soft and hard: `nofile`, `nproc`, `as`, `data`, `stack`, `core`, `cpu`, `fsize`, `memlock`, each a
    /// number or `"unlimited"`.
    #[serde(default)]
    pub limits: BTreeMap<String, Limit>,
    /// How soon it is chosen where memory runs out, from -1000 (never) to 1000 (first). Default 0: like any other, whatever
    /// Grace itself was given.
    #[serde(default)]
    pub oom_score_adj: i16,
    /// It is ready when: `notify` (it says `READY=1` to NOTIFY_SOCKET), `tcp:ADDRESS:PORT` or `unix:PATH` (it accepts
    /// connections). Default: as soon as it runs.
    #[serde(default)]
    #[schemars(example = &"tcp:127.0.0.1:8080")]
    pub ready: Option<String>,
    /// If it is not ready after this time it is ended, and that counts as a crash. Default `1m`.
    #[serde(default = "Process::ready_timeout")]
    pub ready_timeout: Span,
    /// Processes, by name, that must be ready before this one is started.
    #[serde(default)]
    #[schemars(example = ["database"])]
    pub after: Vec<String>,
    /// The signal that asks it to end. Default `TERM`.
    #[serde(default = "Process::stop_signal")]
    pub stop_signal: String,
    /// If it has not ended after this time it is killed, with all that it started. Default `10s`.
    #[serde(default = "Process::stop_timeout")]
    pub stop_timeout: Span,
    /// So many of it run. The others are called NAME@2, …; each finds its number in GRACE_REPLICA. Default 1.
    #[serde(default = "one")]
    pub replicas: u32,
    /// So many of it may run when a [[queue]] or [[route]] with this `process` is too slow. Default: `replicas`.
    #[serde(default)]
    #[schemars(example = &4)]
    pub max_replicas: Option<u32>,
    /// Which ends call for a restart: `always`, `on_failure`, `never`.
    #[serde(default)]
    pub restart: Restart,
    /// Restarts allowed within `interval`. Default 5.
    #[serde(default = "Process::burst")]
    pub burst: u32,
    /// The window of `burst`. Default `10m`.
    #[serde(default = "Process::interval")]
    pub interval: Span,
    /// Delay before the second restart in a row, doubling from there; up to a quarter less, so that many do not start at the
    /// same moment. Default `200ms`.
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
    /// The signal that tells it to do with less, where `[pressure] steps` has `notify`. Default: none, it can ask Grace.
    #[serde(default)]
    #[schemars(example = &"USR1")]
    pub shed_signal: Option<String>,
    /// Its heartbeats are at most this far apart, from its start on; three times that is a gap. Default: learned, where
    /// it sends any.
    #[serde(default)]
    #[schemars(example = &"10s")]
    pub heartbeat: Option<Span>,
    /// Files (absolute paths) that it writes its log into. Default: its stdout and stderr, which Grace captures.
    #[serde(default)]
    #[schemars(example = ["/var/log/worker.log"])]
    pub logs: Vec<PathBuf>,
    /// `count` of `[triggers.error_feed]`, for this process.
    #[serde(default)]
    #[schemars(example = 5)]
    pub error_count: Option<u32>,
    /// `window` of `[triggers.error_feed]`, for this process.
    #[serde(default)]
    #[schemars(example = &"10m")]
    pub error_window: Option<Span>,
}

/// How a process is known that Grace did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Path of its executable.
    pub exe: Option<glob::Pattern>,
    /// Its arguments, with spaces between.
    pub cmdline: Option<glob::Pattern>,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Limit {
    /// As setrlimit(2) takes it.
    Number(u64),
    /// `unlimited`.
    Word(String),
}

/// When a process is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// It says `READY=1`.
    Notify,
    /// It accepts connections here.
    Tcp(SocketAddr),
    /// It accepts connections here.
    Unix(PathBuf),
}

/// What must be so before a process is started, and when it counts as running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// These must be ready.
    pub after: Vec<String>,
    /// It says when it is ready.
    pub awaits: bool,
    /// Grace cannot start it.
    pub watched_only: bool,
}

/// A command that Grace runs: without a shell, in a clean environment, for a bounded time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Name, unique among hooks and processes.
    #[schemars(example = &"chat-workers")]
    pub name: String,
    /// Program (absolute path) and arguments. `{replicas}`, `{trigger}`, `{subject}` and `{firing}` are replaced.
    #[schemars(example = ["/usr/bin/kubectl", "scale", "deployment/chat", "--replicas={replicas}"])]
    pub command: Vec<String>,
    /// User to run as, by name or number. Default: the agent's.
    #[serde(default)]
    #[schemars(example = &"nobody")]
    pub user: Option<String>,
    /// Group to run as, by name or number. Default: the user's.
    #[serde(default)]
    #[schemars(example = &"nogroup")]
    pub group: Option<String>,
    /// Working folder. Default `/`.
    #[serde(default)]
    #[schemars(example = &"/srv/app")]
    pub cwd: Option<PathBuf>,
    /// Environment; beside it there are only PATH, HOME and LANG.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// If it has not ended after this time it is killed, with all that it started. Default `30s`.
    #[serde(default = "Hook::timeout")]
    pub timeout: Span,
    /// So many of what it scales run normally. Default 1.
    #[serde(default = "one")]
    pub replicas: u32,
    /// So many of it may run when a [[queue]] or [[route]] with this hook as its `process` is too slow.
    #[serde(default)]
    #[schemars(example = &10)]
    pub max_replicas: Option<u32>,
    /// The trigger whose firings it is run for, after Grace's own remedy and before a task is filed.
    #[serde(default)]
    #[schemars(example = &"resource_pressure")]
    pub trigger: Option<String>,
    /// Only for firings about this subject, as `grace firings` shows it; `*` and `?` allowed. Default: all of the trigger's.
    #[serde(default)]
    #[schemars(example = &"host cpu")]
    pub subject: Option<String>,
}

fn one() -> u32 {
    1
}

/// Replicas of one process at most.
const REPLICAS_MAX: u32 = 256;

/// The limits that can be set, as `limits` names them.
const LIMITS: [&str; 9] = ["nofile", "nproc", "as", "data", "stack", "core", "cpu", "fsize", "memlock"];

/// Number of the signal with this name, with or without `SIG`: those that a program can be asked with (signal(7), x86-64 and
/// arm64).
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        "CONT" => 18,
        "WINCH" => 28,
        "PWR" => 30,
        _ => return None,
    })
}

impl Limit {
    /// As setrlimit(2) takes it; none: `unlimited`.
    #[must_use]
    pub fn value(&self) -> Option<u64> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Word(_) => None,
        }
    }
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
    fn ready_timeout() -> Span {
        Span::secs(60)
    }
    fn stop_signal() -> String {
        "TERM".to_owned()
    }
    fn stop_timeout() -> Span {
        Span::secs(10)
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

    /// What must be so before it is started, and whether it says when it is ready.
    #[must_use]
    pub fn condition(&self) -> Condition {
        Condition {
            after: self.after.clone(),
            awaits: self.ready.is_some(),
            watched_only: self.command.is_empty() && self.unit.is_none(),
        }
    }

    /// When it is ready; none: as soon as it runs. Checked when it was read.
    #[must_use]
    pub fn ready(&self) -> Option<Ready> {
        parse_ready(self.ready.as_deref()?).ok()
    }

    /// How it is known where Grace does not start it first; none: Grace does. Checked when it was read.
    #[must_use]
    pub fn matches(&self) -> Option<Match> {
        let pattern = |text: &Option<String>| glob::Pattern::new(text.as_deref()?).ok();
        let (exe, cmdline) = (pattern(&self.match_exe), pattern(&self.match_cmdline));
        (exe.is_some() || cmdline.is_some()).then_some(Match { exe, cmdline })
    }

    /// So many of it may run.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.max_replicas.unwrap_or(self.replicas).max(self.replicas)
    }

    /// More than one of it may run.
    #[must_use]
    pub fn scales(&self) -> bool {
        self.most() > 1
    }

    /// Replica `index` of it, from 1; the first one has its name.
    #[must_use]
    pub fn replica(&self, index: u32) -> Self {
        let mut replica = self.clone();
        if self.scales() {
            replica.env.entry("GRACE_REPLICA".to_owned()).or_insert_with(|| index.to_string());
        }
        if let Some(template) = self.unit.as_ref().and_then(|unit| unit.strip_suffix('@')) {
            replica.unit = Some(format!("{template}@{index}.service"));
        }
        (replica.replicas, replica.max_replicas) = (1, None);
        if index > 1 {
            replica.name = replica_name(&self.name, index);
        }
        replica
    }

    /// What is wrong with this process by itself, the way starting at its own table. Empty: nothing.
    #[must_use]
    pub fn validate(&self) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let key = |key| [Step::Key(key)];

        check_name(&mut out, &self.name, "process");
        let patterns = [("match_exe", &self.match_exe), ("match_cmdline", &self.match_cmdline)];
        let matched = patterns.iter().any(|(_, pattern)| pattern.is_some());
        match (matched, &self.unit) {
            (true, Some(_)) => {
                out.push(&key("unit"), "systemd knows the unit's process: nothing is to be matched")
            }
            (false, Some(_)) if !self.command.is_empty() => {
                out.push(
                    &key("command"),
                    "must be left out where there is a `unit`: systemd has the command",
                );
            }
            (true, None) if self.command.is_empty() => {}
            (_, None) => check_command(&mut out, &self.command),
            (false, Some(_)) => {}
        }
        for (what, pattern) in patterns {
            if let Some(Err(err)) = pattern.as_deref().map(glob::Pattern::new) {
                out.push(&key(what), format!("is no pattern: {err}"));
            }
            if pattern.as_deref().is_some_and(|pattern| pattern.trim_matches('*').is_empty()) {
                out.push(&key(what), "must say more: every process would fit");
            }
        }
        if matched && self.most() > 1 {
            out.push(&key("replicas"), "of a matched process could not be told apart");
        }
        if let Some(unit) = &self.unit {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':' | '\\');
            if unit.is_empty() || unit.len() > 255 || unit.starts_with('.') || !unit.chars().all(fits) {
                out.push(&key("unit"), format!("`{}` is not a unit's name", unit.escape_debug()));
            } else if self.scales() != unit.ends_with('@') {
                out.push(
                    &key("unit"),
                    "replicas are instances of a template: its name ends with `@`, and only then",
                );
            }
            if self.ready.is_some() || self.user.is_some() || !self.limits.is_empty() || self.group.is_some()
            {
                out.push(
                    &key("unit"),
                    "systemd knows readiness, user, group and limits of its unit: leave them out here",
                );
            }
        }
        if let Some(Err(why)) = self.cwd.as_deref().map(check_path) {
            out.push(&key("cwd"), why);
        }
        check_env(&mut out, &self.env);
        check_who(&mut out, self.user.as_deref(), self.group.as_deref());
        if !(-1000..=1000).contains(&self.oom_score_adj) {
            out.push(&key("oom_score_adj"), "must be from -1000 to 1000");
        }
        for (name, limit) in &self.limits {
            if !LIMITS.contains(&name.as_str()) {
                let name = name.escape_debug();
                out.push(&key("limits"), format!("`{name}` is not one of {}", LIMITS.join(", ")));
            } else if matches!(limit, Limit::Word(word) if word != "unlimited") {
                out.push(&key("limits"), format!("`{name}` must be a number or \"unlimited\""));
            }
        }
        if let Some(Err(why)) = self.ready.as_deref().map(parse_ready) {
            out.push(&key("ready"), why);
        }
        out.longer_than_zero(&key("ready_timeout"), self.ready_timeout);
        if signal_number(&self.stop_signal).is_none() {
            out.push(&key("stop_signal"), no_signal(&self.stop_signal));
        }
        out.longer_than_zero(&key("stop_timeout"), self.stop_timeout);
        if let Some(name) = self.shed_signal.as_deref().filter(|name| signal_number(name).is_none()) {
            out.push(&key("shed_signal"), no_signal(name));
        }
        check_replicas(&mut out, self.replicas, self.max_replicas);
        out.at_least_one(&key("burst"), self.burst, "to restart never set restart = \"never\"");
        out.longer_than_zero(&key("interval"), self.interval);
        if self.backoff > self.backoff_max {
            out.push(
                &key("backoff"),
                format!(
                    "must not be longer than backoff_max (`{}`)",
                    humantime::format_duration(self.backoff_max.get())
                ),
            );
        }
        for (i, log) in self.logs.iter().enumerate() {
            if let Err(why) = check_path(log) {
                out.push(&[Step::Key("logs"), Step::Index(i)], why);
            }
        }
        if let Some(count) = self.error_count {
            out.at_least_one(&key("error_count"), count, "1 fires at the first error of a kind");
        }
        if self.error_window.is_some_and(|window| window < Span::secs(1)) {
            out.push(&key("error_window"), "must be at least `1s`");
        }
        if self.importance > 100 {
            out.push(&key("importance"), format!("must be from 0 to 100, not {}", self.importance));
        }
        if self.heartbeat.is_some_and(|gap| gap < Span::secs(1)) {
            out.push(&key("heartbeat"), "must be at least `1s`: heartbeats are judged by the second");
        }
        out.0
    }
}

/// What is wrong with a program that Grace runs under a name.
pub(super) fn check_program(name: &str, command: &[String], env: &BTreeMap<String, String>) -> Vec<Invalid> {
    let mut out = Wrongs::default();
    check_name(&mut out, name, "check");
    check_command(&mut out, command);
    check_env(&mut out, env);
    out.0
}

impl Hook {
    fn timeout() -> Span {
        Span::secs(30)
    }

    /// It scales something.
    #[must_use]
    pub fn scales(&self) -> bool {
        self.most() > self.replicas
    }

    /// So many of what it scales may run.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.max_replicas.unwrap_or(self.replicas).max(self.replicas)
    }

    fn validate(&self, triggers: &[&str]) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let key = |key| [Step::Key(key)];
        check_name(&mut out, &self.name, "hook");
        check_command(&mut out, &self.command);
        if let Some(Err(why)) = self.cwd.as_deref().map(check_path) {
            out.push(&key("cwd"), why);
        }
        check_env(&mut out, &self.env);
        check_who(&mut out, self.user.as_deref(), self.group.as_deref());
        out.longer_than_zero(&key("timeout"), self.timeout);
        check_replicas(&mut out, self.replicas, self.max_replicas);
        let says = |word: &str| self.command.iter().any(|argument| argument.contains(word));
        if self.scales() && !says("{replicas}") {
            out.push(&key("command"), "has no `{replicas}`: it could not say how many there shall be");
        }
        match &self.trigger {
            Some(trigger) if !triggers.contains(&trigger.as_str()) => {
                out.push(&key("trigger"), format!("there is no trigger `{}`", trigger.escape_debug()));
            }
            None if !self.scales() => {
                out.push(&key("name"), "would never be run: it needs `max_replicas` or `trigger`");
            }
            None if ["{trigger}", "{subject}", "{firing}"].iter().any(|word| says(word)) => {
                out.push(&key("command"), "is run for no firing: it has only `{replicas}`");
            }
            _ => {}
        }
        if let Some(Err(err)) = self.subject.as_deref().map(glob::Pattern::new) {
            out.push(&key("subject"), format!("is no pattern: {err}"));
        }
        out.0
    }
}

/// The name of replica `index` of `name`, from 2.
fn replica_name(name: &str, index: u32) -> String {
    format!("{name}@{index}")
}

impl Config {
    /// What is wrong with processes and hooks among each other.
    pub(super) fn validate_processes(&self, out: &mut Wrongs) {
        for (i, process) in self.process.iter().enumerate() {
            let at = |n| [Step::Key("process"), Step::Index(i), Step::Key("after"), Step::Index(n)];
            for (n, name) in process.after.iter().enumerate() {
                if !self.process.iter().any(|p| p.name == *name) {
                    out.push(&at(n), format!("there is no [[process]] named `{}`", name.escape_debug()));
                } else if self.leads_to(name, &process.name) {
                    out.push(&at(n), format!("`{}` would wait for itself", process.name.escape_debug()));
                }
            }
        }
        let triggers: Vec<String> = serde_json::to_value(&self.triggers)
            .ok()
            .and_then(|all| Some(all.as_object()?.keys().cloned().collect()))
            .unwrap_or_default();
        let triggers: Vec<&str> = triggers.iter().map(String::as_str).chain(["resource_pressure"]).collect();
        for (i, hook) in self.hook.iter().enumerate() {
            let at = [Step::Key("hook"), Step::Index(i)];
            for wrong in hook.validate(&triggers) {
                out.0.push(Invalid { at: [&at[..], &wrong.at].concat(), message: wrong.message });
            }
            let taken = self.process.iter().any(|p| p.name == hook.name)
                || self.hook.iter().take(i).any(|h| h.name == hook.name);
            if taken {
                let name = hook.name.escape_debug();
                out.push(&[&at[..], &[Step::Key("name")]].concat(), format!("`{name}` is there already"));
            }
        }
    }

    /// Whether `from` waits for `to`, or for something that does.
    fn leads_to(&self, from: &str, to: &str) -> bool {
        let mut seen = vec![from];
        let mut next = 0;
        while let Some(name) = seen.get(next).copied() {
            next += 1;
            if name == to {
                return true;
            }
            for process in self.process.iter().filter(|p| p.name == name) {
                for name in process.after.iter().map(String::as_str) {
                    if !seen.contains(&name) {
                        seen.push(name);
                    }
                }
            }
        }
        false
    }
}

fn no_signal(name: &str) -> String {
    format!(
        "`{}` is not one of HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT, WINCH, PWR",
        name.escape_debug()
    )
}

fn parse_ready(text: &str) -> Result<Ready, String> {
    let unknown = || format!("`{}` is not `notify`, `tcp:ADDRESS:PORT` or `unix:PATH`", text.escape_debug());
    match text.split_once(':') {
        None if text == "notify" => Ok(Ready::Notify),
        Some(("tcp", address)) => address.parse().map(Ready::Tcp).map_err(|_no_address| unknown()),
        Some(("unix", path)) => check_path(Path::new(path)).map(|()| Ready::Unix(path.into())),
        _ => Err(unknown()),
    }
}

fn check_name(out: &mut Wrongs, name: &str, what: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed) {
        let name = name.escape_debug();
        out.push(
            &[Step::Key("name")],
            format!("`{name}` is not a {what} name: 1 to 64 letters, digits, `-`, `_`, `.`, not `.` first"),
        );
    }
}

fn check_command(out: &mut Wrongs, command: &[String]) {
    let argument = |i| [Step::Key("command"), Step::Index(i)];
    match command.first() {
        None => {
            out.push(
                &[Step::Key("command")],
                "must not be empty: it starts with the program's absolute path",
            );
        }
        Some(program) => {
            if let Err(why) = check_path(Path::new(program)) {
                out.push(&argument(0), why);
            }
        }
    }
    for (i, _) in command.iter().enumerate().skip(1).filter(|(_, a)| a.contains('\0')) {
        out.push(&argument(i), "no argument can contain a NUL character");
    }
}

fn check_env(out: &mut Wrongs, env: &BTreeMap<String, String>) {
    for (variable, value) in env {
        if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
            let variable = variable.escape_debug();
            out.push(
                &[Step::Key("env")],
                format!("`{variable}` is not a variable: names have no `=`, nothing has a NUL character"),
            );
        }
    }
}

fn check_who(out: &mut Wrongs, user: Option<&str>, group: Option<&str>) {
    for (key, who, what) in [("user", user, "a user's"), ("group", group, "a group's")] {
        if who.is_some_and(|who| who.is_empty() || who.contains(['\0', ':', '/'])) {
            out.push(&[Step::Key(key)], format!("must be {what} name or number"));
        }
    }
}

fn check_replicas(out: &mut Wrongs, replicas: u32, most: Option<u32>) {
    out.at_least_one(&[Step::Key("replicas")], replicas, "to run none take it out");
    for (key, n) in [("replicas", replicas), ("max_replicas", most.unwrap_or(replicas))] {
        if n > REPLICAS_MAX {
            out.push(&[Step::Key(key)], format!("must be at most {REPLICAS_MAX}"));
        }
    }
    if most.is_some_and(|most| most < replicas) {
        out.push(&[Step::Key("max_replicas")], "must not be less than `replicas`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> String {
        match Config::parse(text.as_bytes(), Path::new("c.toml")) {
            Ok(_) => "accepted".to_owned(),
            Err(err) => err.to_string().lines().next().unwrap_or_default().to_owned(),
        }
    }

    fn process(extra: &str) -> String {
        format!("[[process]]\nname = \"w\"\ncommand = [\"/bin/true\"]\n{extra}\n")
    }

    fn hook(extra: &str) -> String {
        format!("[[hook]]\nname = \"h\"\ncommand = [\"/bin/true\", \"{{replicas}}\"]\n{extra}\n")
    }

    #[test]
    fn what_is_right_is_accepted() {
        for right in [
            process(
                "limits = { nofile = 1024, core = \"unlimited\" }\nready = \"tcp:[::1]:80\"\nstop_signal = \"SIGINT\"",
            ),
            process("replicas = 2\nmax_replicas = 4\nready = \"unix:/run/w\"\nshed_signal = \"USR1\""),
            "[[process]]\nname = \"n\"\nmatch_exe = \"/usr/sbin/nginx\"\nmatch_cmdline = \"*master*\"".into(),
            "[[process]]\nname = \"n\"\nunit = \"nginx.service\"".into(),
            "[[process]]\nname = \"n\"\nunit = \"worker@\"\nmax_replicas = 3".into(),
            process("") + "[[process]]\nname = \"v\"\nafter = [\"w\"]\ncommand = [\"/bin/true\"]",
            hook("max_replicas = 3") + "[[queue]]\nname = \"q\"\nprocess = \"h\"",
            "[[hook]]\nname = \"h\"\ncommand = [\"/bin/a\", \"{subject}\"]\ntrigger = \"resource_pressure\""
                .into(),
        ] {
            assert_eq!(report(&right), "accepted", "{right}");
        }
    }

    #[test]
    fn values_are_judged_where_they_stand() {
        for (text, expected) in [
            (
                process("limits = { nofiles = 1 }"),
                "c.toml:4:10: limits: `nofiles` is not one of nofile, nproc, as, data, stack, core, cpu, fsize, memlock",
            ),
            (
                process("ready = \"http://x\""),
                "c.toml:4:9: ready: `http://x` is not `notify`, `tcp:ADDRESS:PORT` or `unix:PATH`",
            ),
            (process("ready = \"unix:x\""), "c.toml:4:9: ready: `x` is not an absolute path"),
            (
                process("stop_signal = \"STOP\""),
                "c.toml:4:15: stop_signal: `STOP` is not one of HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT, WINCH, PWR",
            ),
            (process("after = [\"x\"]"), "c.toml:4:10: after: there is no [[process]] named `x`"),
            (process("after = [\"w\"]"), "c.toml:4:10: after: `w` would wait for itself"),
            (process("max_replicas = 0"), "c.toml:4:16: max_replicas: must not be less than `replicas`"),
            (
                process("unit = \"x.service\""),
                "c.toml:3:11: command: must be left out where there is a `unit`: systemd has the command",
            ),
            (
                "[[process]]\nname = \"n\"\nmatch_exe = \"*\"".into(),
                "c.toml:3:13: match_exe: must say more: every process would fit",
            ),
            (
                "[[process]]\nname = \"n\"".into(),
                "c.toml:1:1: command: must not be empty: it starts with the program's absolute path",
            ),
            (
                "[[process]]\nname = \"n\"\nunit = \"w@\"".into(),
                "c.toml:3:8: unit: replicas are instances of a template: its name ends with `@`, and only then",
            ),
            (hook(""), "c.toml:2:8: name: would never be run: it needs `max_replicas` or `trigger`"),
            (hook("trigger = \"nope\""), "c.toml:4:11: trigger: there is no trigger `nope`"),
        ] {
            assert_eq!(report(&text), expected);
        }
    }
}
