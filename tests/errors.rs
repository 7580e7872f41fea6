//! `error_feed` through the front door: real programs that fail, real logs that are rotated, and what the agent says.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use harness::{Agent, wait_until};
use serde_json::Value;

/// A worker in Python: for each line `NAME N` that is put into its folder it fails in the function `NAME`, `N` times, each
/// time with other values, and goes on.
const WORKER: &str = r#"
import logging, os, sys, time

logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
orders = sys.argv[1]


def parse(text):
    return int(text)


def lookup(table, key):
    return table[key]


seen = 0
while True:
    lines = open(orders).read().splitlines() if os.path.exists(orders) else []
    for line in lines[seen:]:
        name, times = line.split()
        for i in range(int(times)):
            try:
                if name == "parse":
                    parse(f"row {i} of {os.getpid()}")
                else:
                    lookup({}, f"user-{i}")
            except Exception:
                logging.exception("job %d failed", i)
    seen = len(lines)
    time.sleep(0.02)
"#;

/// What others on this host do wrong is not looked at.
const ALONE: &str = "[triggers.error_feed]\nkmsg = false\njournald = false\n";

fn config(agent_table: &str) -> String {
    format!(
        "[[process]]\nname = \"worker\"\ncommand = [\"/usr/bin/python3\", \"-u\", \"$DIR/etc/worker.py\", \
         \"$DIR/etc/orders\"]\n{agent_table}{ALONE}"
    )
}

/// An agent whose worker lies ready before it is started.
fn start(table: &str) -> Agent {
    let agent = Agent::start(ALONE);
    agent.file("worker.py", WORKER);
    drop(agent.file("orders", ""));
    let config = config(table).replace("$DIR", &agent.dir.path().to_string_lossy());
    fs::write(agent.path("grace.toml"), config).unwrap();
    reload(&agent);
    wait_until("the worker runs", || agent.json(&["status", "--json"])["processes"][0]["pid"].is_u64());
    agent
}

fn reload(agent: &Agent) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

fn order(agent: &Agent, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(agent.path("etc").join("orders")).unwrap();
    writeln!(file, "{line}").unwrap();
}

fn errors(agent: &Agent) -> Vec<Value> {
    agent.firings().into_iter().filter(|f| f["trigger"] == "error_feed").collect()
}

