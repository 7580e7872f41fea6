//! `grace inject`: a real fault in a scratch subject, and the repair as it happens.
//!
//! Uses the agent at the socket where it repairs; else a private one, started for this and ended after it, with the
//! same probes and a state folder of its own.
#![expect(clippy::disallowed_methods, reason = "the fault must be made by another process than the agent")]

mod code_diff;
mod config_drift;
mod dependency_regression;
mod error_feed;
mod health_gap;
mod model_integrity;
mod predicted_failure;
mod resource_pressure;
mod task;
mod telemetry_drift;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ask::{Failure, with_agent};
use super::show::{Out, escape, micros};
use super::{Answer, Global, canary};
use crate::api::client::{Client, ClientError, Follow, Followed};
use crate::api::view::{FiringView, StatusView};
use crate::clock::Stopwatch;
use crate::config::Mode;
use crate::firing::{RungState, State, Subject};

/// A repair that takes longer did not hold.
const PATIENCE: Duration = Duration::from_secs(90);

/// A private agent that needs longer to end is killed.
const ENDING: Duration = Duration::from_secs(10);

/// Arguments of `grace inject`.
#[derive(Debug, Args)]
pub struct Inject {
    /// The trigger that shall fire
    #[arg(required_unless_present = "list")]
    trigger: Option<Fault>,
    /// The triggers that a fault can be made for
    #[arg(long, conflicts_with = "trigger")]
    list: bool,
    /// One JSON object a line: the steps
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Fault {
    /// `sed -i` changes an owned file
    ConfigDrift,
    /// A declared process is killed, and the next one hangs
    HealthGap,
    /// A declared server does not accept any more, and connections pile up
    LatencySpike,
    /// A program fails five times in the same way
    ErrorFeed,
    /// An HTTP server's answers lose a field
    TelemetryDrift,
    /// A Python package gets another version
    DependencyRegression,
    /// `sed -i` changes a critical file of a git repo
    CodeDiff,
    /// A file of a git repo is repaired again and again
    PredictedFailure,
    /// `dd` overwrites one byte of a weights file
    ModelIntegrity,
    /// A declared process keeps all processors busy
    ResourcePressure,
}

/// What a fault brings along before an agent is started for it.
enum Prepared {
    /// Nothing: any agent that repairs will do.
    Nothing,
    /// A configuration for an agent of its own.
    Config(String),
    /// The same, and a server.
    Server(String, telemetry_drift::Server),
}

impl Fault {
    fn prepare(self, scratch: &Path) -> Result<Prepared, Failure> {
        match self {
            Self::ConfigDrift
            | Self::HealthGap
            | Self::LatencySpike
            | Self::ErrorFeed
            | Self::ModelIntegrity => Ok(Prepared::Nothing),
            Self::ResourcePressure => Ok(Prepared::Config(resource_pressure::CONFIG.to_owned())),
            Self::TelemetryDrift => {
                let server = telemetry_drift::Server::bind()?;
                Ok(Prepared::Server(server.config(), server))
            }
            Self::DependencyRegression => Ok(Prepared::Config(dependency_regression::config(scratch)?)),
            Self::CodeDiff => Ok(Prepared::Config(code_diff::config(scratch)?)),
            Self::PredictedFailure => Ok(Prepared::Config(predicted_failure::config(scratch)?)),
        }
    }
}

/// One step of the story.
#[derive(Debug, Serialize)]
struct Step<'a> {
    /// Microseconds since the fault; negative before it.
    at_us: i64,
    step: &'a str,
    text: &'a str,
}

/// Tells the story.
struct Teller<'a> {
    out: &'a mut Out,
    json: bool,
    fault: Option<Stopwatch>,
}

impl Teller<'_> {
    fn tell(&mut self, step: &str, text: &str) -> Result<(), Failure> {
        let since = self.fault.map(|w| u64::try_from(w.elapsed().as_micros()).unwrap_or(u64::MAX));
        if self.json {
            let at_us = since.map_or(-1, |us| i64::try_from(us).unwrap_or(i64::MAX));
            self.out.json(&Step { at_us, step, text })?;
        } else if !self.out.quiet || step == "cleared" {
            let at = since.map_or_else(String::new, |us| format!("+{}", micros(us)));
            self.out.line(&format!("{at:>10}  {step:<9} {}", escape(text)))?;
        }
        self.out.flush()
    }
}

