//! The program `grace`.

use std::process::ExitCode;

fn main() -> ExitCode {
    grace_agent::cli::main(grace_agent::daemon::run)
}
