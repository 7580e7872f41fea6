//! Laws of the engine over random streams of events: what must hold whatever happens.

use std::path::PathBuf;
use std::time::Duration;

use grace_agent::action::{Action, Outcome};
use grace_agent::code_facts::{Answer, CodeAt, CodeChange, CodeHow, DependencyChange, Ecosystem, FileRisk};
use grace_agent::config::{Config, Mode, Span};
use grace_agent::engine::{Effect, Engine};
use grace_agent::event::{Actor, Event, Exit, Kind, Restart, RestartPolicy, Timestamp, Via};
use grace_agent::file_state::{ContentKind, Digest, FileId, FileState, KnownGood, Meta};
use grace_agent::firing::State;
use grace_agent::replay::replay;
use grace_agent::shape::Shape;
use proptest::prelude::*;

const FILES: [&str; 3] = ["/etc/a", "/etc/b", "/etc/c"];
const PROCESSES: [&str; 2] = ["p", "q"];

fn meta(size: u64) -> Meta {
    Meta { size, mode: 0o644, uid: 0, gid: 0, xattrs: Default::default() }
}

fn known() -> KnownGood {
    KnownGood {
        snapshot: 1,
        digest: Digest("good".into()),
        meta: meta(4),
        mtime_ns: 0,
        kind: ContentKind::Config,
        writers: vec!["/usr/bin/dpkg".into()],
    }
}

fn state() -> impl Strategy<Value = FileState> {
    let id = (0..4u64).prop_map(|ino| FileId { dev: 1, ino });
    prop_oneof![
        Just(FileState::Missing),
        Just(FileState::Unreadable { why: "permission denied".into() }),
        id.clone().prop_map(|id| FileState::NotRegular { what: "symlink".into(), id }),
        (id, prop_oneof![Just("good"), Just("bad"), Just("worse")], 3..6u64).prop_map(|(id, d, size)| {
            FileState::Regular { id, meta: meta(size), digest: Some(Digest(d.into())) }
        }),
    ]
}

fn writer() -> impl Strategy<Value = Option<Actor>> {
    let actor = |exe: &str| Actor { pid: 7, comm: "w".into(), exe: Some(exe.into()), ..Actor::default() };
    prop_oneof![Just(None), Just(Some(actor("/usr/bin/sed"))), Just(Some(actor("/usr/bin/dpkg")))]
}

fn kind() -> impl Strategy<Value = Kind> {
    let file = (0..FILES.len()).prop_map(|i| PathBuf::from(FILES[i]));
    let process = (0..PROCESSES.len()).prop_map(|i| PROCESSES[i].to_owned());
    let policy =
        (0..4u32, prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)])
            .prop_map(|(burst, restart)| RestartPolicy {
                burst,
                interval_ms: 10_000,
                backoff_ms: 100,
                backoff_max_ms: 1_000,
                stable_ms: 5_000,
                restart,
            });
    prop_oneof![
        4 => (file.clone(), state(), writer()).prop_map(|(path, state, writer)| {
            Kind::FileSeen { path, state, writer, via: Via::Fanotify }
        }),
        2 => file.clone().prop_map(|path| Kind::FileKnown { path, known: known() }),
        1 => file.prop_map(|path| Kind::FileForgotten { path }),
        2 => (process.clone(), policy, proptest::option::of(1..9u32))
            .prop_map(|(name, policy, pid)| Kind::ProcessDeclared { name, policy, pid }),
        3 => (process.clone(), 1..9u32, 0..3i32, any::<bool>()).prop_map(|(name, pid, code, asked_for)| {
            let exit = Exit { code: Some(code), asked_for, ..Exit::default() };
            Kind::ProcessExited { name, pid, exit, stderr_tail: vec!["x".into()] }
        }),
        2 => (process.clone(), 1..9u32).prop_map(|(name, pid)| Kind::ProcessStarted { name, pid }),
        1 => process.prop_map(|name| Kind::ProcessForgotten { name }),
        1 => (0..9u64).prop_map(|total| Kind::Lost { class: "file".into(), total }),
        2 => Just(Kind::Tick),
        4 => about_code(),
    ]
}

