//! What loggers, container runtimes and launchers write before a line: taken off, so that what is left is the line as
//! the program wrote it, indentation and all.
//!
//! What tells one writer from another (a pid, a rank, a thread) becomes the line's lane: traces of two writers in one
//! file are put together lane by lane.

/// A line without its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// As it came.
    pub(super) raw: &'a str,
    /// Without its prefix.
    pub(super) body: &'a str,
    /// What tells its writer from others; empty where nothing does. A part of the line, times left out.
    pub(super) lane: u64,
    /// It had a prefix.
    pub(super) stamped: bool,
    /// The prefix says that this is an error.
    pub(super) error: bool,
}

/// Words of a prefix at most.
const WORDS: usize = 8;

/// Takes the prefix off.
#[must_use]
pub(super) fn split(raw: &str) -> Line<'_> {
    let mut line = Line { raw, body: raw, lane: 0, stamped: false, error: false };
    // What begins with a space or a bracket that is no prefix is told apart below; most lines end here.
    for _ in 0..WORDS {
        let Some(rest) = step(&mut line) else { break };
        // One space belongs to the prefix; more are indentation.
        line.body = rest.strip_prefix(' ').unwrap_or(rest);
        line.stamped = true;
    }
    line
}

/// What is left after one word of prefix.
fn step<'a>(line: &mut Line<'a>) -> Option<&'a str> {
    let text = line.body;
    let first = text.bytes().next()?;
    if let Some(rest) = time(text) {
        // glog: the level is the first letter.
        line.error |= matches!(first, b'E' | b'F');
        return Some(rest);
    }
    match first {
        b'[' => {
            if let Some(rest) = text.strip_prefix('[').and_then(time).and_then(|rest| rest.strip_prefix(']'))
            {
                return Some(rest);
            }
            let end = text.get(..48.min(text.len())).unwrap_or(text).find(']')?;
            let (tag, rest) = (text.get(1..end)?, text.get(end + 1..)?);
            let trimmed = tag.trim();
            if let Some(error) = level(trimmed) {
                line.error |= error;
                return Some(rest.strip_prefix(':').unwrap_or(rest));
            }
            let numbered = |word: &str| {
                trimmed.strip_prefix(word).is_some_and(|n| {
                    n.trim_start_matches([' ', ':', '=', '-']).bytes().all(|b| b.is_ascii_digit())
                })
            };
            let rank = ["rank", "Rank", "pid", "default", "worker", "gpu"].iter().any(|w| numbered(w))
                || (tag.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b':')) && !tag.is_empty());
            // `[Error: x]` and `[signal SIGSEGV]` are no prefixes; after a time or a level anything is.
            if rank || (line.stamped && !trimmed.contains(": ") && !trimmed.starts_with("signal ")) {
                join(&mut line.lane, tag);
                let rest =
                    rest.strip_prefix("<stderr>").or_else(|| rest.strip_prefix("<stdout>")).unwrap_or(rest);
                return Some(rest.strip_prefix(':').unwrap_or(rest));
            }
            None
        }
        b'(' => {
            // Ray: `(worker pid=12, ip=10.0.0.1) `.
            let end = text.get(..80.min(text.len())).unwrap_or(text).find(") ")?;
            let tag = text.get(1..end)?;
            tag.contains("pid=").then(|| {
                join(&mut line.lane, tag);
                text.get(end + 1..).unwrap_or_default()
            })
        }
        b'-' | b'|' if line.stamped => text.strip_prefix("- ").or_else(|| text.strip_prefix("| ")),
        b':' if line.stamped => text.strip_prefix(": "),
        b'<' => {
            // `<3>`: a priority of the kernel or syslog.
            let (number, rest) = text.get(1..)?.split_once('>')?;
            (number.len() <= 3 && number.parse::<u16>().is_ok()).then_some(rest)
        }
        _ if first.is_ascii_alphanumeric() || first == b'_' || first == b'.' => word(line, text),
        _ => None,
    }
}

