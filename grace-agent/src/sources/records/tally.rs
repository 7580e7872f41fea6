//! What came in since it was last told, by name: many records become one event a second for each name.
//!
//! Bounded whatever comes: so many names of a kind, so many errors; what does not fit is refused and counted. A name
//! that is known costs no allocation. Nothing here reads a clock or a socket.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Refused;
use super::statsd::{Change, Said};
use crate::event::{Kind, Timestamp};
use crate::reported::{Reported, VALUE_MAX};
use crate::sketch::Sketch;

/// Names of one kind that have a place.
pub(super) const NAMES_MAX: usize = 10_000;
/// Different errors between two flushes.
pub(super) const ERRORS_MAX: usize = 64;
/// A name that was not heard of for so long gives its place to another.
const FORGET: Duration = Duration::from_secs(600);
/// How often that is looked after.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Between two events of a name.
const EVERY: Duration = Duration::from_secs(1);

/// The kinds that have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Beat,
    Queue,
    Route,
    Model,
    Metric,
}

/// The names of one kind and what is known of each.
struct Table<T> {
    places: HashMap<Arc<str>, Place<T>>,
}

struct Place<T> {
    name: Arc<str>,
    /// Something came in that has not been told.
    waits: bool,
    heard: Timestamp,
    value: T,
}

#[derive(Default)]
struct Depth {
    now: f64,
    max: f64,
}

#[derive(Default)]
struct Metric {
    shape: Shape,
    /// A gauge's value, a counter's growth, the sum of observations.
    value: f64,
    count: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Shape {
    #[default]
    Gauge,
    Counter,
    Observed,
}

/// An error of an application, and how often it came.
struct Failed {
    kind: String,
    trace: Option<String>,
    source: String,
    count: u64,
}

/// See the room's head.
pub(super) struct Tally {
    beats: Table<u64>,
    queues: Table<Depth>,
    routes: Table<Sketch>,
    models: Table<f64>,
    metrics: Table<Metric>,
    errors: VecDeque<Failed>,
    /// Names that something came in for, since the flush under way began.
    waiting: VecDeque<(Of, Arc<str>)>,
    /// Those of the flush under way.
    due: VecDeque<(Of, Arc<str>)>,
    due_errors: VecDeque<Failed>,
    /// When a flush was last finished.
    flushed: Option<Timestamp>,
    forgot: Timestamp,
    /// Taken in.
    pub(super) records: u64,
    refused: [u64; Refused::ALL.len()],
    /// Of the refused, what the engine was told.
    told: u64,
}

impl<T: Default> Table<T> {
    fn new() -> Self {
        Self { places: HashMap::new() }
    }

    /// What is known of `name`, and, where it begins to wait, the name itself.
    fn at(&mut self, name: &str, now: Timestamp) -> Result<(&mut T, Option<Arc<str>>), Refused> {
        // Asked twice where it is new, so that one that is known costs a borrow and no copy of its name.
        if !self.places.contains_key(name) {
            if self.places.len() >= NAMES_MAX {
                return Err(Refused::Names);
            }
            let name: Arc<str> = Arc::from(name);
            let place = Place { name: Arc::clone(&name), waits: false, heard: now, value: T::default() };
            self.places.insert(name, place);
        }
        let place = self.places.get_mut(name).ok_or(Refused::Names)?;
        let begins = (!place.waits).then(|| Arc::clone(&place.name));
        place.waits = true;
        place.heard = now;
        Ok((&mut place.value, begins))
    }

    /// What waits of `name`, which waits no more.
    fn told(&mut self, name: &str) -> Option<&mut T> {
        let place = self.places.get_mut(name)?;
        place.waits = false;
        Some(&mut place.value)
    }

