//! What the agent gives up and what it leaves to others, and what it tells whoever supervises it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use harness::{Agent, wait_until};

/// A field of /proc/PID/status of a process or thread.
fn field(task: &str, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').trim().to_owned()
}

fn capabilities(task: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(task, set), 16).unwrap()
}

/// CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME (capability.h).
const NEVER: u64 = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 25;

#[test]
fn the_agent_keeps_what_it_uses_and_what_it_starts_has_all_that_it_had_before() {
    if !harness::root() {
        return harness::skip(
            "the_agent_keeps_what_it_uses_and_what_it_starts_has_all_that_it_had_before",
            "without root there is nothing to give up",
        );
    }
    let agent = Agent::start("[[process]]\nname = \"server\"\ncommand = [\"/bin/sleep\", \"1000\"]\n");
    let pid = agent.pid().to_string();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = format!("{pid}/task/{}", thread.unwrap().file_name().to_str().unwrap());
        assert_eq!(capabilities(&thread, "CapEff") & NEVER, 0, "{}", field(&thread, "Name"));
        assert_eq!(capabilities(&thread, "CapBnd"), capabilities("self", "CapBnd"));
    }
    wait_until("the server runs", || agent.json(&["status", "--json"])["processes"][0]["pid"].is_u64());
    let server = agent.json(&["status", "--json"])["processes"][0]["pid"].to_string();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(capabilities(&server, set), capabilities("self", set), "{set}");
    }
    assert_eq!(field(&server, "NoNewPrivs"), "0");
}

#[test]
fn a_process_that_parses_is_confined() {
    let mut worker = Command::new(harness::GRACE)
        .arg("syntax-worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = worker.id().to_string();
    wait_until("it is confined", || field(&pid, "Seccomp") == "2");
    assert_eq!(field(&pid, "NoNewPrivs"), "1");
    // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER.
    assert_eq!(capabilities(&pid, "CapPrm") & !(1 << 1 | 1 << 2 | 1 << 3), 0);
    worker.stdin.take().unwrap().flush().unwrap();
    assert!(worker.wait().unwrap().success());
}

#[test]
fn a_supervisor_hears_that_it_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(harness::DEADLINE)).unwrap();
    let env = harness::program("env");
    let named = format!("NOTIFY_SOCKET={}", path.display());
    let mut agent = Agent::start_as("", "repair", &[&env, &named, "WATCHDOG_USEC=3000000"]);
    let hear = || {
        let mut text = [0; 256];
        let n = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..n]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!((hear(), hear()), ("WATCHDOG=1".into(), "WATCHDOG=1".into()));
    agent.stop();
    let last = std::iter::repeat_with(hear).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}
