//! The queue of tasks: what Grace cannot repair, for coding agents and people. In the state's SQLite database.
//!
//! `open → claimed → submitted → verified`, or `reopened` (claimed again like an open one), or `cancelled`. One claim at a
//! time, under a lease that ends by itself; whoever holds it has a token. "Complete" means *submitted*: Grace looks whether
//! the trigger stays clear, and only then it is verified. The same fault raises the count of its task and makes no second
//! one. Every change is a line of the task's history, in the same transaction.

mod brief;
mod context;
mod evidence;
mod guidance;
mod judge;
mod outbox;
mod redact;
pub mod render;
mod rows;
mod schema;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};

pub use context::{Context, Repo, Suspect, ranked};
pub use evidence::{Trust, file_name, item};
pub use guidance::{FORBIDDEN, Guide, guide, guides};
pub use judge::{Facts, Failed};
pub use outbox::{Delivery, Entry, Subscription};
pub use redact::{Redacted, redact};

use crate::api::tasks::{TasksQuery, UnfiledView};
use crate::api::view::{FiringView, TaskView};
use crate::clock;
use crate::config;
use crate::event::Timestamp;
use rows::{Row, completed, note};

/// Bytes of one attachment.
pub const MAX_TEXT: usize = 256 << 10;
/// Attachments of one task.
const MAX_ATTACHED: u64 = 32;
/// Characters of summaries and reasons.
const MAX_WORDS: usize = 2000;
/// Lines of history shown of one task, the newest.
const MAX_HISTORY: u64 = 200;
/// Tasks in one answer.
const MAX_LISTED: u32 = 200;

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
    /// A person wants another task to be over before this one is handed out.
    After {
        /// The other task.
        on: String,
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
    sinks: Mutex<Vec<Subscription>>,
}

impl Queue {
    /// Opens it in the state's database. Claims of an earlier boot are over.
    ///
    /// # Errors
    /// Where its tables cannot be made.
    pub fn open(mut db: Connection, boot_id: &str, settings: config::Tasks) -> Result<Self, QueueError> {
        schema::make(&mut db).map_err(|source| QueueError::Database { what: "make its tables", source })?;
        let queue = Self {
            db: Mutex::new(db),
            boot_id: boot_id.to_owned(),
            settings: Mutex::new(settings),
            sinks: Mutex::default(),
        };
        queue.change("end claims of an earlier boot", |tx| judge::end_foreign_leases(tx, boot_id))?;
        Ok(queue)
    }

    /// Tells these sinks of every change from now on.
    pub fn subscribe(&self, sinks: Vec<Subscription>) {
        *lock(&self.sinks) = sinks;
    }

    fn sinks(&self) -> Vec<Subscription> {
        lock(&self.sinks).clone()
    }

    /// Follows these settings from now on.
    pub fn set(&self, settings: config::Tasks) {
        *lock(&self.settings) = settings;
    }

