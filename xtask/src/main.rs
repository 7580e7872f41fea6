//! Grace's build tasks: `cargo xtask --help` lists them, one file each.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its caller")]
#![expect(clippy::disallowed_methods, reason = "it starts compilers and guests, and times them")]

mod bench;
mod build;
mod build_ebpf;
mod corpus;
mod gpu_check;
mod lint;
mod mcp_python;
mod places;
mod process;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests Grace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    Vm(vm::Args),
    Lint(lint::Args),
    Bench(bench::Args),
    Corpus(corpus::Args),
    GpuCheck(gpu_check::Args),
    #[command(hide = true)]
    Noise(bench::noise::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::main(&args),
        Task::BuildEbpf(args) => build_ebpf::main(&args),
        Task::Build(args) => build::main(&args),
        Task::Run(args) => run::main(&args),
        Task::Test(args) => test::main(&args),
        Task::Vm(args) => vm::main(&args),
        Task::Lint(args) => lint::main(&args),
        Task::Bench(args) => bench::main(&args),
        Task::Corpus(args) => corpus::main(&args),
        Task::GpuCheck(args) => gpu_check::main(&args),
        Task::Noise(args) => bench::noise::main(&args),
    };
    done.unwrap_or_else(|err| {
        eprintln!("error: {err:#}");
        ExitCode::FAILURE
    })
}