    fn forget(&mut self, now: Timestamp) {
        self.places.retain(|_, place| place.waits || now.since(place.heard) < FORGET);
    }
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            beats: Table::new(),
            queues: Table::new(),
            routes: Table::new(),
            models: Table::new(),
            metrics: Table::new(),
            errors: VecDeque::new(),
            waiting: VecDeque::new(),
            due: VecDeque::new(),
            due_errors: VecDeque::new(),
            flushed: None,
            forgot: Timestamp::default(),
            records: 0,
            refused: [0; Refused::ALL.len()],
            told: 0,
        }
    }

    /// Takes in what a line says.
    pub(super) fn said(&mut self, said: Said<'_>, now: Timestamp) -> Result<(), Refused> {
        let (of, new) = match said {
            Said::Beat { name, count } => {
                let (beats, new) = self.beats.at(name, now)?;
                *beats = beats.saturating_add(count);
                (Of::Beat, new)
            }
            Said::Depth { name, change } => {
                let (depth, new) = self.queues.at(name, now)?;
                // A queue that is moved below nothing is empty: whoever moved it began to count later than it filled.
                depth.now = changed(depth.now, change).max(0.0);
                // What was told is over: the first of an interval begins its highest.
                depth.max = if new.is_some() { depth.now } else { depth.max.max(depth.now) };
                (Of::Queue, new)
            }
            Said::Took { route, ms, times } => {
                let (sketch, new) = self.routes.at(route, now)?;
                sketch.record_many(ms, times);
                (Of::Route, new)
            }
            Said::Accurate { model, change } => {
                let (value, new) = self.models.at(model, now)?;
                *value = changed(*value, change).max(0.0);
                (Of::Model, new)
            }
            Said::Gauge { name, change } => {
                let (metric, new) = self.metrics.at(name, now)?;
                let before = metric.begin(Shape::Gauge, new.is_some());
                metric.value = changed(before, change);
                metric.count = metric.count.saturating_add(1);
                (Of::Metric, new)
            }
            Said::Counted { name, growth } => {
                let (metric, new) = self.metrics.at(name, now)?;
                metric.value = metric.begin(Shape::Counter, new.is_some()) + growth;
                metric.count = metric.count.saturating_add(1);
                (Of::Metric, new)
            }
            Said::Timed { name, value, times } => {
                let (metric, new) = self.metrics.at(name, now)?;
                metric.value = metric.begin(Shape::Observed, new.is_some()) + value * times as f64;
                metric.count = metric.count.saturating_add(times);
                (Of::Metric, new)
            }
        };
        self.records += 1;
        if let Some(name) = new {
            self.waiting.push_back((of, name));
        }
        Ok(())
    }

    /// Takes in a record that was checked. `source` is who sent it.
    pub(super) fn reported(&mut self, record: Reported, source: &str, now: Timestamp) -> Result<(), Refused> {
        match &record {
            Reported::Heartbeat { name } => self.said(Said::Beat { name, count: 1 }, now),
            Reported::Queue { name, depth } => {
                self.said(Said::Depth { name, change: Change::To(*depth) }, now)
            }
            Reported::Latency { route, ms } => self.said(Said::Took { route, ms: *ms, times: 1 }, now),
            Reported::Accuracy { model, value } => {
                self.said(Said::Accurate { model, change: Change::To(*value) }, now)
            }
            Reported::Metric { name, value } => {
                self.said(Said::Gauge { name, change: Change::To(*value) }, now)
            }
            Reported::Error { error, trace } => self.failed(error, trace.as_deref(), source),
        }
    }

    fn failed(&mut self, kind: &str, trace: Option<&str>, source: &str) -> Result<(), Refused> {
        let same = |e: &&mut Failed| e.kind == kind && e.trace.as_deref() == trace && e.source == source;
        if let Some(error) = self.errors.iter_mut().find(same) {
            error.count = error.count.saturating_add(1);
        } else if self.errors.len() >= ERRORS_MAX {
            return Err(Refused::Errors);
        } else {
            let (kind, trace, source) = (kind.to_owned(), trace.map(str::to_owned), source.to_owned());
            self.errors.push_back(Failed { kind, trace, source, count: 1 });
        }
        self.records += 1;
        Ok(())
    }

    /// Counts something that was not taken in.
    pub(super) fn refuse(&mut self, why: Refused) {
        if let Some(count) = self.refused.get_mut(why as usize) {
            *count += 1;
        }
    }

    /// What was refused, by reason; reasons that did not occur are left out.
    pub(super) fn refused(&self) -> BTreeMap<String, u64> {
        let counts = Refused::ALL.iter().zip(self.refused);
        counts.filter(|(_, n)| *n > 0).map(|(why, n)| (why.name().to_owned(), n)).collect()
    }

    /// How much of it is a loss: all but what this agent does not take by design.
    pub(super) fn lost(&self) -> u64 {
        let counts = Refused::ALL.iter().zip(self.refused);
        counts.filter(|(why, _)| why.is_loss()).map(|(_, n)| n).sum()
    }

    /// How many names have a place, by kind.
    pub(super) fn names(&self) -> BTreeMap<String, u64> {
        [
            ("heartbeat", self.beats.places.len()),
            ("queue", self.queues.places.len()),
            ("latency", self.routes.places.len()),
            ("accuracy", self.models.places.len()),
            ("metric", self.metrics.places.len()),
        ]
        .into_iter()
        .map(|(kind, n)| (kind.to_owned(), n as u64))
        .collect()
    }

    /// How long until there is something to tell; none: nothing waits.
    pub(super) fn due_in(&self, now: Timestamp) -> Option<Duration> {
        let under_way = !self.due.is_empty() || !self.due_errors.is_empty();
        let anything =
            under_way || !self.waiting.is_empty() || !self.errors.is_empty() || self.lost() > self.told;
        anything.then(|| match self.flushed {
            Some(flushed) if !under_way => EVERY.saturating_sub(now.since(flushed)),
            _ => Duration::ZERO,
        })
    }

    /// Tells all that waits, where it is time, as long as `tell` takes it. What it does not take stays, and grows no
    /// larger for it. `tell` gives back what it does not take. True: all was told.
    pub(super) fn flush(&mut self, now: Timestamp, mut tell: impl FnMut(Kind) -> Option<Kind>) -> bool {
        if self.due_in(now) != Some(Duration::ZERO) {
            return true;
        }
        if self.due.is_empty() && self.due_errors.is_empty() {
            std::mem::swap(&mut self.due, &mut self.waiting);
            std::mem::swap(&mut self.due_errors, &mut self.errors);
        }
        let lost = self.lost();
        if lost > self.told {
            if tell(Kind::Lost { class: super::CLASS.to_owned(), total: lost }).is_some() {
                return false;
            }
            self.told = lost;
        }
        while let Some(failed) = self.due_errors.pop_front() {
            let Failed { kind, trace, source, count } = failed;
            if let Some(kept) = tell(Kind::ErrorReported { kind, trace, source, count }) {
                if let Kind::ErrorReported { kind, trace, source, count } = kept {
                    self.due_errors.push_front(Failed { kind, trace, source, count });
                }
                return false;
            }
        }
        while let Some((of, name)) = self.due.pop_front() {
            let Some(kind) = self.take(of, &name) else { continue };
            if let Some(kept) = tell(kind) {
                self.put_back(&name, kept);
                self.due.push_front((of, name));
                return false;
            }
        }
        self.flushed = Some(now);
        if now.since(self.forgot) >= FORGET_EVERY {
            self.forgot = now;
            self.beats.forget(now);
            self.queues.forget(now);
            self.routes.forget(now);
            self.models.forget(now);
            self.metrics.forget(now);
        }
        true
    }

    /// What waits of `name`, as an event.
    fn take(&mut self, of: Of, name: &str) -> Option<Kind> {
        let owned = || name.to_owned();
        Some(match of {
            Of::Beat => Kind::Heartbeat { name: owned(), count: std::mem::take(self.beats.told(name)?) },
            Of::Queue => {
                let depth = self.queues.told(name)?;
                Kind::QueueDepth { name: owned(), depth: depth.now, max: depth.max }
            }
            Of::Route => {
                Kind::RouteLatency { route: owned(), took_ms: std::mem::take(self.routes.told(name)?) }
            }
            Of::Model => Kind::Accuracy { model: owned(), value: *self.models.told(name)? },
            Of::Metric => {
                let metric = self.metrics.told(name)?;
                let count = metric.count;
                Kind::Metric { name: owned(), value: metric.told(), count }
            }
        })
    }

    /// What could not be told waits again.
    fn put_back(&mut self, name: &str, kind: Kind) {
        match kind {
            Kind::Heartbeat { count, .. } => {
                self.beats.wait(name, |beats| *beats = beats.saturating_add(count))
            }
            // The value itself has stayed.
            Kind::QueueDepth { .. } => self.queues.wait(name, |_| ()),
            Kind::RouteLatency { took_ms, .. } => self.routes.wait(name, |sketch| sketch.merge(&took_ms)),
            Kind::Accuracy { .. } => self.models.wait(name, |_| ()),
            Kind::Metric { value, count, .. } => {
                self.metrics.wait(name, |metric| metric.untold(value, count))
            }
            _ => {}
        }
    }
}

