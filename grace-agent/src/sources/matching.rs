//! Finds a process that Grace did not start, by its executable and its arguments.

use std::fs;
use std::os::fd::OwnedFd;

use super::processes::{pidfd_of, start_ticks};
use crate::config::Match;

/// Bytes of a command line that are looked at.
const CMDLINE_MAX: usize = 64 << 10;

/// The oldest process that fits, and a handle of exactly that one. None fits: none.
#[must_use]
pub fn find(wanted: &Match) -> Option<(u32, OwnedFd)> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    let mut found: Vec<(u64, u32)> = pids
        .filter(|pid| *pid != own && fits(wanted, *pid))
        .filter_map(|pid| Some((start_ticks(pid)?.0, pid)))
        .collect();
    found.sort_unstable();
    found.into_iter().find_map(|(ticks, pid)| {
        // The handle first, then who it is: the number may have changed hands since.
        let pidfd = pidfd_of(pid).ok()?;
        let same = start_ticks(pid).is_some_and(|now| now.0 == ticks) && fits(wanted, pid);
        same.then_some((pid, pidfd))
    })
}

fn fits(wanted: &Match, pid: u32) -> bool {
    let exe = || {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let exe = exe.to_string_lossy().into_owned();
        // After an upgrade it runs the old one still.
        Some(exe.strip_suffix(" (deleted)").map_or(exe.clone(), str::to_owned))
    };
    let cmdline = || {
        let mut bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        bytes.truncate(CMDLINE_MAX);
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        Some(text.trim_end().to_owned())
    };
    let is = |pattern: &Option<glob::Pattern>, text: &dyn Fn() -> Option<String>| {
        pattern
            .as_ref()
            .is_none_or(|pattern| text().is_some_and(|text| !text.is_empty() && pattern.matches(&text)))
    };
    is(&wanted.exe, &exe) && is(&wanted.cmdline, &cmdline) && alive(pid)
}

/// Not a process that has ended and was not waited for.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rfind(')').is_some_and(|at| !stat[at..].starts_with(") Z")))
}
