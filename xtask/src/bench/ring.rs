//! How many events a second the probes' ring carries without losing one, and what they cost the agent.
//!
//! A declared process calls getppid, and the agent is told that every call of it is slow, so that each becomes an
//! event. First flat out, where events may be lost but each must be accounted for; then paced, ever closer to the
//! highest rate at which none is lost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::agent::Agent;
use super::guard::{Scratch, wait_until};
use super::report::{Row, Table};
use super::{Bench, brief, idle, say};

/// The class of events that this is about.
const CLASS: &str = "slow";
/// What the agent has not read this long after the last event, it will not read.
const DRAIN: Duration = Duration::from_secs(20);
/// So many looks without a change, and nothing more is under way.
const STILL: u32 = 10;
/// The noise begins when the agent has settled.
const QUIET_MS: u64 = 2000;

const SUSTAINED: &str = "events/s without loss";

/// What became of a run's events.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Run {
    /// Calls that the process says it made. Its own few others are events too, so there are a little more of those.
    called: u64,
    produced: u64,
    delivered: u64,
    full: u64,
    throttled: u64,
    in_flight: u64,
    /// How long it was noisy, in seconds.
    seconds: f64,
    /// Seconds of processor time that the agent took.
    cpu: f64,
}

impl Run {
    fn lost(&self) -> u64 {
        self.full + self.throttled
    }

    /// Events that are neither delivered nor counted as lost: there must be none.
    fn unaccounted(&self) -> i128 {
        i128::from(self.produced) - i128::from(self.delivered) - i128::from(self.lost())
    }

    /// Nothing lost, nothing missing, and there was something.
    fn clean(&self) -> bool {
        self.produced > 0 && self.lost() == 0 && self.unaccounted() == 0
    }

    fn delivered_per_second(&self) -> f64 {
        number(self.delivered) / self.seconds
    }

    /// Seconds of processor for a million events.
    fn cpu_per_million(&self) -> f64 {
        self.cpu / number(self.delivered.max(1)) * 1e6
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("ring")?;
    let seconds = bench.rounds(60, 5);
    let mut table = Table::new("ring", "Every call of one process is an event", "value");
    say(&format!("ring: flat out, {seconds} s"));
    let flat = match run(bench, &scratch.dir("flat")?, 0, seconds) {
        Ok(flat) => flat,
        Err(err) => {
            table.row(Row::missing(SUSTAINED, brief(&err)));
            return Ok(table);
        }
    };
    let (best, tried) = if flat.clean() { (Some(flat), 0) } else { search(bench, &scratch, &flat, seconds)? };
    match best {
        Some(best) => {
            table.row(once(SUSTAINED, best.delivered_per_second()));
            table.row(once("agent's processor seconds for a million of them", best.cpu_per_million()));
        }
        None => table
            .row(Row::missing(SUSTAINED, "some were lost, or unaccounted for, at every rate that was tried")),
    }
    for (what, value) in [
        ("flat out: calls by the process", number(flat.called)),
        ("flat out: events produced", number(flat.produced)),
        ("flat out: delivered", number(flat.delivered)),
        ("flat out: lost, ring full", number(flat.full)),
        ("flat out: lost, throttled", number(flat.throttled)),
        ("flat out: delivered a second", flat.delivered_per_second()),
        ("flat out: agent's processor seconds for a million delivered", flat.cpu_per_million()),
    ] {
        table.row(once(what, value));
    }
    #[expect(clippy::cast_precision_loss, reason = "it is 0 or a bug")]
    let unaccounted = flat.unaccounted() as f64;
    table.row(once("flat out: produced - delivered - lost", unaccounted).target("0"));
    table.note(format!(
        "A process of getppid in bursts every millisecond, paced by token bucket; {tried} rates were tried below flat \
         out; one is shown only if it held for {seconds} s. Figures are the agent's, read once the ring was empty \
         ({} left in it after flat out); each run has an agent of its own.",
        flat.in_flight
    ));
    Ok(table)
}

/// The highest rate without loss that a few tries find, confirmed at full length, and how many rates were tried.
fn search(bench: &Bench, scratch: &Scratch, flat: &Run, seconds: u32) -> Result<(Option<Run>, u32)> {
    let (steps, short) = (bench.rounds(7, 4), bench.rounds(10, 3));
    let mut tried = 0;
    let mut attempt = |rate: f64, seconds: u32| -> Result<Run> {
        tried += 1;
        let rate = whole(rate);
        say(&format!("ring: {rate} calls/s, {seconds} s"));
        run(bench, &scratch.dir(&format!("paced-{tried}"))?, rate, seconds)
    };
    // Flat out, events came faster than they were taken; what was produced a second is too much.
    // It can be many times too much: the middle is that of the ratio.
    let (mut low, mut high) = (0.0_f64, number(flat.produced) / flat.seconds);
    let mut next = flat.delivered_per_second().min(high * 0.9);
    for _ in 0..steps {
        if attempt(next, short)?.clean() {
            low = next;
        } else {
            high = next;
        }
        next = if low > 0.0 { (low * high).sqrt() } else { high / 2.0 };
    }
    // What holds for a moment need not hold for long.
    let mut rate = if low > 0.0 { low } else { high / 2.0 };
    for _ in 0..5 {
        let run = attempt(rate, seconds)?;
        if run.clean() {
            return Ok((Some(run), tried));
        }
        rate *= 0.85;
    }
    Ok((None, tried))
}

/// One agent, one noisy process at `rate` (0: flat out).
fn run(bench: &Bench, dir: &Path, rate: u64, seconds: u32) -> Result<Run> {
    let report = dir.join("calls");
    let noise = std::env::current_exe().context("our own program")?;
    let words = [
        noise.to_str().context("our own program's path is not text")?.to_owned(),
        "noise".to_owned(),
        format!("--rate={rate}"),
        format!("--seconds={seconds}"),
        format!("--after-ms={QUIET_MS}"),
        format!("--report={}", report.display()),
    ];
    let command = Value::from(words.to_vec());
    // An array of strings is written alike in JSON and in TOML.
    let config = format!(
        "[probes]\nlatency = \"full\"\nslow_at_least = \"0ns\"\nslow_factor = 0\nslow_rate = 0\n\n[[process]]\nname = \"noise\"\n\
         command = {command}\nrestart = \"never\"\n"
    );
    let agent = Agent::start(&bench.grace, dir, &config)?;
    // Before a minute is spent on it.
    of_class(&agent.status()?)?;
    let began = Instant::now();
    let cpu_before = idle::ticks(agent.pid())?;
    let limit = Duration::from_millis(QUIET_MS) + Duration::from_secs(u64::from(seconds)) + DRAIN;
    wait_until("the noise ends", limit, || report.exists())?;
    let called = fs::read_to_string(&report)?.parse().context("the noise's count")?;
    let mut last = of_class(&agent.status()?)?;
    let drained = Instant::now();
    // Empty, and it stays so: the counts are read one after the other. What is missing for long is missing.
    let mut same = 0;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = of_class(&agent.status()?)?;
        same = if now == last { same + 1 } else { 0 };
        let empty = same > 0 && now.in_flight == 0 && now.unaccounted() == 0;
        if empty || same > STILL || drained.elapsed() > DRAIN {
            last = now;
            break;
        }
        last = now;
    }
    let cpu = (idle::ticks(agent.pid())? - cpu_before) / 1e9;
    if began.elapsed() < Duration::from_secs(u64::from(seconds)) {
        bail!("the noise ended early");
    }
    agent.stop();
    Ok(Run { called, cpu, seconds: f64::from(seconds), ..last })
}

