//! A message without its variable parts: what stays the same when the same fault comes back.
//!
//! One pass over the characters, no backtracking. Taken out: numbers (with their units), hex and addresses, UUIDs,
//! times, IP addresses, URLs' paths, e-mail addresses, paths that data lives under, random words, and quoted values.
//! Kept, because they say what the fault is: `[Errno 2]`, `status 404`, names of types such as `float32`, names that a
//! program gives to its own parts (`module named 'x'`), and paths of what is installed (`/etc`, `/usr`, `/opt`).

/// Characters of a message that are looked at.
const LOOKED_AT: usize = 2000;

/// Bytes of a template.
const MAX: usize = 300;

/// Words whose digits are part of a name.
const NAMES: &[&str] = &[
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "i8", "i16", "i32", "i64",
    "u8", "u16", "u32", "u64", "f16", "f32", "f64", "float8", "float16", "float32", "float64", "bfloat16",
    "bf16", "fp16", "fp32", "fp64", "fp8", "utf8", "utf16", "sha1", "sha256", "sha512", "md5", "base64",
    "http2", "s3", "ec2", "ipv4", "ipv6", "x86", "x64", "arm64", "amd64", "sm80", "sm90", "win32", "libc6",
    "latin1", "cp1252", "log4j", "slf4j",
];

/// After these words a small number says what the fault is.
const CODES: &[&str] =
    &["errno", "status", "http", "code", "signal", "xid", "retcode", "exitcode", "rc", "sqlstate", "error"];

/// After these words a quoted name is a part of a program, not a value.
const BEFORE_A_NAME: &[&str] = &[
    "named",
    "name",
    "attribute",
    "function",
    "argument",
    "parameter",
    "import",
    "class",
    "method",
    "field",
    "column",
    "table",
    "relation",
    "reading",
    "property",
    "library",
    "symbol",
    "type",
    "module",
    "package",
    "call",
    "calling",
    "failure",
    "error",
    "assertion",
    "operator",
    "option",
    "setting",
    "unknown",
    "undefined",
    "member",
];

/// Kinds of errors whose quoted words are names in the program's own text.
const ABOUT_NAMES: &[&str] = &[
    "TypeError",
    "NameError",
    "ImportError",
    "ModuleNotFoundError",
    "AttributeError",
    "UnboundLocalError",
    "ReferenceError",
    "SyntaxError",
    "ClassNotFoundException",
    "NoSuchMethodError",
    "NoClassDefFoundError",
    "ClassCastException",
    "NoSuchFieldError",
    "AbstractMethodError",
    "IndentationError",
    "CompileError",
    "NullPointerException",
    "terminate",
    "assert",
    "OperationalError",
    "ProgrammingError",
];

/// Where what is installed lies; other paths are data.
const INSTALLED: &[&str] =
    &["/etc/", "/usr/", "/opt/", "/lib/", "/lib64/", "/bin/", "/sbin/", "/dev/", "/sys/"];

/// The template of `message`, an error of the kind `kind`.
#[must_use]
pub fn template(kind: &str, message: &str) -> String {
    let last = kind.rsplit(['.', ':', '/']).next().unwrap_or(kind);
    let about_names = ABOUT_NAMES.contains(&last);
    let text: Vec<char> = message.chars().take(LOOKED_AT).collect();
    let mut out = Writer::default();
    let mut at = 0;
    let mut previous = String::new();
    while let Some(&c) = text.get(at) {
        if c.is_whitespace() || c.is_control() {
            out.space();
            at += 1;
        } else if matches!(c, '\'' | '"' | '`' | '\u{2018}' | '\u{201c}') && opens(&text, at) {
            match closing(&text, at, c) {
                Some(end) => {
                    let inner: String = text.get(at + 1..end).unwrap_or_default().iter().collect();
                    let name = is_name(&inner)
                        && (about_names
                            || BEFORE_A_NAME.contains(&previous.as_str())
                            || names_its_type(&text, end));
                    out.push_str(&if name { format!("'{inner}'") } else { quoted(&inner) });
                    previous.clear();
                    at = end + 1;
                }
                None => {
                    out.push(c);
                    at += 1;
                }
            }
        } else if c.is_alphanumeric() || matches!(c, '_' | '/' | '~') {
            let end = word_end(&text, at);
            let word: String = text.get(at..end).unwrap_or_default().iter().collect();
            at = end + out.word(&word, &text, at, end, &previous);
            previous = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        } else {
            let sign = matches!(c, '-' | '+')
                && text.get(at + 1).is_some_and(char::is_ascii_digit)
                && !text.get(at.wrapping_sub(1)).is_some_and(|b| b.is_alphanumeric());
            if !sign {
                out.push(c);
            }
            at += 1;
        }
    }
    out.finish()
}

