//! StatsD lines as applications send them, DogStatsD's additions too. Bytes in, borrowed parts out: nothing is
//! allocated, nothing is remembered, and no bytes make it fail otherwise than with a reason.
//!
//! `NAME:VALUE|TYPE[|@RATE][|#TAGS]…`, where DogStatsD allows several values. What is meant stands in the name:
//! `queue.NAME` and `accuracy.MODEL` as gauges, `latency.ROUTE` as a timer, `heartbeat.NAME` as counter or gauge.
//! Everything else is a metric of its whole name.

use super::Refused;
use crate::reported::{COUNT_MAX, is_name, is_value};

/// Digits of a number that are looked at.
const NUMBER_MAX: usize = 64;
/// Observations that a sampled one may stand for.
const TIMES_MAX: f64 = 1e6;

/// What one value of a line says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Said<'a> {
    /// Something is alive.
    Beat { name: &'a str, count: u64 },
    /// So many wait.
    Depth { name: &'a str, change: Change },
    /// An answer took so long, that many times.
    Took { route: &'a str, ms: f64, times: u64 },
    /// A model is that good.
    Accurate { model: &'a str, change: Change },
    /// A gauge's value.
    Gauge { name: &'a str, change: Change },
    /// A counter has grown.
    Counted { name: &'a str, growth: f64 },
    /// Something was measured, that many times.
    Timed { name: &'a str, value: f64, times: u64 },
}

/// A gauge is set, or moved by a number with a sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    To(f64),
    By(f64),
}

/// What a type announces.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    Gauge,
    Counter,
    /// Timers, histograms and distributions: observations.
    Observed,
}

/// Hands each value of `line` to `take`. A line of which a part is wrong is taken up to there.
pub(super) fn parse<'a>(
    line: &'a [u8],
    take: &mut impl FnMut(Said<'a>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    if line.starts_with(b"_e{") || line.starts_with(b"_sc|") {
        return Err(Refused::Event);
    }
    let line = std::str::from_utf8(line).map_err(|_no_utf8| Refused::Name)?;
    let (text, rest) = line.split_once('|').ok_or(Refused::Line)?;
    let mut sections = rest.split('|');
    let kind = match sections.next().unwrap_or_default() {
        "g" => Type::Gauge,
        "c" => Type::Counter,
        "ms" | "h" | "d" => Type::Observed,
        "s" => return Err(Refused::Set),
        _ => return Err(Refused::Type),
    };
    // Tags, container and time of DogStatsD say nothing that is judged here.
    let times = match sections.find_map(|section| section.strip_prefix('@')) {
        None => 1.0,
        Some(rate) => 1.0 / number(rate).filter(|rate| *rate > 0.0 && *rate <= 1.0).ok_or(Refused::Rate)?,
    };
    if times > TIMES_MAX {
        return Err(Refused::Rate);
    }
    // A route may have colons of its own (`/users/:id`): the values are the numbers at the end.
    let (first, _) = text.rsplit_once(':').ok_or(Refused::Line)?;
    let mut name = first;
    while let Some((shorter, _)) = name.rsplit_once(':').filter(|(_, value)| number(value).is_some()) {
        name = shorter;
    }
    let values = text.get(name.len() + 1..).unwrap_or_default();
    if !is_name(name) {
        return Err(Refused::Name);
    }
    values.split(':').try_for_each(|value| take(meaning(name, kind, value, times)?))
}

fn meaning<'a>(name: &'a str, kind: Type, text: &str, times: f64) -> Result<Said<'a>, Refused> {
    let value = number(text).ok_or(Refused::Value)?;
    let change = if text.starts_with(['+', '-']) { Change::By(value) } else { Change::To(value) };
    let scaled = value * times;
    // At most TIMES_MAX and at least 1: both checked above.
    let whole_times = times.round() as u64;
    let sized = || if value < 0.0 { Err(Refused::Value) } else { Ok(value) };
    let named = |prefix: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    Ok(match kind {
        Type::Gauge | Type::Counter if named("heartbeat.").is_some() => {
            if value <= 0.0 {
                return Err(Refused::Value);
            }
            let count = if kind == Type::Counter { scaled.clamp(1.0, COUNT_MAX as f64) } else { 1.0 };
            Said::Beat { name: named("heartbeat.").unwrap_or(name), count: count as u64 }
        }
        Type::Gauge => match (named("queue."), named("accuracy.")) {
            (Some(name), _) => Said::Depth { name, change },
            (_, Some(model)) => Said::Accurate { model, change },
            _ => Said::Gauge { name, change },
        },
        Type::Counter if is_value(scaled) => Said::Counted { name, growth: scaled },
        Type::Counter => return Err(Refused::Value),
        Type::Observed => match named("latency.") {
            Some(route) => Said::Took { route, ms: sized()?, times: whole_times },
            None => Said::Timed { name, value, times: whole_times },
        },
    })
}

/// A number that can be judged.
fn number(text: &str) -> Option<f64> {
    // Rust reads `inf` and `nan`, too: those are no values.
    if text.len() > NUMBER_MAX {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| is_value(*value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(line: &[u8]) -> (Vec<Said<'_>>, Result<(), Refused>) {
        let mut said = Vec::new();
        let result = parse(line, &mut |one| {
            said.push(one);
            Ok(())
        });
        (said, result)
    }

    #[track_caller]
    fn one(line: &str) -> Said<'_> {
        let (said, result) = all(line.as_bytes());
        assert_eq!((said.len(), result), (1, Ok(())), "{line}");
        said[0]
    }

    #[test]
    fn lines_mean_what_is_documented() {
        use Change::{By, To};
        for (line, said) in [
            ("queue.message_bus:1500|g", Said::Depth { name: "message_bus", change: To(1500.0) }),
            ("queue.message_bus:+3|g", Said::Depth { name: "message_bus", change: By(3.0) }),
            ("queue.message_bus:-3|g", Said::Depth { name: "message_bus", change: By(-3.0) }),
            ("latency./api/chat:850.5|ms", Said::Took { route: "/api/chat", ms: 850.5, times: 1 }),
            ("latency./a:1|h|@0.1", Said::Took { route: "/a", ms: 1.0, times: 10 }),
            ("latency./a:1|d|#env:prod,a:b|c:in-7", Said::Took { route: "/a", ms: 1.0, times: 1 }),
            ("latency./users/:id:7|ms", Said::Took { route: "/users/:id", ms: 7.0, times: 1 }),
            ("heartbeat.coding_agent:1|c", Said::Beat { name: "coding_agent", count: 1 }),
            ("heartbeat.a:2|c|@0.5", Said::Beat { name: "a", count: 4 }),
            ("heartbeat.a:7|g", Said::Beat { name: "a", count: 1 }),
            (
                "accuracy.grace_reasoning:0.85|g",
                Said::Accurate { model: "grace_reasoning", change: To(0.85) },
            ),
            ("loss:2.5|g|T1656581400", Said::Gauge { name: "loss", change: To(2.5) }),
            ("steps:10|c|@0.1", Said::Counted { name: "steps", growth: 100.0 }),
            ("steps:-1|c", Said::Counted { name: "steps", growth: -1.0 }),
            ("db.query:3|ms", Said::Timed { name: "db.query", value: 3.0, times: 1 }),
            // Not what the prefix stands for: a metric like any other.
            ("queue.a:1|c", Said::Counted { name: "queue.a", growth: 1.0 }),
            ("latency.a:1|g", Said::Gauge { name: "latency.a", change: To(1.0) }),
            ("queue.:1|g", Said::Gauge { name: "queue.", change: To(1.0) }),
            ("größe:1e3|g", Said::Gauge { name: "größe", change: To(1000.0) }),
        ] {
            assert_eq!(one(line), said, "{line}");
        }
    }

    #[test]
    fn several_values_are_several() {
        let (said, result) = all(b"latency./a:1:2:3|ms");
        assert_eq!(result, Ok(()));
        let took = |ms| Said::Took { route: "/a", ms, times: 1 };
        assert_eq!(said, [took(1.0), took(2.0), took(3.0)]);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_reason() {
        let long = format!("{}:1|g", "n".repeat(257));
        let digits = format!("a:{}|g", "1".repeat(65));
        for (line, why) in [
            (&b"a"[..], Refused::Line),
            (b"a|g", Refused::Line),
            (b"a:1", Refused::Line),
            (b"a:1|x", Refused::Type),
            (b"a:1|", Refused::Type),
            (b"a:x|g", Refused::Value),
            (b"a:|g", Refused::Value),
            (b"a:nan|g", Refused::Value),
            (b"a:inf|g", Refused::Value),
            (b"a:-infinity|g", Refused::Value),
            (b"a:1e300|g", Refused::Value),
            (b"a:1e999|g", Refused::Value),
            (b"a:1e15|c|@0.001", Refused::Value),
            (b"latency.a:-1|ms", Refused::Value),
            (b"heartbeat.a:0|c", Refused::Value),
            (b"heartbeat.a:-1|c", Refused::Value),
            (b"a:1|c|@0", Refused::Rate),
            (b"a:1|c|@2", Refused::Rate),
            (b"a:1|c|@1e-9", Refused::Rate),
            (b"a:1|c|@x", Refused::Rate),
            (b":1|g", Refused::Name),
            (b"a\x07:1|g", Refused::Name),
            (b"\xff:1|g", Refused::Name),
            (long.as_bytes(), Refused::Name),
            (digits.as_bytes(), Refused::Value),
            (b"users:7|s", Refused::Set),
            (b"_e{1,1}:a|b", Refused::Event),
            (b"_sc|a|0", Refused::Event),
        ] {
            assert_eq!(all(line), (vec![], Err(why)), "{}", line.escape_ascii());
        }
    }

    /// Text that is close to a line.
    fn almost() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just("queue."),
            Just("latency."),
            Just("heartbeat."),
            Just("accuracy."),
            Just(":"),
            Just("|"),
            Just("|g"),
            Just("|c"),
            Just("|ms"),
            Just("|@"),
            Just("0.1"),
            Just("-"),
            Just("+"),
            Just("1e308"),
            Just("nan"),
            Just("|#"),
            Just("ä"),
            Just("\0"),
            Just("a"),
            Just("9"),
        ];
        proptest::collection::vec(part, 0..20).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_bytes_make_it_fail(line in prop_oneof![almost(), proptest::collection::vec(any::<u8>(), 0..300)]) {
            let (said, _) = all(&line);
            prop_assert!(said.len() <= line.len());
            for one in said {
                let (name, numbers) = match one {
                    Said::Beat { name, count } => { prop_assert!(count >= 1); (name, [count as f64; 2]) }
                    Said::Took { route, ms, times } => { prop_assert!(ms >= 0.0); (route, [ms, times as f64]) }
                    Said::Depth { name, change } | Said::Gauge { name, change } | Said::Accurate { model: name, change } => {
                        let (Change::To(value) | Change::By(value)) = change;
                        (name, [value; 2])
                    }
                    Said::Counted { name, growth } => (name, [growth; 2]),
                    Said::Timed { name, value, times } => (name, [value, times as f64]),
                };
                prop_assert!(is_name(name) && numbers.iter().all(|n| is_value(*n)), "{one:?}");
            }
        }

        #[test]
        fn every_good_line_is_read(name in "[a-zA-Z/_][a-zA-Z0-9/_.-]{0,80}", value in -1e15..1e15f64) {
            let line = format!("x{name}:{value}|g");
            let (said, result) = all(line.as_bytes());
            prop_assert_eq!((said.len(), result), (1, Ok(())));
        }
    }
}
