//! A GPU that says it is busy and does nothing: at full utilisation it draws far less power than it normally does when this
//! process keeps it busy. So a collective that waits for a rank that never comes looks, for hours.

use std::time::Duration;

use crate::baseline::Baseline;
use crate::event::Timestamp;

/// From this utilisation on, in percent, it says that it is busy.
const FULL: u32 = 99;
/// From this one on its power teaches what busy means.
const BUSY: u32 = 90;

/// One GPU that a process has for itself.
pub(super) struct Busy {
    /// Its power when it works, in watts.
    power: Baseline,
    /// Since when it draws too little.
    low: Option<Timestamp>,
}

/// What a look at it says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Nothing: it is idle, or what is normal is not known yet.
    Unknown,
    /// It works.
    Works,
    /// It says so, and draws this little for this long; it is normally at this power.
    Hangs {
        /// Since when.
        since: Timestamp,
        /// Watts now.
        power: f64,
        /// Watts normally.
        normal: f64,
    },
}

impl Busy {
    pub(super) fn new(learn: u32) -> Self {
        Self { power: Baseline::new(learn), low: None }
    }

    /// Another program runs on it now.
    pub(super) fn begins_anew(&mut self) {
        self.low = None;
    }

    /// The host slept for `away`: that time does not count.
    pub(super) fn away(&mut self, away: Duration, now: Timestamp) {
        self.low = self.low.map(|since| since.after(away).min(now));
    }

    /// It was seen at this utilisation and power. Below `share` of its normal power for `lasting` it hangs.
    pub(super) fn seen(
        &mut self,
        utilization: u32,
        power: f64,
        share: f64,
        lasting: Duration,
        now: Timestamp,
    ) -> Work {
        let normal = self.power.median();
        let low = normal.is_some_and(|normal| power < normal * share);
        if utilization < BUSY {
            self.low = None;
            return Work::Unknown;
        }
        if !low {
            // Only while all is well: a hang is never learned.
            self.power.observe(power);
            self.low = None;
            return if normal.is_some() { Work::Works } else { Work::Unknown };
        }
        if utilization < FULL {
            // It does less, and says so.
            self.low = None;
            return Work::Works;
        }
        let since = *self.low.get_or_insert(now);
        match normal.filter(|_| now.since(since) >= lasting) {
            Some(normal) => Work::Hangs { since, power, normal },
            None => Work::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_utilisation_at_a_fraction_of_the_power_hangs_and_is_never_learned() {
        let mut busy = Busy::new(3);
        let at = |second: u64| Timestamp(second * 1_000_000_000);
        let lasting = Duration::from_secs(60);
        for second in 0..3 {
            assert_eq!(busy.seen(100, 600.0, 0.5, lasting, at(second)), Work::Unknown, "it learns");
        }
        assert_eq!(busy.seen(100, 590.0, 0.5, lasting, at(3)), Work::Works);
        assert_eq!(busy.seen(0, 70.0, 0.5, lasting, at(4)), Work::Unknown, "idle is no hang");
        assert_eq!(busy.seen(95, 250.0, 0.5, lasting, at(5)), Work::Works, "it does less, and says so");
        for second in 10..70 {
            assert_eq!(busy.seen(100, 110.0, 0.5, lasting, at(second)), Work::Unknown);
        }
        for second in 70..1000 {
            let said = busy.seen(100, 110.0, 0.5, lasting, at(second));
            assert!(matches!(said, Work::Hangs { since, .. } if since == at(10)), "{said:?}");
        }
        assert_eq!(busy.seen(100, 600.0, 0.5, lasting, at(1001)), Work::Works);
    }
}
