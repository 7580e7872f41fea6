//! `telemetry_drift`: the answers of an endpoint do not look any more as they did.
//!
//! Sees `EndpointSeen`. The first answers teach it what they look like; then one that lacks a field that was always
//! there, or has another type or format at some place, must come `confirm` times in a row. Clears with the first answer
//! that fits. What does not fit is never learned; only a person can take it as known. No answer at all is neither.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::Action;
use crate::code_facts::{Answer, KnownAnswers};
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};
use crate::shape::{Difference, Schema, Shape};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "telemetry_drift",
    summary: "an endpoint's answers lost a field, or changed a type or format",
    help: "Asks every [[endpoint]] and learns what its answers look like from the first `learn` of them: types, fields \
           that are always there, null, formats, items of arrays, small closed sets of words; objects whose keys vary \
           are taken as maps. Or an OpenAPI 3 file says it. Fires when `confirm` answers in a row show the same \
           difference: a field that was always there is missing, a type or format is another one (for an OpenAPI file \
           also: a word outside of its enum). A new field, a new word, a fraction where whole numbers were: told once \
           and taken as known (`fire_on_new_fields` makes the first a drift). Clears with the first answer that fits. \
           An answer that shows a difference is never learned from; `grace endpoint accept NAME` takes the new shape \
           as known. No answer, an error or something else than JSON says nothing about the shape.",
    subjects: "endpoints",
    remedy: "file a task: regenerate the client",
    needs: "an [[endpoint]] that answers with JSON",
    evidence: &["endpoint"],
    route: Route::CodingAgent,
};

/// The trigger.
pub struct TelemetryDrift {
    settings: config::TelemetryDrift,
    endpoints: BTreeMap<String, Endpoint>,
}

/// A polled endpoint.
#[derive(Default)]
struct Endpoint {
    url: String,
    learn: Option<u32>,
    confirm: Option<u32>,
    known: Known,
    /// Differences that all of the last `streak` answers show.
    same: BTreeSet<Difference>,
    streak: u32,
    /// All answers since the first of them in one: what `accept` takes as known.
    recent: Shape,
    /// When the first of them came.
    began: Option<Timestamp>,
    /// What is said while the firing holds.
    said: Option<BTreeSet<Difference>>,
}

/// What answers are measured by.
enum Known {
    /// Learned from so many answers.
    Learned(u32, Shape),
    /// As a document says.
    Declared(String, Schema),
}

impl Default for Known {
    fn default() -> Self {
        Self::Learned(0, Shape::default())
    }
}

impl TelemetryDrift {
    /// Without endpoints.
    #[must_use]
    pub fn new(settings: config::TelemetryDrift) -> Self {
        Self { settings, endpoints: BTreeMap::new() }
    }
}

