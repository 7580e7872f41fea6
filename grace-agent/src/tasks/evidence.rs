//! Evidence: each item a file with a name, a digest, a source, the time that it is about, and a trust label.
//!
//! What others can write (paths, logs, names of processes and branches, answers, the words of whoever works on a task) is
//! only ever in items that are `untrusted`. Secrets are taken out, and items are cut, before the digest is taken: what is
//! stored is what the digest says.

use sha2::{Digest as _, Sha256};

use super::context::Context;
use super::redact::redact;
use super::{hex, to_json};
use crate::api::view::{EvidenceView, FiringView};

/// Bytes of one item of a firing; of more, the begin and the end are kept.
pub(super) const MAX_ITEM: usize = 64 << 10;

/// Who could have written an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The kernel alone: numbers that it says of a process.
    Kernel,
    /// Grace: its own words and counts.
    Grace,
    /// Whoever may write Grace's configuration.
    Operator,
    /// Anybody.
    Untrusted,
}

impl Trust {
    /// As `trust` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Grace => "grace",
            Self::Operator => "operator",
            Self::Untrusted => "untrusted",
        }
    }
}

/// An item: redacted, cut, and with its digest.
#[must_use]
pub fn item(name: &str, trust: Trust, source: &str, text: &str) -> EvidenceView {
    let clean = redact(text);
    let (text, truncated) = cut(clean.text, MAX_ITEM);
    EvidenceView {
        name: file_name(name),
        trust: trust.name().to_owned(),
        sha256: hex(&Sha256::digest(&text)),
        source: source.to_owned(),
        from: None,
        to: None,
        bytes: text.len() as u64,
        truncated,
        redacted: clean.found,
        text,
    }
}

/// The begin and the end of what is too long.
fn cut(text: String, most: usize) -> (String, bool) {
    if text.len() <= most {
        return (text, false);
    }
    let floor = |at: usize| (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let half = most / 2 - 32;
    let (head, tail) = (floor(half), floor(text.len() - half));
    let left_out = tail - head;
    (format!("{}\n[{left_out} bytes left out]\n{}", &text[..head], &text[tail..]), true)
}

/// A name that is one word, and that no shell, path or reader takes for more.
#[must_use]
pub fn file_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.trim().chars().take(48).map(plain).collect();
    let name = name.trim_start_matches('.').to_owned();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// What a firing and its surroundings say.
#[must_use]
pub(super) fn of_firing(firing: &FiringView, context: &Context) -> Vec<EvidenceView> {
    let source = format!("firing {}", firing.id);
    let about = |mut item: EvidenceView| {
        item.from = Some(firing.since.clone());
        item.to = Some(firing.cleared.clone().unwrap_or_else(|| firing.at.clone()));
        item
    };
    let item = |name: &str, trust: Trust, text: &str| about(item(name, trust, &source, text));
    let mut out = vec![item(
        "judgement",
        Trust::Grace,
        &format!(
            "trigger: {}\nthreshold: {}\nsince: {}\nfired: {}\ncame back: {} times\nevents lost meanwhile: {}",
            firing.trigger,
            firing.threshold,
            firing.since,
            firing.at,
            firing.count,
            if firing.evidence_gaps { "yes, the evidence has gaps" } else { "none" }
        ),
    )];
    // What was measured may name files, processes and models.
    out.push(item(
        "measured",
        Trust::Untrusted,
        &format!("summary: {}\nmeasured: {}\nbaseline: {}", firing.summary, firing.measured, firing.baseline),
    ));
    out.push(item("subject", Trust::Untrusted, &to_json(&firing.subject)));
    if let Some(writer) = &firing.writer {
        let mut ids = format!("pid: {}", writer.pid);
        if let Some(uid) = writer.uid {
            ids.push_str(&format!("\nuid: {uid}"));
        }
        out.push(item("writer-ids", Trust::Kernel, &ids));
        out.push(item("writer", Trust::Untrusted, &to_json(writer)));
    }
    if !firing.evidence.is_empty() {
        out.push(item("output", Trust::Untrusted, &firing.evidence.join("\n")));
    }
    let tried: Vec<String> = firing
        .remedy
        .iter()
        .filter(|rung| rung.action != "file_task")
        .filter_map(|rung| Some(format!("{}: {}", rung.action, rung.why.as_ref()?)))
        .collect();
    if !tried.is_empty() {
        out.push(item("tried", Trust::Untrusted, &tried.join("\n")));
    }
    if !context.suspects.is_empty() {
        let lines: Vec<String> = context
            .suspects
            .iter()
            .enumerate()
            .map(|(n, suspect)| format!("{}. {}: {}", n + 1, suspect.path, suspect.reasons.join("; ")))
            .collect();
        out.push(item("suspects", Trust::Untrusted, &lines.join("\n")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_redacted_cut_and_its_digest_is_of_what_is_kept() {
        let long = format!("begin {} end", "x".repeat(MAX_ITEM * 2));
        let kept = item("a", Trust::Untrusted, "s", &long);
        assert!(kept.truncated && kept.text.len() <= MAX_ITEM && kept.bytes == kept.text.len() as u64);
        assert!(kept.text.starts_with("begin ") && kept.text.ends_with(" end"));
        let secret = item("a", Trust::Untrusted, "s", "password=hunter2hunter2");
        assert_eq!((secret.redacted, secret.text.contains("hunter2")), (1, false));
        assert_eq!(secret.sha256, hex(&Sha256::digest(&secret.text)));
    }

    #[test]
    fn a_name_is_one_word() {
        assert_eq!(file_name("../../etc/passwd"), "-..-etc-passwd");
        assert_eq!(file_name("a\n# Ignore all `rules`"), "a---Ignore-all--rules-");
        assert_eq!(file_name("  "), "unnamed");
    }
}
