//! The versions as rows of the database: the tables, and every statement about them that is used in more than one place.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{Snapshot, Taken};
use crate::clock;
use crate::file_state::{ContentKind, Digest, KnownGood};

/// Adds `known` as the current version of `path`, unless the current one is the same.
pub(super) fn add(
    tx: &Transaction<'_>,
    path: &Path,
    known: KnownGood,
    reason: &str,
    author: &str,
) -> rusqlite::Result<Taken> {
    if let Some(snapshot) = current_of(tx, path)? {
        let now = &snapshot.known;
        // The time of change is not part of it: the same state again is not a new version.
        let same = (&now.digest, &now.meta, now.kind, &now.writers)
            == (&known.digest, &known.meta, known.kind, &known.writers);
        if same {
            return Ok(Taken { snapshot, added: false });
        }
    }
    let at = clock::wall_rfc3339();
    let id = insert(tx, path, &at, (reason, author), &known)?;
    set_current(tx, path, id)?;
    let known = KnownGood { snapshot: id, ..known };
    let (reason, author) = (reason.to_owned(), author.to_owned());
    let snapshot = Snapshot { id, path: path.to_owned(), at, reason, author, current: true, known };
    Ok(Taken { snapshot, added: true })
}

pub(super) fn current_of(db: &Connection, path: &Path) -> rusqlite::Result<Option<Snapshot>> {
    db.prepare_cached(&format!("{SELECT} WHERE c.path = ?1"))?
        .query_row([path.as_os_str().as_bytes()], snapshot)
        .optional()
}

pub(super) fn by_id(db: &Connection, id: u64) -> rusqlite::Result<Option<Snapshot>> {
    let Ok(id) = i64::try_from(id) else { return Ok(None) };
    db.query_row(&format!("{SELECT} WHERE s.id = ?1"), [id], snapshot).optional()
}

pub(super) fn insert(
    tx: &Transaction<'_>,
    path: &Path,
    at: &str,
    (reason, author): (&str, &str),
    known: &KnownGood,
) -> rusqlite::Result<u64> {
    let meta = serde_json::to_string(&known.meta).map_err(unfit)?;
    let kind = serde_json::to_string(&known.kind).map_err(unfit)?;
    let writers = serde_json::to_string(&known.writers).map_err(unfit)?;
    tx.execute(
        "INSERT INTO snapshots (path, at, reason, digest, mtime_ns, meta, kind, writers, author)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            path.as_os_str().as_bytes(),
            at,
            reason,
            known.digest.0,
            known.mtime_ns,
            meta,
            kind,
            writers,
            author
        ],
    )?;
    Ok(u64::try_from(tx.last_insert_rowid()).unwrap_or_default())
}

pub(super) fn set_current(tx: &Transaction<'_>, path: &Path, id: u64) -> rusqlite::Result<()> {
    let id = i64::try_from(id).unwrap_or(i64::MAX);
    tx.execute(
        "INSERT OR REPLACE INTO owned (path, id) VALUES (?1, ?2)",
        params![path.as_os_str().as_bytes(), id],
    )?;
    Ok(())
}

pub(super) fn describe(
    db: &Connection,
    id: u64,
    kind: ContentKind,
    writers: &[String],
) -> rusqlite::Result<()> {
    let kind = serde_json::to_string(&kind).map_err(unfit)?;
    let writers = serde_json::to_string(writers).map_err(unfit)?;
    let id = i64::try_from(id).unwrap_or(i64::MAX);
    db.execute(
        "UPDATE snapshots SET kind = ?2, writers = ?3 WHERE id = ?1 AND (kind <> ?2 OR writers <> ?3)",
        params![id, kind, writers],
    )?;
    Ok(())
}

pub(super) fn forget(tx: &Transaction<'_>, path: &Path) -> rusqlite::Result<usize> {
    let path = path.as_os_str().as_bytes();
    tx.execute("INSERT OR IGNORE INTO doomed SELECT digest FROM snapshots WHERE path = ?1", [path])?;
    tx.execute("DELETE FROM owned WHERE path = ?1", [path])?;
    tx.execute("DELETE FROM snapshots WHERE path = ?1", [path])
}

pub(super) fn snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    let json = |column: &str| row.get::<_, String>(column);
    let id = row.get::<_, i64>("id")?.unsigned_abs();
    Ok(Snapshot {
        id,
        path: PathBuf::from(std::ffi::OsString::from_vec(row.get("path")?)),
        at: row.get("at")?,
        reason: row.get("reason")?,
        // `peek` may look at what an older agent keeps.
        author: row.get("author").unwrap_or_default(),
        current: row.get("current")?,
        known: KnownGood {
            snapshot: id,
            digest: Digest(row.get("digest")?),
            mtime_ns: row.get("mtime_ns")?,
            meta: serde_json::from_str(&json("meta")?).map_err(unfit)?,
            kind: serde_json::from_str(&json("kind")?).map_err(unfit)?,
            writers: serde_json::from_str(&json("writers")?).map_err(unfit)?,
        },
    })
}

pub(super) fn unfit(err: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(err))
}

/// Adds what tables of older agents have not.
pub(super) fn migrate(db: &Connection) -> rusqlite::Result<()> {
    let known: bool = db.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_table_info('snapshots') WHERE name = 'author')",
        [],
        |row| row.get(0),
    )?;
    if !known {
        db.execute_batch("ALTER TABLE snapshots ADD COLUMN author TEXT NOT NULL DEFAULT ''")?;
    }
    Ok(())
}

/// The write lock at once: a transaction that reads first and writes later can be refused in the middle.
pub(super) fn begin(db: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Paths are bytes. AUTOINCREMENT: a number is never used again, so one in an old journal cannot mean a new version.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL,
    digest TEXT NOT NULL, mtime_ns INTEGER NOT NULL, meta TEXT NOT NULL, kind TEXT NOT NULL, writers TEXT NOT NULL,
    author TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS snapshots_path ON snapshots (path, id);
CREATE INDEX IF NOT EXISTS snapshots_digest ON snapshots (digest);
CREATE TABLE IF NOT EXISTS owned (
    path BLOB PRIMARY KEY, id INTEGER NOT NULL REFERENCES snapshots (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS owned_id ON owned (id);
CREATE TABLE IF NOT EXISTS folders (pattern TEXT PRIMARY KEY, at TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doomed (digest TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

pub(super) const SELECT: &str = "
SELECT s.*, c.id IS NOT NULL AS current FROM snapshots s LEFT JOIN owned c ON c.path = s.path AND c.id = s.id";
