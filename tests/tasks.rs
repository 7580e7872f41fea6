//! Tasks through the front door: filed, claimed by one at a time, submitted, and verified only when the fault stays away.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::mcp::Mcp;
use harness::{Agent, root, skip, wait_until};
use serde_json::{Value, json};

/// A syntax error is a fault that a test can make and mend, and that one look finds again.
const CONFIG: &str = "[tasks]\nsoak = \"3s\"\nlease = \"1h\"\n[[repo]]\npath = \"$DIR/etc\"\n";
const BAD: &str = "def f(:\n    pass\n";
const GOOD: &str = "def f():\n    pass\n";

/// An agent with the files `names` that do not parse, each of which is a task.
fn agent_with(names: &[&str]) -> Agent {
    let agent = Agent::start("");
    for name in names {
        agent.file(name, BAD);
    }
    restart_with(agent, CONFIG, names.len())
}

fn restart_with(mut agent: Agent, config: &str, tasks: usize) -> Agent {
    agent.stop();
    agent.config(config);
    agent.run();
    wait_until("the tasks", || agent.lines(&["tasks", "list", "--json"]).len() == tasks);
    agent
}

fn task(agent: &Agent, id: &str) -> Value {
    agent.json(&["tasks", "show", id, "--json"])
}

fn claim(agent: &Agent, args: &[&str]) -> (String, String) {
    let claimed = agent.json(&[&["tasks", "claim", "--json"], args].concat());
    (claimed["task"]["id"].as_str().unwrap().to_owned(), claimed["token"].as_str().unwrap().to_owned())
}

/// Mends or breaks a file, and has the agent look.
fn write(agent: &Agent, path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    agent.grace(&["scan", "--quiet", path.to_str().unwrap()]);
}

fn code(agent: &Agent, args: &[&str]) -> Option<i32> {
    agent.grace(args).status.code()
}

#[test]
fn what_is_complete_is_verified_only_when_the_fault_stays_away() {
    let agent = agent_with(&["main.py"]);
    let file = agent.path("etc/main.py");
    let (id, token) = claim(&agent, &["--agent", "fixer"]);
    assert_eq!(task(&agent, &id)["claim"]["agent"], "fixer");
    assert_eq!(code(&agent, &["tasks", "claim", "--agent", "other"]), Some(1), "there is none to claim");
    assert_eq!(code(&agent, &["tasks", "claim", &id, "--agent", "other"]), Some(2), "it is claimed");

    // Only who holds the claim may go on with it.
    for stolen in ["", "0123456789abcdef0123456789abcdef"] {
        let args = ["tasks", "complete", &id, "--token", stolen, "--summary", "done"];
        assert_eq!(code(&agent, &args), Some(4), "{stolen:?}");
    }
    agent.ok(&["tasks", "heartbeat", &id, "--token", &token]);
    agent.file("patch.txt", "a \u{1b}[31mpatch\n");
    agent.ok(&[
        "tasks",
        "attach",
        &id,
        "--token",
        &token,
        "--name",
        "patch",
        agent.path("etc/patch.txt").to_str().unwrap(),
    ]);

    write(&agent, &file, GOOD);
    agent.ok(&["tasks", "complete", &id, "--token", &token, "--summary", "closed the parenthesis"]);
    assert_eq!(task(&agent, &id)["state"], "submitted");
    wait_until("it is verified", || task(&agent, &id)["state"] == "verified");
    let done = task(&agent, &id);
    let kinds: Vec<&str> =
        done["history"].as_array().unwrap().iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["task", "claimed", "attached", "submitted", "verified"], "{done:#}");
    for name in ["patch", "summary"] {
        let item = done["evidence"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap();
        assert_eq!((&item["trust"], &item["source"]), (&"untrusted".into(), &"agent fixer".into()));
    }
    assert!(!agent.ok(&["tasks", "show", &id]).contains('\u{1b}'));

    // The same fault again: the task is there again, with its history, and not a second one.
    write(&agent, &file, BAD);
    let mut agent = agent;
    agent.stop();
    agent.run();
    wait_until("it is reopened", || task(&agent, &id)["state"] == "reopened");
    assert_eq!(agent.lines(&["tasks", "list", "--json"]).len(), 1);
}

