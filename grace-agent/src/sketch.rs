//! A sketch of many observations: how often which size came, in buckets that grow with the size, so that quantiles
//! are known to within 2 % however many there were.
//!
//! Plain data, bounded, and the same numbers on every machine: a bucket is the exponent of the value and the first five
//! bits after it, taken from the bits of the number. Two sketches merge without loss.

use serde::{Deserialize, Serialize};

/// Buckets to a doubling, as a power of two: 32 make the middle of one at most 1/64 away from anything in it.
const PRECISION: u32 = 5;
/// What is smaller than 2^-20 (a millionth) counts as zero.
const SMALLEST: f64 = 1.0 / (1 << 20) as f64;
/// What is larger than 2^44 counts as that.
const LARGEST: f64 = (1u64 << 44) as f64;
/// Bits of a number's mantissa that a bucket does not look at.
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - PRECISION;
/// The bucket below the first one above zero.
const BASE: u64 = (SMALLEST.to_bits() >> SHIFT) - 1;
/// The highest bucket.
const LAST: u16 = ((LARGEST.to_bits() >> SHIFT) - BASE) as u16;

/// See the room's head. Of the observations themselves only count and approximate size remain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<(u16, u64)>", try_from = "Vec<(u16, u64)>")]
pub struct Sketch {
    /// Buckets that hold something and how many, by size. Bucket 0 is zero.
    buckets: Vec<(u16, u64)>,
}

impl Sketch {
    /// How many buckets there can be at most: what bounds a sketch's memory.
    pub const BUCKETS: usize = LAST as usize + 1;

    /// One more observation. False, and nothing is recorded, where it is no size: NaN, infinite or negative.
    pub fn record(&mut self, value: f64) -> bool {
        self.record_many(value, 1)
    }

    /// `times` observations of the same size (a sampled one stands for several).
    pub fn record_many(&mut self, value: f64, times: u64) -> bool {
        if !value.is_finite() || value < 0.0 {
            return false;
        }
        if times > 0 {
            self.add(bucket(value), times);
        }
        true
    }

    /// Takes over all that `other` has.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add(*bucket, *count);
        }
    }

    /// How many observations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The size that a share of `q` (0 to 1) of all observations does not exceed (nearest rank), to within 2 % of one
    /// that was observed, or a millionth where that is more. None: there are no observations, or `q` is no share.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if !(0.0..=1.0).contains(&q) {
            return None;
        }
        let count = self.count();
        // A product that is a hair above a whole number by rounding must not become the next rank.
        let rank = (q * count as f64 - 1e-9).ceil().max(1.0);
        let mut seen = 0.0;
        for (bucket, count) in &self.buckets {
            seen += *count as f64;
            if seen >= rank {
                return Some(middle(*bucket));
            }
        }
        self.buckets.last().map(|(bucket, _)| middle(*bucket))
    }

    fn add(&mut self, bucket: u16, times: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => {
                if let Some((_, count)) = self.buckets.get_mut(at) {
                    *count = count.saturating_add(times);
                }
            }
            Err(at) => self.buckets.insert(at, (bucket, times)),
        }
    }
}

impl From<Sketch> for Vec<(u16, u64)> {
    fn from(sketch: Sketch) -> Self {
        sketch.buckets
    }
}

impl TryFrom<Vec<(u16, u64)>> for Sketch {
    type Error = String;

    fn try_from(buckets: Vec<(u16, u64)>) -> Result<Self, String> {
        let ordered = buckets.is_sorted_by(|a, b| a.0 < b.0);
        if !ordered || buckets.iter().any(|(bucket, count)| *bucket > LAST || *count == 0) {
            return Err("not the buckets of a sketch: each once, by size, none empty".to_owned());
        }
        Ok(Self { buckets })
    }
}

/// The bucket of a size that is finite and not negative.
fn bucket(value: f64) -> u16 {
    if value < SMALLEST {
        return 0;
    }
    // Neither can be missed: `value` is at least SMALLEST and at most LARGEST here.
    u16::try_from((value.min(LARGEST).to_bits() >> SHIFT).saturating_sub(BASE)).unwrap_or(LAST)
}