/// What the sources about code say: of two endpoints, an environment and a repo.
fn about_code() -> impl Strategy<Value = Kind> {
    let name = prop_oneof![Just("e".to_owned()), Just("f".to_owned())];
    let answer = prop_oneof![
        Just(Answer::None("answers 503".into())),
        prop_oneof![
            Just(serde_json::json!({"a": 1, "b": ["x y"]})),
            Just(serde_json::json!({"a": "1", "b": [null]})),
            Just(serde_json::json!({"b": [], "c": {"17": 1.5}})),
            Just(serde_json::json!([{"a": -1}, 3, "2026-01-02T03:04:05Z"])),
        ]
        .prop_map(|value| Answer::Json(Box::new(Shape::of(&value)))),
    ];
    let version = proptest::option::of(prop_oneof![Just("1.0".to_owned()), Just("$(id)".to_owned())]);
    let change = (version.clone(), version).prop_map(|(was, is)| DependencyChange {
        name: "x;y".into(),
        was,
        is,
        undo: None,
    });
    let how = prop_oneof![Just(CodeAt::Committed), Just(CodeAt::Staged), Just(CodeAt::Working)];
    let code = how.prop_map(|at| CodeChange { path: "a.py".into(), how: CodeHow::Modified, at });
    let risk = (-0.5..1.5f64).prop_map(|risk| FileRisk {
        path: "a.py".into(),
        risk,
        percentile: 50.0,
        reasons: Vec::new(),
    });
    let repo = || PathBuf::from("/r");
    prop_oneof![
        1 => name.clone().prop_map(|name| Kind::EndpointDeclared {
            name,
            url: "http://h/".into(),
            learn: Some(2),
            confirm: None,
        }),
        1 => name.clone().prop_map(|name| Kind::EndpointForgotten { name }),
        1 => name.clone().prop_map(|name| Kind::EndpointAccepted { name }),
        6 => (name, answer).prop_map(|(name, answer)| Kind::EndpointSeen { name, answer }),
        2 => proptest::collection::vec(change, 0..3).prop_map(|changes| Kind::DependenciesSeen {
            environment: "v".into(),
            ecosystem: Ecosystem::Python,
            snapshot: "then".into(),
            total: 3,
            changes,
            more: u64::MAX,
        }),
        2 => proptest::collection::vec(code, 0..3).prop_map(move |changes| Kind::CodeSeen {
            repo: repo(),
            good: "a".repeat(40),
            head: "b".repeat(40),
            changes,
            more: 0,
            tests: Vec::new(),
            diff: Vec::new(),
        }),
        2 => proptest::collection::vec(risk, 0..3).prop_map(move |files| Kind::RiskSeen {
            repo: repo(),
            head: "b".repeat(40),
            files,
            model: "m".into(),
        }),
        1 => Just(Kind::RepoForgotten { repo: repo() }),
        1 => Just(Kind::EnvironmentForgotten { environment: "v".into() }),
    ]
}

/// A stream: events with the milliseconds between them.
fn stream() -> impl Strategy<Value = Vec<(u64, Kind)>> {
    proptest::collection::vec((0..2_000u64, kind()), 0..80)
}

/// Judges `stream`; every order is answered by an outcome a moment later, well or badly in turn.
fn judge(config: &Config, mode: Mode, stream: &[(u64, Kind)]) -> (Vec<Event>, Vec<(Timestamp, Effect)>) {
    let mut engine = Engine::new(config);
    let mut now = Timestamp(1_000_000_000);
    let mut events = vec![
        Event { at: now, kind: Kind::Start { boot_id: "b".into(), version: "v".into(), next_firing: 1 } },
        Event { at: now, kind: Kind::Mode { mode } },
    ];
    let mut effects = Vec::new();
    let mut orders = 0u32;
    for event in events.clone() {
        effects.extend(engine.step(&event).into_iter().map(|e| (event.at, e)));
    }
    for (gap, kind) in stream {
        now = now.after(Duration::from_millis(*gap));
        let mut inbox = vec![Event { at: now, kind: kind.clone() }];
        while let Some(event) = inbox.pop() {
            let out = engine.step(&event);
            events.push(event.clone());
            for effect in &out {
                if let Effect::Run(order) = effect {
                    orders += 1;
                    let result = if orders.is_multiple_of(3) {
                        Err("no space".to_owned())
                    } else {
                        Ok("done".to_owned())
                    };
                    inbox.push(Event {
                        at: now,
                        kind: Kind::Outcome(Outcome {
                            firing: order.firing,
                            subject: order.subject.clone(),
                            action: order.action.name().to_owned(),
                            rung: order.rung,
                            result,
                            took_us: 10,
                        }),
                    });
                }
            }
            effects.extend(out.into_iter().map(|e| (event.at, e)));
        }
    }
    assert!(engine.duties().iter().all(|duty| duty.works), "a trigger panicked");
    (events, effects)
}

