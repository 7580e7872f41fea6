//! A stand-in for NVIDIA's `libnvidia-ml.so.1`: speaks its binary interface, and says what a JSON file tells it to.
//!
//! The file is named by `FAKE_NVML_SCENARIO` and looked at before each answer, so a test changes it while the agent
//! runs. Where it has no value for a reading, the answer is NVML_ERROR_NOT_SUPPORTED, as a GPU without it would give.
//! What the file holds:
//!
//! - `driver`, `nvml`: versions · `init`: what nvmlInit returns, such as `DRIVER_NOT_LOADED`
//! - `gpus`: a list; `count`: the first of it as often as this, each with its own identity
//! - `errors`: what functions return, by name · `hang`: names of functions that do not return while they stand here
//! - `events`: `{ "id", "gpu", "type", "data", "gpu_instance", "compute_instance" }`; each is told once, in the order
//!   of the ids
//!
//! and each GPU the keys that `reading!` and the functions below name. A library without a symbol is made by
//! [`without_symbols`].
#![expect(unsafe_code, reason = "it is a C library: pointers come in and are written to")]
#![expect(clippy::missing_safety_doc, reason = "names and contracts are those of nvml.h")]
#![expect(missing_docs, reason = "each exported function is documented by NVIDIA under its own name")]

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_longlong, c_uint, c_ulonglong};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nvml_wrapper_sys::bindings::{
    nvmlBrandType_t, nvmlClockType_t, nvmlDevice_t, nvmlEccCounterType_t, nvmlEnableState_t, nvmlEventData_t,
    nvmlEventSet_t, nvmlFieldValue_t, nvmlGpuFabricInfo_t, nvmlMemory_t, nvmlMemoryErrorType_t,
    nvmlNvLinkErrorCounter_t, nvmlPageRetirementCause_t, nvmlPciInfo_t, nvmlProcessInfo_t,
    nvmlProcessUtilizationSample_t, nvmlReturn_t, nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t,
    nvmlUtilization_t,
};
use serde_json::Value;

/// Return values of NVML (nvml.h, `nvmlReturn_t`).
const CODES: [(&str, nvmlReturn_t); 18] = [
    ("SUCCESS", 0),
    ("UNINITIALIZED", 1),
    ("INVALID_ARGUMENT", 2),
    ("NOT_SUPPORTED", 3),
    ("NO_PERMISSION", 4),
    ("NOT_FOUND", 6),
    ("INSUFFICIENT_SIZE", 7),
    ("DRIVER_NOT_LOADED", 9),
    ("TIMEOUT", 10),
    ("IRQ_ISSUE", 11),
    ("FUNCTION_NOT_FOUND", 13),
    ("CORRUPTED_INFOROM", 14),
    ("GPU_IS_LOST", 15),
    ("RESET_REQUIRED", 16),
    ("LIB_RM_VERSION_MISMATCH", 18),
    ("NO_DATA", 21),
    ("INVALID_STATE", 29),
    ("UNKNOWN", 999),
];
const OK: nvmlReturn_t = 0;
const INVALID_ARGUMENT: nvmlReturn_t = 2;
const NOT_SUPPORTED: nvmlReturn_t = 3;
const NOT_FOUND: nvmlReturn_t = 6;
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
const DRIVER_NOT_LOADED: nvmlReturn_t = 9;
const TIMEOUT: nvmlReturn_t = 10;
const UNKNOWN: nvmlReturn_t = 999;

/// How often the file is looked at while a call hangs or waits.
const LOOK: Duration = Duration::from_millis(5);
/// Handles of MIG devices begin here; below are those of GPUs, each its index plus one.
const MIG: usize = 0x1000;

/// What an answer is, or the code instead of one.
type Answer = Result<(), nvmlReturn_t>;

/// The file as it was last read, and what tells whether it is the same.
#[derive(Clone)]
struct Read {
    identity: (u64, i64, i64, u64),
    scenario: Arc<Value>,
}

