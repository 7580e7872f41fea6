//! What the engine does with firings that belong together, come back, rest or fail: causes, returns, pauses, the breaker
//! and the budget of a subject. A scripted trigger stands in for the ten: what is judged here is the engine.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::time::Duration;

use grace_agent::action::{Action, Order, Outcome};
use grace_agent::config::{Config, Mode, Span};
use grace_agent::engine::{Effect, Engine};
use grace_agent::event::{Event, Kind, Timestamp};
use grace_agent::firing::{Finding, Firing, Route, RungState, Scope, State, Subject, Verdict};
use grace_agent::triggers::{Spec, Trigger};

static SPEC: Spec = Spec {
    name: "scripted",
    summary: "",
    help: "",
    subjects: "",
    remedy: "",
    needs: "",
    evidence: &[],
    route: Route::SelfHealing,
};

/// Says at each tick what stands next in the script.
struct Scripted(VecDeque<Vec<Verdict>>);

impl Trigger for Scripted {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }
    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        match event.kind {
            Kind::Tick => self.0.pop_front().unwrap_or_default(),
            _ => Vec::new(),
        }
    }
    fn subjects(&self) -> usize {
        0
    }
}

fn process(name: &str) -> Subject {
    Subject::Process(name.into())
}

fn holds(subject: Subject, depends_on: &[Subject], remedy: Vec<Action>) -> Verdict {
    Verdict::Holds(Box::new(Finding {
        subject,
        since: Timestamp(1),
        summary: String::new(),
        measured: String::new(),
        threshold: String::new(),
        baseline: String::new(),
        writer: None,
        noticed_by: None,
        evidence: Vec::new(),
        remedy,
        delay: Duration::ZERO,
        hold: None,
        depends_on: depends_on.to_vec(),
    }))
}

fn cleared(subject: Subject) -> Verdict {
    Verdict::Cleared(subject, "seen".into())
}

/// A change to the host that does not stand for itself: it waits for a cause.
fn stop(name: &str) -> Action {
    Action::StopProcess { name: name.into() }
}

fn start(name: &str) -> Action {
    Action::StartProcess { name: name.into() }
}

fn task() -> Action {
    Action::FileTask { title: "look".into(), acceptance: "looked".into() }
}

struct World {
    engine: Engine,
    now: Timestamp,
    /// Whether orders succeed.
    works: bool,
    firings: Vec<Firing>,
    orders: Vec<Order>,
}

impl World {
    fn new(config: &Config, script: Vec<Vec<Verdict>>) -> Self {
        let engine = Engine::with_triggers(config, vec![Box::new(Scripted(script.into()))]);
        let mut world = Self {
            engine,
            now: Timestamp(1_000_000_000),
            works: true,
            firings: Vec::new(),
            orders: Vec::new(),
        };
        world.tell(Kind::Mode { mode: Mode::Repair });
        world
    }

    fn tell(&mut self, kind: Kind) {
        let mut inbox = vec![kind];
        while let Some(kind) = inbox.pop() {
            for effect in self.engine.step(&Event { at: self.now, kind }) {
                match effect {
                    Effect::Firing(firing) => {
                        self.firings.retain(|f| f.id != firing.id);
                        self.firings.push(firing);
                    }
                    Effect::Run(order) => {
                        inbox.push(Kind::Outcome(Outcome {
                            firing: order.firing,
                            subject: order.subject.clone(),
                            action: order.action.name().into(),
                            rung: order.rung,
                            result: if self.works { Ok("done".into()) } else { Err("broken".into()) },
                            took_us: 1,
                        }));
                        self.orders.push(order);
                    }
                    Effect::Decision { .. } => {}
                }
            }
        }
    }

    /// Lets `seconds` pass, with a tick each; the script goes on with each.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            self.tell(Kind::Tick);
        }
    }

    fn of(&self, subject: &Subject) -> &Firing {
        self.firings.iter().rev().find(|f| f.subject == *subject).unwrap()
    }

    fn ran(&self, subject: &Subject) -> usize {
        self.orders.iter().filter(|o| o.subject == *subject && o.action.changes_host()).count()
    }
}

