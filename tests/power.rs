//! Power cuts: what was acknowledged is there after one, wherever it comes.
//!
//! The file system under test lies on dm-log-writes, which logs every write in the order in which the disk completed it.
//! Snapshots are taken, files damaged and restored, the journal written; each begin and end is a mark in that log. Then the
//! log is played onto a copy of the empty file system, and after every flush, after every write that does without one, and
//! at every mark the power is cut: the file system is mounted as the disk would have it (on a throw-away dm-snapshot, since
//! mounting writes), and looked at.
//!
//! Only in a guest: it needs the kernel's block device in memory, and nobody's disks are near. No test harness: the file
//! systems share those devices.

#![expect(clippy::disallowed_methods, reason = "tests start programs")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on must say where")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::channel;

use grace_agent::actions::restore_file::{recover, restore};
use grace_agent::journal::{Journal, Record};
use grace_agent::snapshots::{Store, Take};
use grace_agent::sources::look::look;
use grace_agent::state_dir::StateDir;

/// KiB of each device in memory: mkfs.xfs refuses less than 300 MiB.
const SIZE: u64 = 320 << 10;
/// What is under test, its log, the disk after the cut, and what is written to that one while it is looked at.
const DISK: &str = "/dev/ram0";
const LOG: &str = "/dev/ram1";
const CUT: &str = "/dev/ram2";
const SCRATCH: &str = "/dev/ram3";
/// Where it is mounted.
const AT: &str = "/run/grace-power";
/// Versions that are taken, damaged and restored.
const ROUNDS: u32 = 2;

