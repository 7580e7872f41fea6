//! Every way of changing a file, on every file system that is there: noticed, by what, and who did it. Needs root.
//!
//! Another process changes the file by plain system calls ([`attack`]) while a real agent watches in observe mode.
//! The agent sweeps so rarely that only its hooks can notice; ways that no hook can see are tried beside a second one
//! that sweeps. With GRACE_COVERAGE_OUT the result is written there as `coverage-KERNEL.json`, and all such files
//! there together become `coverage.md`, which is kept as docs/coverage.md.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "coverage/attack.rs"]
mod attack;
#[path = "coverage/table.rs"]
mod table;

mod harness;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Agent, program, run};
use serde_json::Value;

use table::{Cell, Table, Who};

/// Sixteen KiB: whole pages and blocks can be taken out of it.
const SIZE: usize = 16 << 10;

/// What must notice a way.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// A hook; the agent practically never sweeps.
    Hook,
    /// Nothing but time.
    Sweep,
    /// Nothing: it is not a drift.
    Nothing,
}

struct Way {
    /// As [`attack`] calls it.
    name: &'static str,
    /// As the table does.
    shown: &'static str,
    by: By,
    /// The process that did it must be named.
    who: bool,
}

const fn way(name: &'static str, shown: &'static str) -> Way {
    Way { name, shown, by: By::Hook, who: true }
}

const WAYS: &[Way] = &[
    way("write", "write"),
    way("pwrite", "pwrite"),
    way("writev", "writev"),
    way("pwritev2", "pwritev2"),
    way("write_and_stay", "write, by a process that lives on"),
    way("aio", "write by Linux AIO (io_submit)"),
    way("io_uring", "write by io_uring"),
    way("io_uring_fixed", "write by io_uring from a registered buffer"),
    way("direct", "write with O_DIRECT"),
    way("open_trunc", "open with O_TRUNC"),
    way("truncate", "truncate"),
    way("ftruncate", "ftruncate"),
    way("punch_hole", "fallocate: punch a hole"),
    way("zero_range", "fallocate: zero a range"),
    way("collapse_range", "fallocate: collapse a range"),
    way("copy_file_range", "copy_file_range"),
    way("sendfile", "sendfile"),
    way("splice", "splice"),
    way("clone_over", "FICLONE over it"),
    way("open_by_handle", "write after open_by_handle_at"),
    way("mmap_first", "store through a shared mapping: the first"),
    way("mmap_later", "store through a shared mapping: into a page that is dirty already"),
    way("chmod", "chmod"),
    way("chown", "chown"),
    way("setxattr", "setxattr"),
    Way { by: By::Nothing, ..way("utimes", "utimes: the modification time alone is no drift, by design") },
    way("rename_over", "rename another file over it"),
    way("rename_away", "rename it away"),
    way("rename_exchange", "renameat2 with RENAME_EXCHANGE"),
    way("unlink", "unlink"),
    way("recreate", "unlink and create anew"),
    way("hard_link", "write under another hard link's name"),
    way("bind_mount", "write through a bind mount"),
    way("mount_namespace", "write through a bind mount in another mount namespace"),
    way("symlink_for_file", "a symbolic link in its place"),
    way("symlink_for_folder", "a symbolic link in its folder's place"),
    way("folder_replaced", "its folder renamed away, another renamed there"),
    way("folder_exchanged", "its folder exchanged with another"),
    way("folder_made_anew", "its folder renamed away, later made anew with another file"),
    way("grandparent_replaced", "its folder's folder renamed away and made anew"),
    Way { who: false, ..way("mount_over", "another folder mounted over its folder") },
    Way { who: false, ..way("mount_over_file", "another file mounted over it") },
];

/// On an overlay only.
const OVERLAY_WAYS: &[Way] = &[
    way("lower_file", "overlay: first write to a file of the lower layer (copy-up)"),
    way("upper_folder", "overlay: write to the upper layer behind its back"),
];

/// Not a test: what the one below starts. Without its variables it does nothing.
#[test]
fn attacker() {
    let (Some(way), Some(file)) = (std::env::var_os("GRACE_ATTACK"), std::env::var_os("GRACE_ATTACK_FILE"))
    else {
        return;
    };
    attack::main(way.to_str().unwrap(), Path::new(&file));
}

/// A folder on some file system, taken off with everything in it at the end.
struct Place {
    name: String,
    root: PathBuf,
    mounted: Vec<PathBuf>,
    remove: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        for mount in &self.mounted {
            attack::unmount(mount);
        }
        drop(fs::remove_dir_all(&self.remove));
    }
}

/// The last first: later ones lie in earlier ones.
struct Places(Vec<Place>);