/// A level, a stream, a name.
fn word<'a>(line: &mut Line<'a>, text: &'a str) -> Option<&'a str> {
    // None where the 80th byte is inside a character: no prefix has one there.
    let head = text.get(..text.len().min(80))?;
    let end = head.find([' ', ':', '|', ']', '\t'])?;
    let (token, rest) = (head.get(..end)?, text.get(end..)?);
    if let Some(error) = level(token) {
        line.error |= error;
        let Some(after) = rest.strip_prefix(':') else {
            return Some(rest.trim_start_matches(' ').strip_prefix("| ").unwrap_or(rest));
        };
        // Python's default: `ERROR:root:message`.
        let name = after.split(':').next().unwrap_or_default();
        let is_name = !name.is_empty()
            && name.len() < 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        return Some(match after.get(name.len() + 1..) {
            Some(message) if is_name && after.len() > name.len() => message,
            _ => after,
        });
    }
    // Containers: `… stderr F message`.
    if line.stamped && matches!(token, "stdout" | "stderr") {
        // `split` takes the space after the flag off.
        return rest.strip_prefix(" F").or_else(|| rest.strip_prefix(" P"));
    }
    // docker compose: `worker-1  | message`.
    if rest.trim_start_matches(' ').starts_with("| ") && rest.starts_with(' ') {
        let (_, after) = rest.split_once('|')?;
        join(&mut line.lane, token);
        return Some(after);
    }
    if !line.stamped {
        return None;
    }
    // syslog: `host program[12]: message`.
    if let Some(program) = rest.strip_prefix(' ') {
        let name =
            program.get(..program.len().min(64)).unwrap_or_default().split(' ').next().unwrap_or_default();
        if let Some(inner) = name.strip_suffix("]:")
            && let Some((who, pid)) = inner.rsplit_once('[')
            && !who.is_empty()
            && !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
        {
            join(&mut line.lane, inner);
            return program.get(name.len()..);
        }
        // `name - LEVEL - message`.
        if let Some(after) = program.strip_prefix("- ") {
            return Some(after);
        }
    }
    // A pid alone, as glog and gunicorn write it.
    if token.bytes().all(|b| b.is_ascii_digit()) && token.len() <= 8 {
        join(&mut line.lane, token);
        return Some(rest);
    }
    // `file.cc:12] message`, `app::module: message`.
    if let Some(after) = rest.strip_prefix(':') {
        let number = after.bytes().take_while(u8::is_ascii_digit).count();
        if number > 0 && after.get(number..).is_some_and(|r| r.starts_with(']')) {
            return after.get(number + 1..);
        }
        if after.starts_with(':') {
            let path = head.split(": ").next().unwrap_or_default();
            let plain = path.len() < head.len()
                && path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
                && path.starts_with(|c: char| c.is_ascii_lowercase());
            return if plain { text.get(path.len() + 1..) } else { None };
        }
        let lower = token.starts_with(|c: char| c.is_ascii_lowercase());
        let named = token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        let type_like =
            token.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_uppercase()));
        let known =
            matches!(token, "panic" | "fatal" | "thread" | "free" | "malloc" | "terminate" | "goroutine");
        if line.error && lower && named && !type_like && !known && after.starts_with(' ') {
            return Some(after);
        }
    }
    None
}

/// Whether a word is a level, and if so, whether one of an error. In lower case these are words of a sentence.
fn level(word: &str) -> Option<bool> {
    match word {
        "ERROR" | "ERR" | "CRITICAL" | "CRIT" | "FATAL" | "SEVERE" | "PANIC" | "EMERG" | "ALERT" => {
            Some(true)
        }
        "TRACE" | "DEBUG" | "INFO" | "NOTICE" | "WARN" | "WARNING" => Some(false),
        _ => None,
    }
}

