//! A level that is judged: against a fixed limit, or against what it was learned to be.
//!
//! Judged only when it is told: a level that nobody tells is neither too high nor fine.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::seconds;
use crate::baseline::Baseline;
use crate::config::LatencySpike;
use crate::event::Timestamp;

/// A value becomes normal when nothing was wrong for this long after it: so the first part of a slow rise does not raise
/// the threshold for the rest.
const PROBATION: Duration = Duration::from_secs(600);
/// Values on probation at most, evenly spread over it.
const ON_PROBATION: u32 = 8;

/// Two values farther apart than this say nothing of the time between them.
const APART: Duration = Duration::from_secs(300);

/// What it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// A fixed limit; none: learned.
    pub(super) limit: Option<f64>,
    /// Too high from this many times its learned p95 on,
    pub(super) factor: f64,
    /// but not below this.
    pub(super) at_least: f64,
}

/// One level.
#[derive(Debug)]
pub(super) struct Level {
    normal: Baseline,
    /// Values that may become normal, oldest first.
    probation: VecDeque<(Timestamp, f64)>,
    last: Option<Timestamp>,
    /// Too high since then.
    over: Option<Timestamp>,
    /// Well below the threshold since then, while it fires.
    under: Option<Timestamp>,
    /// It fires since then.
    fires: Option<Timestamp>,
}

/// What a value means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    /// Nothing new.
    None,
    /// Too high for long enough, since then, with this threshold.
    Fires { since: Timestamp, threshold: f64 },
    /// Seen well below it for long enough.
    Clears,
    /// It lasted so long that it is normal from now on.
    Accepted,
}

impl Level {
    pub(super) fn new(normal: Baseline) -> Self {
        Self { normal, probation: VecDeque::new(), last: None, over: None, under: None, fires: None }
    }

    /// From which value on it is too high; none while that is learned.
    pub(super) fn threshold(&self, rule: &Rule) -> Option<f64> {
        rule.limit.or_else(|| Some((self.normal.quantile(0.95)? * rule.factor).max(rule.at_least)))
    }

    /// It was `value`.
    pub(super) fn judge(
        &mut self,
        value: f64,
        now: Timestamp,
        rule: &Rule,
        settings: &LatencySpike,
    ) -> Change {
        let usable = value.is_finite() && value >= 0.0;
        if !usable || self.last.is_some_and(|last| now <= last) {
            return Change::None;
        }
        let apart = APART.max(settings.sustained.get()).max(settings.clear_for.get());
        if self.last.replace(now).is_some_and(|last| now.since(last) > apart) {
            (self.over, self.under) = (None, None);
        }
        let Some(threshold) = self.threshold(rule) else {
            self.normal.observe(value);
            return Change::None;
        };
        if value > threshold {
            self.under = None;
            let since = *self.over.get_or_insert(now);
            // What led here is no norm.
            self.probation.clear();
            return self.too_high(since, threshold, now, rule, settings);
        }
        self.over = None;
        if self.fires.is_none() {
            self.learn(value, now);
            return Change::None;
        }
        if value > threshold * settings.clear {
            self.under = None;
            return Change::None;
        }
        let since = *self.under.get_or_insert(now);
        if now.since(since) < settings.clear_for.get() {
            return Change::None;
        }
        (self.fires, self.under) = (None, None);
        Change::Clears
    }

    fn too_high(
        &mut self,
        since: Timestamp,
        threshold: f64,
        now: Timestamp,
        rule: &Rule,
        settings: &LatencySpike,
    ) -> Change {
        let Some(fires) = self.fires else {
            if now.since(since) < settings.sustained.get() || since == now {
                return Change::None;
            }
            self.fires = Some(now);
            return Change::Fires { since, threshold };
        };
        let after = settings.relearn_after.filter(|_| rule.limit.is_none());
        if after.is_some_and(|after| now.since(fires) >= after.get()) {
            *self = Self::new(Baseline::new(settings.learn));
            self.last = Some(now);
            return Change::Accepted;
        }
        Change::None
    }

    fn learn(&mut self, value: f64, now: Timestamp) {
        let every = PROBATION / ON_PROBATION;
        if self.probation.back().is_none_or(|(at, _)| now.since(*at) >= every) {
            self.probation.push_back((now, value));
        }
        while self.probation.front().is_some_and(|(at, _)| now.since(*at) >= PROBATION) {
            if let Some((_, value)) = self.probation.pop_front() {
                self.normal.observe(value);
            }
        }
    }

    /// Nobody saw it for a while: what lasted begins anew.
    pub(super) fn away(&mut self) {
        (self.over, self.under) = (None, None);
    }

    /// What it measured is gone; what is normal for the next one stays known.
    pub(super) fn end(&mut self) {
        self.probation.clear();
        (self.over, self.under, self.fires) = (None, None, None);
    }

    pub(super) fn fires(&self) -> bool {
        self.fires.is_some()
    }

    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    pub(super) fn normal(&self) -> &Baseline {
        &self.normal
    }
}