impl Drop for Places {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

fn fresh(below: &Path) -> PathBuf {
    let path = below.join(format!("grace-coverage-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).unwrap();
    // The agent owns files by their real names.
    path.canonicalize().unwrap()
}

fn file_system(path: &Path) -> String {
    let out = Command::new(program("stat")).args(["-f", "-c", "%T"]).arg(path).output().unwrap();
    match String::from_utf8(out.stdout).unwrap().trim() {
        "ext2/ext3" => "ext4".to_owned(),
        other => other.to_owned(),
    }
}

fn mount(kind: &str, options: &str, at: &Path) -> bool {
    let status =
        Command::new(program("mount")).args(["-t", kind, "-o", options, kind]).arg(at).status().unwrap();
    status.success()
}

/// What GRACE_TEST_FS names (`ext4=/mnt/a,xfs=/mnt/b`), or the disk under the temporary folder and a tmpfs; beside the
/// first an overlay.
fn places() -> Vec<Place> {
    let mut places: Vec<Place> = match std::env::var("GRACE_TEST_FS") {
        Ok(list) => list
            .split(',')
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, at)| (name.to_owned(), fresh(Path::new(at))))
            .map(|(name, root)| Place { name, remove: root.clone(), root, mounted: Vec::new() })
            .collect(),
        Err(_) => {
            let disk = fresh(&std::env::temp_dir());
            let root = disk.join("disk");
            let memory = disk.join("tmpfs");
            fs::create_dir(&root).unwrap();
            fs::create_dir(&memory).unwrap();
            let mut places =
                vec![Place { name: file_system(&disk), root, mounted: Vec::new(), remove: disk.clone() }];
            if places[0].name != "tmpfs" && mount("tmpfs", "size=64m", &memory) {
                let mounted = vec![memory.clone()];
                places.push(Place { name: "tmpfs".into(), root: memory.clone(), mounted, remove: memory });
            }
            places
        }
    };
    if let Some(first) = places.first() {
        let base = first.root.join("overlay");
        let merged = base.join("merged");
        for layer in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(base.join(layer)).unwrap();
        }
        fs::create_dir_all(base.join("lower/lower_file/f")).unwrap();
        fs::write(base.join("lower/lower_file/f/app.conf"), "a".repeat(SIZE)).unwrap();
        let at = |layer: &str| base.join(layer).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
        if mount("overlay", &options, &merged) {
            let name = format!("overlay on {}", first.name);
            let mounted = vec![merged.clone()];
            places.push(Place { name, root: merged, mounted, remove: base });
        }
    }
    places
}

struct Subject {
    way: &'static Way,
    folder: PathBuf,
    file: PathBuf,
}

fn prepare(place: &Place) -> Vec<Subject> {
    let only = std::env::var("GRACE_COVERAGE_WAY").ok();
    let ways = WAYS.iter().chain(OVERLAY_WAYS.iter().filter(|_| place.name.starts_with("overlay")));
    ways.filter(|way| only.as_ref().is_none_or(|only| only.split(',').any(|o| o == way.name)))
        .map(|way| {
            let folder = place.root.join(way.name).join("f");
            let file = folder.join("app.conf");
            if !file.exists() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&file, "a".repeat(SIZE)).unwrap();
            }
            fs::write(folder.join("other"), "b".repeat(SIZE)).unwrap();
            if way.name == "hard_link" {
                fs::hard_link(&file, folder.with_file_name("link")).unwrap();
            }
            Subject { way, folder, file }
        })
        .collect()
}

