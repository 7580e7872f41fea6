//! Laws of the engine over random streams of events: what must hold whatever happens.

use std::path::PathBuf;
use std::time::Duration;

use grace_agent::action::{Action, Outcome, Shed};
use grace_agent::code_facts::{Answer, CodeAt, CodeChange, CodeHow, DependencyChange, Ecosystem, FileRisk};
use grace_agent::config::{Config, Mode, Span};
use grace_agent::engine::{Effect, Engine};
use grace_agent::event::{
    Actor, Doing, Event, Exit, Kind, Restart, RestartPolicy, SyntaxError, Timestamp, Via,
};
use grace_agent::file_state::{ContentKind, Digest, FileId, FileState, KnownGood, Meta};
use grace_agent::firing::{Firing, FiringId, Route, State};
use grace_agent::replay::replay;
use grace_agent::shape::Shape;
use grace_agent::sketch::Sketch;
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
            FileState::Regular { id, meta: meta(size), digest: Some(Digest(d.into())), hurt: None }
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
            .prop_map(|(name, policy, pid)| Kind::ProcessDeclared { name, policy, importance: 50, pid }),
        3 => (process.clone(), 1..9u32, 0..3i32, any::<bool>()).prop_map(|(name, pid, code, asked_for)| {
            let exit = Exit { code: Some(code), asked_for, ..Exit::default() };
            Kind::ProcessExited { name, pid, exit, stderr_tail: vec!["x".into()] }
        }),
        2 => (process.clone(), 1..9u32).prop_map(|(name, pid)| Kind::ProcessStarted { name, pid }),
        1 => process.clone().prop_map(|name| Kind::ProcessForgotten { name }),
        1 => (process.clone(), proptest::option::of(process.clone()), any::<bool>()).prop_map(|(name, other, awaits)| {
            let after = other.filter(|other| *other > name).into_iter().collect();
            Kind::ProcessNeeds { name, after, awaits, watched_only: false }
        }),
        1 => (process.clone(), 1..9u32).prop_map(|(name, pid)| Kind::ProcessReady { name, pid, after_ms: 1 }),
        1 => (process.clone(), 1..4u32, 1..6u32, 1..6u32)
            .prop_map(|(name, base, max, now)| Kind::ScaleDeclared { name, base, max, now }),
        1 => (process.clone(), 1..6u32).prop_map(|(name, to)| Kind::Scaled { name, to }),
        1 => process.clone().prop_map(|process| Kind::LoadShed { process, step: Shed::Freeze }),
        1 => process.clone().prop_map(|process| Kind::LoadGivenBack { process }),
        1 => (0..9u64).prop_map(|total| Kind::Lost { class: "file".into(), total }),
        2 => (0..3u8, process.clone(), 1..9u64).prop_map(|(which, process, count)| Kind::ErrorSeen {
            signature: format!("{which:016x}"),
            language: "python".into(),
            kind: "ValueError".into(),
            message: "x".into(),
            frames: Vec::new(),
            source: "stderr".into(),
            process: Some(process),
            trace: vec!["x".into()],
            count,
        }),
        1 => (process, any::<bool>()).prop_map(|(process, works)| Kind::ErrorSource {
            source: "logs".into(),
            process: Some(process),
            works,
            count: Some(2),
            window_ms: Some(3000),
        }),
        1 => Just(Kind::ErrorReported { kind: "E".into(), trace: Some("Error: x 5".into()), source: "app".into(), count: 1 }),
        2 => Just(Kind::Tick),
        3 => reported(),
        12 => signal(),
        1 => (0..FILES.len(), 0..3u32).prop_map(|(i, line)| Kind::SyntaxSeen {
            path: PathBuf::from(FILES[i]),
            language: "python".into(),
            // Line 0: it parses.
            errors: (line > 0)
                .then(|| SyntaxError { line, column: 1, text: "x".into(), problem: "y".into() })
                .into_iter()
                .collect(),
        }),
        4 => about_code(),
    ]
}

