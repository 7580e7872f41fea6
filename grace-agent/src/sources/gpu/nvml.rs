//! NVIDIA's management library as it is loaded: its calls, with what each needs and what it says when it does not answer.
//!
//! nvml-wrapper loads the library; the calls go to the library itself, because several readings (instances of events,
//! remapped rows, the fabric) are not wrapped, and a symbol that an older driver lacks must cost that reading alone.
#![expect(unsafe_code, reason = "calls into a C library: each block says why it holds")]

use std::collections::BTreeSet;
use std::ffi::{c_char, c_uint, c_ulonglong};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t, nvmlGpuFabricInfo_t, nvmlMemory_t,
    nvmlPciInfo_t, nvmlProcessInfo_t, nvmlProcessUtilizationSample_t, nvmlUtilization_t,
};

use super::xid::pci_place;
use crate::gpu_facts::{GpuProcess, GpuSample, MigDevice};

/// What NVML returned instead of an answer (nvml.h, `nvmlReturn_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(u32);

impl Code {
    const SUCCESS: Self = Self(0);
    const INVALID_ARGUMENT: Self = Self(2);
    const INSUFFICIENT_SIZE: Self = Self(7);
    const TIMEOUT: Self = Self(10);
    const FUNCTION_NOT_FOUND: Self = Self(13);
    const GPU_IS_LOST: Self = Self(15);
    const RESET_REQUIRED: Self = Self(16);
    const MALFORMED: Self = Self(u32::MAX);

    /// The GPU will not answer to any other call either.
    fn is_fatal(self) -> bool {
        matches!(self, Self::GPU_IS_LOST | Self::RESET_REQUIRED)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            1 => "NVML is not initialised",
            2 => "invalid argument",
            3 => "not supported",
            4 => "no permission",
            6 => "not found",
            9 => "the driver is not loaded",
            10 => "timeout",
            11 => "interrupts do not arrive",
            13 => "this driver does not know the call",
            14 => "the InfoROM is corrupted",
            15 => "it has fallen off the bus or is inaccessible",
            16 => "it needs a reset",
            18 => "library and driver have different versions",
            999 => "an unknown error of the driver",
            code => return write!(f, "NVML error {code}"),
        };
        f.write_str(words)
    }
}

/// Why there is no driver to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The library is not there.
    #[error("no NVIDIA driver on this host ({0})")]
    NoLibrary(String),
    /// It is there, and does not work.
    #[error("the NVIDIA driver does not answer: {0}")]
    Refused(NvmlError),
}

/// A GPU, as calls name it. Only used on the thread that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gpu(nvmlDevice_t);

/// Something that NVML told without being asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// Of which GPU.
    pub(super) gpu: Gpu,
    /// Its kind: one bit of `nvmlEventType…`.
    pub(super) kind: u64,
    /// Of an Xid its number.
    pub(super) data: u64,
    /// The GPU instance, where the GPU is cut.
    pub(super) gpu_instance: Option<u32>,
}

/// Kinds of events that are asked for where a GPU has them (nvml.h): Xid, double-bit errors, changes of MIG, storms of
/// single-bit errors, retirements, poison, unavailable, recovery action.
const WANTED: u64 = XID | 0x2 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000;
/// `nvmlEventTypeXidCriticalError`.
pub(super) const XID: u64 = 0x8;
/// Links that a GPU has at most (`NVML_NVLINK_MAX_LINKS`).
const NVLINKS: c_uint = 18;
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const RECOVERY_ACTION: c_uint = 230;
/// Characters of a text that NVML gives at most.
const TEXT: usize = 96;
/// Processes that are listed of a GPU at most; more are no list, but an error.
const PROCESSES_MAX: usize = 4096;
/// "Not in an instance", and "not told" (nvml.h).
const NO_INSTANCE: c_uint = c_uint::MAX;
const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;

/// Why clocks are held back where that means something: bits of `nvmlClocksEventReason…`.
const THROTTLES: [(u64, &str); 5] = [
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
];

