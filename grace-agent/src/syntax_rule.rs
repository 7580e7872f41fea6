//! The engine's own rule beside the triggers: a source file that does not parse is a task for a coding agent.
//!
//! It is a rule and no trigger, because there is nothing to judge: a scan has found the error, here it becomes a firing,
//! one a file. It clears when a scan sees that the file parses, or that it is gone. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::action::Action;
use crate::event::{Event, Kind, SyntaxError, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};
use crate::triggers::{Spec, Trigger};

/// What this rule is.
pub static SPEC: Spec = Spec {
    name: "syntax",
    summary: "a source file does not parse",
    help: "Not one of the triggers: the scan for syntax errors, at start and by `grace scan`. Fires for each file of \
           [scan] paths (default: the [[repo]] paths) that does not parse, with line, column and what was expected. \
           Files a task. Clears when the file parses again or is gone; a file that was changed is looked at again \
           within half a minute. `.gitignore` and `.graceignore` take files out.",
    subjects: "source files",
    remedy: "file a task",
    needs: "to read the files",
    evidence: &[],
    route: Route::CodingAgent,
};

/// Lines of evidence at most.
const EVIDENCE: usize = 3;

/// The rule.
#[derive(Debug, Default)]
pub struct SyntaxRule {
    broken: BTreeSet<PathBuf>,
}

impl Trigger for SyntaxRule {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let Kind::SyntaxSeen { path, language, errors } = &event.kind else { return Vec::new() };
        match errors.first() {
            Some(first) => {
                self.broken.insert(path.clone());
                vec![Verdict::Holds(Box::new(finding(path, language, first, errors, event.at)))]
            }
            None if self.broken.remove(path) => {
                vec![Verdict::Cleared(Subject::File(path.clone()), "it parses, or is gone".into())]
            }
            None => Vec::new(),
        }
    }

    fn subjects(&self) -> usize {
        self.broken.len()
    }
}

fn finding(
    path: &Path,
    language: &str,
    first: &SyntaxError,
    errors: &[SyntaxError],
    at: Timestamp,
) -> Finding {
    let place = |error: &SyntaxError| format!("line {}, column {}", error.line, error.column);
    Finding {
        subject: Subject::File(path.to_owned()),
        since: at,
        summary: format!(
            "{} does not parse at {}: {}",
            language.escape_debug(),
            place(first),
            first.problem.escape_debug()
        ),
        // What the parser says may quote the source: that is evidence, not judgement.
        measured: format!("does not parse at {}", place(first)),
        threshold: "no error".into(),
        baseline: "parses".into(),
        writer: None,
        noticed_by: None,
        evidence: errors
            .iter()
            .take(EVIDENCE)
            .map(|error| format!("{}: {} | {}", place(error), error.problem, error.text))
            .collect(),
        // The same words for every file: whose they are says the subject, which is data.
        remedy: vec![Action::FileTask {
            title: "Fix the syntax error in a source file".into(),
            acceptance: "`grace scan` of the file finds nothing".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    }
}
