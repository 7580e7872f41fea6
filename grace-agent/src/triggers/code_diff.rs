//! `code_diff`: critical files of a repo are not what they are in its last known-good commit.
//!
//! Sees `CodeSeen`, at start and whenever something changed. Fires on any difference, committed, staged or in the working
//! tree; clears when there is none, or `grace good` takes the commit as known-good. Remedy: a task that names the tests to
//! run, with the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::code_facts::{CodeAt, CodeChange, CodeHow};
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "code_diff",
    summary: "critical files differ from the last known-good commit",
    help: "Compares the critical files of every [[repo]] with the commit that `grace good` marked as known-good: at start, \
           and when HEAD, the index or a file changed (every `poll`). Fires when one of them differs, says whether that is \
           committed, staged or only in the working tree, names the tests that are likely to cover it (by name and by what \
           they import) and files a task with the difference. Clears when nothing differs any more, or `grace good` takes \
           the commit that is checked out as known-good. Without a known-good commit nothing is judged. git itself is not \
           run, and no program that a repo names.",
    subjects: "repos",
    remedy: "file a task: run the targeted tests, with the difference",
    needs: "reading the repo; `grace good` once",
    evidence: &["code"],
    route: Route::CodingAgent,
};

/// The trigger.
pub struct CodeDiff {
    repos: BTreeMap<PathBuf, Repo>,
}

/// A repo that was looked at.
#[derive(Default)]
struct Repo {
    since: Option<Timestamp>,
    /// What is said while the firing holds: which commits, what differs and how.
    said: Option<(String, String, Vec<CodeChange>, Vec<String>)>,
}

impl CodeDiff {
    /// Without repos.
    #[must_use]
    pub fn new(_settings: config::CodeDiff) -> Self {
        Self { repos: BTreeMap::new() }
    }
}

impl Trigger for CodeDiff {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.repos.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::CodeSeen { repo, good, head, changes, more, tests, diff } => {
                let known = self.repos.entry(repo.clone()).or_default();
                if changes.is_empty() {
                    known.said = None;
                    return match known.since.take() {
                        Some(_) => {
                            vec![cleared(repo, &format!("equal to the known-good commit {}", short(good)))]
                        }
                        None => Vec::new(),
                    };
                }
                let said = (good.clone(), head.clone(), changes.clone(), diff.clone());
                if known.said.as_ref() == Some(&said) {
                    return Vec::new();
                }
                known.said = Some(said);
                let since = *known.since.get_or_insert(event.at);
                let mut evidence: Vec<String> = vec![tests_line(tests)];
                evidence.extend(tests.iter().map(|test| format!("test {}", test.escape_debug())));
                evidence.extend(diff.iter().map(|line| line.escape_debug().to_string()));
                let last = changes.iter().map(|c| c.at).max().unwrap_or(CodeAt::Committed);
                vec![Verdict::Holds(Box::new(Finding {
                    subject: Subject::Repo(repo.clone()),
                    since,
                    summary: summary(changes, *more),
                    measured: format!("HEAD is {}, the newest change is {}", short(head), last.name()),
                    threshold: "no critical file differs".into(),
                    baseline: format!("known-good commit {}", short(good)),
                    writer: None,
                    noticed_by: None,
                    evidence,
                    remedy: vec![Action::FileTask {
                        title: "Run the tests that cover critical files changed since the known-good commit".into(),
                        acceptance: "the named tests pass and `grace good` marks the commit, or the files are back as \
                                     in the known-good commit"
                            .into(),
                    }],
                    delay: Duration::ZERO,
                    hold: None,
                    depends_on: Vec::new(),
                }))]
            }
            Kind::RepoForgotten { repo } => match self.repos.remove(repo) {
                Some(Repo { since: Some(_), .. }) => vec![cleared(repo, "not watched any more")],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// `serve.py modified (in the working tree), and 2 more`.
fn summary(changes: &[CodeChange], more: u64) -> String {
    let Some(first) = changes.first() else { return String::new() };
    let how = match first.how {
        CodeHow::Added => "added",
        CodeHow::Modified => "modified",
        CodeHow::Removed => "removed",
    };
    let rest = match (changes.len().saturating_sub(1) as u64).saturating_add(more) {
        0 => String::new(),
        rest => format!(", and {rest} more"),
    };
    format!("{} {how} ({}){rest}", first.path.escape_debug(), first.at.name())
}

fn tests_line(tests: &[String]) -> String {
    match tests.len() {
        0 => "no test was found that is likely to cover it: run them all".to_owned(),
        1 => "1 test is likely to cover it".to_owned(),
        n => format!("{n} tests are likely to cover it"),
    }
}

fn short(commit: &str) -> String {
    commit.chars().take(12).flat_map(char::escape_debug).collect()
}

fn cleared(repo: &Path, how: &str) -> Verdict {
    Verdict::Cleared(Subject::Repo(repo.to_owned()), how.to_owned())
}