impl<T> Table<T> {
    fn wait(&mut self, name: &str, change: impl FnOnce(&mut T)) {
        if let Some(place) = self.places.get_mut(name) {
            place.waits = true;
            change(&mut place.value);
        }
    }
}

impl Metric {
    /// Makes it one of this shape; the value to go on from.
    fn begin(&mut self, shape: Shape, first: bool) -> f64 {
        let same = self.shape == shape;
        // A gauge is what it was until it changes; growth and observations begin with each interval.
        if !same || (first && shape != Shape::Gauge) {
            self.value = 0.0;
        }
        if !same || first {
            self.count = 0;
        }
        self.shape = shape;
        self.value
    }

    /// Its value as it is told.
    fn told(&self) -> f64 {
        match self.shape {
            Shape::Observed if self.count > 0 => self.value / self.count as f64,
            _ => self.value,
        }
    }

    fn untold(&mut self, value: f64, count: u64) {
        self.count = count;
        self.value = if self.shape == Shape::Observed { value * count as f64 } else { value };
    }
}

/// A gauge after a change. It stays a value that can be judged, however often it is moved.
fn changed(before: f64, change: Change) -> f64 {
    match change {
        Change::To(value) => value,
        Change::By(step) => (before + step).clamp(-VALUE_MAX, VALUE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::statsd;
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000_000 + ms * 1_000_000)
    }

    fn take(tally: &mut Tally, line: &str, now: Timestamp) -> Result<(), Refused> {
        statsd::parse(line.as_bytes(), &mut |said| tally.said(said, now))
    }

    fn flush(tally: &mut Tally, now: Timestamp) -> Vec<Kind> {
        let mut out = Vec::new();
        assert!(tally.flush(now, |kind| {
            out.push(kind);
            None
        }));
        out
    }

    #[test]
    fn many_records_are_one_event_a_second_for_each_name() {
        let mut tally = Tally::new();
        for line in [
            "heartbeat.a:1|c",
            "queue.q:5|g",
            "queue.q:9|g",
            "queue.q:-2|g",
            "latency./r:10|ms",
            "latency./r:20|ms|@0.5",
            "accuracy.m:0.5|g",
            "accuracy.m:0.9|g",
            "n:3|c",
            "n:4|c",
            "t:2|ms",
            "t:4|ms",
            "g:1|g",
            "g:+1|g",
        ] {
            take(&mut tally, line, at(0)).unwrap();
        }
        let mut took_ms = Sketch::default();
        took_ms.record(10.0);
        took_ms.record_many(20.0, 2);
        let metric = |name: &str, value, count| Kind::Metric { name: name.into(), value, count };
        assert_eq!(
            flush(&mut tally, at(0)),
            [
                Kind::Heartbeat { name: "a".into(), count: 1 },
                Kind::QueueDepth { name: "q".into(), depth: 7.0, max: 9.0 },
                Kind::RouteLatency { route: "/r".into(), took_ms },
                Kind::Accuracy { model: "m".into(), value: 0.9 },
                metric("n", 7.0, 2),
                metric("t", 3.0, 2),
                metric("g", 2.0, 2),
            ]
        );
        assert_eq!(tally.due_in(at(0)), None);
        for line in ["heartbeat.a:1|c", "queue.q:-1|g", "n:1|c", "g:+1|g", "t:8|ms"] {
            take(&mut tally, line, at(10)).unwrap();
        }
        assert_eq!(tally.due_in(at(10)), Some(Duration::from_millis(990)));
        assert_eq!(flush(&mut tally, at(500)), [], "not before its time");
        assert_eq!(
            flush(&mut tally, at(1000)),
            [
                Kind::Heartbeat { name: "a".into(), count: 1 },
                Kind::QueueDepth { name: "q".into(), depth: 6.0, max: 6.0 },
                metric("n", 1.0, 1),
                metric("g", 3.0, 1),
                metric("t", 8.0, 1),
            ]
        );
        assert_eq!(tally.records, 19);
    }

    #[test]
    fn a_million_names_are_bounded_and_counted() {
        let mut tally = Tally::new();
        for i in 0..1_000_000u32 {
            if let Err(why) = take(&mut tally, &format!("heartbeat.{i}:1|c"), at(0)) {
                tally.refuse(why);
            }
        }
        assert_eq!(tally.names()["heartbeat"], NAMES_MAX as u64);
        assert_eq!(tally.refused(), BTreeMap::from([("names".to_owned(), 990_000)]));
        // Other kinds, and names that have their place, are not touched.
        take(&mut tally, "queue.q:1|g", at(0)).unwrap();
        take(&mut tally, "heartbeat.7:1|c", at(0)).unwrap();
        let told = flush(&mut tally, at(0));
        assert_eq!(told[0], Kind::Lost { class: "records".into(), total: 990_000 });
        assert_eq!(told.len(), 1 + NAMES_MAX + 1);
        // Those that are not heard of any more make room.
        take(&mut tally, "queue.q:1|g", at(700_000)).unwrap();
        flush(&mut tally, at(700_000));
        take(&mut tally, "heartbeat.new:1|c", at(700_001)).unwrap();
        assert_eq!(tally.names()["heartbeat"], 1);
    }

    #[test]
    fn an_engine_that_takes_nothing_loses_nothing() {
        let mut tally = Tally::new();
        let lines =
            ["heartbeat.a:1|c", "latency./r:10|ms", "queue.q:5|g", "n:3|c", "t:2|ms", "accuracy.m:1|g"];
        for _ in 0..3 {
            lines.iter().for_each(|line| take(&mut tally, line, at(0)).unwrap());
            tally.reported(Reported::Error { error: "E".into(), trace: None }, "w", at(0)).unwrap();
            assert!(!tally.flush(at(0), Some));
        }
        // One at a time.
        let mut out = Vec::new();
        for _ in 0..20 {
            let mut first = true;
            tally.flush(at(0), |kind| {
                if std::mem::take(&mut first) {
                    out.push(kind);
                    None
                } else {
                    Some(kind)
                }
            });
        }
        out.extend(flush(&mut tally, at(2000)));
        let sum = |pick: fn(&Kind) -> u64| out.iter().map(pick).sum::<u64>();
        assert_eq!(sum(|k| if let Kind::Heartbeat { count, .. } = k { *count } else { 0 }), 3);
        assert_eq!(sum(|k| if let Kind::RouteLatency { took_ms, .. } = k { took_ms.count() } else { 0 }), 3);
        assert_eq!(sum(|k| if let Kind::Metric { count, .. } = k { *count } else { 0 }), 6);
        assert_eq!(sum(|k| if let Kind::ErrorReported { count, .. } = k { *count } else { 0 }), 3);
        assert!(out.contains(&Kind::Metric { name: "n".into(), value: 9.0, count: 3 }), "{out:?}");
        assert!(out.contains(&Kind::Metric { name: "t".into(), value: 2.0, count: 3 }), "{out:?}");
    }

    #[test]
    fn the_same_error_is_counted_and_too_many_are_refused() {
        let mut tally = Tally::new();
        let error = |n: usize| Reported::Error { error: format!("E{n}"), trace: Some("t".into()) };
        for n in 0..ERRORS_MAX + 5 {
            for _ in 0..2 {
                if let Err(why) = tally.reported(error(n), "w", at(0)) {
                    tally.refuse(why);
                }
            }
        }
        assert_eq!(tally.refused(), BTreeMap::from([("errors".to_owned(), 10)]));
        let told = flush(&mut tally, at(0));
        assert_eq!(told.len(), 1 + ERRORS_MAX);
        assert!(told[1..].iter().all(|k| matches!(k, Kind::ErrorReported { count: 2, .. })));
    }

    #[test]
    fn what_is_not_taken_by_design_is_no_loss() {
        let mut tally = Tally::new();
        tally.refuse(Refused::Set);
        tally.refuse(Refused::Event);
        assert_eq!((tally.lost(), tally.due_in(at(0))), (0, None));
        tally.refuse(Refused::Line);
        assert_eq!((tally.lost(), tally.due_in(at(0))), (1, Some(Duration::ZERO)));
    }

    proptest! {
        #[test]
        fn beats_are_neither_lost_nor_made_up(
            steps in proptest::collection::vec((0..5u8, 0..400u64, any::<bool>()), 0..200)
        ) {
            let mut tally = Tally::new();
            let (mut now, mut sent, mut told) = (0, 0, 0);
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            for (name, gap, takes) in steps {
                now += gap;
                take(&mut tally, &format!("heartbeat.{name}:1|c"), at(now)).unwrap();
                sent += 1;
                let mut wrong = None;
                tally.flush(at(now), |kind| {
                    if !takes {
                        return Some(kind);
                    }
                    if let Kind::Heartbeat { name, count } = kind {
                        told += count;
                        if last.insert(name, now).is_some_and(|last| now - last < 1000) {
                            wrong = Some(now);
                        }
                    }
                    None
                });
                prop_assert_eq!(wrong, None, "more than one a second");
            }
            now += 2000;
            for _ in 0..2 {
                flush(&mut tally, at(now)).into_iter().for_each(|kind| {
                    if let Kind::Heartbeat { count, .. } = kind { told += count; }
                });
                now += 2000;
            }
            prop_assert_eq!(told, sent);
        }
    }
}