#[test]
fn what_follows_from_a_cause_waits_for_it_and_goes_on_when_it_has_cleared() {
    let (dead, queue) = (process("worker"), process("queue"));
    let mut script = vec![
        vec![holds(dead.clone(), &[], vec![start("worker")])],
        vec![holds(queue.clone(), std::slice::from_ref(&dead), vec![stop("queue"), task()])],
    ];
    script.resize_with(10, Vec::new);
    script.push(vec![cleared(dead.clone())]);
    let mut world = World::new(&Config::default(), script);
    world.pass(5);
    let (cause, follower) = (world.of(&dead).clone(), world.of(&queue).clone());
    assert_eq!(follower.cause, Some(cause.id));
    assert_eq!((world.ran(&dead), world.ran(&queue)), (1, 0), "only the cause is repaired");
    assert_eq!(follower.remedy[0].state, RungState::Held);
    assert!(follower.remedy[0].why.as_deref().unwrap().contains("waits for its cause"), "{follower:?}");
    world.pass(20);
    assert_eq!(world.ran(&queue), 0, "the cause has cleared, what follows has time to clear, too");
    world.pass(30);
    assert_eq!(world.ran(&queue), 1, "it did not clear by itself");
}

#[test]
fn a_cause_may_be_noticed_after_what_follows_from_it() {
    let (dead, queue) = (process("worker"), process("queue"));
    let script = vec![
        vec![holds(queue.clone(), std::slice::from_ref(&dead), Vec::new())],
        vec![holds(dead.clone(), &[], vec![start("worker")])],
    ];
    let mut world = World::new(&Config::default(), script);
    world.pass(3);
    assert_eq!(world.of(&queue).cause, Some(world.of(&dead).id));
    assert_eq!(world.of(&dead).cause, None);
}

#[test]
fn two_that_depend_on_each_other_have_one_cause() {
    let (a, b) = (process("a"), process("b"));
    let script = vec![
        vec![holds(a.clone(), std::slice::from_ref(&b), Vec::new())],
        vec![holds(b.clone(), std::slice::from_ref(&a), Vec::new())],
    ];
    let mut world = World::new(&Config::default(), script);
    world.pass(3);
    assert_eq!((world.of(&a).cause, world.of(&b).cause), (None, Some(world.of(&a).id)));
}

#[test]
fn a_cause_that_never_clears_does_not_hold_what_follows_for_good() {
    let (dead, queue) = (process("worker"), process("queue"));
    let script = vec![
        vec![holds(dead.clone(), &[], Vec::new())],
        vec![holds(queue.clone(), std::slice::from_ref(&dead), vec![stop("queue")])],
    ];
    let mut world = World::new(&Config::default(), script);
    world.pass(300);
    assert_eq!(world.ran(&queue), 0);
    world.pass(400);
    assert_eq!(world.ran(&queue), 1);
}

#[test]
fn what_comes_back_says_after_what_and_only_within_its_time() {
    let subject = process("p");
    let mut script = vec![
        vec![holds(subject.clone(), &[], Vec::new())],
        vec![cleared(subject.clone())],
        vec![holds(subject.clone(), &[], Vec::new())],
        vec![cleared(subject.clone())],
    ];
    script.resize_with(700, Vec::new);
    script.push(vec![holds(subject.clone(), &[], Vec::new())]);
    let mut world = World::new(&Config::default(), script);
    world.pass(3);
    let second = world.of(&subject).clone();
    assert!(second.again.is_some_and(|first| first < second.id), "{second:?}");
    world.pass(800);
    let third = world.of(&subject);
    assert_eq!((third.state, third.again), (State::Holds, None), "ten minutes are over");
}