/// `template` with only those of its words that stand in `source`, the statement that raised the error: what the program
/// put into its own text at run time is not there. A statement without text says nothing.
pub(super) fn words_of(template: &str, source: &str) -> String {
    if !source.contains(['"', '\'', '`']) {
        return template.to_owned();
    }
    let mut out = String::with_capacity(template.len());
    for word in template.split(' ') {
        let core = word.trim_matches(|c: char| !c.is_alphanumeric());
        let fixed = !word.contains('<') && (core.is_empty() || source.contains(core));
        let fixed = if fixed { word } else { "<v>" };
        if fixed == "<v>" && out.ends_with("<v>") {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(fixed);
    }
    out
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn push(&mut self, c: char) {
        if self.text.len() < MAX * 4 {
            self.text.push(c);
        }
    }

    fn push_str(&mut self, text: &str) {
        if self.text.len() < MAX * 4 {
            self.text.push_str(text);
        }
        self.fold();
    }

    fn space(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with(' ') {
            self.push(' ');
        }
    }

    /// `<n>, <n>, <n>` is one `<n>`: a list has no fixed length.
    fn fold(&mut self) {
        let Some(open) = self.text.rfind('<') else { return };
        let Some(last) = self.text.get(open..) else { return };
        if !last.ends_with('>') || last.len() > 8 {
            return;
        }
        let Some(before) = self.text.get(..open) else { return };
        let trimmed = before.trim_end_matches([' ', ',', ';']);
        if trimmed.len() < before.len() && trimmed.ends_with(last) {
            let keep = trimmed.len();
            self.text.truncate(keep);
        }
    }

    /// Writes the word that stands from `start` to `end`; how many characters after it were taken as well.
    fn word(&mut self, word: &str, text: &[char], start: usize, end: usize, previous: &str) -> usize {
        if word.contains("://") {
            let mut parts = word.splitn(2, "://");
            let (scheme, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let host = rest.split(['/', '?', '#', ':']).next().unwrap_or_default();
            let host = if is_ipv4(host) { "<ip>".to_owned() } else { digits_out(host) };
            self.push_str(&format!("{scheme}://{host}/<path>"));
            return 0;
        }
        if word.starts_with('/') || word.starts_with("~/") {
            self.push_str(&path(word));
            return 0;
        }
        if word.contains('@') && word.contains('.') {
            self.push_str("<email>");
            return 0;
        }
        let has_digit = word.bytes().any(|b| b.is_ascii_digit());
        if !has_digit {
            if is_ipv6(word) {
                self.push_str("<ip>");
            } else {
                self.push_str(word);
            }
            return 0;
        }
        if is_time(word) {
            self.push_str("<time>");
            return time_of_day_after(text, end);
        }
        let bare = word
            .split_once(':')
            .map_or(word, |(host, port)| if port.bytes().all(|b| b.is_ascii_digit()) { host } else { word });
        if is_ipv4(bare) || is_ipv6(word) {
            self.push_str("<ip>");
            return 0;
        }
        let number = word.trim_end_matches(['.', ':', ',']);
        let tail = word.get(number.len()..).unwrap_or_default();
        if CODES.contains(&previous)
            && number.len() <= 4
            && number.bytes().all(|b| b.is_ascii_digit())
            && near_its_word(text, start)
        {
            self.push_str(number);
        } else {
            let token = variable(number);
            self.push_str(&token);
            if token == "<n>" {
                let taken = unit_after(text, end, tail);
                if taken > 0 {
                    return taken;
                }
            }
        }
        self.push_str(tail);
        0
    }

    fn finish(self) -> String {
        let mut text = self.text.trim().to_owned();
        if text.len() > MAX {
            let cut = (0..=MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
        }
        text
    }
}

/// A word with a digit in it, as it stays the same.
fn variable(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    let core = lower.trim_matches('_');
    if NAMES.contains(&core) || matches!(core, "utf-8" | "utf-16" | "latin-1" | "iso-8859-1" | "x86_64") {
        return word.to_owned();
    }
    if lower
        .strip_prefix("0x")
        .is_some_and(|hex| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return "<hex>".to_owned();
    }
    if is_uuid(&lower) {
        return "<id>".to_owned();
    }
    if is_number(&lower) {
        return "<n>".to_owned();
    }
    if lower.len() >= 8 && lower.bytes().all(|b| b.is_ascii_hexdigit()) {
        return "<hex>".to_owned();
    }
    // Words joined by `-`, `.`, `:`, `=` and the like are looked at one by one.
    if let Some(at) = word.find(['-', '.', ':', '=', '@', '/', '_', '+', '~']) {
        let (left, right) = word.split_at(at);
        let mut rest = right.chars();
        let joint = rest.next().unwrap_or('-');
        let left = if left.bytes().any(|b| b.is_ascii_digit()) { variable(left) } else { left.to_owned() };
        let rest = rest.as_str();
        let right = if rest.bytes().any(|b| b.is_ascii_digit()) { variable(rest) } else { rest.to_owned() };
        return if left == right && left.starts_with('<') { left } else { format!("{left}{joint}{right}") };
    }
    let runs = digit_runs(word);
    if runs > 1 || (word.len() >= 16 && runs > 0) { "<id>".to_owned() } else { digits_out(word) }
}

fn digit_runs(word: &str) -> usize {
    let mut runs = 0;
    let mut inside = false;
    for c in word.chars() {
        runs += usize::from(c.is_ascii_digit() && !inside);
        inside = c.is_ascii_digit();
    }
    runs
}

/// `text` with `<n>` for each run of digits.
pub(super) fn digits_out(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !inside {
            out.push_str("<n>");
        }
        inside = c.is_ascii_digit();
    }
    out
}

/// `12`, `1.5`, `1e-5`, `1,024`, `12ms`, `20MiB`, `95%`.
fn is_number(word: &str) -> bool {
    let digits = word.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '_'));
    if digits.len() == word.len() {
        return false;
    }
    let unit = digits.trim_end_matches('%');
    if unit.is_empty() || is_unit(unit) {
        return true;
    }
    let exponent = unit.strip_prefix('e').unwrap_or("x").trim_start_matches(['-', '+']);
    !exponent.is_empty() && exponent.bytes().all(|b| b.is_ascii_digit())
}

