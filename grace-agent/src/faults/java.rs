//! Java and others on its virtual machine: exceptions with causes and suppressed ones, and the machine's own crash.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Cause, Draft, Frame, Language};

/// A stack trace under way.
pub(super) struct Trace {
    first: Cause,
    causes: Vec<Cause>,
    aside: Vec<Cause>,
    /// Within a suppressed exception: not what failed first.
    suppressed: bool,
    framed: bool,
    more: u32,
    /// The machine itself crashed.
    crash: bool,
}

/// Whether a stack trace begins with `text`.
pub(super) fn begin(text: &str) -> Option<Trace> {
    if text.starts_with("# A fatal error has been detected by the Java Runtime Environment") {
        let mut trace = Trace::new("JVM crash", "");
        trace.crash = true;
        return Some(trace);
    }
    let rest = text.strip_prefix("Exception in thread \"")?;
    let (_, rest) = rest.split_once("\" ")?;
    let (kind, message) = header(rest)?;
    Some(Trace::new(kind, message))
}

/// `a.b.SomeException: message` or the type alone.
fn header(text: &str) -> Option<(&str, &str)> {
    let (kind, message) = text.split_once(": ").unwrap_or((text.trim_end_matches(':'), ""));
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '$');
    (!kind.is_empty() && kind.trim_end().chars().all(plain)).then(|| (kind.trim_end(), message))
}

/// `at a.b.C.method(File.java:12)`: nothing where it is another language's.
pub(super) fn frame(trimmed: &str) -> Option<Frame> {
    let rest = trimmed.strip_prefix("at ")?;
    let (function, place) = rest.split_once('(')?;
    // What follows are notes of a logger: `~[app.jar:1.0]`.
    let (place, _) = place.split_once(')')?;
    let function = function.rsplit_once('/').map_or(function, |(_, f)| f);
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '$' | '<' | '>' | '-');
    if function.contains(' ') || !function.contains('.') || !function.chars().all(plain) {
        return None;
    }
    let file = place.split(':').next().unwrap_or_default();
    let sources = [".java", ".kt", ".scala", ".groovy", ".clj"];
    let known = sources.iter().any(|s| file.ends_with(s));
    let without = ["Native Method", "Unknown Source", "<generated>"].contains(&file) || file.is_empty();
    (known || without).then(|| Frame::new(function, if known { file } else { "" }))
}

impl Trace {
    /// A trace that begins with an exception of this kind.
    pub(super) fn new(kind: &str, message: &str) -> Self {
        let first = Cause { kind: kind.to_owned(), message: message.to_owned(), ..Cause::default() };
        Self {
            first,
            causes: Vec::new(),
            aside: Vec::new(),
            suppressed: false,
            framed: false,
            more: 0,
            crash: false,
        }
    }

    fn current(&mut self) -> &mut Cause {
        self.causes.last_mut().unwrap_or(&mut self.first)
    }

    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let (text, trimmed) = (line.body, line.body.trim());
        if self.crash {
            return self.crashed(text);
        }
        if let Some(frame) = frame(trimmed) {
            self.framed = true;
            if !self.suppressed && self.current().frames.len() < 2000 {
                // Innermost first; turned around at the end.
                self.current().frames.push(frame);
            }
            return Step::Took;
        }
        if let Some(rest) = trimmed.strip_prefix("Caused by: ") {
            // A cause of a suppressed one is indented.
            let inner = text.starts_with(['\t', ' ']) && self.suppressed;
            if !inner {
                self.suppressed = false;
                let (kind, message) = header(rest).unwrap_or((rest, ""));
                self.causes.push(Cause {
                    kind: kind.to_owned(),
                    message: message.to_owned(),
                    ..Cause::default()
                });
                self.causes.truncate(16);
            }
            return Step::Took;
        }
        if let Some(rest) = trimmed.strip_prefix("Suppressed: ") {
            self.suppressed = true;
            // Of what failed on the way out only what it was counts.
            let (kind, _) = header(rest).unwrap_or((rest, ""));
            self.aside.push(Cause { kind: format!("suppressed {kind}"), ..Cause::default() });
            self.aside.truncate(4);
            return Step::Took;
        }
        if trimmed.starts_with("... ")
            || trimmed.starts_with("[CIRCULAR REFERENCE")
            || trimmed.starts_with("- locked")
        {
            return Step::Took;
        }
        // A message of several lines stands before the frames.
        self.more += 1;
        if begins(line) || line.stamped || trimmed.is_empty() {
            return Step::Over;
        }
        let awaits = !self.framed || self.causes.last().is_some_and(|c| c.frames.is_empty());
        if awaits && self.more <= 10 { Step::Took } else { Step::Over }
    }

    fn crashed(&mut self, text: &str) -> Step {
        let Some(rest) = text.strip_prefix('#') else { return Step::Over };
        let rest = rest.trim();
        if rest.starts_with("SIG") || rest.starts_with("Internal Error") {
            rest.split(" at pc=").next().unwrap_or(rest).clone_into(&mut self.first.message);
        }
        // `C  [libfoo.so+0x1234]  foo+0x12`
        if let Some((_, place)) = rest.split_once("  [")
            && let Some((library, function)) = place.split_once(']')
        {
            let strip = |s: &str| s.split("+0x").next().unwrap_or(s).trim().to_owned();
            self.first.frames.push(Frame { function: strip(function), file: strip(library) });
        }
        Step::Took
    }

    pub(super) fn finish(self) -> Option<Draft> {
        let turned = |frames: Vec<Frame>| frames.into_iter().rev().collect::<Vec<_>>();
        let mut draft = Draft::new(Language::Java, &self.first.kind, &self.first.message);
        draft.frames = turned(self.first.frames);
        draft.causes = self
            .causes
            .into_iter()
            .chain(self.aside)
            .map(|c| Cause { frames: turned(c.frames), ..c })
            .collect();
        Some(draft)
    }
}
