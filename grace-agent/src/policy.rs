//! Whether an action may be done now. Pure: time comes with the question.
//!
//! Budgets of one subject (how often a process is restarted) belong to its trigger; here stand the limits over the
//! whole host, which win: a mistake in a trigger, or a storm, cannot make Grace itself the outage.

use std::collections::VecDeque;
use std::fmt;

use crate::action::Action;
use crate::config::{self, Mode};
use crate::event::Timestamp;

/// Why an action is not done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Grace only observes.
    Observe,
    /// The host's budget is used up; it is free again then.
    HostBudget {
        /// When.
        free: Timestamp,
        /// How many changes the budget allows.
        burst: u32,
    },
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observe => f.write_str("mode is observe"),
            Self::HostBudget { burst, .. } => {
                write!(f, "breaker: {burst} changes to this host are used up (policy.host_burst)")
            }
        }
    }
}

/// The limits in force and what was used of them.
#[derive(Debug)]
pub struct Policy {
    mode: Mode,
    limits: config::Policy,
    /// When changes were admitted, oldest first; at most `host_burst` of them.
    admitted: VecDeque<Timestamp>,
}

impl Policy {
    /// Nothing used yet; observing until told otherwise.
    #[must_use]
    pub fn new(limits: config::Policy) -> Self {
        Self { mode: Mode::Observe, limits, admitted: VecDeque::new() }
    }

    /// The mode from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Admits `action` at `now` and takes it from the budget, or says why not.
    pub fn admit(&mut self, now: Timestamp, action: &Action) -> Result<(), Held> {
        if !action.changes_host() {
            return Ok(());
        }
        if self.mode == Mode::Observe {
            return Err(Held::Observe);
        }
        let window = self.limits.host_interval.get();
        while self.admitted.front().is_some_and(|at| at.after(window) <= now) {
            self.admitted.pop_front();
        }
        if self.admitted.len() >= self.limits.host_burst as usize {
            let free = self.admitted.front().map_or(now.after(window), |at| at.after(window));
            return Err(Held::HostBudget { free, burst: self.limits.host_burst });
        }
        self.admitted.push_back(now);
        Ok(())
    }
}
