//! Who a process is: from /proc while it lives, from what the exec and exit probes remember afterwards.
//!
//! Everything here was chosen by the process itself or its parent: it is data, escaped where it is shown.

use std::fs;
use std::io::Read;
use std::path::Path;

use grace_common::{Proc, Task};

use super::ebpf::Probes;
use crate::event::Actor;

/// The process `pid`; `task` is what a probe saw of it in the act, which wins.
#[must_use]
pub fn actor(probes: Option<&Probes>, pid: u32, task: Option<&Task>) -> Actor {
    let seen: Option<Proc> = probes.and_then(|p| p.proc(pid));
    let seen_task = task.copied().or(seen.map(|p| p.task));
    let proc = Path::new("/proc").join(pid.to_string());
    let status = read(&proc.join("status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    // A pid that was used again names another process: believe /proc only where it agrees with the probe.
    let comm_now = field("Name").map(unescape);
    let agrees = match (&comm_now, seen_task) {
        (Some(now), Some(task)) => *now == text(&task.comm),
        (Some(_), None) => true,
        (None, _) => false,
    };
    let exe = if agrees { fs::read_link(proc.join("exe")).ok() } else { None };
    let exe = exe.map(|p| p.to_string_lossy().trim_end_matches(" (deleted)").to_owned()).or_else(|| {
        let path = text(&seen?.path);
        (!path.is_empty()).then_some(path)
    });
    let uid_now = field("Uid").and_then(|v| v.split_whitespace().next()?.parse().ok());
    let cgroup_now = if agrees { cgroup(&proc) } else { None };
    Actor {
        pid,
        comm: match seen_task {
            Some(task) => text(&task.comm),
            None => comm_now.unwrap_or_default(),
        },
        exe,
        uid: seen_task.map(|t| t.uid).or(uid_now),
        cgroup: cgroup_now.or_else(|| seen_task.map(|t| format!("cgroup id {:#x}", t.cgroup))),
        ppid: seen.map(|p| p.ppid).or_else(|| field("PPid").filter(|_| agrees)?.parse().ok()),
        inferred: None,
        lineage: Vec::new(),
    }
}

/// What started `of`, and what started that: executables and scripts, the nearest first. Its own script, if it is one,
/// comes before them.
#[must_use]
pub fn lineage(probes: Option<&Probes>, of: &Actor) -> Vec<String> {
    let seen = |pid: u32| probes.and_then(|p| p.proc(pid));
    let script = |seen: Option<Proc>, exe: Option<&str>| {
        // As the caller of execve(2) wrote it: of a script it names the script, where exe names its interpreter.
        seen.map(|p| text(&p.path)).filter(|path| path.starts_with('/') && Some(path.as_str()) != exe)
    };
    let mut child = seen(of.pid);
    let mut out: Vec<String> = script(child, of.exe.as_deref()).into_iter().collect();
    let mut next = of.ppid;
    for _ in 0..ANCESTORS {
        let Some(pid) = next.filter(|pid| *pid > 1) else { break };
        let parent = seen(pid);
        // A parent is older than its child; a younger one got the number later.
        if parent.zip(child).is_some_and(|(parent, child)| parent.start_ns > child.start_ns) {
            break;
        }
        let proc = Path::new("/proc").join(pid.to_string());
        let exe = fs::read_link(proc.join("exe")).ok();
        let exe = exe.map(|p| p.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
        let ppid_now = || {
            let stat = read(&proc.join("stat"))?;
            // Behind the name, which may hold anything: state, then the parent.
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
        };
        next = parent.map(|p| p.ppid).or_else(ppid_now);
        let script = script(parent, exe.as_deref());
        out.extend(exe);
        out.extend(script);
        child = parent;
    }
    out
}

/// So many ancestors of a process are looked at.
const ANCESTORS: usize = 16;

/// A small file of /proc in one read: they have no size that a growing buffer could go by.
fn read(path: &Path) -> Option<String> {
    let mut bytes = vec![0; 8 << 10];
    let length = fs::File::open(path).ok()?.read(&mut bytes).ok()?;
    bytes.truncate(length);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The path in the unified hierarchy.
fn cgroup(proc: &Path) -> Option<String> {
    let text = read(&proc.join("cgroup"))?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// NUL-padded bytes as text; what is not UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// /proc/PID/status escapes newline and backslash in the name (proc_pid_status(5)).
fn unescape(name: &str) -> String {
    name.replace("\\n", "\n").replace("\\\\", "\\")
}
