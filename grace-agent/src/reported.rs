//! The vocabulary of applications: one record of what an application says about itself.
//!
//! Plain data, as `POST /v1/records`, JSON datagrams and the command line carry it. All of it is hostile: names are
//! bounded and free of control characters, values are finite; what is not is refused with a reason.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of anything, in bytes.
pub const NAME_MAX: usize = 256;
/// No value is further from zero: sums of what can come in a second stay finite.
pub const VALUE_MAX: f64 = 1e15;
/// Longest trace that is kept, in bytes; of a longer one the middle is left out.
pub const TRACE_MAX: usize = 64 << 10;
/// Beats, or growth of a counter, that one record can stand for.
pub const COUNT_MAX: u64 = 1 << 32;

/// One record of an application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reported {
    /// It is alive.
    Heartbeat {
        /// What is alive: a process, a part of one.
        name: String,
    },
    /// How many wait in a queue.
    Queue {
        /// The queue.
        name: String,
        /// How many; not negative.
        depth: f64,
    },
    /// How long an answer took.
    Latency {
        /// The route, such as `/api/chat`.
        route: String,
        /// In milliseconds; not negative.
        ms: f64,
    },
    /// How good a model's answers are.
    Accuracy {
        /// The model.
        model: String,
        /// By whatever measure, as long as more is better; not negative.
        value: f64,
    },
    /// Something failed.
    Error {
        /// Its type, such as `ImportError`.
        error: String,
        /// The trace, as the language prints it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<String>,
    },
    /// Any other number.
    Metric {
        /// Its name.
        name: String,
        /// Its value now.
        value: f64,
    },
}

impl Reported {
    /// The same, fit to be taken in: a long trace is cut.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn checked(mut self) -> Result<Self, String> {
        match &mut self {
            Self::Heartbeat { name } => name_fits("name", name)?,
            Self::Queue { name, depth } => {
                name_fits("name", name)?;
                size_fits("depth", *depth)?;
            }
            Self::Latency { route, ms } => {
                name_fits("route", route)?;
                size_fits("ms", *ms)?;
            }
            Self::Accuracy { model, value } => {
                name_fits("model", model)?;
                size_fits("value", *value)?;
            }
            Self::Metric { name, value } => {
                name_fits("name", name)?;
                value_fits("value", *value)?;
            }
            Self::Error { error, trace } => {
                name_fits("error", error)?;
                if let Some(long) = trace.as_ref().filter(|trace| trace.len() > TRACE_MAX) {
                    *trace = Some(without_middle(long));
                }
            }
        }
        Ok(self)
    }
}

/// True for a name of something: 1 to [`NAME_MAX`] bytes without control characters.
#[must_use]
pub fn is_name(name: &str) -> bool {
    // What a terminal or a line of a log acts on has no place in a name.
    !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control)
}

/// True for a number that can be judged: neither NaN nor infinite nor absurd.
#[must_use]
pub fn is_value(value: f64) -> bool {
    value.is_finite() && value.abs() <= VALUE_MAX
}

fn name_fits(key: &str, name: &str) -> Result<(), String> {
    if is_name(name) {
        return Ok(());
    }
    Err(format!("{key}: must be 1 to {NAME_MAX} bytes without control characters"))
}

fn value_fits(key: &str, value: f64) -> Result<(), String> {
    if is_value(value) { Ok(()) } else { Err(format!("{key}: must be finite and at most {VALUE_MAX:e}")) }
}

fn size_fits(key: &str, value: f64) -> Result<(), String> {
    value_fits(key, value)?;
    if value < 0.0 { Err(format!("{key}: must not be negative")) } else { Ok(()) }
}

/// Begin and end of a long trace: some languages say what it is about first, some last.
fn without_middle(text: &str) -> String {
    const KEPT: usize = TRACE_MAX / 2 - 32;
    let begin = text.get(..text.floor_char_boundary(KEPT)).unwrap_or_default();
    let end = text.get(text.ceil_char_boundary(text.len() - KEPT)..).unwrap_or_default();
    format!("{begin}\n… {} bytes left out …\n{end}", text.len() - begin.len() - end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Reported, String> {
        serde_json::from_str::<Reported>(text).map_err(|err| err.to_string())?.checked()
    }

    #[test]
    fn records_are_read_as_documented() {
        for text in [
            r#"{"kind":"heartbeat","name":"coding_agent"}"#,
            r#"{"kind":"queue","name":"message_bus","depth":1500}"#,
            r#"{"kind":"latency","route":"/api/chat","ms":850.5}"#,
            r#"{"kind":"accuracy","model":"grace_reasoning","value":0.85}"#,
            r#"{"kind":"error","error":"ImportError","trace":"Traceback…"}"#,
            r#"{"kind":"error","error":"ImportError"}"#,
            r#"{"kind":"metric","name":"loss","value":-1.5}"#,
        ] {
            let record = read(text).unwrap_or_else(|err| panic!("{text}: {err}"));
            let again = serde_json::to_string(&record).unwrap();
            assert_eq!(read(&again).unwrap(), record);
        }
    }

    #[test]
    fn what_cannot_be_judged_is_refused_with_a_reason() {
        let long = "x".repeat(257);
        for (text, why) in [
            (r#"{"kind":"heartbeat"}"#, "name"),
            (r#"{"kind":"heartbeat","name":""}"#, "name: must be"),
            (r#"{"kind":"heartbeat","name":"a\u0007"}"#, "name: must be"),
            (&format!(r#"{{"kind":"heartbeat","name":"{long}"}}"#), "name: must be"),
            (r#"{"kind":"heartbeat","name":"a","more":1}"#, "more"),
            (r#"{"kind":"pulse","name":"a"}"#, "pulse"),
            (r#"{"kind":"queue","name":"a","depth":-1}"#, "depth: must not be negative"),
            (r#"{"kind":"queue","name":"a","depth":1e300}"#, "depth: must be finite"),
            (r#"{"kind":"queue","name":"a","depth":1e999}"#, "out of range"),
            (r#"{"kind":"queue","name":"a","depth":null}"#, "null"),
            (r#"{"kind":"latency","route":"/a","ms":"fast"}"#, "fast"),
            (r#"{"name":"a"}"#, "kind"),
            ("[]", ""),
            ("7", ""),
        ] {
            let err = read(text).expect_err(text);
            assert!(err.contains(why), "{text}: {err}");
        }
    }

    #[test]
    fn of_a_long_trace_begin_and_end_are_kept() {
        let trace = format!("first{}last", "ä".repeat(TRACE_MAX));
        let record = Reported::Error { error: "E".into(), trace: Some(trace) }.checked().unwrap();
        let Reported::Error { trace: Some(trace), .. } = record else { panic!() };
        assert!(trace.len() <= TRACE_MAX && trace.starts_with("first") && trace.ends_with("last"));
        assert!(trace.contains("bytes left out"));
    }
}