/// The loaded library.
pub(super) struct Driver {
    nvml: Nvml,
    /// Calls that it does not have.
    missing: Mutex<BTreeSet<&'static str>>,
}

/// Calls a function of the library; what its pointers are for is said where it is used.
macro_rules! call {
    ($driver:expr, $symbol:ident($($argument:expr),*)) => {
        match &$driver.nvml.lib().$symbol {
            // SAFETY: the symbol has the signature that NVIDIA's header gives it, handles come from the same library,
            // and every pointer is to a live local of the right type (with room for what its length says).
            Ok(function) => done(unsafe { function($($argument),*) }),
            Err(_) => Err($driver.lacks(stringify!($symbol))),
        }
    };
}

/// Calls a function that writes one value.
macro_rules! read {
    ($driver:expr, $symbol:ident($($argument:expr),*)) => {{
        let mut out = Default::default();
        call!($driver, $symbol($($argument,)* &raw mut out)).map(|()| out)
    }};
}

fn done(code: u32) -> Result<(), Code> {
    if Code(code) == Code::SUCCESS { Ok(()) } else { Err(Code(code)) }
}

impl Driver {
    /// Loads the library at `path`, or the one that the loader finds.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, OpenError> {
        let mut builder = Nvml::builder();
        if let Some(path) = path {
            builder.lib_path(path.as_os_str());
        }
        match builder.init() {
            Ok(nvml) => Ok(Self { nvml, missing: Mutex::default() }),
            Err(NvmlError::LibloadingError(_)) => {
                let name =
                    path.map_or_else(|| "libnvidia-ml.so.1".to_owned(), |path| path.display().to_string());
                Err(OpenError::NoLibrary(name))
            }
            Err(err) => Err(OpenError::Refused(err)),
        }
    }

    /// Calls that the library turned out not to have.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().copied().collect()
    }

    fn lacks(&self, symbol: &'static str) -> Code {
        self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(symbol);
        Code::FUNCTION_NOT_FOUND
    }

    /// The driver's version.
    pub(super) fn version(&self) -> String {
        self.nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into())
    }

    /// How many GPUs there are.
    pub(super) fn count(&self) -> Result<u32, Code> {
        read!(self, nvmlDeviceGetCount_v2())
    }

    /// The GPU `index`.
    pub(super) fn gpu(&self, index: u32) -> Result<Gpu, Code> {
        let mut device: nvmlDevice_t = std::ptr::null_mut();
        call!(self, nvmlDeviceGetHandleByIndex_v2(index, &raw mut device))?;
        Ok(Gpu(device))
    }

    /// What a GPU is called, and where it is.
    pub(super) fn identity(&self, index: u32, gpu: Gpu) -> Result<GpuSample, Code> {
        let uuid = text(|out, length| call!(self, nvmlDeviceGetUUID(gpu.0, out, length)))?;
        let name = text(|out, length| call!(self, nvmlDeviceGetName(gpu.0, out, length))).unwrap_or_default();
        let mut info = nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: 0,
            bus: 0,
            device: 0,
            pciDeviceId: 0,
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        call!(self, nvmlDeviceGetPciInfo_v3(gpu.0, &raw mut info))?;
        let pci = pci_place(&format!("{:x}:{:x}:{:x}", info.domain, info.bus, info.device))
            .ok_or(Code::MALFORMED)?;
        Ok(GpuSample { index, uuid, name, pci, ..GpuSample::default() })
    }

    /// Reads what changes from second to second into `into`. An error: the GPU does not answer at all.
    pub(super) fn quick(&self, gpu: Gpu, into: &mut GpuSample) -> Result<(), Code> {
        let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
        let read = known(call!(self, nvmlDeviceGetMemoryInfo(gpu.0, &raw mut memory)))?;
        // What is not free is used, whoever holds it.
        let read = read.map(|()| (memory.total, memory.total.saturating_sub(memory.free)));
        (into.memory_total, into.memory_used) = read.unzip();
        let mut use_of = nvmlUtilization_t { gpu: 0, memory: 0 };
        let read = known(call!(self, nvmlDeviceGetUtilizationRates(gpu.0, &raw mut use_of)))?;
        (into.utilization, into.memory_utilization) = read.map(|()| (use_of.gpu, use_of.memory)).unzip();
        let milliwatts: Option<c_uint> = known(read!(self, nvmlDeviceGetPowerUsage(gpu.0)))?;
        into.power_w = milliwatts.map(|mw| f64::from(mw) / 1000.0);
        // NVML_TEMPERATURE_GPU
        into.temperature_c = known(read!(self, nvmlDeviceGetTemperature(gpu.0, 0)))?;
        let mut reasons: Result<c_ulonglong, Code> =
            read!(self, nvmlDeviceGetCurrentClocksEventReasons(gpu.0));
        if reasons == Err(Code::FUNCTION_NOT_FOUND) {
            // As it was called before driver 535.
            reasons = read!(self, nvmlDeviceGetCurrentClocksThrottleReasons(gpu.0));
        }
        let reasons = known(reasons)?.unwrap_or(0);
        into.throttled = THROTTLES
            .iter()
            .filter(|(bit, _)| reasons & bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect();
        // NVML_CLOCK_SM, NVML_CLOCK_MEM
        into.sm_clock_mhz = known(read!(self, nvmlDeviceGetClockInfo(gpu.0, 1)))?;
        into.memory_clock_mhz = known(read!(self, nvmlDeviceGetClockInfo(gpu.0, 2)))?;
        into.processes = self.processes(gpu)?;
        Ok(())
    }

    /// Reads what changes rarely.
    pub(super) fn rest(&self, gpu: Gpu, into: &mut GpuSample) -> Result<(), Code> {
        let gpu = gpu.0;
        let milliwatts: Option<c_uint> = known(read!(self, nvmlDeviceGetEnforcedPowerLimit(gpu)))?;
        into.power_limit_w = milliwatts.map(|mw| f64::from(mw) / 1000.0);
        // NVML_TEMPERATURE_THRESHOLD_SHUTDOWN, _SLOWDOWN
        into.shutdown_c = known(read!(self, nvmlDeviceGetTemperatureThreshold(gpu, 0)))?;
        into.slowdown_c = known(read!(self, nvmlDeviceGetTemperatureThreshold(gpu, 1)))?;
        into.pcie_generation = known(read!(self, nvmlDeviceGetCurrPcieLinkGeneration(gpu)))?;
        into.pcie_generation_max = known(read!(self, nvmlDeviceGetMaxPcieLinkGeneration(gpu)))?;
        into.pcie_width = known(read!(self, nvmlDeviceGetCurrPcieLinkWidth(gpu)))?;
        into.pcie_width_max = known(read!(self, nvmlDeviceGetMaxPcieLinkWidth(gpu)))?;
        into.pcie_replays = known(read!(self, nvmlDeviceGetPcieReplayCounter(gpu)))?;
        let (mut current, mut pending) = (0, 0);
        let mode = known(call!(self, nvmlDeviceGetEccMode(gpu, &raw mut current, &raw mut pending)))?;
        into.ecc = mode.map(|()| current == 1);
        // Corrected 0, uncorrected 1; volatile 0, aggregate 1.
        into.ecc_corrected = known(read!(self, nvmlDeviceGetTotalEccErrors(gpu, 0, 0)))?;
        into.ecc_uncorrected = known(read!(self, nvmlDeviceGetTotalEccErrors(gpu, 1, 0)))?;
        into.ecc_corrected_life = known(read!(self, nvmlDeviceGetTotalEccErrors(gpu, 0, 1)))?;
        into.ecc_uncorrected_life = known(read!(self, nvmlDeviceGetTotalEccErrors(gpu, 1, 1)))?;
        let mut rows: [c_uint; 4] = [0; 4];
        let [corrected, uncorrected, waits, failed] = &mut rows;
        let read = call!(self, nvmlDeviceGetRemappedRows(gpu, corrected, uncorrected, waits, failed));
        let rows = known(read)?.map(|()| rows);
        into.remapped_correctable = rows.map(|rows| rows[0]);
        into.remapped_uncorrectable = rows.map(|rows| rows[1]);
        into.remap_pending = rows.map(|rows| rows[2] != 0);
        into.remap_failed = rows.map(|rows| rows[3] != 0);
        let retired = [0, 1].map(|cause| self.retired(gpu, cause));
        into.retired_pages = match retired {
            [Ok(single), Ok(double)] => Some(single.saturating_add(double)),
            _ => None,
        };
        let pending: Option<c_uint> = known(read!(self, nvmlDeviceGetRetiredPagesPendingStatus(gpu)))?;
        into.retire_pending = pending.map(|state| state == 1);
        self.links(gpu, into)?;
        let mut fabric = nvmlGpuFabricInfo_t { clusterUuid: [0; 16], status: 0, cliqueId: 0, state: 0 };
        let read = known(call!(self, nvmlDeviceGetGpuFabricInfo(gpu, &raw mut fabric)))?;
        into.fabric = read.and_then(|()| fabric_state(fabric.state, fabric.status));
        into.recovery = self.field(gpu, RECOVERY_ACTION)?.map(recovery_action);
        let persistence: Option<c_uint> = known(read!(self, nvmlDeviceGetPersistenceMode(gpu)))?;
        into.persistence = persistence.map(|state| state == 1);
        let (mut current, mut pending) = (0, 0);
        let mig = known(call!(self, nvmlDeviceGetMigMode(gpu, &raw mut current, &raw mut pending)))?;
        into.mig = mig.map(|()| current == 1);
        into.mig_devices = if into.mig == Some(true) { self.instances(gpu) } else { Vec::new() };
        Ok(())
    }

    /// Pages that were taken out of use for a cause.
    fn retired(&self, gpu: nvmlDevice_t, cause: c_uint) -> Result<c_uint, Code> {
        let mut count: c_uint = 0;
        // Without room for addresses only their number is told.
        match call!(self, nvmlDeviceGetRetiredPages(gpu, cause, &raw mut count, std::ptr::null_mut())) {
            Ok(()) | Err(Code::INSUFFICIENT_SIZE) => Ok(count),
            Err(code) => Err(code),
        }
    }

    fn links(&self, gpu: nvmlDevice_t, into: &mut GpuSample) -> Result<(), Code> {
        let (mut up, mut down, mut errors, mut any) = (0, 0, 0_u64, false);
        for link in 0..NVLINKS {
            let state: Result<c_uint, Code> = read!(self, nvmlDeviceGetNvLinkState(gpu, link));
            match state {
                Ok(1) => up += 1,
                Ok(_) => down += 1,
                Err(code) if code.is_fatal() => return Err(code),
                // Beyond its last one, or it has none.
                Err(_) => break,
            }
            any = true;
            for counter in 0..4 {
                let read: Result<c_ulonglong, Code> =
                    read!(self, nvmlDeviceGetNvLinkErrorCounter(gpu, link, counter));
                errors = errors.saturating_add(known(read)?.unwrap_or(0));
            }
        }
        into.nvlinks_up = any.then_some(up);
        into.nvlinks_down = any.then_some(down);
        into.nvlink_errors = any.then_some(errors);
        Ok(())
    }

    /// The field `id`, where it is a number.
    fn field(&self, gpu: nvmlDevice_t, id: c_uint) -> Result<Option<c_uint>, Code> {
        // SAFETY: a plain C struct, for which zeros are what nvml.h asks for beside the id.
        let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        value.fieldId = id;
        let asked = known(call!(self, nvmlDeviceGetFieldValues(gpu, 1, &raw mut value)))?;
        if asked.is_none() || done(value.nvmlReturn).is_err() {
            return Ok(None);
        }
        // SAFETY: the whole union was zero before, so each of its numbers is one; the type says which is meant:
        // NVML_VALUE_TYPE_UNSIGNED_INT is 1, UNSIGNED_LONG 2, UNSIGNED_LONG_LONG 3.
        let number = unsafe {
            match value.valueType {
                1 => Some(value.value.uiVal),
                2 | 3 => c_uint::try_from(value.value.ullVal).ok(),
                _ => None,
            }
        };
        Ok(number)
    }

    fn instances(&self, gpu: nvmlDevice_t) -> Vec<MigDevice> {
        let most: c_uint = read!(self, nvmlDeviceGetMaxMigDeviceCount(gpu)).unwrap_or(0);
        let of = |index| {
            let mut device: nvmlDevice_t = std::ptr::null_mut();
            call!(self, nvmlDeviceGetMigDeviceHandleByIndex(gpu, index, &raw mut device)).ok()?;
            Some(MigDevice {
                uuid: text(|out, length| call!(self, nvmlDeviceGetUUID(device, out, length))).ok()?,
                gpu_instance: read!(self, nvmlDeviceGetGpuInstanceId(device)).ok()?,
                compute_instance: read!(self, nvmlDeviceGetComputeInstanceId(device)).ok()?,
            })
        };
        (0..most).filter_map(of).collect()
    }

    /// Who uses a GPU, those that compute through MPS, too, once each.
    fn processes(&self, gpu: Gpu) -> Result<Vec<GpuProcess>, Code> {
        let compute =
            |count: &mut c_uint, out| call!(self, nvmlDeviceGetComputeRunningProcesses_v3(gpu.0, count, out));
        let mps = |count: &mut c_uint, out| {
            call!(self, nvmlDeviceGetMPSComputeRunningProcesses_v3(gpu.0, count, out))
        };
        let mut running = known(list(NO_PROCESS, compute))?.unwrap_or_default();
        running.extend(known(list(NO_PROCESS, mps))?.unwrap_or_default());
        if running.is_empty() {
            return Ok(Vec::new());
        }
        let none = nvmlProcessUtilizationSample_t {
            pid: 0,
            timeStamp: 0,
            smUtil: 0,
            memUtil: 0,
            encUtil: 0,
            decUtil: 0,
        };
        let sampled = list(none, |count: &mut c_uint, out| {
            call!(self, nvmlDeviceGetProcessUtilization(gpu.0, out, count, 0))
        });
        let mut sampled = known(sampled)?.unwrap_or_default();
        // The last sample of each is the one that counts.
        sampled.sort_by_key(|sample| sample.timeStamp);
        let mut out: Vec<GpuProcess> = Vec::new();
        for info in running {
            if out.iter().any(|known| known.pid == info.pid) {
                continue;
            }
            out.push(GpuProcess {
                pid: info.pid,
                comm: String::new(),
                process: None,
                memory: Some(info.usedGpuMemory).filter(|used| *used != NOT_AVAILABLE),
                // A sample in percent; what is more is noise of the driver.
                sm: sampled.iter().rev().find(|s| s.pid == info.pid && s.smUtil <= 100).map(|s| s.smUtil),
                gpu_instance: Some(info.gpuInstanceId).filter(|id| *id != NO_INSTANCE),
            });
        }
        Ok(out)
    }

    /// Asks to be told of events of `gpus`. None: this driver, or none of the GPUs, tells any.
    pub(super) fn listen(&self, gpus: &[Gpu]) -> Option<Listener> {
        let mut set: nvmlEventSet_t = std::ptr::null_mut();
        call!(self, nvmlEventSetCreate(&raw mut set)).ok()?;
        let mut any = false;
        for gpu in gpus {
            let kinds: c_ulonglong = read!(self, nvmlDeviceGetSupportedEventTypes(gpu.0)).unwrap_or(0);
            any |= kinds & WANTED != 0
                && call!(self, nvmlDeviceRegisterEvents(gpu.0, kinds & WANTED, set)).is_ok();
        }
        if !any {
            // An empty set tells nothing; that it cannot be freed costs nothing either.
            let _ = call!(self, nvmlEventSetFree(set));
        }
        any.then_some(Listener(set))
    }

    /// Waits for an event for `ms` milliseconds. None: there was none.
    pub(super) fn wait(&self, listener: &Listener, ms: u32) -> Result<Option<Told>, Code> {
        let mut data = nvmlEventData_t {
            device: std::ptr::null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        match call!(self, nvmlEventSetWait_v2(listener.0, &raw mut data, ms)) {
            Ok(()) => Ok(Some(Told {
                gpu: Gpu(data.device),
                kind: data.eventType,
                data: data.eventData,
                gpu_instance: Some(data.gpuInstanceId).filter(|id| *id != NO_INSTANCE),
            })),
            Err(Code::TIMEOUT) => Ok(None),
            Err(code) => Err(code),
        }
    }

    /// Gives an event set back.
    pub(super) fn hang_up(&self, listener: Listener) {
        // There is nothing to do where it is refused.
        let _ = call!(self, nvmlEventSetFree(listener.0));
    }
}

/// A set of events that is waited on.
pub(super) struct Listener(nvmlEventSet_t);

const NO_PROCESS: nvmlProcessInfo_t = nvmlProcessInfo_t {
    pid: 0,
    usedGpuMemory: 0,
    gpuInstanceId: NO_INSTANCE,
    computeInstanceId: NO_INSTANCE,
};

/// A reading that is not there is none; that the GPU is lost is an error.
fn known<T>(read: Result<T, Code>) -> Result<Option<T>, Code> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(code) if code.is_fatal() => Err(code),
        Err(_) => Ok(None),
    }
}

