//! Tables about code: endpoints, packages, repos, and the triggers that judge them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use crate::code_facts::Ecosystem;

/// An HTTP endpoint whose answers are watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What to ask: `http://` or `https://`. Redirects are not followed.
    #[schemars(example = &"http://127.0.0.1:8000/v1/models")]
    pub url: String,
    /// What it is called; unique. Default: the URL.
    #[serde(default)]
    #[schemars(example = &"models")]
    pub name: Option<String>,
    /// How often it is asked. Default `60s`.
    #[serde(default = "Endpoint::every")]
    pub every: Span,
    /// How long an answer may take. Default `5s`.
    #[serde(default = "Endpoint::timeout")]
    pub timeout: Span,
    /// Method. Default `GET`.
    #[serde(default = "Endpoint::method")]
    pub method: String,
    /// Headers to send. A token here can be read by whoever may read this file or ask the agent for its configuration.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Body to send.
    #[serde(default)]
    #[schemars(example = &"{\"ping\":true}")]
    pub body: Option<String>,
    /// An OpenAPI 3 document, JSON or YAML, that says what the answers look like. Default: that is learned.
    #[serde(default)]
    #[schemars(example = &"/srv/app/openapi.yaml")]
    pub openapi: Option<PathBuf>,
    /// Answers to learn from. Default: as `[triggers.telemetry_drift]` says.
    #[serde(default)]
    #[schemars(example = &10)]
    pub learn: Option<u32>,
    /// Answers in a row that must be wrong. Default: as `[triggers.telemetry_drift]` says.
    #[serde(default)]
    #[schemars(example = &3)]
    pub confirm: Option<u32>,
}

impl Endpoint {
    fn every() -> Span {
        Span::secs(60)
    }
    fn timeout() -> Span {
        Span::secs(5)
    }
    fn method() -> String {
        "GET".to_owned()
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.url)
    }
}

/// A set of packages or programs that is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// What it is called; unique.
    #[schemars(example = &"app")]
    pub name: String,
    /// `python`, `npm`, `cargo`, `system` or `binary`.
    #[schemars(example = &"python")]
    pub kind: Ecosystem,
    /// Where it lies. python: a venv or a `site-packages` folder; npm: a folder with `node_modules` or
    /// `package-lock.json`; cargo: a `Cargo.lock` or its folder; system: `/`, or another root; binary: programs, by
    /// absolute path or by name.
    #[schemars(example = ["/srv/app/.venv"])]
    pub paths: Vec<PathBuf>,
    /// Packages and programs that may change without a word (globs of their names). Default: none.
    #[serde(default)]
    #[schemars(example = ["pip", "types-*"])]
    pub ignore: Vec<String>,
}

/// A git repo whose code is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repo {
    /// Its folder.
    #[schemars(example = &"/srv/app")]
    pub path: PathBuf,
    /// Files that must not differ from the known-good commit unnoticed (globs below the folder). Default: all.
    #[serde(default)]
    #[schemars(example = ["backend/**", "serve.py"])]
    pub critical: Vec<String>,
    /// A file of it with a higher risk fires, of 1; it clears as far below as `[triggers.predicted_failure]` says. Default:
    /// as there.
    #[serde(default)]
    #[schemars(example = &0.8)]
    pub risk_threshold: Option<f64>,
}

/// Settings of `telemetry_drift`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryDrift {
    /// Answers to learn from before one is judged. Default 5.
    pub learn: u32,
    /// Answers in a row that must show the same difference. Default 2.
    pub confirm: u32,
    /// A field that was never there before is a drift, too. Default false: it is told and taken as known.
    pub fire_on_new_fields: bool,
}

impl Default for TelemetryDrift {
    fn default() -> Self {
        Self { learn: 5, confirm: 2, fire_on_new_fields: false }
    }
}

/// Settings of `dependency_regression`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DependencyRegression {
    /// How often folders and lock files are looked at; they are read only where their times changed. Default `30s`.
    pub poll: Span,
    /// Also watch the packages, program and libraries of each `[[process]]`. Default true.
    pub processes: bool,
}

impl Default for DependencyRegression {
    fn default() -> Self {
        Self { poll: Span::secs(30), processes: true }
    }
}

/// Settings of `code_diff`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CodeDiff {
    /// How often repos are looked at; only files whose times changed are read. Default `10s`.
    pub poll: Span,
}

impl Default for CodeDiff {
    fn default() -> Self {
        Self { poll: Span::secs(10) }
    }
}

/// Settings of `predicted_failure`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PredictedFailure {
    /// A file with a higher risk fires, of 1. Default 0.7.
    pub threshold: f64,
    /// It clears when its risk is at most this. Default 0.6.
    pub clear: f64,
    /// Commits looked at, the newest. Default 2000.
    pub commits: u32,
    /// How long reading the history of one repo may take. Default `20s`.
    pub patience: Span,
}

impl PredictedFailure {
    /// Above which risk a file fires, and at which it clears, in a repo with this threshold of its own.
    #[must_use]
    pub fn limits(&self, own: Option<f64>) -> (f64, f64) {
        match own {
            Some(threshold) => (threshold, (threshold - (self.threshold - self.clear)).max(0.0)),
            None => (self.threshold, self.clear),
        }
    }
}

impl Default for PredictedFailure {
    fn default() -> Self {
        Self { threshold: 0.7, clear: 0.6, commits: 2000, patience: Span::secs(20) }
    }
}
