//! GPUs, without one: an agent that loads a stand-in for NVIDIA's library, which says what a test tells it to.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use harness::{Agent, DEADLINE, program, root, skip, wait_until};
use serde_json::{Value, json};

/// The library, where Cargo puts what these tests depend on.
fn library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().join("libfake_nvml.so");
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// What the driver says, in a file.
struct Scenario {
    dir: tempfile::TempDir,
    says: Value,
}

impl Scenario {
    fn new(gpus: Vec<Value>) -> Self {
        let dir = tempfile::Builder::new().prefix("grace-test-gpu-").tempdir().unwrap();
        let scenario = Self { dir, says: json!({ "driver": "580.95.05", "gpus": gpus }) };
        scenario.write();
        scenario
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("scenario.json")
    }

    /// All of it at once, as far as the agent can tell.
    fn write(&self) {
        let temp = self.dir.path().join("new");
        fs::write(&temp, self.says.to_string()).unwrap();
        fs::rename(temp, self.path()).unwrap();
    }

    fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.says);
        self.write();
    }

    /// The driver tells of a fault.
    fn xid(&mut self, id: u64, gpu: u64, code: u64) {
        self.change(|says| {
            if !says["events"].is_array() {
                says["events"] = json!([]);
            }
            let events = says["events"].as_array_mut().unwrap();
            events.push(json!({ "id": id, "gpu": gpu, "type": 8, "data": code }));
        });
    }

    /// An agent whose driver this is.
    fn agent(&self, config: &str) -> Agent {
        self.agent_with(config, &library())
    }

    fn agent_with(&self, config: &str, library: &Path) -> Agent {
        let config = format!(
            "[gpu]\nlibrary = \"{}\"\nevery = \"50ms\"\npatience = \"1s\"\nsustained = \"500ms\"\n{config}",
            library.display()
        );
        Agent::start_as(&config, "repair", &["env", &format!("FAKE_NVML_SCENARIO={}", self.path().display())])
    }
}

/// A GPU that is well.
fn healthy(index: u64) -> Value {
    json!({
        "uuid": format!("GPU-00000000-0000-0000-0000-{index:012}"),
        "name": "NVIDIA H100 80GB HBM3",
        "pci": format!("00000000:{:02x}:00.0", index + 1),
        "memory_total": 80_u64 << 30, "memory_used": 8_u64 << 30,
        "utilization": 40, "memory_utilization": 5,
        "power_mw": 300_000, "power_limit_mw": 700_000,
        "temperature": 50, "temperature_thresholds": { "shutdown": 92, "slowdown": 89 },
        "clocks_event_reasons": 0, "clocks": { "sm": 1980, "memory": 2619 },
        "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16, "pcie_replays": 0,
        "ecc": {
            "mode": true, "corrected_volatile": 0, "uncorrected_volatile": 0,
            "corrected_aggregate": 3, "uncorrected_aggregate": 0,
        },
        "remapped": { "correctable": 0, "uncorrectable": 0, "pending": false, "failed": false },
        "retired_pending": false,
        "nvlinks": [{ "active": true }, { "active": true }],
        "fabric": { "state": 3, "status": "SUCCESS" },
        "fields": { "230": 0 },
        "mig": { "mode": false, "devices": [] },
        "persistence": true,
        "event_types": 8,
        "processes": [],
    })
}

fn source(agent: &Agent) -> (String, String) {
    let status = agent.json(&["status", "--json"]);
    let sources = status["sources"].as_array().unwrap();
    let gpu = sources.iter().find(|s| s["name"] == "gpu").unwrap();
    (gpu["state"].as_str().unwrap().to_owned(), gpu["detail"].as_str().unwrap().to_owned())
}

fn pid_of(agent: &Agent, name: &str) -> Option<u64> {
    let status = agent.json(&["status", "--json"]);
    let processes = status["processes"].as_array().unwrap().clone();
    processes.iter().find(|p| p["name"] == name)?["pid"].as_u64()
}

#[track_caller]
fn runs(agent: &Agent, name: &str) -> u64 {
    wait_until(name, || pid_of(agent, name).is_some());
    pid_of(agent, name).unwrap()
}

/// A declared process that does nothing.
fn sleeper(name: &str, importance: u8) -> String {
    format!(
        "[[process]]\nname = \"{name}\"\nimportance = {importance}\ncommand = [\"{}\", \"1000\"]\n",
        program("sleep")
    )
}

/// A firing about this of a GPU.
fn about(what: &str) -> impl Fn(&Value) -> bool + '_ {
    move |firing| firing["subject"]["kind"] == "gpu" && firing["subject"]["name"] == what
}

