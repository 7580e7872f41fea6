//! What Grace does with tasks by itself: submitted ones become verified or are reopened, leases end, old ones go.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::context::Context;
use super::evidence::of_firing;
use super::rows::{self, Row, note};
use super::{Queue, QueueError, lock, to_json};
use crate::api::view::{EvidenceView, FiringView, TaskView};
use crate::clock;
use crate::firing::State;

/// What a task is judged by.
pub struct Facts<'a> {
    /// When the agent began, in nanoseconds since the epoch: silence before that says nothing.
    pub started_ns: i64,
    /// The last firing of a trigger about a subject.
    pub newest: &'a dyn Fn(&str, &str) -> Option<FiringView>,
    /// Runs the commands that must pass. What the first one that does not said.
    pub check: &'a dyn Fn(&TaskView, &str) -> Result<(), Failed>,
    /// What is around a firing now, for the evidence of a task that is reopened.
    pub context: &'a dyn Fn(&FiringView) -> Context,
}

/// A command that had to pass and did not.
#[derive(Debug)]
pub struct Failed {
    /// Which, and how it ended, in Grace's words.
    pub why: String,
    /// What it said.
    pub said: Box<EvidenceView>,
}

impl Queue {
    /// Looks at what was submitted, and at leases that are over. What became verified or was reopened, in words.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn judge(&self, facts: &Facts<'_>) -> Result<Vec<String>, QueueError> {
        let settings = lock(&self.settings).clone();
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        let submitted: Vec<Row> = self.read("list what was submitted", |db| {
            rows::select(db, "WHERE state = 'submitted' ORDER BY id LIMIT 1000", [], &self.boot_id)
        })?;
        let now = clock::wall_ns();
        let mut said = Vec::new();
        for row in submitted {
            let since = row.submitted_ns.unwrap_or(now);
            let firing = (facts.newest)(&row.view.trigger, &row.subject);
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
                    let clear = firing.as_ref().map_or(since, ended_ns).max(since).max(facts.started_ns);
                    (now.saturating_sub(clear) >= nanos(settings.soak.get())).then(|| {
                        let soak = humantime::format_duration(settings.soak.get());
                        ("verified", format!("{} stayed clear for {soak}", row.view.trigger))
                    })
                }
            };
            let Some((mut state, mut why)) = verdict else { continue };
            let mut failed = None;
            if state == "verified" {
                // The database is not held meanwhile: a check may take minutes.
                match (facts.check)(&row.view, &row.subject) {
                    Ok(()) if row.view.brief.checks.is_empty() => {}
                    Ok(()) => why.push_str(", and its checks pass"),
                    Err(no) => {
                        (state, why) = ("reopened", no.why);
                        failed = Some(no.said);
                    }
                }
            }
            let newer = firing.filter(|_| state == "reopened");
            let evidence = newer.as_ref().map(|f| to_json(&of_firing(f, &(facts.context)(f))));
            let firing = newer.map(|f| f.id.0);
            let sinks = self.sinks();
            let done = self.change("judge a task", |tx| {
                let changed = tx.execute(
                    "UPDATE queue SET state = ?2, submitted_ns = NULL, agent = NULL, evidence = COALESCE(?3, evidence),
                         firing = COALESCE(?4, firing) WHERE id = ?1 AND state = 'submitted' AND submitted_ns IS ?5",
                    params![row.id, state, evidence, firing, row.submitted_ns],
                )?;
                if changed > 0 {
                    if let Some(item) = &failed {
                        rows::attach(tx, row.id, item)?;
                    }
                    note(tx, row.id, state, &why)?;
                    super::outbox::announce(tx, &sinks, row.id, &row.view.trigger, state)?;
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

    /// Drops tasks that are over for longer than `[tasks] keep`, with all that belongs to them. How many.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn drop_old(&self) -> Result<u64, QueueError> {
        let keep = i64::try_from(lock(&self.settings).keep.get().as_nanos()).unwrap_or(i64::MAX);
        let before = clock::wall_ns().saturating_sub(keep);
        self.change("drop old tasks", |tx| {
            // What is still to be told outside keeps its task.
            let old: Vec<i64> = tx
                .prepare_cached(
                    "SELECT id FROM queue q WHERE state IN ('verified', 'cancelled') AND max(filed_ns, last_ns) < ?1
                       AND NOT EXISTS (SELECT 1 FROM outbox WHERE task = q.id AND state = 'waiting') LIMIT 1000",
                )?
                .query_map([before], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for id in &old {
                for sql in [
                    "DELETE FROM queue_history WHERE task = ?1",
                    "DELETE FROM queue_attached WHERE task = ?1",
                    "DELETE FROM queue_after WHERE task = ?1 OR on_task = ?1",
                    "DELETE FROM outbox WHERE task = ?1",
                    "DELETE FROM outbox_external WHERE task = ?1",
                    "DELETE FROM queue WHERE id = ?1",
                ] {
                    tx.prepare_cached(sql)?.execute([id])?;
                }
            }
            // What was told is of no use any more, but for its last line.
            tx.execute("DELETE FROM outbox WHERE state = 'sent' AND at_ns < ?1", [before])?;
            Ok(old.len() as u64)
        })
    }

    /// Claims whose lease is over are open again.
    pub(super) fn end_leases(&self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let now = i64::try_from(clock::boottime().0).unwrap_or(i64::MAX);
        let over: Vec<(i64, Option<String>)> = tx
            .prepare_cached("SELECT id, agent FROM queue INDEXED BY queue_leases WHERE state = 'claimed' AND lease_ns <= ?1")?
            .query_map([now], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        end_claims(tx, over)
    }
}

/// Claims of an earlier boot are over: their leases are in another time.
pub(super) fn end_foreign_leases(tx: &Transaction<'_>, boot_id: &str) -> rusqlite::Result<()> {
    let over: Vec<(i64, Option<String>)> = tx
        .prepare_cached(
            "SELECT id, agent FROM queue WHERE state = 'claimed' AND (lease_ns IS NULL OR boot IS NOT ?1)",
        )?
        .query_map([boot_id], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    end_claims(tx, over)
}

fn end_claims(tx: &Transaction<'_>, over: Vec<(i64, Option<String>)>) -> rusqlite::Result<()> {
    for (id, agent) in over {
        tx.prepare_cached(
            "UPDATE queue SET state = 'open', agent = NULL, token = NULL, lease_ns = NULL WHERE id = ?1",
        )?
        .execute([id])?;
        let agent = agent.unwrap_or_default();
        note(tx, id, "lease over", &format!("{agent} said nothing any more"))?;
    }
    Ok(())
}

/// When a firing began, in nanoseconds since the epoch.
fn began_ns(firing: &FiringView) -> i64 {
    clock::parse_rfc3339(&firing.at).unwrap_or(0)
}

/// When it was over.
fn ended_ns(firing: &FiringView) -> i64 {
    firing.cleared.as_deref().and_then(clock::parse_rfc3339).unwrap_or_else(|| began_ns(firing))
}
