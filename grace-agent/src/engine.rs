//! Judgement: events in, effects out. Pure: no file, clock, process, network or environment; so a recorded stream of
//! events replays to the same effects, bit for bit.
//!
//! Each event goes to every trigger; their verdicts open, renew and clear incidents; the rungs that are due go
//! through the policy. A trigger that panics is taken out, and that is a firing of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::action::{self, Action, Order, Outcome};
use crate::config::{Config, Hook};
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Firing, FiringId, Route, RungState, State, Subject, Verdict};
use crate::incident::{Incident, SETTLE};
use crate::policy::Policy;
use crate::syntax_rule::{self, SyntaxRule};
use crate::triggers::{self, Spec, Trigger};

/// Losses of events within this time before a firing are a gap in its evidence.
const GAP: Duration = Duration::from_secs(60);

/// A cause and what follows from it fire within this time of each other.
const TOGETHER: Duration = Duration::from_secs(60);

/// Firings that cleared are remembered so many at most: whether one comes back.
const RECENT: usize = 4096;

/// Grace's own limits, as the trigger of the firing that says that they were reached.
static POLICY: Spec = Spec {
    name: "policy",
    summary: "repairs of several subjects failed in a row, so repairs rest",
    help: "Fires when `policy.breaker_failures` repairs in a row failed, of at least three subjects. Nothing on the host \
           is changed then for `policy.breaker_rest`; tasks are filed all the same. Clears when the rest is over, or by \
           `grace resume all`.",
    subjects: "the host",
    remedy: "file a task",
    needs: "nothing",
    evidence: &[],
    route: Route::CodingAgent,
};

/// What follows from an event.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a few live at a time, and for a moment")]
pub enum Effect {
    /// A firing is new or has changed.
    Firing(Firing),
    /// An action was admitted, or held and why. For the journal.
    Decision {
        /// The firing, if there is one.
        firing: Option<FiringId>,
        /// What it is about.
        subject: Subject,
        /// The verb.
        action: &'static str,
        /// Admitted, or why not.
        admitted: Result<(), String>,
    },
    /// Do it.
    Run(Order),
}

/// Everything that can fire: the triggers, and the engine's own rule for what a scan finds.
#[must_use]
pub fn specs() -> Vec<&'static Spec> {
    triggers::specs().into_iter().chain([&syntax_rule::SPEC]).collect()
}

/// A trigger and its state of service.
struct Judge {
    spec: &'static Spec,
    /// None: it panicked and was taken out.
    trigger: Option<Box<dyn Trigger>>,
}

/// What a trigger does now, for `status`.
#[derive(Debug, Clone, Copy)]
pub struct Duty {
    /// What it is.
    pub spec: &'static Spec,
    /// False after it panicked.
    pub works: bool,
    /// How many subjects it judges.
    pub subjects: usize,
    /// How many of its firings hold.
    pub holds: usize,
}

