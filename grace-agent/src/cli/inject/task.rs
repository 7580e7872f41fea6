//! What the faults about code have in common: an agent with a configuration of its own, a task as the remedy, and a fault that
//! whoever takes the task would undo.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};

use super::{PATIENCE, Stop, Teller};
use crate::api::client::{Client, ClientError, Follow, Followed};
use crate::api::view::{FiringView, StatusView};
use crate::cli::ask::Failure;
use crate::cli::show::micros;
use crate::clock::Stopwatch;
use crate::firing::{RungState, State, Subject};

/// The way of one firing, as far as it was told.
pub(super) struct Watcher {
    follow: Follow,
    subject: Subject,
    last: Option<FiringView>,
}

impl Watcher {
    /// Hears of everything from now on.
    pub(super) async fn new(agent: &Client, subject: Subject) -> Result<Self, Failure> {
        Ok(Self { follow: agent.follow().await?, subject, last: None })
    }

    /// Tells the firing until its task is filed.
    pub(super) async fn task(&mut self, teller: &mut Teller<'_>, stop: &mut Stop) -> Result<(), Failure> {
        let done =
            |f: &FiringView| f.remedy.iter().any(|r| r.action == "file_task" && r.state == RungState::Done);
        let firing = self.until("no task was filed", stop, done).await?;
        teller.tell("firing", &format!("{} {}: {}", firing.id, firing.trigger, firing.summary))?;
        for line in firing.evidence.iter().take(4) {
            teller.tell("evidence", line)?;
        }
        let rung = firing.remedy.iter().find(|r| r.state == RungState::Done);
        let took = micros(rung.and_then(|r| r.took_us).unwrap_or(0));
        let what = rung.and_then(|r| r.why.clone()).unwrap_or_default();
        teller.tell("task", &format!("{what} in {took}"))
    }

    /// Tells when the firing has cleared.
    pub(super) async fn cleared(&mut self, teller: &mut Teller<'_>, stop: &mut Stop) -> Result<(), Failure> {
        let firing = self.until("it did not clear", stop, |f| f.state == State::Cleared).await?;
        teller.tell("cleared", firing.cleared_by.as_deref().unwrap_or_default())
    }

    async fn until(
        &mut self,
        else_why: &str,
        stop: &mut Stop,
        end: impl Fn(&FiringView) -> bool,
    ) -> Result<FiringView, Failure> {
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        loop {
            let next = stop.or(async {
                tokio::select! {
                    next = self.follow.next() => Ok(next),
                    () = &mut deadline => Err(Failure::No(match &self.last {
                        Some(firing) => format!("{} fired, but after {PATIENCE:?} {else_why}", firing.id),
                        None => format!("nothing fired within {PATIENCE:?}"),
                    })),
                }
            });
            match next.await? {
                Some(Followed::Firing(firing)) if firing.subject == self.subject => {
                    self.last = Some((*firing).clone());
                    if end(&firing) {
                        return Ok(*firing);
                    }
                }
                Some(_) => {}
                None => return Err(ClientError::Failed("it ended meanwhile".into()).into()),
            }
        }
    }
}

/// Waits until the agent's source `name` says what `wanted` accepts.
pub(super) async fn source(
    agent: &Client,
    name: &str,
    stop: &mut Stop,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let began = Stopwatch::start();
    loop {
        let status: StatusView = stop.or(async { Ok(agent.get("/v1/status").await?) }).await?;
        let detail =
            status.sources.into_iter().find(|s| s.name == name).map(|s| s.detail).unwrap_or_default();
        if wanted(&detail) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::No(format!("the agent does not get ready: {name}: {detail}")));
        }
        pause(stop).await?;
    }
}

/// A moment between two questions.
pub(super) async fn pause(stop: &mut Stop) -> Result<(), Failure> {
    let moment = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Ok(())
    };
    stop.or(moment).await
}

/// Runs git in `repo`, under nobody's configuration; `input` is what it reads.
pub(super) fn git(repo: &Path, args: &[&str], input: &str) -> Result<(), Failure> {
    let git = ["/usr/bin/git", "/usr/local/bin/git", "/bin/git"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(|| anyhow!("no git in /usr/bin or /usr/local/bin: the fault cannot be made"))?;
    let mut child = Command::new(git)
        .arg("-C")
        .arg(repo)
        .args(args)
        .env_clear()
        .envs([
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("HOME", "/nonexistent"),
        ])
        .envs([("GIT_AUTHOR_NAME", "inject"), ("GIT_AUTHOR_EMAIL", "inject@localhost")])
        .envs([("GIT_COMMITTER_NAME", "inject"), ("GIT_COMMITTER_EMAIL", "inject@localhost")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start git")?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says so by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let status = child.wait().context("cannot wait for git")?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::Other(anyhow!("git {args:?}: {status}"))),
    }
}
