//! The source of GPU facts: NVML, loaded at run time, on a thread of its own because a driver call can hang.
//!
//! Here it only takes the inventory for `status`: which GPUs there are and how warm and full they are.

use std::sync::mpsc::channel;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::api::view::{Health, SourceView};

/// A driver that takes longer to answer is said to hang; the thread is left behind.
const PATIENCE: Duration = Duration::from_secs(5);

/// The GPUs of this host.
#[must_use]
pub fn inventory() -> SourceView {
    let (tell, told) = channel();
    let spawned = std::thread::Builder::new().name("grace-nvml".into()).spawn(move || {
        // Nobody listens any more where the answer came too late.
        drop(tell.send(ask()));
    });
    let (state, detail) = match spawned.map(|_| told.recv_timeout(PATIENCE)) {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => (Health::Degraded, format!("the NVIDIA driver did not answer within {PATIENCE:?}")),
        Err(err) => (Health::Degraded, err.to_string()),
    };
    SourceView { name: "gpu".into(), state, detail }
}

fn ask() -> (Health, String) {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_)) => {
            return (Health::Off, "no NVIDIA driver on this host (libnvidia-ml.so.1)".to_owned());
        }
        Err(err) => return (Health::Off, format!("the NVIDIA driver does not answer: {err}")),
    };
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(err) => return (Health::Degraded, format!("driver {driver}: {err}")),
    };
    let gpus: Vec<String> = (0..count)
        .map(|index| {
            let Ok(gpu) = nvml.device_by_index(index) else { return format!("GPU {index}: no answer") };
            let name = gpu.name().unwrap_or_else(|_| "unknown".into());
            let memory = gpu.memory_info().map_or_else(
                |_| "memory unknown".to_owned(),
                |m| format!("{} of {} MiB used", m.used >> 20, m.total >> 20),
            );
            let heat = gpu
                .temperature(TemperatureSensor::Gpu)
                .map_or_else(|_| String::new(), |celsius| format!(", {celsius} °C"));
            format!("{index}: {name}, {memory}{heat}")
        })
        .collect();
    if gpus.is_empty() {
        return (Health::Off, format!("driver {driver}, no GPU"));
    }
    (Health::Ok, format!("driver {driver}; {}", gpus.join("; ")))
}
