//! An error with its causes in one line: what people and the journal are told.

use std::error::Error;

/// `err` and its sources, outermost first. A source whose text an outer one has already said is left out.
#[must_use]
pub fn chain(err: &dyn Error) -> String {
    let mut out = err.to_string();
    let mut source = err.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = inner.source();
    }
    out
}
