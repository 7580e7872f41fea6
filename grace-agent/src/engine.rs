//! Judgement: events in, effects out. Pure: no file, clock, process, network or environment; so a recorded stream of
//! events replays to the same effects, bit for bit.
//!
//! Each event goes to every trigger; their verdicts open, renew and clear incidents; the rungs that are due go
//! through the policy. A trigger that panics is taken out, and that is a firing of its own.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::action::{Action, Order, Outcome};
use crate::config::Config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Firing, FiringId, RungState, State, Subject, Verdict};
use crate::incident::Incident;
use crate::policy::{Held, Policy};
use crate::syntax_rule::{self, SyntaxRule};
use crate::triggers::{self, Spec, Trigger};

/// Losses of events within this time before a firing are a gap in its evidence.
const GAP: Duration = Duration::from_secs(60);

/// What follows from an event.
#[derive(Debug, Clone, PartialEq)]
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
}

impl Engine {
    /// An engine with all triggers, set as `config` says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::with_triggers(config, triggers::all(&config.triggers))
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
            _ => {}
        }
        for index in 0..self.judges.len() {
            self.judge(index, event, &mut out);
        }
        self.run_due(event.at, &mut out);
        out
    }

    /// When the engine wants a `Tick` at the latest.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let triggers = self.judges.iter().filter_map(|j| j.trigger.as_ref()?.wake());
        let rungs = self.open.values().filter_map(|i| i.next.map(|(_, at)| at));
        triggers.chain(rungs).min()
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
                };
                self.hear(spec, Verdict::Happened(Box::new(finding)), event.at, out);
            }
        }
    }

    fn hear(&mut self, spec: &'static Spec, verdict: Verdict, now: Timestamp, out: &mut Vec<Effect>) {
        match verdict {
            Verdict::Holds(finding) => {
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
                        self.open.entry(key).or_insert(Incident::open(
                            id,
                            (spec.name, spec.route),
                            *finding,
                            now,
                            gaps,
                        ))
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
                let admitted = self.policy.admit(now, &action);
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

    fn note_outcome(&mut self, id: FiringId, outcome: &Outcome, now: Timestamp, out: &mut Vec<Effect>) {
        let Some((key, incident)) = self.open.iter_mut().find(|(_, i)| i.firing.id == id) else { return };
        incident.ended(outcome.rung, &outcome.result, outcome.took_us, now);
        match incident.clearing.take() {
            Some((at, how)) => {
                let key = key.clone();
                self.close(&key, at, how, out);
            }
            None => out.push(Effect::Firing(incident.firing.clone())),
        }
    }

    fn close(&mut self, key: &(&'static str, Subject), at: Timestamp, how: String, out: &mut Vec<Effect>) {
        if let Some(mut incident) = self.open.remove(key) {
            incident.clear(at, how);
            out.push(Effect::Firing(incident.firing));
        }
    }

    /// Runs every rung whose time has come.
    fn run_due(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        for incident in self.open.values_mut() {
            let before = out.len();
            while let Some((rung, _)) = incident.next.filter(|(_, at)| *at <= now) {
                incident.next = None;
                let Some(action) = incident.actions.get(rung).cloned() else { break };
                run(incident, rung, action, &mut self.policy, now, out);
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
        match policy.admit(now, &action) {
            Ok(()) => (Ok(()), None),
            Err(held @ Held::Observe) => (Err(held.to_string()), None),
            Err(Held::HostBudget { free, burst }) => {
                (Err(Held::HostBudget { free, burst }.to_string()), Some((rung, free)))
            }
        }
    };
    incident.next = then;
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