static READ: Mutex<Option<Read>> = Mutex::new(None);
/// The highest event that was told.
static TOLD: Mutex<u64> = Mutex::new(0);
/// GPUs whose events are asked for.
static REGISTERED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The scenario as it is now; none: there is no such file, or no JSON in it.
fn scenario() -> Option<Arc<Value>> {
    let path = std::env::var_os("FAKE_NVML_SCENARIO")?;
    let meta = fs::metadata(&path).ok()?;
    let identity = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
    let mut read = lock(&READ);
    if let Some(same) = read.as_ref().filter(|read| read.identity == identity) {
        return Some(Arc::clone(&same.scenario));
    }
    let mut value: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    multiply(&mut value);
    let scenario = Arc::new(value);
    *read = Some(Read { identity, scenario: Arc::clone(&scenario) });
    Some(scenario)
}

/// `count` times the first GPU.
fn multiply(scenario: &mut Value) {
    let Some(count) = scenario["count"].as_u64() else { return };
    let first = scenario["gpus"][0].clone();
    let gpus = (0..count)
        .map(|index| {
            let mut gpu = first.clone();
            gpu["uuid"] = format!("GPU-00000000-0000-0000-0000-{index:012}").into();
            gpu["pci"] = format!("{:08x}:{:02x}:00.0", 0, index + 1).into();
            gpu
        })
        .collect();
    scenario["gpus"] = Value::Array(gpus);
}

fn code(name: &Value) -> Option<nvmlReturn_t> {
    let name = name.as_str()?;
    CODES.iter().find(|(known, _)| *known == name).map(|(_, code)| *code)
}

/// Answers the function `name` from the scenario.
fn answer(name: &str, say: impl FnOnce(&Value) -> Answer) -> nvmlReturn_t {
    let Some(mut now) = scenario() else { return DRIVER_NOT_LOADED };
    while now["hang"].as_array().is_some_and(|names| names.iter().any(|n| n == name)) {
        std::thread::sleep(LOOK);
        // Replaced by a rename it is never gone; whoever removes it ends the hang.
        let Some(next) = scenario() else { return DRIVER_NOT_LOADED };
        now = next;
    }
    if let Some(code) = code(&now["errors"][name]) {
        return code;
    }
    say(&now).err().unwrap_or(OK)
}

/// The same about one GPU, or the GPU of a MIG device.
fn of_gpu(name: &str, device: nvmlDevice_t, say: impl FnOnce(&Value) -> Answer) -> nvmlReturn_t {
    answer(name, |scenario| {
        let gpu = scenario["gpus"].get(index_of(device)?).ok_or(INVALID_ARGUMENT)?;
        match code(&gpu["error"]) {
            Some(code) => Err(code),
            None => say(gpu),
        }
    })
}

/// The index of a handle's GPU.
fn index_of(device: nvmlDevice_t) -> Result<usize, nvmlReturn_t> {
    let handle = device as usize;
    let gpu = if handle >= MIG { handle / MIG } else { handle };
    gpu.checked_sub(1).ok_or(INVALID_ARGUMENT)
}

/// Writes an answer to where the caller wants it.
///
/// # Safety
/// `out` is null or may be written to, as nvml.h asks of every caller.
unsafe fn put<T>(out: *mut T, value: T) -> Answer {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller of the C function vouches for the rest.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes `text` and a NUL.
///
/// # Safety
/// As `put`, for `length` characters.
unsafe fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Answer {
    let text = CString::new(text).map_err(|_nul| UNKNOWN)?;
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, byte) in bytes.iter().enumerate() {
        // SAFETY: `at` is below `length`.
        unsafe { put(out.wrapping_add(at), byte.cast_signed())? };
    }
    Ok(())
}

fn number<T: TryFrom<u64>>(value: &Value) -> Result<T, nvmlReturn_t> {
    value.as_u64().and_then(|n| T::try_from(n).ok()).ok_or(NOT_SUPPORTED)
}