impl Inject {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let Some(fault) = self.trigger else {
            for fault in Fault::value_variants().iter().filter_map(ValueEnum::to_possible_value) {
                let help = fault.get_help().map(ToString::to_string).unwrap_or_default();
                out.line(&format!("{:<22} {help}", fault.get_name()))?;
            }
            return Ok(0);
        };
        let scratch = Scratch::new()?;
        let mut teller = Teller { out, json: self.json, fault: None };
        let prepared = fault.prepare(&scratch.0)?;
        let config = scratch.0.join("grace.toml");
        let running =
            with_agent(&global.socket, async |agent| Ok(agent.get::<StatusView>("/v1/status").await?));
        let mut private = None;
        let socket = match (running, &prepared) {
            (_, Prepared::Config(text) | Prepared::Server(text, _)) => {
                fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
                let agent = private.insert(Private::start(&scratch.0, &config)?);
                teller.tell(
                    "agent",
                    &format!("a private one, pid {}: this needs a configuration of its own", agent.0.id()),
                )?;
                scratch.socket()
            }
            (running, Prepared::Nothing) => match running {
                Ok(status) if status.mode == Mode::Repair => {
                    teller.tell("agent", &format!("pid {} at {}", status.pid, global.socket.display()))?;
                    global.socket.clone()
                }
                Ok(_) | Err(Failure::Client(ClientError::NoAgent(_) | ClientError::Denied(_))) => {
                    let agent = private.insert(Private::start(&scratch.0, Path::new("/dev/null"))?);
                    let why = if running.is_ok() {
                        "the running one only observes"
                    } else {
                        "none answers at the socket"
                    };
                    teller.tell("agent", &format!("a private one, pid {}: {why}", agent.0.id()))?;
                    scratch.socket()
                }
                Err(err) => return Err(err),
            },
        };
        with_agent(&socket, async |agent| {
            let mut stop = Stop::new()?;
            stop.or(answers(&agent, private.as_mut())).await?;
            match fault {
                Fault::ConfigDrift => config_drift::tell(&agent, &scratch.0, &mut teller, &mut stop).await,
                Fault::HealthGap => health_gap::tell(&agent, &mut teller, &mut stop).await,
                Fault::LatencySpike => latency_spike(&agent, &scratch.0, &mut teller, &mut stop).await,
                Fault::ErrorFeed => error_feed::tell(&agent, &scratch.0, &mut teller, &mut stop).await,
                Fault::TelemetryDrift => match prepared {
                    Prepared::Server(_, server) => {
                        telemetry_drift::tell(&agent, server, &mut teller, &mut stop).await
                    }
                    Prepared::Nothing | Prepared::Config(_) => Err(anyhow!("no server was made").into()),
                },
                Fault::DependencyRegression => {
                    dependency_regression::tell(&agent, &scratch.0, &mut teller, &mut stop).await
                }
                Fault::CodeDiff => code_diff::tell(&agent, &scratch.0, &mut teller, &mut stop).await,
                Fault::PredictedFailure => {
                    predicted_failure::tell(&agent, &scratch.0, &mut teller, &mut stop).await
                }
                Fault::ModelIntegrity => {
                    model_integrity::tell(&agent, &scratch.0, &mut teller, &mut stop).await
                }
                Fault::ResourcePressure => {
                    resource_pressure::tell(&agent, &scratch.0, &mut teller, &mut stop).await
                }
            }
        })?;
        Ok(0)
    }
}

