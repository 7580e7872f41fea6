//! The fault for `latency_spike`: more jobs come into a queue than its worker can do. The queue is a folder, each job a file in it;
//! the workers are declared processes, of which Grace starts another one, and ends it when it is not needed any more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{ENDING, PATIENCE, Stop, Teller, pid_of, watch};
use crate::api::client::Client;
use crate::api::view::StatusView;
use crate::cli::ask::Failure;
use crate::cli::canary::JOB;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// The queue and what works it off.
const QUEUE: &str = "inject_jobs";
const WORKER: &str = "inject-worker";
/// Jobs that may wait.
const LIMIT: usize = 10;
/// Time between two looks at the queue.
const LOOK: Duration = Duration::from_millis(250);

/// What the agent needs to know: the queue, and that it may have up to three workers.
pub(super) fn config(scratch: &Path) -> Result<String, Failure> {
    let folder = scratch.join("jobs");
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let grace = std::env::current_exe().context("cannot find this program")?;
    let quoted = |path: &Path| toml::Value::String(path.to_string_lossy().into_owned()).to_string();
    Ok(format!(
        "[triggers.latency_spike]\nsustained = \"2s\"\nclear_for = \"2s\"\nscale_down_after = \"2s\"\n\
         [[queue]]\nname = \"{QUEUE}\"\nlimit = {LIMIT}\nprocess = \"{WORKER}\"\n\
         [[process]]\nname = \"{WORKER}\"\nmax_replicas = 3\nrestart = \"on_failure\"\ncommand = [{}, \"canary\", \"--work\", {}]\n",
        quoted(&grace),
        quoted(&folder)
    ))
}

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let folder = scratch.join("jobs");
    let result = stop.or(flooded(agent, &folder, teller)).await;
    // Workers end with their queue, whoever started them.
    drop(fs::remove_dir_all(&folder));
    let gone = gone(agent).await;
    result.and(gone)
}

async fn flooded(agent: &Client, folder: &Path, teller: &mut Teller<'_>) -> Result<(), Failure> {
    let pid = pid_of(agent, WORKER, 0).await?;
    let each = 1000 / JOB.as_millis().max(1);
    teller.tell("process", &format!("{WORKER} runs as pid {pid} and does {each} jobs a second"))?;
    let mut follow = agent.follow().await?;
    teller.fault = Some(Stopwatch::start());
    for number in 0..6 * LIMIT {
        put(folder, number)?;
    }
    teller.tell("fault", &format!("{} jobs at once, and more a second than it can do", 6 * LIMIT))?;
    let subject = Subject::Queue(QUEUE.to_owned());
    // Jobs go on coming, and the depth is told, until the firing has cleared and the workers are fewer again.
    let feeding = async {
        let mut number = 6 * LIMIT;
        loop {
            tokio::time::sleep(LOOK).await;
            for _ in 0..LOOK.as_millis() * 3 / (JOB.as_millis() * 2) {
                put(folder, number)?;
                number += 1;
            }
            told(agent, folder).await?;
        }
    };
    let watching = watch(&mut follow, &subject, teller, None);
    let fed: Result<(), Failure> = tokio::select! {
        ended = feeding => ended,
        ended = watching => ended,
    };
    fed?;
    let workers = count(agent).await?;
    teller.tell("verified", &format!("{} of at most {LIMIT} jobs wait, {workers} workers", depth(folder)))?;
    // No more jobs: then one worker is enough.
    let began = Stopwatch::start();
    while count(agent).await? > 1 {
        if began.elapsed() > PATIENCE {
            return Err(Failure::No(format!("there are still more workers than one after {PATIENCE:?}")));
        }
        told(agent, folder).await?;
        tokio::time::sleep(LOOK).await;
    }
    teller.tell("reversed", &format!("one worker again, pid {}", pid_of(agent, WORKER, 0).await?))
}

fn put(folder: &Path, number: usize) -> Result<(), Failure> {
    let job = folder.join(format!("{number}.job"));
    Ok(fs::write(&job, "").with_context(|| format!("cannot write {}", job.display()))?)
}

/// How many jobs wait.
fn depth(folder: &Path) -> usize {
    let jobs = fs::read_dir(folder).into_iter().flatten().flatten();
    jobs.filter(|job| job.path().extension().is_some_and(|e| e == "job")).count()
}

async fn told(agent: &Client, folder: &Path) -> Result<(), Failure> {
    let record = serde_json::json!({ "kind": "queue", "name": QUEUE, "depth": depth(folder) });
    let _answer: serde_json::Value = agent.post("/v1/records", &record).await?;
    Ok(())
}

/// How many workers run.
async fn count(agent: &Client) -> Result<usize, Failure> {
    let status: StatusView = agent.get("/v1/status").await?;
    let worker =
        |name: &str| name == WORKER || name.strip_prefix(WORKER).is_some_and(|rest| rest.starts_with('@'));
    Ok(status.processes.iter().filter(|p| worker(&p.name) && p.pid.is_some()).count())
}

/// Waits until no worker is left: each ends with its queue, and is not started again.
async fn gone(agent: &Client) -> Result<(), Failure> {
    let began = Stopwatch::start();
    while count(agent).await? > 0 {
        if began.elapsed() > ENDING {
            return Err(Failure::No(format!("workers still run after {ENDING:?}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
