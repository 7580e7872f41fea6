//! Parsing in a process of its own, so that a parser which crashes, hangs or takes all memory costs one file.
//!
//! The parent writes names of files, the child reads them and answers in the same order. Whatever the child was at when
//! it died or went silent is the file that did it; the rest goes to a new child.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, Stat, fstat, open};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::check::{Checked, Skip, check};
use super::language::{self, Language};
use super::{MAX_FILE, scan::ScanError};
use crate::clock::Stopwatch;
use crate::confine;

/// The hidden subcommand that is the child.
pub const COMMAND: &str = "syntax-worker";

/// A child that says nothing for this long is ended. Its parsers give up by themselves long before.
const SILENCE: Duration = Duration::from_secs(10);

/// Requests on their way at the same time: few enough bytes for a pipe to take them all, so that neither side waits for
/// the other to read.
const BATCH: usize = 32;
const BATCH_BYTES: usize = 16 << 10;

/// What a child may map, in bytes: a tree takes some hundred times its text at worst.
const MEMORY: u64 = 2 << 30;

/// The stack on which it parses. Some of the parsers descend as deep as brackets are nested.
const STACK: usize = 64 << 20;

/// What tells a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
}

impl Key {
    fn of(stat: &Stat) -> Self {
        let nanos =
            |s: i64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add(i64::try_from(ns).unwrap_or(0));
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A file to be judged.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) path: PathBuf,
    /// None: its first line tells.
    pub(super) language: Option<Language>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) path: PathBuf,
    pub(super) told: Told,
}

/// What a child says of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    /// None: it was not read, or changed meanwhile, so that this is not to be remembered.
    pub(super) key: Option<Key>,
    /// [`Language`] by number; 0: none.
    pub(super) language: u8,
    pub(super) checked: Checked,
}

impl Told {
    fn skipped(language: Option<Language>, key: Option<Key>, why: Skip) -> Self {
        Self { key, language: language.map_or(0, |l| l as u8), checked: Checked::Skipped(why) }
    }
}

/// The child: judges what stdin names until it ends.
///
/// # Errors
/// Where stdin or stdout break, or say what no parent says.
pub fn serve() -> io::Result<()> {
    let limit = |resource, bytes| {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        // Fails only where a lower limit is in force already.
        setrlimit(resource, limit).unwrap_or_default();
    };
    limit(Resource::As, MEMORY);
    limit(Resource::Core, 0);
    // Whoever wrote the files may find a way into a parser; there shall be nothing to find behind it.
    confine::parser().map_err(io::Error::other)?;
    let parsing = std::thread::Builder::new().stack_size(STACK).spawn(answer_all)?;
    parsing.join().unwrap_or_else(|_| Err(io::Error::other("a parser panicked")))
}

fn answer_all() -> io::Result<()> {
    let mut input = io::stdin().lock();
    // The descriptor itself: the command line holds the lock on stdout, in another thread.
    let mut output = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut bytes = Vec::new();
    loop {
        let mut head = [0; 3];
        match input.read_exact(&mut head) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let [language, low, high] = head;
        let mut name = vec![0; usize::from(u16::from_le_bytes([low, high]))];
        input.read_exact(&mut name)?;
        let told = judge(Path::new(OsStr::from_bytes(&name)), Language::from_number(language), &mut bytes);
        let text = serde_json::to_vec(&told)?;
        output.write_all(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        output.write_all(&text)?;
        output.flush()?;
    }
}

/// Reads one file and judges it. A parser that panics ends the judgement of this file only.
pub(super) fn judge(path: &Path, language: Option<Language>, bytes: &mut Vec<u8>) -> Told {
    let unreadable = || Told::skipped(language, None, Skip::Unreadable);
    // Neither through a link, nor waiting for a pipe's other end, nor moving the time of access where that may be had.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened =
        open(path, flags | OFlags::NOATIME, Mode::empty()).or_else(|_| open(path, flags, Mode::empty()));
    let Ok(file) = opened else { return unreadable() };
    let Ok(stat) = fstat(&file) else { return unreadable() };
    let key = Key::of(&stat);
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Told::skipped(None, None, Skip::NoSource);
    }
    if key.size > MAX_FILE {
        return Told::skipped(language, Some(key), Skip::TooLarge);
    }
    bytes.clear();
    let mut file = std::fs::File::from(file).take(MAX_FILE + 1);
    let language = match language {
        Some(language) => language,
        None => {
            // Most of the files without an ending are no scripts: two bytes tell.
            let mut head = [0; 2];
            let found = match file.read_exact(&mut head) {
                Ok(()) if head == *b"#!" => {
                    bytes.extend_from_slice(&head);
                    file.read_to_end(bytes).ok().and_then(|_| language::by_first_line(bytes))
                }
                _ => None,
            };
            let Some(language) = found else { return Told::skipped(None, Some(key), Skip::NoSource) };
            language
        }
    };
    if file.read_to_end(bytes).is_err() {
        return unreadable();
    }
    let still = fstat(file.get_ref()).is_ok_and(|after| Key::of(&after) == key);
    if !still || bytes.len() as u64 != key.size {
        return Told::skipped(Some(language), None, Skip::Changing);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Unwind safe: what a panic leaves half done is this thread's parsers, which begin each file anew.
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(language, &name, bytes)))
        .unwrap_or(Checked::Skipped(Skip::Crashed));
    Told { key: Some(key), language: language as u8, checked }
}

