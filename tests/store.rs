//! What Grace keeps, and how it puts it back: through the command line, with real files, users, mounts and packages.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Agent, root, wait_until};
use serde_json::Value;

/// Everything below `folder` that is a regular file.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => out.extend(files_below(&path)),
            Ok(meta) if meta.is_file() => out.push(path),
            _ => {}
        }
    }
    out
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn about(path: &Path) -> impl Fn(&Value) -> bool + '_ {
    move |f| f["trigger"] == "config_drift" && f["subject"]["name"] == name(path)
}

fn cleared(path: &Path) -> impl Fn(&Value) -> bool + '_ {
    move |f| about(path)(f) && f["state"] == "cleared"
}

#[test]
fn versions_are_listed_compared_and_put_back_by_number_and_by_time() {
    let agent = Agent::start("");
    let path = agent.file("app.conf", "listen = 8080\nworkers = 4\n");
    agent.ok(&["snapshot", name(&path)]);
    let first = agent.lines(&["snapshots", "--json", name(&path)]).remove(0);
    assert_eq!(first["author"], format!("uid {}", rustix::process::geteuid().as_raw()));
    let out = agent.grace(&["diff", name(&path)]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let then = jiff_now();

    // The next version by `grace snapshot`: a person's change, not a drift.
    agent.ok(&["pause", "all", "--for", "1m", "--why", "an edit"]);
    fs::write(&path, "listen = 9090\nworkers = 4\nnew = \"\x1b[31m\"\n").unwrap();
    let out = agent.grace(&["diff", name(&path)]);
    assert_eq!(out.status.code(), Some(1));
    let shown = String::from_utf8(out.stdout).unwrap();
    for line in ["-listen = 8080", "+listen = 9090", " workers = 4", "+new = \"\\u{1b}[31m\""] {
        assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
    }
    let view: Value = serde_json::from_slice(&agent.grace(&["diff", "--json", name(&path)]).stdout).unwrap();
    assert_eq!((&view["content"], &view["added"], &view["removed"]), (&"text".into(), &2.into(), &1.into()));
    agent.ok(&["snapshot", name(&path)]);
    agent.ok(&["resume", "all"]);
    let versions = agent.lines(&["snapshots", "--json", name(&path)]);
    assert_eq!(versions.len(), 2);
    let id = first["id"].to_string();
    assert!(agent.grace(&["diff", name(&path), "--at", &id]).status.code() == Some(1));

    let out = agent.grace(&["restore", name(&path), "--at", "100d ago"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    agent.ok(&["restore", name(&path), "--at", &then]);
    assert_eq!(text(&path), "listen = 8080\nworkers = 4\n");
    assert_eq!(agent.ok(&["verify", "--json", name(&path)]).matches("\"ok\"").count(), 1);

    fs::write(&path, b"\x00\x01binary").unwrap();
    agent.wait_firing("binary", |f| cleared(&path)(f) && f["repaired_us"].is_u64());
    assert_eq!(text(&path), "listen = 8080\nworkers = 4\n");
    let binary = agent.file("blob", "");
    fs::write(&binary, b"\x00\x01").unwrap();
    agent.ok(&["snapshot", name(&binary)]);
    agent.ok(&["pause", "all", "--for", "1m", "--why", "an edit"]);
    fs::write(&binary, b"\x00\x02").unwrap();
    let out = agent.grace(&["diff", name(&binary)]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("binary content differs"), "{out:?}");
    assert_eq!(agent.grace(&["diff", "/etc/hostname"]).status.code(), Some(1), "not owned");
}

fn jiff_now() -> String {
    // Past the microsecond of the snapshot, and before whatever comes next.
    std::thread::sleep(std::time::Duration::from_millis(2));
    let out = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
    let now = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    std::thread::sleep(std::time::Duration::from_millis(2));
    now
}

#[test]
fn a_secret_is_nowhere_in_the_open_and_comes_back() {
    const SECRET: &str = "hunter2-correct-horse-battery-staple";
    let agent = Agent::start(
        "[[file]]\npath = \"$DIR/etc/token\"\nsecret = true\n[[file]]\npath = \"$DIR/etc/late\"\n",
    );
    // It is not there when the agent starts: a reload takes it.
    let (path, late) = (agent.file("token", SECRET), agent.file("late", SECRET));
    agent.ok(&["snapshot", name(&path), "--kind", "secret"]);
    agent.ok(&["snapshot", name(&late)]);
    assert_eq!(agent.lines(&["snapshots", "--json"]).len(), 2);
    let other = format!("{SECRET}, overwritten");
    fs::write(&path, &other).unwrap();
    let firing = agent.wait_firing("the secret", cleared(&path));
    assert_eq!(text(&path), SECRET);
    // What lay there is sealed, and can be had back.
    assert!(firing["remedy"][0]["why"].as_str().unwrap().contains(".age"), "{firing:#}");
    agent.ok(&["undo", firing["id"].as_str().unwrap()]);
    assert_eq!(text(&path), other);
    agent.ok(&["pause", "all", "--for", "1m", "--why", "a look"]);
    fs::write(&path, format!("{SECRET}!")).unwrap();
    wait_until("the change is seen", || {
        agent.firings().iter().any(|f| about(&path)(f) && f["state"] == "holds")
    });
    let mut said = String::new();
    for args in [
        &["diff", name(&path)][..],
        &["diff", "--json", name(&path)],
        &["explain", firing["id"].as_str().unwrap()],
        &["firings", "--json"],
        &["tasks", "list", "--json"],
        &["snapshots", "--json"],
        &["verify", "--json"],
        &["config", "show"],
    ] {
        let out = agent.grace(args);
        said.push_str(&String::from_utf8_lossy(&out.stdout));
        said.push_str(&String::from_utf8_lossy(&out.stderr));
    }
    assert!(said.contains("the secret differs; its content is not shown"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    for file in files_below(&agent.path("state")) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "{} holds the secret", file.display());
    }
    let key = fs::metadata(agent.path("state/secret.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn all_of_a_watched_folder_is_owned_and_what_is_new_is_told_and_stays() {
    const CONFIG: &str = "[[file]]\npath = \"$DIR/etc/conf.d/\"\nexcept = [\"*.swp\"]\nmax_files = 5\n";
    let mut agent = Agent::start("");
    fs::create_dir_all(agent.path("etc/conf.d/deep")).unwrap();
    for file in ["conf.d/a.conf", "conf.d/deep/b.conf", "conf.d/x.swp"] {
        agent.file(file, "good\n");
    }
    agent.stop();
    agent.config(CONFIG);
    agent.run();
    let (a, b) = (agent.path("etc/conf.d/a.conf"), agent.path("etc/conf.d/deep/b.conf"));
    assert_eq!(agent.lines(&["snapshots", "--json"]).len(), 2);

    fs::write(&b, "bad").unwrap();
    agent.wait_firing("a changed file", cleared(&b));
    fs::remove_file(&a).unwrap();
    agent.wait_firing("a removed file", cleared(&a));
    assert_eq!((text(&a).as_str(), text(&b).as_str()), ("good\n", "good\n"));

    // Written beside and renamed, and what is excepted: no news.
    agent.file("conf.d/tmp", "good\n");
    fs::rename(agent.path("etc/conf.d/tmp"), &a).unwrap();
    agent.file("conf.d/y.swp", "");
    let new = agent.file("conf.d/new.conf", "planted\n");
    let firing = agent.wait_firing("a new file", |f| about(&new)(f) && f["state"] == "holds");
    assert!(firing["summary"].as_str().unwrap().starts_with("new in the watched folder"), "{firing}");
    if root() {
        assert_eq!(firing["writer"]["pid"], std::process::id(), "{firing}");
    }
    wait_until("a task is filed", || {
        agent.ok(&["tasks", "list", "--json"]).contains("new file in a watched folder")
    });
    assert_eq!(text(&new), "planted\n", "nothing is deleted");
    // In a folder that is new itself.
    fs::create_dir_all(agent.path("etc/conf.d/more")).unwrap();
    let inner = agent.file("conf.d/more/c.conf", "planted\n");
    agent.wait_firing("a new file in a new folder", |f| about(&inner)(f) && f["state"] == "holds");

    // Taken over, or removed: both are the end of it.
    agent.ok(&["snapshot", name(&new)]);
    agent.wait_firing("taken over", cleared(&new));
    fs::remove_file(&inner).unwrap();
    agent.wait_firing("gone again", cleared(&inner));
    let told: Vec<Value> =
        agent.firings().into_iter().filter(|f| f["summary"].as_str().unwrap().starts_with("new")).collect();
    assert_eq!(told.len(), 2, "{told:#?}");

    // What came while no agent ran is new, too; and more than max_files is said.
    agent.stop();
    let planted = agent.file("conf.d/planted.conf", "planted\n");
    agent.run();
    agent.wait_firing("planted while no agent ran", |f| about(&planted)(f) && f["state"] == "holds");
    assert_eq!(agent.lines(&["snapshots", "--json"]).len(), 3);
    for n in 0..5 {
        agent.file(&format!("conf.d/many{n}.conf"), "");
    }
    agent.stop();
    agent.run();
    let status = agent.json(&["status", "--json"]);
    let why = status["degraded"].to_string();
    assert!(why.contains("more than 5 files (max_files)"), "{why}");
}

#[test]
fn a_pattern_means_its_files_only() {
    let mut agent = Agent::start("");
    for file in ["a.conf", "b.yaml"] {
        agent.file(file, "good\n");
    }
    agent.stop();
    agent.config("[[file]]\npath = \"$DIR/etc/*.conf\"\n");
    agent.run();
    let owned = agent.lines(&["snapshots", "--json"]);
    assert_eq!(owned.len(), 1, "{owned:#?}");
    agent.file("new.yaml", "");
    let new = agent.file("new.conf", "");
    agent.wait_firing("a new file", |f| about(&new)(f) && f["state"] == "holds");
    assert_eq!(agent.firings().len(), 1);
}

#[test]
fn an_undo_puts_back_what_a_restore_displaced_and_says_what_it_cannot() {
    let agent = Agent::start("");
    let path = agent.file("app.conf", "good\n");
    agent.ok(&["snapshot", name(&path)]);
    fs::write(&path, "an edit that was meant\n").unwrap();
    let firing = agent.wait_firing("an edit", |f| cleared(&path)(f) && f["remedy"][0]["state"] == "done");
    let id = firing["id"].as_str().unwrap();
    let out = agent.ok(&["undo", id]);
    assert!(out.contains("what lay there is back"), "{out}");
    assert_eq!(text(&path), "an edit that was meant\n");
    // It is known-good: it stays, and what was before is a version.
    agent.ok(&["verify", name(&path)]);
    let versions = agent.lines(&["snapshots", "--json", name(&path)]);
    assert_eq!(versions.len(), 2);
    assert!(
        versions[1]["reason"].as_str().unwrap().starts_with(&format!("undo of {id} by uid")),
        "{versions:#?}"
    );
    assert_eq!(versions[1]["current"], true);
    let journal = agent.ok(&["explain", id]);
    assert!(journal.contains("restore_file"), "{journal}");
    // Once is enough: the known-good state is newer than the incident now.
    let out = agent.grace(&["undo", id]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("a newer known-good state"), "{out:?}");
    assert_eq!(text(&path), "an edit that was meant\n");

    fs::remove_file(&path).unwrap();
    let removed = agent.wait_firing("a removal", |f| cleared(&path)(f) && f["id"] != id);
    let out = agent.grace(&["undo", removed["id"].as_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("nothing lay there"), "{out:?}");
    assert_eq!(agent.grace(&["undo", "f-999"]).status.code(), Some(1));
    assert_eq!(agent.grace(&["undo", "999"]).status.code(), Some(2));
}

#[test]
fn rot_in_the_store_is_found_mended_and_said() {
    let agent = Agent::start("");
    let (a, b) = (agent.file("a.conf", &"line\n".repeat(3000)), agent.file("b.conf", "short\n"));
    agent.ok(&["snapshot", name(&a), name(&b)]);
    let report = agent.json(&["verify", "--store", "--json"]);
    assert_eq!((&report["contents"], &report["bytes"]), (&2.into(), &15_006.into()));
    let objects = files_below(&agent.path("state/objects"));
    let packed = objects.iter().filter(|o| o.extension().is_some_and(|e| e == "zst")).count();
    assert_eq!((objects.len(), packed), (2, 1), "{objects:?}");
    assert!(objects.iter().all(|o| o.metadata().unwrap().len() < 1000), "compressed");
    let rot = || {
        for object in files_below(&agent.path("state/objects")) {
            fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
            let mut bytes = fs::read(&object).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(object, bytes).unwrap();
        }
    };
    rot();
    let report = agent.json(&["verify", "--store", "--json"]);
    assert_eq!(
        (report["mended"].as_array().unwrap().len(), report["lost"].as_array().unwrap().len()),
        (2, 0),
        "{report:#}"
    );
    agent.ok(&["verify"]);
    // Nothing is left to mend it from: the file itself is another one now.
    agent.ok(&["pause", "all", "--for", "1m", "--why", "rot"]);
    fs::write(&b, "other\n").unwrap();
    rot();
    let out = agent.grace(&["verify", "--store"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.contains("lost") && said.contains("needed by") && said.contains(name(&b)), "{said}");
    let degraded = agent.json(&["status", "--json"])["degraded"].to_string();
    assert!(degraded.contains("source store") && degraded.contains("damaged"), "{degraded}");
    agent.ok(&["forget", name(&b)]);
    assert!(agent.ok(&["verify", "--store"]).contains("1 contents"));
    let degraded = agent.json(&["status", "--json"])["degraded"].to_string();
    assert!(!degraded.contains("source store"), "{degraded}");
}