/// Waits until the agent answers: a private one needs a moment.
async fn answers(agent: &Client, mut private: Option<&mut Private>) -> Result<(), Failure> {
    let began = Stopwatch::start();
    while let Err(err) = agent.get::<StatusView>("/v1/status").await {
        if let Some(status) = private.as_mut().and_then(|p| p.0.try_wait().ok().flatten()) {
            return Err(Failure::Other(anyhow!("the private agent ended before it answered: {status}")));
        }
        if began.elapsed() > PATIENCE {
            return Err(err.into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whether somebody wants this to end. What was begun is cleared up then as at any other end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// `work`, unless the end comes first.
    async fn or<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            _ = self.interrupt.recv() => Err(Failure::No("interrupted".to_owned())),
            _ = self.terminate.recv() => Err(Failure::No("interrupted".to_owned())),
        }
    }
}

async fn latency_spike(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let name = format!("inject-{}", std::process::id());
    let file = scratch.join("address");
    let grace = std::env::current_exe().context("cannot find this program")?;
    let process = serde_json::json!({ "name": name, "command": [&grace, Path::new("canary"), Path::new("--listen"), &file] });
    let () = agent.post("/v1/processes", &process).await?;
    let result = stop.or(crowded(agent, &name, &file, teller)).await;
    // Whoever is stopped does not hear that it shall end.
    if let Ok(pid) = pid_of(agent, &name, 0).await {
        drop(program("kill").and_then(|kill| signal_by(&kill, "-CONT", pid)));
    }
    let removed: Result<(), ClientError> = agent.delete(&format!("/v1/processes/{name}")).await;
    result?;
    removed?;
    Ok(())
}

async fn crowded(agent: &Client, name: &str, file: &Path, teller: &mut Teller<'_>) -> Result<(), Failure> {
    let server = pid_of(agent, name, 0).await?;
    let began = Stopwatch::start();
    let address: SocketAddr = loop {
        if let Some(address) = fs::read_to_string(file).ok().and_then(|text| text.parse().ok()) {
            break address;
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::No(format!("{name} does not listen after {PATIENCE:?}")));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    teller.tell("process", &format!("{name} runs as pid {server} and accepts at {address}"))?;
    let mut follow = agent.follow().await?;
    let kill = program("kill")?;
    teller.fault = Some(Stopwatch::start());
    let pid = signal_by(&kill, "-STOP", server)?;
    let mut clients = Vec::new();
    // The kernel takes one more than may wait; the next one is not answered.
    while clients.len() <= usize::try_from(canary::BACKLOG).unwrap_or(0) {
        let client = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        clients.push(client.context("cannot make the fault")?);
    }
    let told =
        format!("{} -STOP {server} (pid {pid}), and {} connections wait", kill.display(), clients.len());
    teller.tell("fault", &told)?;
    let mend = || {
        signal_by(&kill, "-CONT", server)?;
        Ok(format!("{} -CONT {server}: it accepts again", kill.display()))
    };
    watch(&mut follow, &Subject::Process(name.to_owned()), teller, Some(&mend)).await?;
    teller.tell("verified", &format!("pid {server} accepted all {} connections", accepted(&clients)?))
}

/// How many of `clients` were accepted, all of them: the server hung up.
fn accepted(clients: &[TcpStream]) -> Result<usize, Failure> {
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).context("cannot wait for the server")?;
        let read = client.read(&mut [0]);
        // One that hangs up with a reset has accepted, too.
        if !matches!(&read, Ok(0)) && !matches!(&read, Err(err) if err.kind() == ErrorKind::ConnectionReset) {
            return Err(Failure::No("the firing cleared, but connections still wait".to_owned()));
        }
    }
    Ok(clients.len())
}

/// Sends a signal with the program `kill`; its own pid.
fn signal_by(kill: &Path, signal: &str, pid: u32) -> Result<u32, Failure> {
    spawn_and_wait(Command::new(kill).args([signal, &pid.to_string()]))
}