/// A number that is 0 where it is not said.
fn or_zero<T: TryFrom<u64> + Default>(value: &Value) -> T {
    number(value).unwrap_or_default()
}

fn flag(value: &Value) -> Result<nvmlEnableState_t, nvmlReturn_t> {
    value.as_bool().map(nvmlEnableState_t::from).ok_or(NOT_SUPPORTED)
}

fn text(value: &Value) -> Result<&str, nvmlReturn_t> {
    value.as_str().ok_or(NOT_SUPPORTED)
}

/// Functions that give one number of a GPU.
macro_rules! reading {
    ($($name:ident: $key:literal as $type:ty),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, out: *mut $type) -> nvmlReturn_t {
            // SAFETY: `out` is the caller's.
            of_gpu(stringify!($name), device, |gpu| unsafe { put(out, number(&gpu[$key])?) })
        }
    )+};
}

reading! {
    nvmlDeviceGetPowerUsage: "power_mw" as c_uint,
    nvmlDeviceGetEnforcedPowerLimit: "power_limit_mw" as c_uint,
    nvmlDeviceGetTotalEnergyConsumption: "energy_mj" as c_ulonglong,
    nvmlDeviceGetCurrentClocksEventReasons: "clocks_event_reasons" as c_ulonglong,
    nvmlDeviceGetCurrentClocksThrottleReasons: "clocks_event_reasons" as c_ulonglong,
    nvmlDeviceGetCurrPcieLinkGeneration: "pcie_generation" as c_uint,
    nvmlDeviceGetMaxPcieLinkGeneration: "pcie_generation_max" as c_uint,
    nvmlDeviceGetCurrPcieLinkWidth: "pcie_width" as c_uint,
    nvmlDeviceGetMaxPcieLinkWidth: "pcie_width_max" as c_uint,
    nvmlDeviceGetPcieReplayCounter: "pcie_replays" as c_uint,
}

/// Functions that give one yes or no of a GPU.
macro_rules! switch {
    ($($name:ident: $key:literal),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, out: *mut nvmlEnableState_t) -> nvmlReturn_t {
            // SAFETY: `out` is the caller's.
            of_gpu(stringify!($name), device, |gpu| unsafe { put(out, flag(&gpu[$key])?) })
        }
    )+};
}

switch! {
    nvmlDeviceGetPersistenceMode: "persistence",
    nvmlDeviceGetRetiredPagesPendingStatus: "retired_pending",
}

