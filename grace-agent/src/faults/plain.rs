//! Lines that say by themselves that they are errors: a level, or an error's type and its message.
//!
//! Such a line may only announce a trace, or be the head of a Java or Node.js one: the next line tells.

use super::assembler::{Parser, Step, begins};
use super::prefix::Line;
use super::{Draft, Language, java, node, python};

/// An error line whose next line may tell more.
pub(super) struct Trace {
    kind: String,
    message: String,
    /// It begins with an error's type: frames may follow.
    typed: bool,
    more: u32,
}

/// Whether `line` says that it is an error.
pub(super) fn begin(line: &Line<'_>) -> Option<Trace> {
    if let Some((kind, message)) = typed(line.body) {
        return Some(Trace { kind, message, typed: true, more: 0 });
    }
    let message = line.body.trim();
    (line.error && !message.is_empty()).then(|| Trace {
        kind: "error line".to_owned(),
        message: message.to_owned(),
        typed: false,
        more: 0,
    })
}

/// `a.b.SomeException: message`, `Uncaught TypeError [CODE]: message`.
fn typed(text: &str) -> Option<(String, String)> {
    let text = text.strip_prefix("Uncaught ").unwrap_or(text);
    let head = text.split(": ").next().unwrap_or(text).trim_end_matches(':');
    let name = head.split(" [").next().unwrap_or(head);
    let last = name.rsplit(['.', '$']).next().unwrap_or(name);
    let error = ["Error", "Exception", "Throwable", "Failure"].iter().any(|end| last.ends_with(end));
    // `Error: x` alone is a sentence of any program; with frames below it it is V8's.
    if !error || name.len() > 200 {
        return None;
    }
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '$' | '<' | '>');
    if !name.chars().all(plain) || !name.starts_with(|c: char| c.is_alphabetic()) {
        return None;
    }
    if name.len() != head.len() && !head.ends_with(']') {
        return None;
    }
    let (_, message) =
        python::exception(name).map(|_| ()).map(|()| (name, text.get(head.len()..).unwrap_or_default()))?;
    Some((head.to_owned(), message.trim_start_matches(": ").trim_end_matches(" {").trim().to_owned()))
}

impl Trace {
    /// Whether a trace that begins next may be what this line is about.
    pub(super) fn announces(&self) -> bool {
        !self.typed || self.more == 0
    }

    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let trimmed = line.body.trim();
        if self.typed && trimmed.starts_with("at ") {
            let indented = line.body.starts_with([' ', '\t']);
            if indented && java::frame(trimmed).is_some() {
                let mut trace = java::Trace::new(&self.kind, &self.message);
                drop(trace.take(line));
                return Step::Became(Parser::Java(trace));
            }
            if indented && node::frame(trimmed).is_some() {
                let mut trace = node::Trace::new(&self.kind, &self.message);
                drop(trace.take(line));
                return Step::Became(Parser::Node(trace));
            }
        }
        if !self.typed && !line.stamped && typed(line.body).is_some() {
            // `ERROR it failed`, and in the next line the head of the trace.
            return match begin(line) {
                Some(trace) => Step::Became(Parser::Plain(trace)),
                None => Step::Over,
            };
        }
        self.more += 1;
        if !self.typed || begins(line) || line.stamped || self.more > 4 || trimmed.is_empty() {
            return Step::Over;
        }
        Step::Took
    }

    pub(super) fn finish(self) -> Option<Draft> {
        Some(Draft::new(Language::Plain, &self.kind, &self.message))
    }
}
