//! `dependency_regression`: packages or programs are not what they were when their snapshot was taken.
//!
//! Sees `DependenciesSeen`. Fires when a version changed, a package went missing or a program vanished; clears when a look
//! finds everything as in the snapshot. Remedy: a task, with the exact commands that roll back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::code_facts::{DependencyChange, Ecosystem};
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};

/// Changes told as evidence.
const MAX_TOLD: usize = 100;

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "dependency_regression",
    summary: "a package changed its version or is gone, or a program or library vanished",
    help: "Watches the packages of every [[environment]], and of each [[process]] those of its venv, its `node_modules`, \
           its program and the shared libraries that it loads. The first look is the snapshot; `grace deps snapshot` \
           takes a new one. Looks again when folders or lock files changed (every `poll`), runs no program. Fires when a \
           version is another one, a package is missing, or a program or library is gone or has other bytes; a package \
           that is new is no regression. Files a task with the commands that put each version back. Clears when all is as \
           in the snapshot, or a new one was taken.",
    subjects: "environments",
    remedy: "file a task: roll back, with the commands",
    needs: "reading the folders; dpkg's status file or rpm's SQLite database for packages of the system",
    evidence: &["dependencies"],
    route: Route::CodingAgent,
};

/// The trigger.
pub struct DependencyRegression {
    environments: BTreeMap<String, Environment>,
}

/// An environment that was looked at.
#[derive(Default)]
struct Environment {
    since: Option<Timestamp>,
    /// What is said while the firing holds.
    said: Vec<DependencyChange>,
}

impl DependencyRegression {
    /// Without environments.
    #[must_use]
    pub fn new(_settings: config::DependencyRegression) -> Self {
        Self { environments: BTreeMap::new() }
    }
}

impl Trigger for DependencyRegression {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.environments.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::DependenciesSeen { environment, ecosystem, snapshot, total, changes, more } => {
                let known = self.environments.entry(environment.clone()).or_default();
                // What is new took nothing away from anybody.
                let bad: Vec<DependencyChange> =
                    changes.iter().filter(|c| c.was.is_some()).cloned().collect();
                if bad.is_empty() {
                    known.said.clear();
                    return match known.since.take() {
                        Some(_) => vec![cleared(environment, "all packages are as in the snapshot")],
                        None => Vec::new(),
                    };
                }
                if known.said == bad {
                    return Vec::new();
                }
                known.said = bad;
                let since = *known.since.get_or_insert(event.at);
                let seen = Seen { ecosystem: *ecosystem, snapshot, total: *total, more: *more };
                vec![Verdict::Holds(Box::new(finding(environment, &known.said, &seen, since)))]
            }
            Kind::EnvironmentForgotten { environment } => match self.environments.remove(environment) {
                Some(Environment { since: Some(_), .. }) => {
                    vec![cleared(environment, "not watched any more")]
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// What is said beside the changes.
struct Seen<'a> {
    ecosystem: Ecosystem,
    snapshot: &'a str,
    total: u64,
    more: u64,
}

fn finding(environment: &str, bad: &[DependencyChange], seen: &Seen<'_>, since: Timestamp) -> Finding {
    let gone = bad.iter().filter(|c| c.is.is_none()).count();
    let what = if seen.ecosystem == Ecosystem::Binary { "program or library" } else { "package" };
    let first = bad.first().map(describe).unwrap_or_default();
    let rest = match (bad.len().saturating_sub(1) as u64).saturating_add(seen.more) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let evidence = bad.iter().take(MAX_TOLD).map(|change| match &change.undo {
        Some(undo) => format!("{} → {undo}", describe(change)),
        None => format!("{} → no command can be made for it", describe(change)),
    });
    Finding {
        subject: subject(environment),
        since,
        summary: format!("{first}{rest}"),
        measured: format!(
            "{} {what} changed, {gone} missing, of {}",
            bad.len() - gone,
            seen.total.saturating_add(gone as u64)
        ),
        threshold: "no version other than the snapshot's".into(),
        baseline: format!("snapshot of {}", seen.snapshot.escape_debug()),
        writer: None,
        noticed_by: None,
        evidence: evidence.collect(),
        remedy: vec![Action::FileTask {
            title: "Roll back dependencies that changed since their snapshot, or take a new snapshot".into(),
            acceptance: "`grace deps diff` finds no difference for the environment".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    }
}

fn describe(change: &DependencyChange) -> String {
    let name = change.name.escape_debug();
    let was = change.was.as_deref().unwrap_or("nothing").escape_debug();
    match &change.is {
        Some(is) => format!("{name} is {}, was {was}", is.escape_debug()),
        None => format!("{name} is missing, was {was}"),
    }
}

fn subject(environment: &str) -> Subject {
    Subject::Environment(environment.to_owned())
}

fn cleared(environment: &str, how: &str) -> Verdict {
    Verdict::Cleared(subject(environment), how.to_owned())
}
