//! The host under pressure: real load, shed from the least important process and given back. As root, on this host's
//! real processors.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::{Agent, program, wait_until};
use serde_json::Value;

/// A process that keeps all processors busy, and ends by itself whatever becomes of this test; one that must not be touched
/// beside it.
fn config() -> String {
    format!(
        "[pressure]\ncpu = 97\nmargin = 1\nsustained = \"2s\"\nsteps = [\"freeze\"]\n\
         [[process]]\nname = \"hog\"\nimportance = 1\ncommand = [\"{grace}\", \"canary\", \"--spin\", \"/\"]\n\
         [[process]]\nname = \"database\"\nimportance = 100\ncommand = [\"{sleep}\", \"1000\"]\n",
        grace = harness::GRACE,
        sleep = program("sleep"),
    )
}

/// State of a process as /proc tells: `R`, `S`, `T`.
fn state(pid: u64) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 2..)?.chars().next()
}

/// Whether it is stopped, by its cgroup or by a signal.
fn stands_still(pid: u64) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let at = words.next()?;
        (words.next()? == "cgroup2").then(|| at.to_owned())
    });
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let frozen = fs::read_to_string(format!("{}{own}/cgroup.freeze", mount.unwrap_or_default()));
    frozen.is_ok_and(|text| text.trim() == "1") || state(pid) == Some('T')
}

fn pid_of(agent: &Agent, name: &str) -> Option<u64> {
    let status = agent.json(&["status", "--json"]);
    let processes = status["processes"].as_array().unwrap().clone();
    processes.iter().find(|p| p["name"] == name)?["pid"].as_u64()
}

fn cpu(firing: &Value) -> bool {
    firing["trigger"] == "resource_pressure" && firing["subject"]["name"] == "cpu"
}

#[test]
fn load_is_shed_from_the_least_important_and_given_back() {
    let mut agent = Agent::start(&config());
    wait_until("the processes run", || {
        pid_of(&agent, "hog").is_some() && pid_of(&agent, "database").is_some()
    });
    let (hog, database) = (pid_of(&agent, "hog").unwrap(), pid_of(&agent, "database").unwrap());
    let firing = agent.wait_firing("shed", |f| cpu(f) && f["remedy"][0]["state"] == "done");
    assert_eq!(firing["remedy"][0]["action"], "shed_load", "{firing:#}");
    assert!(firing["remedy"][0]["why"].as_str().unwrap().contains("hog"), "{firing:#}");
    assert_eq!(firing["subject"]["kind"], "host", "{firing:#}");
    assert_eq!(state(database), Some('S'), "what counts 100 is never shed");

    let cleared = || agent.firings().iter().any(|f| f["id"] == firing["id"] && f["state"] == "cleared");
    let began = Instant::now();
    while !cleared() {
        if began.elapsed() > Duration::from_secs(40) {
            // The hog stands still, and others keep the processors busy: nothing is there to be given back.
            harness::skip("load_is_shed_and_given_back", "the processors are busy with other work");
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    wait_until("it runs again", || state(hog).is_some() && !stands_still(hog));
    assert_eq!(pid_of(&agent, "hog"), Some(hog), "it was stopped, not ended");

    // It comes back, as the load does; an agent that is killed meanwhile leaves a stopped process, the next one wakes it.
    let again =
        agent.wait_firing("back", |f| cpu(f) && f["id"] != firing["id"] && f["remedy"][0]["state"] == "done");
    assert_eq!(again["again"], firing["id"], "{again:#}");
    if stands_still(hog) {
        agent.crash();
        agent.run();
        wait_until("the next agent gives back", || state(hog).is_some() && !stands_still(hog));
    }
}

/// The cgroup of a process as a folder, where there is cgroup v2.
fn cgroup_of(pid: u64) -> Option<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let at = words.next()?;
        (words.next()? == "cgroup2").then(|| at.to_owned())
    })?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(std::path::Path::new(&mount).join(own))
}

#[test]
fn what_is_throttled_is_held_back_by_the_kernel_and_let_go() {
    let name = "what_is_throttled_is_held_back_by_the_kernel_and_let_go";
    // A small program: Grace reads what a declared one consists of, which in an emulated processor is a load, too.
    let agent = Agent::start(&format!(
        "[pressure]\ncpu = 97\nmargin = 1\nsustained = \"2s\"\nsteps = [\"throttle\"]\n\
         [[process]]\nname = \"hog\"\nimportance = 1\ncommand = [\"{sh}\", \"-c\", \"{hog}\"]\nlimits = {{ cpu = 120 }}\n\
         [[process]]\nname = \"database\"\nimportance = 100\ncommand = [\"{sleep}\", \"1000\"]\n",
        sh = program("sh"),
        sleep = program("sleep"),
        hog = "while :; do :; done & while :; do :; done",
    ));
    wait_until("the processes run", || {
        pid_of(&agent, "hog").is_some() && pid_of(&agent, "database").is_some()
    });
    let hog = pid_of(&agent, "hog").unwrap();
    let Some(group) = cgroup_of(hog).filter(|group| group.join("cpu.max").exists()) else {
        harness::skip(name, "no cpu controller of cgroup v2");
        return;
    };
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    let firing = agent.wait_firing("throttled", |f| cpu(f) && f["remedy"][0]["state"] == "done");
    assert!(firing["remedy"][0]["why"].as_str().unwrap().contains("cpu.max"), "{firing:#}");
    // How often the kernel made it wait: the limit is not only written.
    let held = || {
        let stat = read("cpu.stat");
        let n = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).map(str::to_owned);
        n.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_until("the kernel holds it back", || held() > 0);
    wait_until("it is let go", || {
        // Looking all the time would be the load.
        std::thread::sleep(Duration::from_millis(500));
        read("cpu.max").starts_with("max")
    });
    let cleared = agent.wait_firing("cleared", |f| f["id"] == firing["id"] && f["state"] == "cleared");
    assert_eq!(pid_of(&agent, "hog"), Some(hog), "it ran on: {cleared:#}");
}

