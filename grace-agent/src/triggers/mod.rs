//! The judges: one file per trigger, each pure. A trigger sees events and says verdicts; it reads no clock, file or
//! network, and names actions without performing them.

pub mod code_diff;
pub mod config_drift;
pub mod dependency_regression;
pub mod error_feed;
pub mod health_gap;
pub mod latency_spike;
pub mod model_integrity;
pub mod predicted_failure;
pub mod resource_pressure;
pub mod telemetry_drift;

use std::time::Duration;

use crate::config;
use crate::event::{Event, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};

/// What a trigger is: the only place where its name, summary and help stand. Feeds `grace triggers`, `grace explain`
/// and the README's table.
#[derive(Debug)]
pub struct Spec {
    /// Config key, command-line name and file stem.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it watches, when it fires and clears, what it does: a paragraph for `grace explain`.
    pub help: &'static str,
    /// What its subjects are.
    pub subjects: &'static str,
    /// The remedy in words, first rung to last.
    pub remedy: &'static str,
    /// What it needs to see, and what it still sees without.
    pub needs: &'static str,
    /// The classes of events (names of `Lost`) whose loss is a gap in this trigger's evidence.
    pub evidence: &'static [&'static str],
    /// Who is to mend what it finds, as long as nothing else is known.
    pub route: Route,
}

/// A judge.
pub trait Trigger: Send {
    /// What it is.
    fn spec(&self) -> &'static Spec;
    /// Judges one event.
    fn on_event(&mut self, event: &Event) -> Vec<Verdict>;
    /// When it wants a `Tick`, whatever else happens.
    fn wake(&self) -> Option<Timestamp> {
        None
    }
    /// How many subjects it judges.
    fn subjects(&self) -> usize;
    /// What it has learned and shall know when the agent runs again: given back by `Kind::Learned`. None: it learns
    /// nothing.
    fn learned(&self) -> Option<serde_json::Value> {
        None
    }
    /// What people should know of its judgement now, a few lines: what it is still learning, what it does not judge.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Names of one kind that a trigger judges at most: whoever sends more of them costs no more memory.
pub(crate) const MAX_NAMES: usize = 10_000;
/// Bytes of a name at most.
pub(crate) const MAX_NAME: usize = 256;
/// Lines of a kind in `notes` at most.
pub(crate) const MAX_NOTES: usize = 8;

/// What was kept of `spec`'s learning cannot be used.
pub(crate) fn unusable(spec: &Spec, why: &str, now: Timestamp) -> Verdict {
    Verdict::Happened(Box::new(Finding {
        subject: Subject::Trigger(spec.name.to_owned()),
        since: now,
        summary: format!("what {} had learned cannot be used: it learns anew", spec.name),
        measured: why.escape_debug().to_string(),
        threshold: "none".into(),
        baseline: "none".into(),
        writer: None,
        noticed_by: None,
        evidence: Vec::new(),
        remedy: Vec::new(),
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    }))
}

/// `seconds` as a duration, whatever number it is.
pub(crate) fn seconds(seconds: f64) -> Duration {
    const YEARS: f64 = 1e9;
    let seconds = if seconds.is_nan() { 0.0 } else { seconds };
    Duration::from_secs_f64(seconds.clamp(0.0, YEARS))
}

/// A duration as people read it: whole seconds, where it is longer than ten.
pub(crate) fn lasting(time: Duration) -> String {
    let time = match time.as_secs() {
        0..10 => Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        s => Duration::from_secs(s),
    };
    humantime::format_duration(time).to_string()
}

/// All triggers, in the order in which they judge.
#[must_use]
pub fn all(config: &config::Config) -> Vec<Box<dyn Trigger>> {
    let set = &config.triggers;
    vec![
        Box::new(health_gap::HealthGap::new(set.health_gap.clone())),
        Box::new(config_drift::ConfigDrift::new(set.config_drift.clone())),
        Box::new(model_integrity::ModelIntegrity::new(set.model_integrity.clone())),
        Box::new(resource_pressure::ResourcePressure::new(config.pressure.clone(), config.gpu.clone())),
        Box::new(latency_spike::LatencySpike::new(set.latency_spike.clone())),
        Box::new(error_feed::ErrorFeed::new(set.error_feed.clone())),
        Box::new(telemetry_drift::TelemetryDrift::new(set.telemetry_drift.clone())),
        Box::new(dependency_regression::DependencyRegression::new(set.dependency_regression.clone())),
        Box::new(code_diff::CodeDiff::new(set.code_diff.clone())),
        Box::new(predicted_failure::PredictedFailure::new(set.predicted_failure.clone())),
    ]
}

/// What each trigger is, in the same order.
#[must_use]
pub fn specs() -> Vec<&'static Spec> {
    vec![
        &health_gap::SPEC,
        &config_drift::SPEC,
        &model_integrity::SPEC,
        &resource_pressure::SPEC,
        &latency_spike::SPEC,
        &error_feed::SPEC,
        &telemetry_drift::SPEC,
        &dependency_regression::SPEC,
        &code_diff::SPEC,
        &predicted_failure::SPEC,
    ]
}

/// The triggers as a table in Markdown: the README's, which `grace triggers --markdown` prints.
#[must_use]
pub fn markdown() -> String {
    let mut out =
        String::from("| trigger | watches | fires when | then | goes to |\n|---|---|---|---|---|\n");
    for spec in specs() {
        let cell = |text: &str| text.replace('|', "\\|");
        out.push_str(&format!(
            "| `{}` | {} | {} | {} | `{}` |\n",
            spec.name,
            cell(spec.subjects),
            cell(spec.summary),
            cell(spec.remedy),
            spec.route.name()
        ));
    }
    out
}
