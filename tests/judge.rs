//! Judgement of time series through the front door, with real processes: a server that is stuck and one that is only
//! busy, what triggers learned over a restart of the agent, an agent that stood still.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Agent, program, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server with one thread: each connection costs it a third of a second of work. Where a file `hang` lies beside, its
/// loop hangs.
const SERVER: &str = r#"
import os, socket, sys, time
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(4)
with open(sys.argv[1] + ".part", "w") as out:
    out.write("%s:%d" % listener.getsockname())
os.rename(sys.argv[1] + ".part", sys.argv[1])
listener.settimeout(0.2)
while True:
    if os.path.exists(sys.argv[1] + ".hang"):
        while True:
            pass
    try:
        client, _ = listener.accept()
    except socket.timeout:
        continue
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        os.getppid()
    client.close()
"#;

/// An agent with that server as process `server`, which is preferred by the scheduler: other tests run beside it.
fn serving(settings: &str) -> (Agent, PathBuf) {
    let folder = tempfile::tempdir().unwrap().keep();
    fs::write(folder.join("server.py"), SERVER).unwrap();
    let python = program("python3");
    let (server, at) = (shown(&folder, "server.py"), shown(&folder, "at"));
    // Whoever may not do that does without.
    let script = format!("renice -n -10 -p $$ >/dev/null 2>&1; exec {python} {server} {at}");
    let words = ["/bin/sh", "-c", &script];
    let agent =
        Agent::start(&format!("[[process]]\nname = \"server\"\ncommand = {words:?}\nburst = 3\n{settings}"));
    wait_until("it listens", || folder.join("at").exists());
    (agent, folder)
}

fn shown(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

fn server(agent: &Agent) -> Value {
    agent.json(&["status", "--json"])["processes"][0].clone()
}

fn by(trigger: &'static str) -> impl Fn(&Value) -> bool {
    move |f| f["trigger"] == trigger
}

/// Eight clients at a time until `stop`: four wait, and one more, as soon as one is served.
fn crowd(address: &str, stop: &AtomicBool) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let Ok(mut client) =
                        TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(1))
                    else {
                        continue;
                    };
                    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let _ = std::io::Read::read(&mut client, &mut [0]);
                }
            });
        }
    });
}

