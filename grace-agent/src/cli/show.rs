//! What people see: lines, tables, the boot picture. All text from the host is escaped here, in one place.

use std::fmt::Write as _;
use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use super::ask::Failure;
use crate::api::view::{
    FiringView, Health, ProbeView, ProcessView, ScanItem, ScanState, ScanSummary, ScanView, StatusView,
    SyntaxView,
};
use crate::config::Mode;
pub use crate::escape::{escape, escape_lines};
use crate::firing::{Rung, RungState, State, Subject};

/// stdout, buffered and locked; a closed one ends the program quietly.
pub struct Out {
    to: BufWriter<StdoutLock<'static>>,
    /// Use colour.
    pub color: bool,
    /// Say less.
    pub quiet: bool,
}

impl Out {
    /// The program's stdout.
    #[must_use]
    pub fn new(color: bool, quiet: bool) -> Self {
        Self { to: BufWriter::new(io::stdout().lock()), color, quiet }
    }

    /// One line.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.to, "{text}").map_err(closed)
    }

    /// Text as it is, without a line break of its own.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.to.write_all(text.as_bytes()).map_err(closed)
    }

    /// One JSON object on one line.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|err| Failure::Other(err.into()))?;
        self.line(&text)
    }

    /// One JSON document.
    pub fn document(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|err| Failure::Other(err.into()))?;
        self.line(&text)
    }

    /// Hands over what is buffered: for streams.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(closed)
    }

    pub(super) fn finish(mut self, result: super::Answer) -> super::Answer {
        self.flush().and(result)
    }
}

fn closed(err: io::Error) -> Failure {
    match err.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Other(anyhow::Error::new(err).context("cannot write to stdout")),
    }
}

/// A failure to stderr.
pub fn complain(failure: &Failure) {
    let text = match failure {
        Failure::Closed => return,
        // A report about a configuration has lines of its own; in anything else a line break is the host's.
        Failure::Usage(report) => escape_lines(report),
        other => escape(&other.to_string()).into_owned(),
    };
    // Nobody reads it: then there is nobody to tell.
    let _ = writeln!(io::stderr(), "grace: {text}");
}

/// `text` in a colour (an SGR code), where colour is wanted.
#[must_use]
pub fn paint(text: &str, sgr: &str, color: bool) -> String {
    if color { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const DIM: &str = "2";
const BOLD: &str = "1";

/// Microseconds as people read them.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn nanos(ns: u64) -> String {
    if ns < 1_000 { format!("{ns} ns") } else { micros(ns / 1_000) }
}

/// The time of day in an RFC 3339 time, to the millisecond.
fn time_of_day(at: &str) -> &str {
    at.get(11..23).unwrap_or(at)
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::File(path) => path.display().to_string(),
        Subject::Process(name) => name.clone(),
        Subject::Trigger(name) => format!("trigger {name}"),
        Subject::Model(name) => format!("model {name}"),
        Subject::Host(resource) => format!("host {resource}"),
        Subject::Heartbeat(name) => format!("heartbeat {name}"),
        Subject::Queue(name) => format!("queue {name}"),
        Subject::Route(name) => format!("route {name}"),
        Subject::Error(signature) => format!("error {signature}"),
        Subject::Repo(path) => path.display().to_string(),
        Subject::Endpoint(name) => name.clone(),
        Subject::Environment(name) => name.clone(),
        Subject::Gpu(what) => format!("GPU {what}"),
    }
}

/// Whether a change of a firing is news for somebody who watches: it is over, or something was done, failed or is held.
/// That it fired is told together with what followed, milliseconds later.
#[must_use]
pub fn worth_a_line(firing: &FiringView) -> bool {
    let settled = |s| matches!(s, RungState::Done | RungState::Failed | RungState::Held);
    let moved = firing.remedy.iter().any(|r| settled(r.state))
        && !firing.remedy.iter().any(|r| r.state == RungState::Running);
    firing.state != State::Holds || moved || firing.remedy.is_empty()
}