/// What applications say of themselves. The numbers are any that can be judged: their JSON must be the same ones.
fn reported() -> impl Strategy<Value = Kind> {
    let name = || prop_oneof![Just("p".to_owned()), Just("/api".to_owned()), "[^\\x00-\\x1f]{1,9}"];
    let value = || prop_oneof![-1e15..1e15f64, 0.0..1.0f64, Just(0.0)];
    let sketch = proptest::collection::vec(0.0..1e6f64, 1..9).prop_map(|sizes| {
        let mut sketch = Sketch::default();
        sizes.iter().for_each(|size| assert!(sketch.record(*size)));
        sketch
    });
    prop_oneof![
        (name(), 1..9u64).prop_map(|(name, count)| Kind::Heartbeat { name, count }),
        (name(), value(), value()).prop_map(|(name, depth, max)| Kind::QueueDepth { name, depth, max }),
        (name(), sketch).prop_map(|(route, took_ms)| Kind::RouteLatency { route, took_ms }),
        (name(), value(), 1..9u64).prop_map(|(name, value, count)| Kind::Metric { name, value, count }),
        (name(), value()).prop_map(|(model, value)| Kind::Accuracy { model, value }),
        (name(), proptest::option::of(".{0,99}"), 1..9u64).prop_map(|(kind, trace, count)| {
            Kind::ErrorReported { kind, trace, source: "p".into(), count }
        }),
    ]
}