fn init(name: &str) -> nvmlReturn_t {
    answer(name, |scenario| code(&scenario["init"]).filter(|code| *code != OK).map_or(Ok(()), Err))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    init("nvmlInit_v2")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    init("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(_result: nvmlReturn_t) -> *const c_char {
    c"an error".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the buffer is the caller's.
    answer("nvmlSystemGetDriverVersion", |s| unsafe { put_text(version, length, text(&s["driver"])?) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the buffer is the caller's.
    answer("nvmlSystemGetNVMLVersion", |s| unsafe { put_text(version, length, text(&s["nvml"])?) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    answer("nvmlDeviceGetCount_v2", |scenario| {
        let gpus = scenario["gpus"].as_array().map_or(0, Vec::len);
        // SAFETY: the place is the caller's.
        unsafe { put(count, c_uint::try_from(gpus).map_err(|_many| UNKNOWN)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetHandleByIndex_v2", |scenario| {
        let gpu = scenario["gpus"].get(index as usize).ok_or(INVALID_ARGUMENT)?;
        // A lost GPU has no handle any more.
        if let Some(code) = code(&gpu["error"]) {
            return Err(code);
        }
        // SAFETY: the place is the caller's.
        unsafe { put(device, (index as usize + 1) as nvmlDevice_t) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetIndex", device, |_| {
        // SAFETY: the place is the caller's.
        unsafe { put(index, c_uint::try_from(index_of(device)?).map_err(|_many| UNKNOWN)?) }
    })
}

/// Functions that give a text of a GPU.
macro_rules! words {
    ($($name:ident: $key:literal),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, out: *mut c_char, length: c_uint) -> nvmlReturn_t {
            // SAFETY: the buffer is the caller's.
            of_gpu(stringify!($name), device, |gpu| unsafe { put_text(out, length, text(&gpu[$key])?) })
        }
    )+};
}

words! {
    nvmlDeviceGetName: "name",
    nvmlDeviceGetSerial: "serial",
    nvmlDeviceGetVbiosVersion: "vbios",
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    out: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetUUID", device, |gpu| {
        let handle = device as usize;
        let uuid = match handle >= MIG {
            true => &gpu["mig"]["devices"][handle % MIG]["uuid"],
            false => &gpu["uuid"],
        };
        // SAFETY: the buffer is the caller's.
        unsafe { put_text(out, length, text(uuid)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBrand(device: nvmlDevice_t, out: *mut nvmlBrandType_t) -> nvmlReturn_t {
    // SAFETY: the place is the caller's.
    of_gpu("nvmlDeviceGetBrand", device, |gpu| unsafe { put(out, number(&gpu["brand"])?) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    out: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetPciInfo_v3", device, |gpu| {
        let id = text(&gpu["pci"])?;
        let hex =
            |text: Option<&str>| u32::from_str_radix(text.unwrap_or_default(), 16).map_err(|_no| UNKNOWN);
        let mut parts = id.split([':', '.']);
        let (domain, bus, slot) = (hex(parts.next())?, hex(parts.next())?, hex(parts.next())?);
        let mut info = nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain,
            bus,
            device: slot,
            pciDeviceId: or_zero(&gpu["pci_device"]),
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        let legacy = format!("{domain:04X}:{bus:02X}:{slot:02X}.0");
        for (place, byte) in info.busIdLegacy.iter_mut().take(15).zip(legacy.bytes()) {
            *place = byte.cast_signed();
        }
        for (place, byte) in info.busId.iter_mut().take(31).zip(id.bytes()) {
            *place = byte.cast_signed();
        }
        // SAFETY: the place is the caller's.
        unsafe { put(out, info) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    out: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetMemoryInfo", device, |gpu| {
        let (total, used): (u64, u64) = (number(&gpu["memory_total"])?, number(&gpu["memory_used"])?);
        // SAFETY: the place is the caller's.
        unsafe { put(out, nvmlMemory_t { total, free: total.saturating_sub(used), used }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    out: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetUtilizationRates", device, |gpu| {
        let (gpu, memory) = (number(&gpu["utilization"])?, or_zero(&gpu["memory_utilization"]));
        // SAFETY: the place is the caller's.
        unsafe { put(out, nvmlUtilization_t { gpu, memory }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    // SAFETY: the place is the caller's.
    of_gpu("nvmlDeviceGetTemperature", device, |gpu| unsafe { put(out, number(&gpu["temperature"])?) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: nvmlDevice_t,
    which: nvmlTemperatureThresholds_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    let key =
        ["shutdown", "slowdown", "memory_max", "gpu_max"].get(which as usize).copied().unwrap_or("none");
    of_gpu("nvmlDeviceGetTemperatureThreshold", device, |gpu| {
        // SAFETY: the place is the caller's.
        unsafe { put(out, number(&gpu["temperature_thresholds"][key])?) }
    })
}

fn clock_of(which: nvmlClockType_t) -> &'static str {
    ["graphics", "sm", "memory", "video"].get(which as usize).copied().unwrap_or("none")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    which: nvmlClockType_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetClockInfo", device, |gpu| {
        // SAFETY: the place is the caller's.
        unsafe { put(out, number(&gpu["clocks"][clock_of(which)])?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    which: nvmlClockType_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetMaxClockInfo", device, |gpu| {
        // SAFETY: the place is the caller's.
        unsafe { put(out, number(&gpu["clocks_max"][clock_of(which)])?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(
    device: nvmlDevice_t,
    current: *mut nvmlEnableState_t,
    pending: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetEccMode", device, |gpu| {
        let mode = flag(&gpu["ecc"]["mode"])?;
        // SAFETY: the places are the caller's.
        unsafe { put(current, mode).and_then(|()| put(pending, mode)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    which: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    let which = ["corrected", "uncorrected"].get(which as usize).copied().unwrap_or("none");
    let counter = ["volatile", "aggregate"].get(counter as usize).copied().unwrap_or("none");
    of_gpu("nvmlDeviceGetTotalEccErrors", device, |gpu| {
        // SAFETY: the place is the caller's.
        unsafe { put(out, number(&gpu["ecc"][format!("{which}_{counter}")])?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetRemappedRows(
    device: nvmlDevice_t,
    corrected: *mut c_uint,
    uncorrected: *mut c_uint,
    pending: *mut c_uint,
    failed: *mut c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetRemappedRows", device, |gpu| {
        let rows = &gpu["remapped"];
        // SAFETY: the places are the caller's.
        unsafe {
            put(corrected, number(&rows["correctable"])?)?;
            put(uncorrected, or_zero(&rows["uncorrectable"]))?;
            put(pending, c_uint::from(rows["pending"] == true))?;
            put(failed, c_uint::from(rows["failed"] == true))
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetRetiredPages(
    device: nvmlDevice_t,
    cause: nvmlPageRetirementCause_t,
    count: *mut c_uint,
    addresses: *mut c_ulonglong,
) -> nvmlReturn_t {
    let key = ["retired_sbe", "retired_dbe"].get(cause as usize).copied().unwrap_or("none");
    of_gpu("nvmlDeviceGetRetiredPages", device, |gpu| {
        let pages: usize = number(&gpu[key])?;
        let addressed = (0..pages).map(|page| (page as u64) << 12).collect::<Vec<_>>();
        // SAFETY: the places are the caller's.
        unsafe { put_list(count, addresses, &addressed) }
    })
}

/// Writes a list, or how long it is where there is no room for it.
///
/// # Safety
/// `count` may be read and written, and `out` has room for as many as it says.
unsafe fn put_list<T: Copy>(count: *mut c_uint, out: *mut T, list: &[T]) -> Answer {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null.
    let room = unsafe { count.read() } as usize;
    let length = c_uint::try_from(list.len()).map_err(|_many| UNKNOWN)?;
    // SAFETY: not null.
    unsafe { put(count, length)? };
    if list.is_empty() {
        return Ok(());
    }
    if room < list.len() || out.is_null() {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, value) in list.iter().enumerate() {
        // SAFETY: there is room for more than `at`.
        unsafe { put(out.wrapping_add(at), *value)? };
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    out: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetNvLinkState", device, |gpu| {
        let link = gpu["nvlinks"].get(link as usize).ok_or(INVALID_ARGUMENT)?;
        // SAFETY: the place is the caller's.
        unsafe { put(out, flag(&link["active"])?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkErrorCounter(
    device: nvmlDevice_t,
    link: c_uint,
    counter: nvmlNvLinkErrorCounter_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    let key = ["replay", "recovery", "crc_flit", "crc_data"].get(counter as usize).copied().unwrap_or("none");
    of_gpu("nvmlDeviceGetNvLinkErrorCounter", device, |gpu| {
        let link = gpu["nvlinks"].get(link as usize).ok_or(INVALID_ARGUMENT)?;
        // SAFETY: the place is the caller's.
        unsafe { put(out, or_zero(&link[key])) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfo(
    device: nvmlDevice_t,
    out: *mut nvmlGpuFabricInfo_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetGpuFabricInfo", device, |gpu| {
        let fabric = &gpu["fabric"];
        let state = number(&fabric["state"])?;
        let status = code(&fabric["status"]).unwrap_or(OK);
        // SAFETY: the place is the caller's.
        unsafe { put(out, nvmlGpuFabricInfo_t { clusterUuid: [0; 16], status, cliqueId: 0, state }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetFieldValues", device, |gpu| {
        if values.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for at in 0..usize::try_from(count).map_err(|_negative| INVALID_ARGUMENT)? {
            // SAFETY: the caller says that there are `count`.
            let field = unsafe { &mut *values.wrapping_add(at) };
            field.timestamp = c_longlong::from(1);
            match number::<c_uint>(&gpu["fields"][field.fieldId.to_string()]) {
                Ok(value) => {
                    field.nvmlReturn = OK;
                    // NVML_VALUE_TYPE_UNSIGNED_INT
                    field.valueType = 1;
                    field.value.ullVal = 0;
                    field.value.uiVal = value;
                }
                Err(code) => field.nvmlReturn = code,
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetMigMode", device, |gpu| {
        let mode = flag(&gpu["mig"]["mode"])?;
        // SAFETY: the places are the caller's.
        unsafe { put(current, mode).and_then(|()| put(pending, mode)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetMaxMigDeviceCount", device, |gpu| {
        let most = if gpu["mig"].is_object() { 7 } else { 0 };
        // SAFETY: the place is the caller's.
        unsafe { put(out, most) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    out: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetMigDeviceHandleByIndex", device, |gpu| {
        gpu["mig"]["devices"].get(index as usize).ok_or(NOT_FOUND)?;
        // SAFETY: the place is the caller's.
        unsafe { put(out, (MIG * (index_of(device)? + 1) + index as usize) as nvmlDevice_t) }
    })
}

/// Which instance a MIG device is.
macro_rules! instance {
    ($($name:ident: $key:literal),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, out: *mut c_uint) -> nvmlReturn_t {
            of_gpu(stringify!($name), device, |gpu| {
                let handle = device as usize;
                let devices = gpu["mig"]["devices"].as_array().filter(|_| handle >= MIG).ok_or(NOT_SUPPORTED)?;
                let device = devices.get(handle % MIG).ok_or(NOT_FOUND)?;
                // SAFETY: the place is the caller's.
                unsafe { put(out, number(&device[$key])?) }
            })
        }
    )+};
}

instance! {
    nvmlDeviceGetGpuInstanceId: "gpu_instance",
    nvmlDeviceGetComputeInstanceId: "compute_instance",
}

fn processes(gpu: &Value, key: &str) -> Vec<nvmlProcessInfo_t> {
    // Of no instance: all ones (nvml.h).
    let instance = |value: &Value| number(value).unwrap_or(c_uint::MAX);
    let of = |process: &Value| nvmlProcessInfo_t {
        pid: or_zero(&process["pid"]),
        // NVML_VALUE_NOT_AVAILABLE
        usedGpuMemory: process["memory"].as_u64().unwrap_or(u64::MAX),
        gpuInstanceId: instance(&process["gpu_instance"]),
        computeInstanceId: instance(&process["compute_instance"]),
    };
    gpu[key].as_array().map(|list| list.iter().map(of).collect()).unwrap_or_default()
}

/// Lists of processes.
macro_rules! running {
    ($($name:ident: $key:literal),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            device: nvmlDevice_t,
            count: *mut c_uint,
            infos: *mut nvmlProcessInfo_t,
        ) -> nvmlReturn_t {
            // SAFETY: the places are the caller's.
            of_gpu(stringify!($name), device, |gpu| unsafe { put_list(count, infos, &processes(gpu, $key)) })
        }
    )+};
}

running! {
    nvmlDeviceGetComputeRunningProcesses_v3: "processes",
    nvmlDeviceGetMPSComputeRunningProcesses_v3: "mps_processes",
    nvmlDeviceGetGraphicsRunningProcesses_v3: "graphics_processes",
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    samples: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    _since: c_ulonglong,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceGetProcessUtilization", device, |gpu| {
        let list = gpu["processes"].as_array().cloned().unwrap_or_default();
        let of = |process: &Value| nvmlProcessUtilizationSample_t {
            pid: or_zero(&process["pid"]),
            timeStamp: 1,
            smUtil: or_zero(&process["sm"]),
            memUtil: or_zero(&process["mem"]),
            encUtil: 0,
            decUtil: 0,
        };
        let list: Vec<_> = list.iter().filter(|p| p["sm"].is_u64()).map(of).collect();
        if list.is_empty() {
            return Err(NOT_FOUND);
        }
        // SAFETY: the places are the caller's.
        unsafe { put_list(count, samples, &list) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    // SAFETY: the place is the caller's.
    of_gpu("nvmlDeviceGetSupportedEventTypes", device, |gpu| unsafe {
        put(out, number(&gpu["event_types"])?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    _set: nvmlEventSet_t,
) -> nvmlReturn_t {
    of_gpu("nvmlDeviceRegisterEvents", device, |gpu| {
        let supported: u64 = number(&gpu["event_types"])?;
        if types & !supported != 0 {
            return Err(NOT_SUPPORTED);
        }
        lock(&REGISTERED).insert(index_of(device)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    // SAFETY: the place is the caller's.
    answer("nvmlEventSetCreate", |_| unsafe { put(set, 1_usize as nvmlEventSet_t) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(_set: nvmlEventSet_t) -> nvmlReturn_t {
    lock(&REGISTERED).clear();
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let mut left = Duration::from_millis(u64::from(timeout_ms));
    loop {
        let code = answer("nvmlEventSetWait_v2", |scenario| {
            let mut told = lock(&TOLD);
            let registered = lock(&REGISTERED).clone();
            let events = scenario["events"].as_array().ok_or(TIMEOUT)?;
            let id = |event: &Value| event["id"].as_u64().unwrap_or(0);
            let new = |event: &&Value| {
                let gpu = event["gpu"].as_u64().and_then(|gpu| usize::try_from(gpu).ok());
                id(event) > *told && gpu.is_some_and(|gpu| registered.contains(&gpu))
            };
            let event = events.iter().filter(new).min_by_key(|event| id(event)).ok_or(TIMEOUT)?;
            let instance = |value: &Value| number(value).unwrap_or(c_uint::MAX);
            let data_of = nvmlEventData_t {
                device: (number::<usize>(&event["gpu"])? + 1) as nvmlDevice_t,
                eventType: number(&event["type"])?,
                eventData: or_zero(&event["data"]),
                gpuInstanceId: instance(&event["gpu_instance"]),
                computeInstanceId: instance(&event["compute_instance"]),
            };
            *told = id(event);
            // SAFETY: the place is the caller's.
            unsafe { put(data, data_of) }
        });
        if code != TIMEOUT || left.is_zero() {
            return code;
        }
        let nap = LOOK.min(left);
        std::thread::sleep(nap);
        left -= nap;
    }
}

/// A copy of the library at `from` that lacks `symbols`, as an older driver's would: their names are changed where
/// the loader looks them up.
///
/// # Errors
/// Where a file cannot be read or written, or the library does not have one of them.
pub fn without_symbols(from: &Path, to: &Path, symbols: &[&str]) -> std::io::Result<()> {
    let mut library = fs::read(from)?;
    for symbol in symbols {
        // As it stands in the table of names: between two NULs.
        let name: Vec<u8> = [&[0], symbol.as_bytes(), &[0]].concat();
        let places: Vec<usize> = library
            .windows(name.len())
            .enumerate()
            .filter(|(_, w)| *w == name)
            .map(|(at, _)| at + 1)
            .collect();
        if places.is_empty() {
            return Err(std::io::Error::other(format!("no symbol {symbol}")));
        }
        for at in places {
            if let Some(first) = library.get_mut(at) {
                *first = b'x';
            }
        }
    }
    fs::write(to, library)
}