#[test]
fn a_process_is_told_to_do_with_less_and_what_is_removed_is_forgotten() {
    let agent = Agent::start(&format!(
        "[pressure]\ncpu = 97\nmargin = 1\nsustained = \"2s\"\nsteps = [\"notify\"]\n\
         [[process]]\nname = \"hog\"\nimportance = 100\ncommand = [\"{grace}\", \"canary\", \"--spin\", \"/\"]\n",
        grace = harness::GRACE,
    ));
    let told = agent.path("etc/told");
    let text = format!("trap 'echo told >> {}' USR1; while :; do sleep 0.05; done", told.display());
    let process = serde_json::json!({
        "name": "polite", "importance": 1, "command": [program("sh"), "-c", text], "shed_signal": "USR1",
    });
    harness::request(&agent, "POST", "/v1/processes", &process.to_string());
    wait_until("it is told", || fs::read_to_string(&told).is_ok_and(|text| text == "told\n"));
    let polite = || {
        let status = agent.json(&["status", "--json"]);
        status["processes"].as_array().unwrap().iter().find(|p| p["name"] == "polite").cloned().unwrap()
    };
    assert_eq!(polite()["shed"], "notify", "one that asks is told, too");
    let note = agent.path("state/running/polite.shed");
    assert!(note.exists());
    harness::request(&agent, "DELETE", "/v1/processes/polite", "");
    assert!(!note.exists(), "another one of this name would be held for shed");
}

/// How soon the kernel chooses a process where memory runs out.
fn oom_score_adj(pid: u64) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
}

#[test]
fn the_agent_is_chosen_last_where_memory_runs_out_and_what_it_starts_like_any_other() {
    let sleep = program("sleep");
    let config = format!(
        "[[process]]\nname = \"plain\"\ncommand = [\"{sleep}\", \"1000\"]\n\
         [[process]]\nname = \"batch\"\noom_score_adj = 300\ncommand = [\"{sleep}\", \"1000\"]\n"
    );
    // Whatever it was started with itself.
    let raised = ["sh", "-c", "echo 200 > /proc/self/oom_score_adj; exec \"$@\"", "sh"];
    let agent = Agent::start_as(&config, "repair", &raised);
    wait_until("the processes run", || {
        pid_of(&agent, "plain").is_some() && pid_of(&agent, "batch").is_some()
    });
    if oom_score_adj(agent.pid().into()) != Some(-900) {
        // Root of a container may not be allowed to.
        assert!(
            !harness::root() || agent.log().contains("the kernel may choose the agent"),
            "{}",
            agent.log()
        );
        harness::skip("the_agent_is_chosen_last", "the kernel does not let this user lower oom_score_adj");
    }
    assert_eq!(oom_score_adj(pid_of(&agent, "plain").unwrap()), Some(0));
    assert_eq!(oom_score_adj(pid_of(&agent, "batch").unwrap()), Some(300));
}

#[test]
fn how_full_the_host_is_is_shown_and_who_would_be_shed_first() {
    let sleep = program("sleep");
    let config = format!(
        "[[process]]\nname = \"server\"\nimportance = 90\ncommand = [\"{sleep}\", \"1000\"]\n\
         [[process]]\nname = \"batch\"\nimportance = 10\ncommand = [\"{sleep}\", \"1000\"]\n"
    );
    let agent = Agent::start(&config);
    wait_until("the processes run", || {
        pid_of(&agent, "server").is_some() && pid_of(&agent, "batch").is_some()
    });
    let shown = || agent.json(&["pressure", "--json"]);
    let has =
        |view: &Value, name: &str| view["readings"].as_array().unwrap().iter().any(|r| r["resource"] == name);
    wait_until("it was looked", || ["cpu", "memory", "files", "pids"].iter().all(|name| has(&shown(), name)));
    let view = shown();
    let order: Vec<&str> =
        view["processes"].as_array().unwrap().iter().filter_map(|p| p["process"].as_str()).collect();
    assert_eq!(order, ["batch", "server"], "{view:#}");
    assert!(view["processes"][0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{view:#}");
    assert!(agent.ok(&["pressure"]).contains("batch (importance 10"));
}
