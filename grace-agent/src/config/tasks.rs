//! The tables about tasks: the queue, the commands that must pass, where tasks are told, and the HTTP listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load::{Invalid, Step, Wrongs, check_path};
use super::{Hook, Span};

/// How tasks are handed out and looked after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// Whoever claimed a task and says nothing for this long has given it up. Default `30m`.
    pub lease: Span,
    /// What was submitted counts as repaired when its trigger stayed clear for this long. Default `10m`.
    pub soak: Span,
    /// What was submitted is open again when its trigger still holds after this long. Default `30m`.
    pub patience: Span,
    /// New tasks in a day at most; the count of those that are there goes on. Default 200.
    pub per_day: u32,
    /// The same for the firings of one trigger. Default 50.
    pub per_cause: u32,
    /// A task that was claimed so often is only handed out to whoever names it, until somebody reopens it; 0: always. Default 5.
    pub attempts: u32,
    /// Tasks that are verified or cancelled go after this time, with their evidence. Default 90 days.
    pub keep: Span,
    /// How urgent the tasks of a trigger are: 0 first, 3 last. Default: by trigger.
    pub priority: BTreeMap<String, u8>,
    /// What nobody may do to mend a fault, beside what is never allowed.
    pub forbidden: Vec<String>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            lease: Span::secs(1800),
            soak: Span::secs(600),
            patience: Span::secs(1800),
            per_day: 200,
            per_cause: 50,
            attempts: 5,
            keep: Span::secs(90 * 86_400),
            priority: BTreeMap::new(),
            forbidden: Vec::new(),
        }
    }
}

impl Tasks {
    pub(super) fn validate(&self, triggers: &[&str]) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let at = |key| [Step::Key("tasks"), Step::Key(key)];
        for (trigger, priority) in &self.priority {
            if !triggers.contains(&trigger.as_str()) && trigger != "syntax" {
                out.push(&at("priority"), format!("there is no trigger `{}`", trigger.escape_debug()));
            }
            if *priority > 3 {
                out.push(&at("priority"), "must be from 0 (first) to 3 (last)");
            }
        }
        if self.keep < Span::secs(60) {
            out.push(&at("keep"), "must be at least `1m`");
        }
        out.0
    }
}

/// A command that must pass before a task is verified. Grace runs it after the soak, without a shell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Name, unique among checks.
    #[schemars(example = &"unit-tests")]
    pub name: String,
    /// Program (absolute path) and arguments.
    #[schemars(example = ["/usr/bin/make", "test"])]
    pub command: Vec<String>,
    /// Only for tasks of this trigger. Default: all.
    #[serde(default)]
    #[schemars(example = &"error_feed")]
    pub trigger: Option<String>,
    /// Only for tasks about this [[repo]]. Default: all.
    #[serde(default)]
    #[schemars(example = &"/srv/app")]
    pub repo: Option<PathBuf>,
    /// User to run as, by name or number: somebody without rights. Default `nobody`.
    #[serde(default = "nobody")]
    pub user: String,
    /// Group to run as. Default: the user's.
    #[serde(default)]
    #[schemars(example = &"nogroup")]
    pub group: Option<String>,
    /// Working folder. Default: the repo, or `/`.
    #[serde(default)]
    #[schemars(example = &"/srv/app")]
    pub cwd: Option<PathBuf>,
    /// Environment; beside it there are only PATH, HOME and LANG.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// If it has not ended after this time it is killed and has not passed. Default `10m`.
    #[serde(default = "Check::timeout")]
    pub timeout: Span,
}

fn nobody() -> String {
    "nobody".to_owned()
}

impl Check {
    fn timeout() -> Span {
        Span::secs(600)
    }

    /// Whether it is to be run for a task of `trigger` about `repo`.
    #[must_use]
    pub fn means(&self, trigger: &str, repo: Option<&std::path::Path>) -> bool {
        self.trigger.as_deref().is_none_or(|t| t == trigger)
            && self.repo.as_deref().is_none_or(|wanted| repo == Some(wanted))
    }

    /// As what is run.
    #[must_use]
    pub fn hook(&self) -> Hook {
        Hook {
            name: format!("check.{}", self.name),
            command: self.command.clone(),
            user: Some(self.user.clone()),
            group: self.group.clone(),
            cwd: self.cwd.clone().or_else(|| self.repo.clone()),
            env: self.env.clone(),
            timeout: self.timeout,
            replicas: 1,
            max_replicas: None,
            trigger: None,
            subject: None,
        }
    }
}

