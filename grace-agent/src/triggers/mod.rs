//! The judges: one file per trigger, each pure. A trigger sees events and says verdicts; it reads no clock, file or
//! network, and names actions without performing them.

pub mod config_drift;
pub mod health_gap;
pub mod model_integrity;
pub mod resource_pressure;

use crate::config;
use crate::event::{Event, Timestamp};
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
pub fn all(config: &config::Config) -> Vec<Box<dyn Trigger>> {
    let set = &config.triggers;
    vec![
        Box::new(health_gap::HealthGap::new(set.health_gap.clone())),
        Box::new(config_drift::ConfigDrift::new(set.config_drift.clone())),
        Box::new(model_integrity::ModelIntegrity::new(set.model_integrity.clone())),
        Box::new(resource_pressure::ResourcePressure::new(config.pressure.clone())),
    ]
}

/// What each trigger is, in the same order.
#[must_use]
pub fn specs() -> Vec<&'static Spec> {
    vec![&health_gap::SPEC, &config_drift::SPEC, &model_integrity::SPEC, &resource_pressure::SPEC]
}
