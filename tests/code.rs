//! The triggers about code through the front door: a real HTTP server whose answers change, a real git repo, a real folder
//! of Python packages, and what the agent makes of them.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use harness::{Agent, wait_until};
use serde_json::{Value, json};

/// An HTTP server on loopback whose answer can be changed.
struct Server {
    url: String,
    /// Status line and body.
    answer: Arc<Mutex<(String, String)>>,
    asked: Arc<Mutex<u64>>,
}

impl Server {
    fn start(body: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/models", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new(("200 OK".to_owned(), body.to_string())));
        let asked = Arc::new(Mutex::new(0));
        let (mine, count) = (Arc::clone(&answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let (status, body) = mine.lock().unwrap().clone();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                *count.lock().unwrap() += 1;
            }
        });
        Self { url, answer, asked }
    }

    fn answers(&self, status: &str, body: &Value) {
        *self.answer.lock().unwrap() = (status.to_owned(), body.to_string());
    }

    /// Waits until it was asked `more` times again.
    fn wait_asked(&self, more: u64) {
        let before = *self.asked.lock().unwrap();
        wait_until("the endpoint is asked", || *self.asked.lock().unwrap() >= before + more);
    }
}

fn endpoint(url: &str, more: &str) -> String {
    format!("[[endpoint]]\nname = \"models\"\nurl = \"{url}\"\nevery = \"100ms\"\n{more}\n")
}

fn of(trigger: &'static str, state: &'static str) -> impl Fn(&Value) -> bool {
    move |f| f["trigger"] == trigger && f["state"] == state
}

fn count(agent: &Agent, trigger: &str) -> usize {
    agent.firings().iter().filter(|f| f["trigger"] == trigger && f["state"] != "happened").count()
}

