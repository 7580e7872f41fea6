//! `model_integrity`: a model's weights are not what they were, or it answers worse than it did.
//!
//! Sees `FileSeen` of files that were snapshotted as weights, `Accuracy`, and `CanarySeen`. Fires when a weights file differs
//! from its snapshot, when a model's accuracy falls by more than `accuracy_drop_percent` of its baseline, and when it does
//! not answer its canary as it did. Remedy for weights: restore them; for worse answers of intact weights there is nothing
//! to restore: a task.

mod kept;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use kept::Kept;

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
           .safetensors, .gguf, .pt, .pth, .onnx, .ckpt), the accuracy that applications report (`grace accuracy`), and \
           the canary of a [[model]]. Weights: fires at once on any difference, says which tensors and layers it \
           touches, puts the known-good content back (only the chunks that differ, in place, unless `repair` says \
           otherwise), clears when all of the file is seen to be right; a change that keeps coming back is a fight, as \
           in config_drift. Accuracy: the baseline is the median of \
           the last 20 values in which nothing was wrong, and it is learning until there are `samples` of them; fires \
           when a value is more than `accuracy_drop_percent` below and further than these values scatter, clears when \
           one is back within half of that; the baseline outlives the agent. Canary: fires when the answers are not the known-good ones, clears when they \
           are again. Whether the weights are intact is said with both.",
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
    /// A higher value is worse.
    lower_is_better: bool,
    /// Since when its accuracy is too low, and what was last reported.
    low: Option<(Timestamp, f64)>,
    /// Since when it does not answer as it did, and how.
    wrong: Option<(Timestamp, String)>,
}

