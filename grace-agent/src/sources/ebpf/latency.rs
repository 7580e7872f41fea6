//! How much of the time system calls are timed: all of it while that costs next to nothing, else as large a share as
//! the budget pays for. Pure but for its one input, the host's rate of calls.

use crate::config::{LatencyMode, Probes as Settings};

/// What timing one call costs before it was measured here, in nanoseconds: two hooks, two clock reads and a table
/// (measured beside empty hooks; see the `syscall` benchmark).
const PAIR_NS: f64 = 80.0;
/// What counting a call costs all the time, in nanoseconds. The budget for a call pays for it first.
const COUNT_NS: f64 = 28.0;
/// While timing every call takes less than this share of the budget for a core, every call is timed.
const NEGLIGIBLE: f64 = 0.1;
/// A cycle of partial timing, in seconds: what is saved up meanwhile is spent at its end.
const CYCLE: u64 = 10;
/// Less than this is not worth attaching for, in seconds.
const SHORTEST: f64 = 0.05;

/// Decides.
#[derive(Debug)]
pub struct Governor {
    settings: Settings,
    pair_ns: f64,
    credit: f64,
    second: u64,
    share: f64,
}

impl Governor {
    /// With the settings of `[probes]`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, pair_ns: PAIR_NS, credit: 0.0, second: 0, share: 0.0 }
    }

    /// Other settings from now on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What counting and timing a call was measured to cost here, both together, in nanoseconds.
    pub fn measured(&mut self, both_ns: f64) {
        let pair_ns = both_ns - COUNT_NS;
        if pair_ns.is_finite() && pair_ns > 0.0 {
            self.pair_ns = pair_ns;
        }
    }

    /// The share of the time in which calls are timed, of 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// The share that `rate` calls a second leave.
    fn share_at(&self, rate: f64) -> f64 {
        match self.settings.latency {
            LatencyMode::Off => return 0.0,
            LatencyMode::Full => return 1.0,
            LatencyMode::Auto => {}
        }
        let core = self.settings.budget_percent / 100.0 * 1e9;
        let all = self.pair_ns * rate;
        if all <= core * NEGLIGIBLE {
            return 1.0;
        }
        let per_call = (f64::from(self.settings.budget_ns) - COUNT_NS).max(0.0) * rate;
        (core.min(per_call) / all).clamp(0.0, 1.0)
    }

    /// How long calls are timed within the second that begins, in seconds; `rate` is that of the last one.
    pub fn next_second(&mut self, rate: f64) -> f64 {
        self.second += 1;
        self.share = self.share_at(rate);
        if self.share >= 1.0 {
            self.credit = 0.0;
            return 1.0;
        }
        // What could not be spent for long is not saved for a burst: the budget is one for every cycle.
        self.credit = (self.credit + self.share).min(CYCLE as f64);
        let spend = if self.credit >= 1.0 {
            1.0
        } else if self.second.is_multiple_of(CYCLE) && self.credit >= SHORTEST {
            self.credit
        } else {
            0.0
        };
        self.credit -= spend;
        spend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn governor(latency: LatencyMode) -> Governor {
        Governor::new(Settings { latency, ..Settings::default() })
    }

    #[test]
    fn a_quiet_host_is_timed_whole_and_a_busy_one_within_the_budget() {
        let mut auto = governor(LatencyMode::Auto);
        assert!((auto.next_second(5_000.0) - 1.0).abs() < f64::EPSILON);
        for rate in [50_000.0, 200_000.0, 1e6, 5e6, 50e6] {
            let seconds = 1000;
            let on: f64 = (0..seconds).map(|_| auto.next_second(rate)).sum();
            let cost = on / f64::from(seconds) * PAIR_NS * rate;
            assert!(cost <= 0.01e9 * 1.05, "{rate}: {cost} ns a second");
            assert!(cost + COUNT_NS * rate <= 60.0 * rate * 1.05, "{rate}: over the budget of a call");
            assert!(rate > 10e6 || on > 0.0, "{rate}: never timed");
        }
    }

    #[test]
    fn off_and_full_are_obeyed() {
        assert!(governor(LatencyMode::Off).next_second(1.0) < f64::EPSILON);
        assert!((governor(LatencyMode::Full).next_second(1e9) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_measured_cost_counts() {
        let mut auto = governor(LatencyMode::Auto);
        auto.next_second(200_000.0);
        let before = auto.share();
        auto.measured(PAIR_NS * 2.0 + COUNT_NS);
        auto.next_second(200_000.0);
        assert!(auto.share() < before);
    }
}
