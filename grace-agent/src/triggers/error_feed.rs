//! `error_feed`: the same error keeps coming back.
//!
//! Sees `ErrorSeen`, counted by signature, and `ErrorReported`, which it parses the same way. Fires when one signature
//! came `count` times within `window`; clears when it stayed away for a window in which its source was read and its
//! process ran: silence of what is dead is no recovery. Remedy: a task, with the first and the last trace.

mod kept;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use kept::Kept;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::faults;
use crate::firing::{Finding, Route, Subject, Verdict};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "error_feed",
    summary: "the same error keeps coming back",
    help: "Reads what declared processes write (their `logs`, or their captured stdout and stderr), the kernel's messages, \
           the journal of systemd where there is one, and what applications report. Tracebacks, panics and stack traces of \
           Python, Rust, Go, Java, Node.js, C and C++ (sanitizers, glibc, assertions), CUDA and NCCL, and lines of level \
           ERROR become signatures: the exception's type, the program's own frames without line numbers, and the message \
           without what varies (numbers, addresses, quoted values). Fires when one signature came `count` times within \
           `window` (`error_count` and `error_window` of a [[process]] for its own), and files one task for it with the \
           first and the last trace. Clears when it did not come for `window` while its source was read and its process \
           ran; what stopped or is not read any more is not taken for repaired.",
    subjects: "errors, by signature",
    remedy: "file a task with the first and the last trace",
    needs: "log files or captured output of a [[process]]; /dev/kmsg (root) for the kernel's; journalctl for units",
    evidence: &["logs", "errors", "kmsg", "journald"],
    route: Route::CodingAgent,
};

/// Signatures that are remembered; the one not seen for longest goes first.
const SIGNATURES: usize = 1024;
/// Firings that hold at a time; what comes beyond is counted.
const HOLDING: usize = 100;
/// Parts into which a window is cut for counting.
const SLICES: u64 = 60;
/// Lines of a trace that go into the evidence, and characters of each and of a summary's parts.
const TRACE_LINES: usize = 20;
const TRACE_LINE: usize = 200;
const WORDS: usize = 120;

/// The trigger.
pub struct ErrorFeed {
    settings: config::ErrorFeed,
    /// Of which boot the times are.
    boot_id: String,
    errors: BTreeMap<String, Known>,
    /// By when they were seen last, for the oldest to go.
    by_age: BTreeSet<(Timestamp, String)>,
    /// Those that hold: every event looks at these alone.
    holding: BTreeSet<String>,
    sources: BTreeMap<(String, Option<String>), Source>,
    /// Declared processes and since when they run; none: they do not.
    processes: BTreeMap<String, Option<Timestamp>>,
    /// Signatures that were forgotten or not told for want of room, and when that was said.
    overflow: u64,
    overflow_told: Option<Timestamp>,
}

/// A source of errors.
struct Source {
    /// Since when it is read; none: it is not.
    works: Option<Timestamp>,
    count: Option<u32>,
    window: Option<Duration>,
}

/// An error that was seen.
struct Known {
    /// What it is: of the last one.
    last: Seen,
    first_trace: Vec<String>,
    first: Timestamp,
    at: Timestamp,
    /// How often, by the begin of a slice of the window.
    slices: VecDeque<(Timestamp, u64)>,
    /// Since when it is said that it holds.
    holds: Option<Timestamp>,
    /// Said again at this many.
    again: u64,
    /// How often since it holds.
    total: u64,
}

/// An error as it was told last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Seen {
    language: String,
    kind: String,
    message: String,
    frames: Vec<String>,
    source: String,
    process: Option<String>,
    trace: Vec<String>,
}

impl ErrorFeed {
    /// Without errors.
    #[must_use]
    pub fn new(settings: config::ErrorFeed) -> Self {
        Self {
            settings,
            boot_id: String::new(),
            errors: BTreeMap::new(),
            by_age: BTreeSet::new(),
            holding: BTreeSet::new(),
            sources: BTreeMap::new(),
            processes: BTreeMap::new(),
            overflow: 0,
            overflow_told: None,
        }
    }

