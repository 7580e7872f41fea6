//! An agent that may see less: no root, no probes, no fanotify. It says what it cannot see, and what works, works.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::process::Command;

use harness::{Agent, program, run, wait_until};

/// How to start a program as nobody; as an ordinary user everything is as ordinary already.
fn as_nobody() -> Vec<String> {
    if !harness::root() {
        return Vec::new();
    }
    let words = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    std::iter::once(program("setpriv")).chain(words.map(str::to_owned)).collect()
}

#[test]
fn without_root_it_says_what_it_cannot_see_and_restores_by_inotify() {
    let wrapper = as_nobody();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let agent = Agent::start_as("", "repair", &wrapper);
    let status = agent.json(&["status", "--json"]);
    let probes = status["probes"].as_array().unwrap();
    assert!(!probes.is_empty() && probes.iter().all(|p| p["state"] == "unsupported"), "{status:#}");
    assert!(
        probes.iter().all(|p| !p["blind_to"].as_array().unwrap().is_empty() && p["why"].is_string()),
        "{status:#}"
    );
    assert!(!status["degraded"].as_array().unwrap().is_empty(), "{status:#}");

    let path = agent.file("plain.conf", "good\n");
    if harness::root() {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    }
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    for (round, args) in [&["-s", "0"][..], &["-s", "+9"][..]].iter().enumerate() {
        let mut words = args.to_vec();
        words.push(path.to_str().unwrap());
        run(&program("truncate"), &words);
        wait_until("restored", || {
            let cleared = agent.firings().iter().filter(|f| f["state"] == "cleared").count();
            cleared == round + 1 && fs::read_to_string(&path).is_ok_and(|c| c == "good\n")
        });
    }
    assert!(agent.firings().iter().all(|f| f["writer"].is_null()), "without root nobody can tell who");
    // Newer kernels let everybody use fanotify, but tell only root who it was.
    let sources = status["sources"].as_array().unwrap();
    assert!(sources.iter().any(|s| s["name"] == "fanotify" && s["state"] != "ok"), "{status:#}");
}