#[test]
fn a_wrong_fix_is_reopened() {
    let agent = agent_with(&["main.py"]);
    let agent = restart_with(agent, &CONFIG.replace("soak", "patience = \"2s\"\nsoak"), 1);
    let (id, token) = claim(&agent, &["--agent", "liar"]);
    agent.ok(&["tasks", "complete", &id, "--token", &token, "--summary", "done, really"]);
    wait_until("it is reopened", || task(&agent, &id)["state"] == "reopened");
    let history = task(&agent, &id)["history"].to_string();
    assert!(history.contains("still holds"), "{history}");
    // It is claimed anew, by another one, and the old token is worth nothing.
    let (_, new) = claim(&agent, &[&id, "--agent", "fixer"]);
    assert_eq!(code(&agent, &["tasks", "release", &id, "--token", &token, "--why", "w"]), Some(4));
    agent.ok(&["tasks", "release", &id, "--token", &new, "--why", "not mine"]);
    assert_eq!(task(&agent, &id)["state"], "open");
    agent.ok(&["tasks", "cancel", &id, "--why", "nobody needs this file"]);
    assert_eq!(code(&agent, &["tasks", "claim", &id, "--agent", "fixer"]), Some(2));
    agent.ok(&["tasks", "reopen", &id, "--why", "somebody does"]);
    assert_eq!(task(&agent, &id)["state"], "reopened");
}

#[test]
fn a_claim_ends_with_its_lease_and_outlives_the_agent() {
    let mut agent = agent_with(&["a.py", "b.py"]);
    let (dead, _) = claim(&agent, &["--agent", "dies", "--lease", "1s"]);
    let (kept, token) = claim(&agent, &["--agent", "lives"]);
    assert_ne!(dead, kept);
    wait_until("the lease is over", || task(&agent, &dead)["state"] == "open");
    assert!(task(&agent, &dead)["history"].to_string().contains("dies said nothing any more"));
    // A crash of the agent takes nobody's claim away.
    agent.crash();
    agent.run();
    assert_eq!(task(&agent, &kept)["claim"]["agent"], "lives");
    agent.ok(&["tasks", "heartbeat", &kept, "--token", &token]);
}

