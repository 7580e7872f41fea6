//! C and C++: sanitizers, what glibc and the C++ runtime say before they abort, assertions, checks, fatal signals.

use super::assembler::{Step, begins};
use super::prefix::Line;
use super::{Draft, Frame, Language};

/// A report under way.
pub(super) struct Trace {
    kind: String,
    message: String,
    /// Innermost first; those of the first stack.
    frames: Vec<Frame>,
    /// Stacks seen; the first one is where it failed.
    stacks: u32,
    shape: Shape,
    more: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A sanitizer's report, until its summary.
    Report,
    /// `#0 …` or `@ 0x… name` may follow.
    Stack,
    /// `  what():  …` may follow.
    What,
}

/// What glibc says before it aborts: each begins a line.
const GLIBC: &[&str] = &[
    "free(): ",
    "double free or corruption",
    "malloc(): ",
    "malloc_consolidate(): ",
    "munmap_chunk(): ",
    "realloc(): ",
    "corrupted size vs. prev_size",
    "corrupted double-linked list",
    "calloc(): ",
    "invalid fastbin entry",
    "tcache_thread_shutdown(): ",
    "memalign(): ",
    "pure virtual method called",
    "sysmalloc: ",
];

/// What a shell or a supervisor says about a child.
const SIGNALS: &[&str] = &[
    "Segmentation fault",
    "Aborted (core dumped)",
    "Bus error",
    "Illegal instruction",
    "Floating point exception",
];

/// Whether a report begins with `text`.
pub(super) fn begin(text: &str) -> Option<Trace> {
    let trace = |kind: &str, message: &str, shape| {
        Some(Trace {
            kind: kind.to_owned(),
            message: message.to_owned(),
            frames: Vec::new(),
            stacks: 0,
            shape,
            more: 0,
        })
    };
    if text.contains("Sanitizer") {
        // `==12==ERROR: AddressSanitizer: heap-use-after-free on address 0x…`, `WARNING: ThreadSanitizer: data race (pid=1)`
        let after = text.strip_prefix("==").and_then(|t| t.split_once("==")).map_or(text, |(_, rest)| rest);
        let after = after.trim_start_matches("ERROR: ").trim_start_matches("WARNING: ");
        let (tool, what) = after.split_once(": ")?;
        if tool.ends_with("Sanitizer") && !tool.contains(' ') && tool.len() < 40 {
            let what = what.split(" on address ").next().unwrap_or(what);
            let what = what.split(" on unknown address ").next().unwrap_or(what);
            let what = what.split(" (pid=").next().unwrap_or(what);
            let what = what.split(": ").next().unwrap_or(what);
            let what = what.split(" 0x").next().unwrap_or(what);
            return trace(&format!("{tool}: {what}"), "", Shape::Report);
        }
    }
    // `a.c:5:7: runtime error: signed integer overflow: …`
    if let Some((place, what)) = text.split_once(": runtime error: ") {
        let file = file_of(place)?;
        let mut found = trace("UndefinedBehaviorSanitizer", what, Shape::Stack)?;
        found.frames.push(Frame::new("<place>", file));
        return Some(found);
    }
    if GLIBC.iter().any(|begin| text.starts_with(begin)) {
        return trace("abort", text.trim(), Shape::Stack);
    }
    // `*** stack smashing detected ***: terminated`, `*** Error in `./a': double free …: 0x… ***`
    if let Some(rest) = text.strip_prefix("*** ")
        && (rest.contains(" detected ***") || rest.starts_with("Error in `"))
    {
        return trace("abort", rest.split(" ***").next().unwrap_or(rest), Shape::Stack);
    }
    if let Some(rest) = text.strip_prefix("terminate called ") {
        let kind = rest
            .strip_prefix("after throwing an instance of '")
            .and_then(|r| r.split_once('\''))
            .map(|(k, _)| k);
        return match kind {
            Some(kind) => trace(kind, "", Shape::What),
            None => trace("terminate", rest.trim(), Shape::What),
        };
    }
    // `prog: file.c:5: int work(int): Assertion `x > 0' failed.`
    if let Some((before, rest)) = text.split_once(": Assertion `")
        && let Some((what, _)) = rest.rsplit_once("' failed")
    {
        let mut parts = before.splitn(4, ':');
        let (_, file) = (parts.next()?, parts.next()?.trim());
        let line = parts.next()?;
        let function = parts.next().unwrap_or_default().trim();
        if !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit()) {
            let mut found = trace("assert", &format!("assertion '{what}' failed"), Shape::Stack)?;
            found.frames.push(Frame::new(without_arguments(function), file));
            return Some(found);
        }
    }
    // glog and abseil.
    if let Some(rest) = text.strip_prefix("Check failed: ") {
        return trace("Check failed", rest.trim(), Shape::Stack);
    }
    if text.trim_end() == "Aborted" {
        return trace("Aborted", "", Shape::Stack);
    }
    for name in SIGNALS {
        if let Some(at) = text.find(name)
            && at < 80
            && text.get(..at).is_some_and(|before| before.is_empty() || before.ends_with(' '))
            && !text
                .get(at + name.len()..)
                .is_some_and(|after| after.starts_with(|c: char| c.is_alphanumeric()))
            && (at == 0
                || text.contains("(core dumped)")
                || text.get(..at).is_some_and(|b| b.contains(": line ")))
        {
            let command = text.get(at + name.len()..).unwrap_or_default().trim();
            return trace(
                name.split(" (").next().unwrap_or(name),
                command.trim_start_matches("(core dumped)"),
                Shape::Stack,
            );
        }
    }
    None
}

