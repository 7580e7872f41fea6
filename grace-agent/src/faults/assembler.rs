//! Puts the lines of traces together: lines of one stream in, faults out.
//!
//! Writers that a prefix tells apart (a pid, a rank) have a lane each. In a lane at most one trace is open; a parser
//! says of each line whether it belongs to it. Lines of somebody else in between are let pass, a few of them. What is
//! open ends by its own last line, by the begin of another, by silence ([`Assembler::rest`]) or by a bound.

use std::time::Duration;

use super::prefix::{self, Line};
use super::{Draft, Fault, cap, cuda, go, java, kernel, native, node, plain, python, rust};
use crate::event::Timestamp;

/// Lines of a trace that are kept, and bytes of each; those in the middle of a long one go.
pub(super) const TRACE_LINES: usize = 48;
pub(super) const TRACE_LINE: usize = 240;
/// Lines that a trace may have before it is ended by force.
const OPEN_LINES: usize = 2000;
/// Bytes that a trace may have before it is ended by force.
const OPEN_BYTES: usize = 256 << 10;
/// A trace that has been open for so long is ended.
const OPEN_FOR: Duration = Duration::from_secs(20);
/// Nothing came for so long: nothing more will.
const QUIET: Duration = Duration::from_millis(700);
/// Lines of others between those of one trace.
const STRANGERS: u32 = 12;
/// Writers of one stream that are told apart.
const LANES: usize = 32;
/// For those who have no clock: nothing ends by time.
pub(super) const NO_TIME: Timestamp = Timestamp(0);

/// What a parser says about a line.
pub(super) enum Step {
    /// It belongs to the trace.
    Took,
    /// It is the last one of the trace.
    Last,
    /// It is somebody else's.
    Stranger,
    /// The trace ended before it.
    Over,
    /// It belongs to the trace, and shows what the trace really is.
    Became(Parser),
}

/// A trace under way, by its language.
pub(super) enum Parser {
    Python(python::Trace),
    Rust(rust::Trace),
    Go(go::Trace),
    Java(java::Trace),
    Node(node::Trace),
    Native(native::Trace),
    Plain(plain::Trace),
    /// A line that is all there is.
    Line(Draft),
}

impl Parser {
    /// What begins with `line`.
    fn begin(line: &Line<'_>) -> Option<Self> {
        Self::begin_with(line.body, line)
            .or_else(|| if line.stamped { Self::begin_with(line.raw, line) } else { None })
            .or_else(|| plain::begin(line).map(Self::Plain))
    }

    fn begin_with(text: &str, line: &Line<'_>) -> Option<Self> {
        if text.len() < 6
            || !text.is_ascii() && text.chars().filter(|c| c.is_control()).count() > text.len() / 8
        {
            return None;
        }
        python::begin(text)
            .map(Self::Python)
            .or_else(|| rust::begin(text).map(Self::Rust))
            .or_else(|| go::begin(text).map(Self::Go))
            .or_else(|| java::begin(text).map(Self::Java))
            .or_else(|| cuda::line(text).map(Self::Line))
            .or_else(|| native::begin(text).map(Self::Native))
            .or_else(|| node::begin(text, line.stamped).map(Self::Node))
    }

    fn take(&mut self, line: &Line<'_>) -> Step {
        match self {
            Self::Python(trace) => trace.take(line),
            Self::Rust(trace) => trace.take(line),
            Self::Go(trace) => trace.take(line),
            Self::Java(trace) => trace.take(line),
            Self::Node(trace) => trace.take(line),
            Self::Native(trace) => trace.take(line),
            Self::Plain(trace) => trace.take(line),
            Self::Line(_) => Step::Over,
        }
    }

    fn finish(self) -> Option<Draft> {
        match self {
            Self::Python(trace) => trace.finish(),
            Self::Rust(trace) => trace.finish(),
            Self::Go(trace) => trace.finish(),
            Self::Java(trace) => trace.finish(),
            Self::Node(trace) => trace.finish(),
            Self::Native(trace) => trace.finish(),
            Self::Plain(trace) => trace.finish(),
            Self::Line(draft) => Some(draft),
        }
    }
}

/// Whether a trace of any kind begins with `line`, one with frames: what ends another one.
pub(super) fn begins(line: &Line<'_>) -> bool {
    Parser::begin_with(line.body, line).is_some()
}

struct Open {
    parser: Parser,
    trace: Vec<String>,
    lines: usize,
    bytes: usize,
    strangers: u32,
    stamped: bool,
    since: Timestamp,
    last: Timestamp,
}

impl Open {
    fn new(parser: Parser, at: Timestamp, stamped: bool) -> Self {
        Self { parser, trace: Vec::new(), lines: 0, bytes: 0, strangers: 0, stamped, since: at, last: at }
    }

    fn keep(&mut self, text: &str, at: Timestamp) {
        self.lines += 1;
        self.bytes = self.bytes.saturating_add(text.len());
        self.last = at;
        if self.trace.len() >= TRACE_LINES {
            // The first lines say how it came, the last ones what happened.
            let middle = TRACE_LINES / 2;
            self.trace.remove(middle);
            if let Some(gap) = self.trace.get_mut(middle) {
                "…".clone_into(gap);
            }
        }
        self.trace.push(cap(text, TRACE_LINE));
    }

    fn full(&self, at: Timestamp) -> bool {
        self.lines > OPEN_LINES || self.bytes > OPEN_BYTES || at.since(self.since) > OPEN_FOR
    }

