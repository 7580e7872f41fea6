//! What is said of many measurements: median, 99th percentile, how many.

/// Measurements of one quantity, in one unit.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Some more.
    pub(super) fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.0.extend(values);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The one that half of them do not exceed; the mean of the two in the middle of an even number.
    pub(super) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let half = sorted.len() / 2;
        let upper = *sorted.get(half)?;
        if sorted.len() % 2 == 1 {
            return Some(upper);
        }
        Some(f64::midpoint(sorted[half - 1], upper))
    }

    /// The smallest measurement that 99 % of them do not exceed (nearest rank: always one that was measured).
    /// With fewer than a hundred it is the largest.
    pub(super) fn p99(&self) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    }

    /// The smallest and the largest.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let sorted = self.sorted();
        Some((*sorted.first()?, *sorted.last()?))
    }

    /// Those that a quarter and three quarters do not exceed (nearest rank): between them lies half of all.
    pub(super) fn quartiles(&self) -> Option<(f64, f64)> {
        let sorted = self.sorted();
        let at = |quarters: usize| sorted.get((sorted.len() * quarters).div_ceil(4).checked_sub(1)?).copied();
        Some((at(1)?, at(3)?))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// How many times `base` this is; nothing where that says nothing.
pub(super) fn ratio(value: f64, base: f64) -> Option<f64> {
    (base > 0.0 && value.is_finite()).then(|| value / base)
}

/// A number with about three digits that mean something.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Samples, ratio, short};

    fn samples(values: impl IntoIterator<Item = u32>) -> Samples {
        values.into_iter().map(f64::from).collect()
    }

    #[test]
    fn the_middle_of_odd_and_even_many() {
        assert_eq!(samples([]).median(), None);
        assert_eq!(samples([7]).median(), Some(7.0));
        assert_eq!(samples([9, 1, 5]).median(), Some(5.0));
        assert_eq!(samples([9, 1, 5, 7]).median(), Some(6.0));
    }

    #[test]
    fn p99_is_a_measured_value() {
        assert_eq!(samples([]).p99(), None);
        assert_eq!(samples([3]).p99(), Some(3.0));
        assert_eq!(samples(1..=50).p99(), Some(50.0), "too few: the largest");
        assert_eq!(samples((1..=100).rev()).p99(), Some(99.0));
        assert_eq!(samples(1..=300).p99(), Some(297.0));
    }

    #[test]
    fn range_and_length() {
        let mut some = samples([4, 2]);
        some.push(8.0);
        assert_eq!((some.len(), some.range()), (3, Some((2.0, 8.0))));
        assert_eq!(samples([]).range(), None);
    }

    #[test]
    fn quartiles_are_measured_values() {
        assert_eq!(samples([]).quartiles(), None);
        assert_eq!(samples([3]).quartiles(), Some((3.0, 3.0)));
        assert_eq!(samples((1..=8).rev()).quartiles(), Some((2.0, 6.0)));
    }

    #[test]
    fn ratios_only_of_what_can_be_compared() {
        assert_eq!(ratio(6.0, 2.0), Some(3.0));
        assert_eq!(ratio(6.0, 0.0), None);
        assert_eq!(ratio(f64::NAN, 2.0), None);
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [1234.5, 99.96, 45.678, 9.996, 1.2345, 0.12345, -3.0].map(short).into();
        assert_eq!(shown, ["1234", "100", "45.7", "10.0", "1.23", "0.123", "-3.00"]);
    }
}