/// What a bucket's observations are taken for.
fn middle(bucket: u16) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let lower = (u64::from(bucket) + BASE) << SHIFT;
    f64::from_bits(lower + (1 << (SHIFT - 1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        assert!(values.iter().all(|value| sketch.record(*value)));
        sketch
    }

    /// Nearest rank, by sorting.
    fn exact(values: &[f64], q: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = ((q * sorted.len() as f64 - 1e-9).ceil() as usize).max(1);
        sorted[rank - 1]
    }

    fn sizes() -> impl Strategy<Value = Vec<f64>> {
        // Spread over all magnitudes, as no uniform choice would be.
        let size = prop_oneof![4 => (-5.0..12.0f64).prop_map(|e| 10f64.powf(e)), 1 => Just(0.0)];
        proptest::collection::vec(size, 1..300)
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let mut sketch = Sketch::default();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, f64::MIN] {
            assert!(!sketch.record(value), "{value}");
        }
        assert!(sketch.is_empty());
        assert_eq!(sketch.quantile(0.5), None);
        assert!(sketch.record(-0.0) && sketch.record(f64::MAX) && sketch.record(f64::MIN_POSITIVE));
        assert_eq!(sketch.count(), 3);
        assert_eq!(sketch.quantile(0.0), Some(0.0));
        for q in [f64::NAN, -0.1, 1.1] {
            assert_eq!(sketch.quantile(q), None);
        }
    }

    #[test]
    fn a_round_number_has_its_own_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let p95 = of(&values).quantile(0.95).unwrap();
        assert!((p95 / 95.0 - 1.0).abs() <= 0.02, "{p95}");
    }

    #[test]
    fn every_bucket_is_where_its_middle_is() {
        for each in 0..=LAST {
            assert_eq!(bucket(middle(each)), each);
        }
        assert_eq!((bucket(SMALLEST), bucket(f64::MAX)), (1, LAST));
    }

    #[test]
    fn what_is_not_a_sketch_is_not_read_as_one() {
        for text in ["[[1,2],[1,3]]", "[[2,1],[1,1]]", "[[1,0]]", "[[65535,1]]", "[[1,-1]]", "{}"] {
            assert!(serde_json::from_str::<Sketch>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn quantiles_are_within_two_percent(values in sizes(), q in 0.0..=1.0f64) {
            let (is, wanted) = (of(&values).quantile(q).unwrap(), exact(&values, q));
            prop_assert!((is - wanted).abs() <= (wanted * 0.02).max(SMALLEST), "{is} instead of {wanted}");
        }

        #[test]
        fn merging_is_as_if_all_had_come_to_one(a in sizes(), b in sizes()) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }

        #[test]
        fn order_does_not_matter(values in sizes()) {
            let turned: Vec<f64> = values.iter().rev().copied().collect();
            prop_assert_eq!(of(&values), of(&turned));
        }

        #[test]
        fn json_and_back(values in sizes()) {
            let sketch = of(&values);
            let text = serde_json::to_string(&sketch).unwrap();
            prop_assert_eq!(serde_json::from_str::<Sketch>(&text).unwrap(), sketch);
        }

        #[test]
        fn any_numbers_are_bounded(bits in proptest::collection::vec(any::<u64>(), 0..3000)) {
            let mut sketch = Sketch::default();
            let taken = bits.iter().filter(|bits| sketch.record(f64::from_bits(**bits))).count();
            prop_assert_eq!(sketch.count(), taken as u64);
            prop_assert!(sketch.buckets.len() <= Sketch::BUCKETS);
        }

        #[test]
        fn more_of_a_share_is_never_less(values in sizes(), a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
            let sketch = of(&values);
            prop_assert!(sketch.quantile(a.min(b)) <= sketch.quantile(a.max(b)));
        }
    }
}
