//! What `model_integrity` keeps over a restart of the agent: the values of accuracy that make each model's baseline. A model
//! that answered badly before is judged by its next value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HISTORY, Model};
use crate::triggers::MAX_NAME;

/// Version of what is kept; another one is not read.
const VERSION: u32 = 1;
/// Models that are kept: those that are declared, then others. Names come from applications.
const MAX_KEPT: usize = 1000;

/// The values.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    version: u32,
    /// By model, oldest first.
    accuracy: BTreeMap<String, Vec<f64>>,
}

impl Kept {
    /// What shall be kept of `models`; none where nothing was learned.
    pub(super) fn of(models: &BTreeMap<String, Model>) -> Option<serde_json::Value> {
        let known = |(_, model): &(&String, &Model)| !model.healthy.is_empty();
        let (declared, others): (Vec<_>, Vec<_>) =
            models.iter().filter(known).partition(|(_, model)| !model.files.is_empty());
        let accuracy: BTreeMap<String, Vec<f64>> = declared
            .into_iter()
            .chain(others)
            .take(MAX_KEPT)
            .map(|(name, model)| (name.clone(), model.healthy.iter().copied().collect()))
            .collect();
        if accuracy.is_empty() {
            return None;
        }
        serde_json::to_value(Self { version: VERSION, accuracy }).ok()
    }

    /// The values of each model; none of another version, or of what is damaged.
    pub(super) fn read(state: &serde_json::Value) -> Vec<(String, Vec<f64>)> {
        let Ok(kept) = Self::deserialize(state) else { return Vec::new() };
        let sound = |(name, values): &(String, Vec<f64>)| {
            name.len() <= MAX_NAME
                && values.len() <= HISTORY
                && values.iter().all(|value| value.is_finite() && *value >= 0.0)
        };
        let kept = if kept.version == VERSION { kept.accuracy } else { BTreeMap::new() };
        kept.into_iter().filter(sound).take(MAX_KEPT).collect()
    }
}
