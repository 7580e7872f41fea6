//! Names of the places where the kernel waits: from the addresses of a stack to the function that says what for.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::sync::Mutex;

use super::lock;

/// The kernel's symbols.
const KALLSYMS: &str = "/proc/kallsyms";

/// Functions that every waiting stack begins with: they say that it waits, not what for.
const GENERIC: &[&str] = &[
    "__schedule",
    "schedule",
    "schedule_timeout",
    "schedule_hrtimeout_range",
    "schedule_hrtimeout_range_clock",
    "io_schedule",
    "io_schedule_timeout",
    "schedule_preempt_disabled",
    "preempt_schedule_common",
    "wait_woken",
    "do_sys_poll",
];

/// At most so many addresses are remembered: a kernel has few places to wait at.
const KEPT: usize = 4096;

/// Names found so far, by address; none where there is no symbol.
#[derive(Default)]
pub(super) struct Names {
    known: Mutex<HashMap<u64, Option<String>>>,
}

impl Names {
    /// What a thread with the kernel stack `ips`, innermost first, waits for.
    pub(super) fn wait_channel(&self, ips: &[u64]) -> Option<String> {
        let ips: Vec<u64> = ips.iter().copied().take(16).filter(|ip| *ip != 0).collect();
        let missing: Vec<u64> = {
            let known = lock(&self.known);
            ips.iter().copied().filter(|ip| !known.contains_key(ip)).collect()
        };
        if !missing.is_empty() {
            let found = resolve(&missing);
            let mut known = lock(&self.known);
            if known.len() > KEPT {
                known.clear();
            }
            known.extend(missing.iter().map(|ip| (*ip, found.get(ip).cloned())));
        }
        let known = lock(&self.known);
        let named = ips.iter().filter_map(|ip| known.get(ip)?.as_deref());
        // The probe's own frames come first on some kernels.
        named
            .filter(|name| {
                !name.starts_with("bpf_") && !name.starts_with("__bpf_") && !name.contains("trace")
            })
            .find(|name| !GENERIC.contains(name))
            .map(str::to_owned)
    }
}

/// The symbols that hold `ips`, in one pass over the list, which need not be sorted.
fn resolve(ips: &[u64]) -> HashMap<u64, String> {
    let mut best: HashMap<u64, (u64, String)> = HashMap::new();
    let Ok(file) = std::fs::File::open(KALLSYMS) else { return HashMap::new() };
    let mut lines = BufReader::with_capacity(64 << 10, file);
    let mut line = String::new();
    loop {
        line.clear();
        if !lines.read_line(&mut line).is_ok_and(|n| n > 0) {
            break;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        // Hidden addresses (kptr_restrict) read as 0.
        if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            continue;
        }
        for ip in ips.iter().filter(|ip| **ip >= address) {
            if best.get(ip).is_none_or(|(at, _)| *at < address) {
                best.insert(*ip, (address, name.to_owned()));
            }
        }
    }
    best.into_iter().map(|(ip, (_, name))| (ip, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_telling_function_is_the_wait_channel() {
        let names = Names::default();
        let frames =
            [(1, "__schedule"), (2, "schedule"), (3, "futex_do_wait"), (4, "futex_wait"), (5, "do_futex")];
        lock(&names.known).extend(frames.map(|(ip, name)| (ip, Some(name.to_owned()))));
        assert_eq!(names.wait_channel(&[1, 2, 3, 4, 5]).as_deref(), Some("futex_do_wait"));
        assert_eq!(names.wait_channel(&[1, 2, 0]), None);
    }
}