#[track_caller]
fn wait_state(agent: &Agent, id: &Value, state: &str) -> Value {
    agent.wait_firing(&format!("{id} {state}"), |f| f["id"] == *id && f["state"] == state)
}

#[test]
fn eight_and_seventy_two_gpus_are_seen_and_nothing_fires() {
    for count in [8_u64, 72] {
        let scenario = Scenario::new((0..count).map(healthy).collect());
        let agent = scenario.agent("");
        wait_until("all are seen", || source(&agent).0 == "ok");
        let detail = source(&agent).1;
        assert!(
            detail.starts_with(&format!("driver 580.95.05; {count} × NVIDIA H100 80GB HBM3")),
            "{detail}"
        );
        assert!(!agent.firings().iter().any(|f| f["subject"]["kind"] == "gpu"), "{:?}", agent.firings());
    }
}

#[test]
fn a_host_without_the_library_or_the_driver_says_so() {
    let scenario = Scenario::new(vec![healthy(0)]);
    let agent = scenario.agent_with("", Path::new("/nonexistent/libnvidia-ml.so.1"));
    wait_until("said", || source(&agent).1.contains("no NVIDIA driver on this host"));
    assert_eq!(source(&agent).0, "off");
    let mut scenario = scenario;
    scenario.change(|says| says["init"] = "DRIVER_NOT_LOADED".into());
    let agent = scenario.agent("");
    wait_until("said", || source(&agent).1.contains("does not answer"));
    assert_eq!(source(&agent).0, "off");
}

#[test]
fn what_an_old_driver_does_not_know_costs_that_reading_alone() {
    let mut scenario = Scenario::new(vec![healthy(0)]);
    let old = scenario.dir.path().join("libnvidia-ml.so.1");
    let lacks = [
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetFieldValues",
    ];
    fake_nvml::without_symbols(&library(), &old, &lacks).unwrap();
    let agent = scenario.agent_with("", &old);
    wait_until("seen", || source(&agent).0 == "ok");
    let detail = source(&agent).1;
    assert!(lacks.iter().all(|symbol| detail.contains(symbol)), "{detail}");
    // The throttle reasons by their old name, and everything else.
    scenario.change(|says| {
        says["gpus"][0]["clocks_event_reasons"] = 0x40.into();
        says["gpus"][0]["ecc"]["uncorrected_volatile"] = 2.into();
    });
    agent.wait_firing("throttled", about("0 throttle"));
    agent.wait_firing("errors of memory", about("0 ecc"));
}

#[test]
fn a_driver_that_hangs_is_said_to_and_the_agent_works_on_until_it_answers() {
    let mut scenario = Scenario::new(vec![healthy(0)]);
    let agent = scenario.agent("");
    wait_until("seen", || source(&agent).0 == "ok");
    scenario.change(|says| says["hang"] = json!(["nvmlDeviceGetMemoryInfo"]));
    let firing = agent.wait_firing("the driver hangs", about("driver"));
    assert_eq!(firing["trigger"], "resource_pressure", "{firing:#}");
    assert_eq!(source(&agent).0, "degraded");
    assert!(source(&agent).1.contains("has not answered for 1s"), "{:?}", source(&agent));
    scenario.change(|says| says["hang"] = json!([]));
    wait_state(&agent, &firing["id"], "cleared");
    wait_until("seen again", || source(&agent).0 == "ok");
}

#[test]
fn what_is_wrong_with_a_gpu_fires_and_clears_when_it_is_seen_to_be_right() {
    let mut scenario = Scenario::new(vec![healthy(0), healthy(1)]);
    let agent = scenario.agent("");
    wait_until("seen", || source(&agent).0 == "ok");
    let faults = [
        ("1 ecc", "/ecc/uncorrected_volatile", json!(1), json!(0)),
        ("1 remap pending", "/remapped/pending", json!(true), json!(false)),
        ("1 remap failed", "/remapped/failed", json!(true), json!(false)),
        ("1 temperature", "/temperature", json!(88), json!(60)),
        ("1 throttle", "/clocks_event_reasons", json!(0x48), json!(0x4)),
        ("1 nvlink", "/nvlinks/0/active", json!(false), json!(true)),
        ("1 fabric", "/fabric/status", json!("UNKNOWN"), json!("SUCCESS")),
        ("1 recovery", "/fields/230", json!(1), json!(0)),
        ("1 pcie", "/pcie_width", json!(8), json!(16)),
        ("1 lost", "/error", json!("GPU_IS_LOST"), Value::Null),
    ];
    for (name, at, bad, good) in faults {
        let set = |says: &mut Value, value: Value| {
            let gpu = &mut says["gpus"][1];
            match at {
                "/error" => gpu["error"] = value,
                at => *gpu.pointer_mut(at).unwrap() = value,
            }
        };
        scenario.change(|says| set(says, bad));
        let firing = agent.wait_firing(name, about(name));
        assert_eq!(firing["trigger"], "resource_pressure", "{firing:#}");
        scenario.change(|says| set(says, good));
        wait_state(&agent, &firing["id"], "cleared");
    }
    let of_the_other = |f: &Value| f["subject"]["name"].as_str().is_some_and(|n| n.starts_with("0 "));
    assert!(!agent.firings().iter().any(of_the_other), "{:?}", agent.firings());
}