fn source(agent: &Agent, name: &str) -> Value {
    let status = agent.json(&["status", "--json"]);
    status["sources"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone()
}

fn learned(agent: &Agent) -> u64 {
    agent.lines(&["endpoint", "list", "--json"])[0]["learned_from"].as_u64().unwrap_or(0)
}

/// The text of all evidence of the only task.
fn task(agent: &Agent) -> (Value, String) {
    let mut tasks = Vec::new();
    wait_until("a task is filed", || {
        tasks = agent.lines(&["tasks", "list", "--json"]);
        !tasks.is_empty()
    });
    let texts = tasks[0]["evidence"].as_array().unwrap().iter();
    let text = texts.map(|e| e["text"].as_str().unwrap()).collect::<Vec<_>>().join("\n");
    (tasks[0].clone(), text)
}

#[test]
fn an_endpoint_that_loses_a_field_is_told_with_the_field_and_clears() {
    let good = json!({"data": [{"id": "m1", "owner": "ops team"}], "total": 1});
    let server = Server::start(&good);
    let mut agent = Agent::start_as(&endpoint(&server.url, ""), "observe", &[]);
    wait_until("it is learned", || learned(&agent) >= 5);

    // Down, erring or not JSON: said, and no drift.
    server.answers("503 Service Unavailable", &json!({"error": "starting"}));
    wait_until("it is degraded", || source(&agent, "endpoints")["state"] == "degraded");
    server.wait_asked(4);
    assert!(source(&agent, "endpoints")["detail"].as_str().unwrap().contains("answers 503"));
    assert_eq!(count(&agent, "telemetry_drift"), 0);

    server.answers("200 OK", &json!({"data": [{"id": 7}], "total": 1}));
    let fired = agent.wait_firing("drift", of("telemetry_drift", "holds"));
    let evidence = fired["evidence"].to_string();
    assert!(evidence.contains("/data/*/id: is integer, was string"), "{fired:#}");
    assert!(evidence.contains("/data/*/owner: missing (was: string, always there)"), "{fired:#}");
    assert_eq!(fired["subject"], json!({"kind": "endpoint", "name": "models"}));
    assert_eq!(fired["remedy"][0]["action"], "file_task");
    let (task, text) = task(&agent);
    assert_eq!(task["trigger"], "telemetry_drift");
    assert!(text.contains("/data/*/owner: missing"), "{text}");

    // The fault lasts, and is not learned: neither by this agent nor by the next.
    server.wait_asked(10);
    agent.stop();
    agent.run();
    agent.wait_firing("it still holds for the next agent", of("telemetry_drift", "holds"));
    server.answers("200 OK", &good);
    agent.wait_firing("it clears", |f| f["cleared_by"] == "an answer fits again");
    assert_eq!(source(&agent, "endpoints")["state"], "ok");
}

#[test]
fn a_new_shape_can_be_taken_as_known() {
    let server = Server::start(&json!({"id": 1, "old": true}));
    let agent = Agent::start_as(&endpoint(&server.url, ""), "observe", &[]);
    wait_until("it is learned", || learned(&agent) >= 5);
    server.answers("200 OK", &json!({"id": 1, "new": "some text"}));
    agent.wait_firing("drift", of("telemetry_drift", "holds"));
    assert_eq!(agent.grace(&["endpoint", "accept", "none"]).status.code(), Some(1));
    agent.ok(&["endpoint", "accept", "models"]);
    agent.wait_firing("it clears", |f| f["cleared_by"] == "accepted as known");
    wait_until("the new shape is known", || agent.ok(&["endpoint", "show", "models"]).contains("\"new\""));
    assert!(!agent.ok(&["endpoint", "show", "models"]).contains("\"old\""));
}

#[test]
fn an_openapi_file_says_what_the_answers_look_like() {
    let server = Server::start(&json!({"id": "seven"}));
    let agent =
        Agent::start_as(&endpoint(&server.url, "openapi = \"$DIR/etc/openapi.yaml\""), "observe", &[]);
    wait_until("a file that is not there is said", || source(&agent, "endpoints")["state"] == "degraded");
    agent.file(
        "openapi.yaml",
        "openapi: 3.1.0\npaths:\n  /v1/models:\n    get:\n      responses:\n        '200':\n          content:\n            \
         application/json:\n              schema: {$ref: '#/components/schemas/Model'}\ncomponents:\n  schemas:\n    Model:\n      \
         type: object\n      required: [id]\n      properties: {id: {type: integer}}\n",
    );
    let fired = agent.wait_firing("drift", of("telemetry_drift", "holds"));
    assert_eq!(fired["summary"], "/id: is string, was integer");
    assert!(fired["baseline"].as_str().unwrap().contains("openapi.yaml"));
    let out = agent.grace(&["endpoint", "accept", "models"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    server.answers("200 OK", &json!({"id": 7}));
    agent.wait_firing("it clears", of("telemetry_drift", "cleared"));
}

/// git, with nobody's configuration.
fn git(repo: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .current_dir(repo)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@a.example")])
        .envs([("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@a.example")])
        .output()
        .unwrap();
    assert!(out.status.success(), "git {args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn write(repo: &Path, path: &str, text: &str) {
    let path = repo.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// An agent in observe mode beside a repo with a few commits; `more` is its `[[repo]]`.
fn with_repo(more: &str) -> (Agent, PathBuf) {
    repo_with("[triggers.code_diff]\npoll = \"100ms\"\n", more)
}

/// An agent with a repo; `config` beside it, `more` within its table.
fn repo_with(config: &str, more: &str) -> (Agent, PathBuf) {
    let dir = tempfile::tempdir().unwrap().keep();
    git(&dir, &["init", "-q", "-b", "main"]);
    write(&dir, "backend/chat.py", "LIMIT = 3\n\ndef chat():\n    return LIMIT\n");
    write(&dir, "docs/a.md", "text\n");
    write(&dir, "tests/test_flow.py", "from backend.chat import chat\n");
    write(&dir, "tests/test_none.py", "import os\n");
    git(&dir, &["add", "."]);
    git(&dir, &["commit", "-q", "-m", "first"]);
    let config = format!("[[repo]]\npath = \"{}\"\n{more}\n{config}", dir.display());
    (Agent::start_as(&config, "observe", &[]), dir)
}

/// The last firing of `code_diff`, once `wanted` accepts it.
#[track_caller]
fn code_firing(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    agent.wait_firing(what, |f| f["trigger"] == "code_diff" && wanted(f))
}

#[test]
fn critical_files_are_compared_with_the_known_good_commit() {
    let (mut agent, repo) = with_repo("critical = [\"backend/**\"]");
    // Without a known-good commit nothing is judged.
    wait_until("it says so", || source(&agent, "repos")["detail"].as_str().unwrap().contains("grace good"));
    let good = git(&repo, &["rev-parse", "HEAD"]);
    assert!(agent.ok(&["good"]).contains(&good));

    // Only in the working tree; what is not critical says nothing.
    write(&repo, "docs/a.md", "other\n");
    write(&repo, "backend/chat.py", "LIMIT = 4\n\ndef chat():\n    return LIMIT\n");
    let fired = code_firing(&agent, "a change in the working tree", |f| f["state"] == "holds");
    assert_eq!(fired["summary"], "backend/chat.py modified (in the working tree)");
    let evidence = fired["evidence"].to_string();
    assert!(evidence.contains("test tests/test_flow.py") && !evidence.contains("test_none"), "{fired:#}");
    assert!(evidence.contains("-LIMIT = 3") && evidence.contains("+LIMIT = 4"), "{fired:#}");
    assert!(task(&agent).1.contains("+LIMIT = 4"));

    // A dirty tree is not marked unless it is asked for.
    let out = agent.grace(&["good"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("--force"), "{out:?}");

    git(&repo, &["add", "backend"]);
    code_firing(&agent, "staged", |f| f["summary"] == "backend/chat.py modified (staged)");
    git(&repo, &["commit", "-q", "-m", "second"]);
    code_firing(&agent, "committed", |f| f["summary"] == "backend/chat.py modified (committed)");
    // The next agent finds it at its start.
    agent.stop();
    agent.run();
    code_firing(&agent, "at boot", |f| f["state"] == "holds" && f["id"] != fired["id"]);
    git(&repo, &["reset", "-q", "--hard", &good]);
    code_firing(&agent, "it clears", |f| f["state"] == "cleared" && f["id"] != fired["id"]);

    // A removed file, and `grace good` after it was committed.
    fs::remove_file(repo.join("backend/chat.py")).unwrap();
    code_firing(&agent, "removed", |f| {
        f["state"] == "holds" && f["summary"].as_str().unwrap().contains("removed")
    });
    git(&repo, &["commit", "-q", "-a", "-m", "third"]);
    agent.ok(&["good", repo.to_str().unwrap()]);
    wait_until("nothing holds", || {
        agent.firings().iter().filter(|f| f["trigger"] == "code_diff").all(|f| f["state"] != "holds")
    });
    let _ = fs::remove_dir_all(&repo);
}

#[test]
fn a_hostile_repo_makes_nobody_wait_run_anything_or_leave_the_repo() {
    let (agent, repo) = with_repo("");
    agent.ok(&["good"]);
    // A configuration that would start programs, and includes from elsewhere.
    let marker = repo.join("ran");
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfsmonitor = \"touch {0}\"\n\tsshCommand = \"touch {0}\"\n\tpager = \"touch {0}\"\n\
         [filter \"x\"]\n\tclean = touch {0}\n\tsmudge = touch {0}\n\trequired = true\n[include]\n\tpath = /dev/zero\n",
        marker.display()
    );
    fs::write(repo.join(".git/config"), config).unwrap();
    write(&repo, ".gitattributes", "* filter=x\n");
    // A folder that became a link to elsewhere is a removed file, not somebody else's.
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("chat.py"), "secret\n").unwrap();
    fs::remove_dir_all(repo.join("backend")).unwrap();
    std::os::unix::fs::symlink(outside.path(), repo.join("backend")).unwrap();
    let fired = code_firing(&agent, "removed", |f| f["state"] == "holds");
    assert!(!fired.to_string().contains("secret"), "{fired:#}");
    assert!(fired["evidence"].to_string().contains("-LIMIT = 3"), "{fired:#}");
    assert!(!marker.exists());
    // A fifo in the place of HEAD makes no thread wait.
    fs::rename(repo.join(".git/HEAD"), repo.join(".git/HEAD.old")).unwrap();
    harness::run(&harness::program("mkfifo"), &[repo.join(".git/HEAD").to_str().unwrap()]);
    wait_until("it is said", || source(&agent, "repos")["detail"].as_str().unwrap().contains("fifo"));
    let _ = fs::remove_dir_all(&repo);
}

/// A distribution in a folder of packages, as pip lays it down.
fn distribution(site: &Path, name: &str, version: &str) {
    let info = site.join(format!("{name}-{version}.dist-info"));
    fs::create_dir_all(&info).unwrap();
    fs::create_dir_all(site.join(name)).unwrap();
    fs::write(site.join(name).join("__init__.py"), "").unwrap();
    fs::write(
        info.join("METADATA"),
        format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n"),
    )
    .unwrap();
    fs::write(info.join("RECORD"), format!("{name}/__init__.py,,\n{name}-{version}.dist-info/METADATA,,\n"))
        .unwrap();
}

#[test]
fn a_package_that_changes_or_goes_is_told_with_the_command_that_rolls_back() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("venv/lib/python3.11/site-packages");
    fs::create_dir_all(&site).unwrap();
    fs::create_dir_all(dir.path().join("venv/bin")).unwrap();
    fs::write(dir.path().join("venv/bin/python"), "").unwrap();
    distribution(&site, "Alpha_Pkg", "1.0");
    distribution(&site, "beta", "2.0");
    distribution(&site, "evil;id", "3.0");
    distribution(&site, "noise_a", "1.0");
    let program = dir.path().join("tool");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let config = format!(
        "[[environment]]\nname = \"app\"\nkind = \"python\"\npaths = [\"{0}/venv\"]\nignore = [\"noise*\"]\n\
         [[environment]]\nname = \"tools\"\nkind = \"binary\"\npaths = [\"{0}/tool\"]\n\
         [triggers.dependency_regression]\npoll = \"100ms\"\n",
        dir.path().display()
    );
    let mut agent = Agent::start_as(&config, "observe", &[]);
    wait_until("the first snapshot is taken", || {
        let views = agent.lines(&["deps", "diff", "--json"]);
        views.len() == 2 && views.iter().all(|v| v["snapshot"].is_string() && v["trouble"].is_null())
    });

    // An upgrade, a removal by hand that leaves the metadata, a name that no command may be made of; and what is new.
    fs::remove_dir_all(site.join("Alpha_Pkg-1.0.dist-info")).unwrap();
    distribution(&site, "Alpha_Pkg", "1.1");
    fs::remove_dir_all(site.join("beta")).unwrap();
    fs::remove_dir_all(site.join("evil;id-3.0.dist-info")).unwrap();
    distribution(&site, "evil;id", "3.1");
    fs::remove_dir_all(site.join("noise_a-1.0.dist-info")).unwrap();
    distribution(&site, "noise_a", "9.0");
    distribution(&site, "new", "1.0");
    let fired = agent.wait_firing("the packages", |f| {
        f["trigger"] == "dependency_regression" && f["evidence"].as_array().unwrap().len() == 3
    });
    assert_eq!(fired["subject"], json!({"kind": "environment", "name": "app"}));
    let evidence = fired["evidence"].to_string();
    let pip = format!("'{}/venv/bin/python' -m pip install 'alpha-pkg==1.0'", dir.path().display());
    assert!(evidence.contains(&pip), "{fired:#}");
    assert!(evidence.contains("beta is missing, was 2.0"), "{fired:#}");
    assert!(evidence.contains("evil;id is 3.1, was 3.0 → no command can be made for it"), "{fired:#}");
    assert!(task(&agent).1.contains(&pip));
    assert_eq!(agent.grace(&["deps", "diff", "app"]).status.code(), Some(1));
    assert_eq!(agent.grace(&["deps", "diff", "tools"]).status.code(), Some(0));
    assert_eq!(agent.grace(&["deps", "diff", "none"]).status.code(), Some(1));

    // A program that vanishes, and comes back.
    fs::rename(&program, dir.path().join("away")).unwrap();
    agent.wait_firing("the program", |f| f["subject"]["name"] == "tools" && f["state"] == "holds");
    fs::rename(dir.path().join("away"), &program).unwrap();
    agent.wait_firing("it is back", |f| f["subject"]["name"] == "tools" && f["state"] == "cleared");

    // The snapshot outlives the agent; a new one clears.
    agent.stop();
    agent.run();
    agent.wait_firing("at boot", |f| {
        f["subject"]["name"] == "app" && f["state"] == "holds" && f["id"] != fired["id"]
    });
    agent.ok(&["deps", "snapshot", "app"]);
    agent.wait_firing("it clears", |f| {
        f["subject"]["name"] == "app" && f["state"] == "cleared" && f["id"] != fired["id"]
    });
    assert_eq!(agent.grace(&["deps", "diff"]).status.code(), Some(0));
}

#[test]
fn the_venv_and_the_libraries_of_a_declared_process_are_watched_without_a_word_of_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("lib/python3.12/site-packages");
    fs::create_dir_all(&site).unwrap();
    fs::create_dir_all(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    fs::copy(harness::program("sleep"), dir.path().join("bin/python")).unwrap();
    distribution(&site, "alpha", "1.0");
    let agent = Agent::start_as(
        &format!(
            "[[process]]\nname = \"w\"\ncommand = [\"{}/bin/python\", \"1000\"]\n[triggers.dependency_regression]\npoll = \"100ms\"\n",
            dir.path().display()
        ),
        "observe",
        &[],
    );
    let mut views = Vec::new();
    wait_until("both are read", || {
        views = agent.lines(&["deps", "diff", "--json"]);
        views.len() == 2 && views.iter().all(|v| v["total"].as_u64().unwrap() > 0)
    });
    assert_eq!(views[0]["environment"], "process/w");
    assert_eq!(views[1]["environment"], "process/w/python");
    assert!(views[0]["total"].as_u64().unwrap() > 1, "a program and its libraries: {views:#?}");
    fs::write(dir.path().join("bin/new"), "").unwrap();
    fs::copy(harness::program("sleep"), dir.path().join("bin/other")).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(dir.path().join("bin/other")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    fs::rename(dir.path().join("bin/other"), dir.path().join("bin/python")).unwrap();
    agent.wait_firing("another program", |f| f["subject"]["name"] == "process/w" && f["state"] == "holds");
}

/// `count` commits for `git fast-import`, from number `from` on: two of three repair one of `hot`, the others touch anything.
fn stretch(from: usize, count: usize, hot: &[String]) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for n in from..from + count {
        let step = n.wrapping_mul(2_654_435_761) >> 7;
        let repairs = step % 3 > 0 || step % 4 == 0;
        let file =
            if step % 3 > 0 { hot[step / 3 % hot.len()].clone() } else { format!("f{}.py", step / 3 % 40) };
        let message = if repairs { "fix a crash" } else { "work" };
        let who = format!("a{0} <a{0}@a.example> {1} +0000", n % 4, 1_700_000_000 + n * 3600);
        write!(
            out,
            "commit refs/heads/main\nauthor {who}\ncommitter {who}\ndata {}\n{message}\n",
            message.len()
        )
        .unwrap();
        if n == from && from > 0 {
            out.push_str("from refs/heads/main^0\n");
        }
        if n == 0 {
            for f in (0..40).map(|f| format!("f{f}.py")).chain(["hot.py".into(), "note.md".into()]) {
                write!(out, "M 100644 inline {f}\ndata 2\n0\n\n").unwrap();
            }
        }
        let text = format!("{n}\n");
        write!(out, "M 100644 inline {file}\ndata {}\n{text}\n", text.len()).unwrap();
    }
    out
}

fn import(repo: &Path, history: &str) {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(repo)
        .args(["fast-import", "--quiet"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(history.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_file_that_is_repaired_again_and_again_is_told_with_reasons_and_clears() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().canonicalize().unwrap();
    git(&repo, &["init", "-q", "-b", "main"]);
    // The same four files for a while, then others: who was repaired lately will be again, who was long ago will not.
    let four = |n: usize| (n * 4..n * 4 + 4).map(|f| format!("f{f}.py")).collect::<Vec<_>>();
    let calm: String = (0..6).map(|n| stretch(n * 150, 150, &four(n))).collect();
    // Only the first commit of an import names what it goes on from.
    let calm = calm.replace("from refs/heads/main^0\n", "");
    import(&repo, &calm);
    let config = format!("[[repo]]\npath = \"{}\"\n", repo.display());
    let agent = Agent::start_as(&config, "observe", &[]);
    let risk = |args: &[&str]| -> Vec<Value> {
        let out = agent.grace(&[&["risk", "--json"], args].concat());
        String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    wait_until("it is rated", || !risk(&[]).is_empty());
    let all = risk(&[]);
    assert_eq!(all.len(), 41, "all source files, and no others");
    assert!(all.iter().all(|f| (0.0..=1.0).contains(&f["risk"].as_f64().unwrap())), "{all:#?}");
    assert!(all[0]["model"].as_str().unwrap().contains("calibration error"), "{}", all[0]["model"]);
    let hot = repo.join("hot.py");
    let one = risk(&[hot.to_str().unwrap()]);
    assert!(one.len() == 1 && one[0]["risk"].as_f64().unwrap() < 0.6, "{one:#?}");
    let out = agent.grace(&["risk", repo.join("note.md").to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");

    import(&repo, &stretch(900, 150, &[vec!["hot.py".to_owned()], four(5)].concat()));
    let about =
        |f: &Value| f["trigger"] == "predicted_failure" && f["subject"]["name"] == hot.to_str().unwrap();
    let fired = agent.wait_firing("it is told", |f| about(f) && f["state"] == "holds");
    assert!(fired["evidence"].to_string().contains("repaired by"), "{fired:#}");
    assert!(fired["baseline"].as_str().unwrap().contains("calibration error"), "{fired:#}");
    let later =
        stretch(1050, 150, &four(7)) + &stretch(1200, 150, &four(8)).replace("from refs/heads/main^0\n", "");
    import(&repo, &later);
    agent.wait_firing("it clears", |f| about(f) && f["state"] == "cleared");
}

#[test]
fn a_scan_makes_every_source_about_code_look_now() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("venv/lib/python3.11/site-packages");
    fs::create_dir_all(&site).unwrap();
    fs::create_dir_all(dir.path().join("venv/bin")).unwrap();
    fs::write(dir.path().join("venv/bin/python"), "").unwrap();
    distribution(&site, "alpha", "1.0");
    let server = Server::start(&json!({"id": 7}));
    // None of them would look by itself while the test runs, but for the first time.
    let config = format!(
        "[[endpoint]]\nname = \"models\"\nurl = \"{}\"\nevery = \"1h\"\nopenapi = \"$DIR/etc/openapi.yaml\"\n\
         [[environment]]\nname = \"app\"\nkind = \"python\"\npaths = [\"{}/venv\"]\n\
         [triggers.dependency_regression]\npoll = \"1h\"\n[triggers.code_diff]\npoll = \"1h\"\n[scan]\nat_start = false\n",
        server.url,
        dir.path().display()
    );
    let (agent, repo) = repo_with(&config, "critical = [\"backend/**\"]");
    agent.ok(&["good"]);
    wait_until("the snapshot is taken", || {
        agent.lines(&["deps", "diff", "--json"]).first().is_some_and(|view| view["snapshot"].is_string())
    });
    agent.file(
        "openapi.yaml",
        "openapi: 3.1.0\npaths:\n  /v1/models:\n    get:\n      responses:\n        '200':\n          content:\n            \
         application/json:\n              schema: {type: object, required: [id], properties: {id: {type: integer}}}\n",
    );
    let tree = tempfile::tempdir().unwrap();
    let scan = || -> Value {
        let out = agent.grace(&["scan", "--json", tree.path().to_str().unwrap()]);
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let found = scan();
    assert_eq!((&found["found"], &found["not_done"]), (&json!(0), &json!([])), "{found:#}");

    fs::remove_dir_all(site.join("alpha-1.0.dist-info")).unwrap();
    distribution(&site, "alpha", "1.1");
    write(&repo, "backend/chat.py", "LIMIT = 4\n");
    server.answers("200 OK", &json!({"id": "seven"}));
    let found = scan();
    let mut fired: Vec<&str> = ["self_healing", "coding_agent"]
        .iter()
        .flat_map(|route| found[route].as_array().unwrap())
        .map(|item| item["trigger"].as_str().unwrap())
        .collect();
    fired.sort_unstable();
    assert_eq!(fired, ["code_diff", "dependency_regression", "telemetry_drift"], "{found:#}");
    assert_eq!(found["not_done"], json!([]), "{found:#}");
    let _ = fs::remove_dir_all(&repo);
}
