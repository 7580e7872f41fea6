//! `predicted_failure`: the history of a repo says that a file is likely to need a repair soon.
//!
//! Sees `RiskSeen`, at start and when HEAD moved. Fires for each file above `threshold`; clears when its risk is at most
//! `clear`, or the file is not among the rated ones any more. Remedy: a task for a review, with the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::code_facts::FileRisk;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "predicted_failure",
    summary: "a file is likely to need a repair soon, as the history of its repo says",
    help: "Rates the files of every [[repo]] at start and when HEAD moved, from its git history: recent changes, authors, \
           age, earlier repairs (by their commit messages), size, and what is changed together. A logistic regression \
           trained on the repo's own history, calibrated on a later part of it, says how likely the next changes include a \
           repair of the file; it tells its calibration error. A repo with too little history is rated by a prior, which \
           says so and stays below 65 %. Fires above `threshold`, files a task with the reasons. \
           Clears at or below `clear`. `grace risk` shows every file.",
    subjects: "files of repos",
    remedy: "file a task: review the file, with the reasons",
    needs: "a repo with some hundred commits",
    evidence: &["risk"],
    route: Route::CodingAgent,
};

/// The trigger.
pub struct PredictedFailure {
    settings: config::PredictedFailure,
    /// By repo: the files whose firing holds, since when, and what is said of each.
    repos: BTreeMap<PathBuf, BTreeMap<PathBuf, (Timestamp, FileRisk)>>,
}

impl PredictedFailure {
    /// Without repos.
    #[must_use]
    pub fn new(settings: config::PredictedFailure) -> Self {
        Self { settings, repos: BTreeMap::new() }
    }

    fn judge(
        &mut self,
        now: Timestamp,
        repo: &Path,
        head: &str,
        files: &[FileRisk],
        model: &str,
        (threshold, clear): (f64, f64),
    ) -> Vec<Verdict> {
        let mut out = Vec::new();
        let held = self.repos.entry(repo.to_owned()).or_default();
        let mut still = BTreeSet::new();
        for file in files {
            // What is no number between 0 and 1 says nothing, neither that it fires nor that it clears.
            let path = repo.join(&file.path);
            if !(0.0..=1.0).contains(&file.risk) {
                still.insert(path);
                continue;
            }
            let limit = if held.contains_key(&path) { clear } else { threshold };
            if file.risk <= limit {
                continue;
            }
            still.insert(path.clone());
            let since = held.get(&path).map_or(now, |(since, _)| *since);
            let before = held.insert(path.clone(), (since, file.clone()));
            if before.is_none_or(|(_, before)| &before != file) {
                out.push(Verdict::Holds(Box::new(self::finding(&path, since, head, file, model, threshold))));
            }
        }
        let gone: Vec<PathBuf> = held.keys().filter(|path| !still.contains(*path)).cloned().collect();
        for path in gone {
            held.remove(&path);
            let how = format!("its risk is not above {:.0} % any more", clear * 100.0);
            out.push(Verdict::Cleared(Subject::File(path), how));
        }
        out
    }
}

impl Trigger for PredictedFailure {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.repos.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::RiskSeen { repo, head, files, model, threshold } => {
                let limits = self.settings.limits(*threshold);
                self.judge(event.at, repo, head, files, model, limits)
            }
            Kind::RepoForgotten { repo } => {
                let files = self.repos.remove(repo).unwrap_or_default();
                let clear =
                    |path| Verdict::Cleared(Subject::File(path), "its repo is not watched any more".into());
                files.into_keys().map(clear).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn finding(
    path: &Path,
    since: Timestamp,
    head: &str,
    file: &FileRisk,
    model: &str,
    threshold: f64,
) -> Finding {
    let head: String = head.chars().take(12).flat_map(char::escape_debug).collect();
    Finding {
        subject: Subject::File(path.to_owned()),
        since,
        summary: format!(
            "risk {:.0} %: {}",
            file.risk * 100.0,
            file.reasons.first().map(|r| r.escape_debug().to_string()).unwrap_or_default()
        ),
        measured: format!(
            "risk {:.1} %, above {:.0} % of the repo's files, at {head}",
            file.risk * 100.0,
            file.percentile
        ),
        threshold: format!("{:.0} %", threshold * 100.0),
        baseline: model.escape_debug().to_string(),
        writer: None,
        noticed_by: None,
        evidence: file.reasons.iter().map(|reason| reason.escape_debug().to_string()).collect(),
        remedy: vec![Action::FileTask {
            title: "Review a file that its history says is likely to need a repair soon".into(),
            acceptance: "a review of the file is attached, and what it found is mended or argued away".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(trigger: &mut PredictedFailure, risk: f64) -> Vec<String> {
        told_with(trigger, risk, None)
    }

    fn told_with(trigger: &mut PredictedFailure, risk: f64, threshold: Option<f64>) -> Vec<String> {
        let file = FileRisk { path: "a.py".into(), risk, percentile: 99.0, reasons: vec!["often".into()] };
        let (repo, head, model) = ("/r".into(), "abc".into(), "m".into());
        let kind = Kind::RiskSeen { repo, head, files: vec![file], model, threshold };
        let verdicts = trigger.on_event(&Event { at: Timestamp(1), kind });
        verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Holds(f) => format!("holds {}: {}", f.subject, f.summary),
                Verdict::Cleared(subject, how) => format!("cleared {subject}: {how}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn it_fires_above_the_threshold_and_clears_well_below_it() {
        let mut trigger = PredictedFailure::new(config::PredictedFailure::default());
        assert_eq!(told(&mut trigger, 0.7), [""; 0]);
        assert_eq!(told(&mut trigger, 0.71), ["holds /r/a.py: risk 71 %: often"]);
        assert_eq!(told(&mut trigger, 0.71), [""; 0], "the same is said once");
        assert_eq!(
            told(&mut trigger, 0.65),
            ["holds /r/a.py: risk 65 %: often"],
            "between the two it holds on"
        );
        assert_eq!(told(&mut trigger, 0.6), ["cleared /r/a.py: its risk is not above 60 % any more"]);
        assert_eq!(told(&mut trigger, 0.65), [""; 0]);
    }

    #[test]
    fn a_repo_has_a_threshold_of_its_own() {
        let mut trigger = PredictedFailure::new(config::PredictedFailure::default());
        let mut told = |risk| told_with(&mut trigger, risk, Some(0.9));
        assert_eq!(told(0.85), [""; 0]);
        assert_eq!(told(0.91).len(), 1);
        assert_eq!(told(0.81), ["holds /r/a.py: risk 81 %: often"]);
        assert_eq!(told(0.8), ["cleared /r/a.py: its risk is not above 80 % any more"]);
    }

    #[test]
    fn what_is_no_share_neither_fires_nor_clears() {
        let mut trigger = PredictedFailure::new(config::PredictedFailure::default());
        let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1.5];
        for risk in strange {
            assert_eq!(told(&mut trigger, risk), [""; 0]);
        }
        told(&mut trigger, 0.9);
        for risk in strange {
            assert_eq!(told(&mut trigger, risk), [""; 0]);
        }
        assert_eq!(told(&mut trigger, 0.1).len(), 1);
    }
}
