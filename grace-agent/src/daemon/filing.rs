//! The desk at which tasks are filed: gathers what is around a fault, runs the checks of those that are done, looks after
//! the queue, and wakes whoever tells sinks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::{Executor, lock};
use crate::actions::run_hook::{self, Arguments};
use crate::api::view::{FiringView, TaskView};
use crate::config::{Check, Config};
use crate::error_chain::chain;
use crate::firing::{State, Subject};
use crate::sinks::Sinks;
use crate::tasks::{Context, Facts, Failed, Repo, Suspect, Trust, guide, item, ranked};

/// Time between two looks at tasks that somebody works on, or is done with.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two at what is old.
const OLD_EVERY: u32 = 600;
/// Words of the evidence that are tried as paths.
const MAX_WORDS: usize = 400;

/// What of the configuration tasks are filed by.
pub(super) struct Desk {
    settings: Mutex<Settings>,
    host: BTreeMap<String, String>,
    pub(super) sinks: Arc<Sinks>,
}

#[derive(Default)]
struct Settings {
    repos: Vec<PathBuf>,
    checks: Vec<Check>,
    forbidden: Vec<String>,
}

impl Desk {
    /// With what the host is, and those that are told.
    pub(super) fn new(host: BTreeMap<String, String>, sinks: Arc<Sinks>) -> Self {
        Self { settings: Mutex::default(), host, sinks }
    }

    /// Follows `config` from now on.
    pub(super) fn set(&self, config: &Config) {
        let mut settings = lock(&self.settings);
        settings.repos = config.repo.iter().map(|repo| repo.path.clone()).collect();
        settings.checks.clone_from(&config.check);
        settings.forbidden.clone_from(&config.tasks.forbidden);
        drop(settings);
        self.sinks.set(&config.sink);
    }

    /// There is something to tell.
    pub(super) fn wake(&self) {
        self.sinks.wake();
    }
}

impl Executor {
    /// What is around a fault.
    pub(super) fn context(&self, firing: &FiringView) -> Context {
        let (repos, checks, forbidden) = {
            let settings = lock(&self.desk.settings);
            (settings.repos.clone(), settings.checks.clone(), settings.forbidden.clone())
        };
        let process = self.process_of(firing);
        let path = repos
            .iter()
            .filter(|repo| is_about(firing, process.as_ref(), repo))
            .max_by_key(|repo| repo.as_os_str().len())
            .cloned();
        let repo = path.map(|path| {
            let (deployed, good) = self.code.commits(&path).unwrap_or_default();
            Repo { path, deployed, good, diff: None }
        });
        let mut context = Context {
            host: self.desk.host.clone(),
            reproduce: process.as_ref().map(|process| process.command.clone()).filter(|c| !c.is_empty()),
            checks: checks
                .iter()
                .filter(|check| check.means(&firing.trigger, repo.as_ref().map(|repo| repo.path.as_path())))
                .map(|check| check.name.clone())
                .collect(),
            forbidden,
            priority: guide(&firing.trigger).priority,
            cause: firing.cause.map(|cause| cause.0),
            repo,
            suspects: Vec::new(),
        };
        if let Some(repo) = &mut context.repo {
            let (suspects, diff) = self.suspects(firing, &repo.path);
            repo.diff = diff;
            context.suspects = suspects;
        }
        context
    }

    /// The declared process that a firing is about.
    fn process_of(&self, firing: &FiringView) -> Option<crate::config::Process> {
        let specs = lock(&self.specs);
        if let Subject::Process(name) = &firing.subject {
            return specs.get(name).cloned();
        }
        // `error_feed` says in its first line which one wrote the error.
        let line = firing.evidence.first()?;
        specs.values().find(|process| line.ends_with(&format!(" of {}", process.name))).cloned()
    }

