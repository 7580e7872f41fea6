//! The only place that reads a clock.
//!
//! CLOCK_BOOTTIME orders and expires things (it counts through suspend and is never set); wall time is data for
//! people. Pure rooms never call this: their time is an event.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::event::Timestamp;

/// CLOCK_BOOTTIME now.
#[must_use]
pub fn boottime() -> Timestamp {
    Timestamp(nanos(ClockId::Boottime))
}

/// How long the host slept since it booted: CLOCK_BOOTTIME counts that time, CLOCK_MONOTONIC does not.
#[must_use]
pub fn slept() -> Duration {
    // Monotonic first: what passes between the two reads makes it longer by nothing that matters, never negative.
    let awake = nanos(ClockId::Monotonic);
    Duration::from_nanos(boottime().0.saturating_sub(awake))
}

/// Wall time now, in nanoseconds since the epoch.
#[must_use]
pub fn wall_ns() -> i64 {
    i64::try_from(nanos(ClockId::Realtime)).unwrap_or(i64::MAX)
}

/// What a moment of CLOCK_BOOTTIME was, or will be, on the wall clock as it is set now: RFC 3339 in UTC, microseconds.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    let offset = i128::from(wall_ns()) - i128::from(boottime().0);
    format_wall(i128::from(at.0) + offset)
}

/// A wall time, in nanoseconds since the epoch, as RFC 3339 in UTC with microseconds.
#[must_use]
pub fn rfc3339_wall(ns: i64) -> String {
    format_wall(i128::from(ns))
}

/// Wall time now as RFC 3339 in UTC with microseconds.
#[must_use]
pub fn wall_rfc3339() -> String {
    format_wall(i128::from(wall_ns()))
}

/// The moment that an RFC 3339 text names, in nanoseconds since the epoch.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok()
}

fn format_wall(ns: i128) -> String {
    jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| "unknown".to_owned(), |t| format!("{t:.6}"))
}

/// A stopwatch over CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(u64);

impl Stopwatch {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self(nanos(ClockId::Monotonic))
    }

    /// How long it has run.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(nanos(ClockId::Monotonic).saturating_sub(self.0))
    }
}

fn nanos(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    let s = u64::try_from(t.tv_sec).unwrap_or(0);
    let n = u64::try_from(t.tv_nsec).unwrap_or(0);
    s.saturating_mul(1_000_000_000).saturating_add(n)
}
