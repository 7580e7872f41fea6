//! Node.js and whatever else runs on V8: errors with their stacks, causes, and rejections that nobody handled.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Cause, Draft, Frame, Language};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// After the place and before the error: the line of code and the caret.
    Prelude,
    /// Among the frames.
    Frames,
    /// Among the properties of the error.
    Properties,
}

/// A stack under way.
pub(super) struct Trace {
    at: At,
    first: Cause,
    causes: Vec<Cause>,
    /// The file of a program that cannot be compiled.
    place: String,
    more: u32,
}

/// Whether a V8 error begins with `text`: the place before the code, or a rejection without an error.
pub(super) fn begin(text: &str, stamped: bool) -> Option<Trace> {
    let trace = |at, kind: &str, message: &str, place: &str| Trace {
        at,
        first: Cause { kind: kind.to_owned(), message: message.to_owned(), ..Cause::default() },
        causes: Vec::new(),
        place: place.to_owned(),
        more: 0,
    };
    if let Some(rest) = text.strip_prefix('[')
        && let Some((kind, message)) = rest.split_once(": ")
        && kind.starts_with("UnhandledPromiseRejection")
    {
        let message = message.trim_end_matches(" {").trim_end_matches(']');
        let reason = message.rsplit_once("with the reason ").map_or(message, |(_, reason)| reason);
        let at = if text.ends_with('{') { At::Properties } else { At::Frames };
        return Some(trace(at, kind, reason, ""));
    }
    let rooted = text.starts_with('/') || text.starts_with("file:///") || text.starts_with("node:");
    if rooted && !stamped {
        let (file, number) = text.trim_end().rsplit_once(':')?;
        let plain = !file.contains(' ') && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let script = file.starts_with("node:")
            || [".js", ".mjs", ".cjs", ".ts", ".mts", ".cts", ".jsx", ".tsx"]
                .iter()
                .any(|e| file.ends_with(e));
        return (plain && script).then(|| trace(At::Prelude, "", "", file));
    }
    None
}

/// `Error: message`, `TypeError [ERR_X]: message`, `Uncaught Error: message`.
fn header(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix("Uncaught ").unwrap_or(text);
    let (kind, message) = text.split_once(": ").unwrap_or((text.trim_end_matches(':'), ""));
    let name = kind.split(" [").next().unwrap_or(kind);
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '$');
    let typed = name.starts_with(|c: char| c.is_uppercase()) && name.chars().all(plain);
    (typed && (name.len() == kind.len() || kind.ends_with(']'))).then_some((kind, message))
}

/// `at f (/srv/app.js:3:9)`, `at async /srv/app.js:3:9`: nothing where it is another language's.
pub(super) fn frame(trimmed: &str) -> Option<Frame> {
    let rest = trimmed.strip_prefix("at ")?;
    let rest = rest.strip_prefix("async ").unwrap_or(rest);
    let rest = rest.strip_prefix("new ").unwrap_or(rest);
    let rest = rest.trim_end_matches(" {");
    if let Some((function, place)) = rest.rsplit_once(" (") {
        let place = place.strip_suffix(')')?;
        let function = function.split(" [as ").next().unwrap_or(function);
        if place == "<anonymous>" || place == "native" || place.starts_with("index ") {
            return Some(Frame::new(function, "node:internal"));
        }
        return Some(Frame::new(function, file_of(place)?));
    }
    if rest == "<anonymous>" {
        return Some(Frame::new(rest, "node:internal"));
    }
    Some(Frame::new("<anonymous>", file_of(rest)?))
}

/// The file of `file:line:column`.
fn file_of(place: &str) -> Option<&str> {
    let (rest, column) = place.rsplit_once(':')?;
    let (file, line) = rest.rsplit_once(':')?;
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (number(column) && number(line) && !file.is_empty()).then_some(file)
}

impl Trace {
    /// A stack of an error of this kind, whose first frame comes next.
    pub(super) fn new(kind: &str, message: &str) -> Self {
        Self {
            at: At::Frames,
            first: Cause { kind: kind.to_owned(), message: message.to_owned(), ..Cause::default() },
            causes: Vec::new(),
            place: String::new(),
            more: 0,
        }
    }

    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let (text, trimmed) = (line.body, line.body.trim());
        if self.at == At::Prelude {
            self.more += 1;
            if trimmed.starts_with("throw ") {
                trimmed.clone_into(&mut self.first.source);
            }
            let caret = trimmed.is_empty() || trimmed.bytes().all(|b| b == b'^');
            if !caret && !text.starts_with(' ') {
                if text.starts_with("[UnhandledPromiseRejection") {
                    return match begin(text, false) {
                        Some(trace) => Step::Became(super::assembler::Parser::Node(trace)),
                        None => Step::Over,
                    };
                }
                if self.more > 1
                    && let Some((kind, message)) = header(text)
                {
                    (self.first.kind, self.first.message) =
                        (kind.to_owned(), message.trim_end_matches(" {").to_owned());
                    self.at = if text.ends_with(" {") { At::Properties } else { At::Frames };
                    self.more = 0;
                    return Step::Took;
                }
                if self.more > 1 && begins(line) {
                    return Step::Over;
                }
            }
            return if self.more > 8 { Step::Over } else { Step::Took };
        }
        if let Some(frame) = frame(trimmed) {
            let current = self.causes.last_mut().unwrap_or(&mut self.first);
            if current.frames.len() < 500 {
                current.frames.push(frame);
            }
            if trimmed.ends_with(" {") {
                self.at = At::Properties;
            }
            return Step::Took;
        }
        if trimmed.starts_with("... ") {
            return Step::Took;
        }
        if self.at == At::Properties {
            if text.trim_end() == "}" || text.trim_end() == "]" {
                return Step::Last;
            }
            if let Some(cause) = trimmed.strip_prefix("[cause]: ")
                && let Some((kind, message)) = header(cause)
            {
                self.causes.push(Cause {
                    kind: kind.to_owned(),
                    message: message.trim_end_matches(" {").to_owned(),
                    ..Cause::default()
                });
                self.causes.truncate(8);
            }
            self.more += 1;
            return if self.more > 200 || (!text.starts_with(' ') && begins(line)) {
                Step::Over
            } else {
                Step::Took
            };
        }
        // The rest of a message of several lines, before the first frame.
        if self.first.frames.is_empty() && self.causes.is_empty() {
            self.more += 1;
            if self.more <= 10 && !begins(line) && !line.stamped && !text.starts_with("Node.js v") {
                return Step::Took;
            }
        }
        Step::Over
    }

    pub(super) fn finish(self) -> Option<Draft> {
        if self.first.kind.is_empty() {
            return None;
        }
        let turned = |frames: Vec<Frame>| frames.into_iter().rev().collect::<Vec<_>>();
        let mut draft = Draft::new(Language::Node, &self.first.kind, &self.first.message);
        draft.frames = turned(self.first.frames);
        draft.source = self.first.source;
        if self.first.kind == "SyntaxError" && !self.place.is_empty() {
            draft.frames.push(Frame::new("<syntax>", &self.place));
        }
        draft.causes = self.causes.into_iter().map(|c| Cause { frames: turned(c.frames), ..c }).collect();
        Some(draft)
    }
}
