//! The command line where it needs no agent: help, usage, configuration, schemas, the manual.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn grace_in(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_grace"))
        .args(args)
        .current_dir(folder)
        // No agent of this host's is asked by accident.
        .env("GRACE_SOCKET", "/nonexistent/grace.sock")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn grace(args: &[&str]) -> Output {
    grace_in(Path::new("/"), args)
}

/// What it prints where it succeeds.
#[track_caller]
fn prints(args: &[&str]) -> String {
    let out = grace(args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {out:?}");
    assert!(out.stderr.is_empty(), "{args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A folder with `grace.toml` in it.
fn with_config(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("grace.toml"), text).unwrap();
    dir
}

/// The subcommands as `grace --help` lists them.
fn subcommands() -> Vec<String> {
    let help = prints(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // Names are indented by two; text that goes on below them by more.
    let names = list.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    names.map(|l| l.split_whitespace().next().unwrap().to_owned()).filter(|n| n != "help").collect()
}

#[test]
fn the_names_that_scripts_use_are_there() {
    let names = subcommands();
    for name in [
        "run",
        "scan",
        "status",
        "firings",
        "explain",
        "triggers",
        "snapshot",
        "snapshots",
        "verify",
        "restore",
        "forget",
        "doctor",
        "config",
        "inject",
        "replay",
        "tasks",
        "heartbeat",
        "queue",
        "latency",
        "error",
        "accuracy",
        "schema",
        "completions",
        "man",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
}

#[test]
fn every_subcommand_has_help_and_takes_what_all_take() {
    for name in subcommands() {
        let help = prints(&[&name, "--help"]);
        for option in ["--socket", "--quiet", "--color"] {
            assert!(help.contains(option), "{name} --help does not tell {option}:\n{help}");
        }
        assert!(help.lines().all(|l| l.chars().count() <= 100), "{name} --help is too wide:\n{help}");
    }
    assert!(prints(&["--version"]).starts_with("grace "));
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &[][..],
        &["nothing"],
        &["status", "--nothing"],
        &["snapshot"],
        &["restore"],
        &["restore", "/a", "--at", "latest"],
        &["forget"],
        &["explain"],
        &["firings", "--since", "yesterday"],
        &["snapshot", "/a", "--kind", "weights?"],
        &["run", "--mode", "maybe"],
        &["inject", "nothing"],
        &["schema", "nothing"],
        &["completions", "nothing"],
        &["tasks", "show"],
        &["status", "--color", "maybe"],
        &["replay", "/nonexistent"],
        &["heartbeat"],
        &["queue", "a", "much"],
        &["queue", "a", "-1"],
        &["latency", "/a", "inf"],
        &["error", "E", "--trace", "/nonexistent"],
    ] {
        let out = grace(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {out:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}: {out:?}");
    }
}

#[test]
fn a_subcommand_that_asks_ends_with_3_and_says_what_to_do() {
    for args in [
        &["status"][..],
        &["firings", "--follow"],
        &["tasks", "list"],
        &["verify", "/etc/hosts"],
        &["heartbeat", "a"],
    ] {
        let out = grace(args);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {out:?}");
        let text = stderr(&out);
        assert!(text.contains("/nonexistent/grace.sock") && text.contains("grace run"), "{args:?}: {text}");
    }
}

#[test]
fn a_wrong_configuration_is_told_like_a_compiler_would() {
    let dir = with_config(
        "mode = \"repair\"\n\n[[process]]\nname = \"worker\"\ncomand = [\"/bin/true\"]\nrestrt = \"never\"\n",
    );
    let expected = "\
grace: grace.toml:5:1: unknown key `comand` in [[process]]; did you mean `command`?
  |
5 | comand = [\"/bin/true\"]
  | ^^^^^^

grace.toml:6:1: unknown key `restrt` in [[process]]; did you mean `restart`?
  |
6 | restrt = \"never\"
  | ^^^^^^
";
    for args in [&["config", "check"][..], &["config", "show"]] {
        let out = grace_in(dir.path(), &[args, &["--config", "grace.toml"]].concat());
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        assert_eq!(stderr(&out), expected);
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn an_agent_does_not_start_on_a_wrong_configuration() {
    let dir = with_config("[[process]]\nname = \"a\"\ncommand = [\"sleep\"]\n");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let args = ["--config", &path("grace.toml"), "--state-dir", &path("state"), "--socket", &path("s")];
    let out = grace(&[&["run"], &args[..]].concat());
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(stderr(&out).contains("grace.toml:3:12: command: `sleep` is not an absolute path"), "{out:?}");
    assert!(!Path::new(&path("s")).exists() && !Path::new(&path("state")).exists());
}

#[test]
fn a_configuration_that_is_named_must_be_there() {
    for args in [&["config", "check"][..], &["config", "show"], &["run", "--state-dir", "/nonexistent/s"]] {
        let out = grace(&[args, &["--config", "/nonexistent/grace.toml"]].concat());
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        assert!(stderr(&out).contains("/nonexistent/grace.toml: cannot be read: No such file"), "{out:?}");
    }
}

#[test]
fn config_check_answers_scripts_too() {
    let good = with_config("mode = \"repair\"\n");
    let bad = with_config("mode = 3\n");
    for (dir, code) in [(&good, 0), (&bad, 2)] {
        let out = grace_in(dir.path(), &["config", "check", "--config", "grace.toml", "--json"]);
        assert_eq!(out.status.code(), Some(code), "{out:?}");
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(answer["ok"], code == 0);
        assert_eq!(answer["error"].is_string(), code != 0, "{answer}");
    }
    assert_eq!(grace_in(good.path(), &["config", "check", "--config", "grace.toml", "--quiet"]).stdout, b"");
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let text = "mode = \"repair\"\n[[process]]\nname = \"a\"\ncommand = [\"/bin/x\", \"\\u001b\"]\n[process.env]\nA = \"b\"\n[[file]]\npath = \"/etc/x\"\nsecret = true\n";
    let first = with_config(text);
    let show = |dir: &Path| {
        let out = grace_in(dir, &["config", "show", "--config", "grace.toml"]);
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let shown = show(first.path());
    assert!(shown.contains("mode = \"repair\"") && shown.contains("A = \"b\""), "{shown}");
    assert_eq!(show(with_config(&shown).path()), shown);

    let defaults = prints(&["config", "show", "--defaults"]);
    let dir = with_config(&defaults);
    assert_eq!(show(dir.path()), show(with_config("").path()), "{defaults}");
}

#[test]
fn every_schema_that_is_listed_is_one() {
    let names = prints(&["schema"]);
    for name in
        ["firing", "scan", "status", "snapshot", "verify", "explain", "task", "trigger", "doctor", "config"]
    {
        assert!(names.lines().any(|l| l == name), "{name} is missing: {names}");
    }
    for name in names.lines() {
        let schema: Value = serde_json::from_str(&prints(&["schema", name])).unwrap();
        assert_eq!(schema["type"], "object", "{name}");
        let keys = schema["properties"].as_object().unwrap();
        assert!(
            keys.values().all(|k| k["description"].is_string()),
            "{name} has a key without a word about it"
        );
    }
    let config: Value = serde_json::from_str(&prints(&["schema", "config"])).unwrap();
    let same: Value = serde_json::from_str(&prints(&["config", "schema"])).unwrap();
    assert_eq!(config, same);
}

#[test]
fn schemas_have_the_fields_that_scripts_rely_on() {
    for (name, fields) in [
        (
            "firing",
            &[
                "id",
                "trigger",
                "subject",
                "state",
                "since",
                "at",
                "summary",
                "measured",
                "threshold",
                "baseline",
                "writer",
                "evidence_gaps",
                "remedy",
            ][..],
        ),
        ("status", &["mode", "probes", "sources", "triggers", "lost", "cost", "records"]),
        ("records", &["accepted", "refused"]),
        ("scan", &["found", "self_healing", "coding_agent"]),
        (
            "task",
            &[
                "id",
                "fingerprint",
                "count",
                "title",
                "trigger",
                "state",
                "claim",
                "evidence",
                "acceptance",
                "history",
            ],
        ),
    ] {
        let schema: Value = serde_json::from_str(&prints(&["schema", name])).unwrap();
        for field in fields {
            assert!(schema["properties"].get(field).is_some(), "{name} has no {field}");
        }
    }
}

/// With GRACE_WRITE_DOCS set it writes the table instead.
#[test]
fn the_readme_has_the_table_of_the_specs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- triggers: `grace triggers --markdown` -->\n", "<!-- end of triggers -->\n");
    let (before, rest) = readme.split_once(begin).expect("the mark where the table begins");
    let (table, after) = rest.split_once(end).expect("the mark where the table ends");
    let wanted = prints(&["triggers", "--markdown"]);
    if std::env::var_os("GRACE_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(table, wanted, "run this test with GRACE_WRITE_DOCS=1, or paste `grace triggers --markdown`");
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = prints(&["completions", shell]);
        for name in subcommands() {
            assert!(text.contains(&name), "{shell} does not know {name}");
        }
    }
}

#[test]
fn the_manual_has_a_page_for_every_subcommand() {
    assert!(prints(&["man"]).contains(".TH grace 1"));
    let dir = tempfile::tempdir().unwrap();
    prints(&["man", dir.path().to_str().unwrap()]);
    for name in subcommands() {
        let page = fs::read_to_string(dir.path().join(format!("grace-{name}.1"))).unwrap();
        assert!(page.contains(r"\-\-socket"), "{name}");
    }
    let out = grace(&["man", "/nonexistent"]);
    assert_ne!(out.status.code(), Some(0), "{out:?}");
}

#[test]
fn the_doctor_works_without_an_agent_and_says_so() {
    let out = grace(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["agent"].is_null());
    let checks = report["checks"].as_array().unwrap();
    let degraded = checks.iter().any(|c| c["state"] == "degraded");
    assert_eq!(out.status.code(), Some(i32::from(degraded)), "{report:#}");
    for check in checks {
        assert!(["ok", "degraded", "unsupported", "off"].iter().any(|s| check["state"] == *s), "{check}");
        assert!(check["detail"].is_string(), "{check}");
        // What does not work comes with what to do.
        assert!(check["state"] != "degraded" || check["fix"].is_string(), "{check}");
    }
    let out = grace(&["doctor"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("no agent"), "{out:?}");
}

#[test]
fn colour_is_used_only_where_it_is_wanted() {
    let escapes = |args: &[&str]| grace(args).stdout.contains(&0x1b);
    assert!(!escapes(&["doctor"]), "stdout is a pipe");
    assert!(!escapes(&["--color", "never", "doctor"]));
    assert!(escapes(&["--color", "always", "doctor"]));
}

#[test]
fn a_closed_stdout_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = Command::new(env!("CARGO_BIN_EXE_grace"))
        .args(["schema", "status"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!((out.status.code(), stderr(&out).as_str()), (Some(0), ""), "{out:?}");
}