    /// Which source an error was seen in: all that a process writes is one.
    fn source_of(seen: &Seen) -> (String, Option<String>) {
        match seen.source.as_str() {
            "stdout" | "stderr" | "log" => ("logs".to_owned(), seen.process.clone()),
            other => (other.to_owned(), None),
        }
    }

    fn limits(&self, seen: &Seen) -> (u64, Duration) {
        let source = self.sources.get(&Self::source_of(seen));
        let count = source.and_then(|s| s.count).unwrap_or(self.settings.count);
        let window = source.and_then(|s| s.window).unwrap_or(self.settings.window.get());
        (u64::from(count.max(1)), window.max(Duration::from_secs(1)))
    }

    /// Since when the source of `seen` is read and its process runs; none where one of them does not.
    fn alive(&self, seen: &Seen) -> Option<Timestamp> {
        let key = Self::source_of(seen);
        let read = self.sources.get(&key)?.works?;
        match key.1.as_ref() {
            Some(process) => self.processes.get(process).copied().flatten().map(|runs| runs.max(read)),
            None => Some(read),
        }
    }

    /// When the error will have stayed away for long enough.
    fn clears_at(&self, known: &Known) -> Option<Timestamp> {
        let (_, window) = self.limits(&known.last);
        known.holds?;
        Some(known.at.max(self.alive(&known.last)?).after(window))
    }

