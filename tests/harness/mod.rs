//! A real agent for tests: the built binary with its own state folder and socket, driven through its command line.

#![allow(dead_code, unreachable_pub, reason = "each test target uses its part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

pub mod mcp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing that works takes this long, not even under an emulated processor.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const GRACE: &str = env!("CARGO_BIN_EXE_grace");

/// True where the kernel probes can be loaded.
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that the test `name` could not do its work, and why; `cargo xtask test` lists it as not run.
pub fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED {name}: {why}");
    if let Some(list) = std::env::var_os("GRACE_TEST_SKIPS") {
        use std::io::Write;
        if let Ok(mut file) = fs::OpenOptions::new().append(true).create(true).open(list) {
            writeln!(file, "{name}: {why}").unwrap();
        }
    }
}

/// An agent and a folder for its subjects.
pub struct Agent {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    config: String,
    mode: &'static str,
    wrapper: Vec<String>,
}

impl Agent {
    /// A running agent in repair mode with this configuration.
    pub fn start(config: &str) -> Self {
        Self::start_as(config, "repair", &[])
    }

    /// A running agent; `wrapper` is a command that starts it (`setpriv …`).
    pub fn start_as(config: &str, mode: &'static str, wrapper: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("grace-test-").tempdir().unwrap();
        // The agent and its subjects are reached by their real names.
        fs::create_dir(dir.path().join("etc")).unwrap();
        let mut agent = Self {
            dir,
            child: None,
            config: config.to_owned(),
            mode,
            wrapper: wrapper.iter().map(|s| (*s).to_owned()).collect(),
        };
        if !wrapper.is_empty() {
            // It runs as somebody else, who must be able to make its state folder and the socket.
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(agent.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
            fs::set_permissions(agent.path("etc"), fs::Permissions::from_mode(0o777)).unwrap();
        }
        agent.run();
        agent
    }

    /// Starts the program (again) and waits until it answers.
    pub fn run(&mut self) {
        let config = self.config.replace("$DIR", &self.dir.path().to_string_lossy());
        fs::write(self.path("grace.toml"), config).unwrap();
        self.run_as_configured();
    }

    /// The same with the configuration that lies there.
    pub fn run_as_configured(&mut self) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        let mut words = self.wrapper.clone();
        words.push(GRACE.to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("run")
            .args(["--mode", self.mode])
            .arg("--config")
            .arg(self.path("grace.toml"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
        let began = Instant::now();
        while !self.grace(&["status", "--json"]).status.success() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < DEADLINE, "no agent: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The configuration from the next start on.
    pub fn config(&mut self, config: &str) {
        config.clone_into(&mut self.config);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs the command line against this agent.
    pub fn grace(&self, args: &[&str]) -> Output {
        Command::new(GRACE)
            .arg("--socket")
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The same, which must succeed; its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.grace(args);
        assert!(out.status.success(), "grace {args:?}: {out:?}\n{}", self.log());
        String::from_utf8(out.stdout).unwrap()
    }

    /// One document.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// One object a line.
    #[track_caller]
    pub fn lines(&self, args: &[&str]) -> Vec<Value> {
        self.ok(args).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    pub fn firings(&self) -> Vec<Value> {
        self.lines(&["firings", "--json"])
    }

    /// Waits for a firing that `wanted` accepts.
    #[track_caller]
    pub fn wait_firing(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let firings = self.firings();
            if let Some(found) = firings.iter().rev().find(|f| wanted(f)) {
                return found.clone();
            }
            assert!(began.elapsed() < DEADLINE, "no firing: {what}\n{firings:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A file among the agent's subjects.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path("etc").join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Ends the agent with SIGKILL, as a crash would.
    pub fn crash(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks the agent to end and waits for it.
    pub fn stop(&mut self) {
        self.stop_by(rustix::process::Signal::TERM);
    }

    /// The same by another signal.
    pub fn stop_by(&mut self, signal: rustix::process::Signal) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status:?}\n{}", self.log());
                return;
            }
            assert!(began.elapsed() < DEADLINE, "does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes that the agent supervises, by name: ended with the test.
    fn end_processes(&self) {
        let running = self.path("state").join("running");
        for entry in fs::read_dir(running).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let Ok(note) = serde_json::from_str::<Value>(&text) else { continue };
            let pid = note["pid"]
                .as_i64()
                .and_then(|p| i32::try_from(p).ok())
                .and_then(rustix::process::Pid::from_raw);
            let Some(pid) = pid else { continue };
            // Only the very process that was noted.
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            let start =
                stat.rfind(')').and_then(|at| stat[at + 1..].split_whitespace().nth(19)?.parse::<u64>().ok());
            if start == note["start_ticks"].as_u64() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // What it started, and the cgroup itself, once it is empty.
            if let Some(cgroup) = note["cgroup"].as_str().map(PathBuf::from) {
                let _ = fs::write(cgroup.join("cgroup.kill"), "1");
                let began = Instant::now();
                while fs::remove_dir(&cgroup).is_err()
                    && cgroup.exists()
                    && began.elapsed() < Duration::from_secs(5)
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = cgroup.parent().map(fs::remove_dir);
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.end_processes();
        if root() {
            // A killed agent's probes would run on: nothing was left to do where it was stopped.
            let _ = Command::new(GRACE)
                .arg("unpin")
                .arg("--state-dir")
                .arg(self.path("state"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A request to the agent's socket, which must be granted.
#[track_caller]
pub fn request(agent: &Agent, method: &str, path: &str, body: &str) {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(agent.socket()).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: grace\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}

/// Waits until `done` says so.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program, as another process than the agent's and the test's, and returns its pid.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> u32 {
    let mut child = Command::new(program).args(args).stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let status = child.wait().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
    pid
}

/// Where a program lies; bullseye and later have all of them in /usr/bin.
pub fn program(name: &str) -> String {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| format!("{folder}/{name}"))
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}
