//! `grace doctor`: what this host lets Grace see, and what to do about the rest. Reads files only; starts nothing.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::ask::{Failure, with_agent};
use super::show::{Out, escape, paint, status_page};
use super::{Answer, Global};
use crate::api::client::ClientError;
use crate::api::view::{Health, StatusView};
use crate::sources::ebpf;
use crate::sources::fanotify::Fanotify;

/// Arguments of `grace doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// `grace doctor --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The agent's own view; none: no agent answers.
    pub agent: Option<StatusView>,
    /// What was found on the host.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Doctor {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let asked =
            with_agent(&global.socket, async |agent| Ok(agent.get::<StatusView>("/v1/status").await?));
        let (agent, why) = match asked {
            Ok(status) => (Some(status), None),
            Err(Failure::Client(err @ (ClientError::NoAgent(_) | ClientError::Denied(_)))) => {
                (None, Some(err))
            }
            Err(err) => return Err(err),
        };
        let mut found = checks(&global.socket);
        found.extend(pinned(agent.is_some()));
        let report = Report { checks: found, agent };
        let degraded = report.checks.iter().any(|c| c.state == Health::Degraded)
            || report.agent.as_ref().is_some_and(|a| !a.degraded.is_empty());
        if self.json {
            out.document(&report)?;
            return Ok(u8::from(degraded));
        }
        match (&report.agent, why) {
            (Some(agent), _) => out.line(&status_page(agent, true, out.color))?,
            (None, why) => {
                let why = why.map(|w| w.to_string()).unwrap_or_default();
                out.line(&format!("{why}\nWhat follows is this host without an agent."))?;
            }
        }
        out.line("\nhost")?;
        for check in &report.checks {
            let mark = match check.state {
                Health::Ok => paint("✓", "32", out.color),
                Health::Degraded => paint("✗", "31", out.color),
                Health::Unsupported => paint("✗", "33", out.color),
                Health::Off => paint("-", "2", out.color),
            };
            out.line(&format!("  {mark} {:<12} {}", check.name, escape(&check.detail)))?;
            if let Some(fix) = &check.fix {
                out.line(&format!("    {:<12} {fix}", ""))?;
            }
        }
        Ok(u8::from(degraded))
    }
}

fn check(name: &str, state: Health, detail: impl Into<String>, fix: Option<&str>) -> Check {
    Check { name: name.to_owned(), state, detail: detail.into(), fix: fix.map(str::to_owned) }
}

/// Everything that can be told by reading.
fn checks(socket: &Path) -> Vec<Check> {
    vec![
        user(),
        embedded(),
        btf(),
        mounted("tracefs", "/sys/kernel/tracing", "trace_clock"),
        mounted("bpffs", "/sys/fs/bpf", "."),
        lockdown(),
        fanotify(),
        pidfd(),
        cgroup(),
        pressure(),
        nvml(),
        socket_mode(socket),
    ]
}

fn user() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map_or("unknown", str::trim);
    let caps = u64::from_str_radix(effective, 16).unwrap_or(0);
    // capability.h: CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19, CAP_SYS_ADMIN 21, CAP_PERFMON 38, CAP_BPF 39.
    let missing: Vec<&str> = [
        (2, "CAP_DAC_READ_SEARCH"),
        (19, "CAP_SYS_PTRACE"),
        (21, "CAP_SYS_ADMIN"),
        (38, "CAP_PERFMON"),
        (39, "CAP_BPF"),
    ]
    .into_iter()
    .filter(|(bit, _)| caps >> bit & 1 == 0)
    .map(|(_, name)| name)
    .collect();
    let uid = rustix::process::geteuid().as_raw();
    if missing.is_empty() {
        return check(
            "privilege",
            Health::Ok,
            format!("uid {uid} with the capabilities that the probes need"),
            None,
        );
    }
    let detail = format!("uid {uid} lacks {}", missing.join(", "));
    check(
        "privilege",
        Health::Degraded,
        detail,
        Some("run as root: without, no probes, no fanotify, no writer's name"),
    )
}

fn embedded() -> Check {
    if ebpf::embedded() {
        check("probes", Health::Ok, "the eBPF object is part of this program", None)
    } else {
        let fix = "build with `cargo xtask build`: it makes the object first";
        check("probes", Health::Degraded, "this program was built without its eBPF object", Some(fix))
    }
}

fn btf() -> Check {
    match fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(meta) => {
            check("BTF", Health::Ok, format!("/sys/kernel/btf/vmlinux, {} KiB", meta.len() >> 10), None)
        }
        Err(err) => {
            let fix = "a kernel with CONFIG_DEBUG_INFO_BTF=y: every stock one since 5.10 has it";
            check("BTF", Health::Degraded, format!("/sys/kernel/btf/vmlinux: {err}"), Some(fix))
        }
    }
}

