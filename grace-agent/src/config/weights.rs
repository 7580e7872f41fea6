//! Tables about models: their weights, how these are repaired, and what their answers are compared with.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use crate::file_state::KeepCopy;

/// A model whose weights Grace keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name, unique, as applications report its accuracy.
    #[schemars(example = &"grace_reasoning")]
    pub name: String,
    /// Absolute path of its weights: `*` for several files, a `*.index.json` for all its shards. A link, as caches of hubs
    /// have, stands for the file behind it.
    #[schemars(example = &"/models/llm/*.safetensors")]
    pub path: String,
    /// Whether a copy is kept beside the digests: `auto`, `always`, `never`. Default `auto`: where it takes no room, has
    /// at most 64 MiB, or takes at most a quarter of what is free in the state folder's file system.
    #[serde(default)]
    pub copy: KeepCopy,
    /// How damage is repaired. Default `chunks`.
    #[serde(default)]
    pub repair: Repair,
    /// A file or a folder with the same content, for repairs when there is no copy: a replica, a mounted share.
    #[serde(default)]
    #[schemars(example = &"/mnt/replica/llm")]
    pub replica: Option<PathBuf>,
    /// A folder where files lie by their digest (`blobs/<sha256>`, or as Git LFS keeps them), asked last.
    #[serde(default)]
    #[schemars(example = &"/root/.cache/huggingface/hub/models--org--name")]
    pub hub: Option<PathBuf>,
    /// Each [[process]] that is restarted after a repair: what it has loaded may be the damage.
    #[serde(default)]
    #[schemars(example = ["worker"])]
    pub restart: Vec<String>,
    /// Signal that every process gets after a repair that has the file mapped: `HUP`, `USR1`, `USR2`. Default: none.
    #[serde(default)]
    #[schemars(example = &"HUP")]
    pub signal: Option<Notify>,
    /// What is reported as its accuracy is an error or a loss: a rise is worse. Default false.
    #[serde(default)]
    pub lower_is_better: bool,
    /// A program whose answers say whether the model still answers as it did.
    #[serde(default)]
    pub canary: Option<Canary>,
}

/// How damaged weights are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Only the chunks that differ, in place: who has the file mapped sees it at once.
    #[default]
    Chunks,
    /// The file as a whole, by a new one in its place.
    Replace,
}

/// A signal that asks a program to read its files again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Notify {
    /// SIGHUP.
    Hup,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
}

/// A program that asks a model something whose answers are known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Program (absolute path) and arguments. No shell. What it writes to stdout are the answers; the first ones are kept
    /// as the known-good ones.
    #[schemars(example = ["/usr/bin/curl", "-sf", "http://127.0.0.1:8000/ask?q=2%2B2"])]
    pub command: Vec<String>,
    /// How often it is run; it is also run after every repair. Default `10m`.
    #[serde(default = "Canary::every")]
    pub every: Span,
    /// How long it may take. Default `60s`.
    #[serde(default = "Canary::timeout")]
    pub timeout: Span,
    /// Numbers in the answers may differ by so much, in percent; everything else must be the same. Default 0.
    #[serde(default)]
    pub tolerance_percent: f64,
}

impl Canary {
    fn every() -> Span {
        Span::secs(600)
    }
    fn timeout() -> Span {
        Span::secs(60)
    }
}

/// Weights of all models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// How much of all owned weights is read and compared in the background, in MiB a second; 0: nothing. Default 16.
    pub scrub_mib_s: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { scrub_mib_s: 16 }
    }
}

impl Model {
    /// What is wrong with it: by key, in words.
    pub(super) fn wrongs(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for (key, path) in [("replica", &self.replica), ("hub", &self.hub)] {
            if let Some(path) = path.as_deref().filter(|path| !path.is_absolute()) {
                out.push((key, format!("`{}` is not an absolute path", path.display())));
            }
        }
        let Some(canary) = &self.canary else { return out };
        match canary.command.first() {
            None => out.push(("canary", "`command` names no program".to_owned())),
            Some(program) if !Path::new(program).is_absolute() => {
                out.push(("canary", format!("`{}` is not an absolute path", program.escape_debug())));
            }
            Some(_) => {}
        }
        if canary.every < Span::secs(1) {
            out.push(("canary", "`every` must be at least 1s".to_owned()));
        }
        if canary.timeout.get().is_zero() || canary.timeout > Span::secs(3600) {
            out.push(("canary", "`timeout` must be above zero and at most 1h".to_owned()));
        }
        if !(canary.tolerance_percent.is_finite() && canary.tolerance_percent >= 0.0) {
            out.push(("canary", "`tolerance_percent` must be at least 0".to_owned()));
        }
        out
    }
}
