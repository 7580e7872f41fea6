//! Writes the first screen of a task from a firing and its surroundings.

use super::context::Context;
use super::guidance::{FORBIDDEN, guide};
use crate::api::brief::{Brief, RepoBrief, Tried};
use crate::api::view::FiringView;
use crate::firing::{RungState, State};

/// The brief of a task for `firing`.
#[must_use]
pub(super) fn of(firing: Option<&FiringView>, context: &Context) -> Brief {
    let trigger = firing.map_or("", |f| f.trigger.as_str());
    let guide = guide(trigger);
    let repo = context.repo.as_ref().map(|repo| RepoBrief {
        path: repo.path.display().to_string(),
        deployed: repo.deployed.as_deref().and_then(commit),
        good: repo.good.as_deref().and_then(commit),
        files_changed: repo.diff.map(|diff| diff.0),
        lines_added: repo.diff.map(|diff| diff.1),
        lines_removed: repo.diff.map(|diff| diff.2),
    });
    let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let mut brief = Brief {
        repo,
        host: context.host.clone(),
        reproduce: context.reproduce.clone(),
        unknown: own(guide.unknown),
        look_first: own(guide.look_first),
        allowed_paths: context.repo.iter().map(|repo| repo.path.display().to_string()).collect(),
        forbidden: FORBIDDEN.iter().map(|line| (*line).to_owned()).chain(context.forbidden.clone()).collect(),
        checks: context.checks.clone(),
        known: vec![format!("what is asked for: {}", guide.goal)],
        ..Brief::default()
    };
    if let Some(firing) = firing {
        brief.firing = firing.id.to_string();
        brief.threshold.clone_from(&firing.threshold);
        brief.since.clone_from(&firing.since);
        brief.evidence_gaps = firing.evidence_gaps;
        brief.tried = tried(firing);
        brief.known.extend(known(firing, context));
        brief.unknown.extend(unknown(firing, context));
    }
    brief
}

fn tried(firing: &FiringView) -> Vec<Tried> {
    let state = |state: RungState| match state {
        RungState::Planned => "planned",
        RungState::Held => "held",
        RungState::Running => "running",
        RungState::Done => "done",
        RungState::Failed => "failed",
    };
    firing
        .remedy
        .iter()
        .filter(|rung| rung.action != "file_task")
        .map(|rung| Tried {
            action: rung.action.clone(),
            state: state(rung.state).to_owned(),
            took_us: rung.took_us,
            // A task is filed where the fault was still there after all that was done before.
            held: rung.state == RungState::Done && firing.state == State::Cleared,
        })
        .collect()
}

/// What is certain of a firing.
fn known(firing: &FiringView, context: &Context) -> Vec<String> {
    let mut out = Vec::new();
    out.push(match firing.state {
        State::Holds => "the fault held when this was filed".to_owned(),
        State::Cleared => "the fault was gone when this was filed".to_owned(),
        State::Happened => "the fault happened and was over when this was filed".to_owned(),
    });
    if firing.count > 0 {
        out.push(format!("it came back {} times before", firing.count));
    }
    if let Some(again) = firing.again {
        out.push(format!("it had cleared shortly before, as {again}, and came back"));
    }
    if let Some(cause) = firing.cause {
        out.push(format!("it follows from {cause}: that may be the cause"));
    }
    if firing.writer.is_some() {
        out.push("who did it was seen: the evidence `writer`".to_owned());
    }
    if !context.suspects.is_empty() {
        out.push(format!(
            "{} files are suspected, the likeliest first: the evidence `suspects`",
            context.suspects.len()
        ));
    }
    out
}

fn unknown(firing: &FiringView, context: &Context) -> Vec<String> {
    let mut out = Vec::new();
    if firing.evidence_gaps {
        out.push("what happened while events were lost".to_owned());
    }
    match &context.repo {
        None => out.push("which repo this belongs to: no declared [[repo]] fits".to_owned()),
        Some(repo) if repo.good.is_none() => {
            out.push("which commit was last good: `grace good` marks one".to_owned());
        }
        Some(_) => {}
    }
    if context.reproduce.is_none() {
        out.push("a command that shows it again".to_owned());
    }
    out
}

/// A commit as git names it; anything else is not one.
fn commit(text: &str) -> Option<String> {
    let fits = (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| text.to_owned())
}