fn is_unit(word: &str) -> bool {
    matches!(
        word.to_ascii_lowercase().as_str(),
        "b" | "kb"
            | "mb"
            | "gb"
            | "tb"
            | "kib"
            | "mib"
            | "gib"
            | "tib"
            | "k"
            | "m"
            | "g"
            | "t"
            | "bytes"
            | "byte"
            | "ns"
            | "us"
            | "\u{b5}s"
            | "ms"
            | "s"
            | "sec"
            | "secs"
            | "second"
            | "seconds"
            | "min"
            | "minutes"
            | "h"
            | "hours"
            | "d"
            | "days"
            | "pages"
            | "hz"
            | "khz"
            | "mhz"
            | "ghz"
            | "w"
            | "c"
            | "th"
            | "st"
            | "nd"
            | "rd"
    )
}

/// Characters of ` MiB` after a number.
fn unit_after(text: &[char], end: usize, tail: &str) -> usize {
    if !tail.is_empty() || text.get(end) != Some(&' ') {
        return 0;
    }
    let unit: String =
        text.get(end + 1..).unwrap_or_default().iter().take(8).take_while(|c| c.is_alphabetic()).collect();
    let sized = matches!(unit.to_ascii_lowercase().as_str(), "s" | "b" | "k" | "m" | "g" | "t" | "h" | "d");
    if is_unit(&unit) && !sized && unit.len() > 1 { 1 + unit.chars().count() } else { 0 }
}