#[test]
fn without_btf_it_has_no_probes_but_fanotify_still_names_the_writer() {
    let name = "without_btf_it_has_no_probes_but_fanotify_still_names_the_writer";
    if !harness::root() {
        harness::skip(name, "hiding the kernel's BTF needs root");
        return;
    }
    // In a mount namespace of its own the agent finds an empty folder where the kernel's types were.
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let unshare = program("unshare");
    let agent = Agent::start_as("", "repair", &[&unshare, "-m", "sh", "-c", hide, "sh"]);
    let status = agent.json(&["status", "--json"]);
    for probe in status["probes"].as_array().unwrap() {
        assert_eq!(probe["state"], "unsupported", "{status:#}");
        assert!(probe["why"].as_str().unwrap().contains("BTF"), "{status:#}");
    }
    let path = agent.file("plain.conf", "good\n");
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    // It lives on, so that /proc can be asked who it is.
    let script = "echo bad > \"$1\"; exec sleep 30";
    let mut writer =
        Command::new("/bin/sh").args(["-c", script, "sh", path.to_str().unwrap()]).spawn().unwrap();
    let firing = agent.wait_firing("drift", |f| f["state"] == "cleared");
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(firing["writer"]["pid"], writer.id(), "{firing:#}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "good\n");
}

#[test]
fn a_second_agent_on_the_same_state_or_socket_is_refused() {
    let agent = Agent::start("");
    let again = |state: &str, socket: &str| {
        Command::new(harness::GRACE)
            .args(["run", "--state-dir", agent.path(state).to_str().unwrap()])
            .args(["--socket", agent.path(socket).to_str().unwrap()])
            .output()
            .unwrap()
    };
    for (state, socket, word) in [("state", "other", "state folder"), ("other", "socket", "socket")] {
        let out = again(state, socket);
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(text.contains("another ") && text.contains(&agent.pid().to_string()), "{word}: {text}");
    }
    // The first one is none the worse.
    agent.ok(&["status"]);
}

#[test]
fn a_bad_reload_keeps_the_last_good_configuration_and_says_so() {
    let agent = Agent::start("[[process]]\nname = \"a\"\ncommand = [\"/bin/sleep\", \"1000\"]\n");
    let hup = || {
        let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    };
    fs::write(agent.path("grace.toml"), "[[proces]]\n").unwrap();
    hup();
    wait_until("refused", || agent.json(&["status", "--json"])["config"]["refused"].is_string());
    let status = agent.json(&["status", "--json"]);
    assert!(status["config"]["refused"].as_str().unwrap().contains("process"), "{status:#}");
    assert_eq!(status["processes"][0]["name"], "a");
    fs::write(agent.path("grace.toml"), "[[process]]\nname = \"a\"\ncommand = [\"/bin/sleep\", \"1000\"]\n[[process]]\nname = \"b\"\ncommand = [\"/bin/sleep\", \"1000\"]\n").unwrap();
    hup();
    wait_until("taken", || {
        let status = agent.json(&["status", "--json"]);
        status["config"]["refused"].is_null() && status["processes"][1]["pid"].is_u64()
    });
}

#[test]
fn paths_that_cannot_be_owned_are_refused_with_the_reason() {
    let agent = Agent::start("");
    let file = agent.file("real", "x");
    let link = agent.path("etc/link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let fifo = agent.path("etc/fifo");
    run(&program("mkfifo"), &[fifo.to_str().unwrap()]);
    for (path, reason) in [
        (agent.path("etc"), "folder"),
        (link, "symbolic link"),
        (agent.path("etc/none"), "not there"),
        (agent.path("none/none"), "none"),
        (fifo, "fifo"),
    ] {
        let out = agent.grace(&["snapshot", path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&out.stderr).to_lowercase()
            + &String::from_utf8_lossy(&out.stdout).to_lowercase();
        assert!(!out.status.success() && text.contains(reason), "{}: {out:?}", path.display());
    }
    assert_eq!(agent.json(&["status", "--json"])["files"], 0);
    // A good path beside bad ones is taken all the same.
    let out = agent.grace(&["snapshot", "/nonexistent", file.to_str().unwrap()]);
    assert!(!out.status.success());
    assert_eq!(agent.json(&["status", "--json"])["files"], 1);
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    if !harness::root() {
        harness::skip("a_full_disk_is_said_and_nothing_is_lost", "mounting a small file system needs root");
        return;
    }
    let agent = Agent::start("");
    let small = agent.path("etc/small");
    fs::create_dir(&small).unwrap();
    run(&program("mount"), &["-t", "tmpfs", "-o", "size=64k", "grace-test", small.to_str().unwrap()]);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let path = small.join("a.conf");
        let good = "g".repeat(20_000);
        fs::write(&path, &good).unwrap();
        agent.ok(&["snapshot", path.to_str().unwrap()]);
        // No room for a second copy beside it.
        fs::write(small.join("filler"), "f".repeat(40_000)).unwrap();
        run(&program("chmod"), &["0600", path.to_str().unwrap()]);
        let firing = agent.wait_firing("failed", |f| f["remedy"][0]["state"] == "failed");
        assert!(firing["remedy"][0]["why"].as_str().unwrap().to_lowercase().contains("space"), "{firing:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), good, "the drifted file is still whole");
        // Room again: the ladder tries again by itself.
        fs::remove_file(small.join("filler")).unwrap();
        agent.wait_firing("restored", |f| f["state"] == "cleared" && f["id"] == firing["id"]);
    }));
    run(&program("umount"), &["-l", small.to_str().unwrap()]);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_disk_that_hangs_is_said_and_stops_no_judging() {
    let name = "a_disk_that_hangs_is_said_and_stops_no_judging";
    if !harness::root() || !std::path::Path::new("/usr/bin/strace").exists() {
        harness::skip(name, "it needs root and strace");
        return;
    }
    let agent = Agent::start_as("", "observe", &[]);
    let paths = [agent.file("one.conf", "good\n"), agent.file("two.conf", "good\n")];
    for path in &paths {
        agent.ok(&["snapshot", path.to_str().unwrap()]);
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().map(|task| task.unwrap().path());
    let of_journal = |task: &std::path::PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == "grace-journal")
    };
    let task = tasks.into_iter().find(of_journal).unwrap();
    // No sync of the journal ends before the test does.
    let mut strace = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"])
        .args(["-e", "inject=fsync,fdatasync:delay_enter=1000s", "-p"])
        .arg(task.file_name().unwrap())
        .spawn()
        .unwrap();
    wait_until("it is traced", || {
        fs::read_to_string(task.join("status")).is_ok_and(|status| !status.contains("TracerPid:\t0"))
    });
    for (number, path) in paths.iter().enumerate() {
        run(&program("truncate"), &["-s", "0", path.to_str().unwrap()]);
        // The second when the journal waits for the first already.
        wait_until("it is judged", || agent.json(&["status", "--json"])["holds"] == number + 1);
    }
    wait_until("it is said", || {
        agent.json(&["status", "--json"])["degraded"].to_string().contains("the disk has not answered for")
    });
    let durable = agent.firings();
    strace.kill().unwrap();
    strace.wait().unwrap();
    assert_eq!(durable.len(), 0, "what is not durable is not shown as if it were: {durable:#?}");
    wait_until("what waited is there", || agent.firings().len() == 2);
    wait_until("all is well", || {
        !agent.json(&["status", "--json"])["degraded"].to_string().contains("the disk has not answered")
    });
}

#[test]
fn a_pause_holds_repairs_outlives_the_agent_and_ends_with_resume() {
    let mut agent = Agent::start("[triggers.config_drift]\nsweep = \"1s\"\n");
    let path = agent.file("app.conf", "good\n");
    let name = path.to_str().unwrap().to_owned();
    agent.ok(&["snapshot", &name]);
    agent.ok(&["pause", &name, "--for", "1h", "--why", "a new release"]);
    let held = |f: &serde_json::Value| {
        f["subject"]["name"] == name.as_str()
            && f["state"] == "holds"
            && f["remedy"][0]["state"] == "held"
            && f["remedy"][0]["why"].as_str().is_some_and(|why| why.contains("a new release"))
    };
    fs::write(&path, "bad\n").unwrap();
    agent.wait_firing("held", held);
    assert!(agent.grace(&["pause", "all", "--for", "1h"]).status.code() == Some(2), "why is needed");
    assert_eq!(agent.grace(&["resume", "nobody"]).status.code(), Some(1));

    agent.crash();
    agent.run();
    let pauses = agent.lines(&["pause", "--json"]);
    assert_eq!(pauses.len(), 1, "{pauses:?}");
    assert_eq!(
        (pauses[0]["subject"].as_str(), pauses[0]["why"].as_str()),
        (Some(&*name), Some("a new release"))
    );
    agent.wait_firing("held again", held);
    assert_eq!(fs::read_to_string(&path).unwrap(), "bad\n");

    agent.ok(&["resume", &name]);
    wait_until("the file is restored", || fs::read_to_string(&path).is_ok_and(|text| text == "good\n"));
    assert!(agent.lines(&["pause", "--json"]).is_empty());
    let incidents = agent.lines(&["incidents", "--json"]);
    assert!(incidents.iter().any(|i| i["firings"][0]["subject"]["name"] == name.as_str()), "{incidents:?}");
}

#[test]
fn a_quiet_time_rests_repairs_and_says_so() {
    // All of the day but one minute that is not now.
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let minute =
        |hours: i64| now.checked_add(jiff::Span::new().hours(hours)).unwrap().strftime("%H:%M").to_string();
    let quiet = format!(
        "[[policy.quiet]]\nfrom = \"{}\"\nto = \"{}\"\nzone = \"UTC\"\nwhy = \"batch\"\n",
        minute(-2),
        minute(2)
    );
    let agent = Agent::start(&quiet);
    let path = agent.file("app.conf", "good\n");
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    fs::write(&path, "bad\n").unwrap();
    agent.wait_firing("held", |f| f["remedy"][0]["why"].as_str().is_some_and(|why| why.contains("batch")));
    let status = agent.json(&["status", "--json"]);
    assert_eq!(status["pauses"][0]["subject"], "quiet", "{status:#}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "bad\n");
}

#[test]
fn weights_of_a_declared_model_are_owned_and_put_back() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().canonicalize().unwrap();
    for shard in 1..3u8 {
        fs::write(folder.join(format!("model-{shard}.safetensors")), vec![shard; 100_000]).unwrap();
    }
    fs::write(folder.join("README.md"), "not weights").unwrap();
    let config = format!(
        "[triggers.config_drift]\nsweep = \"1s\"\n[[model]]\nname = \"llm\"\npath = \"{}/*.safetensors\"\n",
        folder.display()
    );
    let agent = Agent::start(&config);
    assert_eq!(agent.json(&["status", "--json"])["files"], 2);
    let path = folder.join("model-2.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[50_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let firing =
        agent.wait_firing("restored", |f| f["trigger"] == "model_integrity" && f["state"] == "cleared");
    assert_eq!(firing["subject"]["name"], path.to_str().unwrap(), "{firing:#}");
    assert_eq!(firing["remedy"][0]["action"], "restore_file", "{firing:#}");
    assert_eq!(fs::read(&path).unwrap(), vec![2; 100_000]);
}