    /// Files a task, or raises the count of the one that the same fault has. What was done, in words.
    ///
    /// # Errors
    /// Where the database refuses, or more tasks were filed within a day than the configuration allows.
    pub fn file(
        &self,
        firing: Option<&FiringView>,
        title: &str,
        acceptance: &str,
        context: &Context,
    ) -> Result<String, QueueError> {
        let trigger = firing.map_or("", |f| f.trigger.as_str());
        let subject = firing.map(|f| to_json(&f.subject)).unwrap_or_default();
        let fingerprint = hex(&Sha256::digest(format!("{trigger}\0{subject}\0{title}")));
        let evidence = to_json(&firing.map(|f| evidence::of_firing(f, context)).unwrap_or_default());
        let brief = to_json(&brief::of(firing, context));
        let number = firing.map(|f| f.id.0);
        let of = firing.map(|f| format!(" for {}", f.id)).unwrap_or_default();
        let settings = lock(&self.settings).clone();
        let sinks = self.sinks();
        let now = clock::wall_ns();
        self.change("file a task", |tx| {
            let old: Option<(i64, String)> = tx
                .prepare_cached("SELECT id, state FROM queue WHERE fingerprint = ?1")?
                .query_row([&fingerprint], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if let Some((id, state)) = old {
                // Whoever works on it sees the newest facts; what was thought to be done is not.
                let again = matches!(state.as_str(), "submitted" | "verified");
                let state = if again { "reopened".to_owned() } else { state };
                tx.execute(
                    "UPDATE queue SET count = count + 1, evidence = ?2, state = ?3, firing = COALESCE(?4, firing),
                         submitted_ns = NULL, brief = ?5, last_ns = ?6 WHERE id = ?1",
                    params![id, evidence, state, number, brief, now],
                )?;
                let kind = if again { "reopened" } else { "raised" };
                note(tx, id, kind, &format!("the same fault came again{of}"))?;
                outbox::announce(tx, &sinks, id, trigger, kind)?;
                return Ok(Ok(format!("{kind} t-{id}")));
            }
            if let Some((why, reason)) = refusal(tx, trigger, now, &settings)? {
                count_refused(tx, trigger, reason)?;
                return Ok(Err(QueueError::TooMuch(why)));
            }
            let priority = settings.priority.get(trigger).copied().unwrap_or(context.priority);
            tx.execute(
                "INSERT INTO queue (fingerprint, trigger, subject, title, acceptance, evidence, state, count, filed_ns, firing,
                     priority, last_ns, brief)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'open', 1, ?7, ?8, ?9, ?7, ?10)",
                params![fingerprint, trigger, subject, title, acceptance, evidence, now, number, priority, brief],
            )?;
            let id = tx.last_insert_rowid();
            // What follows from a cause that has a task waits for that one.
            if let Some(cause) = context.cause {
                tx.execute(
                    "INSERT OR IGNORE INTO queue_after (task, on_task)
                     SELECT ?1, id FROM queue WHERE firing = ?2 AND id <> ?1 AND state NOT IN ('verified', 'cancelled')",
                    params![id, cause],
                )?;
            }
            note(tx, id, "task", &format!("filed{of}"))?;
            outbox::announce(tx, &sinks, id, trigger, "filed")?;
            Ok(Ok(format!("filed t-{id}")))
        })?
    }

    /// Whether a task that was claimed so often waits for a person.
    #[must_use]
    pub fn is_exhausted(&self, attempts: u32) -> bool {
        let most = lock(&self.settings).attempts;
        most > 0 && attempts >= most
    }

    /// Tasks, oldest first: a page of them, without the text of attachments.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn list(&self, query: &TasksQuery) -> Result<Vec<TaskView>, QueueError> {
        let limit = query.limit.unwrap_or(MAX_LISTED).min(MAX_LISTED);
        let after = query.after.as_deref().map(number).transpose()?.unwrap_or(0);
        self.read("list tasks", |db| {
            let waits = query.state.as_deref() == Some("waiting");
            let found = match &query.state {
                Some(_) if waits => rows::select(
                    db,
                    "WHERE state IN ('open', 'reopened') AND id > ?1 ORDER BY id LIMIT ?2",
                    params![after, limit],
                    &self.boot_id,
                )?,
                Some(state) => rows::select(
                    db,
                    "WHERE state = ?3 AND id > ?1 ORDER BY id LIMIT ?2",
                    params![after, limit, state],
                    &self.boot_id,
                )?,
                None => rows::select(
                    db,
                    "WHERE id > ?1 ORDER BY id LIMIT ?2",
                    params![after, limit],
                    &self.boot_id,
                )?,
            };
            found.into_iter().map(|row| completed(db, row, false)).collect()
        })
    }

    /// Tasks that were not filed because there were too many, by trigger and limit.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn refused(&self) -> Result<Vec<UnfiledView>, QueueError> {
        self.read("list what was refused", |db| {
            let mut sql = db.prepare_cached(
                "SELECT trigger, reason, count, last FROM queue_refused ORDER BY trigger, reason",
            )?;
            sql.query_map([], |row| {
                Ok(UnfiledView {
                    trigger: row.get(0)?,
                    limit: row.get(1)?,
                    count: row.get(2)?,
                    last: row.get(3)?,
                })
            })?
            .collect()
        })
    }

    /// One task.
    ///
    /// # Errors
    /// Where there is none, or the database refuses.
    pub fn get(&self, id: &str) -> Result<TaskView, QueueError> {
        let number = number(id)?;
        let found = self.read("read a task", |db| match rows::find(db, number, &self.boot_id)? {
            Some(row) => completed(db, row, true).map(Some),
            None => Ok(None),
        })?;
        found.ok_or_else(|| no_task(id))
    }

    /// Claims the task `id`, or the most urgent one, for `agent`. The token that holds the claim, and the task.
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
        // A name stands outside of the fence: it is one word.
        let agent = file_name(agent);
        let (token, until) = (token(), self.lease_until(lease));
        let boot = self.boot_id.clone();
        let tries = lock(&self.settings).attempts;
        self.change("claim a task", |tx| {
            self.end_leases(tx)?;
            let id: Option<i64> = match wanted {
                Some(number) => Some(number),
                None => tx
                    // Named, because SQLite would rather sort all that wait: 100 ms instead of 0.1 ms for 100,000.
                    .prepare_cached(
                        "SELECT id FROM queue q INDEXED BY queue_waits WHERE state IN ('open', 'reopened') AND (?1 = 0 OR attempts < ?1)
                           AND NOT EXISTS (SELECT 1 FROM queue_after a JOIN queue o ON o.id = a.on_task
                                           WHERE a.task = q.id AND o.state NOT IN ('verified', 'cancelled'))
                         ORDER BY priority, count DESC, id LIMIT 1",
                    )?
                    .query_row([tries], |row| row.get(0))
                    .optional()?,
            };
            let Some(id) = id else {
                return Ok(Err(QueueError::NotThere("no task waits for anybody".to_owned())));
            };
            let Some(row) = rows::find(tx, id, &self.boot_id)? else { return Ok(Err(no_task(&format!("t-{id}")))) };
            if !matches!(row.view.state.as_str(), "open" | "reopened") {
                let why = "only an open or a reopened one can be claimed";
                return Ok(Err(QueueError::State { id, state: row.view.state, why }));
            }
            tx.prepare_cached(
                "UPDATE queue SET state = 'claimed', agent = ?2, token = ?3, lease_ns = ?4, boot = ?5,
                     attempts = attempts + 1 WHERE id = ?1",
            )?
            .execute(params![id, agent, digest(&token), i64::try_from(until.0).unwrap_or(i64::MAX), boot])?;
            note(tx, id, "claimed", &format!("by {agent}, until {}", clock::rfc3339(until)))?;
            let Some(row) = rows::find(tx, id, &self.boot_id)? else { return Ok(Err(no_task(&format!("t-{id}")))) };
            Ok(Ok((token.clone(), completed(tx, row, true)?)))
        })?
    }

    /// Does `change` to the task `id`, for `by`.
    ///
    /// # Errors
    /// Where the task is not there or not in a state for that, the token holds no claim, or the database refuses.
    pub fn update(&self, id: &str, change: Change, by: &str) -> Result<TaskView, QueueError> {
        let number = number(id)?;
        let now = clock::wall_ns();
        let sinks = self.sinks();
        self.change("change a task", |tx| {
            self.end_leases(tx)?;
            let Some(row) = rows::find(tx, number, &self.boot_id)? else { return Ok(Err(no_task(id))) };
            if let Err(refused) = allowed(&row, &change) {
                return Ok(Err(refused));
            }
            let holder = row.view.claim.as_ref().map_or("nobody", |claim| claim.agent.as_str());
            let words_of = |tx: &Transaction<'_>, name: &str, text: &str| {
                let said = item(name, Trust::Untrusted, &format!("agent {holder}"), &words(text));
                rows::attach(tx, number, &said)
            };
            let announce = |tx: &Transaction<'_>, event: &str| {
                outbox::announce(tx, &sinks, number, &row.view.trigger, event)
            };
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
                    let mut kept = item(&name, Trust::Untrusted, &format!("agent {holder}"), "");
                    let clean = redact(&text);
                    kept.sha256 = hex(&Sha256::digest(&clean.text));
                    (kept.bytes, kept.redacted) = (clean.text.len() as u64, clean.found);
                    kept.text = clean.text;
                    rows::attach(tx, number, &kept)?;
                    note(tx, number, "attached", &format!("{}, {} bytes", kept.name, kept.bytes))?;
                }
                Change::Complete { summary, .. } => {
                    tx.execute(
                        "UPDATE queue SET state = 'submitted', token = NULL, lease_ns = NULL, submitted_ns = ?2 WHERE id = ?1",
                        params![number, now],
                    )?;
                    words_of(tx, "summary", &summary)?;
                    note(tx, number, "submitted", &format!("by {holder}: see the evidence `summary`"))?;
                    announce(tx, "submitted")?;
                }
                Change::Release { why, .. } => {
                    tx.execute(
                        "UPDATE queue SET state = 'open', agent = NULL, token = NULL, lease_ns = NULL WHERE id = ?1",
                        [number],
                    )?;
                    words_of(tx, "released", &why)?;
                    note(tx, number, "released", &format!("by {holder}: see the evidence `released`"))?;
                }
                Change::Reopen { why } => {
                    tx.execute(
                        "UPDATE queue SET state = 'reopened', agent = NULL, token = NULL, lease_ns = NULL, submitted_ns = NULL,
                             attempts = 0 WHERE id = ?1",
                        [number],
                    )?;
                    note(tx, number, "reopened", &format!("by {by}: {}", words(&why)))?;
                    announce(tx, "reopened")?;
                }
                Change::Cancel { why } => {
                    tx.execute(
                        "UPDATE queue SET state = 'cancelled', agent = NULL, token = NULL, lease_ns = NULL, submitted_ns = NULL
                         WHERE id = ?1",
                        [number],
                    )?;
                    note(tx, number, "cancelled", &format!("by {by}: {}", words(&why)))?;
                    announce(tx, "cancelled")?;
                }
                Change::After { on } => {
                    let Some(on) = self::number(&on).ok().filter(|on| *on != number) else {
                        return Ok(Err(QueueError::TooMuch("a task waits for another one".to_owned())));
                    };
                    if rows::find(tx, on, &self.boot_id)?.is_none() {
                        return Ok(Err(no_task(&format!("t-{on}"))));
                    }
                    let circle: bool = tx.query_row(
                        "WITH RECURSIVE below(id) AS (SELECT ?1 UNION
                             SELECT on_task FROM queue_after JOIN below ON task = below.id)
                         SELECT EXISTS (SELECT 1 FROM below WHERE id = ?2)",
                        params![on, number],
                        |row| row.get(0),
                    )?;
                    if circle {
                        let why = format!("t-{on} waits for t-{number} already: neither would ever begin");
                        return Ok(Err(QueueError::TooMuch(why)));
                    }
                    tx.execute(
                        "INSERT OR IGNORE INTO queue_after (task, on_task) VALUES (?1, ?2)",
                        params![number, on],
                    )?;
                    note(tx, number, "after", &format!("by {by}: waits for t-{on}"))?;
                }
            }
            let Some(row) = rows::find(tx, number, &self.boot_id)? else { return Ok(Err(no_task(id))) };
            Ok(Ok(completed(tx, row, true)?))
        })?
    }

    fn lease_until(&self, lease: Option<Duration>) -> Timestamp {
        let longest = Duration::from_secs(24 * 3600);
        clock::boottime().after(lease.unwrap_or_else(|| lock(&self.settings).lease.get()).min(longest))
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
        Change::After { .. } if matches!(state, "verified" | "cancelled") => refuse("it is over"),
        Change::Reopen { .. } | Change::Cancel { .. } | Change::After { .. } => Ok(()),
    }
}