/// A number with its noun.
fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A firing in one line.
#[must_use]
pub fn firing_line(firing: &FiringView, color: bool) -> String {
    let (word, sgr) = match firing.state {
        State::Holds => ("holds", RED),
        State::Cleared => ("cleared", GREEN),
        State::Happened => ("happened", YELLOW),
    };
    let mut out = format!(
        "{} {:<5} {:<12} {} {} {}  {}",
        paint(time_of_day(&firing.at), DIM, color),
        firing.id.to_string(),
        firing.trigger,
        paint(&format!("{:<12}", firing.route.name()), DIM, color),
        paint(&format!("{word:<8}"), sgr, color),
        paint(&escape(&subject(&firing.subject)), BOLD, color),
        escape(&firing.summary)
    );
    if firing.count > 1 {
        let _ = write!(out, " ({} times)", firing.count);
    }
    rungs(&firing.remedy, color, &mut out);
    if let Some(since) = &firing.escalated {
        let _ = write!(out, " · routed to coding_agent since {}", escape(time_of_day(since)));
    }
    if firing.evidence_gaps {
        let _ = write!(out, " {}", paint("[evidence has gaps]", YELLOW, color));
    }
    out
}

/// What was done, rung by rung.
fn rungs(remedy: &[Rung], color: bool, out: &mut String) {
    for rung in remedy.iter().filter(|r| r.state != RungState::Planned) {
        let word = match rung.state {
            RungState::Done => paint("done", GREEN, color),
            RungState::Failed => paint("failed", RED, color),
            RungState::Held => paint("held", YELLOW, color),
            RungState::Running => "…".to_owned(),
            RungState::Planned => continue,
        };
        let _ = write!(out, " → {} {word}", rung.action);
        match (&rung.state, rung.took_us, &rung.why) {
            (RungState::Done, Some(us), _) => {
                let _ = write!(out, " in {}", micros(us));
            }
            (RungState::Failed | RungState::Held, _, Some(why)) => {
                let _ = write!(out, " ({})", escape(why));
            }
            _ => {}
        }
    }
}

fn mark(state: Health, color: bool) -> String {
    match state {
        Health::Ok => paint("✓", GREEN, color),
        Health::Degraded => paint("✗", RED, color),
        Health::Unsupported => paint("✗", YELLOW, color),
        Health::Off => paint("-", DIM, color),
    }
}

fn headline(status: &StatusView, color: bool) -> String {
    let fact = |key: &str| status.host.get(key).map_or_else(|| "?".to_owned(), |v| escape(v).into_owned());
    let gib =
        status.host.get("memory_bytes").and_then(|b| b.parse::<f64>().ok()).map(|b| b / (1u64 << 30) as f64);
    let mode = match status.mode {
        Mode::Observe => paint("observe", YELLOW, color),
        Mode::Repair => paint("repair", GREEN, color),
    };
    format!(
        "{} {} · host {} · kernel {} · {} cpus · {} · mode {mode}",
        paint("grace", BOLD, color),
        status.version,
        fact("name"),
        fact("kernel"),
        fact("cpus"),
        gib.map_or_else(|| "?".to_owned(), |g| format!("{g:.1} GiB")),
    )
}

fn what_it_sees(status: &StatusView, blind: bool, color: bool, out: &mut String) {
    for reason in &status.degraded {
        let _ = writeln!(out, "  {} {}", paint("degraded", RED, color), escape(reason));
    }
    for (i, probe) in status.probes.iter().enumerate() {
        let head = if i == 0 { "probes" } else { "" };
        let rest = match &probe.why {
            Some(why) if probe.attach.is_empty() => escape(why).into_owned(),
            _ => escape(&probe.attach).into_owned(),
        };
        let _ = writeln!(out, "  {head:<10} {} {:<16} {rest}", mark(probe.state, color), probe.name);
        if blind {
            let _ = writeln!(out, "  {:<10}   {:<16} {}", "", "", paint(&probe_facts(probe), DIM, color));
        }
        if (blind || probe.state != Health::Ok) && !probe.blind_to.is_empty() {
            let text = format!("cannot see: {}", probe.blind_to.join("; "));
            let _ = writeln!(out, "  {:<10}   {:<16} {}", "", "", paint(&escape(&text), DIM, color));
        }
    }
    for (i, source) in status.sources.iter().enumerate() {
        let head = if i == 0 { "sources" } else { "" };
        let _ = writeln!(
            out,
            "  {head:<10} {} {:<16} {}",
            mark(source.state, color),
            source.name,
            escape(&source.detail)
        );
    }
    for (i, trigger) in status.triggers.iter().enumerate() {
        let head = if i == 0 { "triggers" } else { "" };
        let _ = writeln!(
            out,
            "  {head:<10} {} {:<16} {} ({} watched, {} firing)",
            mark(trigger.state, color),
            trigger.name,
            trigger.summary,
            trigger.subjects,
            trigger.holds
        );
    }
}

/// Descendants and slow calls of a process, where there are any.
fn process_facts(process: &ProcessView) -> String {
    let mut out = String::new();
    if !process.descendants.is_empty() {
        let _ = write!(out, ", {}", count(process.descendants.len(), "descendant", "descendants"));
    }
    if process.slow_calls > 0 {
        let _ = write!(out, ", {} slow calls", process.slow_calls);
    }
    out
}