impl Model {
    fn baseline(&self) -> Option<f64> {
        let mut values: Vec<f64> = self.healthy.iter().copied().collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// How far its healthy values lie from `baseline`: the median of that, made to be like a standard deviation.
    fn scatter(&self, baseline: f64) -> f64 {
        let mut apart: Vec<f64> = self.healthy.iter().map(|value| (value - baseline).abs()).collect();
        apart.sort_by(f64::total_cmp);
        apart.get(apart.len() / 2).copied().unwrap_or_default() * 1.4826
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
        // Half of the fall must be made up for before it is over. A value among the usual ones is no fall, however they scatter.
        let share = if model.low.is_some() { drop / 2.0 } else { drop };
        let tolerated = (baseline.abs() * share)
            .max((SCATTER * model.scatter(baseline)).min(baseline.abs() * SCATTER_MAX));
        let fall = if model.lower_is_better { value - baseline } else { baseline - value };
        if fall > tolerated {
            model.low = Some((model.low.map_or(now, |low| low.0), value));
            return self.judge(name);
        }
        model.healthy.push_back(value);
        if model.healthy.len() > HISTORY {
            model.healthy.pop_front();
        }
        match model.low.take() {
            Some(_) => self.over(name, format!("accuracy is {value} again, against {baseline}")),
            None => Vec::new(),
        }
    }

    fn canary(&mut self, name: &str, same: bool, said: &str, now: Timestamp) -> Vec<Verdict> {
        if !self.models.contains_key(name) && self.models.len() >= MODELS_MAX {
            return Vec::new();
        }
        let model = self.models.entry(name.to_owned()).or_default();
        if same {
            return match model.wrong.take() {
                Some(_) => self.over(name, said.to_owned()),
                None => Vec::new(),
            };
        }
        let since = model.wrong.as_ref().map_or(now, |wrong| wrong.0);
        model.wrong = Some((since, said.to_owned()));
        self.judge(name)
    }

    /// One of the two is over: the model is well if the other is not wrong.
    fn over(&self, name: &str, how: String) -> Vec<Verdict> {
        match self.judge(name) {
            still if !still.is_empty() => still,
            _ => vec![Verdict::Cleared(Subject::Model(name.to_owned()), how)],
        }
    }

    /// What is wrong with how `name` answers.
    fn judge(&self, name: &str) -> Vec<Verdict> {
        let Some(model) = self.models.get(name) else { return Vec::new() };
        let baseline = model.baseline().unwrap_or_default();
        let fall = model.low.map(|(_, value)| {
            let percent = (value - baseline).abs() / baseline.abs() * 100.0;
            let verb = if model.lower_is_better { "rose" } else { "fell" };
            format!("accuracy {verb} by {percent:.1} %")
        });
        let wrong = model.wrong.as_ref().map(|(_, said)| format!("canary: {said}"));
        let since = [model.low.map(|low| low.0), model.wrong.as_ref().map(|wrong| wrong.0)];
        let Some(since) = since.into_iter().flatten().min() else { return Vec::new() };
        let what: Vec<String> = fall.into_iter().chain(wrong).collect();
        let right = |want| move |path: &&PathBuf| self.files.right(path) == want;
        let damaged: Vec<String> =
            model.files.iter().filter(right(Some(false))).map(|path| path.display().to_string()).collect();
        let weights = match model.files.len() {
            0 => "no weights of it are owned",
            _ if !damaged.is_empty() => "its weights are damaged",
            _ if model.files.iter().all(|path| right(Some(true))(&path)) => "its weights are intact",
            _ => "its weights were not all seen yet",
        };
        let side = if model.lower_is_better { "above" } else { "below" };
        vec![Verdict::Holds(Box::new(Finding {
            subject: Subject::Model(name.to_owned()),
            since,
            summary: format!("{}; {weights}", what.join("; ")),
            measured: model.low.map_or_else(|| "other answers".to_owned(), |(_, value)| value.to_string()),
            threshold: match model.low {
                Some(_) => format!("{} % {side} the baseline", self.settings.accuracy_drop_percent),
                None => "the known-good answers".to_owned(),
            },
            baseline: match model.low {
                Some(_) => format!("{baseline} (median of {} values)", model.healthy.len()),
                None => "the known-good answers".to_owned(),
            },
            writer: None,
            noticed_by: None,
            evidence: damaged
                .iter()
                .take(16)
                .map(|path| format!("damaged: {}", path.escape_debug()))
                .collect(),
            remedy: vec![Action::FileTask {
                title: "Find out why a model answers worse than it did".into(),
                acceptance:
                    "its accuracy is back within half of the tolerated fall, and its canary answers as it did"
                        .into(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: model.files.iter().cloned().map(Subject::File).collect(),
        }))]
    }
}

/// So many times as far as healthy values scatter is further than they scatter.
const SCATTER: f64 = 3.0;

/// However values scatter, one that is further off than this share of the baseline is a fall.
const SCATTER_MAX: f64 = 0.5;

impl Trigger for ModelIntegrity {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.files.len() + self.models.len()
    }

    fn learned(&self) -> Option<serde_json::Value> {
        Kept::of(&self.models)
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::Learned { trigger, state } if trigger == SPEC.name => {
                for (name, values) in Kept::read(state) {
                    let room = self.models.len() < MODELS_MAX || self.models.contains_key(&name);
                    // What came since this agent runs is newer.
                    if room && self.models.get(&name).is_none_or(|model| model.healthy.is_empty()) {
                        self.models.entry(name).or_default().healthy = values.into();
                    }
                }
                Vec::new()
            }
            Kind::Accuracy { model, value } => self.accuracy(model, *value, event.at),
            Kind::CanarySeen { model, same, said } => self.canary(model, *same, said, event.at),
            Kind::ModelDeclared { name, files, lower_is_better } => {
                let model = self.models.entry(name.clone()).or_default();
                model.files.clone_from(files);
                model.lower_is_better = *lower_is_better;
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
    fn a_model_is_well_only_when_neither_accuracy_nor_canary_is_wrong() {
        let mut t = learnt();
        let canary = |t: &mut ModelIntegrity, same| {
            let kind = Kind::CanarySeen { model: "m".into(), same, said: "it answers `3`".into() };
            t.on_event(&Event { at: Timestamp(2), kind })
        };
        assert_eq!(canary(&mut t, true), []);
        assert!(
            matches!(&canary(&mut t, false)[..], [Verdict::Holds(f)] if f.summary.contains("`3`; no weights"))
        );
        assert!(
            matches!(&say(&mut t, 0.5)[..], [Verdict::Holds(f)] if f.summary.contains("fell by 41.2 %; canary"))
        );
        assert!(matches!(&canary(&mut t, true)[..], [Verdict::Holds(f)] if !f.summary.contains("canary")));
        assert!(matches!(say(&mut t, 0.85)[..], [Verdict::Cleared(..)]));
    }

    #[test]
    fn a_loss_that_rises_is_a_fall_and_what_scatters_is_not() {
        let mut t = ModelIntegrity::new(config::ModelIntegrity::default());
        let kind = Kind::ModelDeclared { name: "m".into(), files: Vec::new(), lower_is_better: true };
        t.on_event(&Event { at: Timestamp(1), kind });
        for value in [1.0, 1.0, 1.0] {
            assert_eq!(say(&mut t, value), []);
        }
        assert_eq!(say(&mut t, 0.2), [], "a loss that falls is good");
        assert!(matches!(&say(&mut t, 1.3)[..], [Verdict::Holds(f)] if f.summary.contains("rose by 30.0 %")));
        let mut noisy = ModelIntegrity::new(config::ModelIntegrity::default());
        for value in [0.5, 0.7, 0.9, 0.6, 0.8] {
            assert_eq!(say(&mut noisy, value), []);
        }
        assert_eq!(say(&mut noisy, 0.5), [], "as far as its values scatter");
        assert!(matches!(say(&mut noisy, 0.1)[..], [Verdict::Holds(_)]));
    }

    #[test]
    fn the_baseline_outlives_the_agent() {
        let mut before = learnt();
        assert!(matches!(say(&mut before, 0.5)[..], [Verdict::Holds(_)]), "what is wrong is not kept");
        let state = before.learned().unwrap();
        let after = |state: &serde_json::Value| {
            let mut t = ModelIntegrity::new(config::ModelIntegrity::default());
            let kind = Kind::Learned { trigger: SPEC.name.into(), state: state.clone() };
            assert_eq!(t.on_event(&Event { at: Timestamp(1), kind }), []);
            t
        };
        assert!(
            matches!(&say(&mut after(&state), 0.5)[..], [Verdict::Holds(f)] if f.baseline.starts_with("0.85 (median of 3"))
        );
        assert_eq!(say(&mut after(&state), 0.84), []);
        for (at, wrong) in [
            ("/version", serde_json::json!(2)),
            ("/accuracy/m/1", serde_json::json!(-1)),
            ("/accuracy/m", serde_json::json!(vec![0.5; 21])),
            ("/accuracy/m/0", serde_json::json!("1")),
        ] {
            let mut state = state.clone();
            *state.pointer_mut(at).unwrap() = wrong;
            assert_eq!(say(&mut after(&state), 0.5), [], "{at}");
        }
        assert!(ModelIntegrity::new(config::ModelIntegrity::default()).learned().is_none());
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
