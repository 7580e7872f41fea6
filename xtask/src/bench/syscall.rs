//! What a system call costs more while the agent runs: its counting hook sees every one of them.

use std::hint::black_box;

use anyhow::Result;

use super::agent::Agent;
use super::guard::Scratch;
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, Pinned, now_ns, say};

const WITHOUT: &str = "getppid, no Grace";
const WITH: &str = "getppid, Grace runs";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("syscall")?;
    let (calls, pieces) = (bench.rounds(400_000, 200_000), 10);
    let rounds = bench.rounds(8, 5);
    let mut found: [Samples; 2] = Default::default();
    let mut added = Samples::default();
    for round in 0..rounds {
        say(&format!("syscall: round {round} of {rounds}"));
        let without = per_call(calls, pieces)?;
        let agent = Agent::start(&bench.grace, &scratch.dir(&format!("round-{round}"))?, "")?;
        std::thread::sleep(super::SETTLE);
        let with = per_call(calls, pieces)?;
        agent.stop();
        added.push(with - without);
        found[0].push(without);
        found[1].push(with);
    }
    let [without, with] = found;
    let mut table = Table::new("syscall", "The cheapest system call, with and without Grace", "ns");
    table.row(Row::new(WITHOUT, without));
    table.row(Row::new(WITH, with).beside(WITHOUT));
    table.row(Row::new("added", added));
    table.note(format!(
        "Pinned to one core; {rounds} rounds of starting and stopping Grace, each the fastest of {pieces} times \
         {calls} calls, so with the counting hook and without the seconds in which latencies are sampled too. \
         No call can be hit harder than this one, which does nothing."
    ));
    Ok(table)
}

/// Nanoseconds for one call: of the fastest piece, since everything else that runs here only makes it slower.
fn per_call(calls: u32, pieces: u32) -> Result<f64> {
    let pinned = Pinned::to_last()?;
    let fastest = super::fastest(pieces, || {
        let began = now_ns();
        for _ in 0..calls {
            black_box(rustix::process::getppid());
        }
        Ok(super::per(now_ns() - began, calls))
    });
    drop(pinned);
    fastest
}
