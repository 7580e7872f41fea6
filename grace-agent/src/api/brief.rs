//! The first screen of a task: what is known of a fault and its surroundings, in Grace's and the operator's words.
//!
//! Nothing in it was written by anybody else: text of others stands in evidence that is labelled `untrusted`, and only there.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What somebody who works on a task should read first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Brief {
    /// The firing, such as `f-12`.
    pub firing: String,
    /// What would have been tolerated.
    pub threshold: String,
    /// Since when the condition holds.
    pub since: String,
    /// True where events were lost while the firing formed.
    pub evidence_gaps: bool,
    /// What Grace did itself, rung by rung. What came of it in words is in the evidence `tried`.
    pub tried: Vec<Tried>,
    /// Host, boot, kernel, driver and versions.
    pub host: BTreeMap<String, String>,
    /// The declared repo that it is about.
    pub repo: Option<RepoBrief>,
    /// A command that shows the fault again, where the configuration has one.
    pub reproduce: Option<Vec<String>>,
    /// What is certain.
    pub known: Vec<String>,
    /// What is not.
    pub unknown: Vec<String>,
    /// Where to look first.
    pub look_first: Vec<String>,
    /// Folders in which files may be changed. Empty: none is known, so attach a patch.
    pub allowed_paths: Vec<String>,
    /// What must not be done.
    pub forbidden: Vec<String>,
    /// Commands that Grace runs itself and that must pass, by name.
    pub checks: Vec<String>,
}

/// Something that Grace did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tried {
    /// The verb.
    pub action: String,
    /// `done`, `failed`, `held`, `planned`, `running`.
    pub state: String,
    /// How long it took, in microseconds.
    pub took_us: Option<u64>,
    /// Whether the fault stayed away after it.
    pub held: bool,
}

/// A repo of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepoBrief {
    /// Its folder.
    pub path: String,
    /// The commit that is checked out.
    pub deployed: Option<String>,
    /// The last known-good commit.
    pub good: Option<String>,
    /// Files that differ between the two, as far as it is known.
    pub files_changed: Option<u64>,
    /// Lines added since the known-good commit.
    pub lines_added: Option<u64>,
    /// Lines removed since the known-good commit.
    pub lines_removed: Option<u64>,
}
