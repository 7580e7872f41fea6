//! Lines out of bytes: partial ones are joined, long ones cut, colours and other terminal sequences taken out.

/// Bytes of a line that are kept.
pub const LINE_MAX: usize = 8 << 10;

/// Joins bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// Bytes of lines beyond [`LINE_MAX`], since the last time that was asked.
    cut: u64,
    /// The last byte was `\r`: a `\n` now belongs to it.
    returned: bool,
}

impl Lines {
    /// Takes `bytes` and calls `each` for every line that is complete. `\n`, `\r\n` and `\r` end lines: progress bars
    /// use the last.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        let mut rest = bytes;
        if std::mem::take(&mut self.returned) && rest.first() == Some(&b'\n') {
            rest = rest.get(1..).unwrap_or_default();
        }
        while let Some(at) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let (line, after) = rest.split_at(at);
            self.keep(line);
            self.end(&mut each);
            let carriage = after.first() == Some(&b'\r');
            rest = after.get(1..).unwrap_or_default();
            if carriage {
                if rest.is_empty() {
                    self.returned = true;
                } else if rest.first() == Some(&b'\n') {
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        self.keep(rest);
    }

    /// Ends the last line where no more will come of it.
    pub fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.end(&mut each);
        }
    }

    /// Bytes held of a line that is not complete.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    /// Forgets the line that is not complete.
    pub fn forget(&mut self) {
        self.partial.clear();
        self.returned = false;
    }

    /// How many bytes were cut off lines since this was asked last.
    pub fn take_cut(&mut self) -> u64 {
        std::mem::take(&mut self.cut)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_MAX.saturating_sub(self.partial.len());
        let (kept, cut) = bytes.split_at(room.min(bytes.len()));
        self.partial.extend_from_slice(kept);
        self.cut = self.cut.saturating_add(cut.len() as u64);
    }

    fn end(&mut self, each: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.partial);
        if text.contains('\u{1b}') {
            each(&without_sequences(&text));
        } else {
            each(&text);
        }
        self.partial.clear();
    }
}

/// `text` without the sequences that colour a terminal (ECMA-48: `ESC [ … letter`, `ESC ] … BEL`, `ESC letter`).
fn without_sequences(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('[') => drop(chars.by_ref().find(|c| ('@'..='~').contains(c))),
            Some(']') => drop(chars.by_ref().find(|c| *c == '\u{7}')),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |l| out.push(l.to_owned()));
        }
        lines.finish(|l| out.push(l.to_owned()));
        out
    }

    #[test]
    fn every_way_of_cutting_bytes_gives_the_same_lines() {
        let text = b"one\r\ntwo\n\x1b[31mthree\x1b[0m\r50%\r100%\nfour";
        let whole = lines(&[text]);
        assert_eq!(whole, ["one", "two", "three", "50%", "100%", "four"]);
        for at in 0..text.len() {
            assert_eq!(lines(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn a_line_is_cut_and_what_is_cut_is_counted() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for _ in 0..10 {
            lines.push(&[b'x'; 4096], |l| out.push(l.len()));
        }
        lines.push(b"\n", |l| out.push(l.len()));
        assert_eq!(out, [LINE_MAX]);
        assert_eq!(lines.take_cut(), 40960 - LINE_MAX as u64);
    }
}
