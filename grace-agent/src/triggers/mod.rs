//! The judges: one file per trigger, each pure. A trigger sees events and says verdicts; it reads no clock, file or
//! network, and names actions without performing them.

pub mod code_diff;
pub mod config_drift;
pub mod dependency_regression;
pub mod health_gap;
pub mod predicted_failure;
pub mod telemetry_drift;

use crate::config;
use crate::event::{Actor, Event, Inferred, Timestamp};
use crate::firing::Verdict;

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
}

/// All triggers, in the order in which they judge.
#[must_use]
pub fn all(config: &config::Triggers) -> Vec<Box<dyn Trigger>> {
    vec![
        Box::new(health_gap::HealthGap::new(config.health_gap.clone())),
        Box::new(config_drift::ConfigDrift::new(config.config_drift.clone())),
        Box::new(telemetry_drift::TelemetryDrift::new(config.telemetry_drift.clone())),
        Box::new(dependency_regression::DependencyRegression::new(config.dependency_regression.clone())),
        Box::new(code_diff::CodeDiff::new(config.code_diff.clone())),
        Box::new(predicted_failure::PredictedFailure::new(config.predicted_failure.clone())),
    ]
}

/// What each trigger is, in the same order.
#[must_use]
pub fn specs() -> Vec<&'static Spec> {
    vec![
        &health_gap::SPEC,
        &config_drift::SPEC,
        &telemetry_drift::SPEC,
        &dependency_regression::SPEC,
        &code_diff::SPEC,
        &predicted_failure::SPEC,
    ]
}

/// An actor in one phrase: `sed (pid 812, uid 0, /usr/bin/sed)`. What the process chose itself is escaped.
pub(crate) fn who(actor: &Actor) -> String {
    let mut out = format!("{} (pid {}", actor.comm.escape_debug(), actor.pid);
    if let Some(uid) = actor.uid {
        out.push_str(&format!(", uid {uid}"));
    }
    if let Some(exe) = &actor.exe {
        out.push_str(&format!(", {}", exe.escape_debug()));
    }
    out.push(')');
    match actor.inferred {
        Some(Inferred::Mapping) => {
            out.push_str(
                ", not seen in the act, but the only process that has it mapped shared and writable",
            );
        }
        Some(Inferred::LastTouch) => {
            out.push_str(", not seen in the act, but the last one that the kernel saw dirty it");
        }
        None => {}
    }
    out
}
