//! How many datagrams a second applications can send to the agent, what becomes of them, and what they cost it.
//!
//! The same senders send to the agent and to a bare loop of recv(2) with a queue as deep: the floor. First flat out, where
//! a sender waits when the queue is full, then 200,000 a second by senders that never wait and lose what finds no room.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::thread::UnshareFlags;
use rustix::time::{ClockId, clock_gettime};

use super::agent::Agent;
use super::guard::{Scratch, wait_until};
use super::report::{Row, Table};
use super::{Bench, idle, now_ns, say};

/// What is asked for.
const RATE: u64 = 200_000;
/// Threads that share it, as several processes of an application would.
const SENDERS: u64 = 4;
/// As deep as the agent's own queue.
const QUEUE: &str = "8192";
/// One that fell behind sends no more than this at once: it would meet its own buffer, not the receiver.
const BURST: i128 = 200;
/// Paced senders send in bursts this far apart.
const TICK_NS: i64 = 1_000_000;
/// What has not been read this long after the last datagram will not be.
const DRAIN: Duration = Duration::from_secs(20);
/// Lines as an application sends them.
const LINES: [&str; 4] = [
    "latency./api/chat:850.5|ms",
    "queue.message_bus:1500|g",
    "heartbeat.coding_agent:1|c",
    "requests.total:1|c|#env:prod",
];

/// What became of one run.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    sent: u64,
    received: u64,
    /// Found no room.
    refused: u64,
    seconds: f64,
    /// Seconds of processor that the receiver took.
    cpu: f64,
    /// The longest that a sender was held, in milliseconds.
    longest_ms: f64,
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let seconds = bench.rounds(20, 4);
    let rounds = bench.rounds(3, 1);
    let mut table = Table::new("records", "Applications send datagrams of one StatsD line", "value");
    let mut best: [[Run; 2]; 2] = Default::default();
    for round in 0..rounds {
        for who in super::shuffled(round, 2) {
            for (paced, rate) in [None, Some(RATE)].into_iter().enumerate() {
                say(&format!("records: {}, {rate:?}, {seconds} s", ["floor", "grace"][who]));
                let scratch = Scratch::new("records")?;
                let run = match who {
                    0 => floor(&scratch.dir("floor")?.join("dgram"), rate, seconds)?,
                    _ => grace(bench, &scratch.dir("grace")?, rate, seconds)?,
                };
                if run.received != run.sent {
                    bail!("{} sent, {} received: some are missing uncounted", run.sent, run.received);
                }
                // Everything else that runs on this machine only makes it worse.
                let better = |a: &Run, b: &Run| a.refused <= b.refused && per_second(a) >= per_second(b);
                if best[who][paced].sent == 0 || better(&run, &best[who][paced]) {
                    best[who][paced] = run;
                }
            }
        }
    }
    let [[floor_flat, floor_paced], [flat, paced]] = best;
    let (bare, bare_cpu) = ("a bare recv loop: the floor", "the same, a bare recv loop");
    table.row(once("datagrams/s, flat out, none lost", per_second(&flat)).target("≥ 200000").beside(bare));
    table.row(once(bare, per_second(&floor_flat)));
    table.row(
        once("receiver's processor seconds for a million, flat out", per_million(&flat)).beside(bare_cpu),
    );
    table.row(once(bare_cpu, per_million(&floor_flat)));
    for (who, run) in [("grace", paced), ("bare loop", floor_paced)] {
        table.row(once(&format!("{who}, {RATE}/s: sent a second"), per_second(&run)));
        let share = number(run.refused) / number((run.sent + run.refused).max(1)) * 100.0;
        table.row(once(&format!("{who}, {RATE}/s: found no room, %"), share));
        table.row(once(
            &format!("{who}, {RATE}/s: one core of the receiver, %"),
            run.cpu / run.seconds * 100.0,
        ));
        table.row(once(&format!("{who}, {RATE}/s: longest hold of a sender, ms"), run.longest_ms));
    }
    table.note(format!(
        "{SENDERS} threads send for {seconds} s, the best of {rounds}; they share the machine's processors with the receiver. \
         All that was sent was received, by the receiver's own count. Flat out a sender waits where the queue is full; at \
         {RATE}/s none does, and what finds no room is the sender's to drop. The agent's processor time is all of its own, \
         judging and recording included."
    ));
    Ok(table)
}

/// A loop that reads and throws away.
fn floor(path: &Path, rate: Option<u64>, seconds: u32) -> Result<Run> {
    let receiver = deep(path)?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let thread: JoinHandle<f64> = {
        let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while !stop.load(Ordering::Acquire) {
                if receiver.recv(&mut buffer).is_ok() {
                    received.fetch_add(1, Ordering::Relaxed);
                }
            }
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            seconds_of(cpu.tv_sec, cpu.tv_nsec)
        })
    };
    let mut run = send(path, rate, seconds)?;
    wait_until("the loop has read all", DRAIN, || received.load(Ordering::Relaxed) >= run.sent)?;
    stop.store(true, Ordering::Release);
    run.cpu = thread.join().map_err(|_panic| anyhow::anyhow!("the loop panicked"))?;
    run.received = received.load(Ordering::Relaxed);
    Ok(run)
}

