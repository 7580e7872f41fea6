//! Rows of the queue as documents, and the lines of their history.

use rusqlite::{Connection, OptionalExtension, params};

use super::MAX_HISTORY;
use crate::api::view::{ClaimView, EvidenceView, JournalView, TaskView};
use crate::clock;
use crate::event::Timestamp;

const COLUMNS: &str = "id, fingerprint, count, title, trigger, state, agent, lease_ns, evidence, acceptance, token, boot, \
                       submitted_ns, subject, firing, priority, attempts, filed_ns, last_ns, brief";

/// A row.
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) view: TaskView,
    pub(super) token: Option<String>,
    pub(super) submitted_ns: Option<i64>,
    pub(super) subject: String,
    pub(super) firing: Option<u64>,
}

/// The rows that `rest` (what follows FROM queue) selects.
pub(super) fn select(
    db: &Connection,
    rest: &str,
    values: impl rusqlite::Params,
    boot_id: &str,
) -> rusqlite::Result<Vec<Row>> {
    let mut sql = db.prepare_cached(&format!("SELECT {COLUMNS} FROM queue {rest}"))?;
    sql.query_map(values, |row| read(row, boot_id))?.collect()
}

/// The row of one task.
pub(super) fn find(db: &Connection, id: i64, boot_id: &str) -> rusqlite::Result<Option<Row>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM queue WHERE id = ?1"))?
        .query_row([id], |row| read(row, boot_id))
        .optional()
}

fn read(row: &rusqlite::Row<'_>, boot_id: &str) -> rusqlite::Result<Row> {
    let id: i64 = row.get(0)?;
    let lease_ns: Option<u64> = row.get(7)?;
    let (agent, boot): (Option<String>, Option<String>) = (row.get(6)?, row.get(11)?);
    let here = boot.as_deref() == Some(boot_id);
    let state: String = row.get(5)?;
    let claim = agent.filter(|_| state == "claimed").map(|agent| ClaimView {
        agent,
        lease_until: lease_ns
            .filter(|_| here)
            .map(|ns| clock::rfc3339(Timestamp(ns)))
            .unwrap_or_else(|| "over: the host was started again".to_owned()),
    });
    let (evidence, brief): (String, String) = (row.get(8)?, row.get(19)?);
    let (filed_ns, last_ns): (i64, i64) = (row.get(17)?, row.get(18)?);
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
            priority: row.get(15)?,
            attempts: row.get(16)?,
            after: Vec::new(),
            first_seen: clock::rfc3339_wall(filed_ns),
            last_seen: clock::rfc3339_wall(last_ns.max(filed_ns)),
            brief: serde_json::from_str(&brief).unwrap_or_default(),
        },
    })
}

/// The task with its history and what was attached; in lists (`whole` false) without the text of attachments.
pub(super) fn completed(db: &Connection, row: Row, whole: bool) -> rusqlite::Result<TaskView> {
    let mut view = row.view;
    let text = if whole { "text" } else { "''" };
    let sql = format!(
        "SELECT name, sha256, {text}, item, length(text) FROM queue_attached WHERE task = ?1 ORDER BY seq"
    );
    let mut attached: Vec<EvidenceView> = db
        .prepare_cached(&sql)?
        .query_map([row.id], |row| {
            let item: Option<String> = row.get(3)?;
            // Of an older agent there is none.
            let item = item.and_then(|item| serde_json::from_str::<EvidenceView>(&item).ok());
            let (name, sha256, text) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let bytes = row.get(4)?;
            let item = item.unwrap_or_else(|| EvidenceView {
                name: String::new(),
                trust: "untrusted".to_owned(),
                sha256: String::new(),
                text: String::new(),
                source: "an agent".to_owned(),
                from: None,
                to: None,
                bytes,
                truncated: false,
                redacted: 0,
            });
            Ok(EvidenceView { name, sha256, text, ..item })
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
    view.after = db
        .prepare_cached(
            "SELECT on_task FROM queue_after JOIN queue ON queue.id = on_task
             WHERE task = ?1 AND state NOT IN ('verified', 'cancelled') ORDER BY on_task",
        )?
        .query_map([row.id], |row| Ok(format!("t-{}", row.get::<_, i64>(0)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(view)
}

/// A line of a task's history: Grace's and the operator's words.
pub(super) fn note(db: &Connection, task: i64, kind: &str, text: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO queue_history (task, at, kind, text) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![task, clock::wall_rfc3339(), kind, text])
        .map(drop)
}

/// Adds an item that came after the firing's own: an attachment, somebody's words, the output of a check.
pub(super) fn attach(db: &Connection, task: i64, item: &EvidenceView) -> rusqlite::Result<()> {
    let without = EvidenceView { text: String::new(), ..item.clone() };
    db.prepare_cached(
        "INSERT INTO queue_attached (task, name, sha256, text, item) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![task, item.name, item.sha256, item.text, super::to_json(&without)])
    .map(drop)
}
