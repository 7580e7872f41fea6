//! One file's bytes: do they parse, and if not, where.
//!
//! Nothing is claimed that is not sure. What is no text, is a template, or is in an older language of the same name is
//! left alone and counted.

use serde::{Deserialize, Serialize};

use super::language::Language;
use super::{MAX_ERRORS, MAX_LINE, clike, data, grammar, opinion};
use crate::event::SyntaxError;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// It parses, or nothing is sure enough to be said.
    Clean,
    /// It does not: the first errors, in the order of the file.
    Broken(Vec<SyntaxError>),
    /// It was not judged.
    Skipped(Skip),
}

/// Why a file was not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// Its first line is in no language that is checked.
    NoSource,
    /// Larger than [`super::MAX_FILE`].
    TooLarge,
    /// It has NUL bytes or is in UTF-16.
    Binary,
    /// Not UTF-8, in a language in which that is not an error of syntax.
    Encoding,
    /// Python 2.
    Python2,
    /// JavaScript with Flow types.
    Flow,
    /// A template: it parses only after it was filled in.
    Template,
    /// Made by a minifier.
    Minified,
    /// Parsing took too long.
    TooLong,
    /// A parser crashed or ran out of memory on it.
    Crashed,
    /// It could not be read.
    Unreadable,
    /// It kept changing while it was read.
    Changing,
}

impl Skip {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::NoSource => "no source",
            Self::TooLarge => "larger than 4 MiB",
            Self::Binary => "binary",
            Self::Encoding => "not UTF-8",
            Self::Python2 => "older Python",
            Self::Flow => "Flow types",
            Self::Template => "templates",
            Self::Minified => "minified",
            Self::TooLong => "took too long",
            Self::Crashed => "crashed a parser",
            Self::Unreadable => "unreadable",
            Self::Changing => "kept changing",
        }
    }
}

/// Judges `bytes`, which lie in a file called `name` (its last component), as a source in `language`.
#[must_use]
pub fn check(language: Language, name: &str, bytes: &[u8]) -> Checked {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Checked::Skipped(Skip::Binary);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.contains(&0) {
        return Checked::Skipped(Skip::Binary);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => std::borrow::Cow::Borrowed(text),
        Err(_) if matches!(language, Language::Json | Language::Yaml | Language::Toml) => {
            return Checked::Skipped(Skip::Encoding);
        }
        // Latin-1 and its kin: every byte is a character, and those of the syntax are the same.
        Err(_) => std::borrow::Cow::Owned(bytes.iter().map(|b| char::from(*b)).collect()),
    };
    if text.trim().is_empty() {
        return Checked::Clean;
    }
    let source = Source::new(&text);
    let errors = match language {
        Language::Json | Language::Yaml | Language::Toml => data::errors(language, name, &source),
        Language::C | Language::Cpp => {
            if is_template(source.text) {
                return Checked::Skipped(Skip::Template);
            }
            clike::errors(language, name, &source)
        }
        _ if language == Language::JavaScript && is_minified(source.text) => Err(Skip::Minified),
        _ => errors_of_code(language, name, &source),
    };
    match errors {
        Err(skip) => Checked::Skipped(skip),
        Ok(errors) if errors.is_empty() => Checked::Clean,
        Ok(_) if is_template(source.text) => Checked::Skipped(Skip::Template),
        Ok(mut errors) => {
            errors.sort_by_key(|e| (e.line, e.column));
            errors.dedup_by_key(|e| e.line);
            errors.truncate(MAX_ERRORS);
            Checked::Broken(errors)
        }
    }
}

/// Two parsers must agree where the language has one of its own here: a grammar for editors takes some new or odd
/// syntax for an error, and its word on the place is vague. The quicker one is asked first; mostly it finds nothing, and
/// the other need not be asked.
fn errors_of_code(language: Language, name: &str, source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    let own = || opinion::errors(language, name, source);
    let (seen, own) = if opinion::is_quick(language) {
        match own() {
            Some(errors) if errors.is_empty() => return Ok(errors),
            own => (grammar::errors(language, source)?, own),
        }
    } else {
        match grammar::errors(language, source)? {
            errors if errors.is_empty() => return Ok(errors),
            seen => (seen, own()),
        }
    };
    if seen.is_empty() {
        return Ok(seen);
    }
    if language == Language::Python && is_python2(source.text) {
        return Err(Skip::Python2);
    }
    if language == Language::JavaScript && head(source.text).contains("@flow") {
        return Err(Skip::Flow);
    }
    Ok(own.unwrap_or(seen))
}

