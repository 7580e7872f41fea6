//! The tables of the queue, and how those of an older agent are brought up to date.

use rusqlite::Connection;

const TABLES: &str = "
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
CREATE TABLE IF NOT EXISTS queue_after (
    task INTEGER NOT NULL,
    on_task INTEGER NOT NULL,
    PRIMARY KEY (task, on_task)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue_refused (
    trigger TEXT NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL,
    last TEXT NOT NULL,
    PRIMARY KEY (trigger, reason)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    sink TEXT NOT NULL,
    task INTEGER NOT NULL,
    event TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    state TEXT NOT NULL,
    tries INTEGER NOT NULL,
    next_ns INTEGER NOT NULL,
    why TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_due ON outbox (sink, state, next_ns, seq);
CREATE INDEX IF NOT EXISTS outbox_task ON outbox (sink, task, state, seq);
CREATE TABLE IF NOT EXISTS outbox_external (
    sink TEXT NOT NULL,
    task INTEGER NOT NULL,
    external TEXT NOT NULL,
    PRIMARY KEY (sink, task)
) WITHOUT ROWID;
";

/// Columns that came later, with what older rows have in them.
const LATER: &[(&str, &str, &str)] = &[
    ("queue", "priority", "INTEGER NOT NULL DEFAULT 2"),
    ("queue", "attempts", "INTEGER NOT NULL DEFAULT 0"),
    ("queue", "last_ns", "INTEGER NOT NULL DEFAULT 0"),
    ("queue", "brief", "TEXT NOT NULL DEFAULT '{}'"),
    ("queue_attached", "item", "TEXT"),
];

/// After the columns are there. The first is what a claim reads: as many rows as it skips, however many tasks there are.
const INDEXES: &str = "
DROP INDEX IF EXISTS queue_state;
CREATE INDEX IF NOT EXISTS queue_waits ON queue (priority, count DESC, id) WHERE state IN ('open', 'reopened');
CREATE INDEX IF NOT EXISTS queue_leases ON queue (lease_ns) WHERE state = 'claimed';
CREATE INDEX IF NOT EXISTS queue_by_state ON queue (state, id);
CREATE INDEX IF NOT EXISTS queue_filed ON queue (filed_ns, trigger);
CREATE INDEX IF NOT EXISTS queue_firing ON queue (firing) WHERE firing IS NOT NULL;
";

/// Makes the tables, or brings those of an older agent up to date.
pub(super) fn make(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(TABLES)?;
    for (table, column, kind) in LATER {
        let there: bool = tx.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)",
            [table, column],
            |row| row.get(0),
        )?;
        if !there {
            tx.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    tx.execute_batch(INDEXES)?;
    tx.commit()
}
