//! The table about the queue of tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;

/// How tasks are handed out and looked after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// Whoever claimed a task and says nothing for this long has given it up. Default `30m`.
    pub lease: Span,
    /// What was submitted counts as repaired when its trigger stayed clear for this long. Default `10m`.
    pub soak: Span,
    /// What was submitted is open again when its trigger still holds after this long. Default `30m`.
    pub patience: Span,
    /// New tasks in a day at most; the count of those that are there goes on. Default 200.
    pub per_day: u32,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { lease: Span::secs(1800), soak: Span::secs(600), patience: Span::secs(1800), per_day: 200 }
    }
}