/// Counts what was not taken, by trigger and limit.
fn count_refused(db: &Connection, trigger: &str, limit: &str) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO queue_refused (trigger, reason, count, last) VALUES (?1, ?2, 1, ?3)
         ON CONFLICT (trigger, reason) DO UPDATE SET count = count + 1, last = excluded.last",
    )?
    .execute(params![trigger, limit, clock::wall_rfc3339()])
    .map(drop)
}

/// Why no new task is filed now, and the limit that says so.
fn refusal(
    tx: &Transaction<'_>,
    trigger: &str,
    now: i64,
    settings: &config::Tasks,
) -> rusqlite::Result<Option<(String, &'static str)>> {
    let since = now.saturating_sub(86_400 * 1_000_000_000);
    let count = |sql: &str| -> rusqlite::Result<u64> {
        tx.prepare_cached(sql)?.query_row(params![since, trigger], |row| row.get(0))
    };
    let filed = count("SELECT count(*) FROM queue WHERE filed_ns > ?1 AND ?2 = ?2")?;
    let most = settings.per_day;
    if filed >= u64::from(most) {
        let why = format!(
            "{filed} tasks were filed within a day, and no more than {most} shall be ([tasks] per_day)"
        );
        return Ok(Some((why, "per_day")));
    }
    let filed = count("SELECT count(*) FROM queue WHERE filed_ns > ?1 AND trigger = ?2")?;
    let most = settings.per_cause;
    let why = format!(
        "{filed} tasks were filed for {trigger} within a day, and no more than {most} shall be ([tasks] per_cause)"
    );
    Ok((filed >= u64::from(most)).then_some((why, "per_cause")))
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