    fn seen(&mut self, signature: &str, seen: Seen, count: u64, now: Timestamp, out: &mut Vec<Verdict>) {
        // What a process wrote that is not owned any more is nobody's concern.
        if let (_, Some(process)) = Self::source_of(&seen)
            && !self.processes.contains_key(&process)
        {
            return;
        }
        let (limit, window) = self.limits(&seen);
        if !self.errors.contains_key(signature) && self.errors.len() >= SIGNATURES {
            self.forget_one();
        }
        let known = self.errors.entry(signature.to_owned()).or_insert_with(|| Known {
            last: Seen::default(),
            first_trace: seen.trace.clone(),
            first: now,
            at: now,
            slices: VecDeque::new(),
            holds: None,
            again: 0,
            total: 0,
        });
        self.by_age.remove(&(known.at, signature.to_owned()));
        self.by_age.insert((now, signature.to_owned()));
        known.at = now;
        // A trace that was told a moment ago is not told again.
        let trace = if seen.trace.is_empty() { std::mem::take(&mut known.last.trace) } else { seen.trace };
        known.last = Seen { trace, ..seen };
        let slice = Duration::from_nanos(u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) / SLICES);
        while known.slices.front().is_some_and(|(at, _)| at.after(window) <= now) {
            known.slices.pop_front();
        }
        if known.slices.is_empty() && known.holds.is_none() {
            known.first = now;
            known.first_trace.clone_from(&known.last.trace);
        }
        match known.slices.back_mut().filter(|(at, _)| now.since(*at) < slice) {
            Some((_, n)) => *n = n.saturating_add(count),
            None => known.slices.push_back((now, count)),
        }
        known.total = known.total.saturating_add(count);
        let within = known.slices.iter().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n));
        let fires = match known.holds {
            None => within >= limit,
            Some(_) => known.total >= known.again,
        };
        if !fires {
            return;
        }
        if known.holds.is_none() {
            if self.holding.len() >= HOLDING {
                self.overflowed(now, out);
                return;
            }
            known.holds = Some(known.first);
            self.holding.insert(signature.to_owned());
            known.total = within;
        }
        // Said again when there are ten times as many.
        known.again = known.total.saturating_mul(10);
        let finding = known.finding(signature, within, limit, window, now);
        out.push(Verdict::Holds(Box::new(finding)));
    }

    /// Makes room: what was not seen for longest goes, of those that do not hold.
    fn forget_one(&mut self) {
        let oldest = self
            .by_age
            .iter()
            .find(|(_, signature)| self.errors.get(signature).is_none_or(|k| k.holds.is_none()))
            .cloned();
        if let Some(key) = oldest {
            self.by_age.remove(&key);
            self.errors.remove(&key.1);
            self.overflow = self.overflow.saturating_add(1);
        }
    }

    /// Says that there are more errors than can be told apart, once in a window.
    fn overflowed(&mut self, now: Timestamp, out: &mut Vec<Verdict>) {
        self.overflow = self.overflow.saturating_add(1);
        let window = self.settings.window.get();
        if self.overflow_told.is_some_and(|at| now < at.after(window)) {
            return;
        }
        self.overflow_told = Some(now);
        out.push(Verdict::Happened(Box::new(Finding {
            subject: Subject::Trigger(SPEC.name.to_owned()),
            since: now,
            summary: format!(
                "more than {HOLDING} different errors keep coming back; further ones are only counted"
            ),
            measured: format!("{} passed over", self.overflow),
            threshold: format!("{HOLDING} at a time, {SIGNATURES} remembered"),
            baseline: "none".into(),
            writer: None,
            noticed_by: None,
            evidence: Vec::new(),
            remedy: Vec::new(),
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        })));
    }

    /// Clears what stayed away for long enough.
    fn clear_due(&mut self, now: Timestamp, out: &mut Vec<Verdict>) {
        let is_due = |signature: &&String| {
            let known = self.errors.get(*signature);
            known.and_then(|known| self.clears_at(known)).is_some_and(|at| at <= now)
        };
        let due: Vec<String> = self.holding.iter().filter(is_due).cloned().collect();
        for signature in due {
            let Some(window) = self.errors.get(&signature).map(|k| self.limits(&k.last).1) else { continue };
            self.holding.remove(&signature);
            if let Some(known) = self.errors.get_mut(&signature) {
                known.rest();
                let how = format!(
                    "did not come back for {}{}",
                    humantime::format_duration(window),
                    match (known.last.process.as_ref(), known.last.source.as_str()) {
                        (_, "api") => ", as far as whoever reported it still reports",
                        (Some(_), _) => " while its process ran",
                        (None, _) => " while its source was read",
                    }
                );
                out.push(Verdict::Cleared(Subject::Error(signature), how));
            }
        }
    }

    /// The process `name` is not owned any more: nobody will see its errors.
    fn forget_process(&mut self, name: &str, out: &mut Vec<Verdict>) {
        self.processes.remove(name);
        self.sources.retain(|(_, process), _| process.as_deref() != Some(name));
        for (signature, known) in &mut self.errors {
            if known.holds.is_some()
                && Self::source_of(&known.last) == ("logs".to_owned(), Some(name.to_owned()))
            {
                known.rest();
                self.holding.remove(signature);
                out.push(Verdict::Cleared(
                    Subject::Error(signature.clone()),
                    "its process is not owned any more".into(),
                ));
            }
        }
    }
}

impl Known {
    fn rest(&mut self) {
        self.holds = None;
        self.slices.clear();
        self.total = 0;
    }

