//! A whole look of a source that polls, on request: `grace scan` asks, and waits until a look that began after it asked
//! has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Stopwatch;

/// How often one who waits looks whether it is done.
const LOOK: Duration = Duration::from_millis(5);

/// The looks of one source, counted.
#[derive(Debug, Clone, Default)]
pub struct Rounds(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    done: AtomicU64,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Asked {
    rounds: Rounds,
    number: u64,
}

impl Rounds {
    /// Asks for a look. The source has to be woken for it.
    #[must_use]
    pub fn ask(&self) -> Asked {
        Asked { rounds: self.clone(), number: self.0.asked.fetch_add(1, Ordering::AcqRel) + 1 }
    }

    /// The source begins a look: what it has to hand to [`Rounds::end`].
    #[must_use]
    pub fn begin(&self) -> u64 {
        self.0.asked.load(Ordering::Acquire)
    }

    /// Somebody waits for a look.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.done.load(Ordering::Acquire) < self.begin()
    }

    /// The look that began with `begun` has ended, and what it saw is told.
    pub fn end(&self, begun: u64) {
        self.0.done.fetch_max(begun, Ordering::AcqRel);
    }
}

impl Asked {
    /// Waits for the look, at most `patience` long. False: it has not ended.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        let clock = Stopwatch::start();
        while self.rounds.0.done.load(Ordering::Acquire) < self.number {
            if clock.elapsed() > patience {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_began_before_it_was_asked_for_is_not_the_one() {
        let rounds = Rounds::default();
        let begun = rounds.begin();
        let asked = rounds.ask();
        rounds.end(begun);
        assert!(!asked.wait(Duration::ZERO));
        assert!(rounds.is_asked());
        let begun = rounds.begin();
        rounds.end(begun);
        assert!(asked.wait(Duration::ZERO));
        assert!(!rounds.is_asked());
    }
}
