//! Recorded streams of real faults, judged again: the firings and decisions that they must give.
//!
//! `replay/*.jsonl` were recorded by an agent on a real host (`state-dir/events/`), but for those of hours of heartbeats and
//! latencies, which were written down as an agent would; the snapshots beside them say what the engine makes of each. A
//! change of judgement shows as a difference there, to be looked at and accepted.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use grace_agent::config::{Config, Mode};
use grace_agent::engine::Effect;
use grace_agent::event::Event;
use grace_agent::firing::{RungState, State};
use grace_agent::recording::{ReadError, read};
use grace_agent::replay::{Replayed, replay};

fn recording(name: &str) -> (Config, Vec<Event>) {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/replay/{name}.jsonl"))).unwrap()
}

/// What was decided, in order, and where each firing ended.
fn story(replayed: &Replayed) -> String {
    let mut out = String::new();
    for effect in &replayed.effects {
        if let Effect::Decision { firing, action, admitted, .. } = effect {
            let firing = firing.map_or_else(|| "-".to_owned(), |id| id.to_string());
            let admitted =
                admitted.as_ref().map_or_else(|why| format!("held, {why}"), |()| "admitted".to_owned());
            writeln!(out, "{firing} {action}: {admitted}").unwrap();
        }
    }
    for firing in &replayed.firings {
        writeln!(out, "{} {} {} {:?}", firing.id, firing.trigger, firing.subject, firing.state).unwrap();
        writeln!(out, "  summary   {}", firing.summary).unwrap();
        writeln!(out, "  measured  {}", firing.measured).unwrap();
        writeln!(out, "  threshold {}", firing.threshold).unwrap();
        writeln!(out, "  baseline  {}", firing.baseline).unwrap();
        writeln!(out, "  writer    {:?}", firing.writer.as_ref().map(|w| (&w.comm, w.exe.as_deref(), w.uid)))
            .unwrap();
        writeln!(out, "  cleared   {:?}, {} times", firing.cleared_by, firing.count).unwrap();
        for rung in &firing.remedy {
            writeln!(
                out,
                "  rung      {} {:?}: {}",
                rung.action,
                rung.state,
                rung.why.as_deref().unwrap_or("")
            )
            .unwrap();
        }
    }
    out
}

#[test]
fn recordings_give_the_firings_that_they_gave() {
    for name in [
        "drift_restored",
        "fight",
        "observed",
        "killed",
        "crash_loop",
        "error_repeated",
        "error_too_few",
        "error_over",
        "silent_restarted",
        "silent_budget",
        "heartbeats_slept",
        "gpu_faults",
        "gpu_hang",
        "gpu_memory",
        "stuck",
        "saturated",
        "backlog",
        "queue_spike",
        "route_spike",
        "endpoint_drift",
        "packages",
        "code_changed",
        "risk",
        "accuracy",
        "disk_full",
        "calm",
    ] {
        let (config, events) = recording(name);
        let replayed = replay(&config, &events);
        assert_eq!(replay(&config, &events), replayed, "{name}: not twice the same");
        insta::with_settings!({ snapshot_path => "replay", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, story(&replayed));
        });
    }
}

#[test]
fn another_threshold_shows_what_it_would_have_done() {
    let (mut config, events) = recording("fight");
    let held = |replayed: &Replayed| {
        replayed.firings.iter().flat_map(|f| &f.remedy).filter(|r| r.state == RungState::Held).count()
    };
    assert_eq!(held(&replay(&config, &events)), 1);
    config.triggers.config_drift.conflict_count = 100;
    assert_eq!(held(&replay(&config, &events)), 0, "without the limit nothing is held");
    config.mode = Mode::Observe;
    assert!(held(&replay(&config, &events)) >= 3, "observing holds every restore");
}

#[test]
fn other_settings_show_what_they_would_have_done_about_code() {
    let fired = |replayed: &Replayed, trigger: &str| {
        replayed.firings.iter().filter(|f| f.trigger == trigger && f.state != State::Happened).count()
    };
    let (mut config, events) = recording("endpoint_drift");
    assert_eq!(fired(&replay(&config, &events), "telemetry_drift"), 1);
    config.triggers.telemetry_drift.confirm = 1_000;
    assert_eq!(fired(&replay(&config, &events), "telemetry_drift"), 0, "never so often in a row");
    config.triggers.telemetry_drift.confirm = 2;
    config.triggers.telemetry_drift.fire_on_new_fields = true;
    let new_field = |effect: &Effect| matches!(effect, Effect::Firing(f) if f.state == State::Holds && f.summary == "/next: new, string");
    assert!(replay(&config, &events).effects.iter().any(new_field), "a new field is a drift then");
    let (mut config, events) = recording("risk");
    assert!(fired(&replay(&config, &events), "predicted_failure") > 0);
    config.triggers.predicted_failure.threshold = 1.0;
    assert_eq!(fired(&replay(&config, &events), "predicted_failure"), 0);
}

#[test]
fn what_is_no_recording_is_refused_and_a_cut_line_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    assert!(matches!(read(&file("a", "")), Err(ReadError::NotARecording(_))));
    assert!(matches!(read(&file("b", "{\"x\":1}\n")), Err(ReadError::NotARecording(_))));
    assert!(matches!(read(&folder.path().join("none")), Err(ReadError::Read { .. })));
    let whole =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replay/killed.jsonl"))
            .unwrap();
    let (_, events) = read(&file("c", &whole)).unwrap();
    // Killed in the middle of the last line.
    let (_, cut) = read(&file("d", &whole[..whole.len() - 20])).unwrap();
    assert_eq!(cut, events[..events.len() - 1]);
    // Damage in the middle is named with its line.
    let damaged = whole.replacen("\"event\"", "\"evnt\"", 1);
    assert!(matches!(read(&file("e", &damaged)), Err(ReadError::Line { line: 2, .. })));
}
