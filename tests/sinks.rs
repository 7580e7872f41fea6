//! Sinks through the front door: a real HTTP server that fails in every way, a folder, a repo; an agent that is killed meanwhile.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use harness::{Agent, root, skip, wait_until};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const BAD: &str = "def f(:\n    pass\n";
const GOOD: &str = "def f():\n    pass\n";
const SECRET: &str = "a secret that nobody knows";

/// A request, as far as these tests look at it.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What the server does with one.
enum Reply {
    /// Status, further headers, body.
    Say(u16, &'static str, String),
    /// Closes without a word, as a proxy does that dies.
    Drop,
    /// Never answers.
    Hang,
}

/// An HTTP server on loopback.
struct Server {
    url: String,
}

impl Server {
    fn start(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || serve(stream, &*answer));
            }
        });
        Self { url }
    }
}

fn serve(mut stream: TcpStream, answer: &(dyn Fn(Asked) -> Reply + Send + Sync)) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    let asked = loop {
        let Ok(n) = stream.read(&mut buffer) else { return };
        if n == 0 {
            return;
        }
        bytes.extend_from_slice(&buffer[..n]);
        if let Some(asked) = read(&bytes) {
            break asked;
        }
    };
    match answer(asked) {
        Reply::Say(status, headers, body) => {
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
            );
        }
        Reply::Drop => {}
        Reply::Hang => {
            // Until the other side has had enough.
            let _ = stream.read(&mut buffer);
        }
    }
}

fn read(bytes: &[u8]) -> Option<Asked> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let whole = body.len() >= length;
    whole.then(|| Asked { method, path, headers, body: body.to_owned() })
}

/// An agent with `names` that do not parse, each of which is a task, and these sinks.
fn agent_with(names: &[&str], sinks: &str) -> Agent {
    let mut agent = Agent::start("");
    for name in names {
        agent.file(name, BAD);
    }
    secret(&agent, "secret", SECRET);
    secret(&agent, "token", "the-token");
    agent.stop();
    agent.config(&format!("[tasks]\nsoak = \"1s\"\n[[repo]]\npath = \"$DIR/etc\"\n{sinks}"));
    agent.run();
    wait_until("the tasks", || agent.lines(&["tasks", "list", "--json"]).len() == names.len());
    agent
}

fn secret(agent: &Agent, name: &str, text: &str) {
    fs::write(agent.path(name), text).unwrap();
    fs::set_permissions(agent.path(name), fs::Permissions::from_mode(0o600)).unwrap();
}

fn outbox(agent: &Agent) -> Vec<Value> {
    agent.lines(&["tasks", "outbox", "--json"])
}

fn all_sent(agent: &Agent) -> bool {
    let entries = outbox(agent);
    !entries.is_empty() && entries.iter().all(|entry| entry["state"] == "sent")
}

fn write(agent: &Agent, path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    agent.grace(&["scan", "--quiet", path.to_str().unwrap()]);
}

fn complete(agent: &Agent, id: &str) {
    let claimed = agent.json(&["tasks", "claim", id, "--agent", "fixer", "--json"]);
    let token = claimed["token"].as_str().unwrap();
    agent.ok(&["tasks", "complete", id, "--token", token, "--summary", "done"]);
}

