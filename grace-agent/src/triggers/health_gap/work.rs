//! What a declared process puts out: its metrics, queues and routes. One that normally changes and stands still while
//! the others show work is flat.
//!
//! A busy process is told apart from a stuck one here: while its outputs change, however long its queue grows, it is
//! saturated, which is another trigger's business.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pulse::{Beat, Pulse, Rule};
use crate::baseline::Baseline;
use crate::event::Timestamp;

/// Signs of work, from other outputs, that an output which stands still must have missed.
const WORK: u64 = 3;

/// What kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Output {
    Metric,
    Queue,
    Route,
}

impl Output {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metric => "metric",
            Self::Queue => "queue",
            Self::Route => "route",
        }
    }
}

/// One output.
#[derive(Debug)]
struct Stream {
    /// Its changes.
    changes: Pulse,
    /// Its last value, and when it changed.
    value: Option<f64>,
    changed: Option<Timestamp>,
    /// Signs of work that it gave itself.
    own: u64,
    /// Signs of work of the others when it changed last.
    seen: u64,
}

/// The outputs of one process.
#[derive(Debug, Default)]
pub(super) struct Work {
    streams: BTreeMap<(Output, String), Stream>,
    /// Signs of work of all of them.
    signs: u64,
}

/// One that stands still.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flat {
    pub(super) what: Output,
    pub(super) name: String,
    pub(super) since: Timestamp,
    pub(super) limit: Duration,
    /// Signs of work meanwhile.
    pub(super) signs: u64,
    pub(super) normal: String,
    /// Another metric or route changed meanwhile: the process works, at least in part.
    pub(super) alive: bool,
}

impl Work {
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn knows(&self, what: Output, name: &str) -> bool {
        self.streams.contains_key(&(what, name.to_owned()))
    }

    /// Judges the output `name` from now on.
    pub(super) fn add(&mut self, what: Output, name: &str, gaps: Baseline, rule: &Rule) {
        let changes = Pulse::new(gaps, rule);
        let stream = Stream { changes, value: None, changed: None, own: 0, seen: self.signs };
        self.streams.insert((what, name.to_owned()), stream);
    }

    /// The output `name` was told. True: the last one that was flat is not any more.
    pub(super) fn told(&mut self, what: Output, name: &str, value: f64, now: Timestamp, rule: &Rule) -> bool {
        let Some(stream) = self.streams.get_mut(&(what, name.to_owned())) else { return false };
        // Answers of a route are a change, whatever they took; so is any growth of a counter, also by the same.
        let before = stream.value.replace(value);
        let changed = match what {
            Output::Route => true,
            Output::Queue | Output::Metric => before.is_some_and(|before| before != value),
        };
        // Work is what is answered and what waits. A metric may change where there is none, such as the memory in use.
        if what == Output::Route || (what == Output::Queue && value > 0.0) {
            stream.own += 1;
            self.signs += 1;
        }
        if changed || before.is_none() {
            stream.seen = self.signs - stream.own;
            stream.changed = Some(now);
            return stream.changes.beat(now, rule) == Beat::Back && !self.flat();
        }
        false
    }

    /// One of them is flat.
    pub(super) fn flat(&self) -> bool {
        self.streams.values().any(|s| s.changes.missing())
    }

    /// When one of them may be flat.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.streams.values().filter_map(|s| s.changes.due()).min()
    }

    /// The first of those that are newly flat.
    pub(super) fn look(&mut self, now: Timestamp, rule: &Rule) -> Option<Flat> {
        let mut found = None;
        // What a queue holds, others put there: that it grows says nothing about who works it off.
        let changes: Vec<_> = self
            .streams
            .iter()
            .filter(|((what, _), _)| *what != Output::Queue)
            .filter_map(|(_, s)| s.changed)
            .collect();
        for ((what, name), stream) in &mut self.streams {
            if stream.changes.due().is_none_or(|due| due > now) {
                continue;
            }
            let (since, limit) = (stream.changes.last(), stream.changes.limit());
            let signs = (self.signs - stream.own).saturating_sub(stream.seen);
            if signs < WORK {
                // Nothing to do is no fault: the time begins anew.
                stream.seen = self.signs - stream.own;
                stream.changes.expect(now, Duration::ZERO);
                continue;
            }
            stream.changes.misses(now);
            let alive = changes.iter().any(|at| at.after(limit.unwrap_or_default() / 2) > now);
            found = found.or_else(|| {
                Some(Flat {
                    what: *what,
                    name: name.clone(),
                    since: since?,
                    limit: limit?,
                    signs,
                    normal: stream.changes.normal(rule),
                    alive,
                })
            });
        }
        found
    }

    /// The process was started anew: its outputs are expected when they come. What was flat stays so until it changes.
    pub(super) fn pause(&mut self) {
        self.streams.values_mut().for_each(|s| s.changes.pause());
    }

    /// The process is gone.
    pub(super) fn reset(&mut self) {
        self.streams.values_mut().for_each(|s| s.changes.reset());
    }

    pub(super) fn away(&mut self, away: Duration, now: Timestamp) {
        self.streams.values_mut().for_each(|s| s.changes.away(away, now));
    }

    /// What was learned, by kind and name.
    pub(super) fn learned(&self) -> impl Iterator<Item = (Output, &str, &Baseline)> {
        self.streams.iter().map(|((what, name), s)| (*what, name.as_str(), s.changes.gaps()))
    }
}
