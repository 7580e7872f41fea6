//! The vocabulary of GPUs: what is read of one, and the faults that its driver reports. Plain data.
//!
//! A reading that the driver or the GPU does not offer is `None`: not seen is neither good nor bad.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One look at a GPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GpuSample {
    /// NVML's index; the same while the driver stays loaded.
    pub index: u32,
    /// Its UUID, which it keeps for life.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// Its place on the PCI bus, as the kernel writes it: `0000:3b:00`.
    pub pci: String,
    /// Why it does not answer any more: lost, or in need of a reset. Nothing below is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Frame buffer in all, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total: Option<u64>,
    /// Of it, what is not free (with what the driver keeps for itself), in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<u64>,
    /// Share of the last interval in which a kernel ran, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<u32>,
    /// Share of the last interval in which its memory was read or written, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_utilization: Option<u32>,
    /// Power drawn, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f64>,
    /// Power that it may draw, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_w: Option<f64>,
    /// Temperature of the die, in °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// From this temperature on the hardware slows it down, in °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown_c: Option<u32>,
    /// From this temperature on it is switched off, in °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_c: Option<u32>,
    /// Why its clocks are not as high as they could be (`nvmlClocksEventReason…`), where that is no idle or chosen
    /// state: `sw_power_cap`, `hw_slowdown`, `sw_thermal_slowdown`, `hw_thermal_slowdown`, `hw_power_brake_slowdown`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttled: Vec<String>,
    /// Clock of its streaming multiprocessors, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// Clock of its memory, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// PCIe generation now, and lanes now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_generation: Option<u32>,
    /// Highest that card and slot can do together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_generation_max: Option<u32>,
    /// Lanes now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_width: Option<u32>,
    /// Lanes that card and slot have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_width_max: Option<u32>,
    /// Packets sent again since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<u32>,
    /// Whether its memory corrects errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc: Option<bool>,
    /// Corrected errors since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_corrected: Option<u64>,
    /// Errors that could not be corrected, since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// Corrected errors in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_corrected_life: Option<u64>,
    /// Errors in its life that could not be corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected_life: Option<u64>,
    /// Rows of memory that were replaced after correctable errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remapped_correctable: Option<u32>,
    /// Rows of memory that were replaced after uncorrectable errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remapped_uncorrectable: Option<u32>,
    /// A row is to be replaced at the next reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_pending: Option<bool>,
    /// A row could not be replaced: there is none left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_failed: Option<bool>,
    /// Pages taken out of use (before Ampere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_pages: Option<u32>,
    /// A page is to be taken out of use at the next reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retire_pending: Option<bool>,
    /// NVLinks that are up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks_up: Option<u32>,
    /// NVLinks that are there and down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks_down: Option<u32>,
    /// Replays, recoveries and checksum errors on its NVLinks since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink_errors: Option<u64>,
    /// State of the fabric (NVSwitch): `not_started`, `in_progress`, `completed`, `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<String>,
    /// What the driver says that it needs: `none`, `gpu_reset`, `node_reboot`, `drain_p2p`, `drain_and_reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// Whether it is cut into instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<bool>,
    /// Its instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig_devices: Vec<MigDevice>,
    /// Whether the driver keeps it initialised while nobody uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<bool>,
    /// Who uses it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<GpuProcess>,
}

impl GpuSample {
    /// Memory in use, in percent.
    #[must_use]
    pub fn memory_percent(&self) -> Option<f64> {
        let (used, total) = (self.memory_used?, self.memory_total.filter(|total| *total > 0)?);
        Some(used as f64 / total as f64 * 100.0)
    }
}

/// An instance of a GPU that is cut into several.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MigDevice {
    /// Its UUID.
    pub uuid: String,
    /// GPU instance.
    pub gpu_instance: u32,
    /// Compute instance.
    pub compute_instance: u32,
}

/// A process that uses a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GpuProcess {
    /// Process id, as the agent sees it.
    pub pid: u32,
    /// Kernel's 15-byte name of it. Chosen by the process: hostile text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comm: String,
    /// The declared process that it is, or descends from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// GPU memory that it holds, in bytes; none: the driver does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Share of the streaming multiprocessors' time, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm: Option<u32>,
    /// The GPU instance that it runs in, where the GPU is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
}

/// How a fault was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Teller {
    /// By NVML's event set.
    Nvml,
    /// By a line of the driver in the kernel's messages.
    Kmsg,
}

/// A fault that the driver reported: an Xid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuFault {
    /// The GPU's place on the PCI bus: `0000:3b:00`.
    pub pci: String,
    /// The Xid's number.
    pub xid: u32,
    /// The process that the driver names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The declared process that this is, or descends from, where it was still there to be looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The GPU instance, where the GPU is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// Who told.
    pub via: Teller,
    /// The driver's words, capped. Hostile text: they hold names of processes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}
