//! Go: panics, fatal errors of the runtime, and the goroutines that are listed below them.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Draft, Frame, Language};

/// A Go failure under way.
pub(super) struct Trace {
    kind: String,
    message: String,
    /// Innermost first, of the goroutine that failed.
    frames: Vec<Frame>,
    goroutines: u32,
    more: u32,
}

/// Whether a Go failure begins with `text`.
pub(super) fn begin(text: &str) -> Option<Trace> {
    let trace = |kind: &str, message: &str| {
        Some(Trace {
            kind: kind.to_owned(),
            message: message.trim().to_owned(),
            frames: Vec::new(),
            goroutines: 0,
            more: 0,
        })
    };
    if let Some(message) = text.strip_prefix("panic: ") {
        let message = message.trim_end().trim_end_matches(" [recovered]");
        return match message.strip_prefix("runtime error: ") {
            Some(error) => trace("runtime error", error),
            None => trace("panic", message),
        };
    }
    if let Some(message) = text.strip_prefix("fatal error: ") {
        // Compilers say the same with a place before it; Go's runtime begins the line.
        return trace("fatal error", message);
    }
    if let Some((_, rest)) = text.split_once("http: panic serving ") {
        let message = rest.split_once(": ").map_or(rest, |(_, m)| m);
        return match message.strip_prefix("runtime error: ") {
            Some(error) => trace("runtime error", error),
            None => trace("panic", message),
        };
    }
    if text.trim_end() == "WARNING: DATA RACE" {
        let mut race = trace("DATA RACE", "")?;
        race.goroutines = 1;
        return Some(race);
    }
    None
}

impl Trace {
    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let (text, trimmed) = (line.body, line.body.trim());
        if trimmed.is_empty() {
            return Step::Took;
        }
        if text.starts_with("goroutine ") && trimmed.ends_with("]:") {
            self.goroutines += 1;
            return Step::Took;
        }
        if self.goroutines == 0 {
            // `[signal SIGSEGV: …]`, a second panic while the first one was recovered, more of the message.
            if text.starts_with("goroutine ")
                || trimmed.starts_with("[signal ")
                || trimmed.starts_with("panic: ")
            {
                return Step::Took;
            }
            self.more += 1;
            return if self.more > 12 || begins(line) || line.stamped { Step::Over } else { Step::Took };
        }
        if let Some(place) = text.strip_prefix('\t').or_else(|| text.strip_prefix("      ")) {
            let file = place.trim().split(" +0x").next().unwrap_or_default();
            let file = file.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(':');
            if self.goroutines == 1
                && let Some(frame) = self.frames.last_mut()
                && frame.file.is_empty()
            {
                file.clone_into(&mut frame.file);
            }
            return Step::Took;
        }
        if trimmed.starts_with("created by ") || trimmed.starts_with("...") {
            // Who started it is not where it failed: its place is not taken for the last frame's.
            if self.goroutines == 1 {
                self.goroutines += 1;
            }
            return Step::Took;
        }
        if trimmed.starts_with("exit status ") || trimmed.starts_with("=====") {
            return Step::Last;
        }
        if trimmed.starts_with("Previous ")
            || trimmed.starts_with("Read at ")
            || trimmed.starts_with("Write at ")
        {
            if trimmed.starts_with("Previous ") {
                self.goroutines += 1;
            }
            return Step::Took;
        }
        // `main.(*T).work(0xc000, {0x1, 0x2})`
        match call(trimmed) {
            Some(function) => {
                if self.goroutines == 1 && self.frames.len() < 500 {
                    self.frames.push(Frame::new(function, ""));
                }
                Step::Took
            }
            None if begins(line) => Step::Over,
            None => Step::Stranger,
        }
    }

    pub(super) fn finish(self) -> Option<Draft> {
        // `fatal error: ` without goroutines is a compiler's or somebody else's word.
        if self.kind == "fatal error" && self.goroutines == 0 {
            return Some(Draft::new(Language::Plain, "fatal error", &self.message));
        }
        let mut draft = Draft::new(Language::Go, &self.kind, &self.message);
        draft.frames = self.frames.into_iter().rev().collect();
        Some(draft)
    }
}

/// The function of `main.(*T).work(0xc000, …)`: what stands before the arguments.
fn call(text: &str) -> Option<&str> {
    let inner = text.strip_suffix(')')?;
    let mut depth = 1_u32;
    for (at, c) in inner.char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let function = inner.get(..at)?;
            let plain = |c: char| {
                c.is_alphanumeric() || matches!(c, '.' | '/' | '_' | '(' | ')' | '*' | '[' | ']' | '-' | '%')
            };
            let named = function.contains('.') || function == "panic";
            return (named && !function.is_empty() && function.chars().all(plain)).then_some(function);
        }
    }
    None
}
