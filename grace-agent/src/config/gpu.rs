//! `[gpu]`: how GPUs are watched, when one is in trouble, and what is done then.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::load::{Invalid, Step};
use crate::action::Shed;

/// GPUs: how they are watched, when one is in trouble, and what is done then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// Ask the NVIDIA driver, where there is one. Takes effect when the agent starts. Default true.
    pub enabled: bool,
    /// NVIDIA's management library. Takes effect when the agent starts. Default: the one that the loader finds.
    #[schemars(example = &"/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1")]
    pub library: Option<PathBuf>,
    /// How often each GPU is looked at; less often while none is used, and where the driver takes long to answer.
    /// Takes effect when the agent starts. Default `1s`.
    pub every: Span,
    /// A driver that has not answered for this long hangs. Takes effect when the agent starts. Default `10s`.
    pub patience: Span,
    /// GPU memory in use, in percent, from which on a fill that goes on is told. A server that fills its GPU once and
    /// stays there is none. Default 90.
    pub memory_soft: f64,
    /// GPU memory in use, in percent, from which on a fill that goes on sheds load. Default 97.
    pub memory_hard: f64,
    /// It is only told where the memory would be full within this time. Default `5m`.
    pub time_to_full: Span,
    /// How the GPU processes of lower importance make room for a more important one on the same GPU: `notify` at the soft
    /// mark, `terminate` at the hard one (nothing gentler frees GPU memory). Default `["notify"]`.
    pub steps: Vec<Shed>,
    /// What was ended is started again this long after there is room again. Default `5m`.
    pub give_back_after: Span,
    /// So many °C below the temperature at which the hardware slows down. Default 3.
    pub temperature_margin: u32,
    /// Heat, throttling and a narrow PCIe link must last this long, and be gone as long to clear. Default `1m`.
    pub sustained: Span,
    /// Restart the declared process that a fault names where that is what the fault calls for. Default true.
    pub restart: bool,
    /// Restarts of a process because of the same fault on the same GPU within an hour; then help is asked for.
    /// Default 3.
    pub restart_burst: u32,
    /// Xids that mean nothing here.
    #[schemars(example = [43, 45])]
    pub ignore: Vec<u32>,
    /// Believe lines about Xids that a program (not the driver) wrote into /dev/kmsg: to try the whole way out. Takes
    /// effect when the agent starts. Default false.
    pub injected: bool,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            enabled: true,
            library: None,
            every: Span::secs(1),
            patience: Span::secs(10),
            memory_soft: 90.0,
            memory_hard: 97.0,
            time_to_full: Span::secs(300),
            steps: vec![Shed::Notify],
            give_back_after: Span::secs(300),
            temperature_margin: 3,
            sustained: Span::secs(60),
            restart: true,
            restart_burst: 3,
            ignore: Vec::new(),
            injected: false,
        }
    }
}

impl Gpu {
    /// What is wrong with it.
    pub(super) fn validate(&self) -> Vec<Invalid> {
        let mut out = Vec::new();
        let mut push = |key: &'static str, message: &str| {
            let at = vec![Step::Key("gpu"), Step::Key(key)];
            out.push(Invalid { at, message: format!("{key}: {message}") });
        };
        for (key, span) in [
            ("every", self.every),
            ("patience", self.patience),
            ("time_to_full", self.time_to_full),
            ("sustained", self.sustained),
        ] {
            if span.get().is_zero() {
                push(key, "must be longer than zero");
            }
        }
        if !(self.memory_soft > 0.0 && self.memory_soft <= 100.0) {
            push("memory_soft", "must be a percentage above 0, and at most 100");
        }
        if !(self.memory_hard >= self.memory_soft && self.memory_hard <= 100.0) {
            push("memory_hard", "must be at least `memory_soft`, and at most 100 percent");
        }
        if self.steps.iter().any(|step| matches!(step, Shed::Throttle | Shed::Freeze)) {
            push(
                "steps",
                "may hold `notify` and `terminate`: what is held back or frozen keeps its GPU memory",
            );
        }
        if self.library.as_ref().is_some_and(|path| !path.is_absolute()) {
            push("library", "must be an absolute path");
        }
        out
    }
}
