//! Crashes: the agent is killed before every single system call of what must survive that.
//!
//! A child (this program again, see `child`) does one operation; strace kills it with SIGKILL as it enters its n-th
//! call of one kind, for every kind and every n between the operation's start and end. After each kill the parent
//! looks: no file holds anything but its old or its new content, nothing displaced is lost, every kept object is
//! whole, and the next start clears up. `recover` is killed in the same way in every state that a killed `restore`
//! leaves. The same injection makes syncs and writes fail and takes the exchange of names away.
//!
//! No test harness: the child must not have its threads, because strace counts calls by thread. Only the journal has one
//! of its own; its calls are counted for each thread.

#![expect(clippy::disallowed_methods, reason = "tests start programs")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on must say where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use grace_agent::actions::restore_file::{RestoreError, recover, restore};
use grace_agent::journal::{Journal, Record};
use grace_agent::snapshots::{Store, Take};
use grace_agent::sources::look::look;
use grace_agent::state_dir::StateDir;

const OLD: &[u8] = b"the content that was damaged\n";
const GOOD: &[u8] = b"the known-good content\n";
const NEXT: &[u8] = b"the version after it\n";

type Test = fn(&mut Scene);

fn main() -> ExitCode {
    if let Ok(operation) = std::env::var("GRACE_CRASH_CHILD") {
        child(&operation, Path::new(&std::env::var_os("GRACE_CRASH_ROOT").unwrap()));
        return ExitCode::SUCCESS;
    }
    let tests: &[(&str, Test)] = &[
        ("take_survives_every_crash", take_survives_every_crash),
        ("open_survives_every_crash", open_survives_every_crash),
        ("forget_survives_every_crash", forget_survives_every_crash),
        ("the_journal_survives_every_crash", the_journal_survives_every_crash),
        (
            "a_journal_that_cannot_be_written_says_so_and_goes_on_later",
            a_journal_that_cannot_be_written_says_so_and_goes_on_later,
        ),
        ("restore_and_recover_survive_every_crash", restore_and_recover_survive_every_crash),
        ("restore_of_a_missing_file_survives_every_crash", restore_of_a_missing_file_survives_every_crash),
        ("restore_without_exchange_survives_every_crash", restore_without_exchange_survives_every_crash),
        ("a_failed_sync_is_never_called_done", a_failed_sync_is_never_called_done),
        ("a_full_a_read_only_and_another_file_system", a_full_a_read_only_and_another_file_system),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if !Command::new("strace").arg("-V").output().is_ok_and(|out| out.status.success()) {
        return skip("strace is not installed (`cargo xtask setup` installs it)");
    }
    if !rustix::process::geteuid().is_root() {
        return skip("they need root");
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            println!("test {name}");
            match std::panic::catch_unwind(|| test(&mut Scene::new())) {
                Ok(()) => {
                    println!("test {name} ... ok");
                    passed += 1;
                }
                Err(_) => {
                    println!("test {name} ... FAILED");
                    failed += 1;
                }
            }
        }
    }
    // The line that libtest ends with: what reads the results reads this one, too.
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says that nothing of this could run, and why; `cargo xtask test` lists it as not run.
fn skip(why: &str) -> ExitCode {
    println!("SKIPPED crash tests: {why}");
    if let Some(list) = std::env::var_os("GRACE_TEST_SKIPS") {
        use std::io::Write;
        if let Ok(mut file) = fs::OpenOptions::new().append(true).create(true).open(list) {
            writeln!(file, "crash tests: {why}").unwrap();
        }
    }
    println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

/// Appends `records` one after the other, each of which is there twice, and says of each whether it is durable.
fn record(state: &StateDir, records: usize) {
    let journal = Journal::open(state.db().unwrap(), state.db().unwrap(), |_| ()).unwrap();
    for number in 0..records {
        let (tell, told) = std::sync::mpsc::channel();
        let then = move |done: Result<(), String>| tell.send(done).unwrap();
        let note = || Record::Note { kind: "command", text: format!("record {number}") };
        journal.append(vec![note(), note()], Some(Box::new(then)));
        match told.recv().unwrap() {
            Ok(()) => println!("acknowledged {number}"),
            Err(why) => println!("refused {number}: {why}"),
        }
    }
    journal.close();
}

/// What a journal holds, in its order; it must be whole, and serve on.
fn recorded(scene: &Scene, said: &str) -> Vec<String> {
    let state = StateDir::open(&scene.root.join("state")).unwrap();
    let db = state.db().unwrap();
    let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok", "{said}");
    let journal = Journal::open(state.db().unwrap(), state.db().unwrap(), |_| ()).unwrap();
    let mut query = db.prepare("SELECT text FROM journal ORDER BY seq").unwrap();
    let texts: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let (tell, told) = std::sync::mpsc::channel();
    let then = move |done: Result<(), String>| tell.send(done).unwrap();
    journal.append(vec![Record::Note { kind: "start", text: "the next".into() }], Some(Box::new(then)));
    told.recv().unwrap().unwrap();
    journal.close();
    texts
}

fn the_journal_survives_every_crash(scene: &mut Scene) {
    scene.reset(|scene| drop(StateDir::open(&scene.root.join("state")).unwrap()));
    let killed = scene.at_every_call("journal 4", &["-f"], |scene, said, call| {
        let texts = recorded(scene, call);
        let acknowledged = said.lines().filter(|line| line.starts_with("acknowledged")).count();
        // Whole and in order: what was acknowledged, and at most the one that was under way.
        let want = |records: usize| {
            (0..records).flat_map(|n| [format!("record {n}"), format!("record {n}")]).collect::<Vec<_>>()
        };
        assert!(
            texts == want(acknowledged) || texts == want(acknowledged + 1),
            "{call}: {acknowledged} acknowledged, the journal has {texts:?}"
        );
    });
    println!("  journal: {killed} points, torn 0, lost 0");
}

fn a_journal_that_cannot_be_written_says_so_and_goes_on_later(scene: &mut Scene) {
    // So many that the journal's thread writes more often than whoever opens the database: the error is then its own.
    const RECORDS: usize = 12;
    let operation = format!("journal {RECORDS}");
    // With its tables: making them writes, too.
    scene.reset(|scene| {
        let state = StateDir::open(&scene.root.join("state")).unwrap();
        Journal::open(state.db().unwrap(), state.db().unwrap(), |_| ()).unwrap().close();
    });
    for (call, error) in
        [("pwrite64", "EDQUOT"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fsync", "EIO")]
    {
        let (before, after) = scene.span(&operation, &["-f"])[call];
        let mut refused = 0;
        for n in before + 1..=after {
            scene.restage();
            let (said, _) =
                scene.run(&operation, &["-f", "-e", &format!("inject={call}:error={error}:when={n}")]);
            // Opening it may be what failed: then there was no journal to be wrong about.
            let told = |word: &str| said.lines().filter(|line| line.starts_with(word)).count();
            if told("acknowledged") + told("refused") == 0 {
                continue;
            }
            assert_eq!(told("acknowledged") + told("refused"), RECORDS, "{said}");
            let texts = recorded(scene, &said);
            for number in 0..RECORDS {
                let there = texts.iter().filter(|text| **text == format!("record {number}")).count();
                let acknowledged = said.contains(&format!("acknowledged {number}\n"));
                assert!(
                    !acknowledged || there == 2,
                    "{call} {n} {error}: {number} acknowledged and lost: {said}{texts:?}"
                );
                assert!(there == 0 || there == 2, "{call} {n} {error}: half of {number} is there");
            }
            refused += told("refused");
        }
        println!(
            "  journal, {call} fails with {error}: {refused} of {} calls refused a record",
            after - before
        );
        assert!(refused > 0, "{call} {error}: nothing was refused");
    }
}

/// One operation between two marks that the trace shows.
fn child(operation: &str, root: &Path) {
    let mark = || drop(fs::symlink_metadata(MARK));
    let path = root.join("etc/app.conf");
    if operation == "open" {
        mark();
        let state = StateDir::open(&root.join("state")).unwrap();
        drop(Store::open(&state).unwrap());
        return mark();
    }
    let state = StateDir::open(&root.join("state")).unwrap();
    if let Some(records) = operation.strip_prefix("journal ") {
        mark();
        record(&state, records.parse().unwrap());
        return mark();
    }
    let store = Store::open(&state).unwrap();
    match operation {
        "take" => {
            mark();
            let result = store.take(&path, Take::default());
            println!("{}", if result.is_ok() { "acknowledged" } else { "refused" });
        }
        "forget" => {
            mark();
            println!("{:?}", store.forget(&path).unwrap());
        }
        "restore" => {
            let known = store.current_of(&path).unwrap().unwrap().known;
            let judged = look(&path, Some(&known)).id();
            mark();
            let result = restore(&store, &state.quarantine(), &path, &known, judged, "f-1", || ());
            println!("{result:?}");
        }
        "recover" => {
            mark();
            println!("{:?}", recover(&store, &state.quarantine(), &[path]));
        }
        other => panic!("no operation {other}"),
    }
    mark();
}

fn take_survives_every_crash(scene: &mut Scene) {
    for first in [true, false] {
        scene.reset(|scene| {
            if !first {
                scene.write(GOOD);
                scene.take();
            }
            scene.write(NEXT);
        });
        let killed = scene.at_every_call("take", &[], |scene, said, call| {
            let (_state, store) = scene.open();
            let current = store.current_of(&scene.path()).unwrap().map(|s| content(&store, &s.known.digest));
            let before = (!first).then(|| GOOD.to_vec());
            if said.contains("acknowledged") {
                assert_eq!(current.as_deref(), Some(NEXT), "{call}: acknowledged and lost");
            } else {
                assert!(current == before || current.as_deref() == Some(NEXT), "{call}: {current:?}");
            }
            check_objects(&store, call);
            assert!(store.take(&scene.path(), Take::default()).is_ok(), "{call}: no further snapshot");
            assert_eq!(incoming(&scene.root.join("state/objects")), 0, "{call}");
        });
        println!("  take, first version {first}: killed at {killed} calls");
    }
}

fn open_survives_every_crash(scene: &mut Scene) {
    for fresh in [true, false] {
        scene.reset(|scene| {
            if !fresh {
                scene.write(GOOD);
                scene.take();
            }
            scene.write(OLD);
        });
        let killed = scene.at_every_call("open", &[], |scene, _, call| {
            let (state, store) = scene.open();
            assert_eq!(state.damaged(), None, "{call}");
            assert_eq!(store.all().unwrap().len(), usize::from(!fresh), "{call}");
            check_objects(&store, call);
            store.take(&scene.path(), Take::default()).unwrap();
        });
        println!("  open, new folder {fresh}: killed at {killed} calls");
    }
}

fn forget_survives_every_crash(scene: &mut Scene) {
    scene.reset(|scene| {
        for version in [GOOD, NEXT] {
            scene.write(version);
            scene.take();
        }
    });
    let killed = scene.at_every_call("forget", &[], |scene, _, call| {
        let (state, store) = scene.open();
        let left = store.all().unwrap().len();
        assert!(left == 0 || left == 2, "{call}: {left} versions");
        check_objects(&store, call);
        let kept = files_below(&state.objects()).len();
        assert_eq!(kept, left, "{call}: objects that nobody needs, or the other way round");
    });
    println!("  forget: killed at {killed} calls");
}

fn restore_and_recover_survive_every_crash(scene: &mut Scene) {
    scene.reset(drifted);
    // States of disk that killed restores leave, by what lies where.
    let mut left = BTreeMap::new();
    let save = scene.root.with_extension("left");
    fs::create_dir(&save).unwrap();
    let killed = scene.at_every_call("restore", &[], |scene, _, call| {
        let found = scene.target();
        assert!(matches!(found.as_deref(), Some(OLD | GOOD)), "{call}: the file holds {found:?}");
        let seen = scene.what_lies_where();
        if !left.contains_key(&seen) {
            let copy = save.join(left.len().to_string());
            copy_tree(&scene.root, &copy);
            left.insert(seen, copy);
        }
        assert_recovered(scene, call);
    });
    println!("  restore: killed at {killed} calls, which left {} different states", left.len());
    for (seen, copy) in &left {
        scene.template = copy.clone();
        let killed = scene.at_every_call("recover", &[], |scene, _, call| {
            let found = scene.target();
            assert!(matches!(found.as_deref(), Some(OLD | GOOD)), "{call}: the file holds {found:?}");
            assert_recovered(scene, call);
        });
        println!("  recover from {seen:?}: killed at {killed} calls");
    }
    fs::remove_dir_all(save).unwrap();
}

fn restore_of_a_missing_file_survives_every_crash(scene: &mut Scene) {
    scene.reset(|scene| {
        drifted(scene);
        fs::remove_file(scene.path()).unwrap();
    });
    let killed = scene.at_every_call("restore", &[], |scene, _, call| {
        let found = scene.target();
        assert!(matches!(found.as_deref(), None | Some(GOOD)), "{call}: the file holds {found:?}");
        let (state, store) = scene.open();
        let said = recover(&store, &state.quarantine(), &[scene.path()]);
        assert_eq!(scene.left_overs(), Vec::<String>::new(), "{call}: {said:?}");
        assert_eq!(scene.target(), found, "{call}: recover changed the file");
        repair(scene, &state, &store, call);
    });
    println!("  restore of a missing file: killed at {killed} calls");
}

fn restore_without_exchange_survives_every_crash(scene: &mut Scene) {
    scene.reset(drifted);
    // Neither RENAME_EXCHANGE nor RENAME_NOREPLACE, as on NFS.
    let inject = ["-e", "inject=renameat2:error=EINVAL"];
    let said = scene.run("restore", &inject).0;
    assert!(said.contains("Ok(Restored") && said.contains("cannot exchange names"), "{said}");
    assert_eq!(scene.target().as_deref(), Some(GOOD));
    assert_recovered(scene, "after a whole run");
    let killed = scene.at_every_call("restore", &inject, |scene, _, call| {
        let found = scene.target();
        assert!(matches!(found.as_deref(), Some(OLD | GOOD)), "{call}: the file holds {found:?}");
        assert_recovered(scene, call);
    });
    println!("  restore without exchange: killed at {killed} calls");
}

fn a_failed_sync_is_never_called_done(scene: &mut Scene) {
    let fail = |call: &str, n: usize| format!("inject={call}:error=EIO:when={n}");
    scene.reset(drifted);
    let span = scene.span("restore", &[]);
    let (before, after) = span["fsync"];
    assert!(after - before >= 2, "a restore syncs the copy and the folder: {span:?}");
    for n in before + 1..=after {
        scene.restage();
        let (said, _) = scene.run("restore", &["-e", &fail("fsync", n)]);
        let outcome = if n == before + 1 {
            assert_eq!(scene.target().as_deref(), Some(OLD), "{said}");
            assert!(said.contains("Err(") && said.contains("sync the copy"), "{said}");
            "refused"
        } else if n == before + 2 {
            assert_eq!(scene.target().as_deref(), Some(GOOD), "{said}");
            assert!(said.contains("Err(NotDurable"), "{said}");
            "said to be not durable"
        } else {
            assert!(said.contains("the quarantine cannot be synced"), "{said}");
            "done, with a note"
        };
        println!("  restore, sync {} of {} fails: {outcome}", n - before, after - before);
        assert_eq!(scene.left_overs(), Vec::<String>::new(), "{said}");
        assert_recovered(scene, &said);
    }

    scene.reset(|scene| {
        scene.write(GOOD);
        scene.take();
        scene.write(NEXT);
    });
    let span = scene.span("take", &[]);
    let synced = scene.synced_between_marks("take");
    let mut failed = 0;
    for call in ["fsync", "fdatasync"] {
        let Some(&(before, after)) = span.get(call) else { continue };
        for n in before + 1..=after {
            // SQLite syncs the folder for its log and takes no notice when that fails: `StateDir` did it before.
            if call == "fsync" && synced[n - before - 1].ends_with("/state") {
                continue;
            }
            scene.restage();
            let (said, _) = scene.run("take", &["-e", &fail(call, n)]);
            assert!(said.contains("refused"), "take called done although {call} {n} failed: {said}");
            let (_state, store) = scene.open();
            check_objects(&store, call);
            store.take(&scene.path(), Take::default()).unwrap();
            failed += 1;
        }
    }
    assert!(failed >= 3, "a take syncs the object, its folder and the database: {span:?}");
    println!("  take: refused with each of {failed} syncs failing");
}

fn a_full_a_read_only_and_another_file_system(scene: &mut Scene) {
    scene.reset(|_| {});
    scene.restage();
    let etc = scene.root.join("etc");
    let mount = |options: &str| {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "grace-crash"])
            .arg(&etc)
            .status()
            .unwrap()
            .success()
    };
    if !mount("size=256k") {
        println!("  SKIPPED: cannot mount a tmpfs");
        return;
    }
    let mounted = Mounted(etc.clone());
    let large = vec![b'g'; 100 * 1024];
    scene.write(&large);
    let (state, store) = scene.open();
    let known = store.take(&scene.path(), Take::default()).unwrap().snapshot.known;
    let attempt = || {
        let judged = look(&scene.path(), Some(&known)).id();
        restore(&store, &state.quarantine(), &scene.path(), &known, judged, "f-1", || ())
    };

    scene.write(OLD);
    fs::write(etc.join("filler"), vec![0; 200 * 1024]).unwrap();
    let err = attempt().unwrap_err();
    println!("  full: {err}");
    assert!(matches!(&err, RestoreError::Write { .. }) && err.to_string().contains("full"), "{err:?}");
    assert_eq!(scene.target().as_deref(), Some(OLD));
    assert_eq!(scene.left_overs(), Vec::<String>::new());
    fs::remove_file(etc.join("filler")).unwrap();

    assert!(mount("remount,ro,size=256k"));
    let err = attempt().unwrap_err();
    println!("  read-only: {err}");
    assert!(err.to_string().contains("read-only"), "{err:?}");
    assert!(mount("remount,rw,size=256k"));

    // The quarantine lies on another file system: files and links are copied, a folder stays beside.
    fs::write(scene.path(), OLD).unwrap();
    let done = attempt().unwrap();
    let kept = done.quarantined.unwrap();
    assert!(kept.starts_with(state.quarantine()) && done.displaced_digest.is_some());
    assert_eq!(fs::read(kept).unwrap(), OLD);
    fs::remove_file(scene.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", scene.path()).unwrap();
    let kept = attempt().unwrap().quarantined.unwrap();
    assert_eq!(fs::read_link(kept).unwrap(), Path::new("/etc/passwd"));
    fs::remove_file(scene.path()).unwrap();
    fs::create_dir(scene.path()).unwrap();
    let done = attempt().unwrap();
    println!("  another file system: {}", done.note.unwrap());
    let kept = done.quarantined.unwrap();
    assert!(kept.is_dir() && kept.starts_with(&etc));
    assert_eq!(scene.target(), Some(large));
    assert_eq!(scene.left_overs(), Vec::<String>::new());
    drop(mounted);
}

/// Known-good content in the store, other content in the file.
fn drifted(scene: &mut Scene) {
    scene.write(GOOD);
    scene.take();
    scene.write(OLD);
}

/// The next start clears up, loses nothing, and can repair.
fn assert_recovered(scene: &Scene, call: &str) {
    let (state, store) = scene.open();
    check_objects(&store, call);
    let found = scene.target();
    let said = recover(&store, &state.quarantine(), &[scene.path()]);
    assert_eq!(scene.left_overs(), Vec::<String>::new(), "{call}: {said:?}");
    assert_eq!(scene.target(), found, "{call}: recover changed the file");
    let kept: Vec<_> = files_below(&state.quarantine()).iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(
        found.as_deref() == Some(OLD) || kept.iter().any(|content| content == OLD),
        "{call}: the displaced content is lost: {said:?}"
    );
    repair(scene, &state, &store, call);
}

fn repair(scene: &Scene, state: &StateDir, store: &Store, call: &str) {
    let known = store.current_of(&scene.path()).unwrap().unwrap().known;
    let seen = look(&scene.path(), Some(&known));
    if !known.drift(&seen).is_empty() {
        restore(store, &state.quarantine(), &scene.path(), &known, seen.id(), "f-2", || ()).unwrap();
    }
    let drift = known.drift(&look(&scene.path(), Some(&known)));
    assert!(drift.is_empty(), "{call}: {drift:?}");
}

fn check_objects(store: &Store, call: &str) {
    for snapshot in store.all().unwrap() {
        if let Err(err) = store.check_object(&snapshot.known.digest) {
            panic!("{call}: {err}");
        }
    }
}

fn content(store: &Store, digest: &grace_agent::file_state::Digest) -> Vec<u8> {
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut store.read(digest).unwrap(), &mut out).unwrap();
    out
}

fn incoming(objects: &Path) -> usize {
    files_below(objects).iter().filter(|path| path.to_string_lossy().contains("incoming-")).count()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(files_below(&path)) } else { out.push(path) }
    }
    out
}