#[test]
fn a_program_that_faults_is_restarted_and_nobody_else_is() {
    let mut scenario = Scenario::new(vec![healthy(0), healthy(1)]);
    let agent = scenario.agent(&(sleeper("trainer", 50) + &sleeper("server", 90)));
    let (trainer, server) = (runs(&agent, "trainer"), runs(&agent, "server"));
    scenario.change(|says| {
        says["gpus"][0]["processes"] = json!([{ "pid": server, "memory": 1 << 30, "sm": 20 }]);
        says["gpus"][1]["processes"] = json!([{ "pid": trainer, "memory": 2 << 30, "sm": 90 }]);
    });
    wait_until("seen", || agent.json(&["gpu", "--json"])["gpus"][1]["processes"][0]["process"] == "trainer");
    scenario.xid(1, 1, 31);
    let firing = agent.wait_firing("Xid 31", |f| about("1 xid 31")(f) && f["remedy"][0]["state"] == "done");
    assert_eq!(firing["remedy"][0]["action"], "restart_process", "{firing:#}");
    assert!(
        firing["summary"].as_str().unwrap().contains("memory page fault of a program of process trainer"),
        "{firing:#}"
    );
    wait_until("another one runs", || pid_of(&agent, "trainer").is_some_and(|pid| pid != trainer));
    assert_eq!(pid_of(&agent, "server"), Some(server));

    // One that calls for a reset restarts nobody: that is for a person, or a hook.
    scenario.xid(2, 0, 95);
    let firing = agent.wait_firing("Xid 95", about("0 xid 95"));
    assert!(firing["remedy"].as_array().unwrap().iter().all(|r| r["action"] == "file_task"), "{firing:#}");
    assert_eq!(pid_of(&agent, "server"), Some(server));
}

#[test]
fn a_fault_is_of_whoever_runs_in_its_instance_of_a_gpu_that_is_cut() {
    let mut scenario = Scenario::new(vec![healthy(0)]);
    let agent = scenario.agent(&(sleeper("left", 50) + &sleeper("right", 50)));
    let (left, right) = (runs(&agent, "left"), runs(&agent, "right"));
    scenario.change(|says| {
        let gpu = &mut says["gpus"][0];
        gpu["mig"] = json!({ "mode": true, "devices": [
            { "uuid": "MIG-1", "gpu_instance": 1, "compute_instance": 0 },
            { "uuid": "MIG-2", "gpu_instance": 2, "compute_instance": 0 },
        ] });
        gpu["processes"] = json!([
            { "pid": left, "memory": 1, "gpu_instance": 1, "compute_instance": 0 },
            { "pid": right, "memory": 1, "gpu_instance": 2, "compute_instance": 0 },
        ]);
    });
    wait_until("seen", || {
        let gpu = agent.json(&["gpu", "--json"])["gpus"][0].clone();
        gpu["mig_devices"].as_array().is_some_and(|m| m.len() == 2)
            && gpu["processes"][1]["process"] == "right"
    });
    scenario.change(|says| {
        says["events"] = json!([{ "id": 1, "gpu": 0, "type": 8, "data": 94, "gpu_instance": 2, "compute_instance": 0 }]);
    });
    agent.wait_firing("Xid 94", |f| about("0 xid 94")(f) && f["remedy"][0]["state"] == "done");
    wait_until("another one runs", || pid_of(&agent, "right").is_some_and(|pid| pid != right));
    assert_eq!(pid_of(&agent, "left"), Some(left));
}

