//! `grace snapshot`, `snapshots`, `verify`, `restore` and `forget`: the files that Grace owns.

use std::path::PathBuf;

use clap::Args;

use super::ask::{Failure, absolute, with_agent};
use super::at::At;
use super::show::{Out, complain, escape, paint};
use super::{Answer, Global};
use crate::api::code::Nothing;
use crate::api::server::{PathRequest, PathsRequest, SnapshotRequest};
use crate::api::store::StoreView;
use crate::api::view::{PathAnswer, SnapshotView, StatusView, VerifyVerdict, VerifyView};
use crate::config::Mode;
use crate::file_state::ContentKind;
use crate::sources::look::MAX_CONTENT;
use crate::weights::hash::size_in_words;

/// Arguments of `grace snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Regular files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What they hold; a secret's content is never shown [default: as before, else config]
    #[arg(long, value_name = "KIND")]
    kind: Option<ContentKind>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Snapshot {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let request =
            SnapshotRequest { paths: self.paths.iter().map(|p| absolute(p)).collect(), kind: self.kind };
        if !self.json && !out.quiet {
            tell_cost(&request, out)?;
        }
        let (answers, mode) = with_agent(&global.socket, async |agent| {
            let answers: Vec<PathAnswer> = agent.post_and_wait("/v1/snapshot", &request).await?;
            let status: StatusView = agent.get("/v1/status").await?;
            Ok((answers, status.mode))
        })?;
        let code = print(&answers, self.json, out)?;
        if mode == Mode::Observe && !self.json && !out.quiet && answers.iter().any(|a| a.done.is_some()) {
            out.line(
                "the agent observes: a drift will be reported, not repaired (`grace run --mode repair` repairs)",
            )?;
        }
        Ok(code)
    }
}

/// Weights are large: what taking them in reads and may take is said before.
fn tell_cost(request: &SnapshotRequest, out: &mut Out) -> Result<(), Failure> {
    for path in &request.paths {
        let kind = request.kind.unwrap_or_else(|| ContentKind::by_name(path));
        let Ok(size) = path.metadata().map(|meta| meta.len()) else { continue };
        if kind != ContentKind::Weights || size < MAX_CONTENT {
            continue;
        }
        out.line(&format!(
            "{}: {} to read; a copy takes no room where the state folder's file system shares blocks with it, else as \
             much again (`copy` of a [[model]] says whether; `never` keeps digests only)",
            escape(&path.display().to_string()),
            size_in_words(size)
        ))?;
    }
    out.flush()
}

/// Arguments of `grace snapshots`.
#[derive(Debug, Args)]
pub struct Snapshots {
    /// Only of this file
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Snapshots {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let mut all: Vec<SnapshotView> =
            with_agent(&global.socket, async |agent| Ok(agent.get("/v1/snapshots").await?))?;
        if let Some(path) = self.path.as_deref().map(absolute) {
            all.retain(|s| s.path == path);
            if all.is_empty() {
                return Err(Failure::No(format!("{}: not owned", path.display())));
            }
        }
        if all.is_empty() && !self.json && !out.quiet {
            out.line("nothing is owned yet: `grace snapshot PATH` gives Grace a file")?;
        }
        for s in &all {
            if self.json {
                out.json(s)?;
                continue;
            }
            out.line(&format!(
                "{} {:<5} {} {}  sha256 {}  {:>7} bytes  {:04o} {}:{}  {}  by {}",
                if s.current { paint("●", "32", out.color) } else { " ".to_owned() },
                s.id,
                s.at.get(..19).unwrap_or(&s.at),
                escape(&s.path.display().to_string()),
                s.known.digest.short(),
                s.known.meta.size,
                s.known.meta.mode,
                s.known.meta.uid,
                s.known.meta.gid,
                escape(&s.reason),
                if s.author.is_empty() { "?".into() } else { escape(&s.author) }
            ))?;
        }
        Ok(0)
    }
}

