//! Text of others made visible: nothing that a terminal, a Markdown reader or a model could take for more than characters.
//!
//! Pure. Whoever shows text that came from the host uses this, so that there is one list of what is dangerous.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` without anything that a terminal acts on: control characters, escape sequences, and the Unicode characters
/// that reorder or hide text become visible codes.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(dangerous) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if dangerous(c) => {
                // Writing into a String does not fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same, where line breaks are Grace's own.
#[must_use]
pub fn escape_lines(text: &str) -> String {
    text.lines()
        .map(|l| l.split('\t').map(escape).collect::<Vec<_>>().join("\t"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a character is more than itself to a terminal or a reader.
pub(crate) fn dangerous(c: char) -> bool {
    c.is_control()
        // Bidirectional overrides and isolates, invisible joiners, line separators, tags, the byte-order mark.
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