/// The engine.
pub struct Engine {
    judges: Vec<Judge>,
    open: BTreeMap<(&'static str, Subject), Incident>,
    policy: Policy,
    next_firing: u64,
    /// By class: when it was last counted as lost, and the count.
    lost: BTreeMap<String, (Timestamp, u64)>,
    /// The last firing of each subject that cleared, and when.
    recent: BTreeMap<(&'static str, Subject), (FiringId, Timestamp)>,
    /// How long a firing that cleared is remembered.
    reopen: Duration,
    /// Commands that are run for firings, and for which subjects.
    hooks: Vec<(Hook, Option<glob::Pattern>)>,
}

impl Engine {
    /// An engine with all triggers, set as `config` says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::with_triggers(config, triggers::all(config))
    }

    /// An engine with these triggers.
    #[must_use]
    pub fn with_triggers(config: &Config, triggers: Vec<Box<dyn Trigger>>) -> Self {
        // The engine's own rule comes with every set of triggers.
        let own: Box<dyn Trigger> = Box::new(SyntaxRule::default());
        let judges =
            triggers.into_iter().chain([own]).map(|t| Judge { spec: t.spec(), trigger: Some(t) }).collect();
        Self {
            judges,
            open: BTreeMap::new(),
            policy: Policy::new(config.policy.clone()),
            next_firing: 1,
            lost: BTreeMap::new(),
            recent: BTreeMap::new(),
            reopen: config.policy.reopen.get(),
            hooks: config
                .hook
                .iter()
                .filter(|hook| hook.trigger.is_some())
                .map(|hook| {
                    // Checked when it was read.
                    let subject = hook.subject.as_deref().and_then(|text| glob::Pattern::new(text).ok());
                    (hook.clone(), subject)
                })
                .collect(),
        }
    }

    /// Judges one event.
    pub fn step(&mut self, event: &Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match &event.kind {
            Kind::Start { next_firing, .. } => self.next_firing = *next_firing,
            Kind::Mode { mode } => self.policy.set_mode(*mode),
            Kind::Lost { class, total } => self.note_loss(event.at, class, *total, &mut out),
            Kind::Outcome(outcome) => {
                if let Some(id) = outcome.firing {
                    self.note_outcome(id, outcome, event.at, &mut out);
                }
            }
            Kind::Paused { scope, until, why } => self.policy.pause(scope.clone(), *until, why.clone()),
            Kind::Unpaused { scope } => {
                self.policy.unpause(scope);
                self.open.values_mut().for_each(|incident| incident.goes_on(event.at));
            }
            _ => {}
        }
        for index in 0..self.judges.len() {
            self.judge(index, event, &mut out);
        }
        self.mend(event.at, &mut out);
        self.run_due(event.at, &mut out);
        out
    }

    /// When the engine wants a `Tick` at the latest.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let triggers = self.judges.iter().filter_map(|j| j.trigger.as_ref()?.wake());
        let rungs = self.open.values().filter_map(|i| i.next.map(|(_, at)| at));
        triggers.chain(rungs).chain(self.policy.broken()).min()
    }

    /// What each trigger does now.
    #[must_use]
    pub fn duties(&self) -> Vec<Duty> {
        self.judges
            .iter()
            .map(|judge| Duty {
                spec: judge.spec,
                works: judge.trigger.is_some(),
                subjects: judge.trigger.as_ref().map_or(0, |t| t.subjects()),
                holds: self.open.keys().filter(|(name, _)| *name == judge.spec.name).count(),
            })
            .collect()
    }

    /// What each trigger has learned, by its name, where it learned anything.
    #[must_use]
    pub fn learned(&self) -> Vec<(&'static str, serde_json::Value)> {
        self.judges.iter().filter_map(|j| Some((j.spec.name, asked(j, |t| t.learned())??))).collect()
    }