/// A started attacker. It is told to go on, and to end, by lines on its stdin.
struct Attacker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Attacker {
    fn start(way: &Way, file: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attacker", "--nocapture"])
            .env("GRACE_ATTACK", way.name)
            .env("GRACE_ATTACK_FILE", file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// True: it said so. False: it has ended before.
    fn hear(&mut self, what: &str) -> bool {
        self.lines.by_ref().map_while(Result::ok).any(|line| line.trim() == what)
    }

    fn tell(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits for its end; why it was refused.
    fn end(mut self) -> Option<String> {
        drop(self.child.stdin.take());
        self.lines.by_ref().for_each(drop);
        let out = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        match out.status.code() {
            Some(0) => None,
            Some(attack::REFUSED) => {
                Some(said.lines().find_map(|l| l.strip_prefix("refused: ")).unwrap_or("refused").to_owned())
            }
            _ => panic!("the attacker failed: {:?}\n{said}", out.status),
        }
    }
}

fn drift_of(agent: &Agent, file: &Path) -> Option<Value> {
    let name = file.to_str().unwrap();
    agent.firings().into_iter().find(|f| f["trigger"] == "config_drift" && f["subject"]["name"] == name)
}

/// Waits until `agent` reports `file`, at most so long.
fn await_drift(agent: &Agent, file: &Path, long: Duration) -> Option<Value> {
    let until = Instant::now() + long;
    loop {
        let found = drift_of(agent, file);
        if found.is_some() || Instant::now() > until {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does it and looks what the agent says.
fn try_way(subject: &Subject, hooks: &Agent, sweeper: &Agent, patience: Duration) -> Cell {
    let Subject { way, file, folder } = subject;
    let mut attacker = Attacker::start(way, file);
    let pid = attacker.child.id();
    let stays = matches!(way.name, "mmap_later" | "write_and_stay");
    let agent = if way.by == By::Sweep { sweeper } else { hooks };
    let mut refused = None;
    let mut firing = None;
    if stays && attacker.hear(attack::READY) {
        // Whatever the agent does after a first store is over.
        if way.name == "mmap_later" {
            std::thread::sleep(patience.min(Duration::from_secs(3)));
            assert!(drift_of(agent, file).is_none(), "nothing has changed yet");
        }
        attacker.tell();
        if attacker.hear(attack::DONE) {
            firing = await_drift(agent, file, patience);
            if firing.is_none() {
                firing = await_drift(sweeper, file, patience);
            }
        }
        attacker.tell();
        refused = attacker.end();
    } else {
        refused = attacker.end().or(refused);
    }
    if let Some(why) = refused {
        return Cell::refused(why);
    }
    if way.by == By::Nothing {
        // The hooks tell of it, and the look finds nothing: time enough for both.
        std::thread::sleep(Duration::from_millis(500));
        assert!(drift_of(hooks, file).is_none());
        return Cell::not_a_drift();
    }
    let firing = firing
        .or_else(|| await_drift(agent, file, patience))
        .or_else(|| await_drift(sweeper, file, patience));
    match way.name {
        "mount_over" => attack::unmount(folder),
        "mount_over_file" => attack::unmount(file),
        _ => {}
    }
    let Some(firing) = firing else { return Cell::missed() };
    let via = firing["noticed_by"].as_str().unwrap_or("unknown").to_owned();
    let writer = &firing["writer"];
    let who = match (writer["pid"].as_u64(), writer["inferred"].as_str()) {
        (None, _) => Who::Unknown,
        (Some(seen), _) if seen != u64::from(pid) => Who::Wrong,
        (Some(_), None) => Who::Seen,
        (Some(_), Some(_)) => Who::Inferred,
    };
    Cell::noticed(via, who)
}

#[test]
fn every_way_of_changing_a_file_is_noticed() {
    let guest = std::env::var_os("GRACE_GUEST").is_some();
    let patience = Duration::from_secs(if guest { 8 } else { 3 });
    let places = Places(places());
    let hooks = Agent::start_as("[triggers.config_drift]\nsweep = \"1h\"\n", "observe", &[]);
    let sweeper = Agent::start_as("[triggers.config_drift]\nsweep = \"2s\"\n", "observe", &[]);
    let mut table = Table::new();
    let mut wrong = Vec::new();
    for place in &places.0 {
        let subjects = prepare(place);
        let mut words: Vec<OsString> = vec!["snapshot".into()];
        words.extend(subjects.iter().map(|s| s.file.clone().into()));
        let words: Vec<&str> = words.iter().map(|w| w.to_str().unwrap()).collect();
        hooks.ok(&words);
        sweeper.ok(&words);
        for subject in &subjects {
            let began = Instant::now();
            let cell = try_way(subject, &hooks, &sweeper, patience);
            let way = subject.way;
            println!("{}: {}: {cell:?} ({} ms)", place.name, way.name, began.elapsed().as_millis());
            // Where fanotify is refused the dirty probe alone names, and it cannot tell a reader from a writer: beside a
            // second agent that reads the same files it may name that one. The table shows it.
            let guess =
                place.name.starts_with("overlay") && matches!(cell, Cell::Noticed { who: Who::Wrong, .. });
            // A truncation that waits for the disk is noticed before its change time is set and before fanotify tells of it,
            // so on a slow disk nobody may be named. The table shows that, too.
            let under_way = (place.name.starts_with("xfs") || place.name.starts_with("overlay"))
                && way.name.contains("trunc")
                && matches!(cell, Cell::Noticed { who: Who::Unknown, .. });
            let seen = cell.falls_short(way.by == By::Hook, way.who).filter(|_| !guess && !under_way);
            if let Some(why) = seen {
                wrong.push(format!("{}: {}: {why}", place.name, way.shown));
            }
            table.add(way.shown, &place.name, cell);
        }
        let gone: Vec<&str> = subjects.iter().map(|s| s.file.to_str().unwrap()).collect();
        for agent in [&hooks, &sweeper] {
            drop(agent.grace(&[&["forget"], &gone[..]].concat()));
        }
    }
    if let Some(folder) = std::env::var_os("GRACE_COVERAGE_OUT") {
        table.write(Path::new(&folder));
    }
    assert!(wrong.is_empty(), "\n{}\n{}", wrong.join("\n"), hooks.log());
}

#[test]
fn tables_of_kernels_are_put_side_by_side() {
    let mut table = Table::new();
    table.kernel = "6.1".into();
    table.add("write", "ext4", Cell::noticed("fanotify".into(), Who::Seen));
    table.add("write", "xfs", Cell::noticed("sweep".into(), Who::Inferred));
    table.add("chmod", "ext4", Cell::refused("EPERM".into()));
    let again: Table = serde_json::from_value(serde_json::to_value(&table).unwrap()).unwrap();
    let text = table::markdown(&BTreeMap::from([("6.1".to_owned(), again)]));
    assert!(text.starts_with("<!-- Generated"), "{text}");
    assert!(text.contains("| write | fanotify, who | sweep, who? |"), "{text}");
    assert!(text.contains("| chmod | n/a |  |"), "{text}");
    // Not used where no place is tried.
    let _ = run;
}
