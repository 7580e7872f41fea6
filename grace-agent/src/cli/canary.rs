//! `grace canary`, hidden: the process that the probes' self-test starts. It waits to be told, starts a program (fork,
//! exec, exit), says that it is done, and waits to be killed. With `--work` it is a worker of the queue that `grace inject` floods,
//! with `--spin` the process that keeps the host busy for it, with `--beat` the one that is killed and stopped, with `--serve` a
//! server that tests wait for.

use std::io::{BufRead, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::Args;

use super::Answer;
use crate::clock::Stopwatch;
use crate::sources::ebpf::self_test::DONE;

/// However `grace inject` ends, its process ends by itself after this time.
const SPIN_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// How long a worker takes for a job.
pub(super) const JOB: std::time::Duration = std::time::Duration::from_millis(100);

/// Arguments of `grace canary`.
#[derive(Debug, Args)]
pub(super) struct Canary {
    /// Accept connections at this socket
    #[arg(long, value_name = "SOCKET")]
    serve: Option<PathBuf>,
    /// Work off the queue in this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "serve")]
    work: Option<PathBuf>,
    /// Wait for FILE, then keep every processor busy at the lowest priority, for two minutes at most
    #[arg(long, value_name = "FILE", conflicts_with = "serve")]
    spin: Option<PathBuf>,
    /// Tell $NOTIFY_SOCKET twice a second that this process lives
    #[arg(long, conflicts_with_all = ["serve", "work", "spin"])]
    beat: bool,
}

impl Canary {
    pub(super) fn go(self) -> Answer {
        if self.beat {
            return beat();
        }
        match (self.serve, self.work, self.spin) {
            (Some(path), ..) => serve(&path),
            (_, Some(folder), _) => work(&folder),
            (.., Some(file)) => spin(&file),
            (None, None, None) => go(),
        }
    }
}

/// Accepts and hangs up, for ever.
fn serve(path: &Path) -> Answer {
    let listener = UnixListener::bind(path).context("cannot listen")?;
    loop {
        // Whoever left before it was accepted is no reason to end.
        drop(listener.accept());
    }
}

/// Takes one job after the other off the queue in `folder`: each is a file, whose name the worker that renames it has. Ends with
/// the folder, and after `SPIN_MAX`.
fn work(folder: &Path) -> Answer {
    let began = Stopwatch::start();
    let mine = folder.join(format!(".{}", std::process::id()));
    while began.elapsed() < SPIN_MAX {
        let Ok(jobs) = std::fs::read_dir(folder) else { return Ok(0) };
        let job =
            jobs.flatten().map(|job| job.path()).find(|job| job.extension().is_some_and(|e| e == "job"));
        // Another worker may have been quicker: then there are others.
        if job.is_none_or(|job| std::fs::rename(job, &mine).is_ok()) {
            std::thread::sleep(JOB);
            drop(std::fs::remove_file(&mine));
        }
    }
    Ok(0)
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
