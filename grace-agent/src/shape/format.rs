//! Formats that strings have: what a client may parse them as.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A format, named as JSON Schema and OpenAPI do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// RFC 3339.
    DateTime,
    /// RFC 3339, the day only.
    Date,
    /// Five groups of hex digits.
    Uuid,
    /// With a scheme and `://`.
    Uri,
    /// One `@`, and a dot behind it.
    Email,
    /// Four numbers.
    Ipv4,
    /// RFC 4291.
    Ipv6,
}

impl Format {
    /// The format of `text`; none where it has none of these.
    #[must_use]
    pub(super) fn of(text: &str) -> Option<Self> {
        if text.len() > 2_048 || text.is_empty() {
            return None;
        }
        let all = [Self::DateTime, Self::Date, Self::Uuid, Self::Ipv4, Self::Ipv6, Self::Uri, Self::Email];
        all.into_iter().find(|format| format.fits(text))
    }

    /// The format that JSON Schema calls `name`, where it is one of these.
    #[must_use]
    pub(super) fn named(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
    }

    /// As JSON Schema names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DateTime => "date-time",
            Self::Date => "date",
            Self::Uuid => "uuid",
            Self::Uri => "uri",
            Self::Email => "email",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    fn fits(self, text: &str) -> bool {
        match self {
            Self::DateTime => is_date_time(text),
            Self::Date => is_date(text),
            Self::Uuid => is_uuid(text),
            Self::Ipv4 => text.parse::<core::net::Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<core::net::Ipv6Addr>().is_ok(),
            Self::Uri => is_uri(text),
            Self::Email => is_email(text),
        }
    }
}

/// Whether `name` is an id, a number, a date or an address rather than a field's name.
pub(super) fn is_id(name: &str) -> bool {
    let digits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    let hex = name.len() >= 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    digits || hex || Format::of(name).is_some() || name.starts_with('/')
}

/// Whether `text` is `pattern`: `0` a digit, `x` a hex digit, all else itself.
fn like(text: &[u8], pattern: &[u8]) -> bool {
    text.len() == pattern.len()
        && text.iter().zip(pattern).all(|(b, p)| match p {
            b'0' => b.is_ascii_digit(),
            b'x' => b.is_ascii_hexdigit(),
            p => b == p,
        })
}

fn is_uuid(text: &str) -> bool {
    like(text.as_bytes(), b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
}

fn is_date(text: &str) -> bool {
    let part =
        |range: std::ops::Range<usize>| text.get(range).and_then(|t| t.parse::<u8>().ok()).unwrap_or(0);
    like(text.as_bytes(), b"0000-00-00") && (1..=12).contains(&part(5..7)) && (1..=31).contains(&part(8..10))
}

fn is_date_time(text: &str) -> bool {
    let Some((day, rest)) = text.split_at_checked(10) else { return false };
    let rest = rest.as_bytes();
    let Some((head, tail)) = rest.split_at_checked(9) else { return false };
    let between = matches!(head.first(), Some(b'T' | b't' | b' '));
    if !is_date(day) || !between || !like(&head[1..], b"00:00:00") {
        return false;
    }
    let fraction = match tail.strip_prefix(b".") {
        Some(more) => 1 + more.iter().take_while(|b| b.is_ascii_digit()).count(),
        None => 0,
    };
    let zone = tail.get(fraction..).unwrap_or_default();
    fraction != 1 && (matches!(zone, b"Z" | b"z") || like(zone, b"+00:00") || like(zone, b"-00:00"))
}

fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let mut letters = scheme.bytes();
    letters.next().is_some_and(|b| b.is_ascii_alphabetic())
        && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        && !rest.is_empty()
        && !rest.contains(char::is_whitespace)
}

fn is_email(text: &str) -> bool {
    let Some((who, host)) = text.split_once('@') else { return false };
    let plain =
        |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
    plain(who)
        && plain(host)
        && !host.contains('@')
        && host.split('.').count() > 1
        && host.split('.').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        for (text, want) in [
            ("2026-11-24T15:55:58.032Z", Some(Format::DateTime)),
            ("2026-11-24T15:55:58+01:00", Some(Format::DateTime)),
            ("2026-11-24 15:55:58-05:30", Some(Format::DateTime)),
            ("2026-11-24T15:55:58", None),
            ("2026-11-24T15:55:58.Z", None),
            ("2026-13-24T15:55:58Z", None),
            ("2026-11-24", Some(Format::Date)),
            ("2026-00-24", None),
            ("8f14e45f-ceea-467f-a8ab-0d2f1c3b4a59", Some(Format::Uuid)),
            ("8f14e45f-ceea-467f-a8ab-0d2f1c3b4a5", None),
            ("https://a.example/x?y", Some(Format::Uri)),
            ("http:// a", None),
            ("://x", None),
            ("ops@a.example", Some(Format::Email)),
            ("ops@localhost", None),
            ("a@b@c.d", None),
            ("10.0.0.1", Some(Format::Ipv4)),
            ("10.0.0.256", None),
            ("::1", Some(Format::Ipv6)),
            ("", None),
            ("é\u{301}2026-1", None),
            ("plain", None),
        ] {
            assert_eq!(Format::of(text), want, "{text:?}");
        }
    }
}
