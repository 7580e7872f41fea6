//! What lies in a watched folder and is not owned: a legitimate writer's is taken over, anything else is told. Nothing
//! is ever deleted: that a file is new does not make it wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::action::Action;
use crate::event::{Actor, Event, Kind, Timestamp, Via};
use crate::firing::{Finding, Subject, Verdict, who};
use crate::owned::{line_of, may_write};

/// Files that were told.
#[derive(Default)]
pub(super) struct Strangers(BTreeSet<PathBuf>);

impl Strangers {
    /// Judges one event. `package_managers` may put files wherever they like.
    pub(super) fn on_event(&mut self, event: &Event, package_managers: &[String]) -> Vec<Verdict> {
        match &event.kind {
            Kind::FileUnowned { path, what: None, .. } => self.cleared(path, "gone again"),
            Kind::FileUnowned { path, pattern, what: Some(what), writer, writers, via } => {
                if let Some(writer) = writer.as_ref().filter(|w| may_write(w, writers, package_managers))
                    && what.starts_with("regular file")
                {
                    let mut out = self.cleared(path, "made by a legitimate writer");
                    out.push(Verdict::Wants(
                        Subject::File(path.clone()),
                        Action::AcceptFile {
                            path: path.clone(),
                            reason: format!("new in {}, made by {}", pattern.escape_debug(), who(writer)),
                            author: line_of(writer),
                        },
                    ));
                    return out;
                }
                self.0.insert(path.clone());
                vec![Verdict::Holds(Box::new(finding(path, pattern, what, writer.as_ref(), *via, event.at)))]
            }
            Kind::FileKnown { path, .. } => self.cleared(path, "owned now"),
            _ => Vec::new(),
        }
    }

    fn cleared(&mut self, path: &Path, how: &str) -> Vec<Verdict> {
        let told = self.0.remove(path);
        told.then(|| Verdict::Cleared(Subject::File(path.to_owned()), how.to_owned())).into_iter().collect()
    }
}

fn finding(
    path: &Path,
    pattern: &str,
    what: &str,
    writer: Option<&Actor>,
    via: Via,
    now: Timestamp,
) -> Finding {
    let by = writer.map_or_else(|| "by a writer that was not seen".to_owned(), |w| format!("by {}", who(w)));
    Finding {
        subject: Subject::File(path.to_owned()),
        since: now,
        summary: format!("new in the watched folder {}, made {by}", pattern.escape_debug()),
        measured: what.to_owned(),
        threshold: "no file that is not owned".into(),
        baseline: "not there when the folder was taken over".into(),
        writer: writer.cloned(),
        noticed_by: Some(via),
        evidence: Vec::new(),
        remedy: vec![Action::FileTask {
            title: "Decide whether a new file in a watched folder belongs there".into(),
            acceptance: "the file was removed, or `grace snapshot` took it over, and config_drift is clear"
                .into(),
        }],
        delay: Duration::ZERO,
        hold: Some("Grace deletes nothing: remove the file, or own it with `grace snapshot`".into()),
        depends_on: Vec::new(),
    }
}