fn main() -> ExitCode {
    if std::env::var_os("GRACE_GUEST").is_none() {
        return skip("they are made in guests");
    }
    for (module, more) in [
        ("brd", vec!["rd_nr=4".to_owned(), format!("rd_size={SIZE}")]),
        ("dm-log-writes", vec![]),
        ("dm-snapshot", vec![]),
    ] {
        if !Command::new("modprobe").arg(module).args(more).status().is_ok_and(|s| s.success()) {
            return skip(&format!("this kernel has no {module}"));
        }
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-') && arg.parse::<u8>().is_err()).collect();
    let (mut passed, mut failed) = (0, 0);
    let kinds: [(&str, &[&str]); 3] = [
        ("ext4", &["mke2fs", "-q", "-F", "-t", "ext4"]),
        ("xfs", &["mkfs.xfs", "-q", "-f", "-i", "nrext64=0"]),
        ("btrfs", &["mkfs.btrfs", "-q", "-f", "-m", "single"]),
    ];
    for (kind, mkfs) in kinds {
        let name = format!("nothing_acknowledged_is_lost_in_a_power_cut_on_{kind}");
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        println!("test {name}");
        match std::panic::catch_unwind(|| cut_everywhere(kind, mkfs)) {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
        // What a failed one left.
        drop(Command::new("umount").arg("-q").arg(AT).status());
        for name in ["grace-cut", "grace-log"] {
            drop(Command::new("dmsetup").args(["remove", "--retry", name]).output());
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says that nothing of this could run, and why; `cargo xtask test` lists it as not run.
fn skip(why: &str) -> ExitCode {
    println!("SKIPPED power cuts: {why}");
    if let Some(list) = std::env::var_os("GRACE_TEST_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        writeln!(file, "power cuts: {why}").unwrap();
    }
    println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The content of a version: some blocks, each of which says which one it is.
fn version(n: u32) -> Vec<u8> {
    (0..700).flat_map(|line| format!("version {n}, line {line}\n").into_bytes()).collect()
}

fn damaged(n: u32) -> Vec<u8> {
    (0..900).flat_map(|line| format!("damage {n} in {line}\n").into_bytes()).collect()
}

fn cut_everywhere(kind: &str, mkfs: &[&str]) {
    fs::create_dir_all(AT).unwrap();
    let sectors = (SIZE * 2).to_string();
    wipe(LOG, 1 << 20);
    run(mkfs[0], &[&mkfs[1..], &[DISK]].concat());
    copy(DISK, CUT);
    run(
        "dmsetup",
        &["create", "--noudevsync", "grace-log", "--table", &format!("0 {sectors} log-writes {DISK} {LOG}")],
    );
    run("mount", &["-t", kind, "/dev/mapper/grace-log", AT]);
    work();
    run("umount", &[AT]);
    run("dmsetup", &["remove", "--retry", "grace-log"]);

    let log = Log::open(LOG);
    let disk = File::options().write(true).open(CUT).unwrap();
    let mut expected = Expected::default();
    let mut points = BTreeMap::new();
    let mut moved = false;
    for entry in log {
        match &entry.mark {
            Some(mark) => expected.after(mark),
            None => {
                moved |= entry.play(&disk);
                if !entry.is_durable_point() {
                    continue;
                }
            }
        }
        // Marks in a row show the same disk to other expectations: looked at, too.
        if moved || entry.mark.is_some() {
            disk.sync_all().unwrap();
            look_after_cut(kind, &sectors, &expected, &entry);
            *points.entry(entry.mark.map_or("flushes", |_| "marks")).or_insert(0) += 1;
            moved = false;
        }
    }
    println!("  {kind}: the power was cut at {points:?}; nothing acknowledged was lost, nothing torn");
    let (flushes, marks) = (points["flushes"], points["marks"]);
    assert!(flushes > 10 && marks >= ROUNDS * 7, "the log is too short: {points:?}");
    assert_eq!(expected.journaled, ROUNDS, "the log was not read to its end");
}

/// What is done while the log is kept; every acknowledgement is a mark.
fn work() {
    let path = file();
    fs::create_dir(Path::new(AT).join("etc")).unwrap();
    let state = StateDir::open(&Path::new(AT).join("state")).unwrap();
    let store = Store::open(&state).unwrap();
    let journal = Journal::open(state.db().unwrap(), state.db().unwrap(), drop).unwrap();
    for n in 1..=ROUNDS {
        mark("write", n);
        put(&path, &version(n));
        mark("written", n);
        let known = store.take(&path, Take::default()).unwrap().snapshot.known;
        mark("taken", n);
        put(&path, &damaged(n));
        mark("damaged", n);
        let judged = look(&path, Some(&known)).id();
        restore(&store, &state.quarantine(), &path, &known, judged, &format!("f-{n}"), || ()).unwrap();
        mark("restored", n);
        let (done, durable) = channel();
        let record = Record::Note { kind: "command", text: format!("power {n}") };
        journal.append(vec![record], Some(Box::new(move |result| done.send(result).unwrap())));
        durable.recv().unwrap().unwrap();
        mark("journaled", n);
        // Written by nobody who would wait for it: it may be lost, and nothing else with it.
        fs::write(Path::new(AT).join(format!("etc/other-{n}")), version(n)).unwrap();
        mark("end", n);
    }
    journal.close();
}

fn file() -> PathBuf {
    Path::new(AT).join("etc/app.conf")
}

/// Durable and at once, as an editor that cares does it.
fn put(path: &Path, content: &[u8]) {
    let part = path.with_extension("part");
    let mut new = File::create(&part).unwrap();
    new.write_all(content).unwrap();
    new.sync_all().unwrap();
    fs::rename(&part, path).unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

fn mark(what: &str, n: u32) {
    run("dmsetup", &["message", "grace-log", "0", "mark", &format!("{what}-{n}")]);
}

/// What must be there.
#[derive(Default)]
struct Expected {
    mark: String,
    /// What the file may hold; none: it may be missing as well.
    file: Vec<Vec<u8>>,
    may_miss: bool,
    /// Versions that may be the known-good one; 0: none.
    known: Vec<u32>,
    journaled: u32,
}

impl Expected {
    fn after(&mut self, mark: &str) {
        self.mark = mark.to_owned();
        // What the log itself writes when it ends is no number.
        let Some((what, Ok(n))) = mark.split_once('-').map(|(what, n)| (what, n.parse::<u32>())) else {
            return;
        };
        match what {
            "write" => {
                self.may_miss = n == 1;
                self.file = vec![version(n - 1), version(n)];
                self.known = vec![n - 1];
            }
            "written" => {
                self.may_miss = false;
                self.file = vec![version(n)];
                self.known = vec![n - 1, n];
            }
            // The damage begins.
            "taken" => {
                self.file = vec![version(n), damaged(n)];
                self.known = vec![n];
            }
            "damaged" => self.file = vec![damaged(n), version(n)],
            "restored" => self.file = vec![version(n)],
            "journaled" => self.journaled = n,
            _ => {}
        }
    }
}

/// Mounts the disk as the cut left it, and looks.
fn look_after_cut(kind: &str, sectors: &str, expected: &Expected, entry: &Entry) {
    let place = format!("{kind}, cut after entry {} (mark {:?})", entry.number, expected.mark);
    run(
        "dmsetup",
        &[
            "create",
            "--noudevsync",
            "grace-cut",
            "--table",
            &format!("0 {sectors} snapshot {CUT} {SCRATCH} N 8"),
        ],
    );
    let mounted = Command::new("mount").args(["-t", kind, "/dev/mapper/grace-cut", AT]).output().unwrap();
    assert!(mounted.status.success(), "{place}: {}", String::from_utf8_lossy(&mounted.stderr));
    {
        let path = file();
        let found = match fs::read(&path) {
            Ok(content) => Some(content),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => panic!("{place}: {err}"),
        };
        // Before the first mark nothing was promised.
        if !expected.mark.is_empty() {
            match &found {
                Some(content) => {
                    let start = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
                    assert!(
                        expected.file.contains(content),
                        "{place}: the file holds {} bytes: {start:?}",
                        content.len()
                    );
                }
                None => assert!(expected.may_miss, "{place}: the file is gone"),
            }
        }
        let state = StateDir::open(&Path::new(AT).join("state")).unwrap();
        assert_eq!(state.damaged(), None, "{place}");
        let store = Store::open(&state).unwrap();
        let current = store.current_of(&path).unwrap();
        for snapshot in store.all().unwrap() {
            store.check_object(&snapshot.known.digest).unwrap_or_else(|err| panic!("{place}: {err}"));
        }
        let rows: u32 = state
            .db()
            .unwrap()
            .query_row("SELECT count(*) FROM journal WHERE text LIKE 'power %'", [], |row| row.get(0))
            // Before the first record there may be no table.
            .unwrap_or_default();
        assert!(rows >= expected.journaled, "{place}: {rows} records of {}", expected.journaled);
        // What the next agent does: it clears up, and puts back what is known to be good.
        drop(recover(&store, &state.quarantine(), std::slice::from_ref(&path)));
        if let Some(current) = &current {
            let judged = look(&path, Some(&current.known)).id();
            restore(&store, &state.quarantine(), &path, &current.known, judged, "f-9", || ())
                .unwrap_or_else(|err| panic!("{place}: {err:?}"));
        }
        let now = current.map(|_| fs::read(&path).unwrap());
        let known = expected.known.iter().any(|n| now == (*n > 0).then(|| version(*n)));
        assert!(
            known || expected.mark.is_empty(),
            "{place}: the known-good state is none of {:?}",
            expected.known
        );
    }
    run("umount", &[AT]);
    run("dmsetup", &["remove", "--retry", "grace-cut"]);
}

/// The log of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst): a superblock, then entries, each
/// a sector of header and the data.
struct Log {
    device: File,
    sector_size: u64,
    left: u64,
    next: u64,
    number: u64,
}

struct Entry {
    number: u64,
    sector: u64,
    flags: u64,
    sector_size: u64,
    data: Vec<u8>,
    discards: u64,
    mark: Option<String>,
}

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

impl Log {
    fn open(path: &str) -> Self {
        let device = File::open(path).unwrap();
        let mut head = [0; 28];
        device.read_exact_at(&mut head, 0).unwrap();
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        assert_eq!((number(0), number(8)), (0x6a_7366_7773_6872, 1), "no log of dm-log-writes");
        let sector_size = u64::from(u32::from_le_bytes(head[24..28].try_into().unwrap()));
        Self { device, sector_size, left: number(16), next: sector_size, number: 0 }
    }
}

impl Iterator for Log {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        self.left = self.left.checked_sub(1)?;
        let mut block = vec![0; usize::try_from(self.sector_size).unwrap()];
        self.device.read_exact_at(&mut block, self.next).unwrap();
        let number = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        let (sector, count, flags, length) = (number(0), number(8), number(16), number(24));
        self.next += self.sector_size;
        let mut data = Vec::new();
        if flags & DISCARD == 0 {
            data = vec![0; usize::try_from(count * self.sector_size).unwrap()];
            self.device.read_exact_at(&mut data, self.next).unwrap();
            self.next += count * self.sector_size;
        }
        let name = &block[32..32 + usize::try_from(length).unwrap().min(block.len() - 32)];
        let mark =
            (flags & MARK != 0).then(|| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        let discards = if flags & DISCARD == 0 { 0 } else { count };
        self.number += 1;
        Some(Entry {
            number: self.number,
            sector,
            flags,
            sector_size: self.sector_size,
            data,
            discards,
            mark,
        })
    }
}

impl Entry {
    /// Everything up to here is on the disk.
    fn is_durable_point(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }

    /// Writes it; whether that changed anything.
    fn play(&self, disk: &File) -> bool {
        let zeros = vec![0; usize::try_from(self.discards * self.sector_size).unwrap()];
        let data = if self.discards > 0 { &zeros } else { &self.data };
        disk.write_all_at(data, self.sector * self.sector_size).unwrap();
        !data.is_empty()
    }
}

fn wipe(device: &str, bytes: usize) {
    File::options().write(true).open(device).unwrap().write_all_at(&vec![0; bytes], 0).unwrap();
}

/// Copies a device; what is zero in both stays without memory.
fn copy(from: &str, to: &str) {
    let (from, to) = (File::open(from).unwrap(), File::options().read(true).write(true).open(to).unwrap());
    let (mut new, mut old) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for at in (0..SIZE << 10).step_by(new.len()) {
        from.read_exact_at(&mut new, at).unwrap();
        to.read_exact_at(&mut old, at).unwrap();
        if new != old {
            to.write_all_at(&new, at).unwrap();
        }
    }
    to.sync_all().unwrap();
}
