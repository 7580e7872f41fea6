//! The agent starts: how long until its probes are attached, and until it answers.

use anyhow::{Context as _, Result};

use super::agent::Agent;
use super::guard::Scratch;
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, fill};

const READY: [&str; 2] = ["ready, new state folder", "ready, used state folder"];
const ANSWERS: [&str; 2] = ["first answer, new state folder", "first answer, used state folder"];

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("start")?;
    let files = fill(&scratch.dir("etc")?, 20, 4096)?;
    let used = scratch.dir("used")?;
    // One that owns something, as a second start does.
    let first = Agent::start(&bench.grace, &used, "")?;
    first.own(&files)?;
    first.stop();
    let mut ready: [Samples; 2] = Default::default();
    let mut answers: [Samples; 2] = Default::default();
    let mut not_ok = Vec::new();
    for round in 0..bench.rounds(10, 5) {
        for (at, dir) in [scratch.dir(&format!("new-{round}"))?, used.clone()].into_iter().enumerate() {
            let agent = Agent::start(&bench.grace, &dir, "")?;
            let status = agent.status()?;
            ready[at].push(status["ready_us"].as_f64().context("no ready_us in the status")? / 1e3);
            answers[at].push(agent.answered.as_secs_f64() * 1e3);
            for probe in
                status["probes"].as_array().into_iter().flatten().filter(|probe| probe["state"] != "ok")
            {
                not_ok.push(format!("{}: {}", probe["name"], probe["state"]));
            }
        }
    }
    let mut table = Table::new("start", "The agent starts: until all of its probes are attached", "ms");
    let [ready_new, ready_used] = ready;
    let [answer_new, answer_used] = answers;
    table.row(Row::new(READY[0], ready_new).target("< 150"));
    table.row(Row::new(READY[1], ready_used).target("< 150").beside(READY[0]));
    table.row(Row::new(ANSWERS[0], answer_new).beside(READY[0]));
    table.row(Row::new(ANSWERS[1], answer_used).beside(READY[0]));
    not_ok.sort();
    not_ok.dedup();
    table.note(if not_ok.is_empty() {
        "Each time every probe said `ok`. Ready is the agent's own figure; the first answer is what was waited for \
         outside, from starting `grace run` to the end of the first `grace status --json`. The used state folder \
         has 20 files in it."
            .to_owned()
    } else {
        format!("NOT all probes were attached, so this is no full start: {}", not_ok.join(", "))
    });
    Ok(table)
}