/// Self-test and cost of a probe, in one line.
fn probe_facts(probe: &ProbeView) -> String {
    let mut out = match &probe.self_test {
        Some(when) => format!("saw its canary at {}", escape(when)),
        None => "not self-tested yet".to_owned(),
    };
    match (probe.ns_per_run, probe.runs_per_s) {
        (Some(ns), Some(runs)) => {
            let _ = write!(out, " · {ns} ns a run, {runs} runs/s, {:.0} ns/s", ns * runs);
        }
        (None, Some(_)) => out.push_str(" · did not run in the last sample"),
        _ => out.push_str(" · cost not sampled yet"),
    }
    if let Some(missed) = probe.missed {
        let _ = write!(out, " · {missed} runs missed");
    }
    out
}

/// The account of the probes' events: produced = delivered + lost (+ in flight).
fn accounts(status: &StatusView, out: &mut String) {
    for (i, ring) in status.ring.iter().enumerate() {
        let head = if i == 0 { "account" } else { "" };
        let lost: Vec<String> = ring
            .lost
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(cause, n)| format!("{n} lost ({})", escape(cause)))
            .collect();
        let lost = if lost.is_empty() { "0 lost".to_owned() } else { lost.join(" + ") };
        let delivered = match (ring.delivered, ring.in_flight) {
            (Some(n), Some(0)) => format!("{n} delivered"),
            (Some(n), Some(flight)) => format!("{n} delivered + {flight} in flight"),
            _ => "an unknown number delivered (an agent was killed in a flood)".to_owned(),
        };
        let _ = writeln!(
            out,
            "  {head:<10} {:<8} {} produced = {delivered} + {lost}",
            escape(&ring.class),
            ring.produced
        );
    }
    let pinned = match &status.unpinned {
        None => "the probes are pinned: they see on while no agent runs".to_owned(),
        Some(why) => format!("the probes end with the agent: {}", escape(why)),
    };
    let _ = writeln!(out, "  {:<10} {pinned}", "restart");
}

/// What rests, in lines; nothing where nothing does.
fn what_rests(status: &StatusView, color: bool, out: &mut String) {
    for pause in &status.pauses {
        let head = paint("rests", YELLOW, color);
        let (subject, why) = (escape(&pause.subject), escape(&pause.why));
        let _ = writeln!(out, "  {head:<10} {subject} until {}: {why}", pause.until);
    }
}
/// What applications said of themselves, where they said anything.
fn records(status: &StatusView, out: &mut String) {
    let records = &status.records;
    if records.records == 0 && records.refused.is_empty() {
        return;
    }
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        let shown = counts.iter().filter(|(_, n)| **n > 0).map(|(what, n)| format!("{n} {}", escape(what)));
        let shown: Vec<String> = shown.collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    };
    let _ = writeln!(
        out,
        "  {:<10} {} taken in, {} datagrams · names: {} · not taken: {}",
        "records",
        records.records,
        records.datagrams,
        counts(&records.names),
        counts(&records.refused)
    );
}

/// What the agent found at start: printed in the foreground.
#[must_use]
pub fn boot_picture(status: &StatusView, color: bool) -> String {
    let mut out = headline(status, color);
    out.push('\n');
    what_it_sees(status, false, color, &mut out);
    what_rests(status, color, &mut out);
    let _ = writeln!(
        out,
        "  {:<10} {} · {}{}",
        "owns",
        count(status.files, "file", "files"),
        count(status.processes.len(), "process", "processes"),
        match &status.config.file {
            Some(file) => format!(" · config {}", escape(&file.display().to_string())),
            None => " · no config file, defaults".to_owned(),
        }
    );
    let _ = writeln!(out, "  {:<10} in {}", "ready", micros(status.ready_us));
    if status.mode == Mode::Observe {
        let text = "mode observe: nothing is repaired. `grace run --mode repair` repairs what it was told to own: \
                    `grace snapshot FILE`, [[process]]";
        let _ = writeln!(out, "  {}", paint(text, YELLOW, color));
    } else if status.files == 0 && status.processes.is_empty() {
        let text = "nothing is owned yet: `grace snapshot FILE` gives it a file, `grace inject config_drift` shows a repair";
        let _ = writeln!(out, "  {}", paint(text, DIM, color));
    }
    out
}

