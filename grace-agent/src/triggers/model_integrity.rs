//! `model_integrity`: a model's weights are not what they were, or it answers worse than it did.
//!
//! Sees `FileSeen` of files that were snapshotted as weights, and `Accuracy`. Fires when a weights file differs from its
//! snapshot, and when a model's accuracy falls by more than `accuracy_drop_percent` of its baseline. Remedy for weights:
//! restore them; for accuracy with intact weights there is nothing to restore: a task.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::file_state::ContentKind;
use crate::firing::{Finding, Route, Subject, Verdict};
use crate::owned::{OwnedFiles, Terms};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "model_integrity",
    summary: "a model's weights differ from their snapshot, or its accuracy fell",
    help: "Watches every file that was snapshotted as weights (by a [[model]] table, `--kind weights`, or its name: \
           .safetensors, .gguf, .pt, .pth, .onnx, .ckpt) and the accuracy that applications report (`grace accuracy`). \
           Weights: fires at once on any difference, puts the known-good content back, clears when it is seen to be \
           right; a change that keeps coming back is a fight, as in config_drift. Accuracy: the baseline is the median of \
           the last 20 values in which nothing was wrong, and it is learning until there are `samples` of them; fires \
           when a value is more than `accuracy_drop_percent` below, clears when one is back within half of that. Whether \
           the weights are intact is said with it.",
    subjects: "weights files and models",
    remedy: "restore the weights → task; accuracy with intact weights: task",
    needs: "as config_drift; accuracy needs somebody who reports it",
    evidence: &["file", "fanotify", "inotify"],
    route: Route::SelfHealing,
};

/// Models whose accuracy is followed at most: names come from applications.
const MODELS_MAX: usize = 10_000;

/// Values that make a baseline.
const HISTORY: usize = 20;

/// The trigger.
pub struct ModelIntegrity {
    settings: config::ModelIntegrity,
    files: OwnedFiles,
    models: BTreeMap<String, Model>,
}

/// A model.
#[derive(Default)]
struct Model {
    /// Its weights, where it was declared.
    files: Vec<PathBuf>,
    /// Values of accuracy in which nothing was wrong, oldest first.
    healthy: VecDeque<f64>,
    /// Since when its accuracy is too low.
    low: Option<Timestamp>,
}

