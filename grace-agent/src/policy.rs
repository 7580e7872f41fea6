//! Whether an action may be done now. Pure: time comes with the question.
//!
//! Budgets of a kind of work (how often a process is restarted) belong to its trigger; here stand the limits over a
//! subject and the whole host, pauses, and the breaker, which win: a mistake in a trigger, or a storm, cannot make Grace
//! itself the outage.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::action::Action;
use crate::config::{self, Mode};
use crate::event::Timestamp;
use crate::firing::{Scope, Subject};

/// Failures of fewer subjects than this are theirs, not Grace's.
const BREAKER_SUBJECTS: usize = 3;

/// Pauses kept at the same time. One more is refused by whoever takes it (`daemon/control.rs`).
pub const PAUSES_MAX: usize = 1000;

/// Why an action is not done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Grace only observes.
    Observe,
    /// It is paused.
    Paused {
        /// What is.
        scope: Scope,
        /// Until then.
        until: Timestamp,
        /// Why, in the words of whoever asked.
        why: String,
    },
    /// The subject's budget is used up; it is free again then.
    SubjectBudget {
        /// When.
        free: Timestamp,
        /// How many changes the budget allows.
        burst: u32,
    },
    /// The host's budget is used up; it is free again then.
    HostBudget {
        /// When.
        free: Timestamp,
        /// How many changes the budget allows.
        burst: u32,
    },
    /// Repairs kept failing; they rest.
    Breaker {
        /// Until then.
        until: Timestamp,
    },
}

impl Held {
    /// When to ask again; none: not by itself.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Observe => None,
            Self::SubjectBudget { free, .. } | Self::HostBudget { free, .. } => Some(*free),
            Self::Paused { until, .. } | Self::Breaker { until } => Some(*until),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observe => f.write_str("mode is observe"),
            Self::Paused { scope, why, .. } => {
                write!(f, "paused: {}: {}", scope.to_string().escape_debug(), why.escape_debug())
            }
            Self::SubjectBudget { burst, .. } => {
                write!(f, "{burst} changes to this subject are used up (policy.subject_burst)")
            }
            Self::HostBudget { burst, .. } => {
                write!(f, "breaker: {burst} changes to this host are used up (policy.host_burst)")
            }
            Self::Breaker { .. } => {
                f.write_str("breaker: repairs kept failing, they rest (policy.breaker_rest)")
            }
        }
    }
}

/// The limits in force and what was used of them.
#[derive(Debug)]
pub struct Policy {
    mode: Mode,
    limits: config::Policy,
    /// When changes were admitted and to what, oldest first; at most `host_burst` of them.
    admitted: VecDeque<(Timestamp, Subject)>,
    pauses: BTreeMap<Scope, (Timestamp, String)>,
    /// Subjects of the repairs that failed since the last one that did not.
    failed: BTreeSet<Subject>,
    failures: u32,
    /// Until when the breaker is open.
    broken: Option<Timestamp>,
}

impl Policy {
    /// Nothing used yet; observing until told otherwise.
    #[must_use]
    pub fn new(limits: config::Policy) -> Self {
        Self {
            mode: Mode::Observe,
            limits,
            admitted: VecDeque::new(),
            pauses: BTreeMap::new(),
            failed: BTreeSet::new(),
            failures: 0,
            broken: None,
        }
    }

    /// The mode from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Rests from now on.
    pub fn pause(&mut self, scope: Scope, until: Timestamp, why: String) {
        if self.pauses.len() < PAUSES_MAX || self.pauses.contains_key(&scope) {
            self.pauses.insert(scope, (until, why));
        }
    }

    /// Rests no more.
    pub fn unpause(&mut self, scope: &Scope) {
        self.pauses.remove(scope);
        if *scope == Scope::All {
            // Who says that repairs go on has seen why they failed.
            (self.broken, self.failures) = (None, 0);
            self.failed.clear();
        }
    }

    /// Whether a firing of `trigger` about `subject`, which depends on `others`, rests at `now`.
    #[must_use]
    pub fn paused(
        &self,
        now: Timestamp,
        trigger: &str,
        subject: &Subject,
        others: &[Subject],
    ) -> Option<Held> {
        let meant = |scope: &Scope| match scope {
            Scope::All | Scope::Quiet => true,
            Scope::Trigger(name) => name == trigger,
            Scope::Subject(paused) => paused == subject || others.contains(paused),
        };
        self.pauses
            .iter()
            .filter(|(scope, (until, _))| *until > now && meant(scope))
            .max_by_key(|(_, (until, _))| *until)
            .map(|(scope, (until, why))| Held::Paused {
                scope: scope.clone(),
                until: *until,
                why: why.clone(),
            })
    }

    /// What became of a change that was admitted. True: the breaker opens now.
    pub fn note(&mut self, now: Timestamp, subject: &Subject, worked: bool) -> bool {
        if worked {
            self.failures = 0;
            self.failed.clear();
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failed.len() < BREAKER_SUBJECTS {
            self.failed.insert(subject.clone());
        }
        let limit = self.limits.breaker_failures;
        if limit == 0
            || self.failures < limit
            || self.failed.len() < BREAKER_SUBJECTS
            || self.broken.is_some()
        {
            return false;
        }
        self.broken = Some(now.after(self.limits.breaker_rest.get()));
        true
    }

    /// Until when the breaker is open.
    #[must_use]
    pub fn broken(&self) -> Option<Timestamp> {
        self.broken
    }

    /// True once after the breaker's rest is over: repairs are tried again.
    pub fn mends(&mut self, now: Timestamp) -> bool {
        let over = self.broken.is_some_and(|until| until <= now);
        if over {
            (self.broken, self.failures) = (None, 0);
            self.failed.clear();
        }
        over
    }

    /// Admits `action` on `subject` at `now` and takes it from the budgets, or says why not.
    pub fn admit(&mut self, now: Timestamp, subject: &Subject, action: &Action) -> Result<(), Held> {
        // What was taken is given back whatever the mode and the budgets are.
        if !action.changes_host() || matches!(action, Action::GiveBack { .. }) {
            return Ok(());
        }
        if self.mode == Mode::Observe {
            return Err(Held::Observe);
        }
        if let Some(until) = self.broken.filter(|until| *until > now) {
            return Err(Held::Breaker { until });
        }
        let window = self.limits.host_interval.get();
        while self.admitted.front().is_some_and(|(at, _)| at.after(window) <= now) {
            self.admitted.pop_front();
        }
        let free = |first: Option<&(Timestamp, Subject)>| first.map_or(now, |(at, _)| *at).after(window);
        if self.admitted.len() >= self.limits.host_burst as usize {
            let free = free(self.admitted.front());
            return Err(Held::HostBudget { free, burst: self.limits.host_burst });
        }
        let burst = self.limits.subject_burst;
        if burst > 0 {
            let mut theirs = self.admitted.iter().filter(|(_, s)| s == subject);
            let first = theirs.next();
            if usize::from(first.is_some()) + theirs.count() >= burst as usize {
                return Err(Held::SubjectBudget { free: free(first), burst });
            }
        }
        self.admitted.push_back((now, subject.clone()));
        Ok(())
    }
}
