//! Something that comes again and again: heartbeats, lines of a log, changes of a metric. Learns how far apart, and says
//! when it is missing. Time in which nobody could hear it does not count.

use std::time::Duration;

use super::super::seconds;
use crate::baseline::Baseline;
use crate::event::Timestamp;

/// After the host slept or the agent did not run, nothing is missing for at least this long: senders must reconnect.
const WAKING: Duration = Duration::from_secs(10);

/// When it is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// How far apart it comes, where that was declared; else it is learned.
    pub(super) declared: Option<Duration>,
    /// It is missing after this many times that.
    pub(super) factor: f64,
    /// But not before, where it is learned.
    pub(super) at_least: Duration,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Seconds between two, while all is well.
    gaps: Baseline,
    /// After how long it is missing; none: not known yet.
    limit: Option<Duration>,
    /// When it came, or began to be expected; none: not expected.
    last: Option<Timestamp>,
    /// Not missing before this.
    not_before: Timestamp,
    /// The time to the next says nothing about what is normal.
    uneven: bool,
    /// It was said to be missing.
    missing: bool,
    /// It came back: once, and counts as back when it comes again in time.
    back: bool,
}

/// What a beat means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing new.
    Fine,
    /// It was missing and is back.
    Back,
}

impl Pulse {
    pub(super) fn new(gaps: Baseline, rule: &Rule) -> Self {
        let mut pulse = Self {
            gaps,
            limit: None,
            last: None,
            not_before: Timestamp::default(),
            uneven: true,
            missing: false,
            back: false,
        };
        pulse.measure(rule);
        pulse
    }

    fn measure(&mut self, rule: &Rule) {
        let learned = || Some(seconds(self.gaps.quantile(0.95)? * rule.factor).max(rule.at_least));
        let declared = rule.declared.map(|gap| seconds(gap.as_secs_f64() * rule.factor));
        self.limit = declared.or_else(learned);
    }

    /// The rule has changed.
    pub(super) fn set(&mut self, rule: &Rule) {
        self.measure(rule);
    }

    /// It came.
    pub(super) fn beat(&mut self, now: Timestamp, rule: &Rule) -> Beat {
        let Some(last) = self.last else {
            (self.last, self.uneven) = (Some(now), false);
            self.back = self.missing;
            return Beat::Fine;
        };
        if now <= last {
            // The same again, or told late.
            return Beat::Fine;
        }
        let gap = now.since(last);
        self.last = Some(now);
        // Whoever is heard of has started, or is awake.
        self.not_before = Timestamp::default();
        let uneven = std::mem::take(&mut self.uneven);
        let late = self.limit.is_some_and(|limit| gap > limit);
        if self.missing {
            // Once is no recovery: a process that hangs again at once beats once, too.
            if self.back && !late {
                (self.missing, self.back) = (false, false);
                return Beat::Back;
            }
            self.back = true;
        } else if !uneven && !late {
            // A gap that is a fault is not learned from.
            self.gaps.observe(gap.as_secs_f64());
            self.measure(rule);
        }
        Beat::Fine
    }

    /// It is expected from now on, although it did not come; not missing before `patience` has passed.
    pub(super) fn expect(&mut self, now: Timestamp, patience: Duration) {
        (self.last, self.uneven) = (Some(now), true);
        self.not_before = now.after(patience);
    }

    /// It is not expected before it comes again. What was missing stays so.
    pub(super) fn pause(&mut self) {
        (self.last, self.uneven, self.back) = (None, true, false);
    }

    /// What was missing does not matter any more: its sender is gone.
    pub(super) fn reset(&mut self) {
        self.pause();
        self.missing = false;
    }

    /// For `away` until `now` nobody could hear it.
    pub(super) fn away(&mut self, away: Duration, now: Timestamp) {
        if let Some(last) = &mut self.last {
            *last = last.after(away).min(now);
        }
        self.not_before = self.not_before.max(now.after(WAKING));
        self.uneven = true;
    }