#[test]
fn many_who_claim_at_once_get_one_each() {
    let names: Vec<String> = (0..12).map(|n| format!("f{n}.py")).collect();
    let agent = agent_with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let claimed: Vec<Option<String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..16)
            .map(|n| {
                let agent = &agent;
                scope.spawn(move || {
                    let out = agent.grace(&["tasks", "claim", "--json", "--agent", &format!("w{n}")]);
                    let text = out.status.success().then(|| String::from_utf8(out.stdout).unwrap())?;
                    let claimed: Value = serde_json::from_str(&text).unwrap();
                    Some(claimed["task"]["id"].as_str().unwrap().to_owned())
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let got: Vec<&String> = claimed.iter().flatten().collect();
    let different: BTreeSet<&&String> = got.iter().collect();
    assert_eq!((got.len(), different.len()), (12, 12), "{claimed:?}");
}

#[test]
fn there_is_a_limit_for_a_day_and_it_is_said() {
    let agent = Agent::start("");
    for name in ["a.py", "b.py", "c.py"] {
        agent.file(name, BAD);
    }
    let config = CONFIG.replace("[tasks]\n", "[tasks]\nper_day = 2\n");
    let agent = restart_with(agent, &config, 2);
    let refused = agent.wait_firing("the third", |f| f["remedy"][0]["state"] == "failed");
    assert!(refused["remedy"][0]["why"].as_str().unwrap().contains("per_day"), "{refused:#}");
}

#[test]
fn a_coding_agent_takes_a_task_over_mcp_and_mends_it() {
    let agent = agent_with(&["main.py"]);
    let mut mcp = Mcp::start(&agent);
    let tools = mcp.ask("tools/list", &json!({}));
    let names: BTreeSet<&str> =
        tools["result"]["tools"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let wanted =
        ["attach", "claim_task", "complete_task", "heartbeat", "list_tasks", "release_task", "show_task"];
    assert_eq!(names, wanted.into());

    let (listed, _) = mcp.call("list_tasks", &json!({}));
    let id = listed["tasks"][0]["id"].as_str().unwrap().to_owned();
    assert!(mcp.call("complete_task", &json!({"id": id, "text": "done"})).1, "it is not claimed");
    let (claimed, wrong) = mcp.call("claim_task", &json!({"agent": "model"}));
    assert!(!wrong && claimed["task"]["id"] == id.as_str(), "{claimed:#}");
    let resources = mcp.ask("resources/list", &json!({}));
    let all = resources["result"]["resources"].as_array().unwrap();
    assert_eq!(
        all.iter().filter(|r| r["uri"] == format!("grace://tasks/{id}/evidence/0")).count(),
        1,
        "{all:#?}"
    );
    let item = mcp.ask("resources/read", &json!({"uri": format!("grace://tasks/{id}/evidence/0")}));
    assert!(
        item["result"]["contents"][0]["text"].as_str().unwrap().contains("| trigger: syntax"),
        "{item:#}"
    );
    let prompts = mcp.ask("prompts/list", &json!({}));
    let named: BTreeSet<&str> = prompts["result"]["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert!(grace_agent::triggers::specs().iter().all(|spec| named.contains(spec.name)), "{named:?}");
    for name in &named {
        let prompt = mcp.ask("prompts/get", &json!({"name": name}));
        assert!(prompt["result"]["messages"][0]["content"]["text"].as_str().unwrap().contains("claim_task"));
    }
    assert!(mcp.ask("prompts/get", &json!({"name": "none"}))["error"].is_object());
    // Where the fault is, it reads of the evidence.
    let evidence = claimed["task"]["evidence"].as_array().unwrap();
    let subject = evidence.iter().find(|e| e["name"] == "subject").unwrap();
    assert_eq!(subject["trust"], "untrusted");
    let subject: Value = serde_json::from_str(subject["text"].as_str().unwrap()).unwrap();
    let file = Path::new(subject["name"].as_str().unwrap());
    assert_eq!(fs::read_to_string(file).unwrap(), BAD);
    assert!(!mcp.call("heartbeat", &json!({"id": id})).1);
    assert!(!mcp.call("attach", &json!({"id": id, "name": "patch", "text": "-def f(:"})).1);
    write(&agent, file, GOOD);
    let (submitted, _) = mcp.call("complete_task", &json!({"id": id, "text": "closed the parenthesis"}));
    assert_eq!(submitted["state"], "submitted");
    wait_until("it is verified", || mcp.call("show_task", &json!({"id": id})).0["state"] == "verified");

    let read = mcp.ask("resources/read", &json!({"uri": format!("grace://tasks/{id}")}));
    assert!(read["result"]["contents"][0]["text"].as_str().unwrap().contains("verified"), "{read:#}");
    for bad in ["grace://tasks/../status", "grace://tasks/t-99", "file:///etc/shadow"] {
        assert!(mcp.ask("resources/read", &json!({"uri": bad}))["error"].is_object(), "{bad}");
    }
    // Grace's agent is away: said, and this server goes on.
    let mut agent = agent;
    agent.stop();
    assert!(mcp.call("list_tasks", &json!({})).1);
    agent.run();
    assert!(!mcp.call("list_tasks", &json!({})).1);
    mcp.end();
}

/// The agent of `agent_with` with `[http]`, and where it listens.
fn listening(names: &[&str]) -> (Agent, String) {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let agent = agent_with(names);
    let agent = restart_with(agent, &format!("{CONFIG}[http]\nlisten = \"{address}\"\n"), names.len());
    (agent, address)
}

fn token(agent: &Agent) -> String {
    fs::read_to_string(agent.path("state/http-token")).unwrap().trim().to_owned()
}

/// The status of an `initialize` with these headers.
fn status_of(address: &str, headers: &str) -> String {
    let client = json!({"name": "test", "version": "1"});
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params":
        {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}})
    .to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /mcp HTTP/1.1\r\nconnection: close\r\naccept: application/json, text/event-stream\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{hello}",
        hello.len()
    )
    .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[test]
fn http_takes_no_one_without_the_token_and_no_web_page() {
    let (agent, address) = listening(&["main.py"]);
    let token = token(&agent);
    let host = format!("host: {address}\r\n");
    let good = format!("{host}authorization: Bearer {token}\r\n");
    assert_eq!(status_of(&address, &good), "200");
    for (headers, wanted) in [
        (host.clone(), "401"),
        (format!("{host}authorization: Bearer {}\r\n", "0".repeat(64)), "401"),
        (format!("{host}authorization: Basic {token}\r\n"), "401"),
        (format!("{good}origin: https://evil.example\r\n"), "403"),
        (format!("{good}origin: null\r\n"), "403"),
        (format!("host: evil.example\r\nauthorization: Bearer {token}\r\n"), "403"),
    ] {
        assert_eq!(status_of(&address, &headers), wanted, "{headers}");
    }
    let mode = fs::metadata(agent.path("state/http-token")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
    // Nothing that others could reach.
    assert_eq!(code(&agent, &["config", "check"]), Some(0));
    fs::write(agent.path("open.toml"), "[http]\nlisten = \"0.0.0.0:1\"\n").unwrap();
    let open = agent.path("open.toml");
    assert_eq!(code(&agent, &["config", "check", open.to_str().unwrap()]), Some(2));
}

/// Someone else's client: the official Python package.
fn official(name: &str, agent: &Agent, arguments: &[&str]) -> Option<Value> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mcp-python/bin/python");
    let there = Command::new(&python)
        .args(["-c", "import mcp"])
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|out| out.status.success());
    if !there {
        skip(name, "the Python package mcp is not installed: `cargo xtask setup` gets it");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/mcp_client.py");
    let out = Command::new(&python)
        .arg(script)
        .args(arguments)
        .env(
            "GRACE_HTTP_TOKEN",
            fs::read_to_string(agent.path("state/http-token")).unwrap_or_default().trim(),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

/// What the official client did, by what it tells and by what the queue says.
fn assert_official(agent: &Agent, told: &Value) {
    assert_eq!(told["claimed"], "t-1", "{told:#}");
    assert!(told["tools"].as_array().unwrap().contains(&json!("claim_task")));
    assert!(told["prompts"].as_array().unwrap().contains(&json!("error_feed")));
    assert!(told["resource"].as_str().unwrap().contains("| "), "{told:#}");
    assert_eq!(told["state"], "submitted");
    let task = task(agent, "t-1");
    let kinds: Vec<&str> =
        task["history"].as_array().unwrap().iter().map(|line| line["kind"].as_str().unwrap()).collect();
    // The agent that listens was started again since, and saw the fault again.
    let last = kinds.len().saturating_sub(3);
    assert_eq!(kinds[last..], ["claimed", "attached", "submitted"], "{task:#}");
}

#[test]
fn the_official_client_claims_attaches_and_completes_over_stdio() {
    let agent = agent_with(&["main.py"]);
    let socket = agent.socket();
    let arguments = ["stdio", harness::GRACE, socket.to_str().unwrap()];
    let name = "the_official_client_claims_attaches_and_completes_over_stdio";
    if let Some(told) = official(name, &agent, &arguments) {
        assert_official(&agent, &told);
    }
}

#[test]
fn the_official_client_claims_attaches_and_completes_over_http() {
    let (agent, address) = listening(&["main.py"]);
    let url = format!("http://{address}/mcp");
    let name = "the_official_client_claims_attaches_and_completes_over_http";
    if let Some(told) = official(name, &agent, &["http", &url]) {
        assert_official(&agent, &told);
    }
}

#[test]
fn a_fix_is_verified_only_when_the_operators_checks_pass() {
    if !root() {
        return skip("a_fix_is_verified_only_when_the_operators_checks_pass", "needs root to be nobody");
    }
    let agent = agent_with(&["main.py"]);
    let flag = agent.path("passes");
    let check = format!(
        "[[check]]\nname = \"unit\"\ntrigger = \"syntax\"\nrepo = \"$DIR/etc\"\ncwd = \"/\"\n\
         command = [\"/bin/sh\", \"-c\", \"id -un; echo password=hunter2hunter2; test -e {}\"]\n\
         [[check]]\nname = \"other\"\ntrigger = \"code_diff\"\ncommand = [\"/bin/false\"]\n",
        flag.display()
    );
    // `nobody` may look into the folder.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(agent.dir.path(), mode).unwrap();
    let agent = restart_with(agent, &format!("{}{check}", CONFIG.replace("3s", "1s")), 1);
    let file = agent.path("etc/main.py");
    // The next firing is filed with the checks of this configuration.
    write(&agent, &file, GOOD);
    write(&agent, &file, "def g(:\n");
    wait_until("it came again", || task(&agent, "t-1")["brief"]["checks"] == json!(["unit"]));
    write(&agent, &file, GOOD);
    let (id, token) = claim(&agent, &["--agent", "fixer"]);
    agent.ok(&["tasks", "complete", &id, "--token", &token, "--summary", "done"]);
    wait_until("it is reopened", || task(&agent, &id)["state"] == "reopened");
    let reopened = task(&agent, &id);
    let said = reopened["evidence"].as_array().unwrap().iter().find(|e| e["name"] == "check-unit").unwrap();
    let text = said["text"].as_str().unwrap();
    assert!(text.contains("nobody") && !text.contains("hunter2"), "{said:#}");
    assert_eq!(said["trust"], "untrusted");
    fs::write(&flag, "").unwrap();
    let (id, token) = claim(&agent, &["--agent", "fixer"]);
    agent.ok(&["tasks", "complete", &id, "--token", &token, "--summary", "done"]);
    wait_until("it is verified", || task(&agent, &id)["state"] == "verified");
    assert!(task(&agent, &id)["history"].to_string().contains("its checks pass"));
}
