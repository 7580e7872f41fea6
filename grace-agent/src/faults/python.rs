//! Python: tracebacks, chained ones, exception groups, syntax errors, faulthandler's.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Cause, Draft, Frame, Language};

const HEADER: &str = "Traceback (most recent call last):";
const CHAINS: [&str; 2] = [
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
];
/// Further lines of a message that are taken along.
const MORE: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Among the frames.
    Frames,
    /// After the exception.
    Told,
    /// After the line that says that another one follows.
    Chained,
    /// Inside an exception group.
    Group,
    /// Below `Fatal Python error`.
    Fatal,
}

/// A traceback under way.
pub(super) struct Trace {
    at: At,
    /// The last exception.
    now: Cause,
    /// Those before it.
    before: Vec<Cause>,
    more: u32,
    stamped: bool,
}

/// Whether a traceback begins with `text`.
pub(super) fn begin(text: &str) -> Option<Trace> {
    let trimmed = text.trim();
    let trace = |at, kind: &str, message: &str| Trace {
        at,
        now: Cause { kind: kind.to_owned(), message: message.to_owned(), ..Cause::default() },
        before: Vec::new(),
        more: 0,
        stamped: false,
    };
    if trimmed.ends_with(HEADER) {
        let at = if trimmed.contains("Exception Group Traceback") { At::Group } else { At::Frames };
        return Some(trace(at, "", ""));
    }
    if let Some(message) = text.strip_prefix("Fatal Python error: ") {
        return Some(trace(At::Fatal, "Fatal Python error", message));
    }
    if text.starts_with("  File \"") {
        // A program that cannot be compiled has no traceback, only the place.
        let (frame, place) = file_line(text)?;
        if place {
            return None;
        }
        let mut begun = trace(At::Frames, "", "");
        begun.now.frames.push(frame);
        return Some(begun);
    }
    None
}

impl Trace {
    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let text = line.body;
        self.stamped |= line.stamped;
        match self.at {
            At::Frames => self.frames(text),
            At::Told => {
                let trimmed = text.trim();
                if trimmed.is_empty() {
                    return Step::Took;
                }
                if CHAINS.contains(&trimmed) {
                    self.before.push(std::mem::take(&mut self.now));
                    self.at = At::Chained;
                    return Step::Took;
                }
                self.more += 1;
                if begins(line) || (line.stamped && !line.raw.starts_with(text)) || self.more > MORE {
                    return Step::Over;
                }
                if self.now.message.is_empty() {
                    trimmed.clone_into(&mut self.now.message);
                }
                Step::Took
            }
            At::Chained => {
                let trimmed = text.trim();
                if trimmed.is_empty() {
                    return Step::Took;
                }
                if trimmed.ends_with(HEADER) {
                    self.at = if trimmed.contains("Exception Group") { At::Group } else { At::Frames };
                    self.more = 0;
                    return Step::Took;
                }
                // A chained exception without a traceback of its own.
                if let Some((kind, message)) = exception(text) {
                    self.now = Cause { kind, message, ..Cause::default() };
                    self.at = At::Told;
                    return Step::Took;
                }
                Step::Stranger
            }
            At::Group => self.group(text),
            At::Fatal => {
                let trimmed = text.trim();
                if let Some((frame, _)) = file_line(text) {
                    // Most recent call first.
                    if self.now.frames.len() < 200 {
                        self.now.frames.insert(0, frame);
                    }
                    return Step::Took;
                }
                let known = [
                    "Python runtime state",
                    "Current thread",
                    "Thread 0x",
                    "Extension modules",
                    "  <no Python frame>",
                ];
                if trimmed.is_empty() || known.iter().any(|k| text.starts_with(k)) {
                    // Only the thread that failed.
                    let done = text.starts_with("Thread 0x") && !self.now.frames.is_empty();
                    return if done || text.starts_with("Extension modules") {
                        Step::Last
                    } else {
                        Step::Took
                    };
                }
                Step::Over
            }
        }
    }

    fn frames(&mut self, text: &str) -> Step {
        if let Some((frame, _)) = file_line(text) {
            self.now.source.clear();
            if self.now.frames.len() < 1000 {
                self.now.frames.push(frame);
            }
            return Step::Took;
        }
        if text.starts_with("    ") {
            note_source(&mut self.now, text);
            return Step::Took;
        }
        if text.starts_with("  [Previous line") || text.trim().is_empty() {
            return Step::Took;
        }
        if text.trim().ends_with(HEADER) {
            return Step::Over;
        }
        match exception(text) {
            Some((kind, message)) => {
                (self.now.kind, self.now.message) = (kind, message);
                self.at = At::Told;
                self.more = 0;
                Step::Took
            }
            None => Step::Stranger,
        }
    }

    /// Within a group: `before` collects what it is made of, `now` is the group.
    fn group(&mut self, text: &str) -> Step {
        let trimmed = text.trim_start();
        if trimmed.starts_with("+-") {
            if trimmed.trim_end_matches(['+', '-']).is_empty() && self.now.kind.is_empty() {
                return Step::Took;
            }
            // A part begins; the last line of dashes begins none.
            if trimmed.bytes().any(|b| b.is_ascii_digit() || b == b'.') {
                self.before.push(Cause::default());
            }
            return Step::Took;
        }
        let Some(inner) = trimmed.strip_prefix('|') else {
            if trimmed.is_empty() || CHAINS.contains(&text.trim()) {
                return Step::Took;
            }
            if let Some(at) = trimmed.strip_prefix("+ ") {
                return if at.contains(HEADER) { Step::Took } else { Step::Over };
            }
            return Step::Over;
        };
        let inner = inner.strip_prefix(' ').unwrap_or(inner);
        let part = self.before.last_mut().unwrap_or(&mut self.now);
        if let Some((frame, _)) = file_line(inner) {
            part.source.clear();
            part.frames.push(frame);
        } else if inner.starts_with("    ") {
            note_source(part, inner);
        } else if !inner.starts_with(' ')
            && part.kind.is_empty()
            && let Some((kind, message)) = exception(inner)
        {
            (part.kind, part.message) = (kind, message);
        }
        if self.before.len() > 16 {
            self.before.pop();
        }
        Step::Took
    }

    pub(super) fn finish(self) -> Option<Draft> {
        let mut causes = self.before;
        causes.retain(|c| !c.kind.is_empty());
        if self.at == At::Group {
            // Parts that were never raised were made where the group was.
            for part in causes.iter_mut().filter(|c| c.frames.is_empty()) {
                self.now.source.clone_into(&mut part.source);
            }
        }
        let now = if self.now.kind.is_empty() {
            // Cut off in the middle: what came before is known, the rest is not.
            causes.pop()?
        } else {
            self.now
        };
        let mut draft = Draft::new(Language::Python, now.kind.trim_start_matches("__main__."), &now.message);
        draft.frames = now.frames;
        draft.source = now.source;
        draft.causes = causes;
        Some(draft)
    }
}