/// A running child.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "this very program, to parse what could crash it")]
    fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let ends = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = ends else { return Err(io::Error::other("no pipes to a worker")) };
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, jobs: &[Job]) -> io::Result<()> {
        let mut request = Vec::new();
        for job in jobs {
            let name = job.path.as_os_str().as_bytes();
            let length = u16::try_from(name.len()).map_err(io::Error::other)?;
            request.push(job.language.map_or(0, |l| l as u8));
            request.extend_from_slice(&length.to_le_bytes());
            request.extend_from_slice(name);
        }
        self.input.write_all(&request)
    }

    /// The next answer.
    fn hear(&mut self) -> io::Result<Told> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > 1 << 20 {
            return Err(io::Error::other("a worker says too much"));
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// Reads exactly so much, or fails where nothing comes for too long.
    fn fill(&mut self, mut to: &mut [u8]) -> io::Result<()> {
        let clock = Stopwatch::start();
        while !to.is_empty() {
            let left = SILENCE.saturating_sub(clock.elapsed());
            let timeout = rustix::time::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut [PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            match self.output.read(to)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => to = to.get_mut(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Gone already, or about to be: nothing it could still do is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Hands `jobs` to a child, as long as there are any; one of several threads that do.
pub(super) fn hand_out(
    program: &Path,
    jobs: &Mutex<Receiver<Job>>,
    answers: &Sender<Answer>,
    stop: &AtomicBool,
) -> Result<(), ScanError> {
    let mut worker: Option<Worker> = None;
    let mut batch: Vec<Job> = Vec::new();
    // Children that died before their first answer: one that never works must not be started for every file.
    let mut stillborn = 0;
    loop {
        if batch.is_empty() {
            let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(first) = jobs.recv() else { return Ok(()) };
            let mut size = first.path.as_os_str().len();
            batch.push(first);
            while batch.len() < BATCH
                && size < BATCH_BYTES
                && let Ok(next) = jobs.try_recv()
            {
                size += next.path.as_os_str().len();
                batch.push(next);
            }
        }
        if stop.load(Ordering::Acquire) {
            batch.clear();
            continue;
        }
        let working = match &mut worker {
            Some(working) => working,
            None => worker.insert(Worker::start(program).map_err(ScanError::Worker)?),
        };
        let mut done = 0;
        let asked = working.ask(&batch);
        let failed = match asked {
            Err(err) => Some(err),
            Ok(()) => loop {
                if done == batch.len() {
                    break None;
                }
                match working.hear() {
                    Ok(told) => {
                        let Some(job) = batch.get_mut(done) else { break None };
                        done += 1;
                        // Nobody listens any more: the scan was given up.
                        drop(answers.send(Answer { path: std::mem::take(&mut job.path), told }));
                    }
                    Err(err) => break Some(err),
                }
            },
        };
        stillborn = if done > 0 { 0 } else { stillborn };
        batch.drain(..done);
        if let Some(err) = failed {
            drop(worker.take());
            stillborn += 1;
            if stillborn > 20 {
                return Err(ScanError::Worker(err));
            }
            if !batch.is_empty() {
                let job = batch.remove(0);
                let why = if err.kind() == io::ErrorKind::TimedOut { Skip::TooLong } else { Skip::Crashed };
                drop(answers.send(Answer { path: job.path, told: Told::skipped(job.language, None, why) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_program_that_never_answers_is_given_up() {
        let (send, jobs) = channel();
        for n in 0..100 {
            let path = PathBuf::from(format!("/nonexistent/{n}.py"));
            send.send(Job { path, language: Some(Language::Python) }).unwrap();
        }
        drop(send);
        let (answers, heard) = channel();
        let gone = hand_out(Path::new("/bin/true"), &Mutex::new(jobs), &answers, &AtomicBool::new(false));
        assert!(matches!(gone, Err(ScanError::Worker(_))), "{gone:?}");
        drop(answers);
        assert!(heard.iter().all(|a| a.told.checked == Checked::Skipped(Skip::Crashed)));
        let (send, jobs) = channel();
        drop(send);
        let (answers, _heard) = channel();
        let none = hand_out(Path::new("/nonexistent"), &Mutex::new(jobs), &answers, &AtomicBool::new(false));
        assert!(none.is_ok(), "nothing to do needs no program");
    }

    #[test]
    fn links_pipes_and_folders_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a.py"), "(").unwrap();
        std::os::unix::fs::symlink(path("a.py"), path("link.py")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe.py"), Mode::RWXU).unwrap();
        std::fs::create_dir(path("folder.py")).unwrap();
        let judged = |name: &str| judge(&path(name), Some(Language::Python), &mut Vec::new()).checked;
        assert!(matches!(judged("a.py"), Checked::Broken(_)));
        assert_eq!(judged("link.py"), Checked::Skipped(Skip::Unreadable));
        assert_eq!(judged("pipe.py"), Checked::Skipped(Skip::NoSource));
        assert_eq!(judged("folder.py"), Checked::Skipped(Skip::NoSource));
        assert_eq!(judged("none.py"), Checked::Skipped(Skip::Unreadable));
    }
}
