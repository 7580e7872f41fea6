//! The architecture as a test: which room may import which, and what the pure rooms may not touch.
//!
//! Reads the sources as text. It fails on a `crate::` path into a room that the table does not allow, on an effect
//! named in a pure room, on a file without a first line that says what it is for, and on a file in no room.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of grace-agent: folder or file below `src`, and the rooms it may use. `tests/rooms.rs` and ARCHITECTURE.md
/// say the same; a new room goes into both.
const ROOMS: &[(&str, &[&str])] = &[
    // Vocabulary: plain data.
    ("event", &["action", "code_facts", "config", "file_state", "firing", "gpu_facts", "sketch"]),
    ("gpu_facts", &[]),
    ("file_state", &[]),
    ("firing", &["action", "event"]),
    ("action", &["event", "file_state", "firing", "shape"]),
    ("config", &["action", "code_facts", "event", "file_state", "reported"]),
    ("sketch", &[]),
    ("reported", &[]),
    ("faults", &["event", "faults"]),
    ("shape", &["shape"]),
    ("code_facts", &["shape"]),
    ("escape", &[]),
    ("risk", &[]),
    // Judgement: pure.
    ("owned", &["action", "event", "file_state", "firing"]),
    (
        "triggers",
        &[
            "action",
            "baseline",
            "code_facts",
            "config",
            "event",
            "faults",
            "file_state",
            "firing",
            "gpu_facts",
            "owned",
            "shape",
            "sketch",
            "triggers",
        ],
    ),
    ("policy", &["action", "config", "event", "firing"]),
    ("baseline", &[]),
    ("incident", &["action", "event", "firing"]),
    ("syntax_rule", &["action", "event", "firing", "triggers"]),
    ("engine", &["action", "config", "event", "firing", "incident", "policy", "syntax_rule", "triggers"]),
    ("replay", &["config", "engine", "event", "firing"]),
    // The edges.
    ("clock", &["event"]),
    ("sha256", &["file_state"]),
    ("file_meta", &["file_state", "sha256"]),
    ("error_chain", &[]),
    ("host", &[]),
    ("prompt", &[]),
    ("weights", &["clock", "file_state", "prompt", "sha256", "weights"]),
    ("confine", &[]),
    ("endure", &[]),
    ("syntax", &["clock", "confine", "event", "syntax"]),
    ("safe_path", &["file_meta"]),
    ("state_dir", &["clock"]),
    (
        "sources",
        &[
            "api::view",
            "clock",
            "code_facts",
            "config",
            "endure",
            "error_chain",
            "event",
            "faults",
            "file_meta",
            "file_state",
            "gpu_facts",
            "prompt",
            "reported",
            "safe_path",
            "sha256",
            "sketch",
            "risk",
            "shape",
            "sources",
            "weights",
        ],
    ),
    ("known", &[]),
    (
        "snapshots",
        &[
            "clock",
            "event",
            "file_meta",
            "file_state",
            "safe_path",
            "sha256",
            "snapshots",
            "sources",
            "state_dir",
            "weights",
        ],
    ),
    (
        "actions",
        &[
            "action",
            "actions",
            "clock",
            "config",
            "error_chain",
            "event",
            "file_meta",
            "file_state",
            "safe_path",
            "sha256",
            "snapshots",
            "sources",
            "state_dir",
            "weights",
        ],
    ),
    ("journal", &["action", "api", "clock", "event", "firing", "prompt"]),
    ("tasks", &["api", "clock", "config", "escape", "event", "firing", "tasks"]),
    ("sinks", &["actions", "clock", "config", "error_chain", "tasks"]),
    ("recording", &["config", "event"]),
    (
        "api",
        &[
            "action",
            "api",
            "code_facts",
            "config",
            "event",
            "file_state",
            "firing",
            "gpu_facts",
            "reported",
            "tasks",
        ],
    ),
    (
        "cli",
        &[
            "actions::own_cgroup",
            "api",
            "cli",
            "clock",
            "code_facts",
            "config",
            "endure",
            "error_chain",
            "escape",
            "event",
            "file_state",
            "firing",
            "host",
            "recording",
            "replay",
            "reported",
            "snapshots",
            "sources",
            "state_dir",
            "syntax",
            "triggers",
            "engine",
            "action",
            "weights",
            "tasks",
        ],
    ),
    // Joins them all.
    (
        "daemon",
        &[
            "action",
            "actions",
            "api",
            "cli",
            "clock",
            "code_facts",
            "config",
            "confine",
            "endure",
            "error_chain",
            "daemon",
            "engine",
            "event",
            "file_state",
            "firing",
            "host",
            "journal",
            "policy",
            "known",
            "prompt",
            "recording",
            "reported",
            "safe_path",
            "shape",
            "sinks",
            "snapshots",
            "sources",
            "state_dir",
            "syntax",
            "triggers",
            "weights",
            "tasks",
        ],
    ),
];

