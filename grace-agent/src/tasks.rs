//! The queue of tasks: what Grace cannot repair, for coding agents and people. In the state's SQLite database.
//!
//! `open → claimed → submitted → verified`, or `reopened` (claimed again like an open one), or `cancelled`. One claim at a
//! time, under a lease that ends by itself; whoever holds it has a token. "Complete" means *submitted*: Grace looks whether
//! the trigger stays clear, and only then it is verified. The same fault raises the count of its task and makes no second
//! one. Every change is a line of the task's history, in the same transaction.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};

use crate::api::view::{ClaimView, EvidenceView, FiringView, JournalView, TaskView};
use crate::clock;
use crate::config;
use crate::event::Timestamp;
use crate::firing::State;

/// Bytes of one attachment.
pub const MAX_TEXT: usize = 256 << 10;
/// Attachments of one task.
const MAX_ATTACHED: u64 = 32;
/// Characters of names, summaries and reasons.
const MAX_WORDS: usize = 2000;
/// Lines of history shown of one task, the newest.
const MAX_HISTORY: u64 = 200;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint TEXT NOT NULL UNIQUE,
    trigger TEXT NOT NULL,
    subject TEXT NOT NULL,
    title TEXT NOT NULL,
    acceptance TEXT NOT NULL,
    evidence TEXT NOT NULL,
    state TEXT NOT NULL,
    count INTEGER NOT NULL,
    filed_ns INTEGER NOT NULL,
    firing INTEGER,
    agent TEXT,
    token TEXT,
    lease_ns INTEGER,
    boot TEXT,
    submitted_ns INTEGER
);
CREATE INDEX IF NOT EXISTS queue_state ON queue (state, count DESC, id);
CREATE TABLE IF NOT EXISTS queue_history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    task INTEGER NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_history_task ON queue_history (task, seq);
CREATE TABLE IF NOT EXISTS queue_attached (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    task INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_attached_task ON queue_attached (task, seq);
";

const COLUMNS: &str = "id, fingerprint, count, title, trigger, state, agent, lease_ns, evidence, acceptance, token, boot, \
                       submitted_ns, subject, firing";

/// Why the queue did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The database refused.
    #[error("the queue of tasks cannot {what}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// There is no such task, or none to claim.
    #[error("{0}")]
    NotThere(String),
    /// The task is not in a state in which that can be done.
    #[error("t-{id} is {state}: {why}")]
    State {
        /// Its number.
        id: i64,
        /// Its state.
        state: String,
        /// What would have to be.
        why: &'static str,
    },
    /// Somebody else holds the claim, or nobody does.
    #[error("this token does not hold the claim of t-{0}: it was never given, or its lease is over")]
    Token(i64),
    /// More than is taken.
    #[error("{0}")]
    TooMuch(String),
}

/// What somebody wants to do with a task.
#[derive(Debug, Clone)]
pub enum Change {
    /// Whoever holds the claim still works on it.
    Heartbeat {
        /// The claim's.
        token: String,
        /// For how long from now; none: as configured.
        lease: Option<Duration>,
    },
    /// Whoever holds the claim adds what they found.
    Attach {
        /// The claim's.
        token: String,
        /// What it is.
        name: String,
        /// The content; hostile like all that others write.
        text: String,
    },
    /// Whoever holds the claim is done, as they think.
    Complete {
        /// The claim's.
        token: String,
        /// What was done.
        summary: String,
    },
    /// Whoever holds the claim gives it up.
    Release {
        /// The claim's.
        token: String,
        /// Why.
        why: String,
    },
    /// A person wants it to be worked on again.
    Reopen {
        /// Why.
        why: String,
    },
    /// A person says that nobody shall work on it.
    Cancel {
        /// Why.
        why: String,
    },
}

/// The queue.
pub struct Queue {
    db: Mutex<Connection>,
    boot_id: String,
    settings: Mutex<config::Tasks>,
}

/// A row.
struct Row {
    id: i64,
    view: TaskView,
    token: Option<String>,
    submitted_ns: Option<i64>,
    subject: String,
    firing: Option<u64>,
}

