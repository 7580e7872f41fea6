//! What is known around a fault beside its firing: gathered by `daemon/filing.rs`, put into the task here.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The surroundings of a fault when its task is filed.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Host, boot, kernel, driver, versions, by name.
    pub host: BTreeMap<String, String>,
    /// The declared repo that it is about, where one is.
    pub repo: Option<Repo>,
    /// Files that may be the cause, the likeliest first.
    pub suspects: Vec<Suspect>,
    /// How to see the fault again, where the configuration says: the command of the declared process.
    pub reproduce: Option<Vec<String>>,
    /// Names of the commands that must pass before the task is verified.
    pub checks: Vec<String>,
    /// What nobody may do to mend it, beside what is never allowed.
    pub forbidden: Vec<String>,
    /// 0 first, 3 last.
    pub priority: u8,
    /// The firing that this one follows from, if it does.
    pub cause: Option<u64>,
}

/// A declared repo. The path is the configuration's, the commits are hexadecimal digits.
#[derive(Debug, Clone, Default)]
pub struct Repo {
    /// Its folder.
    pub path: PathBuf,
    /// The commit that is checked out.
    pub deployed: Option<String>,
    /// The last known-good one.
    pub good: Option<String>,
    /// Files, lines added and lines removed between the two, as far as the difference was read.
    pub diff: Option<(u64, u64, u64)>,
}

/// A file that may be the cause. Hostile text.
#[derive(Debug, Clone, PartialEq)]
pub struct Suspect {
    /// Its path, below the repo where it is in one.
    pub path: String,
    /// Why, the heaviest first.
    pub reasons: Vec<String>,
    /// How likely, against the others.
    pub weight: f64,
}

/// Puts the likeliest first and drops the rest.
#[must_use]
pub fn ranked(mut suspects: Vec<Suspect>) -> Vec<Suspect> {
    let mut merged: Vec<Suspect> = Vec::new();
    for suspect in suspects.drain(..) {
        match merged.iter_mut().find(|known| known.path == suspect.path) {
            Some(known) => {
                known.weight += suspect.weight;
                known.reasons.extend(suspect.reasons);
            }
            None => merged.push(suspect),
        }
    }
    merged.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.path.cmp(&b.path)));
    merged.truncate(8);
    merged
}