/// A text that `call` writes into a buffer.
fn text(call: impl FnOnce(*mut c_char, c_uint) -> Result<(), Code>) -> Result<String, Code> {
    let mut buffer = [0_u8; TEXT];
    call(buffer.as_mut_ptr().cast(), TEXT as c_uint)?;
    let end = buffer.iter().position(|byte| *byte == 0).ok_or(Code::MALFORMED)?;
    Ok(String::from_utf8_lossy(&buffer[..end]).into_owned())
}

/// A list that `call` writes, of which it says the length: asked with more room until it fits.
fn list<T: Clone>(
    none: T,
    mut call: impl FnMut(&mut c_uint, *mut T) -> Result<(), Code>,
) -> Result<Vec<T>, Code> {
    let mut room = 64;
    while room <= PROCESSES_MAX {
        let mut out = vec![none.clone(); room];
        let mut count = c_uint::try_from(room).unwrap_or(0);
        match call(&mut count, out.as_mut_ptr()) {
            Ok(()) => {
                out.truncate(count as usize);
                return Ok(out);
            }
            // More may come between two calls.
            Err(Code::INSUFFICIENT_SIZE) => room = (room * 2).max(count as usize + 16),
            Err(code) => return Err(code),
        }
    }
    Err(Code::INVALID_ARGUMENT)
}

/// `nvmlGpuFabricState_t` in words.
fn fabric_state(state: u8, status: u32) -> Option<String> {
    let words = match state {
        1 => "not_started",
        2 => "in_progress",
        3 if status != 0 => "failed",
        3 => "completed",
        // Not supported.
        _ => return None,
    };
    Some(words.to_owned())
}

/// `nvmlDeviceGpuRecoveryAction_t` in words.
fn recovery_action(action: c_uint) -> String {
    match action {
        0 => "none".to_owned(),
        1 => "gpu_reset".to_owned(),
        2 => "node_reboot".to_owned(),
        3 => "drain_p2p".to_owned(),
        4 => "drain_and_reset".to_owned(),
        other => format!("unknown_{other}"),
    }
}
