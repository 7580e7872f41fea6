//! The source of code: compares the critical files of each `[[repo]]` with its known-good commit.
//!
//! One thread looks at every repo each `poll`: at HEAD, the index and the times of the critical files. Only where one of
//! them changed the files are compared: HEAD, index and working tree. A file's content is read only where the index, or an
//! earlier look, does not tell from its times that it is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gix::ObjectId;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rustix::fs::Stat;
use similar::TextDiff;

use super::git::{FileKind, Git, GitError, Tracked, id_of};
use super::tests_for::likely_tests;
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::code_facts::{CodeAt, CodeChange, CodeHow};
use crate::config::Repo;
use crate::error_chain::chain;
use crate::event::{Event, Kind};
use crate::sha256;
use crate::sources::round::{Asked, Rounds};

/// Files that differ told by name.
const MAX_CHANGES: usize = 200;
/// Bytes of a file in the working tree that is compared by content.
const MAX_WORK: u64 = 64 << 20;
/// Bytes of a file whose difference is shown, lines of all differences, and characters of a line.
const MAX_DIFF_FILE: u64 = 1 << 20;
const MAX_DIFF_LINES: usize = 400;
const MAX_DIFF_LINE: usize = 200;
/// How long the difference of one file may be worked on.
const DIFF_PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a test file of which the imports are read.
const MAX_TEST: u64 = 64 << 10;

/// What a repo is measured by and what it was seen to be.
struct Watched {
    config: Repo,
    critical: GlobSet,
    good: Option<String>,
    /// What it looked like when it was last compared.
    looked: Option<u64>,
    /// Ids of files in the working tree, by path, with what they looked like.
    ids: BTreeMap<String, (Look, ObjectId)>,
    trouble: Option<String>,
    head: Option<String>,
}

/// What changes with a file's content, as far as one can tell without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Look {
    ino: u64,
    size: i64,
    mode: u32,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

#[expect(clippy::unnecessary_cast, reason = "the fields differ between architectures")]
fn look(stat: &Stat) -> Look {
    Look {
        ino: stat.st_ino as u64,
        size: stat.st_size as i64,
        mode: stat.st_mode as u32,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
    }
}

/// The watched repos.
#[derive(Clone)]
pub struct Repos {
    shared: Arc<Mutex<Shared>>,
    thread: std::thread::Thread,
}

struct Shared {
    stop: bool,
    rounds: Rounds,
    poll: Duration,
    repos: BTreeMap<PathBuf, Watched>,
}

/// What would be marked as known-good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The commit that is checked out.
    pub commit: String,
    /// Tracked files that are not what they are in it.
    pub dirty: Vec<String>,
}

