//! The whole way from kernel to repair, with real probes, processes and files. Needs root.
//!
//! Runs on this machine's kernel and, by `cargo xtask test`, on stock kernels in guests.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use harness::{Agent, program, run, wait_until};
use serde_json::Value;

const GOOD: &str = "listen = 8080\nworkers = 4\n";

fn drift_of(path: &Path) -> impl Fn(&Value) -> bool + '_ {
    move |f| f["trigger"] == "config_drift" && f["subject"]["name"] == path.to_str().unwrap()
}

/// What one way of breaking a file must lead to.
struct Way {
    name: &'static str,
    /// Program and arguments; `$F` is the file, `$D` its folder.
    command: &'static [&'static str],
    /// Content that must be found in quarantine; none: nothing was displaced.
    displaced: Option<&'static str>,
}

const WAYS: &[Way] = &[
    Way {
        name: "sed",
        command: &["sed", "-i", "s/8080/666/", "$F"],
        displaced: Some("listen = 666\nworkers = 4\n"),
    },
    Way { name: "truncate", command: &["truncate", "-s", "3", "$F"], displaced: Some("lis") },
    Way { name: "mv", command: &["mv", "$D/other", "$F"], displaced: Some("other\n") },
    Way { name: "chmod", command: &["chmod", "0666", "$F"], displaced: Some(GOOD) },
    Way { name: "chown", command: &["chown", "12:34", "$F"], displaced: Some(GOOD) },
    Way { name: "rm", command: &["rm", "$F"], displaced: None },
    Way {
        name: "dd",
        command: &["dd", "if=$D/other", "of=$F", "conv=notrunc", "status=none"],
        displaced: None,
    },
    Way { name: "cp", command: &["cp", "$D/other", "$F"], displaced: Some("other\n") },
    Way { name: "tee", command: &["sh", "-c", "echo more | exec tee -a $F >/dev/null"], displaced: None },
    Way { name: "ln", command: &["ln", "-sf", "/etc/passwd", "$F"], displaced: None },
    Way { name: "mv", command: &["mv", "$F", "$D/away"], displaced: None },
    Way { name: "truncate", command: &["truncate", "-s", "+1", "$F"], displaced: None },
];

#[test]
fn every_way_of_breaking_a_config_is_undone_and_attributed() {
    let agent = Agent::start("");
    for (index, way) in WAYS.iter().enumerate() {
        let path = agent.file(&format!("{index}.conf"), GOOD);
        agent.file("other", "other\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        agent.ok(&["snapshot", path.to_str().unwrap()]);
        let args: Vec<String> = way
            .command
            .iter()
            .map(|a| {
                a.replace("$F", path.to_str().unwrap()).replace("$D", agent.path("etc").to_str().unwrap())
            })
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let pid = run(&program(args[0]), &args[1..]);
        let firing = agent.wait_firing(way.name, |f| drift_of(&path)(f) && f["state"] == "cleared");

        let what = format!("{}: {firing:#}\n{}", way.name, agent.log());
        assert_eq!(fs::read_to_string(&path).unwrap(), GOOD, "{what}");
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(
            meta.is_file() && meta.mode() & 0o7777 == 0o640 && (meta.uid(), meta.gid()) == (0, 0),
            "{what}"
        );
        assert_eq!(firing["writer"]["comm"], way.name, "{what}");
        if args[0] == way.name {
            assert_eq!(firing["writer"]["pid"], pid, "{what}");
        }
        assert!(firing["writer"]["exe"].as_str().unwrap().ends_with(way.name), "{what}");
        assert_eq!(firing["writer"]["uid"], 0, "{what}");
        assert!(!firing["writer"]["cgroup"].is_null(), "{what}");
        assert_eq!(firing["remedy"][0]["action"], "restore_file", "{what}");
        assert_eq!(firing["remedy"][0]["state"], "done", "{what}");
        assert_eq!(firing["evidence_gaps"], false, "{what}");
        if let Some(content) = way.displaced {
            let kept: Vec<String> = fs::read_dir(agent.path("state/quarantine"))
                .unwrap()
                .filter_map(|e| fs::read_to_string(e.unwrap().path()).ok())
                .collect();
            assert!(kept.iter().any(|k| k == content), "{what}: quarantine holds {kept:?}");
        }
        let leftovers: Vec<_> = fs::read_dir(agent.path("etc"))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| n.contains("grace"))
            .collect();
        assert!(leftovers.is_empty(), "{what}: {leftovers:?}");
    }
    let status = agent.json(&["status", "--json"]);
    // One of them is off where the kernel refuses LSM and fentry programs.
    let optional = |p: &Value| p["name"] == "file_name" && p["state"] == "off";
    let fine = |p: &Value| p["state"] == "ok" || optional(p);
    assert!(status["probes"].as_array().unwrap().iter().all(fine), "{status:#}");
    for (class, lost) in status["lost"].as_object().unwrap() {
        assert_eq!(lost, 0, "{class}");
    }
}

