//! Tells whoever supervises the agent (systemd, with `Type=notify`) that it is ready, that it lives, and that it stops.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::executor::Executor;
use super::judge::Judged;
use crate::clock;
use crate::event::{Kind, Timestamp};

/// Where to tell, and how often that the agent lives.
pub(super) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// As often as it says at the latest, where it wants to hear.
    every: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names; without one, nobody is told.
    pub(super) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let open = || -> io::Result<(UnixDatagram, SocketAddr)> {
                let address = match name.as_bytes().split_first() {
                    Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
                    _ => SocketAddr::from_pathname(&name)?,
                };
                let socket = UnixDatagram::unbound()?;
                // A supervisor that does not listen is not waited for.
                socket.set_nonblocking(true)?;
                Ok((socket, address))
            };
            open()
                .inspect_err(
                    |err| tracing::warn!(%err, "whoever supervises this agent cannot be told anything"),
                )
                .ok()
        });
        let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
        let mine = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|_| mine && socket.is_some()).map(Duration::from_micros);
        // As sd_watchdog_enabled(3) advises: twice within the limit, and a little more often.
        Self { socket, every: limit.map(|limit| limit / 3) }
    }

    /// Says `what`: assignments as in sd_notify(3), one a line.
    pub(super) fn tell(&self, what: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(err) = socket.send_to_addr(what.as_bytes(), address)
        {
            tracing::debug!(%err, "whoever supervises this agent was not told");
        }
    }
}

/// Proves to the supervisor that the engine judges: it is asked to, and only then it is said that the agent lives.
pub(super) struct Watchdog {
    supervisor: Supervisor,
    asked: Option<Timestamp>,
    next: Timestamp,
}

impl Watchdog {
    pub(super) fn new(supervisor: Supervisor) -> Self {
        Self { supervisor, asked: None, next: Timestamp::default() }
    }

    /// To be called every second or so.
    pub(super) fn turn(&mut self, executor: &Executor, judged: &Judged) {
        let Some(every) = self.supervisor.every else { return };
        let now = clock::boottime();
        match self.asked {
            Some(asked) if judged.load(Ordering::Acquire) >= asked.0 => {
                self.supervisor.tell("WATCHDOG=1");
                self.asked = None;
                self.next = now.after(every);
            }
            // The engine is at it, or hangs: the supervisor will see.
            Some(_) => {}
            None if now >= self.next => {
                self.asked = Some(now);
                executor.send(Kind::Tick);
            }
            None => {}
        }
    }
}
