//! Rust: panics, with and without a backtrace, in the formats of old and new standard libraries.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Draft, Frame, Language};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Message,
    Notes,
    Backtrace,
}

/// A panic under way.
pub(super) struct Trace {
    at: At,
    message: String,
    /// `src/main.rs`.
    place: String,
    /// Innermost first, as it is printed.
    frames: Vec<Frame>,
    more: u32,
}

/// Whether a panic begins with `text`.
pub(super) fn begin(text: &str) -> Option<Trace> {
    let rest = text.trim_start().strip_prefix("thread '")?;
    let (_, rest) = rest.split_once('\'')?;
    // Since 1.91 the thread's number follows.
    let rest = match rest.strip_prefix(" (").and_then(|r| r.split_once(')')) {
        Some((_, rest)) => rest,
        None => rest,
    };
    let rest = rest.strip_prefix(" panicked at ")?;
    let trace = |message: &str, place: &str, at| Trace {
        at,
        message: message.to_owned(),
        place: file_of(place),
        frames: Vec::new(),
        more: 0,
    };
    if let Some(quoted) = rest.strip_prefix('\'') {
        // Before 1.73: `panicked at 'message', src/main.rs:2:5`.
        let (message, place) = quoted.rsplit_once("', ")?;
        return Some(trace(message, place, At::Notes));
    }
    Some(trace("", rest.trim_end().trim_end_matches(':'), At::Message))
}

/// `src/main.rs` of `src/main.rs:2:5`.
fn file_of(place: &str) -> String {
    place.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == ':').to_owned()
}

impl Trace {
    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let (text, trimmed) = (line.body, line.body.trim());
        if trimmed == "stack backtrace:" {
            self.at = At::Backtrace;
            return Step::Took;
        }
        if trimmed.starts_with("note: ") {
            return if self.at == At::Backtrace { Step::Last } else { self.notes() };
        }
        match self.at {
            At::Message => {
                if begins(line) {
                    return Step::Over;
                }
                if self.message.is_empty() {
                    trimmed.clone_into(&mut self.message);
                    return Step::Took;
                }
                self.more += 1;
                if self.more > 20 || line.stamped { Step::Over } else { Step::Took }
            }
            At::Notes => Step::Over,
            At::Backtrace => {
                if let Some(file) = trimmed.strip_prefix("at ") {
                    if let Some(frame) = self.frames.last_mut() {
                        frame.file = file_of(file);
                    }
                    return Step::Took;
                }
                let number = trimmed.bytes().take_while(u8::is_ascii_digit).count();
                if let Some(function) =
                    trimmed.get(number..).and_then(|r| r.strip_prefix(": ")).filter(|_| number > 0)
                {
                    // `0x55… - app::work` where the backtrace is full.
                    let function = match function.trim_start().split_once(" - ") {
                        Some((address, name)) if address.starts_with("0x") => name,
                        _ => function,
                    };
                    if self.frames.len() < 500 {
                        self.frames.push(Frame::new(function, ""));
                    }
                    return Step::Took;
                }
                if text.trim().is_empty() { Step::Took } else { Step::Over }
            }
        }
    }

    fn notes(&mut self) -> Step {
        self.at = At::Notes;
        Step::Took
    }

    pub(super) fn finish(self) -> Option<Draft> {
        let mut draft = Draft::new(Language::Rust, "panic", &self.message);
        draft.frames = self.frames.into_iter().rev().collect();
        // Where it panicked is known without a backtrace, too.
        draft.frames.push(Frame::new("panic", &self.place));
        Some(draft)
    }
}