fn grace(bench: &Bench, dir: &Path, rate: Option<u64>, seconds: u32) -> Result<Run> {
    let agent = Agent::start(&bench.grace, dir, "")?;
    std::thread::sleep(super::SETTLE);
    let counted = || -> Result<u64> {
        let status = agent.status()?;
        status["records"]["datagrams"].as_u64().context("this grace's status has no `records`")
    };
    counted()?;
    let before = idle::ticks(agent.pid())?;
    let mut run = send(&dir.join("grace.dgram"), rate, seconds)?;
    run.cpu = (idle::ticks(agent.pid())? - before) / 1e9;
    wait_until("the agent has read all", DRAIN, || counted().is_ok_and(|n| n >= run.sent))?;
    run.received = counted()?;
    let refused = agent.status()?["records"]["refused"].clone();
    if refused.as_object().is_none_or(|reasons| !reasons.is_empty()) {
        bail!("not all was taken: {refused}");
    }
    agent.stop();
    Ok(run)
}

/// A socket with a deep queue: made in a network namespace of its own, as the agent does.
fn deep(path: &Path) -> Result<UnixDatagram> {
    let path = path.to_owned();
    let made = std::thread::spawn(move || -> Result<UnixDatagram> {
        #[expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
        // SAFETY: only this thread is moved, into another network namespace, which changes nothing about memory or files.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .context("a network namespace for the floor's socket")?;
        std::fs::write("/proc/sys/net/unix/max_dgram_qlen", QUEUE).context("the floor's queue")?;
        UnixDatagram::bind(&path).with_context(|| path.display().to_string())
    });
    made.join().map_err(|_panic| anyhow::anyhow!("making the floor's socket panicked"))?
}

/// Sends from several threads; `rate` a second of them all without ever waiting, or as many as there can be.
fn send(path: &Path, rate: Option<u64>, seconds: u32) -> Result<Run> {
    let together = Arc::new(Barrier::new(usize::try_from(SENDERS)?));
    let threads = (0..SENDERS).map(|_| {
        let sender = UnixDatagram::unbound()?;
        sender.connect(path).with_context(|| path.display().to_string())?;
        sender.set_nonblocking(rate.is_some())?;
        let together = Arc::clone(&together);
        Ok(std::thread::spawn(move || {
            together.wait();
            one(&sender, rate.map(|rate| rate / SENDERS), seconds)
        }))
    });
    let threads: Vec<JoinHandle<Result<Run>>> = threads.collect::<Result<_>>()?;
    let mut all = Run::default();
    for thread in threads {
        let run = thread.join().map_err(|_panic| anyhow::anyhow!("a sender panicked"))??;
        all.sent += run.sent;
        all.refused += run.refused;
        all.seconds = all.seconds.max(run.seconds);
        all.longest_ms = all.longest_ms.max(run.longest_ms);
    }
    Ok(all)
}

fn one(sender: &UnixDatagram, rate: Option<u64>, seconds: u32) -> Result<Run> {
    let began = now_ns();
    let end = began + i64::from(seconds) * 1_000_000_000;
    let (mut sent, mut refused, mut longest) = (0, 0, 0);
    let mut lines = LINES.iter().cycle();
    loop {
        let now = now_ns();
        if now >= end {
            let seconds = super::ms(now - began) / 1e3;
            return Ok(Run { sent, refused, seconds, longest_ms: super::ms(longest), ..Run::default() });
        }
        // One that fell behind catches up: a rate is what was sent by its end.
        let due = match rate {
            Some(rate) => (i128::from(rate) * i128::from(now - began) / 1_000_000_000)
                .saturating_sub(i128::from(sent + refused))
                .min(BURST),
            None => 256,
        };
        for _ in 0..due {
            let before = now_ns();
            let line = lines.next().copied().unwrap_or_default();
            match sender.send(line.as_bytes()) {
                Ok(_) => sent += 1,
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => refused += 1,
                Err(err) => return Err(err).context("a datagram"),
            }
            longest = longest.max(now_ns() - before);
        }
        if rate.is_some() {
            std::thread::sleep(Duration::from_nanos((now + TICK_NS - now_ns()).try_into().unwrap_or(0)));
        }
    }
}

fn per_second(run: &Run) -> f64 {
    number(run.sent) / run.seconds
}

fn per_million(run: &Run) -> f64 {
    run.cpu / number(run.received.max(1)) * 1e6
}

fn once(what: &str, value: f64) -> Row {
    Row::new(what, [value].into_iter().collect())
}

#[expect(clippy::cast_precision_loss, reason = "a measurement has no 53 bits")]
fn seconds_of(seconds: i64, ns: i64) -> f64 {
    seconds as f64 + ns as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "a count of datagrams has no 53 bits")]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::send;

    #[test]
    fn what_is_sent_and_what_found_no_room_is_all_that_was_due() {
        let dir = std::env::temp_dir().join(format!("grace-bench-records-test-{}", std::process::id()));
        let receiver = std::os::unix::net::UnixDatagram::bind(&dir).expect("a socket");
        let run = send(&dir, Some(4000), 1).expect("sent");
        std::fs::remove_file(&dir).expect("removed");
        drop(receiver);
        // Nobody reads: what the host's queue holds was sent, the rest was not, and no sender waited.
        assert!((3000..=4100).contains(&(run.sent + run.refused)) && run.refused > 0, "{run:?}");
    }
}