    /// Files of `repo` that may be the cause, and how much changed since its known-good commit.
    fn suspects(&self, firing: &FiringView, repo: &Path) -> (Vec<Suspect>, Option<(u64, u64, u64)>) {
        let mut found = Vec::new();
        let words = firing
            .evidence
            .iter()
            .chain([&firing.summary, &firing.measured])
            .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || "_./-".contains(c))))
            .filter(|word| word.len() > 2 && word.contains('.'));
        for (place, word) in words.take(MAX_WORDS).enumerate() {
            if let Some(path) = file_of(repo, word) {
                let weight = 3.0 + place as f64 / MAX_WORDS as f64;
                if !found.iter().any(|known: &Suspect| known.path == path) {
                    found.push(Suspect { path, reasons: vec!["named by the fault itself".into()], weight });
                }
            }
        }
        if let Subject::File(path) = &firing.subject
            && let Ok(path) = path.strip_prefix(repo)
        {
            let path = path.display().to_string();
            found.push(Suspect { path, reasons: vec!["the fault is in it".into()], weight: 4.0 });
        }
        let changed = match &firing.subject {
            Subject::Repo(_) if firing.trigger == "code_diff" => Some(firing.clone()),
            _ => serde_json::to_string(&Subject::Repo(repo.to_owned()))
                .ok()
                .and_then(|subject| self.journal.newest("code_diff", &subject).ok().flatten())
                .filter(|firing| firing.state == State::Holds),
        };
        let diff = changed.map(|changed| {
            let (files, added, removed) = differences(&changed.evidence);
            let number = files.len() as u64;
            found.extend(files.into_iter().map(|path| Suspect {
                path,
                reasons: vec!["changed since the known-good commit".into()],
                weight: 2.0,
            }));
            (number, added, removed)
        });
        let mut suspects = ranked(found);
        for suspect in &mut suspects {
            let rated = self.code.risk(Some(&repo.join(&suspect.path))).unwrap_or_default();
            if let Some(view) = rated.first() {
                suspect.weight += view.risk;
                let why = view.reasons.first().map(|reason| format!(": {reason}")).unwrap_or_default();
                suspect.reasons.push(format!("risk {:.0} %{why}", view.risk * 100.0));
            }
        }
        (ranked(suspects), diff)
    }

    /// Runs the commands that must pass before the task is verified.
    fn check(&self, task: &TaskView, subject: &str) -> Result<(), Failed> {
        let repo = task.brief.repo.as_ref().map(|repo| PathBuf::from(&repo.path));
        let checks: Vec<Check> = {
            let settings = lock(&self.desk.settings);
            let means = |check: &&Check| check.means(&task.trigger, repo.as_deref());
            settings.checks.iter().filter(means).cloned().collect()
        };
        for check in checks {
            tracing::info!(check = %check.name, task = %task.id, %subject, "is run");
            let ran = run_hook::run(&check.hook(), &Arguments::default(), &self.cgroups);
            if let Err(err) = ran {
                // What it said is text of the repo's programs.
                let said = item(
                    &format!("check-{}", check.name),
                    Trust::Untrusted,
                    &format!("check {}", check.name),
                    &chain(&err),
                );
                let why = format!("the check {} did not pass: see the evidence `{}`", check.name, said.name);
                return Err(Failed { why, said: Box::new(said) });
            }
        }
        Ok(())
    }

    /// Looks after tasks until `stop`: on a thread of its own, because checks take their time.
    pub(super) fn look_after_tasks(&self, started_ns: i64, stop: &AtomicBool) {
        let mut looks = 0_u32;
        while !stop.load(Ordering::Acquire) {
            std::thread::park_timeout(LOOK);
            looks = looks.wrapping_add(1);
            if looks % OLD_EVERY == 1
                && let Err(err) = self.tasks.drop_old()
            {
                tracing::warn!(why = %chain(&err), "old tasks stay");
            }
            match self.tasks.is_under_way() {
                Ok(false) => continue,
                Ok(true) => {}
                Err(err) => {
                    tracing::warn!(why = %chain(&err), "tasks are not looked after");
                    continue;
                }
            }
            let newest = |trigger: &str, subject: &str| {
                self.journal
                    .newest(trigger, subject)
                    .inspect_err(|err| tracing::warn!(why = %chain(err), "a task is not judged"))
                    .ok()
                    .flatten()
            };
            let check = |task: &TaskView, subject: &str| self.check(task, subject);
            let context = |firing: &FiringView| self.context(firing);
            let facts = Facts { started_ns, newest: &newest, check: &check, context: &context };
            match self.tasks.judge(&facts) {
                Ok(said) => {
                    if !said.is_empty() {
                        self.desk.wake();
                    }
                    said.into_iter().for_each(|line| self.journal.note("task", line));
                }
                Err(err) => tracing::warn!(why = %chain(&err), "tasks are not looked after"),
            }
        }
    }
}

/// Whether a firing is about the repo at `repo`.
fn is_about(firing: &FiringView, process: Option<&crate::config::Process>, repo: &Path) -> bool {
    let of_subject = match &firing.subject {
        Subject::Repo(path) | Subject::File(path) => path.starts_with(repo),
        _ => false,
    };
    let of_process = process.is_some_and(|process| {
        process.cwd.as_deref().is_some_and(|cwd| cwd.starts_with(repo))
            || process.command.iter().any(|argument| Path::new(argument).starts_with(repo))
    });
    let name = format!("{}/", repo.display());
    of_subject || of_process || firing.evidence.iter().any(|line| line.contains(&name))
}

/// The path below `repo` of the file that `word` names, if it names one. No link is followed, nothing is read.
fn file_of(repo: &Path, word: &str) -> Option<String> {
    let word = word.trim_end_matches(['.', '-']);
    let below = match Path::new(word).strip_prefix(repo) {
        Ok(below) => below,
        Err(_) if word.starts_with('/') => return None,
        Err(_) => Path::new(word),
    };
    let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let is_file = plain && repo.join(below).symlink_metadata().is_ok_and(|meta| meta.is_file());
    is_file.then(|| below.display().to_string())
}

/// The files of a difference, lines added, and lines removed.
fn differences(lines: &[String]) -> (Vec<String>, u64, u64) {
    let (mut files, mut added, mut removed) = (Vec::new(), 0, 0);
    for line in lines {
        if let Some(path) = line.strip_prefix("+++ b/") {
            files.push(path.to_owned());
        } else if line.starts_with('+') {
            added += 1;
        } else if line.starts_with('-') && !line.starts_with("--- ") {
            removed += 1;
        }
    }
    (files, added, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_a_file_only_inside_of_the_repo() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        std::fs::create_dir(&repo).unwrap();
        std::fs::write(repo.join("app.py"), "").unwrap();
        std::fs::write(dir.path().join("secret.py"), "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret.py"), repo.join("link.py")).unwrap();
        let whole = repo.join("app.py").display().to_string();
        assert_eq!(file_of(&repo, &whole).as_deref(), Some("app.py"));
        assert_eq!(file_of(&repo, "app.py.").as_deref(), Some("app.py"));
        for no in ["../secret.py", "link.py", "/etc/passwd", "none.py", ""] {
            assert_eq!(file_of(&repo, no), None, "{no}");
        }
    }

    #[test]
    fn a_difference_is_counted() {
        let lines =
            ["1 test is likely", "--- a/x.py", "+++ b/x.py", "-old", "+new", "+more"].map(str::to_owned);
        assert_eq!(differences(&lines), (vec!["x.py".to_owned()], 2, 1));
    }
}