/// `  File "PATH", line N, in FUNCTION`: the frame, and whether it says a function.
fn file_line(text: &str) -> Option<(Frame, bool)> {
    let rest = text.trim_start().strip_prefix("File \"")?;
    let (file, rest) = rest.split_once("\", line ")?;
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    match rest.strip_prefix(", in ").or_else(|| rest.strip_prefix(" in ")) {
        Some(function) => Some((Frame::new(function, file), true)),
        None if rest.trim().is_empty() => Some((Frame::new("<syntax>", file), false)),
        None => None,
    }
}

/// `Type: message`, as the last line of a traceback says it.
pub(super) fn exception(text: &str) -> Option<(String, String)> {
    let (kind, message) = match text.split_once(':') {
        Some((kind, message)) if message.is_empty() || message.starts_with(' ') => (kind, message.trim()),
        Some(_) => return None,
        None => (text.trim_end(), ""),
    };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '<' | '>');
    if kind.is_empty() || kind.len() > 200 || !kind.chars().all(plain) || kind.starts_with(['.', '<']) {
        return None;
    }
    if kind.starts_with(|c: char| c.is_ascii_digit()) || kind.ends_with('.') {
        return None;
    }
    let last = kind.rsplit('.').next().unwrap_or(kind);
    let capital = last.starts_with(|c: char| c.is_uppercase());
    // `socket.timeout`, `zlib.error`: lower-case types belong to a module.
    let known = kind.contains('.') && ["error", "timeout", "herror", "gaierror"].contains(&last);
    let levels = ["INFO", "WARNING", "ERROR", "DEBUG", "CRITICAL", "Traceback"];
    ((capital && !levels.contains(&kind)) || known).then(|| (kind.to_owned(), message.to_owned()))
}

/// Keeps the line of code of the innermost frame where it raises an error itself.
fn note_source(cause: &mut Cause, text: &str) {
    let code = text.trim();
    if cause.source.is_empty() && (code.starts_with("raise ") || code.starts_with("assert ")) {
        code.clone_into(&mut cause.source);
    }
}

/// The frames among lines that have no header.
pub(super) fn frames_in(lines: &[String]) -> Vec<Frame> {
    lines.iter().filter_map(|line| file_line(line)).map(|(frame, _)| frame).collect()
}
