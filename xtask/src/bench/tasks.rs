//! The queue of tasks: how long a claim takes while very many wait, and whether anything is handed out twice.
//!
//! Measured inside of the test that also asserts it (`tests/fence.rs` nothing_is_claimed_twice), built with optimizations: what
//! is timed is the queue on its database with every commit synced, without the socket before it.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, say};
use crate::process;

const TEST: &str = "nothing_is_claimed_twice";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let claims = bench.rounds(100_000, 10_000);
    let mut table = Table::new("tasks", "The queue of tasks", "ms");
    let (mut middle, mut late) = (Samples::default(), Samples::default());
    let mut last = Value::Null;
    for round in 0..bench.rounds(3, 1) {
        say(&format!("tasks: {claims} claims, round {round}"));
        let mut cargo = process::cargo();
        cargo.args(["test", "--release", "--package", "grace-agent", "--test", "fence"]);
        cargo.args(["--", "--exact", TEST, "--nocapture"]).env("GRACE_CLAIMS", claims.to_string());
        let out = process::output(&mut cargo)?;
        let text = String::from_utf8_lossy(&out);
        let line = text.lines().find(|line| line.starts_with('{')).context("the test told no figures")?;
        last = serde_json::from_str(line).context("the figures of the test")?;
        middle.push(number(&last, "claim_p50_us")? / 1e3);
        late.push(number(&last, "claim_p99_us")? / 1e3);
        ensure!(last["double"] == 0, "something was claimed twice: {last}");
    }
    table.row(Row::new(format!("Grace, a claim of {claims} open tasks, median"), middle).target("< 5 ms"));
    table.row(Row::new("Grace, the same, 99th percentile", late).target("< 5 ms"));
    table.note(format!(
        "{} claimers at once then took all {claims}, each once, in {:.0} s; peak memory {:.0} MiB",
        last["claimers"],
        number(&last, "seconds")?,
        number(&last, "peak_rss_bytes")? / f64::from(1 << 20)
    ));
    Ok(table)
}

fn number(figures: &Value, name: &str) -> Result<f64> {
    figures[name].as_f64().with_context(|| format!("the test told no {name}"))
}