impl Repos {
    /// Starts the thread. Nothing is looked at until [`Repos::set`].
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(events: SyncSender<Event>) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            stop: false,
            rounds: Rounds::default(),
            poll: Duration::from_secs(10),
            repos: BTreeMap::new(),
        }));
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("grace-repos".into())
            .spawn(move || keep_looking(&mine, &events))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// Watches these repos from now on, each with its known-good commit.
    pub fn set(&self, repos: Vec<(Repo, Option<String>)>, poll: Duration) {
        let mut shared = lock(&self.shared);
        shared.poll = poll;
        shared.repos = repos
            .into_iter()
            .map(|(config, good)| {
                let critical = globs(&config.critical);
                let path = config.path.clone();
                let watched = Watched {
                    config,
                    critical,
                    good,
                    looked: None,
                    ids: BTreeMap::new(),
                    trouble: None,
                    head: None,
                };
                (path, watched)
            })
            .collect();
        drop(shared);
        self.thread.unpark();
    }

    /// Measures `repo` by this commit from now on.
    pub fn set_good(&self, repo: &Path, good: &str) {
        if let Some(watched) = lock(&self.shared).repos.get_mut(repo) {
            watched.good = Some(good.to_owned());
            watched.looked = None;
        }
        self.thread.unpark();
    }

    /// The commit that was last seen checked out in the watched `repo`, and its known-good one.
    #[must_use]
    pub fn commits(&self, repo: &Path) -> Option<(Option<String>, Option<String>)> {
        lock(&self.shared).repos.get(repo).map(|watched| (watched.head.clone(), watched.good.clone()))
    }

    /// Asks for a whole look now.
    #[must_use]
    pub fn ask(&self) -> Asked {
        let asked = lock(&self.shared).rounds.ask();
        self.thread.unpark();
        asked
    }

    /// Ends the thread, when it next looks.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.thread.unpark();
    }

    /// How the source is.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let shared = lock(&self.shared);
        let wrong: Vec<String> = shared
            .repos
            .iter()
            .filter_map(|(path, w)| Some(format!("{}: {}", path.display(), w.trouble.as_ref()?)))
            .collect();
        let unmarked = shared.repos.values().filter(|w| w.good.is_none()).count();
        let state = match (shared.repos.is_empty(), wrong.is_empty()) {
            (true, _) => Health::Off,
            (false, true) => Health::Ok,
            (false, false) => Health::Degraded,
        };
        let detail = match (state, unmarked) {
            (Health::Off, _) => "no [[repo]] declared".to_owned(),
            (Health::Ok, 0) => format!("{} compared with their known-good commits", shared.repos.len()),
            (Health::Ok, n) => {
                format!("{n} of {} have no known-good commit: `grace good` marks one", shared.repos.len())
            }
            _ => wrong.join("; "),
        };
        SourceView { name: "repos".into(), state, detail }
    }
}

/// What would be marked as known-good in the repo at `path`.
///
/// # Errors
/// Where the repo cannot be read, in words.
pub fn head(path: &Path) -> Result<Head, String> {
    let read = || -> Result<Head, GitError> {
        let git = Git::open(path)?;
        let commit = git.head()?;
        let mut ids = BTreeMap::new();
        let mut state = State::new(&git, &mut ids);
        let changes = state.compare(commit, commit, &globs(&[]))?;
        Ok(Head { commit: commit.to_string(), dirty: changes.into_iter().map(|c| c.path).collect() })
    };
    read().map_err(|err| chain(&err))
}

fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    let all = ["**".to_owned()];
    for pattern in if patterns.is_empty() { &all[..] } else { patterns } {
        // The configuration was checked: what is no glob cannot stand there.
        if let Ok(glob) = GlobBuilder::new(pattern).literal_separator(true).build() {
            set.add(glob);
        }
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

/// The thread.
fn keep_looking(shared: &Mutex<Shared>, events: &SyncSender<Event>) {
    loop {
        let (paths, poll, rounds, begun) = {
            let shared = lock(shared);
            if shared.stop {
                return;
            }
            let paths: Vec<_> = shared.repos.keys().cloned().collect();
            (paths, shared.poll, shared.rounds.clone(), shared.rounds.begin())
        };
        for path in paths {
            turn(shared, &path, events);
        }
        rounds.end(begun);
        std::thread::park_timeout(poll);
    }
}

/// Looks at one repo, and says what differs where something changed since the last look.
fn turn(shared: &Mutex<Shared>, path: &Path, events: &SyncSender<Event>) {
    let Some((config, critical, good, looked, mut ids)) = lock(shared).repos.get_mut(path).map(|w| {
        (w.config.clone(), w.critical.clone(), w.good.clone(), w.looked, std::mem::take(&mut w.ids))
    }) else {
        return;
    };
    let result = examine(&config, &critical, good.as_deref(), looked, &mut ids);
    let mut shared = lock(shared);
    let Some(watched) = shared.repos.get_mut(path) else { return };
    watched.ids = ids;
    if watched.good != good {
        // Somebody marked another commit meanwhile: the next look is at that one.
        return;
    }
    match result {
        Ok(None) => watched.trouble = None,
        Ok(Some((now, head, seen))) => {
            watched.trouble = None;
            watched.looked = now;
            watched.head = Some(head);
            drop(shared);
            if let Some(kind) = seen {
                // Fails only when the engine has ended, with the agent.
                drop(events.send(Event { at: clock::boottime(), kind }));
            }
        }
        Err(err) => {
            watched.trouble = Some(chain(&err));
            watched.looked = None;
        }
    }
}

type Seen = (Option<u64>, String, Option<Kind>);

/// What the repo looks like now, the commit that is checked out and what differs; none where nothing changed since.
fn examine(
    config: &Repo,
    critical: &GlobSet,
    good: Option<&str>,
    looked: Option<u64>,
    ids: &mut BTreeMap<String, (Look, ObjectId)>,
) -> Result<Option<Seen>, GitError> {
    let git = Git::open(&config.path)?;
    let head = git.head()?;
    let Some(good) = good.and_then(|hex| ObjectId::from_hex(hex.as_bytes()).ok()) else {
        return Ok(Some((None, head.to_string(), None)));
    };
    let mut state = State::new(&git, ids);
    let index = git.index_files()?;
    let now = state.signature(head, good, critical, &index)?;
    if now.is_some() && looked == now {
        return Ok(None);
    }
    let changes = state.compare(good, head, critical)?;
    let seen = state.describe(config, good, head, changes, &index)?;
    Ok(Some((now, head.to_string(), Some(seen))))
}

/// A look at a repo.
struct State<'a> {
    git: &'a Git,
    ids: &'a mut BTreeMap<String, (Look, ObjectId)>,
    /// A file that was last changed before this moment cannot change again and keep its times: the clock of a file system
    /// ticks every few milliseconds only.
    settled: (i64, u64),
}

impl<'a> State<'a> {
    fn new(git: &'a Git, ids: &'a mut BTreeMap<String, (Look, ObjectId)>) -> Self {
        let before = clock::wall_ns().saturating_sub(1_000_000_000).max(0);
        // What the index says was true when it was written.
        let written = rustix::fs::stat(git.index_path()).map_or((0, 0), |stat| look(&stat).mtime);
        let written = written.0.saturating_mul(1_000_000_000).saturating_add(written.1.cast_signed());
        let settled = before.min(written.saturating_sub(50_000_000)).max(0).cast_unsigned();
        let settled = ((settled / 1_000_000_000).cast_signed(), settled % 1_000_000_000);
        Self { git, ids, settled }
    }

    /// Changes with everything that a comparison depends on; none where something changed a moment ago and may change
    /// again without a trace.
    fn signature(
        &self,
        head: ObjectId,
        good: ObjectId,
        critical: &GlobSet,
        index: &BTreeMap<String, Tracked>,
    ) -> Result<Option<u64>, GitError> {
        let now = clock::wall_ns() / 1_000_000_000;
        let mut fresh = false;
        let mut hasher = DefaultHasher::new();
        (head, good).hash(&mut hasher);
        for (path, tracked) in index.iter().filter(|(path, _)| critical.is_match(path)) {
            let stat = self.git.work_stat(path)?;
            let look = stat.as_ref().map(look);
            fresh |= look.is_some_and(|look| look.ctime.0 >= now - 1);
            (path, tracked.id, look).hash(&mut hasher);
        }
        Ok((!fresh).then(|| hasher.finish()))
    }