/// What applications and the kernel tell of the time series that are judged: also what is no number that means anything.
fn signal() -> impl Strategy<Value = Kind> {
    let process = (0..PROCESSES.len()).prop_map(|i| PROCESSES[i].to_owned());
    let name = prop_oneof![Just("p".to_owned()), Just("p.jobs".to_owned()), Just("x".to_owned())];
    let value = prop_oneof![
        4 => (0..100u32).prop_map(f64::from),
        1 => (0..3_000u32).prop_map(f64::from),
        1 => prop_oneof![Just(-1.0), Just(1e300), Just(-1e300), Just(0.1 + 0.2), Just(f64::MIN_POSITIVE)],
    ];
    let doing = prop_oneof![Just(Doing::Working), Just(Doing::Spinning), Just(Doing::Blocked)];
    let since = (0..60u64).prop_map(|s| Timestamp(s * 1_000_000_000));
    prop_oneof![
        6 => (name.clone(), 0..3u64).prop_map(|(name, count)| Kind::Heartbeat { name, count }),
        4 => (name.clone(), value.clone()).prop_map(|(name, depth)| Kind::QueueDepth { name, depth, max: depth }),
        4 => (name.clone(), proptest::collection::vec(value.clone(), 0..5)).prop_map(|(route, values)| {
            let mut took_ms = Sketch::default();
            for value in values {
                took_ms.record(value);
            }
            Kind::RouteLatency { route, took_ms }
        }),
        4 => (name, value.clone()).prop_map(|(name, value)| Kind::Metric { name, value, count: 1 }),
        2 => (process.clone(), 0..3u64).prop_map(|(process, lines)| Kind::LogActivity { process, lines }),
        2 => (process.clone(), value.clone()).prop_map(|(process, p99_us)| {
            Kind::SyscallLatency { process, class: "sync".into(), p99_us, calls: 100 }
        }),
        2 => (process.clone(), 0..9u32, 0..9u32).prop_map(|(process, len, limit)| {
            Kind::Backlog { process, listener: "a".into(), len, limit }
        }),
        2 => (process.clone(), 1..9u32, doing, since)
            .prop_map(|(name, pid, doing, since)| Kind::Progress { name, pid, doing, since, wait: None }),
        1 => (0..100_000u64).prop_map(|away_ms| Kind::Resumed { away_ms }),
        1 => (process.clone(), proptest::option::of(1..9_000u64))
            .prop_map(|(name, heartbeat_ms)| Kind::ProcessExpects { name, heartbeat_ms }),
        1 => (proptest::option::of(value.clone()), proptest::option::of(process.clone()))
            .prop_map(|(limit, process)| Kind::QueueDeclared { name: "x".into(), limit, process }),
        1 => (proptest::option::of(value), proptest::option::of(process))
            .prop_map(|(budget_ms, process)| Kind::RouteDeclared { name: "x".into(), budget_ms, process }),
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
            threshold: None,
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
        let mut stream = vec![(0, Kind::ProcessDeclared { name: "p".into(), policy, importance: 50, pid: Some(1) })];
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

    /// A process that falls silent again and again is not restarted more often than its budget allows either, and always
    /// is said to be silent.
    #[test]
    fn the_restart_budget_holds_for_silence_too(beats in proptest::collection::vec(1..40u64, 1..12), burst in 0..4u32) {
        let policy = RestartPolicy { burst, interval_ms: 3_600_000, backoff_ms: 1, backoff_max_ms: 10, stable_ms: 5_000, restart: Restart::Always };
        let mut world = World::new(Mode::Repair);
        world.see(0, Kind::ProcessDeclared { name: "p".into(), policy, importance: 50, pid: Some(1) });
        world.see(0, Kind::ProcessExpects { name: "p".into(), heartbeat_ms: Some(2_000) });
        for (pid, beats) in (2..).zip(&beats) {
            world.beats("p", *beats, 1);
            prop_assert_eq!(world.holding("health_gap"), 0, "it beats: {:#?}", world.last_firing());
            let before = world.orders.len();
            world.pass(30);
            prop_assert_eq!(world.holding("health_gap"), 1, "it is silent");
            let restarted = world.orders[before..].iter().any(|(_, a)| a.name() == "restart_process");
            prop_assert_eq!(restarted, pid - 2 < burst);
            if restarted {
                let exit = Exit { signal: Some(15), asked_for: true, restarting: true, ..Exit::default() };
                world.see(0, Kind::ProcessExited { name: "p".into(), pid: pid - 1, exit, stderr_tail: Vec::new() });
                world.see(0, Kind::ProcessStarted { name: "p".into(), pid });
                prop_assert_eq!(world.holding("health_gap"), 1, "that it runs is no heartbeat");
            }
            world.beats("p", 3, 1);
        }
        prop_assert!(world.orders.iter().all(|(_, a)| a.name() != "start_process"), "a restart is no crash");
    }

    /// Whatever was normal, and whatever it jumps to: a fault that lasts is said to be one to its end, is never learned,
    /// and what was normal before clears it.
    #[test]
    fn a_fault_is_never_learned(normal in 1..50u32, times in 20..1000u32, seconds in 30..2_000u64) {
        let (normal, high) = (f64::from(normal), f64::from(normal * times));
        let mut world = World::new(Mode::Repair);
        let depth = |depth| Kind::QueueDepth { name: "q".into(), depth, max: depth };
        (0..60).for_each(|i| world.see(1_000, depth(normal + f64::from(i % 3))));
        prop_assert_eq!(world.holding("latency_spike"), 0);
        (0..seconds).for_each(|_| world.see(1_000, depth(high.max(500.0))));
        prop_assert_eq!(world.holding("latency_spike"), 1);
        world.pass(100_000);
        prop_assert_eq!(world.holding("latency_spike"), 1, "silence is no recovery");
        (0..30).for_each(|_| world.see(1_000, depth(normal)));
        prop_assert_eq!(world.holding("latency_spike"), 0);
        (0..30).for_each(|_| world.see(1_000, depth(high.max(500.0))));
        prop_assert_eq!(world.holding("latency_spike"), 1, "it was learned");
    }

    /// Neither a step of the wall clock (which no event carries) nor suspend makes anything missing, however long.
    #[test]
    fn sleep_is_not_silence(gap in 1..60u64, sleep_s in prop_oneof![1..100u64, Just(3_600), Just(315_360_000)]) {
        let mut world = World::new(Mode::Repair);
        world.beats("h", 30, gap);
        for _ in 0..5 {
            // Timestamps jump, because CLOCK_BOOTTIME counts the sleep; the judge's thread tells of it first.
            world.see(sleep_s * 1_000, Kind::Resumed { away_ms: sleep_s * 1_000 });
            world.see(0, Kind::Tick);
            prop_assert_eq!(world.holding("health_gap"), 0, "{:#?}", world.last_firing());
            world.beats("h", 3, gap);
        }
        world.pass((3 * gap).max(10) + 1);
        prop_assert_eq!(world.holding("health_gap"), 1, "and silence is");
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

/// An engine, its clock, and what it ordered. Every order succeeds at once.
struct World {
    engine: Engine,
    now: Timestamp,
    orders: Vec<(Timestamp, Action)>,
    firings: std::collections::BTreeMap<FiringId, Firing>,
}

impl World {
    fn new(mode: Mode) -> Self {
        let config = Config { mode, ..Config::default() };
        let mut world = Self {
            engine: Engine::new(&config),
            now: Timestamp(1_000_000_000_000),
            orders: Vec::new(),
            firings: Default::default(),
        };
        world.see(0, Kind::Mode { mode });
        world
    }

    /// `kind`, `gap_ms` after the last event. What the engine wanted to be woken for until then comes first.
    fn see(&mut self, gap_ms: u64, kind: Kind) {
        let at = self.now.after(Duration::from_millis(gap_ms));
        // What slept is woken late.
        while let Some(wake) = self.engine.wake().filter(|w| *w < at && !matches!(kind, Kind::Resumed { .. }))
        {
            self.now = self.now.max(wake);
            self.step(Kind::Tick);
        }
        self.now = at;
        self.step(kind);
    }

    fn step(&mut self, kind: Kind) {
        let mut inbox = vec![kind];
        while let Some(kind) = inbox.pop() {
            for effect in self.engine.step(&Event { at: self.now, kind }) {
                match effect {
                    Effect::Run(order) => {
                        self.orders.push((self.now, order.action.clone()));
                        inbox.push(Kind::Outcome(Outcome {
                            firing: order.firing,
                            subject: order.subject,
                            action: order.action.name().into(),
                            rung: order.rung,
                            result: Ok("done".into()),
                            took_us: 1,
                        }));
                    }
                    Effect::Firing(firing) => drop(self.firings.insert(firing.id, firing)),
                    Effect::Decision { .. } => {}
                }
            }
        }
    }

    /// `count` heartbeats of `name`, each `gap` seconds after the one before.
    fn beats(&mut self, name: &str, count: u64, gap: u64) {
        for _ in 0..count {
            self.see(gap * 1_000, Kind::Heartbeat { name: name.into(), count: 1 });
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.see(seconds * 1_000, Kind::Tick);
    }

    fn holding(&self, trigger: &str) -> usize {
        self.firings.values().filter(|f| f.trigger == trigger && f.state == State::Holds).count()
    }

    fn last_firing(&self) -> Option<&Firing> {
        self.firings.values().next_back()
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
        route: grace_agent::firing::Route::SelfHealing,
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
    let mut triggers = grace_agent::triggers::all(&config);
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

/// Numbers from outside come back from a recording bit for bit, or it would replay to other firings.
#[test]
fn what_applications_say_is_recorded_as_it_was() {
    proptest!(ProptestConfig::with_cases(2000), |(kind in reported())| {
        let event = Event { at: Timestamp(7), kind };
        let text = serde_json::to_string(&event).unwrap();
        prop_assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{}", text);
    });
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

/// A process with heartbeats, a queue and a route of its own, all learned to be regular.
fn worker() -> World {
    let mut world = World::new(Mode::Repair);
    let policy = RestartPolicy {
        burst: 5,
        interval_ms: 600_000,
        backoff_ms: 100,
        backoff_max_ms: 1_000,
        stable_ms: 5_000,
        restart: Restart::Always,
    };
    world.see(0, Kind::ProcessDeclared { name: "w".into(), policy, importance: 50, pid: Some(7) });
    world
        .see(0, Kind::QueueDeclared { name: "jobs".into(), limit: Some(1_000.0), process: Some("w".into()) });
    world.see(
        0,
        Kind::RouteDeclared { name: "/do".into(), budget_ms: Some(500.0), process: Some("w".into()) },
    );
    (0..60).for_each(|i| {
        queued(&mut world, f64::from(5 + i % 4));
        answered(&mut world, 20.0);
    });
    assert_eq!(world.firings.len(), 0);
    world
}

fn queued(world: &mut World, depth: f64) {
    world.see(500, Kind::QueueDepth { name: "jobs".into(), depth, max: depth });
}

fn answered(world: &mut World, ms: f64) {
    let mut took_ms = Sketch::default();
    for _ in 0..10 {
        took_ms.record(ms);
    }
    world.see(500, Kind::RouteLatency { route: "/do".into(), took_ms });
}

/// Work waits and nothing is answered any more: stuck, and restarted.
#[test]
fn a_stuck_process_is_restarted() {
    let mut world = worker();
    (0..120).for_each(|i| queued(&mut world, f64::from(10 + 20 * i)));
    let stuck = world.firings.values().find(|f| f.trigger == "health_gap").expect("a firing");
    assert!(stuck.summary.contains("route /do stands still"), "{stuck:#?}");
    assert!(
        world.orders.iter().any(|(_, a)| matches!(a, Action::RestartProcess { name, .. } if name == "w"))
    );
    // That it runs again is no answer.
    let exit = Exit { asked_for: true, restarting: true, ..Exit::default() };
    world.see(0, Kind::ProcessExited { name: "w".into(), pid: 7, exit, stderr_tail: Vec::new() });
    world.see(10, Kind::ProcessStarted { name: "w".into(), pid: 8 });
    world.pass(20);
    assert_eq!(world.holding("health_gap"), 1);
    (0..4).for_each(|_| answered(&mut world, 20.0));
    assert_eq!(world.holding("health_gap"), 0);
}

/// The same queue, but answers go on, slowly: saturated. That is told as too much work, and nothing is restarted.
#[test]
fn a_saturated_process_is_not_restarted() {
    let mut world = worker();
    (0..600).for_each(|i| {
        queued(&mut world, f64::from(10 + 20 * i));
        answered(&mut world, 2_000.0);
    });
    assert_eq!(
        (world.holding("health_gap"), world.holding("latency_spike")),
        (0, 2),
        "the queue and the route"
    );
    let restarts = world.orders.iter().filter(|(_, a)| a.changes_host()).count();
    assert_eq!(restarts, 0, "{:?}", world.orders);
}

/// Nothing to do is no fault: neither queue nor route is told of for a night.
#[test]
fn an_idle_process_is_left_alone() {
    let mut world = worker();
    (0..20).for_each(|_| queued(&mut world, 0.0));
    for _ in 0..8 {
        world.pass(3_600);
        (0..5).for_each(|_| queued(&mut world, 0.0));
    }
    assert_eq!(world.firings.len(), 0, "{:#?}", world.last_firing());
}

/// A gauge that came to rest while its process answers is worth a task, not a restart.
#[test]
fn what_stands_still_beside_other_signs_of_life_is_a_task() {
    let mut world = worker();
    let cache = |mb| Kind::Metric { name: "w.cache_mb".into(), value: mb, count: 1 };
    (0..30).for_each(|i| {
        world.see(500, cache(f64::from(i)));
        answered(&mut world, 20.0);
    });
    (0..300).for_each(|_| {
        world.see(500, cache(29.0));
        answered(&mut world, 20.0);
    });
    assert_eq!(world.holding("health_gap"), 1);
    assert_eq!(world.orders.iter().map(|(_, a)| a.name()).collect::<Vec<_>>(), ["file_task"]);
}

/// Its log falls silent: after five times its cadence, and never at once for one that is quiet by nature.
#[test]
fn a_log_is_silent_by_its_own_cadence() {
    for (cadence, silent_after) in [(2, 60), (100, 500)] {
        let mut world = worker();
        let line = || Kind::LogActivity { process: "w".into(), lines: 3 };
        (0..30).for_each(|_| world.see(cadence * 1_000, line()));
        world.pass(silent_after - 1);
        assert_eq!(world.holding("health_gap"), 0);
        world.pass(2);
        assert_eq!(world.holding("health_gap"), 1);
        world.pass(100_000);
        assert_eq!(world.holding("health_gap"), 1, "silence is no recovery");
        (0..2).for_each(|_| world.see(cadence * 1_000, line()));
        assert_eq!(world.holding("health_gap"), 0);
        assert!(world.orders.iter().all(|(_, a)| !a.changes_host()), "{:?}", world.orders);
    }
}

/// What is no number, or comes late, twice, or out of order, makes nothing fire, nor hides that it should.
#[test]
fn strange_values_neither_fire_nor_hide() {
    let mut world = World::new(Mode::Repair);
    world.see(0, Kind::QueueDeclared { name: "q".into(), limit: Some(10.0), process: None });
    let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0];
    for second in 0..100 {
        for value in strange {
            world.see(100, Kind::QueueDepth { name: "q".into(), depth: value, max: value });
            world.see(0, Kind::Metric { name: "m".into(), value, count: 1 });
            let class = "sync".into();
            world.see(0, Kind::SyscallLatency { process: "p".into(), class, p99_us: value, calls: 1 });
        }
        let depth = if second < 50 { 1.0 } else { 1e300 };
        world.see(600, Kind::QueueDepth { name: "q".into(), depth, max: depth });
        world.see(0, Kind::QueueDepth { name: "q".into(), depth: 0.0, max: 0.0 });
        assert_eq!(world.holding("latency_spike"), usize::from(second >= 60), "second {second}");
    }
    // A time before the last one's, and one far ahead: the sender's clock is not asked.
    world.now = Timestamp(5);
    world
        .engine
        .step(&Event { at: world.now, kind: Kind::QueueDepth { name: "q".into(), depth: 0.0, max: 0.0 } });
    assert_eq!(world.holding("latency_spike"), 1);
}

/// A million names: bounded, and the rest is counted and said.
#[test]
fn a_million_names_are_bounded_and_counted() {
    let mut world = World::new(Mode::Repair);
    for i in 0..1_000_000u32 {
        let name = format!("n{i}");
        let kind = match i % 3 {
            0 => Kind::Heartbeat { name, count: 1 },
            1 => Kind::QueueDepth { name, depth: 1.0, max: 1.0 },
            _ => {
                let mut took_ms = Sketch::default();
                took_ms.record(1.0);
                Kind::RouteLatency { route: name, took_ms }
            }
        };
        world.engine.step(&Event { at: world.now, kind });
    }
    let subjects: usize = world.engine.duties().iter().map(|d| d.subjects).sum();
    assert!((10_000..=30_000).contains(&subjects), "{subjects}");
    let notes = world.engine.notes();
    for trigger in ["health_gap", "latency_spike"] {
        let said = notes[trigger].iter().any(|n| n.contains("records of names beyond 10000 are not judged"));
        assert!(said, "{trigger}: {notes:?}");
    }
    let learned: usize = world.engine.learned().iter().map(|(_, state)| state.to_string().len()).sum();
    assert!(learned < 1_000, "nothing was learned of names that came once: {learned} bytes");
}

/// What was learned comes back with the next run, and goes on from there; what is damaged is said and ignored.
#[test]
fn what_was_learned_survives_and_what_is_damaged_is_ignored() {
    let mut world = World::new(Mode::Repair);
    world.beats("h", 30, 20);
    let state =
        world.engine.learned().into_iter().find(|(name, _)| *name == "health_gap").expect("learned").1;

    let mut next = World::new(Mode::Repair);
    next.see(0, Kind::Learned { trigger: "health_gap".into(), state: state.clone() });
    assert_eq!(next.engine.learned()[0].1, state, "kept, though nothing came of it yet");
    next.beats("h", 1, 1);
    next.pass(59);
    assert_eq!(next.holding("health_gap"), 0);
    next.pass(2);
    assert_eq!(next.holding("health_gap"), 1, "known from its first beat on");

    for damaged in [
        serde_json::json!(null),
        serde_json::json!({"version": 1}),
        serde_json::json!({"version": 9, "hearts": {}, "logs": {}, "metrics": {}, "queues": {}, "routes": {}}),
        serde_json::json!({"version": 1, "hearts": {"h": {"need": 1, "have": 1, "stride": 3, "skip": 0, "history": [-5.0]}},
            "logs": {}, "metrics": {}, "queues": {}, "routes": {}}),
    ] {
        let mut next = World::new(Mode::Repair);
        next.see(0, Kind::Learned { trigger: "health_gap".into(), state: damaged });
        let said = next.last_firing().expect("said");
        assert!(said.summary.contains("learns anew"), "{said:#?}");
        assert_eq!((next.firings.len(), said.state), (1, State::Happened));
        next.beats("h", 30, 20);
        next.pass(61);
        assert_eq!(next.holding("health_gap"), 1, "it learned anew");
    }
}

/// Who is to mend a firing: what its trigger says, a coding agent where there is nothing that Grace could do, and a coding
/// agent from the moment on in which one is asked.
#[test]
fn a_firing_goes_to_whoever_can_mend_it() {
    let config = Config { mode: Mode::Repair, ..Config::default() };
    let path = PathBuf::from(FILES[0]);
    let error = SyntaxError { line: 588, column: 3, text: "def f(:".into(), problem: "expected `)`".into() };
    let broken = |errors| Kind::SyntaxSeen { path: path.clone(), language: "python".into(), errors };
    // Every third order fails; a restore that failed to its end asks for help.
    let mut stream = vec![
        (0, Kind::FileKnown { path: path.clone(), known: known() }),
        (1, broken(vec![error.clone()])),
        (1, Kind::FileSeen { path: path.clone(), state: FileState::Missing, writer: None, via: Via::Look }),
    ];
    stream.extend((0..60).map(|_| (1_000, Kind::Tick)));
    stream.push((1, broken(Vec::new())));
    let (_, effects) = judge(&config, Mode::Repair, &stream);
    let of = |trigger: &str| {
        let firings = effects.iter().filter_map(|(_, effect)| match effect {
            Effect::Firing(f) if f.trigger == trigger => Some(f.clone()),
            _ => None,
        });
        firings.collect::<Vec<_>>()
    };
    let syntax = of("syntax");
    assert!(syntax.iter().all(|f| f.route == Route::CodingAgent && f.escalated.is_none()), "{syntax:#?}");
    assert!(syntax[0].summary.contains("line 588, column 3"), "{syntax:#?}");
    assert_eq!(syntax.last().map(|f| f.state), Some(State::Cleared));
    let drift = of("config_drift");
    assert_eq!(drift[0].route, Route::SelfHealing);
    let last = drift.last().expect("it fired");
    assert_eq!(last.route, Route::CodingAgent, "nobody saw it to be right again");
    let asked = last.escalated.expect("since when");
    assert!(asked.since(last.at) > Duration::from_secs(1));
    // Told once: the moment does not move.
    assert!(drift.iter().filter_map(|f| f.escalated).all(|at| at == asked));
}

fn steady() -> RestartPolicy {
    RestartPolicy {
        burst: 5,
        interval_ms: 600_000,
        backoff_ms: 200,
        backoff_max_ms: 60_000,
        stable_ms: 5_000,
        restart: Restart::Always,
    }
}

fn declared(world: &mut World, name: &str, pid: Option<u32>) {
    world.see(0, Kind::ProcessDeclared { name: name.into(), policy: steady(), importance: 50, pid });
}

fn killed(oom: Option<&str>) -> Exit {
    Exit { signal: Some(9), oom: oom.map(str::to_owned), ..Exit::default() }
}

fn ended(world: &mut World, name: &str, pid: u32, exit: Exit) {
    world.see(10, Kind::ProcessExited { name: name.into(), pid, exit, stderr_tail: Vec::new() });
}

fn starts(world: &World) -> Vec<String> {
    let name = |(_, action): &(Timestamp, Action)| match action {
        Action::StartProcess { name } => Some(name.clone()),
        _ => None,
    };
    world.orders.iter().filter_map(name).collect()
}

#[test]
fn what_was_shed_is_neither_silent_nor_stuck_until_it_is_given_back() {
    let mut world = World::new(Mode::Repair);
    declared(&mut world, "w", Some(7));
    world.see(0, Kind::ProcessExpects { name: "w".into(), heartbeat_ms: Some(2_000) });
    world.beats("w", 20, 2);
    world.see(0, Kind::LoadShed { process: "w".into(), step: Shed::Freeze });
    let stuck = |doing, since| Kind::Progress { name: "w".into(), pid: 7, doing, since, wait: None };
    let since = world.now;
    world.see(1_000, stuck(Doing::Blocked, since));
    world.pass(600);
    assert_eq!(world.firings.len(), 0, "{:#?}", world.last_firing());
    world.see(0, Kind::LoadGivenBack { process: "w".into() });
    world.see(1_000, stuck(Doing::Working, since));
    world.pass(5);
    assert_eq!(world.firings.len(), 0, "what it did not say meanwhile is not missing");
    world.beats("w", 5, 2);
    world.pass(60);
    assert_eq!(world.holding("health_gap"), 1, "from now on it is");
}

#[test]
fn one_that_is_only_told_to_do_with_less_must_be_heard_of_still() {
    let mut world = World::new(Mode::Repair);
    declared(&mut world, "w", Some(7));
    world.see(0, Kind::ProcessExpects { name: "w".into(), heartbeat_ms: Some(2_000) });
    world.beats("w", 20, 2);
    world.see(0, Kind::LoadShed { process: "w".into(), step: Shed::Notify });
    world.pass(60);
    assert_eq!(world.holding("health_gap"), 1);
}

#[test]
fn an_end_for_want_of_memory_follows_from_the_pressure_and_one_by_its_own_limit_does_not() {
    for (why, follows) in [
        ("the host had no memory left when w (pid 7) asked for more", true),
        ("its cgroup's limit of 10 MiB was reached", false),
    ] {
        let mut world = World::new(Mode::Repair);
        declared(&mut world, "w", Some(7));
        for _ in 0..40 {
            let readings = vec![grace_agent::event::Reading { resource: "memory".into(), percent: 99.0 }];
            world.see(1_000, Kind::Pressure { readings });
        }
        ended(&mut world, "w", 7, killed(Some(why)));
        let of = |trigger: &str| world.firings.values().find(|f| f.trigger == trigger).unwrap().clone();
        let cause = of("health_gap").cause;
        assert_eq!(cause, follows.then(|| of("resource_pressure").id), "{why}");
        assert_eq!(starts(&world), ["w"], "it is started all the same");
    }
}

#[test]
fn a_queue_that_grows_because_its_worker_is_down_follows_from_that_and_is_not_scaled_meanwhile() {
    let mut world = World::new(Mode::Repair);
    declared(&mut world, "w", Some(7));
    world.see(0, Kind::ScaleDeclared { name: "w".into(), base: 1, max: 3, now: 1 });
    world.see(0, Kind::QueueDeclared { name: "q".into(), limit: Some(10.0), process: Some("w".into()) });
    ended(&mut world, "w", 7, killed(None));
    for _ in 0..20 {
        world.see(1_000, Kind::QueueDepth { name: "q".into(), depth: 50.0, max: 50.0 });
    }
    let of =
        |world: &World, trigger: &str| world.firings.values().find(|f| f.trigger == trigger).unwrap().clone();
    assert_eq!(of(&world, "latency_spike").cause, Some(of(&world, "health_gap").id));
    let scaled = |world: &World| world.orders.iter().any(|(_, a)| matches!(a, Action::Scale { .. }));
    assert!(!scaled(&world), "{:#?}", world.orders);
    world.see(0, Kind::ProcessStarted { name: "w".into(), pid: 8 });
    for _ in 0..60 {
        world.see(1_000, Kind::QueueDepth { name: "q".into(), depth: 50.0, max: 50.0 });
    }
    assert!(scaled(&world), "it runs again, and that was not enough: {:#?}", world.orders);
}

#[test]
fn causes_are_started_before_what_needs_them() {
    let mut world = World::new(Mode::Repair);
    let needs = |name: &str, after: &[&str]| Kind::ProcessNeeds {
        name: name.into(),
        after: after.iter().map(|s| (*s).to_owned()).collect(),
        awaits: true,
        watched_only: false,
    };
    let ready = |name: &str, pid| Kind::ProcessReady { name: name.into(), pid, after_ms: 5 };
    let started = |name: &str, pid| Kind::ProcessStarted { name: name.into(), pid };
    // c needs b, which needs a; declared the wrong way round.
    for (name, after) in [("c", &["b"][..]), ("b", &["a"]), ("a", &[])] {
        world.see(0, needs(name, after));
        declared(&mut world, name, None);
    }
    assert_eq!(starts(&world), ["a"]);
    world.see(10, started("a", 1));
    world.pass(5);
    assert_eq!(starts(&world), ["a"], "it runs and is not ready");
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let pid = u32::try_from(i).unwrap() + 1;
        world.see(10, started(name, pid));
        world.see(10, ready(name, pid));
    }
    assert_eq!(starts(&world), ["a", "b", "c"]);
    // All fall within milliseconds, the last first.
    for (pid, name) in [(3, "c"), (2, "b"), (1, "a")] {
        ended(&mut world, name, pid, killed(None));
    }
    world.pass(5);
    assert_eq!(starts(&world)[3..], ["a"]);
    for (pid, name) in [(11, "a"), (12, "b"), (13, "c")] {
        world.see(10, started(name, pid));
        world.see(10, ready(name, pid));
        world.pass(5);
    }
    assert_eq!(starts(&world)[3..], ["a", "b", "c"]);
    assert_eq!(world.holding("health_gap"), 0, "{:#?}", world.firings);
    assert!(
        !world.orders.iter().any(|(_, a)| matches!(a, Action::FileTask { .. })),
        "nothing is to be found out"
    );
}

#[test]
fn many_that_fall_at_once_do_not_get_up_at_the_same_moment_and_backoff_differs() {
    let mut world = World::new(Mode::Repair);
    let name = |i: u32| format!("p{i}");
    (0..500).for_each(|i| declared(&mut world, &name(i), Some(i + 1)));
    let fell = world.now;
    for i in 0..500 {
        world.see(
            0,
            Kind::ProcessExited { name: name(i), pid: i + 1, exit: killed(None), stderr_tail: Vec::new() },
        );
    }
    world.pass(10);
    let times: Vec<Duration> = world.orders.iter().map(|(at, _)| at.since(fell)).collect();
    assert_eq!(starts(&world).len(), 500);
    let early = times.iter().filter(|t| **t < Duration::from_millis(100)).count();
    assert!(early < 150, "{early} in the first tenth of a second");
    assert!(times.iter().all(|t| *t < Duration::from_secs(3)), "{:?}", times.iter().max());
}
