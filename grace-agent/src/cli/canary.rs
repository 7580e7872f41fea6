//! `grace canary`, hidden: the process that the probes' self-test starts. It waits to be told, starts a program (fork,
//! exec, exit), says that it is done, and waits to be killed. With `--listen` it is the server that `grace inject` breaks, with
//! `--spin` the process that keeps the host busy for it, with `--beat` the one that is killed and stopped.

use std::io::{BufRead, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::Args;

use super::Answer;
use crate::clock::Stopwatch;
use crate::sources::ebpf::self_test::DONE;

/// However `grace inject` ends, its process ends by itself after this time.
const SPIN_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// Connections that may wait for the server.
pub(super) const BACKLOG: i32 = 4;

/// Arguments of `grace canary`.
#[derive(Debug, Args)]
pub(super) struct Canary {
    /// Accept connections on a port of this host, and write which one into FILE
    #[arg(long, value_name = "FILE")]
    listen: Option<PathBuf>,
    /// Wait for FILE, then keep every processor busy at the lowest priority, for two minutes at most
    #[arg(long, value_name = "FILE", conflicts_with = "listen")]
    spin: Option<PathBuf>,
    /// Tell $NOTIFY_SOCKET twice a second that this process lives
    #[arg(long, conflicts_with_all = ["listen", "spin"])]
    beat: bool,
}

impl Canary {
    pub(super) fn go(self) -> Answer {
        if self.beat {
            return beat();
        }
        match (self.listen, self.spin) {
            (Some(file), _) => listen(&file),
            (None, Some(file)) => spin(&file),
            (None, None) => go(),
        }
    }
}

/// Accepts and hangs up, for ever.
fn listen(file: &Path) -> Answer {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
    // The standard library's queue is too long to be filled by a few.
    rustix::net::listen(&listener, BACKLOG).context("cannot listen")?;
    let address = listener.local_addr().context("cannot listen")?;
    // Whole or not at all: it is waited for.
    let part = file.with_extension("part");
    std::fs::write(&part, address.to_string()).context("cannot write the address")?;
    std::fs::rename(&part, file).context("cannot write the address")?;
    loop {
        // Whoever left before it was accepted is no reason to end.
        drop(listener.accept());
    }
}

/// Tells that it lives, for ever.
fn beat() -> Answer {
    let socket =
        std::env::var_os("NOTIFY_SOCKET").context("no $NOTIFY_SOCKET: started by an agent, it is set")?;
    let own = UnixDatagram::unbound().context("cannot make a socket")?;
    loop {
        // An agent that is away for a moment comes back.
        drop(own.send_to(b"WATCHDOG=1", &socket));
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

/// Keeps every processor busy once `file` is there.
fn spin(file: &Path) -> Answer {
    let began = Stopwatch::start();
    rustix::process::setpriority_process(None, 19).context("cannot take the lowest priority")?;
    while !file.exists() && began.elapsed() < SPIN_MAX {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let busy = || {
        while began.elapsed() < SPIN_MAX {
            for _ in 0..100_000 {
                std::hint::spin_loop();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(busy);
        }
        busy();
    });
    Ok(0)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one program that is started to be seen, and it is this one"
)]
fn go() -> Answer {
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