    /// The critical files that are not everywhere what they are in `good`, by path.
    fn compare(
        &mut self,
        good: ObjectId,
        head: ObjectId,
        critical: &GlobSet,
    ) -> Result<Vec<CodeChange>, GitError> {
        let wanted = self.git.commit_files(good)?;
        let committed = if head == good { wanted.clone() } else { self.git.commit_files(head)? };
        let index = self.git.index_files()?;
        let paths: BTreeSet<&String> = wanted
            .keys()
            .chain(committed.keys())
            .chain(index.keys())
            .filter(|p| critical.is_match(p))
            .collect();
        let mut out = Vec::new();
        for path in paths {
            let side = |files: &BTreeMap<String, Tracked>| files.get(path).map(|t| (t.kind, t.id));
            let (want, in_head, in_index) = (side(&wanted), side(&committed), side(&index));
            let known = index.get(path).or_else(|| wanted.get(path));
            let work = match known {
                Some(known) => self.work(path, known, want)?,
                None => None,
            };
            if want == in_head && want == in_index && want == work {
                continue;
            }
            let at = match (work == in_index, in_index == in_head) {
                (false, _) => CodeAt::Working,
                (true, false) => CodeAt::Staged,
                (true, true) => CodeAt::Committed,
            };
            let how = match (want, work) {
                (None, _) => CodeHow::Added,
                (Some(_), None) => CodeHow::Removed,
                (Some(_), Some(_)) => CodeHow::Modified,
            };
            out.push(CodeChange { path: path.clone(), how, at });
        }
        Ok(out)
    }

    /// Kind and id of what lies in the working tree. `known` is what the index says of it, `want` what it should be.
    fn work(
        &mut self,
        path: &str,
        known: &Tracked,
        want: Option<(FileKind, ObjectId)>,
    ) -> Result<Option<(FileKind, ObjectId)>, GitError> {
        let Some(stat) = self.git.work_stat(path)? else { return Ok(None) };
        let look = look(&stat);
        if known.stat.is_some_and(|index| unchanged(&index, &look, self.settled))
            && kind_of(&stat) == Some(known.kind)
        {
            return Ok(Some((known.kind, known.id)));
        }
        if let (Some((before, id)), Some(kind)) = (self.ids.get(path), kind_of(&stat))
            && *before == look
        {
            return Ok(Some((kind, *id)));
        }
        let Some((kind, content)) = self.git.work_content(path, MAX_WORK)? else {
            // A folder, a fifo, or more than is read: it is not the file that was committed.
            let other = id_of(format!("not a file: {look:?}").as_bytes(), known.id);
            return Ok(other.map(|id| (FileKind::Plain, id)));
        };
        let Some(mut id) = id_of(&content, known.id) else { return Ok(None) };
        // Git may have been told to check text out with other line ends, or a large file in place of a pointer to it.
        for same in [Some(known.id), want.map(|(_, id)| id)].into_iter().flatten() {
            if id != same && kind != FileKind::Link && self.checked_out_otherwise(&content, same)? {
                id = same;
            }
        }
        if look.ctime < self.settled {
            self.ids.insert(path.to_owned(), (look, id));
        }
        Ok(Some((kind, id)))
    }

    /// Whether `content` is what git makes of the file `id` when it checks it out.
    fn checked_out_otherwise(&self, content: &[u8], id: ObjectId) -> Result<bool, GitError> {
        if content.windows(2).any(|pair| pair == b"\r\n") {
            let text: Vec<u8> = without_carriage_returns(content);
            if id_of(&text, id) == Some(id) {
                return Ok(true);
            }
        }
        // A pointer of git-lfs is a few lines; nothing larger is read for this.
        if self.git.blob_size(id).is_none_or(|size| size > 1024) {
            return Ok(false);
        }
        let pointer = self.git.blob(id, 1024)?.unwrap_or_default();
        let pointer = String::from_utf8_lossy(&pointer);
        let digest = pointer
            .strip_prefix("version https://git-lfs.github.com/spec/v1\n")
            .and_then(|rest| rest.lines().find_map(|line| line.strip_prefix("oid sha256:")));
        Ok(digest.is_some_and(|digest| sha256::of_bytes(content).0 == digest))
    }