#[test]
fn a_busy_server_is_saturated_and_nobody_restarts_it() {
    let (agent, folder) = serving("[triggers.health_gap]\nspinning = \"6s\"\n");
    let address = fs::read_to_string(folder.join("at")).unwrap();
    let pid = server(&agent)["pid"].clone();
    let stop = AtomicBool::new(false);
    let firing = std::thread::scope(|scope| {
        scope.spawn(|| crowd(&address, &stop));
        // Also where the wait fails, so that the clients end.
        let found = std::panic::catch_unwind(|| {
            agent.wait_firing("its accept queue is full", |f| by("latency_spike")(f) && f["state"] == "holds")
        });
        stop.store(true, Ordering::Release);
        found.unwrap()
    });
    assert_eq!(
        firing["summary"].as_str().unwrap(),
        format!("connections to {address} wait to be accepted"),
        "{firing:#}"
    );
    assert_eq!(firing["remedy"][0]["action"], "file_task", "{firing:#}");
    // That nobody comes any more must be seen.
    let firing = agent.wait_firing("it is empty", |f| by("latency_spike")(f) && f["state"] == "cleared");
    assert!(firing["cleared_by"].as_str().unwrap().contains("below the threshold"), "{firing:#}");
    let others: Vec<Value> = agent.firings().into_iter().filter(by("health_gap")).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert_eq!((&server(&agent)["pid"], &server(&agent)["restarts"]), (&pid, &0.into()));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_stuck_server_is_restarted_and_that_is_no_crash() {
    let (agent, folder) = serving("[triggers.health_gap]\nspinning = \"6s\"\n");
    let status = agent.json(&["status", "--json"]);
    let counts = status["probes"]
        .as_array()
        .unwrap()
        .iter()
        .any(|p| p["name"] == "syscall_count" && p["state"] == "ok");
    if !counts {
        harness::skip(
            "a_stuck_server_is_restarted_and_that_is_no_crash",
            "no probe counts system calls here",
        );
        return;
    }
    let pid = server(&agent)["pid"].clone();
    fs::write(folder.join("at.hang"), "").unwrap();
    let mut found = None;
    // Asked rarely: the server shall have the processor.
    wait_until("it hangs", || {
        std::thread::sleep(Duration::from_secs(1));
        found = agent.firings().into_iter().find(by("health_gap"));
        found.is_some()
    });
    // The next one shall not hang.
    fs::remove_file(folder.join("at.hang")).unwrap();
    let firing = agent.wait_firing("it is restarted", |f| by("health_gap")(f) && f["state"] == "cleared");
    assert_eq!(
        firing["summary"],
        format!("pid {pid} makes no progress: it runs without making any system call"),
        "{firing:#}"
    );
    assert_eq!(firing["remedy"][0]["action"], "restart_process", "{firing:#}");
    assert_eq!(firing["remedy"][0]["state"], "done", "{firing:#}");
    assert!(firing["cleared_by"].as_str().unwrap().starts_with("runs again as pid "), "{firing:#}");
    let now = server(&agent);
    assert_ne!(now["pid"], pid);
    assert_eq!(now["restarts"], 1, "{now:#}");
    // Its end was Grace's doing: no firing of its own, nor the same again.
    assert_eq!((agent.firings().len(), &firing["count"]), (1, &1.into()), "{:#?}", agent.firings());
    fs::remove_dir_all(folder).unwrap();
}

/// Waits until the probes have been tested: an agent that ends while it starts the program for that leaves a child for a
/// moment, which holds its state folder.
fn tested(agent: &Agent) {
    wait_until("its probes are tested", || {
        let status = agent.json(&["status", "--json"]);
        let probes = status["probes"].as_array().unwrap();
        probes
            .iter()
            .filter(|p| p["name"] == "exec")
            .all(|p| p["state"] != "ok" || p["self_test"].is_string())
    });
}

#[test]
fn what_was_learned_is_kept_and_what_is_damaged_is_said_and_ignored() {
    let mut agent = Agent::start("");
    tested(&agent);
    agent.stop();
    let database = || rusqlite::Connection::open(agent.path("state").join("state.db")).unwrap();
    let kept: Vec<String> = database()
        .prepare("SELECT trigger FROM learned ORDER BY trigger")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(kept, ["error_feed", "health_gap", "latency_spike"]);
    let set = |trigger: &str, state: &[u8]| {
        let sql = "INSERT INTO learned (trigger, at, state) VALUES (?1, '', ?2)
                   ON CONFLICT (trigger) DO UPDATE SET state = excluded.state";
        database().execute(sql, rusqlite::params![trigger, state]).unwrap();
    };
    set("health_gap", br#"{"version": 2, "of": "another agent"}"#);
    set("latency_spike", b"\xff\xfe not JSON");
    set("no_such_trigger", b"{}");
    agent.run();
    let firing = agent.wait_firing("it is said", by("health_gap"));
    assert_eq!(firing["summary"], "what health_gap had learned cannot be used: it learns anew", "{firing:#}");
    assert_eq!(firing["state"], "happened", "{firing:#}");
    let log = agent.log();
    for told in ["what latency_spike learned is damaged", "what `no_such_trigger` learned"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    // The next one finds a whole state again.
    tested(&agent);
    agent.stop();
    agent.run();
    assert_eq!(agent.firings().len(), 1, "said once: {:#?}", agent.firings());
}

#[test]
fn an_agent_that_stood_still_says_so_and_misses_nothing() {
    let process =
        "[[process]]\nname = \"sleeper\"\ncommand = [\"/bin/sleep\", \"1000\"]\nheartbeat = \"1s\"\n";
    // Its heartbeats are expected five seconds after its start; it never sends one.
    let agent = Agent::start(&format!("{process}[triggers.health_gap]\nstartup = \"8s\"\n"));
    let pid = Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    let recorded = || {
        let events = fs::read_dir(agent.path("state").join("events")).unwrap();
        events.map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect::<String>()
    };
    wait_until("it is expected", || recorded().contains("process_expects"));
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_secs(16));
    kill_process(pid, Signal::CONT).unwrap();
    wait_until("it says so", || recorded().contains("\"event\":\"resumed\""));
    let text = recorded();
    let at = |what: &str| text.lines().position(|l| l.contains(what)).unwrap();
    let fired = text.lines().take(at("\"event\":\"resumed\"")).any(|l| l.contains("restart_process"));
    assert!(!fired, "nothing was missing while nobody could hear it: {text}");
    let firing = agent.wait_firing("and it still is missing", by("health_gap"));
    assert!(firing["summary"].as_str().unwrap().ends_with("its heartbeats are missing"), "{firing:#}");
    assert_eq!(firing["remedy"][0]["action"], "restart_process", "{firing:#}");
}
