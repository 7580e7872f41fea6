//! What applications say of themselves, through the front door: real datagrams, real requests, the command line, and
//! the events that the engine judged, read from the recording.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::{Agent, GRACE, skip, wait_until};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

fn sender(agent: &Agent) -> UnixDatagram {
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(agent.path("grace.dgram")).unwrap();
    sender
}

/// The events that the engine has judged so far.
fn events(agent: &Agent) -> Vec<Value> {
    let mut files: Vec<_> =
        fs::read_dir(agent.path("state/events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits for an event that has all of these keys and values.
#[track_caller]
fn wait_event(agent: &Agent, wanted: &Value) -> Value {
    let fits =
        |event: &Value| wanted.as_object().unwrap().iter().all(|(key, value)| event.get(key) == Some(value));
    let mut found = None;
    wait_until(&wanted.to_string(), || {
        found = events(agent).into_iter().find(fits);
        found.is_some()
    });
    found.unwrap()
}

fn records(agent: &Agent) -> Value {
    agent.json(&["status", "--json"])["records"].clone()
}

/// How many heartbeats the engine was told of.
fn beats(agent: &Agent) -> u64 {
    let events = events(agent);
    events.iter().filter(|e| e["event"] == "heartbeat").map(|e| e["count"].as_u64().unwrap()).sum()
}

fn python() -> Option<&'static str> {
    ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().find(|path| Path::new(path).exists()).or_else(
        || {
            // Where it was installed for one user only.
            let out =
                Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
            Some(Box::leak(String::from_utf8(out.stdout).ok()?.trim().to_owned().into_boxed_str()))
        },
    )
}

#[test]
fn every_way_of_saying_it_reaches_the_engine() {
    let agent = Agent::start("");
    let app = sender(&agent);
    app.send(b"queue.message_bus:1500|g\nlatency./api/chat:850.5|ms\nheartbeat.coding_agent:1|c\n").unwrap();
    app.send(b"accuracy.grace_reasoning:0.85|g|#env:prod\nsteps:7|c|@0.5").unwrap();
    app.send(br#"[{"kind":"heartbeat","name":"a:b"},{"kind":"error","error":"E1","trace":"t"}]"#).unwrap();
    wait_event(
        &agent,
        &json!({"event": "queue_depth", "name": "message_bus", "depth": 1500.0, "max": 1500.0}),
    );
    let latency = wait_event(&agent, &json!({"event": "route_latency", "route": "/api/chat"}));
    assert_eq!(latency["took_ms"][0][1], 1, "{latency}");
    wait_event(&agent, &json!({"event": "heartbeat", "name": "coding_agent", "count": 1}));
    wait_event(&agent, &json!({"event": "accuracy", "model": "grace_reasoning", "value": 0.85}));
    wait_event(&agent, &json!({"event": "metric", "name": "steps", "value": 14.0, "count": 1}));
    wait_event(&agent, &json!({"event": "heartbeat", "name": "a:b"}));
    let uid = format!("uid {}", rustix::process::geteuid().as_raw());
    wait_event(&agent, &json!({"event": "error_reported", "kind": "E1", "trace": "t", "source": uid}));

    // The same from a script.
    for args in [
        &["heartbeat", "nightly"][..],
        &["queue", "mail", "12"],
        &["latency", "/slow", "99.5"],
        &["accuracy", "m", "0.5"],
        &["error", "ImportError"],
    ] {
        assert_eq!(agent.ok(args), "taken in\n");
    }
    wait_event(&agent, &json!({"event": "heartbeat", "name": "nightly"}));
    wait_event(&agent, &json!({"event": "queue_depth", "name": "mail", "depth": 12.0}));
    wait_event(&agent, &json!({"event": "route_latency", "route": "/slow"}));
    wait_event(&agent, &json!({"event": "accuracy", "model": "m", "value": 0.5}));
    wait_event(&agent, &json!({"event": "error_reported", "kind": "ImportError", "trace": null}));
    let trace = agent.file("trace", "Traceback\n  File \"x.py\"\nValueError: \u{1b}[31mred");
    let mut child = Command::new(GRACE)
        .arg("--socket")
        .arg(agent.socket())
        .args(["error", "ValueError", "--json", "--trace", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(&trace).unwrap()).unwrap();
    let answer: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer, json!({"accepted": 1, "refused": []}));
    wait_event(
        &agent,
        &json!({"event": "error_reported", "kind": "ValueError", "trace": fs::read_to_string(trace).unwrap()}),
    );

    let records = records(&agent);
    assert_eq!((&records["records"], &records["datagrams"]), (&json!(13), &json!(3)), "{records}");
    assert_eq!(records["names"]["heartbeat"], 3);
    assert_eq!(records["refused"], json!({}));
    let page = agent.ok(&["status"]);
    assert!(page.contains("13 taken in") && page.contains("grace.dgram"), "{page}");
    // The recording with them replays.
    let recording = fs::read_dir(agent.path("state/events")).unwrap().next().unwrap().unwrap().path();
    agent.ok(&["replay", recording.to_str().unwrap()]);
}

#[test]
fn what_is_wrong_is_counted_by_reason_and_costs_the_rest_nothing() {
    let agent = Agent::start("");
    let app = sender(&agent);
    app.send(b"heartbeat.a:1|c\nnonsense\nx:nan|g\nx:inf|g\nqueue.q:1e300|g\nlatency.r:-1|ms\nx:1|?\nheartbeat.b:1|c").unwrap();
    app.send(b"users:7|s\n_e{1,1}:a|b\nx:1|c|@7\n:1|g").unwrap();
    app.send(b"{\"kind\":\"heartbeat\"").unwrap();
    app.send(br#"[{"kind":"queue","name":"a","depth":-1},{"kind":"heartbeat","name":"c"},7]"#).unwrap();
    let mut long = b"heartbeat.d:1|c\n".to_vec();
    long.resize(20_000, b'x');
    app.send(&long).unwrap();
    app.send(b"").unwrap();
    for name in ["a", "b", "c", "d"] {
        wait_event(&agent, &json!({"event": "heartbeat", "name": name}));
    }
    let wanted = json!({"line": 1, "value": 4, "type": 1, "set": 1, "event": 1, "rate": 1, "name": 1, "json": 3, "too_long": 1});
    wait_until("all is counted", || records(&agent)["refused"] == wanted);
    // What is not taken by design is no loss; the rest is one, of which the engine knows.
    assert_eq!(agent.json(&["status", "--json"])["lost"]["records"], 12);
    wait_event(&agent, &json!({"event": "lost", "class": "records", "total": 12}));
    assert!(agent.ok(&["status"]).contains("4 value"), "{}", agent.ok(&["status"]));
    assert!(events(&agent).iter().all(|e| e["event"] != "queue_depth" && e["event"] != "metric"));
}

#[test]
fn a_bad_record_among_good_ones_is_answered_with_its_place() {
    let agent = Agent::start("");
    let body = r#"[{"kind":"heartbeat","name":"a"},{"kind":"pulse"},{"kind":"queue","name":"q","depth":-1},
        {"kind":"metric","name":"n","value":2}]"#;
    let answer = post(&agent, body);
    assert_eq!(answer["accepted"], 2);
    let places: Vec<&Value> = answer["refused"].as_array().unwrap().iter().map(|r| &r["index"]).collect();
    assert_eq!(places, [1, 2]);
    assert!(answer["refused"][1]["reason"].as_str().unwrap().contains("depth"), "{answer}");
    wait_event(&agent, &json!({"event": "metric", "name": "n", "value": 2.0}));
    assert_eq!(records(&agent)["refused"], json!({"json": 2}));

    for (args, code) in [
        (&["queue", "q", "-1"][..], 2),
        (&["queue", "q", "NaN"], 2),
        (&["queue", "q", "deep"], 2),
        (&["heartbeat", ""], 2),
        (&["latency", "/r"], 2),
        (&["error", "E", "--trace", "/nonexistent"], 2),
    ] {
        let out = agent.grace(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
    }
}

/// The answer to `POST /v1/records`.
fn post(agent: &Agent, body: &str) -> Value {
    use std::io::Read;
    let mut stream = std::os::unix::net::UnixStream::connect(agent.socket()).unwrap();
    let head = format!(
        "POST /v1/records HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn a_flood_from_many_is_told_whole() {
    let agent = Agent::start("");
    const EACH: u64 = 20_000;
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let app = sender(&agent);
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    // It blocks where the queue is full; nothing is dropped.
                    app.send(format!("heartbeat.app-{n}:1|c").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    wait_until("all are told", || beats(&agent) == 4 * EACH);
    assert_eq!(records(&agent)["datagrams"], 4 * EACH);
    // At most one a second for each, though it were so many.
    let mut last = BTreeMap::new();
    for event in events(&agent).iter().filter(|e| e["event"] == "heartbeat") {
        let at = event["at"].as_u64().unwrap();
        if let Some(before) = last.insert(event["name"].to_string(), at) {
            assert!(at - before >= 1_000_000_000, "{} ns apart", at - before);
        }
    }
}

#[test]
fn a_million_names_are_bounded_and_said_so() {
    let agent = Agent::start("[record]\nenabled = false\n");
    let app = sender(&agent);
    let before = agent.json(&["status", "--json"])["cost"]["rss_bytes"].as_u64().unwrap();
    for chunk in 0..5_000u32 {
        let lines: String = (0..200).map(|i| format!("latency.{:x}:{i}|ms\n", chunk * 200 + i)).collect();
        app.send(lines.as_bytes()).unwrap();
    }
    wait_until("all are read", || records(&agent)["datagrams"] == 5_000);
    let now = records(&agent);
    assert_eq!(now["names"]["latency"], 10_000, "{now}");
    assert_eq!(now["refused"], json!({"names": 990_000}));
    let status = agent.json(&["status", "--json"]);
    assert_eq!(status["lost"]["records"], 990_000);
    let grown = status["cost"]["rss_bytes"].as_u64().unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    // Other kinds have places of their own, and there is nothing wrong with the socket.
    agent.ok(&["heartbeat", "other"]);
    let out = agent.grace(&["latency", "one too many", "1"]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("10,000"), "{out:?}");
}

#[test]
fn no_bytes_bring_it_down() {
    let agent = Agent::start("");
    let app = sender(&agent);
    let piece = prop_oneof![
        any::<Vec<u8>>(),
        "[A-Z_]{1,9}=[ -~]{0,9}\n?".prop_map(String::into_bytes),
        "(heartbeat|queue|latency|accuracy)\\.[ -~]{0,9}:[-+0-9.e]{0,9}\\|[a-z]{0,2}[|@#0-9.]{0,5}\n?"
            .prop_map(String::into_bytes),
        "[\\[{]\"kind\":\"(error|metric)\",?[ -~]{0,20}[\\]}]?".prop_map(String::into_bytes),
    ];
    let mut runner = TestRunner::new(ProptestConfig::with_cases(3000));
    runner
        .run(&proptest::collection::vec(piece, 0..6), |pieces| {
            app.send(&pieces.concat()).unwrap();
            Ok(())
        })
        .unwrap();
    agent.ok(&["heartbeat", "still_here"]);
    wait_event(&agent, &json!({"event": "heartbeat", "name": "still_here"}));
    let status = agent.json(&["status", "--json"]);
    let health = status["sources"].as_array().unwrap().iter().find(|s| s["name"] == "records").unwrap();
    assert_eq!(health["state"], "ok", "{health}");
    // Nothing of it is what a terminal obeys.
    let page = agent.ok(&["status"]);
    assert!(!page.contains(|c: char| c.is_control() && c != '\n'), "{page:?}");
}

#[test]
fn services_notify_as_they_do_systemd() {
    let Some(python) = python() else {
        return skip("services_notify_as_they_do_systemd", "no python3");
    };
    // It notifies itself, and so does a child of its child; a descriptor is passed along, as sd_notify's barrier does.
    let script = "import os, socket, subprocess, sys, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET'])\n\
        if len(sys.argv) < 3: subprocess.run([sys.executable, sys.argv[0], *sys.argv[1:], 'deeper'])\n\
        while True:\n\
        \x20   socket.send_fds(s, [b'STATUS=up\\nWATCHDOG=1'], [0]); time.sleep(0.05)\n\
        \x20   if len(sys.argv) == 3: break\n\
        while True: time.sleep(0.05); s.send(b'WATCHDOG=1')\n";
    let mut agent = Agent::start("");
    let file = agent.file("service.py", script);
    agent.stop();
    let words = json!([python, file]);
    let deeper = json!([python, file, "x"]);
    fs::write(
        agent.path("grace.toml"),
        format!("[[process]]\nname = \"service\"\ncommand = {words}\n[[process]]\nname = \"parent\"\ncommand = {deeper}\n"),
    )
    .unwrap();
    agent.run_as_configured();
    wait_event(&agent, &json!({"event": "heartbeat", "name": "service"}));
    wait_event(&agent, &json!({"event": "heartbeat", "name": "parent"}));
    // A stranger's is nobody's.
    sender(&agent).send(b"WATCHDOG=1").unwrap();
    wait_until("it is refused", || records(&agent)["refused"]["sender"].as_u64() >= Some(1));
    // No descriptor has stayed with the agent.
    let held = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    assert!(held < 100, "{held} descriptors");
}

#[test]
fn there_is_one_receiver_for_a_folder() {
    let mut first = Agent::start("");
    let socket = first.path("grace.dgram");
    let state = tempfile::tempdir().unwrap();
    let mut second = Command::new(GRACE)
        .args(["run", "--quiet", "--state-dir"])
        .arg(state.path())
        .arg("--socket")
        .arg(first.path("other.sock"))
        .spawn()
        .unwrap();
    let ask = || -> Output {
        Command::new(GRACE)
            .arg("--socket")
            .arg(first.path("other.sock"))
            .args(["status", "--json"])
            .output()
            .unwrap()
    };
    wait_until("the second one answers", || ask().status.success());
    let status: Value = serde_json::from_slice(&ask().stdout).unwrap();
    let why =
        status["degraded"].as_array().unwrap().iter().find(|w| w.to_string().contains("source records"));
    assert!(why.unwrap().to_string().contains("another program receives"), "{status}");
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(socket.exists(), "the first one's is left alone");
    sender(&first).send(b"heartbeat.a:1|c").unwrap();
    wait_event(&first, &json!({"event": "heartbeat", "name": "a"}));

    // What a crash leaves behind is replaced; an end leaves nothing.
    first.crash();
    assert!(socket.exists());
    first.run();
    sender(&first).send(b"heartbeat.b:1|c").unwrap();
    wait_event(&first, &json!({"event": "heartbeat", "name": "b"}));
    first.stop();
    assert!(!socket.exists());
}

#[test]
fn only_those_who_may_send_can() {
    let name = "only_those_who_may_send_can";
    let Some(python) = python() else { return skip(name, "no python3") };
    if !harness::root() {
        return skip(name, "needs root to be somebody else");
    }
    let run = |uid: &str, program: &str, args: &[&str]| {
        Command::new(harness::program("setpriv"))
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "--"])
            .arg(program)
            .args(args)
            .output()
            .unwrap()
    };
    if !run("65534", python, &["-c", ""]).status.success() {
        return skip(name, "another user cannot run python3 here");
    }
    let mut agent = Agent::start("");
    fs::set_permissions(agent.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = agent.path("grace.dgram");
    let send = |uid: &str| {
        let script = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'heartbeat.x:1|c', sys.argv[1])";
        run(uid, python, &["-c", script, socket.to_str().unwrap()])
    };
    let mode = || fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o660);
    let refused = send("65534");
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("Permission"),
        "{refused:?}"
    );
    assert_eq!(records(&agent)["datagrams"], 0);

    // A group, from a reload on.
    reload(&agent, "[records]\nmode = \"0620\"\ngroup = \"65534\"\n");
    wait_until("it is open to the group", || mode() == 0o620);
    assert!(send("65534").status.success());
    assert!(!send("1").status.success());
    wait_event(&agent, &json!({"event": "heartbeat", "name": "x"}));

    // A declared process's user, whatever the group.
    reload(&agent, "[[process]]\nname = \"p\"\ncommand = [\"/bin/sleep\", \"60\"]\nuser = \"daemon\"\n");
    wait_until("it is open to the process's user", || send("1").status.success());
    assert!(!send("65534").status.success());

    // A group that there is not: open to nobody else, and said.
    reload(&agent, "[records]\ngroup = \"no-such-group\"\n");
    wait_until("it is said", || agent.ok(&["status", "--json"]).contains("no group `no-such-group`"));
    assert!(!send("65534").status.success() && !send("1").status.success());
    agent.stop();
}

fn reload(agent: &Agent, config: &str) {
    fs::write(agent.path("grace.toml"), config).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}
