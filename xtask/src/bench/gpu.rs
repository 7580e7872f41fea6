//! GPUs: what looking at them takes, and how soon a fault in the kernel's messages is a firing. Of a stand-in for NVIDIA's
//! library: what a real driver takes for its answers is not in it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Bench;
use super::agent::Agent;
use super::guard::{Scratch, wait_until};
use super::report::{Row, Table};
use super::stats::Samples;
use crate::process;

/// GPUs, and processes on all of them together.
const GPUS: usize = 8;
const PROCESSES: usize = 50;
/// A look is there within this time, or is not coming.
const PATIENCE: Duration = Duration::from_secs(20);

const LOOK: &str = "a look at 8 GPUs with 50 processes, on its thread (ms)";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("gpu")?;
    let scenario = scratch.path().join("scenario.json");
    fs::write(&scenario, says().to_string()).with_context(|| scenario.display().to_string())?;
    let grace = with_scenario(&bench.grace, &scratch, &scenario)?;
    let config = format!("[gpu]\nlibrary = \"{}\"\ninjected = true\n", library()?.display());
    let agent = Agent::start(&grace, &scratch.dir("grace")?, &config)?;
    let view = || -> Result<Value> { Ok(serde_json::from_slice(&agent.ask(&["gpu", "--json"])?)?) };
    wait_until("GPUs are seen", PATIENCE, || {
        view().is_ok_and(|v| v["gpus"].as_array().is_some_and(|g| g.len() == GPUS))
    })?;
    let mut table = Table::new("gpu", "GPUs are watched, of a stand-in for NVIDIA's library", "value");
    let (mut wall, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..bench.rounds(60, 15) {
        std::thread::sleep(Duration::from_secs(1));
        let view = view()?;
        wall.push(view["look_us"].as_f64().context("no look_us")? / 1e3);
        cpu.push(view["look_cpu_us"].as_f64().context("no look_cpu_us")? / 1e3);
    }
    table.row(Row::new(LOOK, wall));
    // One look a second: a millisecond is a thousandth of a core.
    table.row(Row::new("processor time of it (ms; a tenth of a % of a core each, at 1 s)", cpu).beside(LOOK));
    match faults(&grace, &scratch, bench.rounds(50, 10)) {
        Ok(samples) => table.row(
            Row::new("Xid in the kernel's messages until a client has the firing (ms)", samples)
                .target("< 10"),
        ),
        Err(err) => table.row(Row::missing(
            "Xid in the kernel's messages until a client has the firing (ms)",
            format!("{err:#}"),
        )),
    }
    table.note("A firing is durable before a client has it. The lines are written into /dev/kmsg.");
    Ok(table)
}

/// How long each fault takes.
fn faults(grace: &Path, scratch: &Scratch, rounds: u32) -> Result<Samples> {
    let mut follow = process::program(grace);
    follow
        .arg("--socket")
        .arg(scratch.path().join("grace/grace.sock"))
        .args(["firings", "--follow", "--json"]);
    let mut follow =
        follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot follow firings")?;
    let mut lines = BufReader::new(follow.stdout.take().context("no output")?).lines();
    // It has subscribed when it says nothing more of what was before; there is no firing yet.
    std::thread::sleep(Duration::from_secs(1));
    let mut samples = Samples::default();
    for round in 0..rounds {
        // Each of another GPU: a new firing.
        let pci = format!("f00d:{:02x}:{:02x}", round / 32, round % 32);
        let began = Instant::now();
        fs::write(
            "/dev/kmsg",
            format!("<4>NVRM: Xid (PCI:{pci}): 74, pid='<unknown>', name=<unknown>, a benchmark\n"),
        )
        .context("/dev/kmsg")?;
        loop {
            let line = lines.next().context("the agent ended")??;
            let took = began.elapsed();
            let firing: Value = serde_json::from_str(&line)?;
            if firing["subject"]["name"].as_str().is_some_and(|name| name.starts_with(&pci)) {
                samples.push(took.as_secs_f64() * 1e3);
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // It would wait for more.
    drop(follow.kill());
    drop(follow.wait());
    Ok(samples)
}

/// Eight that work, with processes spread over them.
fn says() -> Value {
    let gpu = |index: usize| {
        let processes: Vec<Value> = (0..PROCESSES)
            .filter(|n| n % GPUS == index)
            .map(|n| json!({ "pid": 4_000_000 + n, "memory": 1_u64 << 30, "sm": 5 }))
            .collect();
        json!({
            "uuid": format!("GPU-{index}"), "name": "NVIDIA H100 80GB HBM3", "pci": format!("00000000:{:02x}:00.0", index + 1),
            "memory_total": 80_u64 << 30, "memory_used": 20_u64 << 30, "utilization": 60, "memory_utilization": 20,
            "power_mw": 400_000, "power_limit_mw": 700_000, "temperature": 60,
            "temperature_thresholds": { "shutdown": 92, "slowdown": 89 }, "clocks_event_reasons": 0,
            "clocks": { "sm": 1980, "memory": 2619 }, "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16,
            "pcie_width_max": 16, "pcie_replays": 0,
            "ecc": { "mode": true, "corrected_volatile": 0, "uncorrected_volatile": 0, "corrected_aggregate": 0,
                     "uncorrected_aggregate": 0 },
            "remapped": { "correctable": 0, "uncorrectable": 0, "pending": false, "failed": false },
            "nvlinks": vec![json!({ "active": true }); 18], "fabric": { "state": 3, "status": "SUCCESS" },
            "fields": { "230": 0 }, "mig": { "mode": false }, "persistence": true, "event_types": 8, "processes": processes,
        })
    };
    json!({ "driver": "580.95.05", "gpus": (0..GPUS).map(gpu).collect::<Vec<Value>>() })
}

/// A program that is `grace` with the scenario in its environment.
fn with_scenario(grace: &Path, scratch: &Scratch, scenario: &Path) -> Result<PathBuf> {
    let path = scratch.path().join("grace-with-gpus");
    let script = format!(
        "#!/bin/sh\nFAKE_NVML_SCENARIO={} exec {} \"$@\"\n",
        process::quote(&scenario.to_string_lossy()),
        process::quote(&grace.to_string_lossy())
    );
    fs::write(&path, script).with_context(|| path.display().to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Builds the stand-in.
fn library() -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "fake-nvml", "--message-format=json-render-diagnostics"]);
    let said = process::text(&mut cargo)?;
    let built =
        said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
            files.map(PathBuf::from).find(|path| path.ends_with("libfake_nvml.so"))
        });
    match built {
        Some(path) => Ok(path),
        None => bail!("cargo built no libfake_nvml.so"),
    }
}
