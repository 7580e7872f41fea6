//! The Python client against a real agent, without one, and with one that hangs: the seed's examples word for word, what
//! they set off, and that nothing of it reaches the application.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use harness::{Agent, DEADLINE, skip, wait_until};
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// python3 with the client on its path and the agent that `socket` names; none: there is no python3.
fn python(socket: &Path) -> Option<Command> {
    let found = Command::new("python3").arg("--version").output();
    if !found.is_ok_and(|out| out.status.success()) {
        return None;
    }
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", repository().join("clients/python/src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("GRACE_SOCKET", socket);
    Some(command)
}

/// Runs the seed's examples in `folder`; what each of them printed.
#[track_caller]
fn examples(socket: &Path, folder: &Path) -> Option<Vec<Value>> {
    let tests = repository().join("tests/clients");
    let mut command = python(socket)?;
    let out = command
        .current_dir(folder)
        .arg(tests.join("run_examples.py"))
        .arg(tests.join("seed_examples.md"))
        .output()
        .unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(lines(&out))
}

fn lines(out: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const NO_PYTHON: &str = "no python3: `cargo xtask setup` gets it";

/// A file as the seed's examples name it.
fn manifest(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder.join("config")).unwrap();
    let file = folder.join("config/model_manifest.yaml");
    fs::write(&file, "model: grace_reasoning\n").unwrap();
    file
}

#[test]
fn the_seeds_examples_run_against_an_agent() {
    let agent = Agent::start("");
    let folder = agent.path("etc");
    let file = manifest(&folder);
    let Some(ran) = examples(&agent.socket(), &folder) else {
        return skip("the_seeds_examples_run_against_an_agent", NO_PYTHON);
    };
    assert_eq!(ran.len(), 15);
    let stats = &ran.last().unwrap()["stats"];
    // Two heartbeats, two depths, a latency, an accuracy, an error.
    assert_eq!((&stats["sent"], &stats["dropped"]), (&json!(7), &json!(0)), "{stats}");
    assert_eq!(stats["unanswered"], 0, "{stats}");
    wait_until("all have arrived", || agent.json(&["status", "--json"])["records"]["records"] == 7);
    let records = agent.json(&["status", "--json"])["records"].clone();
    assert_eq!(records["refused"], json!({}));
    let names = &records["names"];
    assert_eq!(
        (&names["heartbeat"], &names["queue"], &names["latency"], &names["accuracy"]),
        (&json!(1), &json!(2), &json!(1), &json!(1))
    );
    // The file is Grace's now.
    let owned = agent.lines(&["snapshots", "--json"]);
    assert_eq!(owned[0]["path"], json!(file));
    fs::write(&file, "model: another\n").unwrap();
    wait_until("it is put back", || fs::read(&file).is_ok_and(|text| text == b"model: grace_reasoning\n"));
}

#[test]
fn a_check_says_what_fires_and_what_was_done_about_it() {
    let name = "a_check_says_what_fires_and_what_was_done_about_it";
    // It only observes: so the drift stays, and fires.
    let agent = Agent::start_as("", "observe", &[]);
    let folder = agent.path("etc");
    let file = manifest(&folder);
    let script = "import asyncio, json, sys\n\
        from grace_client.triggers import *\n\
        assert config_drift_trigger.snapshot_config(sys.argv[1])\n\
        assert config_drift_trigger.check_sync() is None\n\
        open(sys.argv[1], 'w').write('other')\n\
        print(json.dumps(asyncio.run(config_drift_trigger.check())))\n\
        while not (all := run_all_triggers_sync()): pass\n\
        print(json.dumps(all[0]))\n\
        assert asyncio.run(run_all_triggers()) == all\n\
        assert health_signal_trigger.check_sync() is None\n";
    let Some(mut command) = python(&agent.socket()) else { return skip(name, NO_PYTHON) };
    let out = command.args(["-c", script]).arg(&file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let [check, all] = lines(&out).try_into().unwrap();
    for result in [&check, &all] {
        assert_eq!((&result["trigger"], &result["target"]), (&json!("config_drift"), &json!("self_healing")));
        assert_eq!(result["issues"][0]["subject"], json!(file), "{result}");
    }
    assert_eq!(check["issues"][0]["restored"], false);
    assert_eq!(all["action"], "restore_file");

    // Where it repairs, a check brings it back.
    let agent = Agent::start("[triggers.config_drift]\nsweep = \"1h\"\n");
    let file = manifest(&agent.path("etc"));
    let script = "import sys\n\
        from grace_client.triggers import config_drift_trigger as drift\n\
        assert drift.snapshot_config(sys.argv[1])\n\
        before = open(sys.argv[1]).read()\n\
        open(sys.argv[1], 'w').write('other')\n\
        result = drift.check_sync()\n\
        assert result is None or result['issues'][0]['restored'], result\n\
        assert open(sys.argv[1]).read() == before\n";
    let out = python(&agent.socket()).unwrap().args(["-c", script]).arg(&file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn without_an_agent_the_seeds_examples_run_too() {
    let dir = tempfile::tempdir().unwrap();
    manifest(dir.path());
    let Some(ran) = examples(&dir.path().join("none.sock"), dir.path()) else {
        return skip("without_an_agent_the_seeds_examples_run_too", NO_PYTHON);
    };
    let stats = &ran.last().unwrap()["stats"];
    assert_eq!((ran.len(), &stats["sent"], &stats["answered"]), (15, &json!(0), &json!(0)));
    assert_eq!(stats["dropped_by"], json!({"no_agent": 7}));
    assert!(ran.iter().all(|one| one["said"] == ""), "{ran:?}");
}

#[test]
fn an_agent_that_hangs_does_not_hang_the_application() {
    let agent = Agent::start("");
    manifest(&agent.path("etc"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let began = Instant::now();
    let ran = examples(&agent.socket(), &agent.path("etc"));
    let took = began.elapsed();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let Some(ran) = ran else {
        return skip("an_agent_that_hangs_does_not_hang_the_application", NO_PYTHON);
    };
    let stats = &ran.last().unwrap()["stats"];
    assert_eq!(
        (&stats["sent"], &stats["dropped"], &stats["answered"]),
        (&json!(7), &json!(0), &json!(0)),
        "{stats}"
    );
    assert!(took < DEADLINE, "it waited");
    // What was sent meanwhile waits in the queue.
    wait_until("it arrives", || agent.json(&["status", "--json"])["records"]["records"] == 7);
}

#[test]
fn the_clients_own_tests_pass() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut command) = python(&dir.path().join("none")) else {
        return skip("the_clients_own_tests_pass", NO_PYTHON);
    };
    let tests = repository().join("clients/python/tests");
    let out = command.args(["-m", "unittest", "discover", "-s"]).arg(tests).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !said.contains("Ran 0"), "{said}");
}
