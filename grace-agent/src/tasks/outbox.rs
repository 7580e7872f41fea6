//! What is to be told outside (`[[sink]]`): rows that are written in the same transaction as the change that they tell of.
//!
//! An entry waits until its sink took it, with growing pauses in between, or is dead: the sink refused it for good, or did
//! not take it for too long. Of one task entries go out in order. What a sink made of a task (the number of an issue) is
//! kept beside, so that there is one for each fingerprint.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Queue, QueueError, rows, token};
use crate::api::tasks::OutboxView;
use crate::api::view::TaskView;
use crate::clock;

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Entries of one sink that wait, at most; what comes beyond is counted as refused.
const MAX_WAITING: u64 = 200_000;
/// Entries shown, the newest.
const MAX_SHOWN: u64 = 1000;

/// Something to tell a sink.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its place in the outbox.
    pub seq: i64,
    /// Unique, and the same at each try: receivers know by it what they have seen.
    pub id: String,
    /// `filed`, `raised`, `reopened`, `submitted`, `verified`, `cancelled`.
    pub event: String,
    /// When it happened, in nanoseconds since the epoch.
    pub at_ns: i64,
    /// Failures so far.
    pub tries: u32,
    /// The task as it is now.
    pub task: TaskView,
    /// What the sink made of the task before.
    pub external: Option<String>,
}

/// What became of an entry.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The sink has it.
    Sent,
    /// Not now: why, and after which time it wants to be asked again, where it said so.
    Later(String, Option<Duration>),
    /// Never: why.
    Refused(String),
}

/// Which tasks a sink is told of.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its name.
    pub sink: String,
    /// Only tasks of these triggers; empty: all.
    pub triggers: Vec<String>,
    /// Only these events; empty: all.
    pub events: Vec<String>,
}

/// Puts `event` of a task into the outbox of each sink that wants it.
pub(super) fn announce(
    db: &Connection,
    sinks: &[Subscription],
    task: i64,
    trigger: &str,
    event: &str,
) -> rusqlite::Result<()> {
    for sink in sinks {
        let wanted = |list: &[String], word: &str| list.is_empty() || list.iter().any(|w| w == word);
        if !wanted(&sink.triggers, trigger) || !wanted(&sink.events, event) {
            continue;
        }
        // That it came again is told once, however often it does while the sink is down.
        let told: bool = db
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outbox WHERE sink = ?1 AND task = ?2 AND state = 'waiting' AND event = ?3
                   AND seq = (SELECT max(seq) FROM outbox WHERE sink = ?1 AND task = ?2 AND state = 'waiting'))",
            )?
            .query_row(params![sink.sink, task, event], |row| row.get(0))?;
        if told {
            continue;
        }
        let added = db
            .prepare_cached(
                "INSERT INTO outbox (id, sink, task, event, at_ns, state, tries, next_ns, why)
                 SELECT ?1, ?2, ?3, ?4, ?5, 'waiting', 0, 0, ''
                 WHERE (SELECT count(*) FROM outbox WHERE sink = ?2 AND state = 'waiting') < ?6",
            )?
            .execute(params![token(), sink.sink, task, event, clock::wall_ns(), MAX_WAITING])?;
        if added == 0 {
            super::count_refused(db, trigger, "outbox")?;
        }
    }
    Ok(())
}