#[test]
fn a_store_through_a_mapping_is_noticed_and_attributed() {
    let agent = Agent::start("");
    let path = agent.file("mapped.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    // Another process: this very program, asked to run only the helper below.
    let me = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(&me)
        .args(["--exact", "helper_that_stores_through_a_mapping", "--nocapture"])
        .env("GRACE_TEST_MAP", &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    let firing = agent.wait_firing("mmap", |f| drift_of(&path)(f) && f["state"] == "cleared");
    assert_eq!(fs::read_to_string(&path).unwrap(), GOOD);
    assert_eq!(firing["writer"]["pid"], pid, "{firing:#}");
    assert_eq!(firing["writer"]["exe"], me.to_str().unwrap(), "{firing:#}");
}

/// Not a test: what the one above starts. Without its variable it does nothing.
#[test]
#[expect(unsafe_code, reason = "mapping a file is what is tried here")]
fn helper_that_stores_through_a_mapping() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync};
    let Some(path) = std::env::var_os("GRACE_TEST_MAP") else { return };
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    // SAFETY: a fresh mapping of an open file that is longer than the six bytes stored; nobody cuts it meanwhile.
    unsafe {
        let map =
            mmap(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
                .unwrap();
        std::ptr::copy_nonoverlapping(b"EVIL!!".as_ptr(), map.cast(), 6);
        msync(map, 4096, MsyncFlags::SYNC).unwrap();
    }
}

#[test]
fn a_legitimate_writer_makes_the_new_known_good() {
    let agent = Agent::start("[[file]]\npath = \"$DIR/etc/app.conf\"\nwriters = [\"*/cp\"]\n");
    // The file came after the configuration: owned from now on.
    let path = agent.file("app.conf", GOOD);
    let new = agent.file("new", "new = true\n");
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    // `grace snapshot` knows no writers; the configuration's are read again.
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    wait_until("reloaded", || {
        agent
            .lines(&["snapshots", "--json"])
            .iter()
            .any(|s| s["writers"][0] == "*/cp" && s["current"] == true)
    });
    run(&program("cp"), &[new.to_str().unwrap(), path.to_str().unwrap()]);
    wait_until("taken over", || {
        agent.lines(&["snapshots", "--json"]).iter().any(|s| s["current"] == true && s["meta"]["size"] == 11)
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "new = true\n");
    assert!(agent.firings().iter().all(|f| !drift_of(&path)(f)), "{:#?}", agent.firings());
    // Anybody else's change is undone, back to the new content.
    run(&program("truncate"), &["-s", "0", path.to_str().unwrap()]);
    agent.wait_firing("drift", |f| drift_of(&path)(f) && f["state"] == "cleared");
    assert_eq!(fs::read_to_string(&path).unwrap(), "new = true\n");
}

#[test]
fn a_fight_ends_after_three_restores_with_a_task() {
    let agent = Agent::start("");
    let path = agent.file("fought.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    for round in 1..=3 {
        run(&program("sed"), &["-i", &format!("s/8080/{round}/"), path.to_str().unwrap()]);
        wait_until("restored", || {
            agent.firings().iter().filter(|f| drift_of(&path)(f) && f["state"] == "cleared").count() == round
        });
    }
    run(&program("sed"), &["-i", "s/8080/4/", path.to_str().unwrap()]);
    let firing = agent.wait_firing("conflict", |f| {
        drift_of(&path)(f) && f["remedy"][0]["state"] == "held" && f["remedy"][1]["state"] == "done"
    });
    assert!(firing["remedy"][0]["why"].as_str().unwrap().contains("conflict"), "{firing:#}");
    assert!(fs::read_to_string(&path).unwrap().contains("listen = 4"), "restored although it is a fight");
    let tasks = agent.lines(&["tasks", "list", "--json"]);
    assert_eq!(tasks.len(), 1, "{tasks:#?}");
    assert_eq!(tasks[0]["trigger"], "config_drift");
    assert!(
        tasks[0]["evidence"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["trust"] == "untrusted" && e["name"] == "writer")
    );
    // A person decides: then Grace keeps it up again.
    agent.ok(&["restore", path.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&path).unwrap(), GOOD);
    agent
        .wait_firing("cleared", |f| drift_of(&path)(f) && f["id"] == firing["id"] && f["state"] == "cleared");
}

#[test]
fn observe_reports_and_does_not_touch() {
    let agent = Agent::start_as("", "observe", &[]);
    let path = agent.file("seen.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    run(&program("truncate"), &["-s", "0", path.to_str().unwrap()]);
    let firing = agent.wait_firing("held", |f| drift_of(&path)(f) && f["remedy"][0]["state"] == "held");
    assert_eq!(firing["remedy"][0]["why"], "mode is observe");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(agent.lines(&["tasks", "list", "--json"]).is_empty());
    let verify = agent.grace(&["verify", "--json", path.to_str().unwrap()]);
    assert_eq!(verify.status.code(), Some(1));
}

const WORKER: &str = r#"
[[process]]
name = "worker"
command = ["/bin/sh", "-c", "echo starting >&2; exec /bin/sleep 1000"]
"#;

fn pid_of(agent: &Agent, name: &str) -> Option<u32> {
    let status = agent.json(&["status", "--json"]);
    let process = status["processes"].as_array()?.iter().find(|p| p["name"] == name)?.clone();
    u32::try_from(process["pid"].as_u64()?).ok()
}

fn wait_pid(agent: &Agent, name: &str, not: u32) -> u32 {
    let mut found = 0;
    wait_until("it runs", || {
        found = pid_of(agent, name).unwrap_or(0);
        found != 0 && found != not
    });
    found
}

#[test]
fn a_killed_process_comes_back_and_the_killer_is_named() {
    let agent = Agent::start(WORKER);
    let first = wait_pid(&agent, "worker", 0);
    wait_until("it is sleep by now", || {
        fs::read_to_string(format!("/proc/{first}/comm")).is_ok_and(|c| c.trim() == "sleep")
    });
    let killer = run(&program("kill"), &["-9", &first.to_string()]);
    let firing = agent.wait_firing("killed", |f| f["trigger"] == "health_gap" && f["state"] == "cleared");
    let second = wait_pid(&agent, "worker", first);
    let summary = firing["summary"].as_str().unwrap();
    assert!(
        summary.contains(&format!("pid {first} was killed by SIGKILL, sent by kill (pid {killer}")),
        "{firing:#}"
    );
    assert_eq!(firing["writer"]["pid"], killer);
    assert_eq!(firing["evidence"][0], "starting");
    assert_eq!(firing["remedy"][0]["action"], "start_process");
    assert_eq!(firing["remedy"][0]["state"], "done");
    assert!(Path::new(&format!("/proc/{second}")).exists());
}

#[test]
fn a_crash_loop_backs_off_and_ends_as_a_task() {
    let agent = Agent::start(
        r#"
[[process]]
name = "broken"
command = ["/bin/sh", "-c", "echo no such table >&2; exit 3"]
backoff = "10ms"
burst = 3
interval = "1h"
"#,
    );
    let firing = agent.wait_firing("held", |f| {
        f["trigger"] == "health_gap" && f["remedy"][0]["state"] == "held" && f["remedy"][1]["state"] == "done"
    });
    assert!(firing["summary"].as_str().unwrap().contains("exited with code 3"), "{firing:#}");
    assert!(
        firing["remedy"][0]["why"].as_str().unwrap().contains("3 restarts in 1h are used up"),
        "{firing:#}"
    );
    assert!(firing["evidence"].as_array().unwrap().iter().all(|l| l == "no such table"), "{firing:#}");
    let starts = fs::read_to_string(agent.path("state/logs/broken.stderr")).unwrap().lines().count();
    assert_eq!(starts, 4, "one first start and three restarts");
    assert_eq!(agent.lines(&["tasks", "list", "--json"]).len(), 1);
}

#[test]
fn a_program_that_does_not_exist_is_reported_and_retried_within_its_budget() {
    let agent = Agent::start(
        "[[process]]\nname = \"gone\"\ncommand = [\"/nonexistent/program\"]\nbackoff = \"10ms\"\nburst = 2\ninterval = \"1h\"\n",
    );
    let firing =
        agent.wait_firing("held", |f| f["trigger"] == "health_gap" && f["remedy"][1]["state"] == "done");
    assert_eq!(firing["summary"], "could not be started");
    assert!(firing["evidence"][0].as_str().unwrap().contains("/nonexistent/program"), "{firing:#}");
}

#[test]
fn a_crashed_agent_leaves_its_processes_running_and_the_next_adopts_them() {
    let mut agent = Agent::start(WORKER);
    let first = wait_pid(&agent, "worker", 0);
    agent.crash();
    assert!(Path::new(&format!("/proc/{first}")).exists());
    agent.run();
    assert_eq!(wait_pid(&agent, "worker", 0), first, "adopted, not started twice");
    assert!(agent.firings().is_empty(), "{:#?}", agent.firings());
    // Not a child any more: the status comes from the probe.
    let killer = run(&program("kill"), &["-15", &first.to_string()]);
    let firing = agent.wait_firing("killed", |f| f["trigger"] == "health_gap" && f["state"] == "cleared");
    assert!(firing["summary"].as_str().unwrap().contains("killed by SIGTERM"), "{firing:#}");
    assert_eq!(firing["writer"]["pid"], killer, "{firing:#}");
    // Died while no agent ran: found at the next start.
    let second = wait_pid(&agent, "worker", first);
    agent.stop();
    run(&program("kill"), &["-9", &second.to_string()]);
    agent.run();
    assert_ne!(wait_pid(&agent, "worker", second), second);
}

#[test]
fn a_file_broken_while_no_agent_ran_is_restored_at_the_start() {
    let mut agent = Agent::start("");
    let path = agent.file("down.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    agent.crash();
    fs::write(&path, "broken").unwrap();
    agent.run();
    let firing = agent.wait_firing("restored", |f| drift_of(&path)(f) && f["state"] == "cleared");
    assert_eq!(fs::read_to_string(&path).unwrap(), GOOD);
    // The probes ran on, and the kernel remembers.
    assert_eq!(firing["writer"]["pid"], std::process::id(), "{firing:#}");
    assert_eq!(firing["writer"]["inferred"], "last_touch", "{firing:#}");
}

#[test]
fn an_agent_killed_at_any_moment_leaves_the_old_or_the_good_file_and_the_next_start_mends_it() {
    let mut agent = Agent::start("");
    let path = agent.file("torn.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let rounds: u64 = if std::env::var_os("GRACE_GUEST").is_some() { 6 } else { 40 };
    for round in 0..rounds {
        // Never the same change twice: that would be a fight, rightly refused.
        let bad = format!("broken {round}\n");
        let other = agent.file("other", &bad);
        fs::rename(&other, &path).unwrap();
        // From at once to after the repair; the odd numbers hit different places in it.
        std::thread::sleep(std::time::Duration::from_micros(round * 97));
        agent.crash();
        let left = fs::read_to_string(&path).unwrap();
        assert!(left == bad || left == GOOD, "torn in round {round}: {left:?}");
        agent.run();
        wait_until("mended", || fs::read_to_string(&path).is_ok_and(|c| c == GOOD));
    }
    wait_until("nothing left beside it", || {
        fs::read_dir(agent.path("etc")).unwrap().all(|e| e.unwrap().file_name() == "torn.conf")
    });
    assert!(agent.grace(&["verify"]).status.success());
}

#[test]
fn a_recording_replays_to_the_same_firings() {
    let mut agent = Agent::start(WORKER);
    let path = agent.file("recorded.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    run(&program("chmod"), &["0600", path.to_str().unwrap()]);
    agent.wait_firing("drift", |f| drift_of(&path)(f) && f["state"] == "cleared");
    let pid = wait_pid(&agent, "worker", 0);
    run(&program("kill"), &["-9", &pid.to_string()]);
    agent.wait_firing("killed", |f| f["trigger"] == "health_gap" && f["state"] == "cleared");
    let live = agent.firings();
    agent.stop();
    let segment = fs::read_dir(agent.path("state/events")).unwrap().next().unwrap().unwrap().path();
    let replayed = agent.lines(&["replay", segment.to_str().unwrap(), "--json"]);
    assert_eq!(replayed.len(), live.len());
    for (was, now) in live.iter().zip(&replayed) {
        for key in ["id", "trigger", "subject", "state", "summary", "measured", "writer", "remedy", "count"] {
            assert_eq!(was[key], now[key], "{key}");
        }
    }
}

#[test]
fn a_thousand_files_broken_at_once_are_all_restored() {
    let agent = Agent::start("");
    // An emulated processor is some thirty times slower.
    let files = if std::env::var_os("GRACE_GUEST").is_some() { 100 } else { 1000 };
    let paths: Vec<String> =
        (0..files).map(|n| agent.file(&format!("{n}.conf"), GOOD).to_string_lossy().into_owned()).collect();
    let mut args = vec!["snapshot"];
    args.extend(paths.iter().map(String::as_str));
    agent.ok(&args);
    let mut sed = vec!["-i", "s/8080/1/"];
    sed.extend(paths.iter().map(String::as_str));
    run(&program("sed"), &sed);
    wait_until("all restored", || paths.iter().all(|p| fs::read_to_string(p).is_ok_and(|c| c == GOOD)));
    let of_sed = |f: &&serde_json::Value| f["state"] == "cleared" && f["writer"]["comm"] == "sed";
    let firings = || agent.lines(&["firings", "--json", "--trigger", "config_drift"]);
    wait_until("all cleared", || firings().iter().all(|f| f["state"] == "cleared"));
    let firings = firings();
    let others: Vec<_> = firings.iter().filter(|f| !of_sed(f)).collect();
    assert!(
        others.is_empty() && firings.len() == files,
        "{} firings; not of sed: {others:#?}",
        firings.len()
    );
}

#[test]
fn inject_shows_both_repairs() {
    for trigger in ["config_drift", "health_gap"] {
        // Beside a running agent, and with one of its own.
        let agent = Agent::start("");
        let out = agent.ok(&["inject", trigger]);
        assert!(out.contains("cleared"), "{out}");
        let alone = std::process::Command::new(harness::GRACE)
            .args(["--socket", "/nonexistent/socket", "inject", trigger, "--json"])
            .output()
            .unwrap();
        assert!(alone.status.success(), "{alone:?}");
    }
}
