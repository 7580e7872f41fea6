//! Tasks through the front door: filed, claimed by one at a time, submitted, and verified only when the fault stays away.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use harness::{Agent, wait_until};
use serde_json::Value;

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
    let attached = done["evidence"].as_array().unwrap().last().unwrap();
    assert_eq!((&attached["name"], &attached["trust"]), (&"patch".into(), &"untrusted".into()));
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
