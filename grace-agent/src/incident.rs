//! An open firing and all that is done about it until it clears: the remedy's ladder. Pure.

use std::time::Duration;

use crate::action::{self, Action};
use crate::event::Timestamp;
use crate::firing::{Finding, Firing, FiringId, Route, Rung, RungState, State, Subject};

/// A rung that failed is tried again after these delays before the next rung takes over: a full disk or a lost race
/// may pass.
pub const RETRIES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10)];

/// What follows from a cause waits for it at most so long.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// A repair that was done must be seen to hold within this time; else the next rung takes over.
pub const SETTLE: Duration = Duration::from_secs(30);

/// A restore that failed to the end of the ladder begins anew after this time: the disk may have room again by then.
pub const LATER: Duration = Duration::from_secs(300);

/// After a repair that was done while new facts came, the file is about to be looked at: a moment in which the firing
/// can clear instead of being repaired again.
pub const MOMENT: Duration = Duration::from_millis(20);

/// A firing that holds, with its remedy.
#[derive(Debug)]
pub struct Incident {
    /// The record.
    pub firing: Firing,
    /// The actions of the remedy, as in `firing.remedy`.
    pub actions: Vec<Action>,
    /// Why nothing that changes the host is done.
    pub hold: Option<String>,
    /// The rung to run next and when.
    pub next: Option<(usize, Timestamp)>,
    /// The rung that runs now.
    pub running: Option<usize>,
    /// New facts came while a rung ran: begin anew when it ends.
    replan: Option<Timestamp>,
    /// The rungs shown are still those of the ladder before; they are replaced when the new one begins.
    shows_old: bool,
    /// How often the current rung failed.
    failures: usize,
    /// Seen to have cleared while a rung ran: the firing is closed when its outcome is known.
    pub clearing: Option<(Timestamp, String)>,
    /// What else, if it is wrong, too, is the likely cause.
    pub depends_on: Vec<Subject>,
    /// The rung that rests until its cause has cleared, a pause is over or the breaker closes.
    pub rests: Option<usize>,
    /// Since when it waits for its cause.
    waits_since: Option<Timestamp>,
    /// Where its trigger sends what it finds.
    by_trigger: Route,
}

impl Incident {
    /// A new firing at `at`.
    #[must_use]
    pub fn open(
        id: FiringId,
        (trigger, route): (&str, Route),
        finding: Finding,
        at: Timestamp,
        evidence_gaps: bool,
    ) -> Self {
        let firing = Firing {
            id,
            trigger: trigger.to_owned(),
            subject: finding.subject.clone(),
            state: State::Holds,
            since: finding.since,
            at,
            cleared: None,
            cleared_by: None,
            repaired: None,
            summary: String::new(),
            measured: String::new(),
            threshold: String::new(),
            baseline: String::new(),
            writer: None,
            noticed_by: None,
            evidence_gaps,
            evidence: Vec::new(),
            count: 0,
            cause: None,
            again: None,
            remedy: Vec::new(),
            route,
            escalated: None,
        };
        let mut incident = Self {
            firing,
            actions: Vec::new(),
            hold: None,
            next: None,
            running: None,
            replan: None,
            shows_old: false,
            failures: 0,
            clearing: None,
            depends_on: Vec::new(),
            rests: None,
            waits_since: None,
            by_trigger: route,
        };
        incident.renew(finding, at);
        incident
    }

    /// The condition holds again, or still, with new facts.
    pub fn renew(&mut self, finding: Finding, at: Timestamp) {
        self.clearing = None;
        let firing = &mut self.firing;
        firing.count = firing.count.saturating_add(1);
        firing.summary = finding.summary;
        firing.measured = finding.measured;
        firing.threshold = finding.threshold;
        firing.baseline = finding.baseline;
        firing.writer = finding.writer.or_else(|| firing.writer.take());
        firing.noticed_by = finding.noticed_by.or(firing.noticed_by);
        firing.evidence = finding.evidence;
        let due = at.after(finding.delay);
        self.actions = finding.remedy;
        if firing.escalated.is_none() {
            firing.route = self.by_trigger.of(&self.actions);
        }
        self.hold = finding.hold;
        self.depends_on = finding.depends_on;
        if self.running.is_some() {
            self.replan = Some(due);
        } else {
            self.plan(due);
            self.show_ladder();
        }
    }

    /// Begins the ladder anew.
    fn plan(&mut self, due: Timestamp) {
        self.failures = 0;
        self.rests = None;
        self.replan = None;
        self.next = (!self.actions.is_empty()).then_some((0, due));
    }

