//! C and C++. What a macro expands to stands somewhere else, so no parser without the compiler's flags can be sure of a
//! whole file, and tree-sitter calls every tenth good header wrong.
//!
//! So only two things are told. Brackets, quotes and comments that have no partner, by a reading of the tokens that
//! follows each branch of `#if`; not where a macro may stand for one of them. And a token that is missing in a
//! statement of plain words, where it is the only thing in the file that tree-sitter could not make sense of.

use super::check::{Skip, Source};
use super::grammar;
use super::language::Language;
use crate::event::SyntaxError;

/// Texts larger than this are only read for brackets, in bytes.
const MAX_TREE: usize = 256 << 10;

/// The errors that are sure.
pub(super) fn errors(language: Language, name: &str, source: &Source<'_>) -> Result<Vec<SyntaxError>, Skip> {
    let mut reader = Reader { text: source.text.as_bytes(), at: 0, raw_strings: language == Language::Cpp };
    match reader.unpaired() {
        Reading::Paired => {}
        Reading::Unsure => return Ok(Vec::new()),
        Reading::Unpaired(at, problem) => {
            let sure = !has_bracket_macros(source.text);
            return Ok(if sure { vec![source.error(at, problem)] } else { Vec::new() });
        }
    }
    // Headers are declarations and macros: there is hardly a statement in them, and trees of them are costly.
    if source.text.len() > MAX_TREE || name.ends_with(".h") || name.ends_with(".hpp") || name.ends_with(".hh")
    {
        return Ok(Vec::new());
    }
    let tree = grammar::tree(language, source.text)?;
    let marks = grammar::marks(&tree);
    let [mark] = marks.as_slice() else { return Ok(Vec::new()) };
    if !mark.is_missing() || mark.kind() != ";" || !is_plain(source.text, mark.start_byte()) {
        return Ok(Vec::new());
    }
    let at = end_of_code(source.text, mark.start_byte());
    Ok(vec![source.error(at, grammar::missing(*mark))])
}

/// The end of the last token at or before the byte `at`: where a missing token belongs.
pub(super) fn end_of_code(text: &str, at: usize) -> usize {
    let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.get(..at).unwrap_or_default().trim_end().len()
}

/// Whether the statement that ends at `at` has only words that no macro would be called: none in capitals, no two
/// words that only a macro could make a statement of.
fn is_plain(text: &str, at: usize) -> bool {
    let before = text.get(..end_of_code(text, at)).unwrap_or_default();
    let line = before.lines().next_back().unwrap_or_default();
    let after = text.get(before.len()..).unwrap_or_default();
    let next = after.trim_start().lines().next().unwrap_or_default();
    // A call without its semicolon is what a macro looks like; so is what stands alone.
    let assigns = line.contains(" = ") || line.trim_start().starts_with("return ");
    let same_line = !after.get(..after.len() - after.trim_start().len()).unwrap_or_default().contains('\n');
    assigns
        && !same_line
        && !shouts(line)
        && !shouts(next)
        && !line.contains(['#', '\\', '{'])
        && !next.starts_with(['#', '"'])
}

/// Whether `line` has a word in capitals: a macro, as everybody writes them.
fn shouts(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| {
        word.len() > 1
            && word.bytes().any(|b| b.is_ascii_uppercase())
            && !word.bytes().any(|b| b.is_ascii_lowercase())
    })
}

/// Whether a macro of `text` may stand for a bracket.
fn has_bracket_macros(text: &str) -> bool {
    const PARTS: [&str; 13] = [
        "BEGIN",
        "END",
        "OPEN",
        "CLOSE",
        "ENTER",
        "LEAVE",
        "EXTERN",
        "NAMESPACE",
        "DECL",
        "TRY",
        "CATCH",
        "FOREACH",
        "SCOPE",
    ];
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| {
        word.len() > 3
            && !word.bytes().any(|b| b.is_ascii_lowercase())
            && PARTS.iter().any(|part| word.contains(part))
    })
}

/// What a reading of the tokens led to.
enum Reading {
    /// Everything has its partner.
    Paired,
    /// Branches of the preprocessor differ: what is compiled is not known here.
    Unsure,
    /// Something has none: where, and what.
    Unpaired(usize, String),
}