fn state(agent: &Agent, id: &str) -> String {
    agent.json(&["tasks", "show", id, "--json"])["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_spool_has_one_folder_a_task_whose_files_are_what_their_digests_say() {
    let agent = agent_with(&["main.py"], "[[sink]]\nkind = \"spool\"\npath = \"$DIR/spool\"\n");
    wait_until("it is told", || all_sent(&agent));
    let folders =
        || fs::read_dir(agent.path("spool")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(folders().len(), 1);
    let folder = folders().remove(0);
    let document =
        || -> Value { serde_json::from_str(&fs::read_to_string(folder.join("task.json")).unwrap()).unwrap() };
    assert_eq!(document()["state"], "open");
    let text = fs::read_to_string(folder.join("task.md")).unwrap();
    assert!(text.contains("## Look first") && text.contains("## Not known"), "{text}");
    let mut digests: BTreeSet<String> = BTreeSet::new();
    for file in fs::read_dir(folder.join("evidence")).unwrap() {
        let digest = Sha256::digest(fs::read(file.unwrap().path()).unwrap());
        digests.insert(digest.iter().map(|b| format!("{b:02x}")).collect());
    }
    let said = document();
    let said: BTreeSet<&str> =
        said["evidence"].as_array().unwrap().iter().map(|e| e["sha256"].as_str().unwrap()).collect();
    assert_eq!(digests.iter().map(String::as_str).collect::<BTreeSet<_>>(), said);

    write(&agent, &agent.path("etc/main.py"), GOOD);
    complete(&agent, "t-1");
    wait_until("the folder says that it is verified", || document()["state"] == "verified");
    assert_eq!(folders().len(), 1);
}

/// The signature by its definition, from a hash alone.
fn signature(secret: &str, message: &str) -> String {
    let pad = |with: u8| -> Vec<u8> {
        (0..64).map(|n| secret.as_bytes().get(n).copied().unwrap_or(0) ^ with).collect()
    };
    let inner = Sha256::digest([pad(0x36), message.as_bytes().to_vec()].concat());
    let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(outer))
}

#[test]
fn a_webhook_that_fails_in_every_way_gets_each_event_in_the_end_and_holds_up_nobody() {
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let mine = Arc::clone(&seen);
    let server = Server::start(move |asked| {
        let mut seen = mine.lock().unwrap();
        seen.push(asked);
        match seen.len() {
            1 => Reply::Say(500, "", String::new()),
            2 => Reply::Say(429, "retry-after: 1\r\n", String::new()),
            3 => Reply::Hang,
            4 => Reply::Drop,
            _ => Reply::Say(204, "", String::new()),
        }
    });
    let sinks = format!(
        "[[sink]]\nkind = \"webhook\"\nurl = \"{}/hook\"\nsecret_file = \"$DIR/secret\"\ntimeout = \"2s\"\n",
        server.url
    );
    let agent = agent_with(&["main.py"], &sinks);
    wait_until("the sink hangs", || seen.lock().unwrap().len() == 3);
    // Nothing waits for it: the agent answers, and work goes on.
    assert_eq!(outbox(&agent)[0]["state"], "waiting");
    write(&agent, &agent.path("etc/main.py"), GOOD);
    complete(&agent, "t-1");
    wait_until("verified while the sink is in trouble", || state(&agent, "t-1") == "verified");
    wait_until("all is told", || all_sent(&agent));

    let seen = seen.lock().unwrap().clone();
    let mut events: Vec<(String, String)> = Vec::new();
    for asked in &seen {
        let event: Value = serde_json::from_str(&asked.body).unwrap();
        let header = |name: &str| asked.headers[name].clone();
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/hook"));
        assert_eq!(event["id"], header("webhook-id"));
        let message = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), asked.body);
        assert_eq!(header("webhook-signature"), signature(SECRET, &message));
        assert_eq!((&event["specversion"], &event["data"]["id"]), (&json!("1.0"), &json!("t-1")));
        events.push((header("webhook-id"), event["type"].as_str().unwrap().to_owned()));
    }
    // The same id at each try; of each event one; in order.
    assert_eq!(events[..5].iter().map(|e| &e.0).collect::<BTreeSet<_>>().len(), 1, "{events:?}");
    events.dedup();
    let kinds: Vec<&str> = events.iter().map(|e| e.1.as_str()).collect();
    assert_eq!(kinds, ["grace.task.filed", "grace.task.submitted", "grace.task.verified"]);
    assert!(!agent.ok(&["config", "show"]).contains(SECRET));
}