/// Characters of ` 12:34:56,789` after a date.
fn time_of_day_after(text: &[char], end: usize) -> usize {
    if text.get(end) != Some(&' ') {
        return 0;
    }
    let rest: String = text
        .get(end + 1..)
        .unwrap_or_default()
        .iter()
        .take(20)
        .take_while(|c| c.is_ascii_digit() || matches!(c, ':' | '.' | ','))
        .collect();
    if rest.matches(':').count() == 2 { 1 + rest.trim_end_matches([',', '.', ':']).len() } else { 0 }
}

/// Whether what stands before `start` is only what joins a word with its code.
fn near_its_word(text: &[char], start: usize) -> bool {
    let before = text.get(start.saturating_sub(3)..start).unwrap_or_default();
    before.iter().rev().take_while(|c| !c.is_alphanumeric()).all(|c| matches!(c, ' ' | '=' | ':' | '(' | '-'))
}

fn word_end(text: &[char], start: usize) -> usize {
    let mut end = start;
    while let Some(&c) = text.get(end) {
        let joins =
            matches!(c, '_' | '-' | '.' | ':' | '/' | '@' | '~' | '+' | '=' | '%' | '?' | '&' | '#' | '\\');
        if !(c.is_alphanumeric() || joins) {
            break;
        }
        // `a: b` and `end.` end before their sign; `://` and `10:20` do not.
        let next = text.get(end + 1);
        if matches!(c, ':' | '.' | '=' | '?' | '-')
            && !next.is_some_and(|n| n.is_alphanumeric() || matches!(n, '/' | ':' | '-' | '+'))
        {
            break;
        }
        end += 1;
    }
    end.max(start + 1)
}

/// Whether a quote at `at` opens: an apostrophe follows a letter.
fn opens(text: &[char], at: usize) -> bool {
    at == 0 || !text.get(at - 1).is_some_and(|c| c.is_alphanumeric())
}

fn closing(text: &[char], at: usize, quote: char) -> Option<usize> {
    let other = match quote {
        '`' => '\'',
        '\u{2018}' => '\u{2019}',
        '\u{201c}' => '\u{201d}',
        c => c,
    };
    let rest = text.get(at + 1..)?;
    rest.iter()
        .take(200)
        .enumerate()
        .position(|(i, c)| {
            (*c == quote || *c == other) && !rest.get(i + 1).is_some_and(|next| next.is_alphanumeric())
        })
        .map(|found| at + 1 + found)
}

/// Letters, `_`, `.`, `::` and the like, no digits but in names of types.
fn is_name(text: &str) -> bool {
    let plain =
        |c: char| c.is_alphabetic() || matches!(c, '_' | '.' | ':' | '-' | '<' | '>' | '(' | ')' | '*');
    !text.is_empty()
        && text.len() <= 64
        && text
            .split(['.', ':', '-'])
            .all(|part| part.chars().all(plain) || NAMES.contains(&part.to_ascii_lowercase().as_str()))
}

/// Whether what follows a quote says that it was a name: `'int' object`, `'x' is not defined`.
fn names_its_type(text: &[char], end: usize) -> bool {
    let after: String = text.get(end + 1..).unwrap_or_default().iter().take(16).collect();
    [" object", " is not def", " is undef", " module", " type"].iter().any(|s| after.starts_with(s))
}

fn quoted(inner: &str) -> String {
    if inner.starts_with('/') && inner.len() > 1 && !inner.contains(' ') {
        path(inner)
    } else {
        "<q>".to_owned()
    }
}

/// A path: that of something installed with its digits out, any other one as `<path>` with its extension.
fn path(word: &str) -> String {
    let word = word.split(['?', '#']).next().unwrap_or(word);
    // `/srv/app.py:12:5`: the place in a file is no part of its name.
    let word = word.split(':').next().unwrap_or(word);
    if word.chars().filter(|c| *c == '/').count() < 2 {
        return digits_out(word);
    }
    if INSTALLED.iter().any(|root| word.starts_with(root)) {
        let parts: Vec<String> = word
            .split('/')
            .map(|part| {
                let long = part.len() >= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
                if long { "<hex>".to_owned() } else { digits_out(part) }
            })
            .collect();
        return parts.join("/");
    }
    let name = word.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((stem, end))
            if !stem.is_empty() && end.len() <= 12 && end.chars().all(|c| c.is_ascii_alphabetic()) =>
        {
            format!("<path>.{end}")
        }
        _ => "<path>".to_owned(),
    }
}