/// The pid of `name`, once it is another one than `not`.
async fn pid_of(agent: &Client, name: &str, not: u32) -> Result<u32, Failure> {
    let began = Stopwatch::start();
    loop {
        let status: StatusView = agent.get("/v1/status").await?;
        let pid = status.processes.iter().find(|p| p.name == name).and_then(|p| p.pid);
        if let Some(pid) = pid.filter(|pid| *pid != not) {
            return Ok(pid);
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::No(format!("{name} does not run after {PATIENCE:?}")));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends a fault that Grace cannot mend; what was done, in words.
type Mend<'a> = &'a dyn Fn() -> Result<String, Failure>;

/// Tells what the agent does about `subject` until the firing clears. Where all that it can do is to file a task, `mend`
/// stands for whoever works on it.
async fn watch(
    follow: &mut Follow,
    subject: &Subject,
    teller: &mut Teller<'_>,
    mend: Option<Mend<'_>>,
) -> Result<(), Failure> {
    watch_for(follow, teller, mend, |firing| firing.subject == *subject).await.map(drop)
}

/// The same about the firing that `wanted` says, and returns it.
async fn watch_for(
    follow: &mut Follow,
    teller: &mut Teller<'_>,
    mut mend: Option<Mend<'_>>,
    wanted: impl Fn(&FiringView) -> bool,
) -> Result<FiringView, Failure> {
    let mut last: Option<FiringView> = None;
    let deadline = tokio::time::sleep(PATIENCE);
    tokio::pin!(deadline);
    loop {
        let next = tokio::select! {
            next = follow.next() => next,
            () = &mut deadline => {
                let state = match &last {
                    Some(f) => format!("{} fired and did not clear", f.id),
                    None => "nothing fired".to_owned(),
                };
                return Err(Failure::No(format!("the repair did not hold: after {PATIENCE:?} {state}")));
            }
        };
        let firing = match next {
            Some(Followed::Firing(firing)) if wanted(&firing) => *firing,
            Some(_) => continue,
            None => return Err(ClientError::Failed("it ended meanwhile".into()).into()),
        };
        if last.is_none() {
            teller.tell("firing", &format!("{} {}: {}", firing.id, firing.trigger, firing.summary))?;
        }
        for (i, rung) in firing.remedy.iter().enumerate() {
            let before = last.as_ref().and_then(|l| l.remedy.get(i)).map(|r| r.state);
            if before == Some(rung.state) {
                continue;
            }
            let why = rung.why.as_deref().unwrap_or_default();
            match rung.state {
                RungState::Done => {
                    let took = micros(rung.took_us.unwrap_or(0));
                    let step = if rung.action == "file_task" { "filed" } else { "repaired" };
                    teller.tell(step, &format!("{} in {took}: {why}", rung.action))?;
                    if let Some(mend) = mend.take_if(|_| rung.action == "file_task") {
                        teller.tell("mended", &mend()?)?;
                    }
                }
                RungState::Failed => teller.tell("failed", &format!("{}: {why}", rung.action))?,
                RungState::Held => teller.tell("held", &format!("{}: {why}", rung.action))?,
                RungState::Planned | RungState::Running => {}
            }
        }
        if firing.state == State::Cleared {
            teller.tell("cleared", firing.cleared_by.as_deref().unwrap_or_default())?;
            return Ok(firing);
        }
        last = Some(firing);
    }
}

/// An absolute path of a program of the system: never one that a PATH offers.
fn program(name: &str) -> Result<PathBuf, Failure> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| Failure::Other(anyhow!("no {name} in /usr/bin or /bin: the fault cannot be made")))
}

fn spawn_and_wait(command: &mut Command) -> Result<u32, Failure> {
    let mut child = command.stdin(Stdio::null()).spawn().context("cannot make the fault")?;
    let pid = child.id();
    let status = child.wait().context("cannot make the fault")?;
    if status.success() {
        Ok(pid)
    } else {
        Err(Failure::Other(anyhow!("the fault could not be made: {status}")))
    }
}

/// A folder for the fault, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let base = std::env::temp_dir();
        let base = base.canonicalize().with_context(|| format!("cannot use {}", base.display()))?;
        let path = base.join(format!("grace-inject-{}-{}", std::process::id(), crate::clock::wall_ns()));
        // It must be new: in a folder that everybody may write to, an old one could be anybody's.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies in the folder for temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// An agent of its own.
struct Private(Child);

impl Private {
    fn start(scratch: &Path, config: &Path) -> Result<Self, Failure> {
        let grace = std::env::current_exe().context("cannot find this program")?;
        let child = Command::new(grace)
            .args(["run", "--quiet", "--mode", "repair"])
            .arg("--config")
            .arg(config)
            .arg("--state-dir")
            .arg(scratch.join("state"))
            .arg("--socket")
            .arg(scratch.join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start a private agent")?;
        Ok(Self(child))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A child that was not waited for: the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let began = Stopwatch::start();
        while let Ok(None) = self.0.try_wait() {
            if began.elapsed() > ENDING {
                drop(self.0.kill());
                drop(self.0.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
