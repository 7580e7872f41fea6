//! What is normal for one number, learned from its own past: quantiles over a bounded history that covers more and more
//! time the longer it runs.
//!
//! A few wild values do not move it, because it is made of ranks, not of sums. It learns only what it is given, and
//! whoever owns it gives it values only while all is well: so an ongoing fault never becomes normal.

use serde::{Deserialize, Serialize};

/// Values kept.
const HISTORY: usize = 64;
/// At most every this many values one is kept: at one a second the history then covers 18 hours.
const STRIDE_MAX: u32 = 1024;

/// A learned level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Baseline {
    need: u32,
    /// Values given while it was learning, at most `need`.
    have: u32,
    /// One in so many values is kept.
    stride: u32,
    /// Values to pass over before the next is kept.
    skip: u32,
    /// Oldest first.
    history: Vec<f64>,
}

/// A baseline as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    need: u32,
    have: u32,
    stride: u32,
    skip: u32,
    history: Vec<f64>,
}

impl From<Baseline> for Kept {
    fn from(b: Baseline) -> Self {
        Self { need: b.need, have: b.have, stride: b.stride, skip: b.skip, history: b.history }
    }
}

impl TryFrom<Kept> for Baseline {
    type Error = &'static str;

    fn try_from(kept: Kept) -> Result<Self, Self::Error> {
        let Kept { need, have, stride, skip, history } = kept;
        if history.len() > HISTORY || history.iter().any(|v| !usable(*v)) {
            return Err("a history that no baseline has");
        }
        if (have > 0 && history.is_empty())
            || have > need
            || !stride.is_power_of_two()
            || stride > STRIDE_MAX
            || skip >= stride
        {
            return Err("counts that no baseline has");
        }
        Ok(Self { need, have, stride, skip, history })
    }
}

/// What is larger is no measure of anything, but an error.
const HUGE: f64 = 1e15;

fn usable(value: f64) -> bool {
    (0.0..=HUGE).contains(&value)
}

impl Baseline {
    /// Knows nothing; the first `need` values teach it.
    #[must_use]
    pub fn new(need: u32) -> Self {
        Self { need, have: 0, stride: 1, skip: 0, history: Vec::new() }
    }

    /// While it does not know yet what is normal: how many values it has and needs.
    #[must_use]
    pub fn learning(&self) -> Option<(u32, u32)> {
        (self.have < self.need).then_some((self.have, self.need))
    }

    /// Learns that `value` is normal. Only to be called while all is well. What is no number, negative or
    /// larger than 1e15 teaches nothing.
    pub fn observe(&mut self, value: f64) {
        if !usable(value) {
            return;
        }
        self.have = self.have.saturating_add(1).min(self.need);
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        if self.history.len() >= HISTORY {
            if self.stride < STRIDE_MAX {
                // Every second one stays, and from now on half as many come: the same room for twice the time.
                let mut keep = false;
                self.history.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.stride *= 2;
            } else {
                self.history.remove(0);
            }
        }
        self.history.push(rounded(value));
        self.skip = self.stride - 1;
    }

    /// The quantile `q` (0 to 1) of what is normal; none while it is learning.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.learning().is_some() {
            return None;
        }
        let mut sorted = self.history.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() as f64 * q.clamp(0.0, 1.0)).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// The middle of what is normal; none while it is learning.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// How far values are from the middle, in the middle (MAD); none while it is learning.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        let median = self.median()?;
        let mut away: Vec<f64> = self.history.iter().map(|v| (v - median).abs()).collect();
        away.sort_by(f64::total_cmp);
        away.get(away.len().div_ceil(2).saturating_sub(1)).copied()
    }
}

/// Three digits say what is normal, and are short where they are kept.
fn rounded(value: f64) -> f64 {
    if value < 1e-9 {
        return 0.0;
    }
    format!("{value:.2e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taught(values: impl IntoIterator<Item = f64>) -> Baseline {
        let mut baseline = Baseline::new(10);
        values.into_iter().for_each(|v| baseline.observe(v));
        baseline
    }

    #[test]
    fn it_says_that_it_is_learning_until_it_has_what_it_needs() {
        let mut baseline = Baseline::new(3);
        for have in 0..3 {
            assert_eq!((baseline.learning(), baseline.quantile(0.95)), (Some((have, 3)), None));
            baseline.observe(7.0);
        }
        assert_eq!((baseline.learning(), baseline.median(), baseline.spread()), (None, Some(7.0), Some(0.0)));
    }

    #[test]
    fn wild_values_do_not_move_it() {
        // Two in a hundred are a million times too high.
        let baseline = taught((0..1000).map(|i| if i % 50 == 49 { 1e7 } else { 10.0 + f64::from(i % 5) }));
        assert!(baseline.quantile(0.9).unwrap() <= 14.0, "{baseline:?}");
        assert_eq!(baseline.median(), Some(12.0));
    }

    #[test]
    fn what_is_no_measure_teaches_nothing() {
        let before = taught((0..20).map(f64::from));
        let mut after = before.clone();
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0].into_iter().for_each(|v| after.observe(v));
        assert_eq!(before, after);
    }

    #[test]
    fn a_foreign_state_is_refused() {
        for text in [
            "null",
            "[]",
            r#"{"need":3,"have":3,"stride":1,"skip":0,"history":[]}"#,
            r#"{"need":3,"have":4,"stride":1,"skip":0,"history":[1.0]}"#,
            r#"{"need":3,"have":3,"stride":3,"skip":0,"history":[1.0]}"#,
            r#"{"need":3,"have":3,"stride":2,"skip":2,"history":[1.0]}"#,
            r#"{"need":3,"have":3,"stride":4096,"skip":0,"history":[1.0]}"#,
            r#"{"need":3,"have":3,"stride":1,"skip":0,"history":[-1.0]}"#,
        ] {
            assert!(serde_json::from_str::<Baseline>(text).is_err(), "{text}");
        }
        let long = Kept { need: 1, have: 1, stride: 1, skip: 0, history: vec![1.0; HISTORY + 1] };
        assert!(Baseline::try_from(long).is_err());
    }

    proptest! {
        /// Whatever it is given, it stays small, its quantiles are ordered, and it comes back from disk the same.
        #[test]
        fn it_is_bounded_and_keeps(values in proptest::collection::vec(any::<f64>(), 0..3000)) {
            let baseline = taught(values);
            prop_assert!(baseline.history.len() <= HISTORY);
            if let (Some(low), Some(high)) = (baseline.quantile(0.1), baseline.quantile(0.95)) {
                prop_assert!(low <= high);
            }
            let text = serde_json::to_string(&baseline).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<Baseline>(&text).expect("what was written"), baseline);
        }

        /// It covers the past evenly: after a long time at one level, a short time at another is not the middle.
        #[test]
        fn a_short_while_is_not_the_middle(long in 500..5000u32, short in 1..100u32) {
            let baseline = taught((0..long).map(|_| 10.0).chain((0..short).map(|_| 1000.0)));
            prop_assert_eq!(baseline.median(), Some(10.0));
        }
    }
}