/// An open bracket and where it stands.
type Open = (u8, usize);

/// A `#if` under way.
struct Branches {
    /// Open brackets before it.
    before: Vec<Open>,
    /// Those at the end of its first branch.
    first: Option<Vec<Open>>,
    /// It has an `#else`.
    has_else: bool,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    raw_strings: bool,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn unpaired(&mut self) -> Reading {
        let mut open: Vec<Open> = Vec::new();
        let mut branches: Vec<Branches> = Vec::new();
        let mut line_begins = true;
        // The word that stands right before, for the prefixes of literals.
        let mut word = self.at;
        while self.at < self.text.len() {
            let byte = self.peek(0);
            let at = self.at;
            match byte {
                b'\n' => line_begins = true,
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => {}
                b'/' if self.peek(1) == b'/' => self.skip_line(),
                b'/' if self.peek(1) == b'*' => {
                    let Some(end) = find(self.text, at + 2, b"*/") else {
                        return Reading::Unpaired(at, "this comment is never closed".to_owned());
                    };
                    self.at = end + 2;
                    word = self.at;
                    continue;
                }
                b'#' if line_begins => {
                    if !self.directive(&mut open, &mut branches) {
                        return Reading::Unsure;
                    }
                    word = self.at;
                    continue;
                }
                b'"' => {
                    let prefix = self.text.get(word..at).unwrap_or_default();
                    let closed =
                        if self.raw_strings && matches!(prefix, b"R" | b"LR" | b"uR" | b"UR" | b"u8R") {
                            self.raw_string()
                        } else {
                            self.literal(b'"')
                        };
                    if !closed {
                        return Reading::Unpaired(at, "this string is never closed".to_owned());
                    }
                    line_begins = false;
                    word = self.at;
                    continue;
                }
                // 1'000'000
                b'\'' if self.text.get(word).is_some_and(u8::is_ascii_digit) && at > word => {}
                b'\'' => {
                    if !self.literal(b'\'') {
                        return Reading::Unsure;
                    }
                    line_begins = false;
                    word = self.at;
                    continue;
                }
                b'(' | b'[' | b'{' => {
                    line_begins = false;
                    open.push((byte, at));
                }
                b')' | b']' | b'}' => {
                    line_begins = false;
                    match open.pop() {
                        Some((opened, _)) if partner(opened) == byte => {}
                        Some((opened, opened_at)) => {
                            let problem = format!(
                                "`{}` does not close the `{}` of line {}",
                                char::from(byte),
                                char::from(opened),
                                line_of(self.text, opened_at)
                            );
                            return Reading::Unpaired(at, problem);
                        }
                        None => {
                            return Reading::Unpaired(at, format!("`{}` closes nothing", char::from(byte)));
                        }
                    }
                }
                _ => line_begins = false,
            }
            self.at += 1;
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'\'')) {
                word = self.at;
            }
        }
        match open.last() {
            _ if !branches.is_empty() => Reading::Unsure,
            None => Reading::Paired,
            Some((bracket, at)) => {
                Reading::Unpaired(*at, format!("`{}` is never closed", char::from(*bracket)))
            }
        }
    }

    /// Reads a directive; false where what follows cannot be known.
    fn directive(&mut self, open: &mut Vec<Open>, branches: &mut Vec<Branches>) -> bool {
        let begins = self.at;
        self.skip_line();
        let first_line = self.at;
        // A comment that begins on the directive's line goes on where it likes, and the directive behind it.
        let mut from = begins;
        while let Some(comment) = find(self.text, from, b"/*").filter(|at| *at < self.at) {
            let Some(end) = find(self.text, comment + 2, b"*/") else { return false };
            from = end + 2;
            if from > self.at {
                self.at = from;
                self.skip_line();
            }
        }
        let line = self.text.get(begins + 1..first_line).unwrap_or_default();
        let line = line.trim_ascii_start();
        let name: &[u8] = line.split(|b| !b.is_ascii_alphabetic()).next().unwrap_or_default();
        let rest = line.get(name.len()..).unwrap_or_default().trim_ascii();
        match name {
            b"if" if rest == b"0" || rest.starts_with(b"0 ") || rest.starts_with(b"0/") => {
                // No code: up to its #else or #endif.
                return self.skip_disabled(open, branches);
            }
            b"if" | b"ifdef" | b"ifndef" => {
                branches.push(Branches { before: open.clone(), first: None, has_else: false });
            }
            b"elif" | b"else" | b"elifdef" | b"elifndef" => {
                let Some(branch) = branches.last_mut() else { return false };
                branch.has_else |= name == b"else";
                let ended = std::mem::replace(open, branch.before.clone());
                match &branch.first {
                    None => branch.first = Some(ended),
                    Some(first) if same(first, &ended) => {}
                    Some(_) => return false,
                }
            }
            b"endif" => {
                let Some(branch) = branches.pop() else { return false };
                let first = branch.first.as_ref().unwrap_or(&branch.before);
                if !same(first, open) || !branch.has_else && !same(&branch.before, open) {
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// After `#if 0`: moves to its `#else` or past its `#endif`.
    fn skip_disabled(&mut self, open: &[Open], branches: &mut Vec<Branches>) -> bool {
        let mut depth = 0usize;
        while self.at < self.text.len() {
            let begins = self.at;
            self.skip_line();
            let line = self.text.get(begins..self.at).unwrap_or_default().trim_ascii();
            if let Some(directive) = line.strip_prefix(b"#") {
                let directive = directive.trim_ascii_start();
                if directive.starts_with(b"if") {
                    depth += 1;
                } else if directive.starts_with(b"endif") {
                    let Some(less) = depth.checked_sub(1) else { return true };
                    depth = less;
                } else if depth == 0 && directive.starts_with(b"el") {
                    // What follows is the only branch, as far as it can be told.
                    branches.push(Branches { before: open.to_vec(), first: None, has_else: true });
                    return true;
                }
            }
            self.at += 1;
        }
        false
    }

    /// To the line break that ends this line, past those that a backslash takes back.
    fn skip_line(&mut self) {
        while self.at < self.text.len() && self.peek(0) != b'\n' {
            let spliced = self.peek(0) == b'\\'
                && (self.peek(1) == b'\n' || self.peek(1) == b'\r' && self.peek(2) == b'\n');
            self.at += if spliced { 2 + usize::from(self.peek(1) == b'\r') } else { 1 };
        }
        self.at = self.at.min(self.text.len());
    }

    /// Past a literal in `quote`s; false where its line ends before it does.
    fn literal(&mut self, quote: u8) -> bool {
        self.at += 1;
        while self.at < self.text.len() {
            match self.peek(0) {
                b'\\' => self.at += if self.peek(1) == b'\r' { 3 } else { 2 },
                b'\n' => return false,
                byte => {
                    self.at += 1;
                    if byte == quote {
                        return true;
                    }
                }
            }
        }
        self.at = self.text.len();
        false
    }

    /// Past `"delimiter( … )delimiter"`.
    fn raw_string(&mut self) -> bool {
        let rest = self.text.get(self.at + 1..).unwrap_or_default();
        let Some(length) = rest.iter().take(17).position(|b| *b == b'(') else { return self.literal(b'"') };
        let end = [b")", rest.get(..length).unwrap_or_default(), b"\""].concat();
        match find(self.text, self.at + 1 + length, &end) {
            Some(at) => {
                self.at = at + end.len();
                true
            }
            None => false,
        }
    }
}

fn partner(open: u8) -> u8 {
    match open {
        b'(' => b')',
        b'[' => b']',
        _ => b'}',
    }
}

/// Whether the same brackets are open, wherever they were opened.
fn same(a: &[Open], b: &[Open]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0)
}

fn find(text: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let (first, rest) = what.split_first()?;
    let mut at = from;
    loop {
        at += text.get(at..)?.iter().position(|b| b == first)?;
        if text.get(at + 1..)?.starts_with(rest) {
            return Some(at);
        }
        at += 1;
    }
}

fn line_of(text: &[u8], at: usize) -> usize {
    text.get(..at).unwrap_or_default().iter().filter(|b| **b == b'\n').count() + 1
}