/// Rooms whose code may not reach outside of itself.
const PURE: &[&str] = &[
    "event",
    "faults",
    "file_state",
    "firing",
    "action",
    "owned",
    "sketch",
    "baseline",
    "triggers",
    "policy",
    "incident",
    "syntax_rule",
    "engine",
    "replay",
    "reported",
    "shape",
    "code_facts",
    "gpu_facts",
    "escape",
    "risk",
];

/// What no pure room names.
const EFFECTS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "std::io",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "rustix",
    "libc::",
    "aya",
    "rusqlite",
    "crate::clock",
    "tracing",
    "println!",
    "rand",
];

/// The whole files of the roots: they belong to no room.
const ROOTS: &[&str] = &["lib.rs", "main.rs"];

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("readable source"))
        })
        .collect()
}

/// Code without comments and without what stands under `#[cfg(test)]`.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or(text);
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The paths that follow `crate::` in `text`: `a`, `a::b`; braces are opened.
fn uses(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[at + 7..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = &group[..group.find("};").or_else(|| group.find('}')).unwrap_or(group.len())];
            let mut depth = 0;
            for part in group.split(|c| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                c == ',' && depth == 0
            }) {
                out.push(path_of(part.trim()));
            }
        } else {
            out.push(path_of(rest));
        }
    }
    out.retain(|p| !p.is_empty());
    out
}

fn path_of(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
}

#[test]
fn rooms_use_only_what_the_table_allows() {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, text) in files("grace-agent/src") {
        if ROOTS.contains(&name.as_str()) {
            continue;
        }
        let room = name.split('/').next().unwrap_or(&name).trim_end_matches(".rs").to_owned();
        let Some(allowed) = rooms.get(room.as_str()) else {
            wrong.push(format!("{name}: no such room; add it to ROOMS and ARCHITECTURE.md"));
            continue;
        };
        let code = code(&text);
        for used in uses(&code) {
            let fits = |a: &&str| used == **a || used.starts_with(&format!("{a}::"));
            if !allowed.iter().any(fits) {
                wrong.push(format!("{name}: uses crate::{used}, which {room} may not"));
            }
        }
        if PURE.contains(&room.as_str()) {
            wrong.extend(
                EFFECTS
                    .iter()
                    .filter(|effect| code.contains(*effect))
                    .map(|effect| format!("{name}: names {effect}; {room} is pure")),
            );
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let silent: Vec<String> =
        ["grace-agent/src", "grace-common/src", "grace-ebpf/src", "fake-nvml/src", "xtask/src", "tests"]
            .iter()
            .flat_map(|folder| {
                files(folder).into_iter().map(move |(name, text)| (format!("{folder}/{name}"), text))
            })
            .filter(|(_, text)| !text.trim_start().starts_with("//!"))
            .map(|(name, _)| name)
            .collect();
    assert!(silent.is_empty(), "these begin without `//!`:\n{}", silent.join("\n"));
}

#[test]
fn only_emit_writes_into_the_ring() {
    // A probe that reserves or outputs by itself could lose an event without counting it.
    let wrong: Vec<String> = files("grace-ebpf/src")
        .into_iter()
        // The maps themselves must stand somewhere.
        .filter(|(name, _)| name != "maps.rs")
        .filter(|(name, text)| {
            let names_a_ring =
                ["FILES", "EXITS", "PROCESSES", "SLOW"].iter().any(|ring| text.contains(&format!("{ring}.")));
            name != "emit.rs" && (names_a_ring || text.contains(".reserve") || text.contains("RingBuf"))
        })
        .map(|(name, _)| name)
        .collect();
    assert!(wrong.is_empty(), "these go past emit.rs: {wrong:?}");
}

#[test]
fn a_probe_has_its_record_under_the_same_name() {
    let names = |folder| files(folder).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let records = names("grace-common/src");
    for probe in names("grace-ebpf/src/probes").iter().filter(|n| *n != "mod.rs") {
        assert!(records.contains(probe), "grace-common/src/{probe} is missing");
    }
}

#[test]
fn every_trigger_is_a_file_and_its_spec_is_named_like_it() {
    let names: Vec<String> = files("grace-agent/src/triggers")
        .into_iter()
        .map(|(name, _)| name.trim_end_matches(".rs").to_owned())
        // A trigger's own folder holds its parts.
        .filter(|name| name != "mod" && !name.contains('/'))
        .collect();
    let mut specs: Vec<&str> = grace_agent::triggers::specs().iter().map(|s| s.name).collect();
    specs.sort_unstable();
    assert_eq!(names, specs);
}

#[test]
fn the_table_itself_is_read_right() {
    assert_eq!(uses("use crate::a::b; x(crate::c::d::<T>())"), ["a::b", "c::d::"]);
    assert_eq!(uses("use crate::{a, b::{c, d}, e::f};"), ["a", "b::", "e::f"]);
}