/// `grace status`.
#[must_use]
pub fn status_page(status: &StatusView, blind: bool, color: bool) -> String {
    let mut out = headline(status, color);
    let _ = writeln!(
        out,
        "\n  {:<10} pid {} since {}, ready in {}",
        "agent",
        status.pid,
        status.since,
        micros(status.ready_us)
    );
    what_it_sees(status, blind, color, &mut out);
    what_rests(status, color, &mut out);
    let _ = writeln!(
        out,
        "  {:<10} {} · {} firing now",
        "owns",
        count(status.files, "file", "files"),
        status.holds
    );
    for process in &status.processes {
        let state = match (process.pid, &process.since) {
            (Some(pid), Some(since)) => format!("pid {pid} since {}", escape(since)),
            _ => paint("not running", RED, color),
        };
        let _ = writeln!(
            out,
            "  {:<10} {:<18} {state}, {}{}",
            "",
            process.name,
            count(process.restarts as usize, "restart", "restarts"),
            process_facts(process)
        );
    }
    let mut busiest: Vec<_> = status.syscalls.iter().filter(|s| s.calls > 0).collect();
    busiest.sort_by_key(|s| std::cmp::Reverse(s.calls));
    for (i, row) in busiest.iter().take(6).enumerate() {
        let head = if i == 0 { "syscalls" } else { "" };
        let latency = match (row.p50_ns, row.p99_ns) {
            (Some(p50), Some(p99)) => {
                format!("p50 ≤ {}, p99 ≤ {} of {} timed", nanos(p50), nanos(p99), row.timed)
            }
            _ => "not timed yet".to_owned(),
        };
        let _ = writeln!(
            out,
            "  {head:<10} {:<10} {:>12} calls, {:>9} errors, {latency}",
            row.class, row.calls, row.errors
        );
    }
    if !busiest.is_empty() {
        let timed = match status.latency.share {
            share if share >= 1.0 => "every call is timed".to_owned(),
            share if share > 0.0 => format!("calls are timed {:.1} % of the time (budget)", share * 100.0),
            _ => "calls are not timed".to_owned(),
        };
        let _ = writeln!(out, "  {:<10} {timed}, {:.0} calls/s", "", status.latency.calls_per_s);
    }
    records(status, &mut out);
    if blind {
        accounts(status, &mut out);
    }
    let _ = writeln!(out, "  {:<10} {}", "scan", scan_summary(&status.scan, color));
    let lost: Vec<String> =
        status.lost.iter().filter(|(_, n)| **n > 0).map(|(c, n)| format!("{} {n}", escape(c))).collect();
    let lost = if lost.is_empty() { "nothing".to_owned() } else { paint(&lost.join(", "), RED, color) };
    let _ = writeln!(out, "  {:<10} {lost}", "lost");
    let bpf = match status.cost.bpf_ns_per_s {
        Some(ns) => format!("{:.3} % in probes", ns as f64 / 1e7),
        None => "probes not measured yet".to_owned(),
    };
    let _ = writeln!(
        out,
        "  {:<10} {:.2} % of a core, {bpf}, {:.1} MiB",
        "cost",
        status.cost.cpu_percent,
        status.cost.rss_bytes as f64 / (1 << 20) as f64
    );
    if let Some(why) = &status.config.refused {
        for (i, line) in escape_lines(why).lines().enumerate() {
            let head = if i == 0 { "config" } else { "" };
            let _ = writeln!(out, "  {head:<10} {}", paint(line, RED, color));
        }
    }
    out.pop();
    out
}

/// The agent's scan at start, in one line.
fn scan_summary(scan: &ScanSummary, color: bool) -> String {
    let files =
        format!("{} source {}", thousands(scan.files), if scan.files == 1 { "file" } else { "files" });
    let why = scan.why.as_deref().map(escape).unwrap_or_default();
    match scan.state {
        ScanState::Off => format!("none at start: {why}"),
        ScanState::Failed => paint(&format!("not done: {why}"), RED, color),
        ScanState::Running => format!("under way: {files} so far"),
        ScanState::Done => {
            let broken = match scan.broken {
                0 => paint("all parse", GREEN, color),
                1 => paint("1 does not parse", RED, color),
                n => paint(&format!("{} do not parse", thousands(n)), RED, color),
            };
            let at = scan.at.as_deref().unwrap_or_default();
            format!("{files}, {broken} (at {})", escape(at))
        }
    }
}

/// A number as people read it.
#[must_use]
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Findings of one route that are shown one by one.
const SHOWN: usize = 50;

