//! What the host is: for the boot picture and `status`. Read once at start, and the agent's own cost while it runs.

use std::collections::BTreeMap;
use std::fs;

use sysinfo::System;

/// Host name, kernel, processors, memory.
#[must_use]
pub fn describe() -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let facts = [
        ("name", System::host_name()),
        ("kernel", System::kernel_version()),
        ("os", System::long_os_version()),
    ];
    for (key, fact) in facts {
        out.insert(key.to_owned(), fact.unwrap_or_else(|_| "unknown".to_owned()));
    }
    if let Ok(cpus) = std::thread::available_parallelism() {
        out.insert("cpus".into(), cpus.to_string());
    }
    if let Ok(mut system) = System::new() {
        system.refresh_memory();
        out.insert("memory_bytes".into(), system.total_memory().to_string());
    }
    out
}

/// Id of this boot of the host.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}

/// Resident memory of this process, in bytes.
#[must_use]
pub fn rss_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(rustix::param::page_size() as u64)
}

/// The share of time in which some task waited for `resource` (`cpu`, `memory`, `io`) over the last 10 s, in percent.
#[must_use]
pub fn pressure(resource: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
    text.lines().next()?.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}