impl Queue {
    /// Opens it in the state's database.
    ///
    /// # Errors
    /// Where its tables cannot be made.
    pub fn open(db: Connection, boot_id: &str, settings: config::Tasks) -> Result<Self, QueueError> {
        db.execute_batch(SCHEMA)
            .map_err(|source| QueueError::Database { what: "make its tables", source })?;
        Ok(Self { db: Mutex::new(db), boot_id: boot_id.to_owned(), settings: Mutex::new(settings) })
    }

    /// Follows these settings from now on.
    pub fn set(&self, settings: config::Tasks) {
        *lock(&self.settings) = settings;
    }

    /// Files a task, or raises the count of the one that the same fault has. What was done, in words.
    ///
    /// # Errors
    /// Where the database refuses, or more tasks were filed today than the configuration allows.
    pub fn file(
        &self,
        firing: Option<&FiringView>,
        title: &str,
        acceptance: &str,
    ) -> Result<String, QueueError> {
        let trigger = firing.map_or("", |f| f.trigger.as_str());
        let subject = firing.map(|f| to_json(&f.subject)).unwrap_or_default();
        let fingerprint = hex(&Sha256::digest(format!("{trigger}\0{subject}\0{title}")));
        let evidence = to_json(&firing.map(evidence_of).unwrap_or_default());
        let number = firing.map(|f| f.id.0);
        let of = firing.map(|f| format!(" for {}", f.id)).unwrap_or_default();
        let per_day = lock(&self.settings).per_day;
        let now = clock::wall_ns();
        self.change("file a task", |tx| {
            let old: Option<(i64, String)> = tx
                .query_row("SELECT id, state FROM queue WHERE fingerprint = ?1", [&fingerprint], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            if let Some((id, state)) = old {
                // Whoever works on it sees the newest facts; what was thought to be done is not.
                let again = matches!(state.as_str(), "submitted" | "verified");
                let state = if again { "reopened".to_owned() } else { state };
                tx.execute(
                    "UPDATE queue SET count = count + 1, evidence = ?2, state = ?3, firing = COALESCE(?4, firing),
                         submitted_ns = NULL WHERE id = ?1",
                    params![id, evidence, state, number],
                )?;
                let kind = if again { "reopened" } else { "raised" };
                note(tx, id, kind, &format!("the same fault came again{of}"))?;
                return Ok(Ok(format!("{kind} t-{id}")));
            }
            let since = now.saturating_sub(86_400 * 1_000_000_000);
            let filed: u64 =
                tx.query_row("SELECT count(*) FROM queue WHERE filed_ns > ?1", [since], |row| row.get(0))?;
            if filed >= u64::from(per_day) {
                let why = format!("{filed} tasks were filed within a day, and no more than {per_day} shall be ([tasks] per_day)");
                return Ok(Err(QueueError::TooMuch(why)));
            }
            tx.execute(
                "INSERT INTO queue (fingerprint, trigger, subject, title, acceptance, evidence, state, count, filed_ns, firing)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'open', 1, ?7, ?8)",
                params![fingerprint, trigger, subject, title, acceptance, evidence, now, number],
            )?;
            let id = tx.last_insert_rowid();
            note(tx, id, "task", &format!("filed{of}"))?;
            Ok(Ok(format!("filed t-{id}")))
        })?
    }

    /// All tasks, oldest first.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn all(&self) -> Result<Vec<TaskView>, QueueError> {
        self.read("list tasks", |db| {
            let mut sql = db.prepare_cached(&format!("SELECT {COLUMNS} FROM queue ORDER BY id"))?;
            let rows = sql.query_map([], |row| self.row(row))?.collect::<rusqlite::Result<Vec<_>>>()?;
            rows.into_iter().map(|row| completed(db, row)).collect()
        })
    }

    /// One task.
    ///
    /// # Errors
    /// Where there is none, or the database refuses.
    pub fn get(&self, id: &str) -> Result<TaskView, QueueError> {
        let number = number(id)?;
        let found = self.read("read a task", |db| match self.find(db, number)? {
            Some(row) => completed(db, row).map(Some),
            None => Ok(None),
        })?;
        found.ok_or_else(|| no_task(id))
    }

