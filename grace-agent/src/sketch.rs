//! A sketch of many observations: counts in buckets whose bounds grow by a factor. Quantiles are right within 2 %, two
//! sketches merge into that of both, and the size is bounded whatever is observed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Each bucket's upper bound is this many times its lower one: (1 + 0.02) / (1 - 0.02).
const GAMMA: f64 = 1.02 / 0.98;
/// What is smaller counts as this, what is larger as that.
const SMALLEST: f64 = 1e-6;
const LARGEST: f64 = 1e12;

/// Observations that are finite and not negative.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(i32, u64)>", into = "Vec<(i32, u64)>")]
pub struct Sketch {
    /// By bucket: how many.
    buckets: BTreeMap<i32, u64>,
}

/// Pairs, because a map's keys are text in JSON, and in an event they do not become numbers again.
impl From<Sketch> for Vec<(i32, u64)> {
    fn from(sketch: Sketch) -> Self {
        sketch.buckets.into_iter().collect()
    }
}

impl From<Vec<(i32, u64)>> for Sketch {
    fn from(pairs: Vec<(i32, u64)>) -> Self {
        // From a file, so it may be anything: buckets that no observation has are dropped.
        Self { buckets: pairs.into_iter().filter(|(bucket, _)| bucket.abs() <= 1000).collect() }
    }
}

impl Sketch {
    /// Takes one observation. False: it is no number, infinite or negative, and was not taken.
    pub fn record(&mut self, value: f64) -> bool {
        if !value.is_finite() || value < 0.0 {
            return false;
        }
        let bucket = (value.clamp(SMALLEST, LARGEST).ln() / GAMMA.ln()).ceil();
        // Within ±1000 by the clamp.
        *self.buckets.entry(bucket as i32).or_default() += 1;
        true
    }

    /// Takes all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, n) in &other.buckets {
            let sum = self.buckets.entry(*bucket).or_default();
            *sum = sum.saturating_add(*n);
        }
    }

    /// The quantile `q` (0 to 1); none where nothing was observed.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0u64;
        let bucket = self.buckets.iter().find_map(|(bucket, n)| {
            seen = seen.saturating_add(*n);
            (seen >= rank).then_some(*bucket)
        })?;
        // The middle, as far from both bounds by factor.
        Some(GAMMA.powi(bucket) * 2.0 / (1.0 + GAMMA))
    }

    /// How many observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum: u64, n| sum.saturating_add(*n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_two_percent() {
        let mut sketch = Sketch::default();
        for i in 1..=10_000 {
            assert!(sketch.record(f64::from(i)));
        }
        for q in [0.01, 0.5, 0.95, 0.99, 1.0] {
            let (got, want) = (sketch.quantile(q).unwrap(), 10_000.0 * q);
            assert!((got / want - 1.0).abs() <= 0.0201, "{q}: {got} for {want}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        let mut sketch = Sketch::default();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert!(!sketch.record(value));
        }
        assert_eq!((sketch.count(), sketch.quantile(0.5)), (0, None));
    }
}