    /// When it will be missing; none: it is not expected, or it is missing already.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let (last, limit) = (self.last?, self.limit?);
        (!self.missing).then(|| last.after(limit).max(self.not_before))
    }

    /// Notes that it is missing, where it is. True: that is new.
    pub(super) fn misses(&mut self, now: Timestamp) -> bool {
        let new = self.due().is_some_and(|due| due <= now);
        if new {
            (self.missing, self.back) = (true, false);
        }
        new
    }

    /// It is missing.
    pub(super) fn missing(&self) -> bool {
        self.missing
    }

    /// It comes as it should.
    pub(super) fn alive(&self) -> bool {
        !self.missing && self.last.is_some() && self.limit.is_some()
    }

    /// When it came last, or began to be expected.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// After how long it is missing.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// How many gaps it has and needs while it learns; none where it need not, or knows.
    pub(super) fn learning(&self) -> Option<(u32, u32)> {
        self.gaps.learning().filter(|_| self.limit.is_none())
    }

    /// What is normal, in words.
    pub(super) fn normal(&self, rule: &Rule) -> String {
        match (rule.declared, self.gaps.quantile(0.95)) {
            (Some(gap), _) => format!("every {} or sooner, as declared", super::super::lasting(gap)),
            (None, Some(gap)) => {
                format!("19 of 20 within {} of the one before", super::super::lasting(seconds(gap)))
            }
            (None, None) => "not known yet".to_owned(),
        }
    }

    pub(super) fn gaps(&self) -> &Baseline {
        &self.gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { declared: None, factor: 3.0, at_least: Duration::from_secs(10) };

    fn at(s: u64) -> Timestamp {
        Timestamp(1_000_000_000 * (s + 1000))
    }

    /// One that comes every `gap` seconds since second 0 and knows it; the second of the last one.
    fn regular(gap: u64) -> (Pulse, u64) {
        let mut pulse = Pulse::new(Baseline::new(10), &RULE);
        for i in 0..=10 {
            assert_eq!(pulse.due(), None, "it is learning: {:?}", pulse.learning());
            pulse.beat(at(i * gap), &RULE);
        }
        (pulse, 10 * gap)
    }

    #[test]
    fn it_is_missing_after_three_gaps_but_not_before_ten_seconds() {
        let (pulse, last) = regular(20);
        assert_eq!(pulse.due(), Some(at(last + 60)));
        let (mut pulse, last) = regular(1);
        assert_eq!(pulse.due(), Some(at(last + 10)));
        assert!(!pulse.misses(at(last + 9)));
        assert!(pulse.misses(at(last + 10)));
        assert!(!pulse.misses(at(last + 11)), "said once");
    }

    #[test]
    fn it_is_back_when_it_comes_twice_in_time() {
        let (mut pulse, last) = regular(1);
        assert!(pulse.misses(at(last + 30)));
        assert_eq!(pulse.beat(at(last + 31), &RULE), Beat::Fine, "once is no recovery");
        assert_eq!(pulse.beat(at(last + 50), &RULE), Beat::Fine, "too far from the one before");
        assert_eq!(pulse.beat(at(last + 51), &RULE), Beat::Back);
    }

    #[test]
    fn gaps_that_are_faults_are_not_learned() {
        let (mut pulse, mut now) = regular(1);
        let normal = pulse.gaps().clone();
        for _ in 0..100 {
            now += 600;
            pulse.misses(at(now));
            pulse.beat(at(now), &RULE);
        }
        assert_eq!(*pulse.gaps(), normal);
    }

    #[test]
    fn time_away_does_not_count() {
        let (mut pulse, last) = regular(20);
        // Asleep from 30 s after the last one, for a day.
        let day = 86_400;
        pulse.away(Duration::from_secs(day), at(last + 30 + day));
        assert_eq!(pulse.due(), Some(at(last + 60 + day)));
        let normal = pulse.gaps().clone();
        pulse.beat(at(last + 40 + day), &RULE);
        assert_eq!(*pulse.gaps(), normal, "the time to the next one is not a gap");
        let (mut pulse, last) = regular(1);
        pulse.away(Duration::from_secs(day), at(last + 9 + day));
        assert_eq!(pulse.due(), Some(at(last + 19 + day)), "senders get time to come back");
    }

    #[test]
    fn what_comes_late_or_twice_changes_nothing() {
        let (mut pulse, last) = regular(1);
        let before = (pulse.due(), pulse.gaps().clone());
        for s in [last, last - 5, 0, last] {
            assert_eq!(pulse.beat(at(s), &RULE), Beat::Fine);
        }
        assert_eq!((pulse.due(), pulse.gaps().clone()), before);
    }
}