/// Arguments of `grace verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Files; none: every owned one
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Not the files, but what is kept of them: read every content and compare it with its digest
    #[arg(long, conflicts_with = "paths")]
    store: bool,
    /// Compare with a digest that others published instead, without an agent: a SHA256SUMS, a Git LFS pointer, or `hub`
    /// for the file's name in a hub's cache (links are followed)
    #[arg(long, value_name = "FILE|hub", requires = "paths", conflicts_with = "store")]
    against: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        if self.store {
            return Self::store(self.json, global, out);
        }
        if let Some(against) = &self.against {
            return super::against::verify(&self.paths, against, self.json, out);
        }
        let request = PathsRequest { paths: self.paths.iter().map(|p| absolute(p)).collect() };
        let views: Vec<VerifyView> = with_agent(&global.socket, async |agent| {
            Ok(agent.post_and_wait("/v1/verify", &request).await?)
        })?;
        for view in &views {
            if self.json {
                out.json(view)?;
                continue;
            }
            let (word, sgr) = match view.verdict {
                VerifyVerdict::Ok => ("ok", "32"),
                VerifyVerdict::Drift => ("drift", "31"),
                VerifyVerdict::Missing => ("missing", "31"),
                VerifyVerdict::Unreadable => ("unreadable", "33"),
                VerifyVerdict::NotOwned => ("not owned", "33"),
                VerifyVerdict::DamagedObject => ("store damaged", "31"),
            };
            if view.verdict == VerifyVerdict::Ok && out.quiet {
                continue;
            }
            let drift = escape(&view.drift.join(", ")).into_owned();
            let word = paint(&format!("{word:<10}"), sgr, out.color);
            out.line(format!("{word} {}  {drift}", escape(&view.path.display().to_string())).trim_end())?;
        }
        if views.is_empty() && !self.json && !out.quiet {
            out.line("nothing is owned yet: `grace snapshot PATH` gives Grace a file")?;
        }
        Ok(u8::from(views.iter().any(|v| v.verdict != VerifyVerdict::Ok)))
    }

    fn store(json: bool, global: &Global, out: &mut Out) -> Answer {
        let view: StoreView =
            with_agent(&global.socket, async |agent| Ok(agent.post("/v1/store/check", &Nothing {}).await?))?;
        let code = u8::from(!view.lost.is_empty());
        if json {
            out.json(&view)?;
            return Ok(code);
        }
        let found = view.mended.iter().map(|rot| (rot, "mended", "33", "taken anew from"));
        for (rot, word, sgr, files) in
            found.chain(view.lost.iter().map(|rot| (rot, "lost", "31", "needed by")))
        {
            let names: Vec<String> = rot.files.iter().map(|file| file.display().to_string()).collect();
            let line = format!("{}  {files} {}", escape(&rot.why), escape(&names.join(", ")));
            out.line(&format!("{} {line}", paint(&format!("{word:<10}"), sgr, out.color)))?;
        }
        if !out.quiet {
            let (contents, bytes) = (view.contents, view.bytes);
            out.line(&format!("{contents} contents, {bytes} bytes sound, read in {} ms", view.took_ms))?;
        }
        Ok(code)
    }
}

/// Arguments of `grace restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// An owned file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The snapshot to put back, by number or by time (`2h`, `2026-11-24 10:00`); it is the known-good state from then on
    /// [default: the current one]
    #[arg(long, value_name = "ID|TIME")]
    at: Option<At>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let path = absolute(&self.path);
        let answer: PathAnswer = with_agent(&global.socket, async |agent| {
            let at = match &self.at {
                Some(at) => Some(at.version(&agent, &path).await?),
                None => None,
            };
            Ok(agent.post_and_wait("/v1/restore", &PathRequest { path, at }).await?)
        })?;
        print(std::slice::from_ref(&answer), self.json, out)
    }
}

/// Arguments of `grace forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// Owned files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Forget {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let answers = with_agent(&global.socket, async |agent| {
            let mut answers: Vec<PathAnswer> = Vec::new();
            for path in &self.paths {
                answers
                    .push(agent.post("/v1/forget", &PathRequest { path: absolute(path), at: None }).await?);
            }
            Ok(answers)
        })?;
        print(&answers, self.json, out)
    }
}

/// Shows what became of each path. Exit code 1 where one was not done.
fn print(answers: &[PathAnswer], json: bool, out: &mut Out) -> Answer {
    let mut code = 0;
    for answer in answers {
        code |= u8::from(answer.error.is_some());
        if json {
            out.json(answer)?;
            continue;
        }
        match (&answer.done, &answer.error) {
            (_, Some(why)) => {
                out.flush()?;
                // The reason names the path where it is about the path.
                let path = answer.path.display().to_string();
                let named = why.starts_with(&path);
                complain(&Failure::No(if named { why.clone() } else { format!("{path}: {why}") }));
            }
            (Some(done), None) if !out.quiet => {
                out.line(&format!("{}: {}", escape(&answer.path.display().to_string()), escape(done)))?;
                if let Some(kept) = &answer.quarantined {
                    out.line(&format!(
                        "  what lay there is kept in {}",
                        escape(&kept.display().to_string())
                    ))?;
                }
            }
            _ => {}
        }
    }
    Ok(code)
}