#[test]
fn what_a_sink_refuses_is_given_up_shown_and_tried_again_when_asked() {
    let refuses = Arc::new(Mutex::new(true));
    let mine = Arc::clone(&refuses);
    let server = Server::start(move |_| {
        Reply::Say(if *mine.lock().unwrap() { 400 } else { 200 }, "", "{}".to_owned())
    });
    let sinks =
        format!("[[sink]]\nkind = \"webhook\"\nurl = \"{}\"\nsecret_file = \"$DIR/secret\"\n", server.url);
    let agent = agent_with(&["main.py"], &sinks);
    wait_until("it is given up", || !agent.lines(&["tasks", "outbox", "--dead", "--json"]).is_empty());
    let dead = agent.lines(&["tasks", "outbox", "--dead", "--json"]).remove(0);
    assert!(dead["why"].as_str().unwrap().contains("400"), "{dead:#}");
    assert!(agent.ok(&["tasks", "outbox"]).contains("dead"));
    *refuses.lock().unwrap() = false;
    agent.ok(&["tasks", "outbox", "retry"]);
    wait_until("it is told", || all_sent(&agent));
    // Who can read the secret is not to be trusted with it.
    fs::set_permissions(agent.path("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    agent.ok(&["tasks", "cancel", "t-1", "--why", "no"]);
    wait_until("it waits", || outbox(&agent).iter().any(|e| e["why"].as_str().unwrap().contains("0600")));
}

/// Issues as GitHub keeps them, with a service that is as bad as one can be.
#[derive(Default)]
struct Hub {
    issues: Vec<Value>,
    asked: u64,
    unauthorized: u64,
}

fn hub(shared: Arc<Mutex<Hub>>) -> Server {
    Server::start(move |asked| {
        let mut hub = shared.lock().unwrap();
        hub.asked += 1;
        if asked.headers.get("authorization").map(String::as_str) != Some("Bearer the-token") {
            hub.unauthorized += 1;
            return Reply::Say(401, "", "{}".into());
        }
        let turn = hub.asked;
        let body: Value = serde_json::from_str(&asked.body).unwrap_or(Value::Null);
        let (way, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let number = way.strip_prefix("/repos/acme/app/issues/").and_then(|n| n.parse::<usize>().ok());
        // Each third request is done, and its answer lost; each fifth is refused for a moment.
        if turn.is_multiple_of(5) {
            return Reply::Say(503, "retry-after: 0\r\n", String::new());
        }
        let answer = match (asked.method.as_str(), number) {
            ("POST", None) => {
                let number = hub.issues.len() + 1;
                let mut issue = body;
                issue["number"] = json!(number);
                issue["state"] = json!("open");
                hub.issues.push(issue.clone());
                Reply::Say(201, "", issue.to_string())
            }
            ("PATCH", Some(number)) => {
                let issue = &mut hub.issues[number - 1];
                for (key, value) in body.as_object().unwrap() {
                    issue[key] = value.clone();
                }
                Reply::Say(200, "", issue.to_string())
            }
            ("GET", None) if query.contains("page=1") => Reply::Say(200, "", json!(hub.issues).to_string()),
            ("GET", None) => Reply::Say(200, "", "[]".into()),
            _ => Reply::Say(404, "", "{}".into()),
        };
        if turn.is_multiple_of(3) { Reply::Drop } else { answer }
    })
}

#[test]
fn there_is_one_issue_for_each_fault_whatever_is_lost_and_whenever_the_agent_is_killed() {
    let shared: Arc<Mutex<Hub>> = Arc::default();
    let server = hub(Arc::clone(&shared));
    let sinks = format!(
        "[[sink]]\nkind = \"github\"\nurl = \"{}\"\nrepository = \"acme/app\"\ntoken_file = \"$DIR/token\"\nlabels = [\"bug\"]\n",
        server.url
    );
    let names = ["a.py", "b.py", "c.py", "d.py"];
    let mut agent = agent_with(&names, &sinks);
    for n in 0..6 {
        // At another place of the way each time: so many requests were answered since.
        let before = shared.lock().unwrap().asked;
        wait_until("something is asked, or all is told", || {
            shared.lock().unwrap().asked > before + n || all_sent(&agent)
        });
        agent.crash();
        agent.run();
        wait_until("no task is lost", || agent.lines(&["tasks", "list", "--json"]).len() == names.len());
        agent.ok(&["tasks", "outbox", "retry"]);
    }
    wait_until("all is told", || {
        agent.ok(&["tasks", "outbox", "retry"]);
        all_sent(&agent)
    });
    let tasks = agent.lines(&["tasks", "list", "--json"]);
    assert_eq!(tasks.len(), names.len());
    {
        let hub = shared.lock().unwrap();
        assert_eq!(hub.issues.len(), names.len(), "one for each: {:#?}", hub.issues);
        assert_eq!(hub.unauthorized, 0);
        for task in &tasks {
            let mark = format!("`grace-fingerprint: {}`", task["fingerprint"].as_str().unwrap());
            let carry = hub.issues.iter().filter(|i| i["body"].as_str().unwrap().contains(&mark)).count();
            assert_eq!(carry, 1, "{mark}");
        }
        assert_eq!(hub.issues[0]["labels"], json!(["bug", "grace"]));
    }
    // Closed when it is verified, open again when it comes back.
    let id = tasks[0]["id"].as_str().unwrap().to_owned();
    let subject: Value = serde_json::from_str(
        tasks[0]["evidence"].as_array().unwrap().iter().find(|e| e["name"] == "subject").unwrap()["text"]
            .as_str()
            .unwrap(),
    )
    .unwrap();
    let file = Path::new(subject["name"].as_str().unwrap()).to_owned();
    let mark = format!("`grace-fingerprint: {}`", tasks[0]["fingerprint"].as_str().unwrap());
    let issue = || {
        let hub = shared.lock().unwrap();
        hub.issues.iter().find(|i| i["body"].as_str().unwrap().contains(&mark)).unwrap()["state"].clone()
    };
    write(&agent, &file, GOOD);
    complete(&agent, &id);
    wait_until("it is verified", || state(&agent, &id) == "verified");
    wait_until("it is closed", || {
        agent.ok(&["tasks", "outbox", "retry"]);
        issue() == "closed"
    });
    agent.ok(&["tasks", "reopen", &id, "--why", "it is not"]);
    wait_until("it is open", || {
        agent.ok(&["tasks", "outbox", "retry"]);
        issue() == "open"
    });
    assert_eq!(shared.lock().unwrap().issues.len(), names.len());
}

#[test]
fn killed_at_any_moment_the_agent_tells_each_task_and_none_as_two() {
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let mine = Arc::clone(&seen);
    let server = Server::start(move |asked| {
        let mut seen = mine.lock().unwrap();
        seen.push(serde_json::from_str(&asked.body).unwrap());
        // Each third one is taken, and nobody hears of it.
        if seen.len().is_multiple_of(3) { Reply::Drop } else { Reply::Say(200, "", "{}".into()) }
    });
    let sinks = format!(
        "[[sink]]\nkind = \"webhook\"\nurl = \"{}\"\nsecret_file = \"$DIR/secret\"\n[[sink]]\nkind = \"spool\"\npath = \"$DIR/spool\"\n",
        server.url
    );
    let mut agent = Agent::start("");
    secret(&agent, "secret", SECRET);
    agent.stop();
    agent.config(&format!("[[repo]]\npath = \"$DIR/etc\"\n{sinks}"));
    let names: Vec<String> = (0..6).map(|n| format!("f{n}.py")).collect();
    // Faults come while the agent is killed again and again: before, while and after each is filed and told.
    for name in &names {
        let file = agent.file(name, BAD);
        agent.run();
        agent.grace(&["scan", "--quiet", file.to_str().unwrap()]);
        agent.crash();
    }
    agent.run();
    wait_until("all are filed", || agent.lines(&["tasks", "list", "--json"]).len() == names.len());
    wait_until("all is told", || {
        agent.ok(&["tasks", "outbox", "retry"]);
        all_sent(&agent)
    });
    let tasks = agent.lines(&["tasks", "list", "--json"]);
    let wanted: BTreeSet<&str> = tasks.iter().map(|t| t["fingerprint"].as_str().unwrap()).collect();
    assert_eq!(wanted.len(), names.len());
    let seen = seen.lock().unwrap();
    // As a receiver counts them: by the event's id.
    let filed: BTreeMap<&str, &str> = seen
        .iter()
        .filter(|event| event["type"] == "grace.task.filed")
        .map(|event| (event["id"].as_str().unwrap(), event["subject"].as_str().unwrap()))
        .collect();
    let told: Vec<&&str> = filed.values().collect();
    assert_eq!(told.len(), names.len(), "{filed:?}");
    assert_eq!(filed.values().copied().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(fs::read_dir(agent.path("spool")).unwrap().count(), names.len());
}

fn git(folder: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "git {args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_command_works_in_a_clone_as_nobody_and_its_difference_is_attached() {
    if !root() {
        return skip("a_command_works_in_a_clone_as_nobody_and_its_difference_is_attached", "needs root");
    }
    // It mends the file, tells who it is, and tries what it must not be able to do.
    const AGENT: &str = r#"
import os, pathlib, subprocess
task = open(os.environ["GRACE_TASK"]).read()
assert "| " in task
tried = []
def attempt(name, what):
    try:
        what()
        tried.append(name)
    except Exception:
        pass
import socket
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect("SOCKET")
attempt("socket", connect)
attempt("deployed", lambda: open("REPO/main.py", "a").write('#'))
if "GRACE_SOCKET" in os.environ:
    tried.append("environment")
pathlib.Path("main.py").write_text("def f():\n    pass\n")
pathlib.Path("who.txt").write_text(f"uid {os.getuid()} tried {tried}\n")
"#;
    let mut agent = Agent::start("");
    fs::set_permissions(agent.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let repo = agent.path("etc");
    agent.file("main.py", BAD);
    git(&repo, &["init", "-q", "-b", "main"]);
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-q", "-m", "x"]);
    let program =
        AGENT.replace("SOCKET", agent.socket().to_str().unwrap()).replace("REPO", repo.to_str().unwrap());
    fs::write(agent.path("agent.py"), program).unwrap();
    fs::create_dir(agent.path("work")).unwrap();
    fs::set_permissions(agent.path("work"), fs::Permissions::from_mode(0o755)).unwrap();
    let sink = "[[sink]]\nkind = \"exec\"\ncommand = [\"/usr/bin/python3\", \"$DIR/agent.py\"]\nuser = \"nobody\"\n\
                work = \"$DIR/work\"\n";
    let base = "[tasks]\nsoak = \"1s\"\n[[repo]]\npath = \"$DIR/etc\"\n";
    agent.stop();
    // Off unless it is switched on.
    agent.config(&format!("{base}{sink}"));
    agent.run();
    wait_until("the task", || agent.lines(&["tasks", "list", "--json"]).len() == 1);
    assert!(outbox(&agent).is_empty());
    agent.stop();
    agent.config(&format!("{base}{sink}enabled = true\n"));
    agent.run();
    agent.ok(&["tasks", "cancel", "t-1", "--why", "to have it reopened"]);
    agent.ok(&["tasks", "reopen", "t-1", "--why", "for the command"]);
    wait_until("it is submitted", || {
        let task = agent.json(&["tasks", "show", "t-1", "--json"]);
        task["history"].as_array().unwrap().iter().any(|line| line["kind"] == "submitted")
    });
    let task = agent.json(&["tasks", "show", "t-1", "--json"]);
    let patch = task["evidence"].as_array().unwrap().iter().find(|e| e["name"] == "patch").unwrap();
    let text = patch["text"].as_str().unwrap();
    assert!(text.contains("+def f():") && text.contains("+uid 65534 tried []"), "{text}");
    assert_eq!(patch["trust"], "untrusted");
    assert_eq!(fs::read_to_string(repo.join("main.py")).unwrap(), BAD, "what is deployed is not touched");
    wait_until("nothing is left", || fs::read_dir(agent.path("work")).unwrap().count() == 0);
}