/// How long, for messages.
pub(super) fn for_how_long(since: Timestamp, now: Timestamp) -> String {
    super::super::lasting(seconds(now.since(since).as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    const LEARNED: Rule = Rule { limit: None, factor: 3.0, at_least: 50.0 };
    const LIMIT: Rule = Rule { limit: Some(1000.0), factor: 3.0, at_least: 50.0 };

    fn at(s: u64) -> Timestamp {
        Timestamp(1_000_000_000 * (s + 1))
    }

    /// Judges one value a second from second `from` on; what each meant.
    fn run(level: &mut Level, rule: &Rule, from: u64, values: &[f64]) -> Vec<(u64, Change)> {
        let settings = LatencySpike::default();
        (from..)
            .zip(values)
            .map(|(s, value)| (s, level.judge(*value, at(s), rule, &settings)))
            .filter(|(_, change)| *change != Change::None)
            .collect()
    }

    fn fires(since: u64, threshold: f64) -> Change {
        Change::Fires { since: at(since), threshold }
    }

    #[test]
    fn over_a_limit_for_ten_seconds_fires_and_well_below_for_ten_clears() {
        let mut level = Level::new(Baseline::new(30));
        let (low, high, edge) = ([5.0; 20], [1500.0; 20], [900.0; 20]);
        assert_eq!(run(&mut level, &LIMIT, 0, &low), []);
        assert_eq!(run(&mut level, &LIMIT, 20, &high), [(30, fires(20, 1000.0))]);
        assert_eq!(run(&mut level, &LIMIT, 40, &edge), [], "below the limit, but not well below");
        assert_eq!(run(&mut level, &LIMIT, 60, &low), [(70, Change::Clears)]);
    }

    #[test]
    fn a_short_spike_does_not_fire_and_a_flickering_one_does_not_clear() {
        let mut level = Level::new(Baseline::new(30));
        let mut values = [[1500.0; 9].as_slice(), &[5.0]].concat();
        values.extend_from_within(..);
        assert_eq!(run(&mut level, &LIMIT, 0, &values), []);
        assert_eq!(run(&mut level, &LIMIT, 20, &[1500.0; 11]).len(), 1);
        let flicker = [5.0, 5.0, 5.0, 1500.0].repeat(20);
        assert_eq!(run(&mut level, &LIMIT, 31, &flicker), []);
    }

    #[test]
    fn a_learned_level_says_nothing_while_it_learns_and_never_learns_a_fault() {
        let mut level = Level::new(Baseline::new(30));
        assert_eq!(run(&mut level, &LEARNED, 0, &[20.0; 30]), []);
        assert_eq!(level.threshold(&LEARNED), Some(60.0));
        // For two hours.
        assert_eq!(run(&mut level, &LEARNED, 30, &[200.0; 7200]), [(40, fires(30, 60.0))]);
        assert_eq!(level.threshold(&LEARNED), Some(60.0));
        assert_eq!(run(&mut level, &LEARNED, 7230, &[20.0; 20]), [(7240, Change::Clears)]);
    }

    #[test]
    fn a_steady_rise_is_not_learned_on_its_way() {
        for step in [0.5, 1.0, 5.0, 50.0] {
            let mut level = Level::new(Baseline::new(30));
            run(&mut level, &LEARNED, 0, &[100.0; 40]);
            let rise: Vec<f64> = (0..2000).map(|i| 100.0 + step * f64::from(i)).collect();
            let changes = run(&mut level, &LEARNED, 40, &rise);
            assert!(matches!(changes[..], [(_, Change::Fires { .. })]), "{step}: {changes:?}");
        }
    }

    #[test]
    fn a_lasting_level_is_taken_over_only_where_that_was_asked_for() {
        let settings = LatencySpike { relearn_after: Some(Span::secs(100)), ..LatencySpike::default() };
        for (rule, accepted) in [(LEARNED, true), (LIMIT, false)] {
            let mut level = Level::new(Baseline::new(30));
            let mut changes = Vec::new();
            for s in 0..400u64 {
                let value = if s < 50 { 20.0 } else { 2000.0 };
                changes.push(level.judge(value, at(s), &rule, &settings));
            }
            assert_eq!(changes.contains(&Change::Accepted), accepted);
        }
    }

    #[test]
    fn values_that_are_none_and_values_told_twice_or_late_change_nothing() {
        let mut level = Level::new(Baseline::new(30));
        let settings = LatencySpike::default();
        for value in [f64::NAN, f64::INFINITY, -5.0, f64::NEG_INFINITY] {
            for s in 0..60 {
                assert_eq!(level.judge(value, at(s), &LIMIT, &settings), Change::None);
            }
        }
        // The same second again and again is no ten seconds.
        for _ in 0..60 {
            assert_eq!(level.judge(1500.0, at(100), &LIMIT, &settings), Change::None);
        }
        // Nor are two values an hour apart.
        assert_eq!(level.judge(1500.0, at(4000), &LIMIT, &settings), Change::None);
    }
}