    fn finish(self) -> Option<Fault> {
        let trace = self.trace;
        self.parser.finish().map(|draft| draft.finish(trace))
    }
}

#[derive(Default)]
struct Lane {
    id: u64,
    used: u64,
    open: Option<Open>,
    /// The line before ended a trace.
    ended: bool,
}

/// The assembler of one stream.
#[derive(Default)]
pub struct Assembler {
    lanes: Vec<Lane>,
    /// The lane in which a trace was open last.
    current: u64,
    turn: u64,
    kernel: bool,
}

impl Assembler {
    /// The one of the kernel's own messages: each is a line.
    #[must_use]
    pub fn of_kernel() -> Self {
        Self { kernel: true, ..Self::default() }
    }

    /// Takes the line that came at `at`; faults that are complete now are added to `out`.
    pub fn push(&mut self, raw: &str, at: Timestamp, out: &mut Vec<Fault>) {
        if self.kernel {
            out.extend(
                kernel::line(raw)
                    .or_else(|| cuda::line(raw))
                    .map(|draft| draft.finish(vec![cap(raw, TRACE_LINE)])),
            );
            return;
        }
        let mut line = prefix::split(raw);
        // What has no prefix of its own goes on with what was begun under one.
        if !line.stamped && line.lane == 0 && !self.lanes.iter().any(|l| l.id == 0 && l.open.is_some()) {
            let open = |l: &&Lane| l.id == self.current && l.open.is_some();
            line.lane = self.lanes.iter().find(open).map_or(0, |l| l.id);
        }
        let id = line.lane;
        let lane = self.lane(id, out);
        lane.take(&line, at, out);
        if lane.open.is_some() {
            self.current = id;
        }
    }

    /// Ends what has been silent for long enough at `now`.
    pub fn rest(&mut self, now: Timestamp, out: &mut Vec<Fault>) {
        for lane in &mut self.lanes {
            if lane.open.as_ref().is_some_and(|open| now.since(open.last) > QUIET || open.full(now)) {
                out.extend(lane.open.take().and_then(Open::finish));
            }
        }
    }

    /// Ends everything that is open.
    pub fn finish(&mut self, out: &mut Vec<Fault>) {
        out.extend(self.lanes.drain(..).filter_map(|lane| lane.open.and_then(Open::finish)));
    }

    /// Whether a trace is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lanes.iter().any(|lane| lane.open.is_some())
    }

    fn lane(&mut self, id: u64, out: &mut Vec<Fault>) -> &mut Lane {
        self.turn += 1;
        let turn = self.turn;
        let found = self.lanes.iter().position(|l| l.id == id);
        let at = found.unwrap_or_else(|| {
            if self.lanes.len() >= LANES {
                let oldest = self.lanes.iter().enumerate().min_by_key(|(_, l)| l.used).map_or(0, |(i, _)| i);
                let gone = self.lanes.swap_remove(oldest);
                out.extend(gone.open.and_then(Open::finish));
            }
            self.lanes.push(Lane { id, ..Lane::default() });
            self.lanes.len() - 1
        });
        let lane = &mut self.lanes[at];
        lane.used = turn;
        lane
    }
}

impl Lane {
    fn take(&mut self, line: &Line<'_>, at: Timestamp, out: &mut Vec<Fault>) {
        let mut after_one = std::mem::take(&mut self.ended);
        if let Some(mut open) = self.open.take() {
            after_one = true;
            match open.parser.take(line) {
                _ if open.full(at) => out.extend(open.finish()),
                Step::Took => {
                    open.keep(line.body, at);
                    self.open = Some(open);
                    return;
                }
                Step::Became(parser) => {
                    open.parser = parser;
                    open.keep(line.body, at);
                    self.open = Some(open);
                    return;
                }
                Step::Last => {
                    open.keep(line.body, at);
                    self.ended = true;
                    out.extend(open.finish());
                    return;
                }
                Step::Stranger if open.strangers < STRANGERS => {
                    open.strangers += 1;
                    // Whoever it is may have an error of its own: a line that is all there is.
                    if let Some(Parser::Line(draft)) = Parser::begin_with(line.body, line) {
                        out.push(draft.finish(vec![cap(line.body, TRACE_LINE)]));
                    }
                    self.open = Some(open);
                    return;
                }
                Step::Stranger => out.extend(open.finish()),
                Step::Over => {
                    // "ERROR it failed" right before the trace of the same failure is not a second error.
                    let told_by_trace = matches!(open.parser, Parser::Plain(ref p) if p.announces())
                        && begins(line)
                        && (open.stamped || !line.stamped);
                    if told_by_trace {
                        let mut begun = Parser::begin(line).map(|p| Open::new(p, at, open.stamped));
                        if let Some(begun) = &mut begun {
                            begun.trace = open.trace;
                            begun.keep(line.body, at);
                        }
                        self.open = begun;
                        return;
                    }
                    out.extend(open.finish());
                }
            }
        }
        match Parser::begin(line) {
            Some(Parser::Native(trace)) if after_one && trace.is_echo() => {}
            Some(Parser::Line(draft)) => out.push(draft.finish(vec![cap(line.body, TRACE_LINE)])),
            Some(parser) => {
                let mut open = Open::new(parser, at, line.stamped);
                open.keep(line.body, at);
                self.open = Some(open);
            }
            None => {}
        }
    }
}
