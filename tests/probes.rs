//! The kernel side through the front door: what it counts, what it keeps when it loses, what it says of processes, and
//! what it leaves behind. Needs root.
//!
//! Runs on this machine's kernel and on stock kernels in guests. Other programs that a test needs are this one again:
//! see `helper_program`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Agent, program, run, skip, wait_until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use sha2::Digest;

const GOOD: &str = "listen = 8080\nworkers = 4\n";

/// The file ring holds so many records: 512 KiB less the byte that is never used, by a record and its header.
const FILE_RING_RECORDS: u64 = ((512 << 10) - 1) / (88 + 8);

/// How long the slow call of the role `pipe` takes.
const SLOW: Duration = Duration::from_millis(300);

/// Variable that tells `helper_program` what to be.
const ROLE: &str = "GRACE_TEST_ROLE";

/// True in a guest: one processor, emulated parts.
fn guest() -> bool {
    std::env::var_os("GRACE_GUEST").is_some()
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

fn drift_of(path: &Path) -> impl Fn(&Value) -> bool + '_ {
    move |f| f["trigger"] == "config_drift" && f["subject"]["name"] == path.to_str().unwrap()
}

fn gap_of(name: &str) -> impl Fn(&Value) -> bool + '_ {
    move |f| f["trigger"] == "health_gap" && f["subject"]["name"] == name
}

/// `[[process]]` that runs this program in a role. It is not started again.
fn role(name: &str, role: &str) -> String {
    let me = std::env::current_exe().unwrap();
    let me = me.to_str().unwrap();
    format!(
        "[[process]]\nname = \"{name}\"\nrestart = \"never\"\ncommand = [\"{me}\", \"--exact\", \"helper_program\", \
         \"--nocapture\", \"--test-threads\", \"1\"]\nenv = {{ {ROLE} = \"{role}\" }}\n"
    )
}

/// `[[process]]` that runs a script. It is not started again.
fn script(name: &str, script: &str) -> String {
    format!(
        "[[process]]\nname = \"{name}\"\nrestart = \"never\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n"
    )
}

/// Runs this program in a role that ends by itself; its pid.
fn be(role: &str) -> u32 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_program", "--nocapture", "--test-threads", "1"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success(), "{role}");
    pid
}

fn process(status: &Value, name: &str) -> Value {
    status["processes"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone()
}

fn status(agent: &Agent) -> Value {
    agent.json(&["status", "--json"])
}

/// The process id of a declared process, once it runs.
fn wait_pid(agent: &Agent, name: &str) -> u32 {
    let mut found = None;
    wait_until("it runs", || {
        found = process(&status(agent), name)["pid"].as_u64();
        found.is_some()
    });
    u32::try_from(found.unwrap()).unwrap()
}

/// The account of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    produced: u64,
    delivered: u64,
    lost: u64,
    in_flight: i64,
}

fn account(agent: &Agent) -> BTreeMap<String, Account> {
    let status = status(agent);
    let ring = status["ring"].as_array().unwrap();
    assert_eq!(ring.len(), 4, "{status:#}");
    ring.iter()
        .map(|row| {
            let lost = row["lost"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
            let account = Account {
                produced: row["produced"].as_u64().unwrap(),
                delivered: row["delivered"].as_u64().unwrap(),
                lost,
                in_flight: row["in_flight"].as_i64().unwrap(),
            };
            (row["class"].as_str().unwrap().to_owned(), account)
        })
        .collect()
}

/// The account once nothing is produced any more; every class adds up then.
#[track_caller]
fn quiet(agent: &Agent) -> BTreeMap<String, Account> {
    let mut last = account(agent);
    wait_until("quiet", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = account(agent);
        let same = now == last && now.values().all(|a| a.in_flight == 0);
        last = now;
        same
    });
    for (class, a) in &last {
        assert_eq!(a.produced, a.delivered + a.lost, "{class}: {a:?}");
    }
    last
}

/// Waits until the agent's self-tests at the start are behind it: they make events, too.
fn settled(agent: &Agent) {
    // Told from the second second on; the tests belong to the first.
    wait_until("it has begun to work", || status(agent)["latency"]["calls_per_s"].as_f64().unwrap() > 0.0);
}