    /// What people should know of each trigger's judgement now, by its name.
    #[must_use]
    pub fn notes(&self) -> BTreeMap<&'static str, Vec<String>> {
        self.judges.iter().filter_map(|j| Some((j.spec.name, asked(j, |t| t.notes())?))).collect()
    }

    fn judge(&mut self, index: usize, event: &Event, out: &mut Vec<Effect>) {
        let Some(judge) = self.judges.get_mut(index) else { return };
        let Some(trigger) = judge.trigger.as_mut() else { return };
        let spec = judge.spec;
        // Unwind safe: after a panic the trigger, the only thing it could have left half done, is dropped.
        match catch_unwind(AssertUnwindSafe(|| trigger.on_event(event))) {
            Ok(verdicts) => {
                for verdict in verdicts {
                    self.hear(spec, verdict, event.at, out);
                }
            }
            Err(_) => {
                judge.trigger = None;
                let finding = Finding {
                    subject: Subject::Trigger(spec.name.to_owned()),
                    since: event.at,
                    summary: format!("trigger {} failed and was disabled until the next start", spec.name),
                    measured: "panic".into(),
                    threshold: "none".into(),
                    baseline: "none".into(),
                    writer: None,
                    noticed_by: None,
                    evidence: Vec::new(),
                    remedy: Vec::new(),
                    delay: Duration::ZERO,
                    hold: None,
                    depends_on: Vec::new(),
                };
                self.hear(spec, Verdict::Happened(Box::new(finding)), event.at, out);
            }
        }
    }

    fn hear(&mut self, spec: &'static Spec, verdict: Verdict, now: Timestamp, out: &mut Vec<Effect>) {
        match verdict {
            Verdict::Holds(mut finding) => {
                self.add_hooks(spec, &mut finding);
                let key = (spec.name, finding.subject.clone());
                let gaps = self.gaps(spec, now);
                let incident = match self.open.get_mut(&key) {
                    Some(incident) => {
                        incident.renew(*finding, now);
                        incident.firing.evidence_gaps |= gaps;
                        incident
                    }
                    None => {
                        let id = self.take_id();
                        let mut incident = Incident::open(id, (spec.name, spec.route), *finding, now, gaps);
                        incident.firing.cause = self.cause_of(&incident, now);
                        incident.firing.again = self.cleared_lately(&key, now);
                        self.follows_from(&incident, now, out);
                        self.open.entry(key).or_insert(incident)
                    }
                };
                out.push(Effect::Firing(incident.firing.clone()));
            }
            Verdict::Cleared(subject, how) => {
                let key = (spec.name, subject);
                match self.open.get_mut(&key) {
                    // The file is seen to be right before the restore has told that it is done: wait for its word.
                    Some(incident) if incident.running.is_some() => incident.clearing = Some((now, how)),
                    Some(_) => self.close(&key, now, how, out),
                    None => {}
                }
            }
            Verdict::Happened(finding) => {
                let gaps = self.gaps(spec, now);
                let mut firing =
                    Incident::open(self.take_id(), (spec.name, spec.route), *finding, now, gaps).firing;
                firing.state = State::Happened;
                out.push(Effect::Firing(firing));
            }
            Verdict::Wants(subject, action) => {
                // To take back what was done for a spike has time; a first start, or what was shed, has not.
                let rests = self.policy.paused(now, spec.name, &subject, &[]);
                let admitted = match rests.filter(|_| matches!(action, Action::Scale { .. })) {
                    Some(held) => Err(held),
                    None => self.policy.admit(now, &subject, &action),
                };
                out.push(Effect::Decision {
                    firing: None,
                    subject: subject.clone(),
                    action: action.name(),
                    admitted: admitted.as_ref().map_err(ToString::to_string).copied(),
                });
                if admitted.is_ok() {
                    out.push(Effect::Run(Order { firing: None, subject, rung: 0, at: now, action }));
                }
            }
        }
    }

    /// Puts the declared commands for `finding` where help would be asked for.
    fn add_hooks(&self, spec: &Spec, finding: &mut Finding) {
        let subject = finding.subject.to_string();
        let meant = |(hook, pattern): &&(Hook, Option<glob::Pattern>)| {
            hook.trigger.as_deref() == Some(spec.name)
                && pattern.as_ref().is_none_or(|pattern| pattern.matches(&subject))
        };
        for (hook, _) in self.hooks.iter().filter(meant) {
            let task = finding.remedy.iter().position(|action| matches!(action, Action::FileTask { .. }));
            let action = Action::RunHook { hook: hook.name.clone(), trigger: spec.name.to_owned() };
            finding.remedy.insert(task.unwrap_or(finding.remedy.len()), action);
        }
    }

    fn note_outcome(&mut self, id: FiringId, outcome: &Outcome, now: Timestamp, out: &mut Vec<Effect>) {
        let Some((key, incident)) = self.open.iter_mut().find(|(_, i)| i.firing.id == id) else { return };
        incident.ended(outcome.rung, &outcome.result, outcome.took_us, now);
        let breaks = action::changes_host(&outcome.action)
            && self.policy.note(now, &outcome.subject, outcome.result.is_ok());
        match incident.clearing.take() {
            Some((at, how)) => {
                let key = key.clone();
                self.close(&key, at, how, out);
            }
            None => out.push(Effect::Firing(incident.firing.clone())),
        }
        if breaks {
            self.hear(&POLICY, Verdict::Holds(Box::new(broken(now, &outcome.result))), now, out);
        }
    }

    /// Closes the breaker when its time has come, or a person said so.
    fn mend(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let key = (POLICY.name, repairs());
        let over = self.policy.mends(now);
        if over || (self.policy.broken().is_none() && self.open.contains_key(&key)) {
            self.close(&key, now, "repairs are tried again".to_owned(), out);
            self.open.values_mut().for_each(|incident| incident.goes_on(now));
        }
    }

    /// The firing that a new incident follows from: the oldest that holds, or the last that cleared, among what it
    /// depends on.
    fn cause_of(&self, incident: &Incident, now: Timestamp) -> Option<FiringId> {
        let meant =
            |subject: &Subject| incident.depends_on.contains(subject) && *subject != incident.firing.subject;
        let holds =
            self.open.iter().filter(|((_, subject), _)| meant(subject)).map(|(_, i)| i.firing.id).min();
        holds.or_else(|| {
            self.recent
                .iter()
                .filter(|((_, subject), (_, at))| meant(subject) && now.since(*at) < TOGETHER)
                .max_by_key(|(_, (_, at))| *at)
                .map(|(_, (id, _))| *id)
        })
    }

    /// What fired shortly before `cause` and depends on it follows from it after all: a full queue may be noticed before
    /// the dead process behind it.
    fn follows_from(&mut self, cause: &Incident, now: Timestamp, out: &mut Vec<Effect>) {
        for incident in self.open.values_mut() {
            let firing = &mut incident.firing;
            let follows = firing.cause.is_none()
                && Some(firing.id) != cause.firing.cause
                && now.since(firing.at) < TOGETHER
                && firing.subject != cause.firing.subject
                && incident.depends_on.contains(&cause.firing.subject);
            if follows {
                firing.cause = Some(cause.firing.id);
                out.push(Effect::Firing(firing.clone()));
            }
        }
    }

    /// The firing that comes back with one about `key`.
    fn cleared_lately(&self, key: &(&'static str, Subject), now: Timestamp) -> Option<FiringId> {
        self.recent.get(key).filter(|(_, at)| now.since(*at) < self.reopen).map(|(id, _)| *id)
    }

    fn close(&mut self, key: &(&'static str, Subject), at: Timestamp, how: String, out: &mut Vec<Effect>) {
        if let Some(mut incident) = self.open.remove(key) {
            incident.clear(at, how);
            let id = incident.firing.id;
            out.push(Effect::Firing(incident.firing));
            for follower in self.open.values_mut().filter(|i| i.firing.cause == Some(id)) {
                follower.goes_on(at.after(SETTLE));
            }
            if self.recent.len() >= RECENT {
                let reopen = self.reopen.max(TOGETHER);
                self.recent.retain(|_, (_, cleared)| at.since(*cleared) < reopen);
            }
            if self.recent.len() < RECENT {
                self.recent.insert(key.clone(), (id, at));
            }
        }
    }

    /// Runs every rung whose time has come.
    fn run_due(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let holding: BTreeSet<FiringId> = self.open.values().map(|i| i.firing.id).collect();
        for ((trigger, subject), incident) in &mut self.open {
            let before = out.len();
            while let Some((rung, _)) = incident.next.filter(|(_, at)| *at <= now) {
                incident.next = None;
                let Some(action) = incident.actions.get(rung).cloned() else { break };
                let rests = self.policy.paused(now, trigger, subject, &incident.depends_on);
                if let Some(held) = rests {
                    rest(incident, rung, &action, held.to_string(), held.until(), out);
                } else if let Some((cause, until)) =
                    incident.waits(now).filter(|(id, _)| holding.contains(id))
                {
                    let why = format!("waits for its cause {cause} to clear");
                    rest(incident, rung, &action, why, Some(until), out);
                } else {
                    run(incident, rung, action, &mut self.policy, now, out);
                }
            }
            if out.len() > before {
                out.push(Effect::Firing(incident.firing.clone()));
            }
        }
    }

    fn note_loss(&mut self, now: Timestamp, class: &str, total: u64, out: &mut Vec<Effect>) {
        let known = self.lost.entry(class.to_owned()).or_insert((now, 0));
        if total <= known.1 {
            return;
        }
        *known = (now, total);
        let specs: Vec<_> = self.judges.iter().map(|j| j.spec).collect();
        for ((name, _), incident) in &mut self.open {
            let builds_on = specs.iter().any(|s| s.name == *name && s.evidence.contains(&class));
            if builds_on && !incident.firing.evidence_gaps {
                incident.firing.evidence_gaps = true;
                out.push(Effect::Firing(incident.firing.clone()));
            }
        }
    }

    fn gaps(&self, spec: &Spec, now: Timestamp) -> bool {
        spec.evidence
            .iter()
            .any(|class| self.lost.get(*class).is_some_and(|(at, n)| *n > 0 && now.since(*at) < GAP))
    }

    fn take_id(&mut self) -> FiringId {
        let id = FiringId(self.next_firing);
        self.next_firing += 1;
        id
    }
}

/// What repairs are as a subject.
fn repairs() -> Subject {
    Subject::Host("repairs".to_owned())
}

/// The breaker opens at `now`.
fn broken(now: Timestamp, last: &Result<String, String>) -> Finding {
    Finding {
        subject: repairs(),
        since: now,
        summary: "repairs of several subjects failed in a row: Grace changes nothing for a while".into(),
        measured: last.as_ref().err().map_or_else(String::new, |why| why.escape_debug().to_string()),
        threshold: "policy.breaker_failures".into(),
        baseline: "repairs work".into(),
        writer: None,
        noticed_by: None,
        evidence: Vec::new(),
        remedy: vec![Action::FileTask {
            title: "Find out why Grace's repairs fail on this host".into(),
            acceptance: "repairs work again: `grace firings` shows a repair that was done".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    }
}

/// Lets one rung of `incident` rest until `until`, or until that for which it rests is over.
fn rest(
    incident: &mut Incident,
    rung: usize,
    action: &Action,
    why: String,
    until: Option<Timestamp>,
    out: &mut Vec<Effect>,
) {
    incident.next = until.map(|at| (rung, at));
    incident.rests = Some(rung);
    out.push(Effect::Decision {
        firing: Some(incident.firing.id),
        subject: incident.firing.subject.clone(),
        action: action.name(),
        admitted: Err(why.clone()),
    });
    incident.show(rung, RungState::Held, Some(why));
}

/// What a trigger answers; none where it is disabled, or fails at that.
fn asked<T>(judge: &Judge, question: impl FnOnce(&dyn Trigger) -> T) -> Option<T> {
    let trigger = judge.trigger.as_deref()?;
    // Unwind safe: a question changes nothing.
    catch_unwind(AssertUnwindSafe(|| question(trigger))).ok()
}

/// Runs one rung of `incident`, or holds it and says why.
fn run(
    incident: &mut Incident,
    rung: usize,
    action: Action,
    policy: &mut Policy,
    now: Timestamp,
    out: &mut Vec<Effect>,
) {
    let next = incident.rung_after(rung);
    let (admitted, then) = if let Some(why) = incident.hold.clone().filter(|_| action.changes_host()) {
        // The trigger itself holds back (a fight, a spent budget): on to the rung that asks for help.
        (Err(why), next.map(|next| (next, now)))
    } else {
        match policy.admit(now, &incident.firing.subject, &action) {
            Ok(()) => (Ok(()), None),
            Err(held) => {
                incident.rests = held.until().map(|_| rung);
                (Err(held.to_string()), held.until().map(|at| (rung, at)))
            }
        }
    };
    incident.next = then;
    if admitted.is_ok() {
        incident.rests = None;
    }
    out.push(Effect::Decision {
        firing: Some(incident.firing.id),
        subject: incident.firing.subject.clone(),
        action: action.name(),
        admitted: admitted.clone(),
    });
    let state = if admitted.is_ok() { RungState::Running } else { RungState::Held };
    incident.show(rung, state, admitted.as_ref().err().cloned());
    if admitted.is_ok() {
        if matches!(action, Action::FileTask { .. }) {
            incident.escalate(now);
        }
        incident.running = Some(rung);
        out.push(Effect::Run(Order {
            firing: Some(incident.firing.id),
            subject: incident.firing.subject.clone(),
            rung,
            at: now,
            action,
        }));
    }
}