    /// Claims the task `id`, or the one that came most often, for `agent`. The token that holds the claim, and the task.
    ///
    /// # Errors
    /// Where there is none to claim, or the database refuses.
    pub fn claim(
        &self,
        id: Option<&str>,
        agent: &str,
        lease: Option<Duration>,
    ) -> Result<(String, TaskView), QueueError> {
        let wanted = id.map(number).transpose()?;
        let agent = words(agent);
        let (token, until) = (token(), self.lease_until(lease));
        let boot = self.boot_id.clone();
        self.change("claim a task", |tx| {
            self.end_leases(tx)?;
            let id: Option<i64> = match wanted {
                Some(number) => Some(number),
                None => tx
                    .query_row(
                        "SELECT id FROM queue WHERE state IN ('open', 'reopened') ORDER BY count DESC, id LIMIT 1",
                        [],
                        |row| row.get(0),
                    )
                    .optional()?,
            };
            let Some(id) = id else {
                return Ok(Err(QueueError::NotThere("no task waits for anybody".to_owned())));
            };
            let Some(row) = self.find(tx, id)? else { return Ok(Err(no_task(&format!("t-{id}")))) };
            if !matches!(row.view.state.as_str(), "open" | "reopened") {
                let why = "only an open or a reopened one can be claimed";
                return Ok(Err(QueueError::State { id, state: row.view.state, why }));
            }
            tx.execute(
                "UPDATE queue SET state = 'claimed', agent = ?2, token = ?3, lease_ns = ?4, boot = ?5 WHERE id = ?1",
                params![id, agent, digest(&token), i64::try_from(until.0).unwrap_or(i64::MAX), boot],
            )?;
            note(tx, id, "claimed", &format!("by {agent}, until {}", clock::rfc3339(until)))?;
            let Some(row) = self.find(tx, id)? else { return Ok(Err(no_task(&format!("t-{id}")))) };
            Ok(Ok((token.clone(), completed(tx, row)?)))
        })?
    }

    /// Does `change` to the task `id`, for `by`.
    ///
    /// # Errors
    /// Where the task is not there or not in a state for that, the token holds no claim, or the database refuses.
    pub fn update(&self, id: &str, change: Change, by: &str) -> Result<TaskView, QueueError> {
        let number = number(id)?;
        let now = clock::wall_ns();
        self.change("change a task", |tx| {
            self.end_leases(tx)?;
            let Some(row) = self.find(tx, number)? else { return Ok(Err(no_task(id))) };
            if let Err(refused) = allowed(&row, &change) {
                return Ok(Err(refused));
            }
            match change {
                Change::Heartbeat { lease, .. } => {
                    let until = self.lease_until(lease);
                    tx.execute(
                        "UPDATE queue SET lease_ns = ?2 WHERE id = ?1",
                        params![number, i64::try_from(until.0).unwrap_or(i64::MAX)],
                    )?;
                }
                Change::Attach { name, text, .. } => {
                    let there: u64 = tx.query_row(
                        "SELECT count(*) FROM queue_attached WHERE task = ?1",
                        [number],
                        |row| row.get(0),
                    )?;
                    if there >= MAX_ATTACHED {
                        let why = format!("t-{number} has {MAX_ATTACHED} attachments, and takes no more");
                        return Ok(Err(QueueError::TooMuch(why)));
                    }
                    if text.len() > MAX_TEXT {
                        let why = format!("{} bytes, and one attachment takes {MAX_TEXT}", text.len());
                        return Ok(Err(QueueError::TooMuch(why)));
                    }
                    let name = words(&name);
                    tx.execute(
                        "INSERT INTO queue_attached (task, name, sha256, text) VALUES (?1, ?2, ?3, ?4)",
                        params![number, name, hex(&Sha256::digest(&text)), text],
                    )?;
                    note(tx, number, "attached", &format!("{name}, {} bytes", text.len()))?;
                }
                Change::Complete { summary, .. } => {
                    tx.execute(
                        "UPDATE queue SET state = 'submitted', token = NULL, lease_ns = NULL, submitted_ns = ?2 WHERE id = ?1",
                        params![number, now],
                    )?;
                    note(tx, number, "submitted", &words(&summary))?;
                }
                Change::Release { why, .. } => {
                    tx.execute(
                        "UPDATE queue SET state = 'open', agent = NULL, token = NULL, lease_ns = NULL WHERE id = ?1",
                        [number],
                    )?;
                    note(tx, number, "released", &words(&why))?;
                }
                Change::Reopen { why } => {
                    tx.execute(
                        "UPDATE queue SET state = 'reopened', agent = NULL, token = NULL, lease_ns = NULL, submitted_ns = NULL
                         WHERE id = ?1",
                        [number],
                    )?;
                    note(tx, number, "reopened", &format!("by {by}: {}", words(&why)))?;
                }
                Change::Cancel { why } => {
                    tx.execute(
                        "UPDATE queue SET state = 'cancelled', agent = NULL, token = NULL, lease_ns = NULL, submitted_ns = NULL
                         WHERE id = ?1",
                        [number],
                    )?;
                    note(tx, number, "cancelled", &format!("by {by}: {}", words(&why)))?;
                }
            }
            let Some(row) = self.find(tx, number)? else { return Ok(Err(no_task(id))) };
            Ok(Ok(completed(tx, row)?))
        })?
    }

