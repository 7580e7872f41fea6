//! What is known of things that are not files: learned answers, snapshots of packages, known-good commits. Owns one table.
//!
//! Small documents by kind and name, each on disk before it is acknowledged. A document that does not read any more
//! (another version wrote it) is as good as none: it is learned, or taken, anew.

use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Learned answers, by endpoint.
pub const ANSWERS: &str = "answers";
/// Snapshots of packages, by environment.
pub const PACKAGES: &str = "packages";
/// Known-good commits, by the repo's folder.
pub const COMMITS: &str = "commits";

/// Known-good answers of canaries, by model.
pub const CANARIES: &str = "canaries";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS known (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
";

/// Why something is not known, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The database refused.
    #[error("what is known cannot be {what}")]
    Database {
        /// `opened`, `read`, `kept`, `forgotten`.
        what: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The document cannot be written down.
    #[error("what is known of it cannot be written down")]
    Document(#[source] serde_json::Error),
}

/// The table.
#[derive(Debug)]
pub struct Known(Mutex<Connection>);

impl Known {
    /// Opens it on a connection of its own.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn open(db: Connection) -> Result<Self, KnownError> {
        db.execute_batch(SCHEMA).map_err(failed("opened"))?;
        Ok(Self(Mutex::new(db)))
    }

    /// What is known of `name`.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn get<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<Option<T>, KnownError> {
        let text: Option<String> = self
            .db()
            .query_row("SELECT document FROM known WHERE kind = ?1 AND name = ?2", [kind, name], |row| {
                row.get(0)
            })
            .optional()
            .map_err(failed("read"))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps `document` as what is known of `name`.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn put(&self, kind: &str, name: &str, document: &impl Serialize) -> Result<(), KnownError> {
        let text = serde_json::to_string(document).map_err(KnownError::Document)?;
        let sql = "INSERT INTO known (kind, name, document) VALUES (?1, ?2, ?3)
                   ON CONFLICT (kind, name) DO UPDATE SET document = excluded.document";
        self.db().execute(sql, params![kind, name, text]).map(drop).map_err(failed("kept"))
    }

    /// Forgets `name`; false where nothing was known.
    ///
    /// # Errors
    /// Where the database refuses.
    pub fn forget(&self, kind: &str, name: &str) -> Result<bool, KnownError> {
        let gone = self.db().execute("DELETE FROM known WHERE kind = ?1 AND name = ?2", [kind, name]);
        gone.map(|n| n > 0).map_err(failed("forgotten"))
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn failed(what: &'static str) -> impl Fn(rusqlite::Error) -> KnownError {
    move |source| KnownError::Database { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_known_until_it_is_forgotten() {
        let known = Known::open(Connection::open_in_memory().unwrap()).unwrap();
        assert_eq!(known.get::<u32>(ANSWERS, "a").unwrap(), None);
        known.put(ANSWERS, "a", &1_u32).unwrap();
        known.put(ANSWERS, "a", &2_u32).unwrap();
        known.put(COMMITS, "a", &"x").unwrap();
        assert_eq!(known.get::<u32>(ANSWERS, "a").unwrap(), Some(2));
        assert_eq!(known.get::<u32>(COMMITS, "a").unwrap(), None, "another version wrote it");
        assert!(known.forget(ANSWERS, "a").unwrap());
        assert!(!known.forget(ANSWERS, "a").unwrap());
    }
}