#[test]
fn a_pause_holds_repairs_and_tasks_and_then_they_run() {
    let subject = process("p");
    let script = vec![vec![holds(subject.clone(), &[], vec![stop("p"), task()])]];
    for scope in
        [Scope::All, Scope::Quiet, Scope::Trigger("scripted".into()), Scope::Subject(subject.clone())]
    {
        let mut world = World::new(&Config::default(), script.clone());
        let until = world.now.after(Duration::from_secs(100));
        world.tell(Kind::Paused { scope: scope.clone(), until, why: "a new disk".into() });
        world.pass(90);
        assert_eq!(world.orders.len(), 0, "{scope}");
        let why = world.of(&subject).remedy[0].why.clone().unwrap();
        assert!(why.starts_with("paused") && why.ends_with("a new disk"), "{why}");
        world.pass(20);
        assert_eq!(world.ran(&subject), 1, "{scope}: it is over");
    }
    let other = Scope::Subject(process("q"));
    let mut world = World::new(&Config::default(), script.clone());
    let until = world.now.after(Duration::from_secs(100));
    world.tell(Kind::Paused { scope: other, until, why: "x".into() });
    world.pass(2);
    assert_eq!(world.ran(&subject), 1, "another subject's pause is not ours");

    let mut world = World::new(&Config::default(), script);
    world.tell(Kind::Paused { scope: Scope::All, until, why: "x".into() });
    world.pass(5);
    world.tell(Kind::Unpaused { scope: Scope::All });
    assert_eq!(world.ran(&subject), 1, "ended early");
}

#[test]
fn the_breaker_opens_when_repairs_of_several_fail_and_closes_by_itself() {
    let mut config = Config::default();
    config.policy.breaker_failures = 6;
    config.policy.breaker_rest = Span::secs(60);
    let all: Vec<Subject> = ["a", "b", "c", "d"].iter().map(|n| process(n)).collect();
    let script = vec![all.iter().map(|s| holds(s.clone(), &[], vec![stop("x")])).collect()];
    let mut world = World::new(&config, script);
    world.works = false;
    world.pass(1);
    world.pass(2);
    let breaker = Subject::Host("repairs".into());
    assert_eq!((world.of(&breaker).state, world.of(&breaker).trigger.as_str()), (State::Holds, "policy"));
    let tried = world.orders.iter().filter(|o| o.action.changes_host()).count();
    world.pass(30);
    assert_eq!(world.orders.iter().filter(|o| o.action.changes_host()).count(), tried, "it rests");
    world.works = true;
    world.pass(40);
    assert_eq!(world.of(&breaker).state, State::Cleared);
    assert!(world.orders.iter().filter(|o| o.action.changes_host()).count() > tried, "tried again");
}

#[test]
fn failures_of_one_subject_do_not_stop_the_others() {
    let mut config = Config::default();
    config.policy.breaker_failures = 3;
    let subject = process("p");
    let mut world = World::new(&config, vec![vec![holds(subject.clone(), &[], vec![stop("p")])]]);
    world.works = false;
    world.pass(60);
    assert!(world.ran(&subject) > 3);
    assert!(world.firings.iter().all(|f| f.trigger != "policy"));
}

#[test]
fn the_budget_of_a_subject_is_its_own() {
    let mut config = Config::default();
    config.policy.subject_burst = 2;
    let (p, q) = (process("p"), process("q"));
    let again = |s: &Subject| vec![cleared(s.clone()), holds(s.clone(), &[], vec![stop("x")])];
    let mut script: Vec<Vec<Verdict>> = (0..5).map(|_| again(&p)).collect();
    script.push(again(&q));
    let mut world = World::new(&config, script);
    world.pass(10);
    assert_eq!((world.ran(&p), world.ran(&q)), (2, 1));
    assert!(world.of(&p).remedy[0].why.as_deref().unwrap().contains("subject_burst"));
    world.pass(600);
    assert_eq!(world.ran(&p), 3, "free again");
}