/// Where tasks are told beside the local queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// `spool`, `webhook`, `github` or `exec`.
    #[schemars(example = &"webhook")]
    pub kind: SinkKind,
    /// Name, unique: what is still to be told is kept under it. Default: the kind.
    #[serde(default)]
    #[schemars(example = &"tracker")]
    pub name: Option<String>,
    /// Only tasks of these triggers. Default: all.
    #[serde(default)]
    #[schemars(example = ["error_feed"])]
    pub triggers: Vec<String>,
    /// spool: the folder, made if it is missing.
    #[serde(default)]
    #[schemars(example = &"/var/spool/grace")]
    pub path: Option<PathBuf>,
    /// webhook: where to. github: the base of its API, default `https://api.github.com`.
    #[serde(default)]
    #[schemars(example = &"https://hooks.example.net/grace")]
    pub url: Option<String>,
    /// webhook: a file with the secret that signs. Mode 0600.
    #[serde(default)]
    #[schemars(example = &"/etc/grace/webhook.secret")]
    pub secret_file: Option<PathBuf>,
    /// github: a file with the token. Mode 0600.
    #[serde(default)]
    #[schemars(example = &"/etc/grace/github.token")]
    pub token_file: Option<PathBuf>,
    /// github: `owner/name`.
    #[serde(default)]
    #[schemars(example = &"acme/app")]
    pub repository: Option<String>,
    /// github: labels of each issue. Default `grace`, which is always there: issues are found again by it.
    #[serde(default)]
    #[schemars(example = ["bug"])]
    pub labels: Vec<String>,
    /// exec: program (absolute path) and arguments. It reads the task as Markdown in the file `$GRACE_TASK`.
    #[serde(default)]
    #[schemars(example = ["/usr/local/bin/agent", "--task-file"])]
    pub command: Vec<String>,
    /// exec: must be true: a program that changes code is not run by accident. Default false.
    #[serde(default)]
    pub enabled: bool,
    /// exec: user to run as: somebody without rights, and never the agent's own.
    #[serde(default)]
    #[schemars(example = &"nobody")]
    pub user: Option<String>,
    /// exec: folder in which worktrees are made, one a task. The user must be able to write there.
    #[serde(default)]
    #[schemars(example = &"/var/lib/grace-work")]
    pub work: Option<PathBuf>,
    /// How long one try may take. Default `30s`, exec `30m`.
    #[serde(default)]
    #[schemars(example = &"30s")]
    pub timeout: Option<Span>,
    /// What was not taken after this time is given up (`grace tasks outbox`). Default 7 days.
    #[serde(default = "Sink::give_up")]
    pub give_up: Span,
}

/// The kinds of sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// A folder of Markdown and JSON.
    Spool,
    /// HTTP POST of a signed CloudEvent.
    Webhook,
    /// Issues of a repository.
    Github,
    /// A coding agent's command.
    Exec,
}

impl Sink {
    fn give_up() -> Span {
        Span::secs(7 * 86_400)
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(match self.kind {
            SinkKind::Spool => "spool",
            SinkKind::Webhook => "webhook",
            SinkKind::Github => "github",
            SinkKind::Exec => "exec",
        })
    }

    pub(super) fn validate(&self, triggers: &[&str]) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let at = |key| [Step::Key(key)];
        let name = self.name();
        if name.is_empty()
            || name.len() > 64
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            out.push(&at("name"), "must have 1 to 64 letters, digits, `-`, `_` or `.`");
        }
        for trigger in self.triggers.iter().filter(|t| !triggers.contains(&t.as_str()) && *t != "syntax") {
            out.push(&at("triggers"), format!("there is no trigger `{}`", trigger.escape_debug()));
        }
        let mut needs = |key: &'static str, there: bool| {
            if !there {
                out.push(&at("kind"), format!("needs `{key}`"));
            }
        };
        match self.kind {
            SinkKind::Spool => needs("path", self.path.is_some()),
            SinkKind::Webhook => {
                needs("url", self.url.is_some());
                needs("secret_file", self.secret_file.is_some());
            }
            SinkKind::Github => {
                needs("token_file", self.token_file.is_some());
                needs("repository", self.repository.is_some());
            }
            SinkKind::Exec => {
                needs("command", !self.command.is_empty());
                needs("user", self.user.is_some());
                needs("work", self.work.is_some());
            }
        }
        let paths = [
            ("path", &self.path),
            ("secret_file", &self.secret_file),
            ("token_file", &self.token_file),
            ("work", &self.work),
        ];
        for (key, path) in paths {
            if let Some(Err(why)) = path.as_deref().map(check_path) {
                out.push(&at(key), why);
            }
        }
        if let Some(url) = &self.url {
            let fits = url.parse::<hyper::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
            });
            if !fits {
                out.push(&at("url"), "is not an http:// or https:// URL");
            }
        }
        if let Some(repository) = &self.repository {
            let part = |text: &str| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            };
            if !repository.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) {
                out.push(&at("repository"), "must be `owner/name`");
            }
        }
        if self.command.first().is_some_and(|program| !program.starts_with('/')) {
            out.push(&at("command"), "must begin with the absolute path of a program");
        }
        if self.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            out.push(&at("timeout"), "must be longer than zero");
        }
        out.0
    }
}