fn mounted(name: &str, folder: &str, probe: &str) -> Check {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let is = mounts.lines().any(|l| l.split(' ').nth(1) == Some(folder));
    if is && Path::new(folder).join(probe).exists() {
        return check(name, Health::Ok, format!("mounted on {folder}"), None);
    }
    let fix = match name {
        "bpffs" => format!(
            "without it the probes end with the agent and see nothing between two: mount -t bpf bpf {folder}"
        ),
        _ => format!("not needed by these probes; others want it: mount -t {name} {name} {folder}"),
    };
    Check { fix: Some(fix), ..check(name, Health::Off, format!("not mounted on {folder}"), None) }
}

/// Probes that are pinned in bpffs; without an agent nobody reads what they see.
fn pinned(agent: bool) -> Option<Check> {
    let folders: Vec<String> = ebpf::pinned().iter().map(|path| path.display().to_string()).collect();
    if folders.is_empty() {
        return None;
    }
    let detail = format!("pinned by the agent with state folder {}", folders.join(" and "));
    Some(if agent {
        check("pins", Health::Ok, detail, None)
    } else {
        let fix = "they wait for that agent to start again; `grace unpin --state-dir DIR` takes them away";
        check("pins", Health::Degraded, format!("probes run without an agent: {detail}"), Some(fix))
    })
}

fn lockdown() -> Check {
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) => {
            let now =
                text.split('[').nth(1).and_then(|r| r.split(']').next()).unwrap_or("unknown").to_owned();
            if now == "confidentiality" {
                let fix = "this level hides kernel memory from probes: lockdown=integrity on the kernel's command line";
                check("lockdown", Health::Degraded, now, Some(fix))
            } else {
                check("lockdown", Health::Ok, now, None)
            }
        }
        Err(_) => check("lockdown", Health::Off, "securityfs is not mounted, or this kernel has none", None),
    }
}

fn fanotify() -> Check {
    match Fanotify::open() {
        Ok(_) => check("fanotify", Health::Ok, "reports file handles, names and processes", None),
        Err(err) => {
            let fix = "root and a kernel since 5.9: without, inotify notices changes but not who made them";
            check("fanotify", Health::Degraded, err.to_string(), Some(fix))
        }
    }
}

fn pidfd() -> Check {
    match crate::sources::processes::pidfd_of(std::process::id()) {
        Ok(_) => check("pidfd", Health::Ok, "processes are watched and signalled without pid races", None),
        Err(err) => check("pidfd", Health::Degraded, err.to_string(), Some("a kernel since 5.3")),
    }
}

fn cgroup() -> Check {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let at = mounts.lines().find_map(|l| {
        let mut fields = l.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then(|| at.to_owned())
    });
    match at {
        Some(at) => {
            let controllers =
                fs::read_to_string(Path::new(&at).join("cgroup.controllers")).unwrap_or_default();
            let controllers = controllers.trim();
            let with = if controllers.is_empty() { "no controllers" } else { controllers };
            check("cgroup v2", Health::Ok, format!("on {at}, with {with}"), None)
        }
        None => check(
            "cgroup v2",
            Health::Unsupported,
            "not mounted",
            Some("writers are named without their cgroup's path"),
        ),
    }
}

fn pressure() -> Check {
    match fs::read_to_string("/proc/pressure/memory") {
        Ok(_) => check("PSI", Health::Ok, "/proc/pressure", None),
        Err(err) => {
            check("PSI", Health::Unsupported, err.to_string(), Some("psi=1 on the kernel's command line"))
        }
    }
}

fn nvml() -> Check {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = folders.iter().map(|f| Path::new(f).join("libnvidia-ml.so.1")).find(|p| p.exists());
    match found {
        Some(path) => check("NVML", Health::Ok, path.display().to_string(), None),
        None => check("NVML", Health::Off, "no libnvidia-ml.so.1: no NVIDIA driver on this host", None),
    }
}

fn socket_mode(socket: &Path) -> Check {
    match fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let fix = "name another one with --socket, or remove that file";
            check("socket", Health::Degraded, format!("{} is not a socket", socket.display()), Some(fix))
        }
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            let detail = format!("{} has mode {:04o}", socket.display(), meta.mode() & 0o7777);
            check(
                "socket",
                Health::Degraded,
                detail,
                Some("chmod 0600: others can order repairs (the agent refuses them by uid)"),
            )
        }
        Ok(meta) => {
            let detail =
                format!("{}, mode {:04o}, uid {}", socket.display(), meta.mode() & 0o7777, meta.uid());
            check("socket", Health::Ok, detail, None)
        }
        Err(err) => check("socket", Health::Off, format!("{}: {err}", socket.display()), None),
    }
}