/// What a scan found: counts, then who is to mend what.
#[must_use]
pub fn scan_picture(scan: &ScanView, color: bool) -> String {
    let mut out = String::new();
    if let Some(syntax) = &scan.syntax {
        let broken = match syntax.broken {
            0 => paint("✓ 0 issues", GREEN, color),
            1 => paint("✗ 1 file does not parse", RED, color),
            n => paint(&format!("✗ {} do not parse", count_files(n)), RED, color),
        };
        let _ = writeln!(out, "  {:<10} {broken} · {}", "syntax", syntax_facts(syntax));
    }
    if !scan.triggers.is_empty() {
        let fired = scan.self_healing.iter().chain(&scan.coding_agent).filter(|i| i.firing.is_some()).count();
        let mark = if fired == 0 { paint("✓", GREEN, color) } else { paint("✗", RED, color) };
        let _ = writeln!(
            out,
            "  {:<10} {mark} {} ({} looked)",
            "triggers",
            count(fired, "firing", "firings"),
            scan.triggers.join(", ")
        );
    }
    for why in &scan.not_done {
        let _ = writeln!(out, "  {:<10} {}", "not done", paint(&escape(why), YELLOW, color));
    }
    if scan.found == 0 {
        let _ = writeln!(out, "  {:<10} {}", "found", paint("nothing", GREEN, color));
        return out;
    }
    let _ = writeln!(
        out,
        "  {:<10} {}",
        "found",
        paint(&format!("{} in all", count(scan.found, "issue", "issues")), BOLD, color)
    );
    for (mark, name, items) in
        [("⚡", "Self-Healing", &scan.self_healing), ("🔨", "Coding Agent", &scan.coding_agent)]
    {
        if items.is_empty() {
            continue;
        }
        let head = format!("{mark} {} → {name}", count(items.len(), "issue", "issues"));
        let _ = writeln!(out, "    {}", paint(&head, BOLD, color));
        for item in items.iter().take(SHOWN) {
            scan_item(item, color, &mut out);
        }
        if let Some(more) = items.len().checked_sub(SHOWN).filter(|n| *n > 0) {
            let _ = writeln!(out, "      … and {more} more: --json has them all");
        }
    }
    out
}

fn count_files(n: u64) -> String {
    format!("{} {}", thousands(n), if n == 1 { "file" } else { "files" })
}

fn syntax_facts(syntax: &SyntaxView) -> String {
    let mut out = format!(
        "{} in {}: {} parsed, {} unchanged",
        count_files(syntax.files),
        micros(syntax.took_ms.saturating_mul(1000)),
        thousands(syntax.parsed),
        thousands(syntax.cached)
    );
    let skipped: Vec<String> =
        syntax.skipped.iter().map(|(why, n)| format!("{} {}", thousands(*n), escape(why))).collect();
    if !skipped.is_empty() {
        let _ = write!(out, ", left out: {}", skipped.join(", "));
    }
    out
}

fn scan_item(item: &ScanItem, color: bool, out: &mut String) {
    let id = item.firing.map(|id| format!(" {id}")).unwrap_or_default();
    let _ = write!(
        out,
        "      {}{}: {}",
        paint(&escape(&item.title), BOLD, color),
        paint(&id, DIM, color),
        escape(&item.summary)
    );
    rungs(&item.remedy, color, out);
    out.push('\n');
    if item.errors.is_empty() {
        return;
    }
    let Subject::File(path) = &item.subject else { return };
    for error in &item.errors {
        let _ = writeln!(
            out,
            "        {}:{}:{}: {}",
            escape(&path.display().to_string()),
            error.line,
            error.column,
            escape(&error.problem)
        );
        let _ = writeln!(out, "          {}", paint(&escape(error.text.trim()), DIM, color));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escape::dangerous;

    #[test]
    fn nothing_that_a_terminal_acts_on_gets_through() {
        for text in [
            "\x1b[31mred",
            "\x1b]0;title\x07",
            "a\rb",
            "a\nb",
            "\u{202e}gnp.exe",
            "\u{9b}31m",
            "\u{7f}",
            "zero\u{200b}width",
            "\u{2028}",
            "\u{feff}",
            "\u{e0041}",
            "\u{0}",
        ] {
            let shown = escape(text);
            assert!(shown.chars().all(|c| !dangerous(c)), "{text:?} gives {shown:?}");
        }
        assert_eq!(escape("/etc/naïve café.conf"), "/etc/naïve café.conf");
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(micros(12), "12 µs");
        assert_eq!(micros(1_234), "1.2 ms");
        assert_eq!(micros(61_046), "61 ms");
        assert_eq!(micros(2_500_000), "2.5 s");
    }
}