#[test]
fn a_gpu_that_fills_up_gets_room_from_the_least_important_and_gives_it_back() {
    let mut scenario = Scenario::new(vec![healthy(0)]);
    let config = format!(
        "steps = [\"notify\", \"terminate\"]\ngive_back_after = \"100ms\"\n{}{}",
        sleeper("batch", 1),
        sleeper("server", 90)
    );
    let agent = scenario.agent(&config);
    let (batch, server) = (runs(&agent, "batch"), runs(&agent, "server"));
    let fill = |says: &mut Value, used: u64| {
        says["gpus"][0]["memory_used"] = (used << 20).into();
        says["gpus"][0]["processes"] = json!([
            { "pid": batch, "memory": 10_u64 << 30 }, { "pid": server, "memory": (used << 20) - (10_u64 << 30) },
        ]);
    };
    // It grows until it is full, or somebody made room.
    let mut used = 70 << 10;
    let began = Instant::now();
    while pid_of(&agent, "batch") == Some(batch) {
        used = (used + 256).min((80 << 10) - 16);
        scenario.change(|says| fill(says, used));
        std::thread::sleep(std::time::Duration::from_millis(60));
        assert!(began.elapsed() < DEADLINE, "no room: {:#?}", agent.firings());
    }
    let firing = agent.wait_firing("memory", about("0 memory"));
    assert!(firing["remedy"][0]["action"] == "shed_load", "{firing:#}");
    assert_eq!(pid_of(&agent, "server"), Some(server), "who is more important keeps what it has");
    // There is room now.
    scenario.change(|says| {
        says["gpus"][0]["memory_used"] = (60_u64 << 30).into();
        says["gpus"][0]["processes"] = json!([{ "pid": server, "memory": 60_u64 << 30 }]);
    });
    wait_state(&agent, &firing["id"], "cleared");
    wait_until("it runs again", || pid_of(&agent, "batch").is_some_and(|pid| pid != batch));
    assert_eq!(pid_of(&agent, "server"), Some(server));
}

#[test]
fn a_fault_in_the_kernels_messages_and_from_nvml_is_one() {
    if !root() || fs::OpenOptions::new().write(true).open("/dev/kmsg").is_err() {
        return skip("a_fault_in_the_kernels_messages_and_from_nvml_is_one", "needs root and /dev/kmsg");
    }
    let mut gpu = healthy(0);
    // No other driver of this host has one there.
    gpu["pci"] = "0000beef:01:00.0".into();
    let mut scenario = Scenario::new(vec![gpu]);
    let agent = scenario.agent(&format!("injected = true\n{}", sleeper("trainer", 50)));
    let trainer = runs(&agent, "trainer");
    wait_until("seen", || source(&agent).0 == "ok");
    // NVML says which GPU, and the kernel which process.
    scenario.xid(1, 0, 13);
    agent.wait_firing("Xid 13", about("0 xid 13"));
    let line = format!(
        "<4>NVRM: Xid (PCI:beef:01:00): 13, pid={trainer}, name=sleep, Graphics Exception: ESR 0x1\n"
    );
    fs::write("/dev/kmsg", line).unwrap();
    let firing = agent.wait_firing("whose", |f| about("0 xid 13")(f) && f["remedy"][0]["state"] == "done");
    assert!(firing["summary"].as_str().unwrap().contains("process trainer"), "{firing:#}");
    assert!(firing["measured"].as_str().unwrap().starts_with("Xid 13: "), "once: {firing:#}");
    assert_eq!(agent.firings().iter().filter(|f| about("0 xid 13")(f)).count(), 1);
}

#[test]
fn a_line_that_a_program_wrote_is_not_the_drivers() {
    if !root() || fs::OpenOptions::new().write(true).open("/dev/kmsg").is_err() {
        return skip("a_line_that_a_program_wrote_is_not_the_drivers", "needs root and /dev/kmsg");
    }
    let scenario = Scenario::new(vec![healthy(0)]);
    let agent = scenario.agent(&sleeper("trainer", 50));
    let trainer = runs(&agent, "trainer");
    wait_until("seen", || source(&agent).0 == "ok");
    let line = |code| format!("<4>NVRM: Xid (PCI:dead:01:00): {code}, pid={trainer}, name=sleep, forged\n");
    fs::write("/dev/kmsg", line(31)).unwrap();
    // What was written after it was read: an error of the kernel's, counted by error_feed.
    let mark = format!("<3>BUG: grace test mark {trainer}\n");
    fs::write("/dev/kmsg", mark).unwrap();
    let read = || {
        fs::read_dir(agent.path("state/events"))
            .unwrap()
            .flatten()
            .any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("grace test mark")))
    };
    wait_until("the mark is read", read);
    assert!(!agent.firings().iter().any(|f| f["subject"]["kind"] == "gpu"), "{:#?}", agent.firings());
    assert_eq!(pid_of(&agent, "trainer"), Some(trainer));
}
