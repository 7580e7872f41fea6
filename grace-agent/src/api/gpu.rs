//! `GET /v1/gpu` and `GET /v1/pressure`: the GPUs, and how full the host is, with what is wrong and what to do.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::server::{Answer, Shared};
use super::view::Health;
use crate::action::Shed;
use crate::firing::FiringId;
use crate::gpu_facts::GpuSample;

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/gpu", get(gpus)).route("/v1/pressure", get(pressure))
}

async fn gpus(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.gpus()).await
}

async fn pressure(State(shared): State<Shared>) -> Answer {
    shared.ask(|control| control.pressure()).await
}

/// `grace gpu --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpusView {
    /// How well GPUs can be seen.
    pub state: Health,
    /// How, or why not.
    pub detail: String,
    /// The driver's version; empty: not known.
    pub driver: String,
    /// Calls that this driver does not have: their readings are missing.
    pub missing: Vec<String>,
    /// How often each GPU is looked at now, in milliseconds.
    pub period_ms: u64,
    /// How long the last look at all of them took, in microseconds.
    pub look_us: u64,
    /// Processor time of it, in microseconds.
    pub look_cpu_us: u64,
    /// Of all of them: the driver hangs.
    pub problems: Vec<ProblemView>,
    /// The GPUs, by index.
    pub gpus: Vec<GpuView>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuView {
    /// When it was last seen.
    pub seen: String,
    /// In a word: `ok`, `trouble`, `lost`.
    pub health: String,
    /// What is wrong with it, and what to do.
    pub problems: Vec<ProblemView>,
    /// Its readings as numbers, by the names that NVIDIA's DCGM gives them (`DCGM_FI_DEV_…`), in DCGM's units.
    pub metrics: BTreeMap<String, f64>,
    /// Its readings.
    #[serde(flatten)]
    pub sample: GpuSample,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemView {
    /// The firing.
    pub firing: FiringId,
    /// What. Names in it are untrusted text.
    pub summary: String,
    /// What to do.
    pub advice: String,
}

impl GpuView {
    /// `sample`, seen `at`, with what is wrong.
    #[must_use]
    pub fn new(sample: GpuSample, seen: String, problems: Vec<ProblemView>) -> Self {
        let health = match (&sample.lost, problems.is_empty()) {
            (Some(_), _) => "lost",
            (None, true) => "ok",
            (None, false) => "trouble",
        };
        Self { seen, health: health.to_owned(), problems, metrics: metrics(&sample), sample }
    }
}

/// By DCGM's names and units (MiB, watts, °C, MHz, percent).
fn metrics(gpu: &GpuSample) -> BTreeMap<String, f64> {
    let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let whole = |value: Option<u32>| value.map(f64::from);
    let large = |value: Option<u64>| value.map(|value| value as f64);
    let yes = |value: Option<bool>| value.map(|value| f64::from(u8::from(value)));
    let free = gpu.memory_total.zip(gpu.memory_used).map(|(total, used)| total.saturating_sub(used));
    [
        ("DCGM_FI_DEV_FB_TOTAL", mib(gpu.memory_total)),
        ("DCGM_FI_DEV_FB_FREE", mib(free)),
        ("DCGM_FI_DEV_GPU_UTIL", whole(gpu.utilization)),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", whole(gpu.memory_utilization)),
        ("DCGM_FI_DEV_POWER_USAGE", gpu.power_w),
        ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", gpu.power_limit_w),
        ("DCGM_FI_DEV_GPU_TEMP", whole(gpu.temperature_c)),
        ("DCGM_FI_DEV_SLOWDOWN_TEMP", whole(gpu.slowdown_c)),
        ("DCGM_FI_DEV_SHUTDOWN_TEMP", whole(gpu.shutdown_c)),
        ("DCGM_FI_DEV_SM_CLOCK", whole(gpu.sm_clock_mhz)),
        ("DCGM_FI_DEV_MEM_CLOCK", whole(gpu.memory_clock_mhz)),
        ("DCGM_FI_DEV_PCIE_LINK_GEN", whole(gpu.pcie_generation)),
        ("DCGM_FI_DEV_PCIE_LINK_WIDTH", whole(gpu.pcie_width)),
        ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", whole(gpu.pcie_replays)),
        ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", large(gpu.ecc_corrected)),
        ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", large(gpu.ecc_uncorrected)),
        ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", large(gpu.ecc_corrected_life)),
        ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", large(gpu.ecc_uncorrected_life)),
        ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", whole(gpu.remapped_correctable)),
        ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", whole(gpu.remapped_uncorrectable)),
        ("DCGM_FI_DEV_ROW_REMAP_PENDING", yes(gpu.remap_pending)),
        ("DCGM_FI_DEV_ROW_REMAP_FAILURE", yes(gpu.remap_failed)),
        ("DCGM_FI_DEV_PERSISTENCE_MODE", yes(gpu.persistence)),
        ("DCGM_FI_DEV_MIG_MODE", yes(gpu.mig)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

/// `grace pressure --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PressureView {
    /// When it was last looked.
    pub seen: Option<String>,
    /// Each resource, as it is.
    pub readings: Vec<ReadingView>,
    /// How load is shed, gentlest first.
    pub steps: Vec<Shed>,
    /// The declared processes, in the order in which load would be taken from them.
    pub processes: Vec<LoadView>,
}

/// A resource of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReadingView {
    /// `cpu`, `memory`, `disk /var`, … Names of mounts are untrusted text.
    pub resource: String,
    /// How full it is, in percent.
    pub percent: f64,
    /// Above that it is too full; none: it is only shown.
    pub limit: Option<f64>,
    /// The firing, where there is one.
    pub firing: Option<FiringId>,
}

/// What a declared process takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadView {
    /// Its name.
    pub process: String,
    /// 0 is shed first, 100 never.
    pub importance: u8,
    /// Memory of its cgroup, or of its processes, in bytes.
    pub memory_bytes: Option<u64>,
    /// Share of the last 10 s in which something of it waited for memory, in percent (PSI some).
    pub memory_wait_percent: Option<f64>,
    /// The same for processors.
    pub cpu_wait_percent: Option<f64>,
    /// The same for disks.
    pub io_wait_percent: Option<f64>,
    /// Whether its cgroup asks to be shed before (`user.oomd_prefer`) or after (`user.oomd_avoid`) its equals.
    pub preference: Option<String>,
    /// What was taken from it.
    pub shed: Option<Shed>,
}
