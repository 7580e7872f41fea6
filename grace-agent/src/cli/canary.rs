//! `grace canary`, hidden: the process that the probes' self-test starts. It waits to be told, starts a program (fork,
//! exec, exit), says that it is done, and waits to be killed.

use std::io::{BufRead, Write};
use std::process::{Command, Stdio};

use super::Answer;
use crate::sources::ebpf::self_test::DONE;

#[expect(
    clippy::disallowed_methods,
    reason = "the one program that is started to be seen, and it is this one"
)]
pub(super) fn go() -> Answer {
    let mut line = String::new();
    // Nobody there to tell: not started by the self-test.
    if !std::io::stdin().lock().read_line(&mut line).is_ok_and(|n| n > 0) {
        return Ok(2);
    }
    // The same program, because no other one is sure to be there; it does nothing with these arguments.
    let child = Command::new("/proc/self/exe")
        .arg("canary")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if child.is_err() {
        return Ok(1);
    }
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{DONE}").and_then(|()| out.flush()).is_err() {
        return Ok(1);
    }
    // Killed meanwhile; an agent that is gone closes the pipe.
    std::thread::sleep(std::time::Duration::from_secs(20));
    Ok(1)
}