    /// The changes with the tests to run and the difference.
    fn describe(
        &self,
        config: &Repo,
        good: ObjectId,
        head: ObjectId,
        mut changes: Vec<CodeChange>,
        index: &BTreeMap<String, Tracked>,
    ) -> Result<Kind, GitError> {
        let names: Vec<String> = changes.iter().map(|c| c.path.clone()).collect();
        let read = |path: &str| {
            let content = self.git.work_content(path, MAX_TEST).ok().flatten()?.1;
            Some(String::from_utf8_lossy(&content).into_owned())
        };
        let tests = match names.is_empty() {
            true => Vec::new(),
            false => likely_tests(&names, index.keys().map(String::as_str), read),
        };
        let wanted = if names.is_empty() { BTreeMap::new() } else { self.git.commit_files(good)? };
        let mut diff = Vec::new();
        for path in &names {
            if diff.len() >= MAX_DIFF_LINES {
                diff.push("… more differences are not shown".to_owned());
                break;
            }
            self.diff(path, wanted.get(path), &mut diff);
        }
        let more = changes.len().saturating_sub(MAX_CHANGES) as u64;
        changes.truncate(MAX_CHANGES);
        Ok(Kind::CodeSeen {
            repo: config.path.clone(),
            good: good.to_string(),
            head: head.to_string(),
            changes,
            more,
            tests,
            diff,
        })
    }

    fn diff(&self, path: &str, wanted: Option<&Tracked>, out: &mut Vec<String>) {
        let old = match wanted {
            Some(tracked) => self.git.blob(tracked.id, MAX_DIFF_FILE),
            None => Ok(Some(Vec::new())),
        };
        // Missing and too large look the same here; the change itself says which it is.
        let new = self
            .git
            .work_content(path, MAX_DIFF_FILE)
            .map(|c| c.map(|(_, content)| content).unwrap_or_default());
        let (Ok(Some(old)), Ok(new)) = (old, new) else {
            out.push(format!("{path}: too large to be shown"));
            return;
        };
        let (Ok(old), Ok(new)) = (String::from_utf8(old), String::from_utf8(new)) else {
            out.push(format!("{path}: not text"));
            return;
        };
        if old.contains('\0') || new.contains('\0') {
            out.push(format!("{path}: not text"));
            return;
        }
        let diff = TextDiff::configure().timeout(DIFF_PATIENCE).diff_lines(&old, &new);
        let text = diff
            .unified_diff()
            .context_radius(3)
            .header(&format!("a/{path}"), &format!("b/{path}"))
            .to_string();
        let room = MAX_DIFF_LINES.saturating_sub(out.len());
        out.extend(text.lines().take(room).map(|line| line.chars().take(MAX_DIFF_LINE).collect::<String>()));
    }
}

/// Whether the index knows the file as it is now. Git's own times: seconds and nanoseconds of 32 bits.
fn unchanged(index: &gix::index::entry::Stat, now: &Look, settled: (i64, u64)) -> bool {
    let time = |t: &gix::index::entry::stat::Time| (i64::from(t.secs), u64::from(t.nsecs));
    let low = |n: u64| u32::try_from(n & u64::from(u32::MAX)).unwrap_or(0);
    // Without nanoseconds a second change within the same second would not show.
    time(&index.mtime) == now.mtime
        && time(&index.ctime) == now.ctime
        && now.ctime < settled
        && index.mtime.nsecs != 0
        && index.ino == low(now.ino)
        && i64::from(index.size) == now.size
}

fn kind_of(stat: &Stat) -> Option<FileKind> {
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile if stat.st_mode & 0o100 != 0 => Some(FileKind::Executable),
        rustix::fs::FileType::RegularFile => Some(FileKind::Plain),
        rustix::fs::FileType::Symlink => Some(FileKind::Link),
        _ => None,
    }
}

fn without_carriage_returns(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for (i, byte) in content.iter().enumerate() {
        if *byte != b'\r' || content.get(i + 1) != Some(&b'\n') {
            out.push(*byte);
        }
    }
    out
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