fn runs(effects: &[(Timestamp, Effect)]) -> impl Iterator<Item = (Timestamp, &Action)> {
    effects.iter().filter_map(|(at, effect)| match effect {
        Effect::Run(order) if order.action.changes_host() => Some((*at, &order.action)),
        _ => None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The same events give the same effects, also through the recorder's JSON.
    #[test]
    fn a_stream_replays_to_the_same_effects(stream in stream()) {
        let config = Config { mode: Mode::Repair, ..Config::default() };
        let (events, effects) = judge(&config, Mode::Repair, &stream);
        let json: Vec<String> = events.iter().map(|e| serde_json::to_string(e).expect("plain data")).collect();
        let read: Vec<Event> = json.iter().map(|l| serde_json::from_str(l).expect("what was written")).collect();
        prop_assert_eq!(&read, &events);
        let again = replay(&config, &read);
        let effects: Vec<Effect> = effects.into_iter().map(|(_, e)| e).collect();
        prop_assert_eq!(again.effects, effects);
    }

    /// Observing changes nothing on the host, ever.
    #[test]
    fn observe_never_acts(stream in stream()) {
        let (_, effects) = judge(&Config::default(), Mode::Observe, &stream);
        prop_assert_eq!(runs(&effects).count(), 0);
    }

    /// No stream gets more changes out of the engine than the host's budget allows in any window.
    #[test]
    fn the_host_budget_holds(stream in stream(), burst in 0..4u32) {
        let mut config = Config { mode: Mode::Repair, ..Config::default() };
        config.policy.host_burst = burst;
        config.policy.host_interval = Span::secs(20);
        let (_, effects) = judge(&config, Mode::Repair, &stream);
        let at: Vec<Timestamp> = runs(&effects).map(|(at, _)| at).collect();
        for (i, first) in at.iter().enumerate() {
            let inside = at[i..].iter().filter(|t| t.since(*first) < Duration::from_secs(20)).count();
            prop_assert!(inside <= burst as usize, "{inside} changes in 20 s, {burst} allowed");
        }
    }

    /// A process is never restarted more often than its own budget allows. (A first start is not a restart.)
    #[test]
    fn the_restart_budget_holds(exits in proptest::collection::vec(0..3_000u64, 1..60), burst in 0..4u32) {
        let policy = RestartPolicy { burst, interval_ms: 10_000, backoff_ms: 1, backoff_max_ms: 10, stable_ms: 5_000, restart: Restart::Always };
        let mut stream = vec![(0, Kind::ProcessDeclared { name: "p".into(), policy, pid: Some(1) })];
        for gap in exits {
            let exit = Exit { code: Some(1), ..Exit::default() };
            stream.push((gap, Kind::ProcessExited { name: "p".into(), pid: 2, exit, stderr_tail: Vec::new() }));
            stream.push((20, Kind::ProcessStarted { name: "p".into(), pid: 2 }));
        }
        // Outcomes that fail are tried again by the ladder, as part of the same restart: only successes here.
        let config = Config { mode: Mode::Repair, ..Config::default() };
        let mut engine = Engine::new(&config);
        let mut now = Timestamp(1_000_000_000);
        engine.step(&Event { at: now, kind: Kind::Mode { mode: Mode::Repair } });
        let mut starts = Vec::new();
        for (gap, kind) in stream {
            now = now.after(Duration::from_millis(gap));
            let mut inbox = vec![kind];
            while let Some(kind) = inbox.pop() {
                for effect in engine.step(&Event { at: now, kind }) {
                    if let Effect::Run(order) = effect {
                        if order.action.changes_host() {
                            starts.push(now);
                        }
                        inbox.push(Kind::Outcome(Outcome { firing: order.firing, subject: order.subject, action: order.action.name().into(), rung: order.rung, result: Ok("ok".into()), took_us: 1 }));
                    }
                }
            }
        }
        for (i, first) in starts.iter().enumerate() {
            let inside = starts[i..].iter().filter(|t| t.since(*first) < Duration::from_millis(9_900)).count();
            prop_assert!(inside <= burst as usize, "{inside} restarts, {burst} allowed");
        }
    }

    /// Of one firing at most one rung runs at a time, and a cleared one runs nothing more.
    #[test]
    fn one_rung_at_a_time(stream in stream()) {
        let config = Config { mode: Mode::Repair, ..Config::default() };
        let (_, effects) = judge(&config, Mode::Repair, &stream);
        let mut running = std::collections::BTreeSet::new();
        let mut cleared = std::collections::BTreeSet::new();
        for (_, effect) in &effects {
            match effect {
                Effect::Run(order) => {
                    if let Some(id) = order.firing {
                        prop_assert!(!cleared.contains(&id), "{id} is cleared and still runs");
                        prop_assert!(running.insert(id), "{id} runs two rungs");
                    }
                }
                Effect::Firing(firing) => {
                    if firing.remedy.iter().all(|r| r.state != grace_agent::firing::RungState::Running) {
                        running.remove(&firing.id);
                    }
                    if firing.state != State::Holds {
                        cleared.insert(firing.id);
                    }
                }
                Effect::Decision { .. } => {}
            }
        }
    }

    /// A file that could not be looked at is neither repaired nor cleared.
    #[test]
    fn unreadable_is_not_a_verdict(before in state(), times in 1..5usize) {
        let config = Config { mode: Mode::Repair, ..Config::default() };
        let path = PathBuf::from(FILES[0]);
        let mut stream = vec![
            (0, Kind::FileKnown { path: path.clone(), known: known() }),
            (1, Kind::FileSeen { path: path.clone(), state: before, writer: None, via: Via::Look }),
        ];
        let (_, base) = judge(&config, Mode::Repair, &stream);
        let unreadable = FileState::Unreadable { why: "I/O error".into() };
        for _ in 0..times {
            stream.push((1, Kind::FileSeen { path: path.clone(), state: unreadable.clone(), writer: None, via: Via::Sweep }));
        }
        let (_, more) = judge(&config, Mode::Repair, &stream);
        prop_assert_eq!(base, more);
    }
}

/// A trigger that panics is taken out, said, and the others go on.
#[test]
fn a_panicking_trigger_is_disabled_alone() {
    struct Bad;
    static SPEC: grace_agent::triggers::Spec = grace_agent::triggers::Spec {
        name: "bad",
        summary: "",
        help: "",
        subjects: "",
        remedy: "",
        needs: "",
        evidence: &[],
    };
    impl grace_agent::triggers::Trigger for Bad {
        fn spec(&self) -> &'static grace_agent::triggers::Spec {
            &SPEC
        }
        fn on_event(&mut self, event: &Event) -> Vec<grace_agent::firing::Verdict> {
            assert!(!matches!(event.kind, Kind::FileSeen { .. }), "a fault on purpose");
            Vec::new()
        }
        fn subjects(&self) -> usize {
            0
        }
    }
    let config = Config::default();
    let mut triggers = grace_agent::triggers::all(&config.triggers);
    triggers.insert(0, Box::new(Bad));
    let mut engine = Engine::with_triggers(&config, triggers);
    let at = Timestamp(5);
    let path = PathBuf::from(FILES[0]);
    engine.step(&Event { at, kind: Kind::FileKnown { path: path.clone(), known: known() } });
    let seen = Kind::FileSeen { path, state: FileState::Missing, writer: None, via: Via::Look };
    let effects = engine.step(&Event { at, kind: seen });
    let fired: Vec<(&str, State)> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::Firing(f) => Some((f.trigger.as_str(), f.state)),
            _ => None,
        })
        .collect();
    assert!(fired.contains(&("bad", State::Happened)), "{fired:?}");
    assert!(fired.contains(&("config_drift", State::Holds)), "{fired:?}");
    let works: Vec<bool> = engine.duties().iter().map(|d| d.works).collect();
    assert!(!works[0] && works[1..].iter().all(|works| *works), "{works:?}");
}

