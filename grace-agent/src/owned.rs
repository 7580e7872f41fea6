//! An owned file against its known-good state: what differs, whether it may, and whether another controller keeps changing
//! it. The mechanics of `config_drift` and `model_integrity`, which differ in what they say and ask for.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::action::Action;
use crate::event::{Actor, Event, Kind, Timestamp, Via};
use crate::file_state::{ContentKind, Digest, FileState, KnownGood};
use crate::firing::{Finding, Subject, Verdict, who};

/// When changes are a fight, and what is asked for then.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The same change coming back this often is a fight.
    pub(crate) conflict_count: u32,
    /// The window of `conflict_count`, and how long a fight must rest before it is forgotten.
    pub(crate) conflict_window: Duration,
    /// Executables whose change, and whose children's, becomes the new known-good of any file when root runs them.
    pub(crate) package_managers: Vec<String>,
    /// The task's title.
    pub(crate) title: &'static str,
    /// When it is done.
    pub(crate) acceptance: &'static str,
}

/// Owned files of some kinds of content.
pub(crate) struct OwnedFiles {
    terms: Terms,
    mine: fn(ContentKind) -> bool,
    files: BTreeMap<PathBuf, Owned>,
}

impl OwnedFiles {
    /// None yet; those whose kind is `mine`.
    pub(crate) fn new(terms: Terms, mine: fn(ContentKind) -> bool) -> Self {
        Self { terms, mine, files: BTreeMap::new() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether the file at `path` was last seen as it should be; none: not owned, or not seen.
    pub(crate) fn right(&self, path: &Path) -> Option<bool> {
        let owned = self.files.get(path)?;
        Some(owned.known.drift(owned.seen.as_ref()?).is_empty())
    }

    /// Judges one event.
    pub(crate) fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let now = event.at;
        match &event.kind {
            Kind::FileKnown { path, known } => {
                let old = self.files.remove(path);
                if !(self.mine)(known.kind) {
                    // It was of another kind before.
                    let fired = old.is_some_and(|o| o.since.is_some());
                    return if fired {
                        vec![cleared(path, "owned as something else now")]
                    } else {
                        Vec::new()
                    };
                }
                let seen = old.as_ref().and_then(|o| o.seen.clone());
                let fired = old.is_some_and(|o| o.since.is_some());
                let right = seen.as_ref().is_some_and(|s| known.drift(s).is_empty());
                let since = if fired && !right { Some(now) } else { None };
                let owned = Owned {
                    known: known.clone(),
                    seen,
                    since,
                    last: None,
                    restores: VecDeque::new(),
                    fight_until: None,
                };
                self.files.insert(path.clone(), owned);
                if fired && right {
                    return vec![cleared(path, "it is the known-good state now")];
                }
                Vec::new()
            }
            Kind::FileForgotten { path } => match self.files.remove(path) {
                Some(owned) if owned.since.is_some() => vec![cleared(path, "not owned any more")],
                _ => Vec::new(),
            },
            Kind::FileSeen { path, state, writer, via } => match self.files.get_mut(path) {
                Some(owned) => owned.judge(path, state, writer.as_ref(), *via, now, &self.terms),
                None => Vec::new(),
            },
            Kind::Outcome(outcome) if outcome.action == "restore_file" && outcome.result.is_ok() => {
                if let Subject::File(path) = &outcome.subject
                    && let Some(owned) = self.files.get_mut(path)
                    && let Some(change) = owned.last.clone()
                {
                    owned.restores.push_back((now, change));
                    // What is seen next is judged also where it is the same again: then it was changed anew.
                    owned.seen = None;
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

/// An owned file.
struct Owned {
    known: KnownGood,
    seen: Option<FileState>,
    /// Since when it differs.
    since: Option<Timestamp>,
    /// What was last judged to be wrong.
    last: Option<Change>,
    /// Restores that were done, oldest first.
    restores: VecDeque<(Timestamp, Change)>,
    /// Until when the fight goes on.
    fight_until: Option<Timestamp>,
}

/// What tells one change from another.
#[derive(Clone, PartialEq)]
struct Change {
    digest: Option<Digest>,
    /// Executable of the writer, or its name where the executable is not known.
    writer: Option<String>,
}

impl Change {
    fn same(&self, other: &Self) -> bool {
        let digest = self.digest.is_some() && self.digest == other.digest;
        digest || (self.writer.is_some() && self.writer == other.writer)
    }
}

impl Owned {
    fn judge(
        &mut self,
        path: &Path,
        state: &FileState,
        writer: Option<&Actor>,
        via: Via,
        now: Timestamp,
        terms: &Terms,
    ) -> Vec<Verdict> {
        let again = self.seen.as_ref() == Some(state);
        if matches!(state, FileState::Unreadable { .. }) {
            // Not seen is neither wrong nor right.
            return Vec::new();
        }
        self.seen = Some(state.clone());
        let drift = self.known.drift(state);
        if drift.is_empty() {
            return match self.since.take() {
                Some(_) => vec![cleared(path, "seen as it should be")],
                None => Vec::new(),
            };
        }
        if again && self.since.is_some() {
            return Vec::new();
        }
        let legitimate = writer.filter(|w| may_write(w, &self.known.writers, &terms.package_managers));
        if let (Some(writer), FileState::Regular { .. }) = (legitimate, state) {
            let reason = format!("written by {}", who(writer));
            return vec![Verdict::Wants(
                Subject::File(path.to_owned()),
                Action::AcceptFile { path: path.to_owned(), reason, author: line_of(writer) },
            )];
        }
        let since = *self.since.get_or_insert(now);
        let change = Change {
            digest: state.digest().cloned(),
            writer: writer.map(|w| w.exe.clone().unwrap_or_else(|| w.comm.clone())),
        };
        // There is no content to take over; and a package that was removed shall not be put back piece by piece.
        let hold = match legitimate {
            Some(_) => {
                Some("a legitimate writer removed it: `grace restore` or `grace forget` it".to_owned())
            }
            None => self.fight(&change, now, terms),
        };
        // Who replaces a file may take it away first.
        let delay = if legitimate.is_some() { REPLACING } else { Duration::ZERO };
        self.last = Some(change);
        let by =
            writer.map_or_else(|| "by a writer that was not seen".to_owned(), |w| format!("by {}", who(w)));
        let verb = if matches!(state, FileState::Missing) { "removed" } else { "changed" };
        vec![Verdict::Holds(Box::new(Finding {
            subject: Subject::File(path.to_owned()),
            since,
            summary: format!("{verb} {by}: {}", drift.join(", ")),
            measured: describe(state),
            threshold: "no difference".into(),
            baseline: describe_known(&self.known),
            writer: writer.cloned(),
            noticed_by: Some(via),
            evidence: Vec::new(),
            remedy: vec![
                Action::RestoreFile { path: path.to_owned(), known: self.known.clone(), judged: state.id() },
                Action::FileTask { title: terms.title.into(), acceptance: terms.acceptance.into() },
            ],
            delay,
            hold,
            depends_on: Vec::new(),
        }))]
    }

    /// Why this change is part of a fight and must not be undone again, if it is.
    fn fight(&mut self, change: &Change, now: Timestamp, terms: &Terms) -> Option<String> {
        let window = terms.conflict_window;
        while self.restores.front().is_some_and(|(at, _)| at.after(window) <= now) {
            self.restores.pop_front();
        }
        let count = self.restores.iter().filter(|(_, earlier)| earlier.same(change)).count();
        let goes_on = self.fight_until.is_some_and(|until| now < until);
        if count < terms.conflict_count as usize && !goes_on {
            self.fight_until = None;
            return None;
        }
        self.fight_until = Some(now.after(window));
        Some(format!(
            "conflict: this change came back {count} times in {}; another controller owns the file too",
            humantime::format_duration(window)
        ))
    }
}

/// How long a legitimate writer may take to replace a file that it removed.
const REPLACING: Duration = Duration::from_secs(5);

/// Whether a change by `writer` is legitimate: it is one of `writers` or was started by one, or the same of
/// `package_managers` and root.
///
/// Who is only concluded from what it has open was not seen to write: no leave for that.
pub(crate) fn may_write(writer: &Actor, writers: &[String], package_managers: &[String]) -> bool {
    let line = || writer.exe.iter().chain(&writer.lineage);
    let any = |patterns: &[String]| line().any(|exe| patterns.iter().any(|pattern| matches(pattern, exe)));
    writer.inferred.is_none() && (any(writers) || (writer.uid == Some(0) && any(package_managers)))
}

/// Who changed it and what started that, for people: `sed ← /usr/bin/dpkg ← /usr/bin/apt-get`.
pub(crate) fn line_of(writer: &Actor) -> String {
    let own = writer.exe.as_deref().unwrap_or(&writer.comm);
    let line: Vec<String> = std::iter::once(own)
        .chain(writer.lineage.iter().map(String::as_str))
        .take(SHOWN)
        .map(|exe| exe.escape_debug().to_string())
        .collect();
    line.join(" ← ")
}

/// So much of a lineage is shown.
const SHOWN: usize = 8;

fn cleared(path: &Path, how: &str) -> Verdict {
    Verdict::Cleared(Subject::File(path.to_owned()), how.to_owned())
}

fn describe(state: &FileState) -> String {
    match state {
        FileState::Missing => "missing".into(),
        FileState::NotRegular { what, .. } => what.clone(),
        FileState::Unreadable { why } => format!("unreadable: {why}"),
        FileState::Regular { meta, digest, .. } => format!(
            "{}, {} bytes, mode {:04o}, owner {}:{}",
            digest.as_ref().map_or_else(|| "content differs".to_owned(), |d| format!("sha256 {}", d.short())),
            meta.size,
            meta.mode,
            meta.uid,
            meta.gid
        ),
    }
}

fn describe_known(known: &KnownGood) -> String {
    format!(
        "sha256 {}, {} bytes, mode {:04o}, owner {}:{}",
        known.digest.short(),
        known.meta.size,
        known.meta.mode,
        known.meta.uid,
        known.meta.gid
    )
}

/// Whether `pattern` names `exe`: equal, where `*` stands for any run of characters.
fn matches(pattern: &str, exe: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| exe.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_executables() {
        for (pattern, exe, want) in [
            ("/usr/bin/dpkg", "/usr/bin/dpkg", true),
            ("/usr/bin/dpkg", "/usr/bin/dpkg-deb", false),
            ("/usr/bin/ansible*", "/usr/bin/ansible-playbook", true),
            ("/usr/*/dpkg", "/usr/local/bin/dpkg", true),
            ("/usr/*/dpkg", "/usr/local/bin/dpkgx", false),
            ("*", "/anything", true),
            ("/a*b*c", "/a-b-b-c", true),
            ("/a*b*c", "/a-c-b", false),
            ("", "/x", false),
        ] {
            assert_eq!(matches(pattern, exe), want, "{pattern} {exe}");
        }
    }
}