fn is_uuid(word: &str) -> bool {
    let lengths = word.split('-').map(str::len);
    word.len() == 36
        && lengths.eq([8, 4, 4, 4, 12])
        && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn is_ipv4(word: &str) -> bool {
    let mut parts = 0;
    word.split('.').all(|part| {
        parts += 1;
        !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit())
    }) && parts == 4
}

fn is_ipv6(word: &str) -> bool {
    word.matches(':').count() >= 2
        && (word.contains("::") || word.matches(':').count() == 7)
        && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
        && word.bytes().any(|b| b.is_ascii_hexdigit())
}

/// `2026-11-24T20:00:00.123Z`, `2026-11-24`, `20:00:00,123`.
fn is_time(word: &str) -> bool {
    let shape: String =
        word.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).take(19).collect::<String>();
    shape.starts_with("9999-99-99") || shape.starts_with("9999/99/99") || shape.starts_with("99:99:99")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(kind: &str, left: &str, right: &str) {
        assert_eq!(template(kind, left), template(kind, right), "{left} | {right}");
    }

    fn apart(kind: &str, left: &str, right: &str) {
        assert_ne!(template(kind, left), template(kind, right), "{left} | {right}");
    }

    #[test]
    fn variable_parts_are_taken_out() {
        for (kind, left, right) in [
            ("ValueError", "bad value 12", "bad value -7.5e-3"),
            ("E", "at 0x7f001234abcd", "at 0xdeadbeef"),
            ("E", "user 'alice' unknown", "user 'bob-7' unknown"),
            ("E", "to 10.0.0.1:5432 refused", "to 192.168.7.254:80 refused"),
            ("E", "to fe80::1 refused", "to 2001:db8::7 refused"),
            ("E", "id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-0000-0000-0000-000000000001"),
            ("E", "since 2026-11-24T20:00:00.1Z", "since 1999-01-01 10:11:12,999"),
            (
                "FileNotFoundError",
                "[Errno 2] No such file: '/tmp/a8/x.json'",
                "[Errno 2] No such file: '/tmp/zz/y.json'",
            ),
            ("E", "Tried to allocate 20.00 MiB", "Tried to allocate 2.50 GiB"),
            ("E", "lengths [1, 2, 3]", "lengths [4, 5]"),
            ("E", "request req-8f3a9c2b1d4e failed", "request req-77aa00bb99cc failed"),
            ("E", "GET https://x.example.com/a/b?c=1 failed", "GET https://x.example.com/z failed"),
            ("E", "worker-12 of thread17", "worker-3 of thread1"),
            ("RuntimeError", "shapes (32x128 and 64x10)", "shapes (1x2 and 30x40)"),
            ("E", "sent to a.b@example.com", "sent to someone@mail.example.org"),
            ("E", "blob deadbeef01", "blob 0123456789abcdef"),
        ] {
            same(kind, left, right);
        }
    }

    #[test]
    fn what_says_what_the_fault_is_stays() {
        for (kind, left, right) in [
            ("OSError", "[Errno 2] x", "[Errno 13] x"),
            ("E", "status 404", "status 500"),
            ("ModuleNotFoundError", "No module named 'yaml'", "No module named 'numpy'"),
            ("AttributeError", "'int' object has no attribute 'a'", "'int' object has no attribute 'b'"),
            ("E", "expected float32", "expected float64"),
            ("E", "cannot read /etc/app/a.yaml", "cannot read /etc/app/b.yaml"),
            ("E", "no such table: users", "no such table: orders"),
        ] {
            apart(kind, left, right);
        }
    }

    #[test]
    fn apostrophes_open_nothing() {
        assert_eq!(template("E", "can't read, won't write 5"), "can't read, won't write <n>");
    }
}