/// HTTP on loopback: the queue of tasks for coding agents, over the Model Context Protocol at `/mcp`. Off by default. Takes
/// effect when the agent starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port, of loopback only.
    #[schemars(example = &"127.0.0.1:7411")]
    pub listen: Option<SocketAddr>,
    /// A file with the token that clients must show, mode 0600; made if it is missing. Default: `http-token` in the state
    /// folder.
    #[schemars(example = &"/etc/grace/http.token")]
    pub token_file: Option<PathBuf>,
}

impl Http {
    pub(super) fn validate(&self) -> Vec<Invalid> {
        let mut out = Wrongs::default();
        let at = |key| [Step::Key("http"), Step::Key(key)];
        if self.listen.is_some_and(|address| !address.ip().is_loopback()) {
            out.push(&at("listen"), "must be an address of loopback, such as `127.0.0.1:7411`");
        }
        if let Some(Err(why)) = self.token_file.as_deref().map(check_path) {
            out.push(&at("token_file"), why);
        }
        out.0
    }
}

impl super::Config {
    /// What is wrong in the tables about tasks although every type is right.
    pub(super) fn validate_tasks(&self, out: &mut Wrongs) {
        let triggers: Vec<String> = serde_json::to_value(&self.triggers)
            .ok()
            .and_then(|all| Some(all.as_object()?.keys().cloned().collect()))
            .unwrap_or_default();
        let triggers: Vec<&str> = triggers.iter().map(String::as_str).chain(["resource_pressure"]).collect();
        out.0.extend(self.tasks.validate(&triggers));
        out.0.extend(self.http.validate());
        for (i, check) in self.check.iter().enumerate() {
            let at = |key| [Step::Key("check"), Step::Index(i), Step::Key(key)];
            for wrong in super::process::check_program(&check.name, &check.command, &check.env) {
                out.0.push(Invalid {
                    at: [&[Step::Key("check"), Step::Index(i)][..], &wrong.at].concat(),
                    message: wrong.message,
                });
            }
            if self.check.iter().take(i).any(|other| other.name == check.name) {
                out.push(&at("name"), format!("`{}` is there already", check.name.escape_debug()));
            }
            if let Some(trigger) =
                check.trigger.as_deref().filter(|t| !triggers.contains(t) && *t != "syntax")
            {
                out.push(&at("trigger"), format!("there is no trigger `{}`", trigger.escape_debug()));
            }
            if let Some(repo) = check.repo.as_ref().filter(|path| !self.repo.iter().any(|r| r.path == **path))
            {
                let repo = repo.display().to_string();
                out.push(&at("repo"), format!("there is no [[repo]] `{}`", repo.escape_debug()));
            }
            if let Some(Err(why)) = check.cwd.as_deref().map(check_path) {
                out.push(&at("cwd"), why);
            }
            out.longer_than_zero(&at("timeout"), check.timeout);
        }
        for (i, sink) in self.sink.iter().enumerate() {
            let place = [Step::Key("sink"), Step::Index(i)];
            for wrong in sink.validate(&triggers) {
                out.0.push(Invalid { at: [&place[..], &wrong.at].concat(), message: wrong.message });
            }
            if self.sink.iter().take(i).any(|other| other.name() == sink.name()) {
                let name = sink.name().escape_debug();
                out.push(&[&place[..], &[Step::Key("name")]].concat(), format!("`{name}` is there already"));
            }
        }
    }
}