/// A disk that was full for an hour does not leave a file broken for good.
#[test]
fn a_restore_that_failed_is_tried_again_later() {
    let config = Config { mode: Mode::Repair, ..Config::default() };
    let path = PathBuf::from(FILES[0]);
    let mut stream = vec![
        (0, Kind::FileKnown { path: path.clone(), known: known() }),
        (1, Kind::FileSeen { path, state: FileState::Missing, writer: None, via: Via::Look }),
    ];
    stream.extend((0..1200).map(|_| (1_000, Kind::Tick)));
    let mut engine = Engine::new(&config);
    let mut now = Timestamp(1_000_000_000);
    engine.step(&Event { at: now, kind: Kind::Mode { mode: Mode::Repair } });
    let (mut restores, mut tasks) = (0, 0);
    for (gap, kind) in stream {
        now = now.after(Duration::from_millis(gap));
        let mut inbox = vec![kind];
        while let Some(kind) = inbox.pop() {
            for effect in engine.step(&Event { at: now, kind }) {
                let Effect::Run(order) = effect else { continue };
                let host = order.action.changes_host();
                *(if host { &mut restores } else { &mut tasks }) += 1;
                inbox.push(Kind::Outcome(Outcome {
                    firing: order.firing,
                    subject: order.subject,
                    action: order.action.name().into(),
                    rung: order.rung,
                    result: if host { Err("no space".into()) } else { Ok("filed".into()) },
                    took_us: 1,
                }));
            }
        }
    }
    // Twenty minutes: at once with three retries, then every five minutes the same.
    assert!((12..=20).contains(&restores), "{restores} restores");
    assert!((3..=5).contains(&tasks), "{tasks} tasks");
}