    /// Shows the rungs of the ladder in force.
    fn show_ladder(&mut self) {
        self.shows_old = false;
        self.firing.remedy = self
            .actions
            .iter()
            .map(|a| Rung {
                action: a.name().to_owned(),
                state: RungState::Planned,
                why: None,
                took_us: None,
            })
            .collect();
    }

    /// A rung begins, or is held: from now on the ladder shown is the one in force.
    pub fn show(&mut self, rung: usize, state: RungState, why: Option<String>) {
        if self.shows_old {
            self.show_ladder();
        }
        if let Some(shown) = self.firing.remedy.get_mut(rung) {
            (shown.state, shown.why, shown.took_us) = (state, why, None);
        }
    }

    /// A coding agent is asked at `at`, for the first time.
    pub fn escalate(&mut self, at: Timestamp) {
        if self.firing.route == Route::SelfHealing {
            self.firing.route = Route::CodingAgent;
            self.firing.escalated = Some(at);
        }
    }

    /// The rung `rung` ended.
    pub fn ended(&mut self, rung: usize, result: &Result<String, String>, took_us: u64, at: Timestamp) {
        if self.running != Some(rung) {
            return;
        }
        self.running = None;
        // The remedy may have been replaced while the rung ran; its name then tells which verb it was.
        let changes_host = self.firing.remedy.get(rung).is_some_and(|r| action::changes_host(&r.action));
        if let Some(shown) = self.firing.remedy.get_mut(rung) {
            (shown.state, shown.why) = match result {
                Ok(done) => (RungState::Done, Some(done.clone())),
                Err(why) => (RungState::Failed, Some(why.clone())),
            };
            shown.took_us = Some(took_us);
        }
        if result.is_ok() && changes_host {
            self.firing.repaired = Some(at);
        }
        if let Some(due) = self.replan.take().filter(|_| self.clearing.is_none()) {
            // What was done may have mended the new facts, too.
            let earliest = if result.is_ok() && changes_host { at.after(MOMENT) } else { at };
            self.plan(due.max(earliest));
            self.shows_old = true;
            return;
        }
        self.next = match result {
            // Done: the next rung's turn comes only if the condition is not seen to clear.
            Ok(_) if changes_host => self.rung_after(rung).map(|next| (next, at.after(SETTLE))),
            Ok(_) => {
                self.failures = 0;
                self.begins_again().then(|| (0, at.after(LATER)))
            }
            Err(_) => match RETRIES.get(self.failures) {
                Some(delay) => {
                    self.failures += 1;
                    Some((rung, at.after(*delay)))
                }
                None => self.rung_after(rung).map(|next| (next, at)),
            },
        };
    }

    /// Help was asked for because a restore failed. It was not held back, so it may be tried again. (A process that does
    /// not start has a budget of its own, which its trigger keeps.)
    fn begins_again(&self) -> bool {
        let failed = self.firing.remedy.first().is_some_and(|rung| rung.state == RungState::Failed);
        failed && matches!(self.actions.first(), Some(Action::RestoreFile { .. }))
    }

    /// The rung after `rung`.
    #[must_use]
    pub fn rung_after(&self, rung: usize) -> Option<usize> {
        (rung + 1 < self.actions.len()).then_some(rung + 1)
    }

    /// A rung that rests goes on at `at`.
    pub fn goes_on(&mut self, at: Timestamp) {
        if let Some(rung) = self.rests.take() {
            self.next = Some((rung, at));
        }
    }

    /// Until when it waits at `now` for its cause, if that holds: a repair of its own would only hide it. What is down or
    /// wrong by itself is put right all the same.
    pub fn waits(&mut self, now: Timestamp) -> Option<(FiringId, Timestamp)> {
        let cause = self.firing.cause?;
        let itself = matches!(
            self.actions.first(),
            Some(Action::StartProcess { .. } | Action::RestoreFile { .. }) | None
        );
        let until = self.waits_since.get_or_insert(now).after(PATIENCE);
        (until > now && !itself).then_some((cause, until))
    }

    /// The condition was seen not to hold any more.
    pub fn clear(&mut self, at: Timestamp, how: String) {
        self.firing.state = State::Cleared;
        self.firing.cleared = Some(at);
        self.firing.cleared_by = Some(how);
        (self.next, self.rests) = (None, None);
        self.firing.remedy.retain(|rung| rung.state != RungState::Planned);
    }
}