/// The first kilobyte or so.
fn head(text: &str) -> &str {
    let end = (0..=text.len().min(1024)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Whether `text` waits for a template engine: Jinja, Helm and Go templates, ERB, Mustache sections, autoconf.
fn is_template(text: &str) -> bool {
    let pair = |open: &str, close: &str| {
        text.find(open).is_some_and(|at| text.get(at + open.len()..).is_some_and(|rest| rest.contains(close)))
    };
    pair("{%", "%}") || pair("{{", "}}") && looks_filled_in(text) || pair("<%", "%>")
}

/// Whether some `{{ … }}` in `text` holds what a template engine fills in, which sources have for other reasons too
/// (format strings, JSX, nested literals).
fn looks_filled_in(text: &str) -> bool {
    text.match_indices("{{").any(|(at, _)| {
        let rest = text.get(at + 2..).unwrap_or_default();
        let Some(inner) = rest.find("}}").and_then(|end| rest.get(..end)) else { return false };
        let inner = inner.trim_matches(['-', ' ', '\t', '#', '/', '^', '&', '>', '!', '{']);
        !inner.contains(['\n', ';'])
            && (inner.starts_with(['.', '$']) && inner.len() > 1
                || inner.split_whitespace().next().is_some_and(|word| {
                    word.contains('.') && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                        || word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                            && word.len() > 1
                            && !word.bytes().all(|b| b.is_ascii_digit())
                }))
    })
}

/// One line that no person wrote.
fn is_minified(text: &str) -> bool {
    text.len() > 20_000 && text.lines().any(|line| line.len() > 20_000)
}

/// Statements that were sentences of Python 2 and are none of Python 3; and `async` as a name, which it was before 3.7.
fn is_python2(text: &str) -> bool {
    if head(text).lines().next().is_some_and(|line| line.starts_with("#!") && line.contains("python2")) {
        return true;
    }
    text.lines().any(|line| {
        let line = line.trim();
        let after = |word: &str| {
            line.strip_prefix(word).filter(|rest| rest.starts_with([' ', '\t'])).map(str::trim_start)
        };
        // `print x`, `print >>f, x`, `print "a" % b`; never `print (x)`, which both have.
        let print = after("print").is_some_and(|rest| {
            rest.starts_with(">>")
                || rest.starts_with(['"', '\'', '`'])
                || rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && !["if ", "in ", "is ", "and ", "or ", "for ", "not in "]
                        .iter()
                        .any(|w| rest.starts_with(w))
        });
        let exec = after("exec").is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '"' | '\'' | '_'))
        });
        let raise = after("raise").is_some_and(|rest| {
            rest.split_once(',').is_some_and(|(what, text)| {
                what.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
                    && text.trim_start().starts_with(['"', '\''])
            })
        });
        let except = after("except").and_then(|rest| rest.strip_suffix(':')).is_some_and(|rest| {
            let mut names = rest.rsplitn(2, ',');
            let (last, first) = (names.next().unwrap_or_default().trim(), names.next());
            first.is_some()
                && !rest.ends_with(')')
                && !rest.contains(" as ")
                && last.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
        let name = line.contains(".async(") || line.starts_with("async =") || line.starts_with("async,");
        print || exec || raise || except || name
    })
}

/// A text and where its lines begin.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut lines = vec![0];
        lines.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
        Self { text, lines }
    }

    /// An error at the byte `at`.
    pub(super) fn error(&self, at: usize, problem: impl Into<String>) -> SyntaxError {
        let at = (0..=at.min(self.text.len())).rev().find(|i| self.text.is_char_boundary(*i)).unwrap_or(0);
        // The end of a text that ends with a line break is the end of its last line.
        let end = self.text.trim_end().len();
        let at = if at > end { end } else { at };
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let whole = self.text.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = self.text.get(start..at).unwrap_or_default().chars().count();
        SyntaxError {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column + 1).unwrap_or(u32::MAX),
            text: around(whole, column),
            problem: problem.into(),
        }
    }

    /// An error at a line and a column, both from 1, the column in characters.
    pub(super) fn error_at(&self, line: usize, column: usize, problem: impl Into<String>) -> SyntaxError {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(self.text.len());
        let rest = self.text.get(start..).unwrap_or_default();
        let at = rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(at, _)| at);
        self.error(start + at, problem)
    }
}

/// At most [`MAX_LINE`] characters of `line`, the one at `column` (from 0) among them.
fn around(line: &str, column: usize) -> String {
    let from = if column < MAX_LINE - 20 { 0 } else { column + 20 - MAX_LINE };
    let mut out: String = line.chars().skip(from).take(MAX_LINE).collect();
    if from > 0 {
        out.insert(0, '…');
    }
    if line.chars().nth(from + MAX_LINE).is_some() {
        out.push('…');
    }
    out.truncate(out.trim_end().len());
    out
}