    /// Looks at what was submitted, and at leases that are over. `newest` is the last firing of a trigger about a subject.
    /// What became verified or was reopened, in words.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn judge(
        &self,
        started_ns: i64,
        newest: impl Fn(&str, &str) -> Option<FiringView>,
    ) -> Result<Vec<String>, QueueError> {
        let settings = lock(&self.settings).clone();
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        let submitted: Vec<Row> = self.read("list what was submitted", |db| {
            let mut sql = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM queue WHERE state = 'submitted' ORDER BY id"
            ))?;
            sql.query_map([], |row| self.row(row))?.collect()
        })?;
        let now = clock::wall_ns();
        let mut said = Vec::new();
        for row in submitted {
            let since = row.submitted_ns.unwrap_or(now);
            let firing = newest(&row.view.trigger, &row.subject);
            let verdict = match &firing {
                Some(f) if row.firing.is_some_and(|known| f.id.0 > known) && began_ns(f) > since => {
                    Some(("reopened", format!("the fault came back as {}", f.id)))
                }
                Some(f) if f.state == State::Holds => {
                    (now.saturating_sub(since) > nanos(settings.patience.get())).then(|| {
                        let patience = humantime::format_duration(settings.patience.get());
                        ("reopened", format!("{} still holds, {patience} after it was submitted", f.id))
                    })
                }
                // Nothing was judged yet since the agent runs: silence begins anew.
                _ => {
                    let clear = firing.as_ref().map_or(since, ended_ns).max(since).max(started_ns);
                    (now.saturating_sub(clear) >= nanos(settings.soak.get())).then(|| {
                        let soak = humantime::format_duration(settings.soak.get());
                        ("verified", format!("{} stayed clear for {soak}", row.view.trigger))
                    })
                }
            };
            let Some((state, why)) = verdict else { continue };
            let newer = firing.filter(|_| state == "reopened");
            let evidence = newer.as_ref().map(|f| to_json(&evidence_of(f)));
            let firing = newer.map(|f| f.id.0);
            let done = self.change("judge a task", |tx| {
                let changed = tx.execute(
                    "UPDATE queue SET state = ?2, submitted_ns = NULL, evidence = COALESCE(?3, evidence),
                         firing = COALESCE(?4, firing) WHERE id = ?1 AND state = 'submitted'",
                    params![row.id, state, evidence, firing],
                )?;
                if changed > 0 {
                    note(tx, row.id, state, &why)?;
                }
                Ok(changed > 0)
            })?;
            if done {
                said.push(format!("t-{} is {state}: {why}", row.id));
            }
        }
        self.change("end leases", |tx| self.end_leases(tx))?;
        Ok(said)
    }

    /// Whether anything is claimed or submitted: else there is nothing to look after.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn is_under_way(&self) -> Result<bool, QueueError> {
        self.read("count what is under way", |db| {
            let sql = "SELECT EXISTS (SELECT 1 FROM queue WHERE state IN ('claimed', 'submitted'))";
            db.query_row(sql, [], |row| row.get(0))
        })
    }

    fn lease_until(&self, lease: Option<Duration>) -> Timestamp {
        let longest = Duration::from_secs(24 * 3600);
        clock::boottime().after(lease.unwrap_or_else(|| lock(&self.settings).lease.get()).min(longest))
    }

    /// Claims whose lease is over, or of an earlier boot, are open again.
    fn end_leases(&self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let now = i64::try_from(clock::boottime().0).unwrap_or(i64::MAX);
        let over: Vec<(i64, Option<String>)> = tx
            .prepare_cached(
                "SELECT id, agent FROM queue WHERE state = 'claimed' AND (lease_ns IS NULL OR lease_ns <= ?1 OR boot IS NOT ?2)",
            )?
            .query_map(params![now, self.boot_id], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, agent) in over {
            tx.execute(
                "UPDATE queue SET state = 'open', agent = NULL, token = NULL, lease_ns = NULL WHERE id = ?1",
                [id],
            )?;
            let agent = agent.unwrap_or_default();
            note(tx, id, "lease over", &format!("{agent} said nothing any more"))?;
        }
        Ok(())
    }

    fn find(&self, db: &Connection, id: i64) -> rusqlite::Result<Option<Row>> {
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM queue WHERE id = ?1"))?
            .query_row([id], |row| self.row(row))
            .optional()
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        let id: i64 = row.get(0)?;
        let lease_ns: Option<u64> = row.get(7)?;
        let (agent, boot): (Option<String>, Option<String>) = (row.get(6)?, row.get(11)?);
        let here = boot.as_deref() == Some(self.boot_id.as_str());
        let state: String = row.get(5)?;
        let claim = agent.filter(|_| state == "claimed").map(|agent| ClaimView {
            agent,
            lease_until: lease_ns
                .filter(|_| here)
                .map(|ns| clock::rfc3339(Timestamp(ns)))
                .unwrap_or_else(|| "over: the host was started again".to_owned()),
        });
        let evidence: String = row.get(8)?;
        Ok(Row {
            id,
            token: row.get(10)?,
            submitted_ns: row.get(12)?,
            subject: row.get(13)?,
            firing: row.get(14)?,
            view: TaskView {
                id: format!("t-{id}"),
                fingerprint: row.get(1)?,
                count: row.get(2)?,
                title: row.get(3)?,
                trigger: row.get(4)?,
                state,
                claim,
                evidence: serde_json::from_str(&evidence).unwrap_or_default(),
                acceptance: row.get(9)?,
                history: Vec::new(),
            },
        })
    }

    fn read<T>(
        &self,
        what: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, QueueError> {
        query(&lock(&self.db)).map_err(|source| QueueError::Database { what, source })
    }

    fn change<T>(
        &self,
        what: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, QueueError> {
        let mut db = lock(&self.db);
        // Immediate: who reads first and then writes must not find that somebody wrote in between.
        let run = || {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = change(&tx)?;
            tx.commit()?;
            Ok(done)
        };
        run().map_err(|source| QueueError::Database { what, source })
    }
}

/// Whether `change` may be done to the task in `row`.
fn allowed(row: &Row, change: &Change) -> Result<(), QueueError> {
    let refuse = |why| Err(QueueError::State { id: row.id, state: row.view.state.clone(), why });
    let state = row.view.state.as_str();
    match change {
        Change::Heartbeat { token, .. }
        | Change::Attach { token, .. }
        | Change::Complete { token, .. }
        | Change::Release { token, .. } => {
            // The digests are compared: how long that takes tells nothing of the token.
            let holds = state == "claimed"
                && !token.is_empty()
                && row.token.as_deref() == Some(digest(token).as_str());
            if holds { Ok(()) } else { Err(QueueError::Token(row.id)) }
        }
        Change::Reopen { .. } if matches!(state, "open" | "reopened" | "claimed") => {
            refuse("it waits for somebody or is worked on already")
        }
        Change::Cancel { .. } if state == "cancelled" => refuse("nobody works on it already"),
        Change::Reopen { .. } | Change::Cancel { .. } => Ok(()),
    }
}

/// The task with its history and what was attached.
fn completed(db: &Connection, row: Row) -> rusqlite::Result<TaskView> {
    let mut view = row.view;
    let mut attached: Vec<EvidenceView> = db
        .prepare_cached("SELECT name, sha256, text FROM queue_attached WHERE task = ?1 ORDER BY seq")?
        .query_map([row.id], |row| {
            let (name, sha256, text) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(EvidenceView { name, trust: "untrusted".to_owned(), sha256, text })
        })?
        .collect::<rusqlite::Result<_>>()?;
    view.evidence.append(&mut attached);
    view.history = db
        .prepare_cached(
            "SELECT seq, at, kind, text FROM queue_history WHERE task = ?1 ORDER BY seq DESC LIMIT ?2",
        )?
        .query_map(params![row.id, MAX_HISTORY], |row| {
            Ok(JournalView { seq: row.get(0)?, at: row.get(1)?, kind: row.get(2)?, text: row.get(3)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    view.history.reverse();
    Ok(view)
}

fn note(db: &Connection, task: i64, kind: &str, text: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO queue_history (task, at, kind, text) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![task, clock::wall_rfc3339(), kind, text])
        .map(drop)
}

/// Facts of a firing. Names, paths and log lines can be written by others: data, never instructions.
fn evidence_of(firing: &FiringView) -> Vec<EvidenceView> {
    let item = |name: &str, trust: &str, text: String| EvidenceView {
        name: name.to_owned(),
        trust: trust.to_owned(),
        sha256: hex(&Sha256::digest(&text)),
        text,
    };
    let mut out = vec![item(
        "judgement",
        "grace",
        format!(
            "measured: {}\nthreshold: {}\nbaseline: {}\nsince: {}\ncame back: {} times",
            firing.measured, firing.threshold, firing.baseline, firing.since, firing.count
        ),
    )];
    out.push(item("subject", "untrusted", to_json(&firing.subject)));
    if let Some(writer) = &firing.writer {
        out.push(item("writer", "untrusted", to_json(writer)));
    }
    if !firing.evidence.is_empty() {
        out.push(item("output", "untrusted", firing.evidence.join("\n")));
    }
    out
}

/// When a firing began, in nanoseconds since the epoch.
fn began_ns(firing: &FiringView) -> i64 {
    clock::parse_rfc3339(&firing.at).unwrap_or(0)
}

/// When it was over.
fn ended_ns(firing: &FiringView) -> i64 {
    firing.cleared.as_deref().and_then(clock::parse_rfc3339).unwrap_or_else(|| began_ns(firing))
}

fn number(id: &str) -> Result<i64, QueueError> {
    id.strip_prefix("t-").and_then(|number| number.parse().ok()).ok_or_else(|| no_task(id))
}

fn no_task(id: &str) -> QueueError {
    let id: String = id.chars().take(40).flat_map(char::escape_debug).collect();
    QueueError::NotThere(format!("no task `{id}`: `grace tasks list` lists them"))
}

/// What others wrote, on one line and not for ever.
fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// 128 bits that nobody can guess.
fn token() -> String {
    let mut bytes = [0_u8; 16];
    // Fails only before the kernel has its first randomness, when no agent runs yet; then nobody can hold the claim.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    if filled < bytes.len() {
        return String::new();
    }
    hex(&bytes)
}

/// What is kept of a token. Of none, nothing that any token has.
fn digest(token: &str) -> String {
    if token.is_empty() { "none".to_owned() } else { hex(&Sha256::digest(token)) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    // Plain data with string keys only: serde_json has no way to fail on it.
    serde_json::to_string(value).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