/// Makes a gate, at which a program waits in open(2) without a call more.
fn gate(path: &str) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// Lets the program at the gate pass, with a line to read.
#[track_caller]
fn let_pass(gate: &Path, line: &str) {
    // Not there yet, or refused with ENXIO until somebody waits there.
    let open = || fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(gate).ok();
    let mut file = None;
    wait_until("somebody at the gate", || {
        file = open();
        file.is_some()
    });
    // Who reads nothing may be gone already.
    if !line.is_empty() {
        file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs in the main thread before the tests' own `main`, which leaves that thread waiting: what is judged by its main
/// thread must be done here.
#[used]
#[expect(unsafe_code, reason = "the section holds functions that the C library calls before `main`")]
// SAFETY: an entry of this section is a function that takes nothing it needs, which this is.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// In the role `vfork`: waits without a way to interrupt it until its child has ended, as the parent of vfork(2) does,
/// then idles.
#[expect(unsafe_code, reason = "clone(2) as vfork(2) does it")]
extern "C" fn before_main() {
    extern "C" fn idle(_: *mut libc::c_void) -> libc::c_int {
        // SAFETY: no arguments; nothing is touched.
        unsafe {
            libc::pause();
            libc::_exit(0)
        }
    }
    if std::env::var_os(ROLE).is_none_or(|role| role != "vfork") {
        return;
    }
    let mut stack = vec![0u128; 1 << 12];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is as large as it is said to be and lives on until the child has ended, because the kernel
    // stops this thread until then; the child calls nothing that needs the runtime.
    unsafe {
        libc::clone(idle, stack.as_mut_ptr().add(stack.len()).cast(), flags, std::ptr::null_mut());
        loop {
            libc::pause();
        }
    }
}

/// Not a test: the programs that tests start. Without its variable it does nothing.
#[test]
fn helper_program() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let role = role.into_string().unwrap();
    let words: Vec<&str> = role.split(' ').collect();
    let pass = |gate: &str| drop(fs::File::open(gate).unwrap());
    // Waits for ever.
    let rest = || {
        loop {
            std::thread::park();
        }
    };
    match words[..] {
        // Changes the mode of a file so often.
        ["chmod", times, path] => {
            let times: u32 = times.parse().unwrap();
            (0..times).for_each(|n| chmod(Path::new(path), if n % 2 == 0 { 0o600 } else { 0o666 }));
        }
        // Adds a line to each file of a folder.
        ["append", folder] => {
            for entry in fs::read_dir(folder).unwrap() {
                let mut file = fs::OpenOptions::new().append(true).open(entry.unwrap().path()).unwrap();
                file.write_all(b"more\n").unwrap();
            }
        }
        // Makes so many calls between two gates.
        ["calls", times, first, second, at, third] => {
            [first, second, third].into_iter().for_each(gate);
            pass(first);
            pass(second);
            let times: u32 = times.parse().unwrap();
            (0..times).for_each(|_| assert!(rustix::process::getppid().is_some()));
            fs::write(at, "").unwrap();
            pass(third);
        }
        // Makes calls as fast as it can until there is a file, then none.
        ["noise", stop] => {
            while !Path::new(stop).exists() {
                (0..1000).for_each(|_| assert!(rustix::process::getppid().is_some()));
            }
            rest();
        }
        // Holds so many MiB, then waits.
        ["hold", mib, ready] => {
            let mut memory = vec![0u8; mib.parse::<usize>().unwrap() << 20];
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            fs::write(ready, "").unwrap();
            std::hint::black_box(&memory);
            rest();
        }
        // Reads a pipe to which somebody writes at once, but for every 200th time; ends with such a read.
        ["pipe", end, ended] => {
            use std::sync::atomic::{AtomicU64, Ordering};
            static READ: AtomicU64 = AtomicU64::new(0);
            let (mut from, mut to) = std::io::pipe().unwrap();
            std::thread::spawn(move || {
                for n in 1u64.. {
                    if n % 200 == 0 {
                        // All that was written before is read by then: the next read has to wait.
                        while READ.load(Ordering::Acquire) < n - 1 {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                        std::thread::sleep(SLOW);
                    }
                    to.write_all(b"x").unwrap();
                }
            });
            for n in 1u64.. {
                std::io::Read::read_exact(&mut from, &mut [0]).unwrap();
                READ.store(n, Ordering::Release);
                if n % 200 == 0 && Path::new(end).exists() {
                    fs::write(ended, "").unwrap();
                    rest();
                }
                // Not a flood, and the writer is ahead, so that the next byte is there. Longer than it takes the writer to
                // fall asleep: of two waits within 100 µs on one processor only the first is looked at.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        _ => panic!("{role}"),
    }
}

#[test]
fn every_event_of_a_file_is_accounted_for() {
    let times: u64 = if guest() { 1000 } else { 5000 };
    // Nothing is put back: then nobody else makes events.
    let agent = Agent::start_as("", "observe", &[]);
    let path = agent.file("counted.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    settled(&agent);
    let before = quiet(&agent);
    let writer = be(&format!("chmod {times} {}", path.display()));
    let after = quiet(&agent);
    let changes = after["file"].produced - before["file"].produced;
    assert!(changes >= times, "{changes} of {times}");
    for class in ["exit", "process", "slow"] {
        assert_eq!(after[class], before[class], "{class}: it is nobody's child");
    }
    let firing = agent.wait_firing("drift", drift_of(&path));
    assert_eq!(firing["writer"]["pid"], writer, "{firing:#}");
}

#[test]
fn every_event_of_a_process_is_accounted_for() {
    let forks: u64 = if guest() { 50 } else { 300 };
    let agent = Agent::start(&script(
        "parent",
        "mkfifo $DIR/go $DIR/never; read n < $DIR/go; i=0; while [ $i -lt $n ]; do /bin/true; i=$((i+1)); done; \
         : > $DIR/done; read n < $DIR/never",
    ));
    let parent = wait_pid(&agent, "parent");
    settled(&agent);
    wait_until("both gates", || agent.path("never").exists());
    let before = quiet(&agent);
    let_pass(&agent.path("go"), &forks.to_string());
    wait_until("all children", || agent.path("done").exists());
    let after = quiet(&agent);
    // A fork, an exec and an exit each.
    assert_eq!(after["process"].produced - before["process"].produced, 3 * forks);
    assert_eq!(after["process"].lost, before["process"].lost);

    let before = after;
    kill_process(pid(parent), Signal::KILL).unwrap();
    agent.wait_firing("its end", gap_of("parent"));
    let after = quiet(&agent);
    assert_eq!(after["exit"].produced - before["exit"].produced, 1);
    assert_eq!(after["exit"].lost, 0);
}

const EVERY_CALL: &str =
    "[probes]\nlatency = \"full\"\nslow_at_least = \"0ns\"\nslow_factor = 0\nslow_rate = 0\n";

#[test]
fn every_slow_call_is_accounted_for() {
    let times: u64 = if guest() { 2000 } else { 50_000 };
    let calls = format!("calls {times} $DIR/first $DIR/second $DIR/at $DIR/third");
    let agent = Agent::start(&format!("{}{EVERY_CALL}", role("caller", &calls)));
    wait_pid(&agent, "caller");
    settled(&agent);
    wait_until("every call is timed", || status(&agent)["latency"]["share"] == 1.0);
    // From one gate to the next, so that the call in which it waits there is timed, too.
    let_pass(&agent.path("first"), "");
    let before = quiet(&agent);
    let counted = |status: &Value| process(status, "caller")["syscalls"].as_u64().unwrap();
    let counted_before = counted(&status(&agent));
    let_pass(&agent.path("second"), "");
    wait_until("all calls", || agent.path("at").exists());
    let after = quiet(&agent);
    let produced = after["slow"].produced - before["slow"].produced;
    assert!(produced >= times, "{produced}");
    // The other probe, which counts every call, agrees to the last one.
    assert_eq!(produced, counted(&status(&agent)) - counted_before);
}

#[test]
fn a_flood_of_slow_calls_costs_no_other_class_anything() {
    let files = if guest() { 200 } else { 1000 };
    // GRACE_NOISE_EVENTS=100000000 takes minutes.
    let told = std::env::var("GRACE_NOISE_EVENTS").ok().map(|text| text.parse().unwrap());
    let enough: u64 = told.unwrap_or(if guest() { 20_000 } else { 300_000 });
    let noise = role("noise", "noise $DIR/stop");
    let agent = Agent::start(&format!("{noise}{EVERY_CALL}"));
    let mut args = vec!["snapshot".to_owned()];
    args.extend((0..files).map(|n| agent.file(&format!("{n}.conf"), GOOD).to_string_lossy().into_owned()));
    agent.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let slow = || account(&agent)["slow"];
    wait_until("a flood", || slow().produced > (enough / 10).min(1_000_000));
    let writer = be(&format!("append {}", agent.path("etc").display()));
    let noticed = || agent.lines(&["firings", "--json", "--trigger", "config_drift"]);
    wait_until("all noticed", || noticed().len() == files);
    for part in 1..=20 {
        wait_until("a flood", || slow().produced > enough / 20 * part);
    }
    fs::write(agent.path("stop"), "").unwrap();
    let after = quiet(&agent);
    for firing in noticed() {
        assert_eq!(firing["writer"]["pid"], writer, "{firing:#}");
        assert_eq!(firing["evidence_gaps"], false, "{firing:#}");
    }
    assert!(after["slow"].produced > enough / 20 * 20, "{after:?}");
    assert_eq!((after["file"].lost, after["exit"].lost, after["process"].lost), (0, 0, 0), "{after:?}");
    assert!(after["file"].produced >= files as u64, "{after:?}");
}

#[test]
fn a_reader_that_stands_still_loses_counted_and_says_so() {
    let times = 10_000;
    let agent = Agent::start_as("", "observe", &[]);
    let path = agent.file("flooded.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    settled(&agent);
    let before = quiet(&agent)["file"];
    kill_process(pid(agent.pid()), Signal::STOP).unwrap();
    let writer = be(&format!("chmod {times} {}", path.display()));
    kill_process(pid(agent.pid()), Signal::CONT).unwrap();
    let firing = agent.wait_firing("drift", drift_of(&path));
    let after = quiet(&agent)["file"];
    let produced = after.produced - before.produced;
    assert!(produced >= times, "{produced}");
    // Nobody read: what arrived is what the ring holds, and all else is lost and counted.
    assert_eq!(after.delivered - before.delivered, FILE_RING_RECORDS);
    assert_eq!(after.lost - before.lost, produced - FILE_RING_RECORDS);
    assert_eq!(firing["evidence_gaps"], true, "{firing:#}");
    assert_eq!(firing["writer"]["pid"], writer, "{firing:#}");
}

#[test]
fn descendants_are_listed_and_their_bad_ends_are_evidence() {
    let agent =
        Agent::start(&script("family", "/bin/sh -c 'sleep 1001 & sleep 1002 & wait' & sleep 1003 & wait"));
    let family = wait_pid(&agent, "family");
    let descendants = || -> Vec<(u32, String)> {
        let list = process(&status(&agent), "family")["descendants"].clone();
        let one = |d: &Value| {
            (u32::try_from(d["pid"].as_u64().unwrap()).unwrap(), d["comm"].as_str().unwrap().to_owned())
        };
        list.as_array().unwrap().iter().map(one).collect()
    };
    let sleepers = |list: &[(u32, String)]| list.iter().filter(|(_, comm)| comm == "sleep").count();
    wait_until("child and grandchildren", || sleepers(&descendants()) == 3);
    let list = descendants();
    assert_eq!(list.len(), 4, "{list:?}");
    // A grandchild: its parent is a descendant itself.
    let parent_of = |number: u32| {
        let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().to_owned();
        line.parse::<u32>().unwrap()
    };
    let grandchild =
        list.iter().map(|d| d.0).find(|d| list.iter().any(|other| other.0 == parent_of(*d))).unwrap();
    let killer = run(&program("kill"), &["-9", &grandchild.to_string()]);
    wait_until("it is gone", || descendants().iter().all(|d| d.0 != grandchild));
    kill_process(pid(family), Signal::KILL).unwrap();
    let firing = agent.wait_firing("its end", gap_of("family"));
    let _ = kill_process_group(pid(family), Signal::KILL);
    let evidence: Vec<&str> =
        firing["evidence"].as_array().unwrap().iter().filter_map(|l| l.as_str()).collect();
    let wanted = format!("pid {grandchild} was killed by SIGKILL, sent by kill (pid {killer}");
    assert!(
        evidence.iter().any(|l| l.starts_with("descendant sleep (") && l.contains(&wanted)),
        "{firing:#}"
    );
}

/// The time and the MiB that a firing measured.
fn ran_and_peak(firing: &Value) -> (Duration, Option<f64>) {
    let measured = firing["measured"].as_str().unwrap();
    let mut parts = measured.split(", peak memory ");
    let ran = parts.next().and_then(|p| p.strip_prefix("ended after ")).unwrap();
    let peak = parts.next().map(|p| p.strip_suffix(" MiB").unwrap().parse().unwrap());
    (humantime::parse_duration(ran).unwrap(), peak)
}

#[test]
fn an_end_tells_signal_sender_time_and_memory() {
    let began = Instant::now();
    let agent = Agent::start(&format!(
        "{}user = \"65534\"\n{}",
        script("theirs", "exec sleep 1000"),
        role("large", "hold 200 $DIR/ready")
    ));
    let (theirs, large) = (wait_pid(&agent, "theirs"), wait_pid(&agent, "large"));
    wait_until("it holds its memory", || agent.path("ready").exists());
    let lived = Instant::now();
    wait_until("it lived for a second", || lived.elapsed() > Duration::from_secs(1));

    // Somebody else than root.
    let killer = run(
        &program("setpriv"),
        &["--reuid=65534", "--regid=65534", "--clear-groups", &program("kill"), "-INT", &theirs.to_string()],
    );
    let firing = agent.wait_firing("theirs", gap_of("theirs"));
    let summary = firing["summary"].as_str().unwrap();
    assert!(
        summary.starts_with(&format!("pid {theirs} was killed by SIGINT, sent by kill (pid {killer}")),
        "{firing:#}"
    );
    assert!(!summary.contains("core dumped"), "{firing:#}");
    assert_eq!(firing["writer"]["pid"], killer, "{firing:#}");
    assert_eq!(firing["writer"]["comm"], "kill", "{firing:#}");
    assert_eq!(firing["writer"]["uid"], 65534, "{firing:#}");
    assert!(firing["writer"]["exe"].as_str().unwrap().ends_with("/kill"), "{firing:#}");
    let (ran, peak) = ran_and_peak(&firing);
    assert!(ran >= Duration::from_secs(1) && ran <= began.elapsed(), "{firing:#}");
    // Not told where it is below what the agent held when it forked.
    assert!(peak.is_none_or(|mib| mib < 100.0), "{firing:#}");

    run(&program("kill"), &["-TERM", &large.to_string()]);
    let firing = agent.wait_firing("large", gap_of("large"));
    assert!(firing["summary"].as_str().unwrap().contains("SIGTERM"), "{firing:#}");
    let peak = ran_and_peak(&firing).1.unwrap();
    assert!((200.0..400.0).contains(&peak), "{firing:#}");
}

#[test]
fn an_end_tells_code_and_core() {
    let agent = Agent::start(&format!(
        "{}{}cwd = \"$DIR\"\n",
        script("code", "exit 42"),
        script("core", "sleep 0.5; ulimit -c unlimited; kill -SEGV $$; sleep 1000")
    ));
    let firing = agent.wait_firing("code", gap_of("code"));
    assert!(firing["summary"].as_str().unwrap().ends_with("exited with code 42"), "{firing:#}");
    assert!(firing["writer"].is_null(), "{firing:#}");
    let firing = agent.wait_firing("core", gap_of("core"));
    let summary = firing["summary"].as_str().unwrap();
    let own = summary.strip_prefix("pid ").unwrap().split(' ').next().unwrap().to_owned();
    assert!(summary.contains("was killed by SIGSEGV"), "{firing:#}");
    assert!(summary.contains(&format!("sent by sh (pid {own}")), "{firing:#}");
    // A handler of cores is this host's business; it may be missing.
    if fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().starts_with('|') {
        skip("an_end_tells_code_and_core", "this host hands cores to a program");
    } else {
        assert!(summary.contains(", core dumped"), "{firing:#}");
    }
}

#[test]
fn a_victim_of_its_memory_limit_is_told_as_such() {
    let root = Path::new("/sys/fs/cgroup");
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !offered.split_whitespace().any(|name| name == "memory") {
        return skip("a_victim_of_its_memory_limit_is_told_as_such", "no memory controller of cgroup v2");
    }
    fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
    let group = root.join(format!("grace-test-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::write(group.join("memory.max"), "50M").unwrap();
    let me = std::env::current_exe().unwrap();
    let large = format!(
        "echo $$ > {}/cgroup.procs; exec {} --exact helper_program --nocapture --test-threads 1",
        group.display(),
        me.display()
    );
    let agent =
        Agent::start(&format!("{}env = {{ {ROLE} = \"hold 200 $DIR/ready\" }}\n", script("victim", &large)));
    let firing = agent.wait_firing("its end", gap_of("victim"));
    wait_until("the group is empty", || fs::remove_dir(&group).is_ok());
    let summary = firing["summary"].as_str().unwrap();
    assert!(
        summary.contains("SIGKILL") && summary.contains("chosen by the out-of-memory killer"),
        "{firing:#}"
    );
    assert!(summary.contains("its cgroup's limit of 50 MiB was reached"), "{firing:#}");
    assert!(!agent.path("ready").exists());
}

/// True where the kernel shows the addresses of its functions, so that a place in it can be named.
fn names_are_shown() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| !line.starts_with("0000000000000000 "))
}

#[test]
fn a_call_that_is_slow_for_its_process_is_noticed() {
    // Timed however busy this machine is.
    let pipe = role("reader", "pipe $DIR/end $DIR/ended");
    let agent = Agent::start(&format!("{pipe}[probes]\nlatency = \"full\"\n"));
    let reader = wait_pid(&agent, "reader");
    let slow_calls = || process(&status(&agent), "reader")["slow_calls"].as_u64().unwrap();
    wait_until("it learned what is slow", || slow_calls() >= 1);
    fs::write(agent.path("end"), "").unwrap();
    wait_until("a last slow call", || agent.path("ended").exists());
    kill_process(pid(reader), Signal::KILL).unwrap();
    let firing = agent.wait_firing("its end", gap_of("reader"));
    // `… took 300123 µs in read in pipe_read; from 10000 µs on that is slow (5ms before)`
    let took = |line: &str| -> Option<u64> { line.split_once(" took ")?.1.split(' ').next()?.parse().ok() };
    let lines = firing["evidence"].as_array().unwrap().iter().filter_map(|line| line.as_str());
    let line = lines
        .filter(|line| line.contains(" µs in read"))
        .find(|line| took(line).is_some_and(|us| us >= 290_000))
        .unwrap_or_else(|| panic!("{firing:#}"));
    assert!(line.contains("µs on that is slow ("), "{line}");
    assert!(line.contains(&format!("(pid {reader}")), "{line}");
    if names_are_shown() {
        assert!(line.contains("pipe_read;"), "{line}");
    }
}

#[test]
fn a_process_that_only_spins_makes_no_progress() {
    let agent = Agent::start(&format!(
        "{}[triggers.health_gap]\nspinning = \"6s\"\n",
        script(
            "spinner",
            "renice -n -10 -p $$; trap on=1 TERM; while [ -z \"$on\" ]; do :; done; exec sleep 1000"
        )
    ));
    let spinner = wait_pid(&agent, "spinner");
    // Asked rarely: on one processor the questions would take its time, and it would not spin.
    let mut found = None;
    wait_until("it spins", || {
        std::thread::sleep(Duration::from_secs(2));
        found = agent.firings().into_iter().find(|f| gap_of("spinner")(f) && f["state"] == "holds");
        found.is_some()
    });
    let firing = found.unwrap();
    let summary = firing["summary"].as_str().unwrap();
    assert_eq!(summary, format!("pid {spinner} makes no progress: it runs without making any system call"));
    assert_eq!(firing["remedy"][0]["action"], "file_task", "{firing:#}");
    assert_eq!(process(&status(&agent), "spinner")["pid"], spinner, "nothing is done to it");
    kill_process(pid(spinner), Signal::TERM).unwrap();
    let firing = agent.wait_firing("goes on", |f| gap_of("spinner")(f) && f["state"] == "cleared");
    assert_eq!(firing["cleared_by"], "makes progress again", "{firing:#}");
}

#[test]
fn a_process_that_is_blocked_makes_no_progress() {
    let agent =
        Agent::start(&format!("{}[triggers.health_gap]\nblocked = \"6s\"\n", role("parent", "vfork")));
    let parent = wait_pid(&agent, "parent");
    let firing = agent.wait_firing("is blocked", |f| gap_of("parent")(f) && f["state"] == "holds");
    let summary = firing["summary"].as_str().unwrap();
    let told =
        format!("pid {parent} makes no progress: it is blocked in the kernel and cannot be interrupted");
    assert!(summary.starts_with(&told), "{firing:#}");
    let place = fs::read_to_string(format!("/proc/{parent}/wchan")).unwrap_or_default();
    if !place.is_empty() && place != "0" {
        assert_eq!(summary, format!("{told}, waits in {place}"), "{firing:#}");
    }
    let child = process(&status(&agent), "parent")["descendants"][0]["pid"].as_u64().unwrap();
    kill_process(pid(u32::try_from(child).unwrap()), Signal::KILL).unwrap();
    let firing = agent.wait_firing("goes on", |f| gap_of("parent")(f) && f["state"] == "cleared");
    assert_eq!(firing["cleared_by"], "makes progress again", "{firing:#}");
}

/// Where the pins of an agent with this state folder lie.
fn pins(agent: &Agent) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut owner = [0; 512];
    let state = agent.path("state").canonicalize().unwrap();
    owner[..state.as_os_str().len()].copy_from_slice(state.as_os_str().as_bytes());
    let digest: String = sha2::Sha256::digest(owner).iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new("/sys/fs/bpf/grace").join(&digest[..16])
}

fn unpin(agent: &Agent) -> std::process::Output {
    Command::new(harness::GRACE).arg("unpin").arg("--state-dir").arg(agent.path("state")).output().unwrap()
}

const SLEEPER: &str = "[[process]]\nname = \"sleeper\"\ncommand = [\"/bin/sleep\", \"1000\"]\n";

#[test]
fn what_happens_while_no_agent_runs_is_told_by_the_next() {
    let mut agent = Agent::start(SLEEPER);
    let path = agent.file("changed.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let sleeper = wait_pid(&agent, "sleeper");
    settled(&agent);
    let before = quiet(&agent);
    assert!(before.values().map(|a| a.produced).sum::<u64>() > 0, "{before:?}");
    agent.crash();
    assert!(pins(&agent).exists());

    let writer = run("/bin/sh", &["-c", &format!("printf evil >> {}", path.display())]);
    let killer = run(&program("kill"), &["-SEGV", &sleeper.to_string()]);
    agent.run();
    let firing = agent.wait_firing("drift", |f| drift_of(&path)(f) && f["state"] == "cleared");
    assert_eq!(fs::read_to_string(&path).unwrap(), GOOD);
    // Nobody saw it in the act, but the kernel remembers.
    assert_eq!(firing["writer"]["pid"], writer, "{firing:#}");
    assert_eq!(firing["writer"]["comm"], "sh", "{firing:#}");
    assert_eq!(firing["writer"]["inferred"], "last_touch", "{firing:#}");
    let firing = agent.wait_firing("its end", gap_of("sleeper"));
    let told = format!("pid {sleeper} was killed by SIGSEGV");
    assert!(firing["summary"].as_str().unwrap().starts_with(&told), "{firing:#}");
    assert_eq!(firing["writer"]["pid"], killer, "{firing:#}");
    assert_eq!(firing["writer"]["comm"], "kill", "{firing:#}");

    let after = quiet(&agent);
    assert!(after["file"].produced > before["file"].produced, "{before:?} {after:?}");
    assert!(after["exit"].produced > before["exit"].produced, "{before:?} {after:?}");
    for (class, now) in &after {
        assert!(now.delivered >= before[class].delivered && now.lost == 0, "{class}: {before:?} {after:?}");
    }
    agent.stop();
    assert!(!pins(&agent).exists());
}

#[test]
fn pins_stay_for_the_next_agent_only_where_they_shall() {
    let mut agent = Agent::start("");
    let path = agent.file("kept.conf", GOOD);
    agent.ok(&["snapshot", path.to_str().unwrap()]);
    let produced = |agent: &Agent| quiet(agent)["file"].produced;
    let build = fs::read_dir(pins(&agent)).unwrap().next().unwrap().unwrap().path();
    // While it runs they are its own.
    let refused = unpin(&agent);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(build.join("owner").exists());

    // Told to make room for another one.
    let before = produced(&agent);
    agent.stop_by(Signal::USR1);
    assert!(build.join("owner").exists() && build.join("link_file_dirty").exists());
    be(&format!("chmod 100 {}", path.display()));
    agent.run();
    assert!(produced(&agent) >= before + 100);

    // Told to end.
    agent.stop();
    assert!(!pins(&agent).exists());

    // Dead.
    agent.run();
    assert!(produced(&agent) < 100, "begun anew");
    agent.crash();
    assert!(build.join("owner").exists());
    let done = unpin(&agent);
    assert!(done.status.success() && !pins(&agent).exists(), "{done:?}");
    let nothing = unpin(&agent);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
}

/// Pins a new map at `path`.
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper that makes a map without a program")]
fn pin_a_map(path: &Path) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    const MAP_CREATE: libc::c_int = 0;
    const OBJ_PIN: libc::c_int = 6;
    // Kernels before 5.11 count maps as locked memory.
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
    // An array of one number: type, sizes of key and value, entries.
    let map: [u32; 4] = [2, 4, 4, 1];
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the arguments begin like `union bpf_attr` for the command and are as long as said; the name is
    // NUL-terminated; all outlive the calls.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, MAP_CREATE, map.as_ptr(), size_of_val(&map));
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(i32::try_from(fd).unwrap());
        let pin: [u64; 2] = [name.as_ptr() as u64, u64::try_from(fd.as_raw_fd()).unwrap()];
        let done = libc::syscall(libc::SYS_bpf, OBJ_PIN, pin.as_ptr(), size_of_val(&pin));
        assert!(done == 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn what_another_build_left_pinned_is_taken_away() {
    let mut agent = Agent::start("");
    let build = fs::read_dir(pins(&agent)).unwrap().next().unwrap().unwrap().path();
    agent.stop();
    let other = pins(&agent).join("0123456789abcdef");
    fs::create_dir_all(&other).unwrap();
    pin_a_map(&other.join("map_FILES"));
    agent.run();
    wait_until("it is gone", || !other.exists());
    assert!(build.join("owner").exists());
    // Half a set of this build's own is no set.
    agent.stop();
    fs::create_dir_all(&build).unwrap();
    pin_a_map(&build.join("map_FILES"));
    agent.run();
    assert!(build.join("owner").exists());
    assert!(status(&agent)["unpinned"].is_null());
}

#[test]
fn every_probe_has_seen_its_canary_and_has_a_price() {
    let agent = Agent::start("[probes]\nlatency = \"full\"\n");
    let path = agent.file("busy", GOOD);
    let mut probes = Value::Null;
    wait_until("a price for each", || {
        // Something for each of them to see.
        let replaced = path.with_extension("new");
        let (path, new) = (path.display(), replaced.display());
        run("/bin/sh", &["-c", &format!("/bin/true; echo > {path}; echo > {new}; mv {new} {path}")]);
        probes = status(&agent)["probes"].clone();
        // Optional ones are off where the kernel refuses LSM and fentry programs.
        probes.as_array_mut().unwrap().retain(|p| p["state"] != "off");
        probes.as_array().unwrap().iter().all(|p| !p["self_test"].is_null() && !p["ns_per_run"].is_null())
    });
    let probes = probes.as_array().unwrap();
    assert!(probes.len() >= 7, "{probes:#?}");
    for probe in probes {
        assert_eq!(probe["state"], "ok", "{probe:#}");
        assert!(probe["why"].is_null(), "{probe:#}");
        let each = probe["ns_per_run"].as_f64().unwrap();
        assert!(each > 0.0 && each < 1e6, "{probe:#}");
        assert!(probe["runs_per_s"].as_f64().unwrap() > 0.0, "{probe:#}");
        assert!(probe["missed"].is_u64(), "{probe:#}");
    }
}

fn timed(status: &Value) -> (u64, u64) {
    let sum = |key: &str| {
        status["syscalls"].as_array().unwrap().iter().map(|class| class[key].as_u64().unwrap()).sum()
    };
    (sum("timed"), sum("calls"))
}

#[test]
fn timing_of_calls_follows_the_configuration() {
    let agent = Agent::start("[probes]\nlatency = \"off\"\n");
    let reload = |latency: &str| {
        fs::write(agent.path("grace.toml"), format!("[probes]\nlatency = \"{latency}\"\n")).unwrap();
        kill_process(pid(agent.pid()), Signal::HUP).unwrap();
    };
    // Thousands of calls are made and none is timed.
    let nothing_is_timed = || {
        let before = timed(&status(&agent));
        let mut after = before;
        wait_until("calls", || {
            run("/bin/true", &[]);
            after = timed(&status(&agent));
            after.1 > before.1 + 5000
        });
        assert_eq!(after.0, before.0);
    };
    settled(&agent);
    assert_eq!(status(&agent)["latency"]["share"], 0.0);
    nothing_is_timed();

    reload("full");
    wait_until("all of the time", || status(&agent)["latency"]["share"] == 1.0);
    let before = timed(&status(&agent)).0;
    wait_until("timed", || timed(&status(&agent)).0 > before + 1000);

    reload("off");
    wait_until("none of the time", || status(&agent)["latency"]["share"] == 0.0);
    nothing_is_timed();
}