/// Every `ErrorSeen` that was recorded, by kind, with its count.
fn recorded(agent: &Agent) -> Vec<(String, u64)> {
    let mut paths: Vec<_> =
        fs::read_dir(agent.path("state/events")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let lines: Vec<Value> = paths
        .iter()
        .flat_map(|p| fs::read_to_string(p).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|l| serde_json::from_str(&l).ok())
        .collect();
    lines
        .iter()
        .filter(|e| e["event"] == "error_seen")
        .map(|e| (e["kind"].as_str().unwrap().to_owned(), e["count"].as_u64().unwrap()))
        .collect()
}

fn total(agent: &Agent, kind: &str) -> u64 {
    recorded(agent).iter().filter(|(k, _)| k == kind).map(|(_, n)| n).sum()
}

#[test]
fn five_times_the_same_is_one_firing_and_one_task_four_times_none() {
    let agent = start("");
    order(&agent, "parse 4");
    wait_until("four are counted", || total(&agent, "ValueError") == 4);
    assert!(errors(&agent).is_empty());

    order(&agent, "parse 1");
    let firing =
        agent.wait_firing("five", |f| f["trigger"] == "error_feed" && f["remedy"][0]["state"] == "done");
    let summary = firing["summary"].as_str().unwrap();
    assert!(summary.contains("ValueError") && summary.contains("parse (worker.py)"), "{summary}");
    let evidence = firing["evidence"].to_string();
    assert!(evidence.contains("untrusted") && evidence.contains("invalid literal"), "{evidence}");
    let tasks = agent.lines(&["tasks", "list", "--json"]);
    assert_eq!(tasks.len(), 1, "{tasks:#?}");
    assert!(!tasks[0]["title"].as_str().unwrap().contains("ValueError"), "no hostile text in a title");

    // Another fault is another firing; more of the first one is none.
    order(&agent, "lookup 5");
    wait_until("the second fires", || errors(&agent).len() == 2);
    order(&agent, "parse 7");
    wait_until("all are counted", || total(&agent, "ValueError") == 12 && total(&agent, "KeyError") == 5);
    assert_eq!(errors(&agent).len(), 2);
    assert_eq!(agent.lines(&["tasks", "list", "--json"]).len(), 2);
}

#[test]
fn it_clears_when_it_stays_away_while_the_process_runs() {
    let agent = start("error_count = 2\nerror_window = \"1s\"\n");
    order(&agent, "parse 5");
    let firing = agent.wait_firing("cleared", |f| f["trigger"] == "error_feed" && f["state"] == "cleared");
    let how = firing["cleared_by"].as_str().unwrap();
    assert!(how.contains("did not come back for 1s while its process ran"), "{how}");
}

/// A log file of `lines` tracebacks.
fn traceback(i: usize) -> String {
    format!(
        "2026-11-24 20:00:{:02} ERROR request {i} failed\nTraceback (most recent call last):\n  File \"/srv/app.py\", line {}, in serve\n    handle(request)\nRuntimeError: shard {i} is gone\n",
        i % 60,
        10 + i
    )
}

fn followed(table: &str) -> (Agent, std::path::PathBuf) {
    let agent = Agent::start(ALONE);
    let log = agent.path("etc").join("app.log");
    let config = format!(
        "[[process]]\nname = \"app\"\ncommand = [\"/bin/sleep\", \"1000\"]\nlogs = [\"{}\"]\n{table}{ALONE}",
        log.display()
    );
    fs::write(agent.path("grace.toml"), config).unwrap();
    (agent, log)
}

fn append(log: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn runs(agent: &Agent) {
    wait_until("it runs", || agent.json(&["status", "--json"])["processes"][0]["pid"].is_u64());
}

#[test]
fn rotation_under_writing_loses_and_doubles_nothing() {
    let (agent, log) = followed("");
    reload(&agent);
    runs(&agent);
    let mut written = 0;
    // A file that appears later, then five rotations as logrotate makes them, the writer going on in the old file
    // for a moment, as it does until it is told.
    let mut file = fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
    for round in 0..5 {
        for _ in 0..40 {
            let text = traceback(written);
            // Torn in two: lines come in parts.
            let (left, right) = text.split_at(text.len() / 3);
            file.write_all(left.as_bytes()).unwrap();
            file.write_all(right.as_bytes()).unwrap();
            written += 1;
        }
        fs::rename(&log, log.with_extension(format!("log.{round}"))).unwrap();
        let next = fs::OpenOptions::new().append(true).create_new(true).open(&log).unwrap();
        file.write_all(traceback(written).as_bytes()).unwrap();
        written += 1;
        wait_until(&format!("{written} of round {round} are counted"), || {
            total(&agent, "RuntimeError") as usize >= written - 1
        });
        file = next;
    }
    file.write_all(traceback(written).as_bytes()).unwrap();
    written += 1;
    wait_until("all are counted", || total(&agent, "RuntimeError") as usize == written);
    assert_eq!(errors(&agent).len(), 1);
    let lost = agent.json(&["status", "--json"])["lost"]["logs"].as_u64();
    assert_eq!(lost, Some(0));
}

#[test]
fn a_truncated_log_is_read_from_its_begin() {
    let (agent, log) = followed("");
    reload(&agent);
    runs(&agent);
    append(&log, &traceback(1).repeat(2));
    wait_until("both are counted", || total(&agent, "RuntimeError") == 2);
    // copytruncate; the new content is longer than the old one.
    let inode = fs::metadata(&log).unwrap().ino();
    fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    append(&log, &(2..8).map(traceback).collect::<String>());
    assert_eq!(fs::metadata(&log).unwrap().ino(), inode);
    wait_until("all are counted", || total(&agent, "RuntimeError") == 8);
}

#[test]
fn a_restarted_agent_goes_on_where_the_last_one_ended() {
    let (mut agent, log) = followed("");
    let config = fs::read_to_string(agent.path("grace.toml")).unwrap();
    // What was there before Grace is not news.
    append(&log, &traceback(0).repeat(7));
    reload(&agent);
    runs(&agent);
    append(&log, &traceback(1).repeat(3));
    wait_until("three are counted", || total(&agent, "RuntimeError") == 3);
    agent.stop();
    // While no agent runs: written, rotated, written again.
    append(&log, &traceback(2).repeat(4));
    fs::rename(&log, log.with_extension("log.1")).unwrap();
    append(&log, &traceback(3).repeat(5));
    agent.config(&config);
    agent.run();
    wait_until("the others are counted", || total(&agent, "RuntimeError") == 12);
    // Killed, not stopped: at most the last second is told again, and here nothing was written in it.
    wait_until("the place is kept", || {
        let size = fs::metadata(&log).unwrap().len();
        fs::read_to_string(agent.path("state/log-places.json"))
            .unwrap()
            .contains(&format!("\"offset\":{size}"))
    });
    agent.crash();
    agent.run();
    append(&log, &traceback(4));
    wait_until("one more", || total(&agent, "RuntimeError") >= 13);
    assert_eq!(total(&agent, "RuntimeError"), 13);
}

#[test]
fn garbage_links_and_fifos_do_no_harm() {
    let (agent, log) = followed("");
    let folder = log.parent().unwrap().to_owned();
    std::os::unix::fs::symlink("/etc/shadow", folder.join("link.log")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join("fifo.log"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let config = fs::read_to_string(agent.path("grace.toml")).unwrap().replace(
        "logs = [",
        &format!("logs = [\"{0}/link.log\", \"{0}/fifo.log\", \"/dev/zero\", ", folder.display()),
    );
    fs::write(agent.path("grace.toml"), config).unwrap();
    reload(&agent);
    runs(&agent);
    let mut garbage: Vec<u8> =
        (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    garbage.extend(vec![b'x'; 12 << 20]);
    garbage.push(b'\n');
    fs::OpenOptions::new().append(true).create(true).open(&log).unwrap().write_all(&garbage).unwrap();
    append(&log, &traceback(1));
    wait_until("the trace behind it is seen", || total(&agent, "RuntimeError") == 1);
    let status = agent.json(&["status", "--json"]);
    let source = status["sources"].as_array().unwrap().iter().find(|s| s["name"] == "logs").unwrap();
    let detail = source["detail"].as_str().unwrap();
    assert_eq!(source["state"], "degraded");
    for name in ["link.log", "fifo.log", "/dev/zero"] {
        assert!(detail.contains(name), "{detail}");
    }
    let lost = status["lost"]["logs"].as_u64().unwrap();
    assert!(lost > 11 << 20, "the long line was cut: {lost}");
}

#[test]
fn a_flood_is_skipped_and_counted() {
    let (agent, log) = followed("");
    reload(&agent);
    runs(&agent);
    // More than is read of one file before it is skipped, told at once.
    let line = "all is well, all is well, all is well, all is well, all is well, all is well\n";
    append(&log, &line.repeat((64 << 20) / line.len()));
    append(&log, &traceback(1).repeat(5));
    agent.wait_firing("the errors behind it", |f| f["trigger"] == "error_feed");
    wait_until("what was skipped is said", || {
        agent.json(&["status", "--json"])["lost"]["logs"].as_u64().unwrap() > 1 << 20
    });
}

#[test]
#[cfg(feature = "root-tests")]
fn the_kernels_messages_are_followed() {
    if !harness::root() {
        return harness::skip("the_kernels_messages_are_followed", "needs root");
    }
    let agent = Agent::start("");
    let source = |name: &str| {
        let status = agent.json(&["status", "--json"]);
        status["sources"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap()["state"].clone()
    };
    if source("kmsg") != "ok" {
        return harness::skip("the_kernels_messages_are_followed", "/dev/kmsg cannot be read here");
    }
    let tag = format!("gracetest{}", std::process::id());
    for i in 0..5_u64 {
        let base = 0x5500_0000_0000 + i * 0x1_0000_0000;
        let text = format!(
            "{tag}[{}]: segfault at 0 ip {:016x} sp 00007ffe00001000 error 4 in {tag}[{base:x}+4000]\n",
            1000 + i,
            base + 0x1234
        );
        fs::write("/dev/kmsg", text).unwrap();
    }
    let firing = agent.wait_firing("five segfaults", |f| {
        f["trigger"] == "error_feed" && f["summary"].to_string().contains(&tag)
    });
    assert!(firing["summary"].as_str().unwrap().starts_with("segfault"), "{firing:#}");
}

/// A journal of systemd's own, in a mount namespace of the agent's, which it ends with.
#[cfg(feature = "root-tests")]
const WITH_A_JOURNAL: &str = "mkdir -p /run/systemd /run/log && mount -t tmpfs none /run/systemd && \
    mount -t tmpfs none /run/log && mkdir -p /run/systemd/journal /run/log/journal && \
    { [ ! -d /var/log/journal ] || mount -t tmpfs none /var/log/journal; } && \
    { setpriv --pdeathsig KILL /lib/systemd/systemd-journald >/dev/null 2>&1 & } && \
    until [ -S /run/systemd/journal/stdout ]; do sleep 0.05; done && exec \"$@\"";

#[test]
#[cfg(feature = "root-tests")]
fn what_units_write_to_the_journal_is_followed() {
    let name = "what_units_write_to_the_journal_is_followed";
    if !harness::root() {
        return harness::skip(name, "needs root");
    }
    if !Path::new("/lib/systemd/systemd-journald").exists() || !Path::new("/etc/machine-id").exists() {
        return harness::skip(name, "no systemd-journald on this host");
    }
    let unshare = harness::program("unshare");
    let wrapper = [&unshare[..], "-m", "sh", "-c", WITH_A_JOURNAL, "sh"];
    let config = "[triggers.error_feed]\nkmsg = false\nwindow = \"10s\"\n";
    let agent = Agent::start_as(config, "repair", &wrapper);
    let source = || {
        let status = agent.json(&["status", "--json"]);
        status["sources"].as_array().unwrap().iter().find(|s| s["name"] == "journald").unwrap().clone()
    };
    assert_eq!(source()["state"], "ok", "{}", source());
    let pid = agent.pid().to_string();
    // What was written before it began to read is not read: one line is, by the end of the wait.
    let write = |unit: &str, text: &str| {
        let mut child = std::process::Command::new(harness::program("nsenter"))
            .args(["-m", "-t", &pid, "systemd-cat", "-t", unit, "-p", "err"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    wait_until("it reads", || {
        write("first", "panic: it reads\n\ngoroutine 1 [running]:\nmain.main()\n\t/a.go:1 +0x1\n");
        total(&agent, "panic") > 0
    });
    for i in 0..5 {
        write("trainer", &traceback(i));
    }
    let firing = agent.wait_firing("five tracebacks", |f| {
        f["trigger"] == "error_feed"
            && f["evidence"].to_string().contains("journald")
            && f["summary"].to_string().contains("RuntimeError")
    });
    assert!(firing["evidence"].to_string().contains("trainer"), "{firing:#}");

    // The reader dies: said, and what it does not read is not taken for silence.
    let reader = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| fs::read_to_string(e.path().join("comm")).is_ok_and(|c| c.trim() == "journalctl"))
        .find(|e| {
            fs::read_to_string(e.path().join("status"))
                .is_ok_and(|s| s.lines().any(|l| l == format!("PPid:\t{pid}")))
        });
    let reader = reader.expect("journalctl").file_name().to_str().unwrap().parse::<i32>().unwrap();
    let reader = rustix::process::Pid::from_raw(reader).unwrap();
    rustix::process::kill_process(reader, rustix::process::Signal::KILL).unwrap();
    wait_until("it is said", || source()["state"] == "degraded");
    let state = || errors(&agent).iter().find(|f| f["id"] == firing["id"]).unwrap()["state"].clone();
    let mut held = Vec::new();
    wait_until("the reader is started again", || {
        let now = (source()["state"] == "ok", state());
        held.push(now.1);
        now.0
    });
    // The window is ten seconds, the reader is away for thirty.
    assert!(held.iter().all(|state| state == "holds"), "no recovery where nobody reads: {held:?}");
    wait_until("the silence counts", || state() == "cleared");
}
