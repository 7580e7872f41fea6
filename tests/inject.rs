//! `grace inject`: real faults, by an agent of its own or by one that runs; whatever happens, nothing is left behind.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::Agent;
use serde_json::{Value, json};

/// `grace inject`, with its scratch below `tmp`.
fn inject(socket: &Path, tmp: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(harness::GRACE);
    command.arg("--socket").arg(socket).arg("inject").args(args).env("TMPDIR", tmp).stdin(Stdio::null());
    command
}

fn steps(out: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&out.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[track_caller]
fn told(out: &Output, names: &[&str]) {
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let steps = steps(out);
    let said: Vec<&str> = steps.iter().map(|s| s["step"].as_str().unwrap()).collect();
    assert_eq!(said, names, "{out:?}");
    // Each fault begins a clock of its own.
    for story in steps.chunk_by(|_, next| next["step"] != "fault") {
        let times: Vec<i64> =
            story.iter().map(|s| s["at_us"].as_i64().unwrap()).filter(|t| *t >= 0).collect();
        assert!(times.is_sorted(), "{out:?}");
    }
}

#[track_caller]
fn nothing_left(tmp: &Path) {
    let left: Vec<_> = fs::read_dir(tmp).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(tmp.to_str().unwrap()), "still running: {line:?}");
    }
}

const DRIFT: [&str; 7] = ["agent", "snapshot", "fault", "firing", "repaired", "cleared", "verified"];
const SPIKE: [&str; 8] = ["agent", "process", "fault", "firing", "filed", "mended", "cleared", "verified"];
const GAP: [&str; 12] = [
    "agent", "process", "fault", "firing", "repaired", "cleared", "verified", "fault", "firing", "repaired",
    "cleared", "verified",
];

#[test]
fn without_an_agent_it_brings_its_own_and_takes_it_along() {
    let tmp = tempfile::tempdir().unwrap();
    for (fault, names) in [("config_drift", &DRIFT[..]), ("health_gap", &GAP), ("latency_spike", &SPIKE)] {
        let out = inject(Path::new("/nonexistent/s"), tmp.path(), &[fault, "--json"]).output().unwrap();
        told(&out, names);
        nothing_left(tmp.path());
    }
}

#[test]
fn an_agent_that_repairs_is_used_and_left_as_it_was() {
    let agent = Agent::start("");
    let tmp = tempfile::tempdir().unwrap();
    for (fault, names) in [("config_drift", &DRIFT[..]), ("health_gap", &GAP), ("latency_spike", &SPIKE)] {
        let out = inject(&agent.socket(), tmp.path(), &[fault, "--json"]).output().unwrap();
        told(&out, names);
        let first = steps(&out)[0]["text"].as_str().unwrap().to_owned();
        assert!(first.contains(&format!("pid {} ", agent.pid())), "{first}");
        let status = agent.json(&["status", "--json"]);
        assert_eq!((&status["files"], &status["processes"]), (&json!(0), &json!([])), "{status:#}");
        nothing_left(tmp.path());
    }
    // The drift, the end and the standstill of a process, the crowd.
    assert_eq!(agent.firings().len(), 4);
}

#[test]
fn errors_that_keep_coming_back_become_a_task() {
    let agent = Agent::start("");
    for socket in [agent.socket(), agent.path("none")] {
        let tmp = tempfile::tempdir().unwrap();
        let out = inject(&socket, tmp.path(), &["error_feed", "--json"]).output().unwrap();
        told(&out, &["agent", "process", "fault", "firing", "filed", "cleared", "verified"]);
        let steps = steps(&out);
        let text = |i: usize| steps[i]["text"].as_str().unwrap().to_owned();
        assert!(text(4).contains("file_task") && text(5).contains("did not come back for 2s"), "{out:?}");
        nothing_left(tmp.path());
    }
    assert_eq!(agent.json(&["status", "--json"])["processes"], json!([]));
}

#[test]
fn an_agent_that_observes_is_left_alone() {
    let agent = Agent::start_as("", "observe", &[]);
    let tmp = tempfile::tempdir().unwrap();
    let out = inject(&agent.socket(), tmp.path(), &["config_drift", "--json"]).output().unwrap();
    told(&out, &DRIFT);
    assert!(agent.firings().is_empty());
    nothing_left(tmp.path());
}

#[test]
fn one_that_is_ended_in_the_middle_clears_up_all_the_same() {
    let agent = Agent::start("");
    for socket in [agent.socket(), agent.path("none")] {
        let tmp = tempfile::tempdir().unwrap();
        let mut child =
            inject(&socket, tmp.path(), &["health_gap", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The two seconds until the process counts as well again.
        assert!(lines.any(|l| l.unwrap().contains("\"repaired\"")));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert!(rest.is_empty(), "{rest:?}");
        assert_eq!(child.wait().unwrap().code(), Some(1));
        nothing_left(tmp.path());
    }
    assert_eq!(agent.json(&["status", "--json"])["processes"], json!([]));
}

#[test]
fn a_reader_that_leaves_costs_the_agent_nothing() {
    let agent = Agent::start("");
    let tmp = tempfile::tempdir().unwrap();
    for fault in ["config_drift", "health_gap"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = inject(&agent.socket(), tmp.path(), &[fault]).stdout(writer).output().unwrap();
        assert!(out.stderr.is_empty(), "{out:?}");
        let status = agent.json(&["status", "--json"]);
        assert_eq!((&status["files"], &status["processes"]), (&json!(0), &json!([])), "{status:#}");
        nothing_left(tmp.path());
    }
}

#[test]
fn faults_about_code_bring_their_agent_and_end_with_a_task_and_cleared() {
    let tmp = tempfile::tempdir().unwrap();
    for (fault, before) in [
        ("telemetry_drift", "learned"),
        ("dependency_regression", "snapshot"),
        ("code_diff", "good"),
        ("predicted_failure", "rated"),
    ] {
        let out = inject(Path::new("/nonexistent/s"), tmp.path(), &[fault, "--json"]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{fault}: {out:?}");
        let steps = steps(&out);
        let said = steps.iter().map(|s| s["step"].as_str().unwrap()).filter(|s| *s != "evidence");
        let said: Vec<&str> = said.collect();
        assert_eq!(said, ["agent", before, "fault", "firing", "task", "undone", "cleared"], "{out:?}");
        nothing_left(tmp.path());
    }
}

#[test]
fn the_list_says_what_can_be_made() {
    let out = inject(Path::new("/nonexistent/s"), Path::new("/tmp"), &["--list"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    for name in
        ["config_drift", "health_gap", "latency_spike", "error_feed", "model_integrity", "resource_pressure"]
    {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn damaged_weights_are_put_back() {
    let tmp = tempfile::tempdir().unwrap();
    let out =
        inject(Path::new("/nonexistent/s"), tmp.path(), &["model_integrity", "--json"]).output().unwrap();
    told(&out, &DRIFT);
    nothing_left(tmp.path());
}
