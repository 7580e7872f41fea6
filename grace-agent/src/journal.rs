//! The durable memory: firings, decisions and outcomes, in SQLite with WAL and synchronous=FULL.
//!
//! One thread owns the writing connection. What waits is committed together: one fsync for many records under load.
//! An order is carried out only after the commit that holds its decision, so after a crash the journal always names
//! what was under way.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::action::Outcome;
use crate::api::control::FiringsQuery;
use crate::api::view::{FiringView, JournalView};
use crate::clock;
use crate::event::Timestamp;
use crate::firing::{Firing, FiringId, Route, Scope, Subject};
use crate::prompt::prompt;

/// Rows of the journal that are kept; the oldest go first, at start.
const KEPT: u64 = 200_000;

/// Jobs taken into one commit at most.
const BATCH: usize = 1024;

/// A commit that takes longer is said to hang.
const HANGS: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_ns INTEGER NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    firing INTEGER,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_firing ON journal (firing) WHERE firing IS NOT NULL;
CREATE TABLE IF NOT EXISTS firings (
    id INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    trigger TEXT NOT NULL,
    state TEXT NOT NULL,
    view TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS firings_at ON firings (at_ns);
CREATE TABLE IF NOT EXISTS pauses (
    scope TEXT PRIMARY KEY,
    until_ns INTEGER NOT NULL,
    why TEXT NOT NULL,
    by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS learned (
    trigger TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    state TEXT NOT NULL
);
";

/// A pause as it is kept: over restarts and reboots, so its end is wall time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Of what.
    pub scope: Scope,
    /// Its end, in nanoseconds since the epoch.
    pub until_ns: i64,
    /// Why, in the words of whoever asked.
    pub why: String,
    /// Who asked.
    pub by: String,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database refused.
    #[error("the journal cannot {what}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The thread could not be started.
    #[error("the journal's thread cannot start")]
    Thread(#[source] std::io::Error),
}

/// Something to remember.
#[derive(Debug, Clone)]
pub enum Record {
    /// A firing is new or has changed.
    Firing(Box<Firing>),
    /// An action was admitted, or held and why.
    Decision {
        /// When.
        at: Timestamp,
        /// The firing, if there is one.
        firing: Option<FiringId>,
        /// What it is about.
        subject: Subject,
        /// The verb.
        action: &'static str,
        /// Admitted, or why not.
        admitted: Result<(), String>,
    },
    /// What became of an order.
    Outcome {
        /// When.
        at: Timestamp,
        /// What.
        outcome: Outcome,
    },
    /// What a person asked for, or the agent did by itself, in words.
    Note {
        /// `command`, `start`, `stop`, `recovery`, `config`.
        kind: &'static str,
        /// One line.
        text: String,
    },
    /// What a trigger has learned, in the place of what it had.
    Learned {
        /// Its name.
        trigger: &'static str,
        /// JSON.
        state: String,
    },
}

type Then = Box<dyn FnOnce(Result<(), String>) + Send>;

struct Job {
    records: Vec<Record>,
    then: Option<Then>,
}

/// The journal.
pub struct Journal {
    jobs: Mutex<Option<Sender<Job>>>,
    reader: Mutex<Connection>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Why the last commit failed; none after one that worked.
    trouble: Arc<Mutex<Option<String>>>,
    /// When the commit began that is under way.
    began: Arc<Mutex<Option<Timestamp>>>,
}

impl Journal {
    /// Opens it on two connections to the same database, and starts its thread. `changed` hears of every firing
    /// once it is durable.
    pub fn open(
        mut writer: Connection,
        reader: Connection,
        changed: impl Fn(FiringView) + Send + 'static,
    ) -> Result<Self, JournalError> {
        let fail = |what| move |source| JournalError::Database { what, source };
        writer.execute_batch(SCHEMA).map_err(fail("make its tables"))?;
        writer
            .execute(
                "DELETE FROM journal WHERE seq <= (SELECT COALESCE(MAX(seq), 0) FROM journal) - ?1",
                [KEPT],
            )
            .map_err(fail("drop its oldest records"))?;
        let (jobs, received) = channel();
        let trouble = Arc::new(Mutex::new(None));
        let told = Arc::clone(&trouble);
        let began = Arc::new(Mutex::new(None));
        let begins = Arc::clone(&began);
        let thread = std::thread::Builder::new()
            .name("grace-journal".into())
            .spawn(move || {
                prompt();
                write(&mut writer, &received, &told, &begins, &changed);
            })
            .map_err(JournalError::Thread)?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            reader: Mutex::new(reader),
            thread: Mutex::new(Some(thread)),
            trouble,
            began,
        })
    }

    /// Remembers `records`; `then` is called when they are durable, or cannot be and why.
    pub fn append(&self, records: Vec<Record>, then: Option<Then>) {
        let job = Job { records, then };
        let refused = match &*lock(&self.jobs) {
            Some(jobs) => jobs.send(job).err().map(|err| err.0),
            None => Some(job),
        };
        // Only when the agent ends: nobody may be left waiting.
        if let Some(then) = refused.and_then(|job| job.then) {
            then(Err("the journal is closed".to_owned()));
        }
    }

    /// Remembers one line.
    pub fn note(&self, kind: &'static str, text: String) {
        self.append(vec![Record::Note { kind, text }], None);
    }

    /// Why the journal cannot be written now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let waits = lock(&self.began).map(|at| clock::boottime().since(at)).filter(|waits| *waits >= HANGS);
        let hangs = waits.map(|waits| {
            format!(
                "the disk has not answered for {} s; judging goes on, what is to be done waits for it",
                waits.as_secs()
            )
        });
        hangs.or_else(|| lock(&self.trouble).clone())
    }

    /// Writes what waits and ends the thread.
    pub fn close(&self) {
        drop(lock(&self.jobs).take());
        if let Some(thread) = lock(&self.thread).take() {
            // A panic in it was reported when it happened.
            drop(thread.join());
        }
    }

    /// The first number that is free for a firing.
    pub fn next_firing(&self) -> Result<u64, JournalError> {
        self.read("count its firings", |db| {
            db.query_row("SELECT COALESCE(MAX(id), 0) + 1 FROM firings", [], |row| row.get(0))
        })
    }

    /// Marks firings of earlier runs that still hold as cleared: whether they hold is found out anew.
    pub fn close_old(&self, before: u64) -> Result<usize, JournalError> {
        let open: Vec<(u64, String)> = self.read("list open firings", |db| {
            let mut query = db.prepare("SELECT id, view FROM firings WHERE state = 'holds' AND id < ?1")?;
            query.query_map([before], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })?;
        let now = clock::wall_rfc3339();
        for (id, view) in &open {
            let Ok(mut view) = serde_json::from_str::<FiringView>(view) else { continue };
            view.state = crate::firing::State::Cleared;
            view.cleared = Some(now.clone());
            view.cleared_by = Some("the agent started again and judges anew".into());
            let json = to_json(&view);
            self.read("close an old firing", |db| {
                db.execute("UPDATE firings SET state = 'cleared', view = ?2 WHERE id = ?1", params![id, json])
            })?;
        }
        Ok(open.len())
    }

    /// Orders that were admitted and of which no outcome is known, in words: the last agent ended in between. Whether
    /// what they were for still holds is judged anew.
    pub fn unfinished(&self) -> Result<Vec<String>, JournalError> {
        self.read("find orders without an outcome", |db| {
            let mut sql = db.prepare(
                "SELECT d.text FROM journal d
                 WHERE d.kind = 'decision' AND d.text LIKE '%: admitted' AND d.firing IS NOT NULL
                   AND d.seq > (SELECT COALESCE(MAX(seq), 0) FROM journal WHERE kind = 'start')
                   AND NOT EXISTS (SELECT 1 FROM journal o
                                   WHERE o.firing = d.firing AND o.kind = 'outcome' AND o.seq > d.seq)",
            )?;
            sql.query_map([], |row| row.get::<_, String>(0))?
                .map(|text| Ok(format!("was under way when the last agent ended: {}", text?)))
                .collect()
        })
    }

    /// Firings, oldest first.
    pub fn firings(&self, query: &FiringsQuery) -> Result<Vec<FiringView>, JournalError> {
        let since = query.since_s.map_or(i64::MIN, |s| {
            clock::wall_ns()
                .saturating_sub(i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1_000_000_000))
        });
        let limit = i64::try_from(query.limit.unwrap_or(1000)).unwrap_or(i64::MAX);
        let mut views: Vec<String> = self.read("list firings", |db| {
            let mut sql = db.prepare_cached(
                "SELECT view FROM firings WHERE at_ns >= ?1 AND (?2 IS NULL OR trigger = ?2)
                   AND (?4 IS NULL OR COALESCE(json_extract(view, '$.route'), 'self_healing') = ?4)
                 ORDER BY id DESC LIMIT ?3",
            )?;
            let route = query.route.map(Route::name);
            sql.query_map(params![since, query.trigger, limit, route], |row| row.get(0))?.collect()
        })?;
        views.reverse();
        Ok(views.iter().filter_map(|view| serde_json::from_str(view).ok()).collect())
    }

    /// One firing with its records.
    pub fn firing(&self, id: FiringId) -> Result<Option<(FiringView, Vec<JournalView>)>, JournalError> {
        let view: Option<String> = self.read("read a firing", |db| {
            db.query_row("SELECT view FROM firings WHERE id = ?1", [id.0], |row| row.get(0)).optional()
        })?;
        let Some(view) = view.and_then(|v| serde_json::from_str(&v).ok()) else { return Ok(None) };
        let records = self.read("read a firing's records", |db| {
            let mut sql = db.prepare_cached(
                "SELECT seq, at, kind, text FROM journal WHERE firing = ?1 ORDER BY seq LIMIT 1000",
            )?;
            sql.query_map([id.0], journal_view)?.collect()
        })?;
        Ok(Some((view, records)))
    }

    /// What triggers had learned, by name: JSON, as far as nobody damaged it.
    pub fn learned(&self) -> Result<Vec<(String, String)>, JournalError> {
        self.read("read what triggers learned", |db| {
            let mut sql = db.prepare("SELECT trigger, CAST(state AS BLOB) FROM learned ORDER BY trigger")?;
            sql.query_map([], |row| {
                let state: Vec<u8> = row.get(1)?;
                Ok((row.get(0)?, String::from_utf8_lossy(&state).into_owned()))
            })?
            .collect()
        })
    }

    /// The newest firing of a trigger about a subject, which is named as in the documents.
    pub fn newest(&self, trigger: &str, subject: &str) -> Result<Option<FiringView>, JournalError> {
        let view: Option<String> = self.read("find a firing", |db| {
            db.prepare_cached(
                "SELECT view FROM firings WHERE trigger = ?1 AND json_extract(view, '$.subject') = json(?2)
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row([trigger, subject], |row| row.get(0))
            .optional()
        })?;
        Ok(view.and_then(|view| serde_json::from_str(&view).ok()))
    }

    /// Keeps a pause; one of the same scope is replaced. Durable when it returns.
    pub fn keep_pause(&self, pause: &Pause) -> Result<(), JournalError> {
        self.read("keep a pause", |db| {
            db.execute(
                "INSERT OR REPLACE INTO pauses (scope, until_ns, why, by) VALUES (?1, ?2, ?3, ?4)",
                params![to_json(&pause.scope), pause.until_ns, pause.why, pause.by],
            )
        })?;
        Ok(())
    }

    /// Drops a pause. False: there was none.
    pub fn drop_pause(&self, scope: &Scope) -> Result<bool, JournalError> {
        let n = self
            .read("drop a pause", |db| db.execute("DELETE FROM pauses WHERE scope = ?1", [to_json(scope)]))?;
        Ok(n > 0)
    }

    /// The pauses that are not over at `now_ns` (wall time), the next to end first. Those that are over are dropped.
    pub fn pauses(&self, now_ns: i64) -> Result<Vec<Pause>, JournalError> {
        self.read("list pauses", |db| {
            db.execute("DELETE FROM pauses WHERE until_ns <= ?1", [now_ns])?;
            let mut sql = db.prepare("SELECT scope, until_ns, why, by FROM pauses ORDER BY until_ns")?;
            let rows = sql.query_map([], |row| {
                let scope: String = row.get(0)?;
                let (until_ns, why, by) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(serde_json::from_str(&scope).ok().map(|scope| Pause { scope, until_ns, why, by }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    fn read<T>(
        &self,
        what: &'static str,
        query: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        query(&mut lock(&self.reader)).map_err(|source| JournalError::Database { what, source })
    }
}

/// The thread: commits what waits, tells who waited.
fn write(
    db: &mut Connection,
    jobs: &Receiver<Job>,
    trouble: &Mutex<Option<String>>,
    began: &Mutex<Option<Timestamp>>,
    changed: &impl Fn(FiringView),
) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        *lock(began) = Some(clock::boottime());
        let result = commit(db, &batch).map_err(|err| err.to_string());
        *lock(began) = None;
        {
            let mut trouble = lock(trouble);
            if let Err(why) = &result
                && trouble.is_none()
            {
                tracing::error!(%why, "the journal cannot be written; repairs go on, unrecorded");
            }
            *trouble = result.as_ref().err().cloned();
        }
        for job in batch {
            // Orders first: the listeners can wait.
            if let Some(then) = job.then {
                then(result.clone());
            }
            for record in job.records {
                if let Record::Firing(firing) = record {
                    changed(FiringView::new(&firing, clock::rfc3339));
                }
            }
        }
    }
}

fn commit(db: &mut Connection, batch: &[Job]) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    {
        let mut journal = tx.prepare_cached(
            "INSERT INTO journal (boot_ns, at, kind, firing, text) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let mut firings = tx.prepare_cached(
            "INSERT INTO firings (id, at_ns, trigger, state, view) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, view = excluded.view",
        )?;
        let mut learned = tx.prepare_cached(
            "INSERT INTO learned (trigger, at, state) VALUES (?1, ?2, ?3)
             ON CONFLICT (trigger) DO UPDATE SET at = excluded.at, state = excluded.state",
        )?;
        let offset = clock::wall_ns().saturating_sub(i64::try_from(clock::boottime().0).unwrap_or(i64::MAX));
        for record in batch.iter().flat_map(|job| &job.records) {
            if let Record::Learned { trigger, state } = record {
                learned.execute(params![trigger, clock::wall_rfc3339(), state])?;
                continue;
            }
            let (at, kind, firing, text) = describe(record);
            journal.execute(params![
                i64::try_from(at.0).unwrap_or(i64::MAX),
                clock::rfc3339(at),
                kind,
                firing.map(|f| f.0),
                text
            ])?;
            if let Record::Firing(firing) = record {
                let view = FiringView::new(firing, clock::rfc3339);
                firings.execute(params![
                    firing.id.0,
                    i64::try_from(firing.at.0).unwrap_or(i64::MAX).saturating_add(offset),
                    firing.trigger,
                    match firing.state {
                        crate::firing::State::Holds => "holds",
                        crate::firing::State::Cleared => "cleared",
                        crate::firing::State::Happened => "happened",
                    },
                    to_json(&view)
                ])?;
            }
        }
    }
    tx.commit()
}

fn describe(record: &Record) -> (Timestamp, &'static str, Option<FiringId>, String) {
    match record {
        Record::Firing(firing) => match firing.cleared {
            Some(at) => (at, "cleared", Some(firing.id), firing.cleared_by.clone().unwrap_or_default()),
            None => (firing.at, "firing", Some(firing.id), format!("{}: {}", firing.subject, firing.summary)),
        },
        Record::Decision { at, firing, subject, action, admitted } => {
            let text = match admitted {
                Ok(()) => format!("{action} for {subject}: admitted"),
                Err(why) => format!("{action} for {subject}: held, {why}"),
            };
            (*at, "decision", *firing, text)
        }
        Record::Outcome { at, outcome } => {
            let text = match &outcome.result {
                Ok(done) => format!("{}: {done} ({} us)", outcome.action, outcome.took_us),
                Err(why) => format!("{} failed: {why} ({} us)", outcome.action, outcome.took_us),
            };
            (*at, "outcome", outcome.firing, text)
        }
        Record::Note { kind, text } => (clock::boottime(), kind, None, text.clone()),
        Record::Learned { trigger, .. } => (clock::boottime(), "learned", None, (*trigger).to_owned()),
    }
}

fn journal_view(row: &rusqlite::Row<'_>) -> rusqlite::Result<JournalView> {
    Ok(JournalView { seq: row.get(0)?, at: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    // Plain data with string keys only: serde_json has no way to fail on it.
    serde_json::to_string(value).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
