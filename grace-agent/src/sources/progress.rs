//! Whether a process makes progress: its state and processor time from /proc beside the system calls that the probes
//! count.

use std::fs;

use crate::event::{Doing, Timestamp};

/// A process that ran, or waited for a processor, for this share of the time between two looks was running all along; timer
/// ticks are coarse.
const RUNNING: f64 = 0.8;
/// And for at least this share it ran: on however busy a host, whoever is runnable comes to that.
const RAN: f64 = 0.05;

/// What was seen of one process.
#[derive(Debug, Default)]
pub(super) struct Progress {
    last: Option<Look>,
    doing: Option<(Doing, Timestamp)>,
}

/// One look.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Timestamp,
    calls: Option<u64>,
    /// Of its main thread.
    state: char,
    /// Times its main thread gave up its processor to wait.
    waits: u64,
    /// User and system time of all its threads, in clock ticks.
    ticks: u64,
    /// How long its main thread waited for a processor, in nanoseconds; 0 where the kernel does not tell.
    queued_ns: u64,
}

impl Progress {
    /// Looks at `pid`, which with its descendants made `calls` so far. What it does and since when, where that is
    /// another thing than at the last look.
    pub(super) fn look(
        &mut self,
        pid: u32,
        calls: Option<u64>,
        now: Timestamp,
    ) -> Option<(Doing, Timestamp, Option<String>)> {
        let look = read(pid, calls, now)?;
        let last = self.last.replace(look)?;
        let doing = judge(&last, &look);
        if self.doing.is_some_and(|(was, _)| was == doing) {
            return None;
        }
        let first = self.doing.is_none();
        // It was like this at the last look already.
        let since = if doing == Doing::Working { now } else { last.at };
        self.doing = Some((doing, since));
        if first && doing == Doing::Working {
            return None;
        }
        let wait = (doing == Doing::Blocked).then(|| wait_channel(pid)).flatten();
        Some((doing, since, wait))
    }
}

fn judge(last: &Look, look: &Look) -> Doing {
    if last.state == 'D' && look.state == 'D' && last.waits == look.waits {
        return Doing::Blocked;
    }
    let seconds = look.at.since(last.at).as_secs_f64();
    let ran = look.ticks.saturating_sub(last.ticks) as f64 / rustix::param::clock_ticks_per_second() as f64;
    let queued = look.queued_ns.saturating_sub(last.queued_ns) as f64 / 1e9;
    if let (Some(before), Some(now)) = (last.calls, look.calls)
        && before == now
        && seconds > 0.0
        && ran >= seconds * RAN
        && ran + queued >= seconds * RUNNING
    {
        return Doing::Spinning;
    }
    Doing::Working
}

fn read(pid: u32, calls: Option<u64>, at: Timestamp) -> Option<Look> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything: fields are counted from its end (proc_pid_stat(5): state is the third, utime the
    // fourteenth).
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let user: u64 = fields.nth(10)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    // Time on a processor, time waiting for one, and how often (Documentation/scheduler/sched-stats.rst).
    let queued_ns = fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    Some(Look { at, calls, state, waits: waits.trim().parse().ok()?, ticks: user + system, queued_ns })
}

/// What the main thread of `pid` waits for in the kernel, where that can be read.
fn wait_channel(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/wchan")).ok()?;
    (!name.is_empty() && name != "0").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_blocked_and_idle_are_told_apart() {
        let hertz = rustix::param::clock_ticks_per_second();
        let at = |s: u64| Timestamp(s * 1_000_000_000);
        let first = Look { at: at(0), calls: Some(10), state: 'R', waits: 5, ticks: 100, queued_ns: 7 };
        let later = |calls, state, waits, ran: u64| Look {
            at: at(5),
            calls,
            state,
            waits,
            ticks: 100 + ran * hertz,
            queued_ns: 7,
        };
        assert_eq!(judge(&first, &later(Some(10), 'R', 5, 5)), Doing::Spinning);
        assert_eq!(judge(&first, &later(Some(11), 'R', 5, 5)), Doing::Working, "it made a call");
        assert_eq!(judge(&first, &later(Some(10), 'S', 6, 0)), Doing::Working, "idle is not stuck");
        assert_eq!(judge(&first, &later(None, 'R', 5, 5)), Doing::Working, "no probe: not claimed");
        let queued =
            |calls, ran, s: u64| Look { queued_ns: 7 + s * 1_000_000_000, ..later(calls, 'R', 5, ran) };
        assert_eq!(judge(&first, &queued(Some(10), 1, 4)), Doing::Spinning, "on a busy host");
        assert_eq!(judge(&first, &queued(Some(11), 1, 4)), Doing::Working, "a busy one, on a busy host");
        assert_eq!(judge(&first, &queued(Some(10), 0, 5)), Doing::Working, "it did not get to run at all");
        let stuck = Look { state: 'D', ..first };
        assert_eq!(judge(&stuck, &later(Some(10), 'D', 5, 0)), Doing::Blocked);
        assert_eq!(judge(&stuck, &later(Some(10), 'D', 6, 0)), Doing::Working, "it came back between");
    }
}