impl Model {
    fn baseline(&self) -> Option<f64> {
        let mut values: Vec<f64> = self.healthy.iter().copied().collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

impl ModelIntegrity {
    /// Without models.
    #[must_use]
    pub fn new(settings: config::ModelIntegrity) -> Self {
        let terms = Terms {
            package_managers: Vec::new(),
            conflict_count: settings.conflict_count,
            conflict_window: settings.conflict_window.get(),
            title: "Find out why a model's weights keep changing, and make one side own them",
            acceptance: "the weights equal their snapshot, or a new snapshot was taken, and model_integrity stays clear \
                         for 10 minutes",
        };
        let files = OwnedFiles::new(terms, |kind| kind == ContentKind::Weights);
        Self { settings, files, models: BTreeMap::new() }
    }

    fn accuracy(&mut self, name: &str, value: f64, now: Timestamp) -> Vec<Verdict> {
        if !value.is_finite() || value < 0.0 {
            return Vec::new();
        }
        if !self.models.contains_key(name) && self.models.len() >= MODELS_MAX {
            return Vec::new();
        }
        let model = self.models.entry(name.to_owned()).or_default();
        let learnt = model.healthy.len() >= self.settings.samples as usize;
        let Some(baseline) = model.baseline().filter(|_| learnt) else {
            model.healthy.push_back(value);
            return Vec::new();
        };
        let drop = self.settings.accuracy_drop_percent / 100.0;
        // Half of the fall must be made up for before it is over.
        let limit = baseline * (1.0 - if model.low.is_some() { drop / 2.0 } else { drop });
        if value < limit {
            let since = *model.low.get_or_insert(now);
            let model = &self.models[name];
            return vec![Verdict::Holds(Box::new(self.finding(name, model, value, baseline, since)))];
        }
        model.healthy.push_back(value);
        if model.healthy.len() > HISTORY {
            model.healthy.pop_front();
        }
        match model.low.take() {
            Some(_) => vec![Verdict::Cleared(
                Subject::Model(name.to_owned()),
                format!("accuracy is {value} again, against {baseline}"),
            )],
            None => Vec::new(),
        }
    }

    fn finding(&self, name: &str, model: &Model, value: f64, baseline: f64, since: Timestamp) -> Finding {
        let weights = match model.files.len() {
            0 => "no weights of it are owned",
            _ if model.files.iter().any(|path| self.files.right(path) == Some(false)) => {
                "its weights are damaged"
            }
            _ if model.files.iter().all(|path| self.files.right(path) == Some(true)) => {
                "its weights are intact"
            }
            _ => "its weights were not all seen yet",
        };
        let fall = (1.0 - value / baseline) * 100.0;
        Finding {
            subject: Subject::Model(name.to_owned()),
            since,
            summary: format!("accuracy fell by {fall:.1} %; {weights}"),
            measured: format!("{value}"),
            threshold: format!("{} % below the baseline", self.settings.accuracy_drop_percent),
            baseline: format!("{baseline} (median of {} values)", model.healthy.len()),
            writer: None,
            noticed_by: None,
            evidence: Vec::new(),
            remedy: vec![Action::FileTask {
                title: "Find out why a model answers worse than it did".into(),
                acceptance: "its accuracy is back within half of the tolerated fall".into(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: model.files.iter().cloned().map(Subject::File).collect(),
        }
    }
}

impl Trigger for ModelIntegrity {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.files.len() + self.models.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::Accuracy { model, value } => self.accuracy(model, *value, event.at),
            Kind::ModelDeclared { name, files } => {
                self.models.entry(name.clone()).or_default().files.clone_from(files);
                Vec::new()
            }
            _ => self.files.on_event(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(t: &mut ModelIntegrity, value: f64) -> Vec<Verdict> {
        let kind = Kind::Accuracy { model: "m".into(), value };
        t.on_event(&Event { at: Timestamp(1), kind })
    }

    fn learnt() -> ModelIntegrity {
        let mut t = ModelIntegrity::new(config::ModelIntegrity::default());
        for value in [0.84, 0.85, 0.86] {
            assert_eq!(say(&mut t, value), []);
        }
        t
    }

    #[test]
    fn a_fall_of_more_than_15_percent_fires_and_half_of_it_clears() {
        let mut t = learnt();
        assert_eq!(say(&mut t, 0.7226), [], "15 % of 0.85 is 0.7225");
        assert!(
            matches!(&say(&mut t, 0.7)[..], [Verdict::Holds(f)] if f.subject == Subject::Model("m".into()))
        );
        assert!(matches!(say(&mut t, 0.75)[..], [Verdict::Holds(_)]), "better, but not well");
        assert!(matches!(say(&mut t, 0.80)[..], [Verdict::Cleared(..)]));
    }

    #[test]
    fn a_fall_is_never_learnt() {
        let mut t = learnt();
        for _ in 0..1000 {
            assert!(matches!(say(&mut t, 0.1)[..], [Verdict::Holds(_)]));
        }
    }

    #[test]
    fn what_is_no_accuracy_is_nothing() {
        let mut t = learnt();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert_eq!(say(&mut t, value), []);
        }
        assert!(matches!(say(&mut t, 0.0)[..], [Verdict::Holds(_)]), "nothing right is as low as it gets");
    }

    #[test]
    fn models_without_end_take_no_memory_without_end() {
        let mut t = learnt();
        for n in 0..20_000 {
            let kind = Kind::Accuracy { model: format!("m{n}"), value: 0.5 };
            t.on_event(&Event { at: Timestamp(1), kind });
        }
        assert_eq!(t.subjects(), MODELS_MAX);
    }
}