impl Trigger for TelemetryDrift {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.endpoints.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match &event.kind {
            Kind::EndpointDeclared { name, url, learn, confirm } => {
                let endpoint = self.endpoints.entry(name.clone()).or_default();
                (endpoint.url, endpoint.learn, endpoint.confirm) = (url.clone(), *learn, *confirm);
                Vec::new()
            }
            Kind::EndpointForgotten { name } => match self.endpoints.remove(name) {
                Some(endpoint) if endpoint.said.is_some() => vec![cleared(name, "not asked any more")],
                _ => Vec::new(),
            },
            Kind::EndpointKnown { name, known } => {
                let Some(endpoint) = self.endpoints.get_mut(name) else { return Vec::new() };
                match (known, &endpoint.known) {
                    (KnownAnswers::Learned { answers, shape }, Known::Learned(0, _)) => {
                        endpoint.known = Known::Learned(*answers, (**shape).clone());
                    }
                    // What this trigger learned itself and has heard to be kept.
                    (KnownAnswers::Learned { .. }, _) => {}
                    (KnownAnswers::Declared { document, schema }, _) => {
                        endpoint.known = Known::Declared(document.display().to_string(), (**schema).clone());
                    }
                }
                Vec::new()
            }
            Kind::EndpointAccepted { name } => match self.endpoints.get_mut(name) {
                Some(endpoint) => endpoint.accept(name),
                None => Vec::new(),
            },
            Kind::EndpointSeen { name, answer: Answer::Json(shape) } => match self.endpoints.get_mut(name) {
                Some(endpoint) => endpoint.judge(name, shape, event.at, &self.settings),
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

impl Endpoint {
    fn judge(
        &mut self,
        name: &str,
        shape: &Shape,
        now: Timestamp,
        settings: &config::TelemetryDrift,
    ) -> Vec<Verdict> {
        let learn = self.learn.unwrap_or(settings.learn).max(1);
        let differences = match &mut self.known {
            Known::Learned(answers, known) if *answers < learn => {
                known.absorb(shape);
                *answers += 1;
                return vec![self.keep(name)].into_iter().flatten().collect();
            }
            Known::Learned(_, known) => known.schema().check(shape, false),
            Known::Declared(_, schema) => schema.check(shape, true),
        };
        let counts = |d: &Difference| d.is_fault() || (settings.fire_on_new_fields && d.is_new_field());
        let (faults, news): (BTreeSet<Difference>, Vec<Difference>) = {
            let (faults, news): (Vec<_>, Vec<_>) = differences.into_iter().partition(counts);
            (faults.into_iter().collect(), news)
        };
        if faults.is_empty() {
            return self.fits(name, shape, &news, now);
        }
        let same: BTreeSet<Difference> = self.same.intersection(&faults).cloned().collect();
        if same.is_empty() {
            (self.same, self.streak, self.recent) = (faults, 1, shape.clone());
            self.began = Some(now);
        } else {
            self.same = same;
            self.streak = self.streak.saturating_add(1);
            self.recent.absorb(shape);
        }
        let confirm = self.confirm.unwrap_or(settings.confirm).max(1);
        if self.streak < confirm || self.said.as_ref() == Some(&self.same) {
            return Vec::new();
        }
        self.said = Some(self.same.clone());
        vec![Verdict::Holds(Box::new(self.finding(name, confirm, now)))]
    }

    /// An answer without a fault: the firing clears, and it is learned from.
    fn fits(&mut self, name: &str, shape: &Shape, news: &[Difference], now: Timestamp) -> Vec<Verdict> {
        let mut out = Vec::new();
        (self.same, self.streak, self.began) = (BTreeSet::new(), 0, None);
        self.recent = shape.clone();
        if self.said.take().is_some() {
            out.push(cleared(name, "an answer fits again"));
        }
        if !news.is_empty() && matches!(self.known, Known::Learned(..)) {
            out.push(Verdict::Happened(Box::new(self.news(name, news, now))));
        }
        if let Known::Learned(answers, known) = &mut self.known {
            let before = known.schema();
            known.absorb(shape);
            *answers = answers.saturating_add(1);
            if known.schema() != before {
                out.extend(self.keep(name));
            }
        }
        out
    }

    /// Takes the answers since the drift began as known, and goes on to learn until there are enough.
    fn accept(&mut self, name: &str) -> Vec<Verdict> {
        if matches!(self.known, Known::Declared(..)) || self.recent.seen == 0 {
            return Vec::new();
        }
        let answers = u32::try_from(self.recent.seen).unwrap_or(u32::MAX);
        self.known = Known::Learned(answers, std::mem::take(&mut self.recent));
        (self.same, self.streak, self.began) = (BTreeSet::new(), 0, None);
        let held = self.said.take().map(|_| cleared(name, "accepted as known"));
        held.into_iter().chain(self.keep(name)).collect()
    }

    /// What was learned outlives the agent.
    fn keep(&self, name: &str) -> Option<Verdict> {
        let Known::Learned(answers, shape) = &self.known else { return None };
        let (endpoint, shape) = (name.to_owned(), Box::new(shape.clone()));
        Some(Verdict::Wants(subject(name), Action::KeepShape { endpoint, answers: *answers, shape }))
    }

    fn finding(&self, name: &str, confirm: u32, now: Timestamp) -> Finding {
        let faults: Vec<String> = self.same.iter().map(ToString::to_string).collect();
        let more = match faults.len().saturating_sub(1) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Finding {
            subject: subject(name),
            since: self.began.unwrap_or(now),
            summary: format!("{}{more}", faults.first().map(String::as_str).unwrap_or_default()),
            measured: format!("the same in {} answers in a row", self.streak),
            threshold: format!("the same difference in {confirm} answers in a row"),
            baseline: match &self.known {
                Known::Learned(answers, _) => format!("learned from {answers} answers"),
                Known::Declared(document, _) => format!("declared by {}", document.escape_debug()),
            },
            writer: None,
            noticed_by: None,
            evidence: std::iter::once(format!("url {}", self.url.escape_debug())).chain(faults).collect(),
            remedy: vec![Action::FileTask {
                title: "Regenerate the client of an endpoint whose answers changed, or mend the endpoint"
                    .into(),
                acceptance:
                    "the endpoint's answers fit what is known of them, or `grace endpoint accept` took the \
                             new shape, and telemetry_drift stays clear for 10 minutes"
                        .into(),
            }],
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        }
    }

    fn news(&self, name: &str, news: &[Difference], now: Timestamp) -> Finding {
        let lines: Vec<String> = news.iter().map(ToString::to_string).collect();
        Finding {
            subject: subject(name),
            since: now,
            summary: format!("taken as known: {}", lines.join("; ")),
            measured: format!("{} new in one answer", lines.len()),
            threshold: "nothing that a client of the old shape fails on".into(),
            baseline: match &self.known {
                Known::Learned(answers, _) => format!("learned from {answers} answers"),
                Known::Declared(document, _) => format!("declared by {}", document.escape_debug()),
            },
            writer: None,
            noticed_by: None,
            evidence: vec![format!("url {}", self.url.escape_debug())],
            remedy: Vec::new(),
            delay: Duration::ZERO,
            hold: None,
            depends_on: Vec::new(),
        }
    }
}

fn subject(name: &str) -> Subject {
    Subject::Endpoint(name.to_owned())
}

fn cleared(name: &str, how: &str) -> Verdict {
    Verdict::Cleared(subject(name), how.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Story {
        trigger: TelemetryDrift,
        at: u64,
    }

    impl Story {
        fn new(settings: config::TelemetryDrift) -> Self {
            let mut story = Self { trigger: TelemetryDrift::new(settings), at: 1 };
            story.tell(Kind::EndpointDeclared {
                name: "e".into(),
                url: "http://h/".into(),
                learn: None,
                confirm: None,
            });
            story
        }

        /// What is said, in words; what is kept is left out.
        fn tell(&mut self, kind: Kind) -> Vec<String> {
            self.at += 1;
            let verdicts = self.trigger.on_event(&Event { at: Timestamp(self.at), kind });
            verdicts
                .into_iter()
                .filter_map(|v| match v {
                    Verdict::Holds(f) => Some(format!("holds {}", f.summary)),
                    Verdict::Cleared(_, how) => Some(format!("cleared {how}")),
                    Verdict::Happened(f) => Some(format!("news {}", f.summary)),
                    Verdict::Wants(..) => None,
                })
                .collect()
        }

        fn sees(&mut self, answer: &Value) -> Vec<String> {
            let answer = Answer::Json(Box::new(Shape::of(answer)));
            self.tell(Kind::EndpointSeen { name: "e".into(), answer })
        }

        fn learns(&mut self, answer: &Value) {
            for _ in 0..5 {
                assert_eq!(self.sees(answer), [""; 0]);
            }
        }
    }

    #[test]
    fn it_fires_when_confirmed_and_clears_when_an_answer_fits() {
        let mut story = Story::new(config::TelemetryDrift::default());
        let (good, bad) = (json!({"id": 1, "name": "x y"}), json!({"id": "1"}));
        story.learns(&good);
        assert_eq!(story.sees(&bad), [""; 0], "one answer is not enough");
        let down = Answer::None("connection refused".into());
        assert_eq!(story.tell(Kind::EndpointSeen { name: "e".into(), answer: down }), [""; 0]);
        assert_eq!(story.sees(&bad), ["holds /id: is string, was integer, and 1 more"]);
        assert_eq!(story.sees(&bad), [""; 0], "the same is said once");
        // However long it lasts, it is not learned.
        for _ in 0..200 {
            story.sees(&bad);
        }
        assert_eq!(story.sees(&good), ["cleared an answer fits again"]);
        assert_eq!(story.sees(&bad), [""; 0]);
        assert_eq!(story.sees(&good), [""; 0], "never confirmed, never said");
    }

    #[test]
    fn two_different_differences_confirm_nothing() {
        let mut story = Story::new(config::TelemetryDrift::default());
        story.learns(&json!({"a": 1, "b": 1}));
        for _ in 0..3 {
            assert_eq!(story.sees(&json!({"a": 1})), [""; 0]);
            assert_eq!(story.sees(&json!({"b": 1})), [""; 0]);
        }
    }

    #[test]
    fn a_new_field_is_told_once_and_known_then() {
        let mut story = Story::new(config::TelemetryDrift::default());
        story.learns(&json!({"a": 1}));
        assert_eq!(story.sees(&json!({"a": 1, "b": "x y"})), ["news taken as known: /b: new, string"]);
        assert_eq!(story.sees(&json!({"a": 1, "b": "x y"})), [""; 0]);
        let mut strict =
            Story::new(config::TelemetryDrift { fire_on_new_fields: true, ..Default::default() });
        strict.learns(&json!({"a": 1}));
        assert_eq!(strict.sees(&json!({"a": 1, "b": 2})), [""; 0]);
        assert_eq!(strict.sees(&json!({"a": 1, "b": 2})), ["holds /b: new, integer"]);
        assert_eq!(strict.sees(&json!({"a": 1})), ["cleared an answer fits again"]);
    }

    #[test]
    fn accepting_takes_the_new_shape_and_goes_on_to_learn() {
        let mut story = Story::new(config::TelemetryDrift::default());
        story.learns(&json!({"a": 1, "b": 1}));
        story.sees(&json!({"a": 1, "c": "x y"}));
        assert_eq!(story.sees(&json!({"a": 1})), ["holds /b: missing (was: integer, always there)"]);
        assert_eq!(story.tell(Kind::EndpointAccepted { name: "e".into() }), ["cleared accepted as known"]);
        for _ in 0..5 {
            assert_eq!(story.sees(&json!({"a": 1})), [""; 0]);
        }
        story.sees(&json!({}));
        assert_eq!(story.sees(&json!({})), ["holds /a: missing (was: integer, always there)"]);
    }

    #[test]
    fn what_was_known_before_is_judged_by_at_once() {
        let mut story = Story::new(config::TelemetryDrift::default());
        let mut shape = Shape::default();
        shape.absorb(&Shape::of(&json!({"a": 1})));
        let known = KnownAnswers::Learned { answers: 9, shape: Box::new(shape) };
        story.tell(Kind::EndpointKnown { name: "e".into(), known });
        story.sees(&json!({}));
        assert_eq!(story.sees(&json!({})), ["holds /a: missing (was: integer, always there)"]);
        assert_eq!(story.tell(Kind::EndpointForgotten { name: "e".into() }), ["cleared not asked any more"]);
    }
}
