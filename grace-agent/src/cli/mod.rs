//! The command line: one file per subcommand. It asks the agent over its socket and shows the answer.
//!
//! Exit codes: 0 done · 1 the answer is no (drift found, not there) · 2 usage or configuration · 3 no agent at the
//! socket · 4 refused.

mod against;
pub mod ask;
pub mod at;
mod canary;
pub mod config;
pub mod deps;
pub mod diff;
pub mod doctor;
pub mod endpoint;
pub mod explain;
pub mod firings;
pub mod good;
pub mod gpu;
pub mod incidents;
pub mod inject;
pub mod manual;
pub mod pause;
pub mod pressure;
pub mod replay;
pub mod report;
pub mod risk;
pub mod run;
pub mod scan;
pub mod schema;
pub mod show;
pub mod snapshots;
pub mod status;
mod syntax_worker;
pub mod tasks;
pub mod undo;
pub mod unpin;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use ask::Failure;
use show::Out;

/// Where the agent listens when nobody names another place.
pub const SOCKET: &str = "/run/grace/grace.sock";

/// Root host agent: watches a host through kernel probes, repairs what it was told to own, and says who broke it.
#[derive(Debug, Parser)]
#[command(name = "grace", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 usage or configuration, 3 no agent, 4 refused."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The agent's socket
    #[arg(long, global = true, value_name = "PATH", env = "GRACE_SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Say less
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Global {
    /// Whether to use colour on stdout.
    #[must_use]
    pub fn colored(&self) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (root for the kernel probes; sees less without)
    Run(run::Run),
    /// How the agent is: probes, sources, triggers, losses, cost
    Status(status::Status),
    /// What fired, and what was done about it
    Firings(firings::Firings),
    /// Firings that belong together: a cause and what followed from it
    Incidents(incidents::Incidents),
    /// Why a firing fired, or what a trigger does
    Explain(explain::Explain),
    /// The triggers
    Triggers(explain::Triggers),
    /// Let repairs and tasks rest: a maintenance window; without arguments, what rests now
    Pause(pause::Pause),
    /// End a pause early
    Resume(pause::Resume),
    /// Own files: keep their state now as known-good
    Snapshot(snapshots::Snapshot),
    /// The snapshots kept
    Snapshots(snapshots::Snapshots),
    /// Compare owned files with their known-good state (exit 1: drift)
    Verify(snapshots::Verify),
    /// Put a known-good state back
    Restore(snapshots::Restore),
    /// How an owned file differs from what is kept of it (exit 1: it differs)
    Diff(diff::Diff),
    /// Take back what was done for an incident: what a restore displaced is put back
    Undo(undo::Undo),
    /// Do not own a file any more
    Forget(snapshots::Forget),
    /// What this host lets Grace see, and what to do about the rest
    Doctor(doctor::Doctor),
    /// The configuration: check it, show it, its schema
    Config(config::Config),
    /// Make a real fault in a scratch subject and show the repair
    Inject(inject::Inject),
    /// Judge a recorded event stream again
    Replay(replay::Replay),
    /// Take away the probes that a killed agent left running for the next one
    Unpin(unpin::Unpin),
    /// Work for coding agents and people
    Tasks(tasks::Tasks),
    /// Say that something is alive
    Heartbeat(report::Heartbeat),
    /// Say how many wait in a queue
    Queue(report::Queue),
    /// Say how long an answer took
    Latency(report::Latency),
    /// Report an error, with its trace
    Error(report::Error),
    /// Say how good a model's answers are
    Accuracy(report::Accuracy),
    /// JSON Schema of what --json prints
    Schema(schema::Schema),
    /// The polled endpoints, and what is known of their answers
    Endpoint(endpoint::Endpoint),
    /// Mark the commit that is checked out as known-good
    Good(good::Good),
    /// The GPUs: what is wrong with each and what to do, and who uses it
    Gpu(gpu::Gpu),
    /// How full each resource of the host is, and from whom load would be taken
    Pressure(pressure::Pressure),
    /// Packages and programs, compared with their snapshots
    Deps(deps::Deps),
    /// How likely files need a repair soon, as their history says
    Risk(risk::Risk),
    /// Completion for a shell, to stdout
    Completions(manual::Completions),
    /// The manual, to stdout or as pages into a folder
    Man(manual::Man),
    /// What the agent starts to test its probes, and `grace inject` to be broken
    #[command(hide = true)]
    Canary(canary::Canary),
    /// Everything once: the triggers, and a syntax check of source trees (exit 1: something found)
    Scan(scan::Scan),
    /// What a scan starts to parse in
    #[command(hide = true)]
    SyntaxWorker,
}

/// The program. `agent` runs the agent; it is handed in because the command line knows no room but the socket's.
#[must_use]
pub fn main(agent: run::Agent) -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::new(cli.global.colored(), cli.global.quiet);
    let global = &cli.global;
    let result = match cli.command {
        Command::Run(command) => command.go(global, agent),
        Command::Status(command) => command.go(global, &mut out),
        Command::Firings(command) => command.go(global, &mut out),
        Command::Explain(command) => command.go(global, &mut out),
        Command::Triggers(command) => command.go(global, &mut out),
        Command::Snapshot(command) => command.go(global, &mut out),
        Command::Snapshots(command) => command.go(global, &mut out),
        Command::Verify(command) => command.go(global, &mut out),
        Command::Restore(command) => command.go(global, &mut out),
        Command::Diff(command) => command.go(global, &mut out),
        Command::Undo(command) => command.go(global, &mut out),
        Command::Forget(command) => command.go(global, &mut out),
        Command::Doctor(command) => command.go(global, &mut out),
        Command::Config(command) => command.go(global, &mut out),
        Command::Inject(command) => command.go(global, &mut out),
        Command::Replay(command) => command.go(global, &mut out),
        Command::Unpin(command) => command.go(global, &mut out),
        Command::Tasks(command) => command.go(global, &mut out),
        Command::Incidents(command) => command.go(global, &mut out),
        Command::Pause(command) => command.go(global, &mut out),
        Command::Resume(command) => command.go(global, &mut out),
        Command::Heartbeat(command) => command.go(global, &mut out),
        Command::Queue(command) => command.go(global, &mut out),
        Command::Latency(command) => command.go(global, &mut out),
        Command::Error(command) => command.go(global, &mut out),
        Command::Accuracy(command) => command.go(global, &mut out),
        Command::Schema(command) => command.go(global, &mut out),
        Command::Endpoint(command) => command.go(global, &mut out),
        Command::Good(command) => command.go(global, &mut out),
        Command::Gpu(command) => command.go(global, &mut out),
        Command::Pressure(command) => command.go(global, &mut out),
        Command::Deps(command) => command.go(global, &mut out),
        Command::Risk(command) => command.go(global, &mut out),
        Command::Completions(command) => command.go(global, &mut out),
        Command::Man(command) => command.go(global, &mut out),
        Command::Canary(command) => command.go(),
        Command::Scan(command) => command.go(global, &mut out),
        Command::SyntaxWorker => syntax_worker::go(),
    };
    match out.finish(result) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            show::complain(&failure);
            ExitCode::from(failure.code())
        }
    }
}

/// The command line's own description, for completions and the manual.
#[must_use]
pub fn description() -> clap::Command {
    Cli::command()
}

/// What a subcommand ends with: an exit code, or a failure that knows its own.
pub type Answer = Result<u8, Failure>;