/// What a status says of the class; an error where this agent has no such thing.
fn of_class(status: &Value) -> Result<Run> {
    let ring = status["ring"].as_array().context("this grace's status has no `ring`")?;
    let class = ring.iter().find(|one| one["class"] == CLASS);
    let class = class.with_context(|| format!("this grace's ring has no class `{CLASS}`"))?;
    let count = |value: &Value, what: &str| value.as_u64().with_context(|| format!("ring: no `{what}`"));
    Ok(Run {
        produced: count(&class["produced"], "produced")?,
        delivered: count(&class["delivered"], "delivered")?,
        full: count(&class["lost"]["full"], "lost.full")?,
        throttled: count(&class["lost"]["throttled"], "lost.throttled")?,
        in_flight: count(&class["in_flight"], "in_flight")?,
        ..Run::default()
    })
}

fn once(what: &str, value: f64) -> Row {
    Row::new(what, [value].into_iter().collect())
}

#[expect(clippy::cast_precision_loss, reason = "a count of events has no 53 bits")]
fn number(count: u64) -> f64 {
    count as f64
}

/// A rate in whole calls a second, never the 0 that means flat out.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is neither huge nor negative"
)]
fn whole(rate: f64) -> u64 {
    (rate as u64).max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of_class;

    #[test]
    fn what_is_neither_delivered_nor_lost_is_told() {
        let status = json!({ "ring": [{ "class": "slow", "produced": 10, "delivered": 6,
            "lost": { "full": 2, "throttled": 1 }, "in_flight": 1 }] });
        let run = of_class(&status).expect("complete");
        assert_eq!((run.lost(), run.unaccounted(), run.clean()), (3, 1, false));
    }

    #[test]
    fn an_agent_without_a_ring_is_told() {
        assert!(of_class(&json!({})).is_err());
        assert!(of_class(&json!({ "ring": [{ "class": "slow", "produced": 1 }] })).is_err());
    }
}
