//! Faults: from lines of output to errors that can be told apart and counted. Pure: no file, clock or process.
//!
//! [`Lines`] makes lines of bytes; an [`Assembler`] per stream puts the lines of a trace together, one file per
//! language; what comes out is a [`Fault`]. Its signature is the same whenever the same fault comes back, whatever
//! pids, addresses, line numbers and values it has this time: a hash over the exception's type, the program's own
//! frames without line numbers, and the message with its variable parts taken out.
//!
//! All of it reads hostile text: each line is looked at a bounded number of times, nothing is looked for backwards, and
//! what is kept of a trace is bounded in lines, bytes and time.

mod assembler;
mod cuda;
mod frame;
mod go;
mod java;
mod kernel;
mod lines;
mod native;
mod node;
mod plain;
mod prefix;
mod python;
mod rust;
mod template;

use sha2::{Digest as _, Sha256};

pub use assembler::Assembler;
pub use frame::Frame;
pub use lines::{LINE_MAX, Lines};
pub use template::template;

/// Bytes of a kind and of a message that are kept.
const KIND_MAX: usize = 120;
const MESSAGE_MAX: usize = 500;
/// Frames that tell one fault from another: the innermost ones.
const FRAMES_MAX: usize = 12;
/// Causes that do.
const CAUSES_MAX: usize = 6;

/// Who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// A Python traceback.
    Python,
    /// A Rust panic.
    Rust,
    /// A Go panic or fatal error.
    Go,
    /// A Java exception, or the virtual machine's own end.
    Java,
    /// A V8 error.
    Node,
    /// C and C++: sanitizers, glibc, the C++ runtime, assertions, fatal signals.
    Native,
    /// CUDA, cuDNN, NCCL.
    Cuda,
    /// The kernel's own messages.
    Kernel,
    /// A line that says it is an error, without a trace.
    Plain,
}

impl Language {
    /// As events and people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
            Self::Go => "go",
            Self::Java => "java",
            Self::Node => "node",
            Self::Native => "native",
            Self::Cuda => "cuda",
            Self::Kernel => "kernel",
            Self::Plain => "plain",
        }
    }
}

/// One error as it was written once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Who wrote it.
    pub language: Language,
    /// The exception's type, or what takes its place. Hostile text, capped.
    pub kind: String,
    /// Its message, first line. Hostile text, capped.
    pub message: String,
    /// The message without its variable parts.
    pub template: String,
    /// The program's own frames, outermost first, without line numbers: `function (file)`. Where there are none, the
    /// innermost ones of libraries.
    pub frames: Vec<String>,
    /// It has frames of its own or a place in a file: it is the same fault in whatever process it comes up.
    pub placed: bool,
    /// What it was written as: bounded, hostile.
    pub trace: Vec<String>,
    /// 16 hex digits.
    pub signature: String,
}

/// What a parser found, before frames and message are made comparable.
#[derive(Debug, Clone)]
struct Draft {
    language: Language,
    kind: String,
    message: String,
    /// Outermost first.
    frames: Vec<Frame>,
    /// What led to it, or what it is made of.
    causes: Vec<Cause>,
    /// The statement that raised it, where the trace shows it.
    source: String,
}

/// What led to a fault.
#[derive(Debug, Clone, Default)]
struct Cause {
    kind: String,
    message: String,
    frames: Vec<Frame>,
    source: String,
}

impl Draft {
    fn new(language: Language, kind: &str, message: &str) -> Self {
        Self {
            language,
            kind: kind.to_owned(),
            message: message.to_owned(),
            frames: Vec::new(),
            causes: Vec::new(),
            source: String::new(),
        }
    }

    fn finish(self, trace: Vec<String>) -> Fault {
        let kind = cap(self.kind.trim(), KIND_MAX);
        let message = cap(self.message.trim(), MESSAGE_MAX);
        let template = template::words_of(&shape(&kind, &message), &self.source);
        let deep = matches!(kind.as_str(), "RecursionError" | "java.lang.StackOverflowError")
            || message.contains("call stack size exceeded")
            || message.contains("stack overflow");
        let (frames, placed) = frame::own(&self.frames, FRAMES_MAX, deep);
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update(text.as_bytes());
            hash.update([0]);
        };
        part(&kind);
        part(&template);
        frames.iter().for_each(|f| part(f));
        for cause in self.causes.iter().take(CAUSES_MAX) {
            part("cause");
            part(cause.kind.trim());
            part(&template::words_of(&shape(&cause.kind, &cause.message), &cause.source));
            let (frames, _) = frame::own(&cause.frames, 3, false);
            frames.iter().for_each(|f| part(f));
        }
        let signature: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        Fault { language: self.language, kind, message, template, frames, placed, trace, signature }
    }
}

impl Fault {
    /// The signature of this fault in the process or unit `of`. Where nothing says in which file it is (`free(): invalid
    /// pointer`), the same words of two programs are two faults.
    #[must_use]
    pub fn signature_in(&self, of: Option<&str>) -> String {
        match of.filter(|_| !self.placed && self.language != Language::Kernel) {
            None => self.signature.clone(),
            Some(of) => {
                let hash = Sha256::digest(format!("{}\0{}", self.signature, template::digits_out(of)));
                hash.iter().take(8).map(|b| format!("{b:02x}")).collect()
            }
        }
    }
}

/// The template of a message; of those whose length depends on the machine's state only what they begin with.
fn shape(kind: &str, message: &str) -> String {
    for known in [
        "CUDA out of memory",
        "out of memory",
        "NCCL error in",
        "Watchdog caught collective operation timeout",
    ] {
        if let Some(at) = message.find(known) {
            let until = message.get(..at + known.len()).unwrap_or(message);
            return template(kind, until);
        }
    }
    template(kind, message)
}

/// The error that an application reported by itself: its kind and, where it sent one, its trace or message.
#[must_use]
pub fn of_report(kind: &str, trace: Option<&str>) -> Fault {
    let trace = trace.unwrap_or_default();
    let mut found = Vec::new();
    let mut assembler = Assembler::default();
    let mut lines = Lines::default();
    let mut kept = Vec::new();
    let mut each = |line: &str, found: &mut Vec<Fault>| {
        if kept.len() < assembler::TRACE_LINES {
            kept.push(cap(line, assembler::TRACE_LINE));
        }
        assembler.push(line, crate::faults::assembler::NO_TIME, found);
    };
    lines.push(trace.as_bytes(), |line| each(line, &mut found));
    lines.finish(|line| each(line, &mut found));
    assembler.finish(&mut found);
    // A report is one error; of several traces in it the last one is what it was reported for.
    let with_frames = found.iter().rposition(|f| !f.frames.is_empty()).or(found.len().checked_sub(1));
    if let Some(fault) = with_frames.and_then(|at| found.into_iter().nth(at))
        && (fault.language != Language::Plain || fault.kind == kind)
    {
        return fault;
    }
    let message = kept.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
    let message =
        message.strip_prefix(kind).and_then(|m| m.strip_prefix(": ")).unwrap_or(&message).to_owned();
    let mut draft = Draft::new(Language::Plain, kind, &message);
    draft.frames = python::frames_in(&kept);
    draft.finish(kept)
}

/// `text` cut to at most `max` bytes.
fn cap(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let cut = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..cut).unwrap_or_default().to_owned()
}