impl Queue {
    /// The next entry that `sink` is to be told of now, if there is one.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn next_for(&self, sink: &str) -> Result<Option<Entry>, QueueError> {
        let now = clock::wall_ns();
        self.read("read the outbox", |db| {
            let found = db
                .prepare_cached(
                    "SELECT seq, id, event, at_ns, tries, task FROM outbox o
                     WHERE sink = ?1 AND state = 'waiting' AND next_ns <= ?2
                       AND NOT EXISTS (SELECT 1 FROM outbox e WHERE e.sink = ?1 AND e.task = o.task
                                       AND e.state = 'waiting' AND e.seq < o.seq)
                     ORDER BY seq LIMIT 1",
                )?
                .query_row(params![sink, now], |row| {
                    Ok((
                        row.get(0)?,
                        row.get(1)?,
                        row.get(2)?,
                        row.get(3)?,
                        row.get(4)?,
                        row.get::<_, i64>(5)?,
                    ))
                })
                .optional()?;
            let Some((seq, id, event, at_ns, tries, task)) = found else { return Ok(None) };
            let external = external(db, sink, task)?;
            // Retention keeps a task while anything of it waits.
            let Some(row) = rows::find(db, task, &self.boot_id)? else { return Ok(None) };
            let task = rows::completed(db, row, true)?;
            Ok(Some(Entry { seq, id, event, at_ns, tries, task, external }))
        })
    }

    /// Writes down what became of an entry. `give_up`: how long after it happened it is dead.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn delivered(&self, entry: &Entry, delivery: &Delivery, give_up: Duration) -> Result<(), QueueError> {
        let now = clock::wall_ns();
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        self.change("keep what became of an entry of the outbox", |tx| {
            let (state, next, why) = match delivery {
                Delivery::Sent => ("sent", 0, String::new()),
                Delivery::Refused(why) => ("dead", 0, words(why)),
                Delivery::Later(why, _) if now.saturating_sub(entry.at_ns) > nanos(give_up) => {
                    ("dead", 0, words(why))
                }
                Delivery::Later(why, after) => {
                    let pause = after.unwrap_or_else(|| pause(entry.tries));
                    ("waiting", now.saturating_add(nanos(pause)), words(why))
                }
            };
            tx.execute(
                "UPDATE outbox SET state = ?2, tries = tries + 1, next_ns = ?3, why = ?4 WHERE seq = ?1",
                params![entry.seq, state, next, why],
            )
            .map(drop)
        })
    }

    /// Remembers what `sink` made of a task, durably, before anything else is done with it.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn keep_external(&self, sink: &str, task: &str, made: &str) -> Result<(), QueueError> {
        let task = super::number(task)?;
        self.change("keep what a sink made of a task", |tx| {
            tx.execute(
                "INSERT OR REPLACE INTO outbox_external (sink, task, external) VALUES (?1, ?2, ?3)",
                params![sink, task, made],
            )
            .map(drop)
        })
    }

    /// The outbox, oldest first; `dead`: only what was given up.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn outbox(&self, dead: bool) -> Result<Vec<OutboxView>, QueueError> {
        let mut views: Vec<OutboxView> = self.read("read the outbox", |db| {
            let mut sql = db.prepare_cached(
                "SELECT seq, sink, task, event, at_ns, state, tries, next_ns, why,
                        (SELECT external FROM outbox_external x WHERE x.sink = o.sink AND x.task = o.task)
                 FROM outbox o WHERE ?1 = 0 OR state = 'dead' ORDER BY seq DESC LIMIT ?2",
            )?;
            sql.query_map(params![dead, MAX_SHOWN], |row| {
                let next: i64 = row.get(7)?;
                Ok(OutboxView {
                    seq: row.get(0)?,
                    sink: row.get(1)?,
                    task: format!("t-{}", row.get::<_, i64>(2)?),
                    event: row.get(3)?,
                    at: clock::rfc3339_wall(row.get(4)?),
                    state: row.get(5)?,
                    tries: row.get(6)?,
                    next: (next > 0).then(|| clock::rfc3339_wall(next)),
                    why: row.get(8)?,
                    external: row.get(9)?,
                })
            })?
            .collect()
        })?;
        views.reverse();
        Ok(views)
    }

    /// Has what was given up, or waits for its pause to end, tried again now: the entry `seq`, or all. How many there were.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn retry(&self, seq: Option<i64>) -> Result<u64, QueueError> {
        let now = clock::wall_ns();
        self.change("have the outbox tried again", |tx| {
            let n = tx.execute(
                "UPDATE outbox SET at_ns = CASE state WHEN 'dead' THEN ?2 ELSE at_ns END, state = 'waiting', next_ns = 0
                 WHERE state IN ('dead', 'waiting') AND (?1 IS NULL OR seq = ?1)",
                params![seq, now],
            )?;
            Ok(n as u64)
        })
    }
}

fn external(db: &Connection, sink: &str, task: i64) -> rusqlite::Result<Option<String>> {
    db.prepare_cached("SELECT external FROM outbox_external WHERE sink = ?1 AND task = ?2")?
        .query_row(params![sink, task], |row| row.get(0))
        .optional()
}

/// Twice as long after each failure, each time between half of it and all of it: many that failed together come apart.
fn pause(tries: u32) -> Duration {
    let full =
        FIRST_PAUSE.saturating_mul(1_u32.checked_shl(tries.min(20)).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
    let mut random = [0_u8; 1];
    // Without randomness it is the whole pause.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    full.saturating_sub(full.mul_f64(f64::from(random[0]) / 512.0))
}

/// What a sink said, cut: text of others.
fn words(text: &str) -> String {
    super::redact::redact(text).text.chars().take(300).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_not_all_the_same() {
        for (tries, least, most) in
            [(0, 500, 1000), (3, 4000, 8000), (9, 256_000, 512_000), (4_000_000, 300_000, 600_000)]
        {
            let took = pause(tries).as_millis();
            assert!((least..=most).contains(&took), "{tries}: {took}");
        }
        let all: Vec<u128> = (0..64).map(|_| pause(3).as_millis()).collect();
        let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(most - least > 1000, "{all:?}");
    }
}