    fn finding(&self, signature: &str, within: u64, limit: u64, window: Duration, now: Timestamp) -> Finding {
        let seen = &self.last;
        let place = seen.frames.last().map(|f| format!(" in {}", shown(f, WORDS))).unwrap_or_default();
        let message = match seen.message.trim() {
            "" => String::new(),
            message => format!(": {}", shown(message, WORDS)),
        };
        let of = match &seen.process {
            Some(process) => format!("{} of {}", seen.source, shown(process, WORDS)),
            None => seen.source.clone(),
        };
        let took = Duration::from_secs(now.since(self.first).as_secs().max(1));
        let mut evidence = vec![format!("signature {signature}, {} error, seen in {of}", seen.language)];
        if !seen.frames.is_empty() {
            evidence.push(format!(
                "frames, outermost first (untrusted): {}",
                seen.frames.iter().map(|f| shown(f, WORDS)).collect::<Vec<_>>().join(" → ")
            ));
        }
        let mut trace = |name: &str, lines: &[String]| {
            if lines.is_empty() {
                return;
            }
            evidence.push(format!("{name} (untrusted):"));
            let skipped = lines.len().saturating_sub(TRACE_LINES);
            if skipped > 0 {
                evidence.push(format!("  … {skipped} lines"));
            }
            evidence.extend(lines.iter().skip(skipped).map(|line| format!("  {}", shown(line, TRACE_LINE))));
        };
        trace("last trace", &seen.trace);
        if self.first_trace != seen.trace {
            trace("first trace", &self.first_trace);
        }
        Finding {
            subject: Subject::Error(signature.to_owned()),
            since: self.first,
            summary: format!("{}{message}{place}: {within} times", shown(&seen.kind, WORDS)),
            measured: format!("{within} times in {}", humantime::format_duration(took)),
            threshold: format!("{limit} times in {}", humantime::format_duration(window)),
            baseline: "none".into(),
            writer: None,
            noticed_by: None,
            evidence,
            remedy: vec![Action::FileTask {
                title: format!(
                    "Find the cause of an error that keeps coming back, and fix it ({})",
                    language(&seen.language)
                ),
                acceptance: format!(
                    "the error did not come back for {} while its source was read, and error_feed stays clear",
                    humantime::format_duration(window)
                ),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        }
    }
}

impl Trigger for ErrorFeed {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.errors.len()
    }

    fn wake(&self) -> Option<Timestamp> {
        self.holding.iter().filter_map(|s| self.clears_at(self.errors.get(s)?)).min()
    }

    fn learned(&self) -> Option<serde_json::Value> {
        let newest = self.by_age.iter().rev();
        let known =
            newest.filter_map(|(_, signature)| Some((signature.as_str(), self.errors.get(signature)?)));
        Kept::of(&self.boot_id, known).ok()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let now = event.at;
        let mut out = Vec::new();
        match &event.kind {
            Kind::ErrorSeen { signature, language, kind, message, frames, source, process, trace, count } => {
                let seen = Seen {
                    language: language.clone(),
                    kind: kind.clone(),
                    message: message.clone(),
                    frames: frames.clone(),
                    source: source.clone(),
                    process: process.clone(),
                    trace: trace.clone(),
                };
                self.seen(signature, seen, *count, now, &mut out);
            }
            Kind::ErrorReported { kind, trace, source, count } => {
                let fault = faults::of_report(kind, trace.as_deref());
                let signature = fault.signature_in(Some(source));
                let seen = Seen {
                    language: fault.language.name().to_owned(),
                    kind: fault.kind,
                    message: fault.message,
                    frames: fault.frames,
                    source: "api".to_owned(),
                    process: Some(source.clone()),
                    trace: fault.trace,
                };
                self.seen(&signature, seen, *count, now, &mut out);
            }
            Kind::Start { boot_id, .. } => self.boot_id.clone_from(boot_id),
            Kind::Learned { trigger, state } if trigger == SPEC.name => {
                for (signature, known) in Kept::read(state, &self.boot_id) {
                    // What came since this agent runs is newer.
                    if !self.errors.contains_key(&signature) && self.errors.len() < SIGNATURES {
                        self.by_age.insert((known.at, signature.clone()));
                        self.errors.insert(signature, known);
                    }
                }
            }
            Kind::ErrorSource { source, process, works, count, window_ms } => {
                let window = window_ms.map(Duration::from_millis);
                let key = (source.clone(), process.clone());
                let since = self.sources.get(&key).and_then(|s| s.works).unwrap_or(now);
                let works = works.then_some(since);
                self.sources.insert(key, Source { works, count: *count, window });
            }
            Kind::ProcessDeclared { name, pid, .. } => {
                self.processes.entry(name.clone()).or_insert(pid.map(|_| now));
            }
            Kind::ProcessStarted { name, .. } => {
                self.processes.insert(name.clone(), Some(now));
            }
            Kind::ProcessExited { name, .. } => {
                self.processes.insert(name.clone(), None);
            }
            Kind::ProcessForgotten { name } => self.forget_process(name, &mut out),
            _ => {}
        }
        // Any event tells the time.
        self.clear_due(now, &mut out);
        out
    }
}

/// A language as people write it; only words of Grace's own.
fn language(name: &str) -> &'static str {
    match name {
        "python" => "Python",
        "rust" => "Rust",
        "go" => "Go",
        "java" => "Java",
        "node" => "Node.js",
        "native" => "C or C++",
        "cuda" => "CUDA or NCCL",
        "kernel" => "kernel message",
        _ => "error line",
    }
}