impl Trace {
    /// Whether this is what a shell says about a child that a signal ended: of one that wrote a trace just before, it is
    /// no second fault.
    pub(super) fn is_echo(&self) -> bool {
        self.frames.is_empty()
            && (self.kind == "Aborted" || SIGNALS.iter().any(|s| s.starts_with(&self.kind)))
    }

    pub(super) fn take(&mut self, line: &Line<'_>) -> Step {
        let trimmed = line.body.trim();
        if let Some((number, frame)) = stack_line(trimmed) {
            if number == 0 {
                self.stacks += 1;
                if self.stacks == 1 && self.kind.contains("Sanitizer") && self.shape == Shape::Stack {
                    // The place is the stack's first frame, too.
                    self.frames.clear();
                }
            }
            if self.stacks <= 1 && self.frames.len() < 300 {
                self.frames.push(frame);
            }
            return Step::Took;
        }
        match self.shape {
            Shape::Report => {
                self.more += 1;
                let over = self.more > 400 || (begins(line) && !trimmed.starts_with("Sanitizer"));
                if over {
                    return Step::Over;
                }
                let last = trimmed.ends_with("ABORTING")
                    || (trimmed.starts_with("SUMMARY: ") && self.kind.starts_with("Leak"))
                    || (trimmed.starts_with("==================") && self.stacks > 0);
                if last { Step::Last } else { Step::Took }
            }
            Shape::What => match trimmed.strip_prefix("what():") {
                Some(what) => {
                    what.trim().clone_into(&mut self.message);
                    Step::Last
                }
                None => Step::Over,
            },
            Shape::Stack => {
                let more =
                    trimmed.starts_with("SUMMARY: ") || trimmed.starts_with("*** Check failure stack trace");
                let more = more || (trimmed.starts_with("terminate called ") && self.stacks == 0);
                if more || (self.stacks > 0 && trimmed.is_empty()) {
                    return Step::Took;
                }
                Step::Over
            }
        }
    }

    pub(super) fn finish(self) -> Option<Draft> {
        let mut draft = Draft::new(Language::Native, &self.kind, &self.message);
        draft.frames = self.frames.into_iter().rev().collect();
        Some(draft)
    }
}

/// A frame of `#0 0x55… in work /srv/a.c:5`, `#1 0x7f… (/lib/libc.so.6+0x27)`, `#0  work (x=1) at a.c:5` or
/// `@     0x55… work`, and its number.
fn stack_line(trimmed: &str) -> Option<(u32, Frame)> {
    if let Some(rest) = trimmed.strip_prefix("@ ") {
        let (address, function) = rest.trim_start().split_once(' ')?;
        let number = u32::from(!address.starts_with("0x"));
        return address.starts_with("0x").then(|| (number + 1, Frame::new(without_arguments(function), "")));
    }
    let rest = trimmed.strip_prefix('#')?;
    let (number, rest) = rest.split_once(' ')?;
    let number: u32 = number.parse().ok()?;
    let rest = rest.trim_start();
    let named = match rest.split_once(" in ") {
        Some((address, named)) if address.starts_with("0x") => named,
        _ if rest.starts_with("0x") => {
            // Only the library is known.
            let library = rest.split_once('(').map_or("", |(_, l)| l.split("+0x").next().unwrap_or(l));
            return Some((number, Frame::new("?", library)));
        }
        _ => rest,
    };
    if let Some((function, place)) = named.rsplit_once(" at ") {
        return Some((number, Frame::new(without_arguments(function), file_of(place).unwrap_or(place))));
    }
    if let Some((function, library)) = named.rsplit_once(" (") {
        let library = library.split(['+', ')']).next().unwrap_or(library);
        // `(BuildId: …)` stands after the library.
        if library.starts_with("BuildId") {
            let (function, library) = function.rsplit_once(" (").unwrap_or((function, ""));
            let library = library.split(['+', ')']).next().unwrap_or(library);
            return Some((number, Frame::new(without_arguments(function), library)));
        }
        return Some((number, Frame::new(without_arguments(function), library)));
    }
    let (function, place) = named.rsplit_once(' ').unwrap_or((named, ""));
    Some((number, Frame::new(without_arguments(function), file_of(place).unwrap_or(place))))
}

/// The file of `/srv/a.c:5:7`.
fn file_of(place: &str) -> Option<&str> {
    let file = place.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':');
    (file.len() < place.len() && !file.is_empty() && file.len() < 1000 && !file.contains(' ')).then_some(file)
}

/// `work` of `int work(int)` and `work(int, char const*)`.
fn without_arguments(function: &str) -> &str {
    let name = match function.find('(') {
        Some(0) | None => function,
        Some(at) => function.get(..at).unwrap_or(function),
    };
    let name = name.trim();
    // A return type is no part of the name; `operator new` has no type before it.
    if name.starts_with("operator ") { name } else { name.rsplit(' ').next().unwrap_or(name) }
}