/// A time at the begin of `text`; what follows it.
fn time(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digits =
        |at: usize, n: usize| bytes.get(at..at + n).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let is = |at: usize, what: u8| bytes.get(at) == Some(&what);
    // 2026-11-24T20:00:00, 2026/11/24 20:00:00
    if digits(0, 4)
        && (is(4, b'-') || is(4, b'/'))
        && digits(5, 2)
        && (is(7, b'-') || is(7, b'/'))
        && digits(8, 2)
    {
        let rest = text.get(10..)?;
        let clock = rest.strip_prefix(['T', ' ']).and_then(clock);
        return Some(clock.map_or(rest, zone));
    }
    if let Some(rest) = clock(text) {
        return Some(zone(rest));
    }
    // Nov 24 20:00:00
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    if month.iter().any(|m| text.starts_with(m)) && is(3, b' ') {
        let rest = text.get(4..)?.trim_start_matches(' ');
        let day = rest.bytes().take_while(u8::is_ascii_digit).count();
        return (1..=2).contains(&day).then(|| rest.get(day + 1..).and_then(clock)).flatten();
    }
    // glog: E1124 20:00:00.123456
    if matches!(bytes.first(), Some(b'I' | b'W' | b'E' | b'F')) && digits(1, 4) && is(5, b' ') {
        return text.get(6..).and_then(clock).map(|rest| rest.trim_start_matches(' '));
    }
    // dmesg: [    1.234567]
    if is(0, b'[') {
        let (inner, rest) = text.get(1..)?.split_once(']')?;
        let (seconds, parts) = inner.trim_start().split_once('.')?;
        let all = |s: &str| !s.is_empty() && s.len() < 12 && s.bytes().all(|b| b.is_ascii_digit());
        return (all(seconds) && all(parts) && parts.len() == 6).then_some(rest);
    }
    None
}

/// `20:00:00` with a fraction; what follows it.
fn clock(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let colon = |at: usize| bytes.get(at) == Some(&b':');
    if !(digit(0) && digit(1) && colon(2) && digit(3) && digit(4) && colon(5) && digit(6) && digit(7)) {
        return None;
    }
    let rest = text.get(8..)?;
    let fraction = rest.strip_prefix(['.', ',']).map(|f| f.trim_start_matches(|c: char| c.is_ascii_digit()));
    Some(fraction.filter(|f| f.len() + 1 < rest.len()).unwrap_or(rest))
}

/// What follows `Z`, `+01:00` or ` +0100`.
fn zone(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('Z') {
        return rest;
    }
    let Some(rest) = text.strip_prefix(['+', '-']) else { return text };
    let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b':').count();
    if matches!(digits, 4 | 5) { rest.get(digits..).unwrap_or(text) } else { text }
}

fn join(lane: &mut u64, tag: &str) {
    // FNV-1a: lanes are few, and a clash joins two of them, nothing worse.
    let mut hash = *lane ^ 0xcbf2_9ce4_8422_2325;
    for byte in tag.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    *lane = hash;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_taken_off_and_indentation_is_kept() {
        for (raw, body) in [
            ("plain text", "plain text"),
            ("  File \"x\", line 1", "  File \"x\", line 1"),
            ("2026-11-24 20:00:00,123 ERROR   File \"x\"", "  File \"x\""),
            (
                "2026-11-24T20:00:00.123456789Z stderr F Traceback (most recent call last):",
                "Traceback (most recent call last):",
            ),
            ("2026-11-24T20:00:00Z stderr F   File \"x\"", "  File \"x\""),
            ("ERROR:root:it broke", "it broke"),
            ("[ERROR] it broke", "it broke"),
            ("2026-11-24 20:00:00,123 - app.db - ERROR - it broke", "it broke"),
            ("Nov  4 20:00:00 host app[123]: it broke", "it broke"),
            ("[rank3]: Traceback (most recent call last):", "Traceback (most recent call last):"),
            ("[rank3]:   File \"x\"", "  File \"x\""),
            ("(Worker pid=12) ValueError: x", "ValueError: x"),
            ("worker-1  | ValueError: x", "ValueError: x"),
            ("12:00:00.123 [main] ERROR com.x.Y - it broke", "it broke"),
            ("E1124 20:00:00.123456  1234 file.cc:12] Check failed: x", "Check failed: x"),
            ("2026-11-24T20:00:00Z ERROR app::db: it broke", "it broke"),
            ("[    1.234567] traps: x", "traps: x"),
            ("[Error: x]", "[Error: x]"),
            ("ValueError: x", "ValueError: x"),
            ("2026-11-24 20:00:00 ERROR ValueError: x", "ValueError: x"),
            ("error: it broke", "error: it broke"),
        ] {
            assert_eq!(split(raw).body, body, "{raw}");
        }
        let lanes: Vec<u64> = ["[rank0]: x", "[rank1]: x", "x"].iter().map(|l| split(l).lane).collect();
        assert!(lanes[0] != lanes[1] && lanes[2] == 0, "{lanes:?}");
    }
}