/// Hostile text, escaped and cut. Quotes do no harm here and stay as they are.
fn shown(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == max {
            out.push('…');
            break;
        }
        match c {
            '\'' | '"' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_000_000_000_000).after(Duration::from_secs(seconds))
    }

    fn feed() -> ErrorFeed {
        ErrorFeed::new(config::ErrorFeed::default())
    }

    fn seen(signature: &str, process: Option<&str>, count: u64) -> Kind {
        Kind::ErrorSeen {
            signature: signature.into(),
            language: "python".into(),
            kind: "ValueError".into(),
            message: "bad \u{1b}[31m value".into(),
            frames: vec!["work (worker.py)".into()],
            source: if process.is_some() { "stderr".into() } else { "kmsg".into() },
            process: process.map(str::to_owned),
            trace: vec!["Traceback".into()],
            count,
        }
    }

    fn source(process: Option<&str>, works: bool) -> Kind {
        let source = if process.is_some() { "logs" } else { "kmsg" };
        let process = process.map(str::to_owned);
        Kind::ErrorSource { source: source.into(), process, works, count: None, window_ms: None }
    }

    /// What `stream` gives: `holds X`, `cleared X`, `happened`.
    fn run(feed: &mut ErrorFeed, stream: impl IntoIterator<Item = (u64, Kind)>) -> Vec<String> {
        let mut out = Vec::new();
        for (second, kind) in stream {
            for verdict in feed.on_event(&Event { at: at(second), kind }) {
                out.push(match verdict {
                    Verdict::Holds(f) => format!("{second} holds {}", f.subject),
                    Verdict::Cleared(subject, _) => format!("{second} cleared {subject}"),
                    Verdict::Happened(_) => format!("{second} happened"),
                    Verdict::Wants(..) => format!("{second} wants"),
                });
            }
        }
        out
    }

    #[test]
    fn five_within_the_window_fire_and_four_do_not() {
        let five = (0..5).map(|i| (i, seen("a", None, 1)));
        assert_eq!(run(&mut feed(), five), ["4 holds error a"]);
        assert!(run(&mut feed(), (0..4).map(|i| (i, seen("a", None, 1)))).is_empty());
        assert!(
            run(&mut feed(), (0..20).map(|i| (i * 151, seen("a", None, 1)))).is_empty(),
            "four in any window"
        );
        assert_eq!(run(&mut feed(), [(0, seen("a", None, 5))]).len(), 1);
        assert!(
            run(&mut feed(), (0..9).map(|i| (i, seen(&format!("e{i}"), None, 1)))).is_empty(),
            "different ones"
        );
    }

    #[test]
    fn it_is_said_again_only_when_there_are_ten_times_as_many() {
        let mut feed = feed();
        let told = run(&mut feed, (0..1000).map(|i| (i, seen("a", None, 1))));
        assert_eq!(told.len(), 3, "at 5, 50 and 500: {told:?}");
    }

    #[test]
    fn silence_of_what_is_dead_is_no_recovery() {
        let process = |kind: fn(String) -> Kind| kind("p".into());
        let started = || process(|name| Kind::ProcessStarted { name, pid: 1 });
        let exited = || {
            process(|name| Kind::ProcessExited {
                name,
                pid: 1,
                exit: crate::event::Exit::default(),
                stderr_tail: vec![],
            })
        };
        let mut feed = feed();
        let stream = [
            (0, source(Some("p"), true)),
            (0, started()),
            (1, seen("a", Some("p"), 5)),
            (2, exited()),
            (2000, Kind::Tick),
            (3000, started()),
            (3599, Kind::Tick),
            (3601, Kind::Tick),
        ];
        assert_eq!(run(&mut feed, stream), ["1 holds error a", "3601 cleared error a"]);
        // A source that is not read says nothing either.
        let mut feed = super::ErrorFeed::new(config::ErrorFeed::default());
        let stream = [
            (0, seen("a", None, 5)),
            (1, source(None, false)),
            (5000, Kind::Tick),
            (5000, source(None, true)),
            (5601, Kind::Tick),
        ];
        assert_eq!(run(&mut feed, stream), ["0 holds error a", "5601 cleared error a"]);
    }

    #[test]
    fn a_process_has_limits_of_its_own() {
        let mut feed = feed();
        let own = Kind::ErrorSource {
            source: "logs".into(),
            process: Some("p".into()),
            works: true,
            count: Some(2),
            window_ms: Some(3000),
        };
        let stream = [
            (0, own),
            (0, Kind::ProcessStarted { name: "p".into(), pid: 1 }),
            (1, seen("a", Some("p"), 1)),
            (2, seen("a", Some("p"), 1)),
            (6, Kind::Tick),
        ];
        assert_eq!(run(&mut feed, stream), ["2 holds error a", "6 cleared error a"]);
    }

    #[test]
    fn a_restart_of_the_agent_loses_no_count_and_another_boot_begins_anew() {
        let start = |boot: &str| Kind::Start { boot_id: boot.into(), version: "1".into(), next_firing: 1 };
        let mut before = feed();
        let stream = [(0, start("b1")), (1, seen("a", None, 2)), (2, seen("a", None, 2))];
        assert!(run(&mut before, stream).is_empty());
        let state = before.learned().unwrap();
        let learned = || Kind::Learned { trigger: SPEC.name.into(), state: state.clone() };
        let mut after = feed();
        let stream = [(3, start("b1")), (3, learned()), (4, Kind::Tick), (5, seen("a", None, 1))];
        assert_eq!(run(&mut after, stream), ["5 holds error a"]);
        let mut after = feed();
        let stream = [(3, start("b1")), (3, learned()), (700, seen("a", None, 1))];
        assert!(run(&mut after, stream).is_empty(), "out of the window");
        let mut after = feed();
        assert!(run(&mut after, [(3, start("b2")), (3, learned()), (5, seen("a", None, 4))]).is_empty());
        let broken = Kind::Learned { trigger: SPEC.name.into(), state: serde_json::json!({"version": 1}) };
        assert!(run(&mut feed(), [(0, start("b1")), (1, broken), (2, seen("a", None, 4))]).is_empty());
    }

    #[test]
    fn what_is_reported_is_the_same_as_what_is_written() {
        let trace = "Traceback (most recent call last):\n  File \"/srv/a.py\", line 3, in work\n    x\nValueError: bad 7\n";
        let report = |i: u64| Kind::ErrorReported {
            kind: "ValueError".into(),
            trace: Some(trace.replace('7', &i.to_string())),
            source: "app".into(),
            count: 1,
        };
        assert_eq!(run(&mut feed(), (0..5).map(|i| (i, report(i)))).len(), 1);
    }

    #[test]
    fn a_million_errors_are_bounded() {
        let mut feed = feed();
        let mut happened = 0;
        for i in 0..50_000_u64 {
            let kind = seen(&format!("{i:016x}"), None, 9);
            let out = feed.on_event(&Event { at: at(i / 5000), kind });
            happened += out.iter().filter(|v| matches!(v, Verdict::Happened(_))).count();
        }
        assert_eq!((feed.errors.len(), feed.by_age.len(), happened), (SIGNATURES, SIGNATURES, 1));
    }

    #[test]
    fn hostile_text_is_escaped_and_never_a_title() {
        let verdicts = feed().on_event(&Event { at: at(0), kind: seen("a", None, 5) });
        let Some(Verdict::Holds(finding)) = verdicts.first() else { panic!("{verdicts:?}") };
        let all = format!("{}{:?}", finding.summary, finding.evidence.join(""));
        assert!(!all.contains('\u{1b}'), "{all}");
        assert!(finding.remedy.iter().all(|a| !format!("{a:?}").contains("ValueError")));
    }
}