/// A scratch folder in memory with a state folder and `etc/app.conf`, put back to the same state before every run.
struct Scene {
    root: PathBuf,
    template: PathBuf,
    _dir: tempfile::TempDir,
}

/// By name of a call: how many there were up to the operation's start, and up to its end.
type Span = BTreeMap<String, (usize, usize)>;

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let top = dir.path().canonicalize().unwrap();
        Self { root: top.join("work"), template: top.join("template"), _dir: dir }
    }

    fn path(&self) -> PathBuf {
        self.root.join("etc/app.conf")
    }

    fn write(&self, content: &[u8]) {
        fs::write(self.path(), content).unwrap();
    }

    fn open(&self) -> (StateDir, Store) {
        let state = StateDir::open(&self.root.join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        (state, store)
    }

    fn take(&self) {
        self.open().1.take(&self.path(), Take::default()).unwrap();
    }

    fn target(&self) -> Option<Vec<u8>> {
        fs::read(self.path()).ok()
    }

    fn left_overs(&self) -> Vec<String> {
        let names = fs::read_dir(self.root.join("etc")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".grace-restore-")).collect()
    }

    /// Contents in the target's folder and in the quarantine, with random parts of names taken off.
    fn what_lies_where(&self) -> BTreeSet<(String, String)> {
        let mut out = BTreeSet::new();
        for folder in ["etc", "state/quarantine"] {
            for path in files_below(&self.root.join(folder)) {
                let name = path.strip_prefix(&self.root).unwrap().to_string_lossy().into_owned();
                let name = name.split(".grace-restore").next().unwrap().to_owned();
                let what = match fs::read(&path).unwrap() {
                    content if content == OLD => "old",
                    content if content == GOOD => "good",
                    content if content.is_empty() => "empty",
                    _ => "torn",
                };
                out.insert((name, what.to_owned()));
            }
        }
        out
    }

    /// Builds the state that every run of this test begins with.
    fn reset(&mut self, build: impl FnOnce(&mut Self)) {
        fs::remove_dir_all(&self.root).ok();
        fs::remove_dir_all(&self.template).ok();
        fs::create_dir_all(self.root.join("etc")).unwrap();
        build(self);
        copy_tree(&self.root, &self.template);
    }

    fn restage(&self) {
        fs::remove_dir_all(&self.root).ok();
        copy_tree(&self.template, &self.root);
    }

    /// Kills `operation` before every call it makes, and lets `check` look at what is left. Says how many calls.
    fn at_every_call(
        &self,
        operation: &str,
        inject: &[&str],
        mut check: impl FnMut(&Self, &str, &str),
    ) -> usize {
        let span = self.span(operation, inject);
        let mut killed = 0;
        for (call, (before, after)) in span {
            for n in before + 1..=after {
                self.restage();
                // A second injection into the same call would replace the first; the kill then falls on its neighbours.
                if inject.iter().any(|arg| arg.starts_with(&format!("inject={call}:"))) {
                    continue;
                }
                let kill = format!("inject={call}:signal=KILL:when={n}");
                let mut args = inject.to_vec();
                args.extend(["-e", &kill]);
                let (said, signal) = self.run(operation, &args);
                // Threads wait for each other now once, now twice.
                assert!(signal == Some(9) || call == "futex", "{kill} of {operation} did not happen: {said}");
                killed += 1;
                check(self, &said, &format!("{operation} killed before {call} number {}", n - before));
            }
        }
        assert!(killed > 5, "{operation}: only {killed} points");
        killed
    }

    /// Which calls `operation` makes between its two marks.
    fn span(&self, operation: &str, inject: &[&str]) -> Span {
        self.restage();
        let trace = self.root.with_extension("trace");
        let mut args = vec!["-o", trace.to_str().unwrap()];
        args.extend(inject);
        self.run(operation, &args);
        // strace counts by thread, and with -f begins each line with the thread's number.
        let (mut threads, mut marks) = (BTreeMap::<(String, String), (usize, usize)>::new(), 0);
        for line in fs::read_to_string(trace).unwrap().lines() {
            let number = line.bytes().take_while(u8::is_ascii_digit).count();
            let (thread, line) = line.split_at(number);
            let Some((call, _)) = line.trim_start().split_once('(') else { continue };
            if line.contains(MARK) {
                marks += 1;
            }
            if !call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                continue;
            }
            let (before, after) = threads.entry((thread.to_owned(), call.to_owned())).or_default();
            if marks == 0 {
                *before += 1;
            }
            if marks < 2 {
                *after += 1;
            }
        }
        let mut span = Span::new();
        for ((_, call), (before, after)) in threads.into_iter().filter(|(_, (before, after))| before < after)
        {
            let whole = span.entry(call).or_insert((before, after));
            *whole = (whole.0.min(before), whole.1.max(after));
        }
        assert_eq!(marks, 2, "the trace of {operation} has no marks");
        span
    }

    /// What `operation` syncs with fsync between its two marks, in order.
    fn synced_between_marks(&self, operation: &str) -> Vec<String> {
        self.restage();
        let trace = self.root.with_extension("trace");
        self.run(operation, &["-y", "-o", trace.to_str().unwrap()]);
        let trace = fs::read_to_string(trace).unwrap();
        let between = trace.split(MARK).nth(1).unwrap();
        let synced = between.lines().filter_map(|line| line.strip_prefix("fsync(")?.split(['<', '>']).nth(1));
        synced.map(str::to_owned).collect()
    }

    /// Runs `operation` in a child under strace: what it said, and the signal that ended it.
    fn run(&self, operation: &str, args: &[&str]) -> (String, Option<i32>) {
        let mut strace = Command::new("strace");
        strace.arg("-qq");
        if !args.contains(&"-o") {
            strace.args(["-o", "/dev/null"]);
        }
        let out = strace
            .args(args)
            .arg(std::env::current_exe().unwrap())
            .env("GRACE_CRASH_CHILD", operation)
            .env("GRACE_CRASH_ROOT", &self.root)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (said, out.status.signal().or(out.status.code().filter(|c| *c > 128).map(|c| c - 128)))
    }
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// With times, owners and modes.
fn copy_tree(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Looked up before and after the operation, so that the trace shows where it is. Never there.
const MARK: &str = "/grace-crash-mark";
