//! How long versions are kept: bounded by number and age, never without the one that is kept up.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::{Store, StoreError, begin, database, lock};
use crate::clock;

/// How many versions of a file are kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of each file, with the current one.
    pub versions: u32,
    /// After which an older version goes.
    pub age: Duration,
}

impl Store {
    /// Drops versions beyond `limits`, and contents that no version needs then; says how many versions. The current
    /// version of a file stays, however old.
    ///
    /// # Errors
    /// Where the database refuses (nothing is dropped then), or a content cannot be removed (the next start tries
    /// again).
    pub fn prune(&self, limits: Limits) -> Result<usize, StoreError> {
        let doing = "drop old versions";
        let _changing = lock(&self.changing);
        let age = i64::try_from(limits.age.as_nanos()).unwrap_or(i64::MAX);
        let before = clock::rfc3339_wall(clock::wall_ns().saturating_sub(age).max(0));
        let dropped = {
            let mut db = lock(&self.db);
            let tx = begin(&mut db).map_err(database(doing))?;
            let dropped = prune(&tx, limits.versions, &before).map_err(database(doing))?;
            tx.commit().map_err(database(doing))?;
            dropped
        };
        if dropped > 0 {
            self.drop_doomed()?;
        }
        Ok(dropped)
    }
}

fn prune(tx: &Transaction<'_>, versions: u32, before: &str) -> rusqlite::Result<usize> {
    tx.execute_batch("CREATE TEMP TABLE IF NOT EXISTS old (id INTEGER PRIMARY KEY)")?;
    tx.execute("DELETE FROM temp.old", [])?;
    // The current version is one of those that are kept, wherever it stands in the order.
    tx.execute(
        "INSERT INTO temp.old SELECT id FROM (
             SELECT s.id, s.at, o.id IS NOT NULL AS current,
                    ROW_NUMBER() OVER (PARTITION BY s.path ORDER BY o.id IS NOT NULL DESC, s.id DESC) AS nth
             FROM snapshots s LEFT JOIN owned o ON o.path = s.path AND o.id = s.id)
         WHERE NOT current AND (nth > ?1 OR at < ?2)",
        params![versions, before],
    )?;
    tx.execute(
        "INSERT OR IGNORE INTO doomed
         SELECT DISTINCT digest FROM snapshots WHERE id IN (SELECT id FROM temp.old)",
        [],
    )?;
    tx.execute("DELETE FROM snapshots WHERE id IN (SELECT id FROM temp.old)", [])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::snapshots::Take;
    use crate::state_dir::StateDir;

    #[test]
    fn old_versions_go_and_the_current_one_stays_however_old() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let state = StateDir::open(&top.join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        let path = top.join("a.conf");
        let mut ids = Vec::new();
        for n in 0..6 {
            fs::write(&path, format!("version {n}")).unwrap();
            ids.push(store.take(&path, Take::default()).unwrap().snapshot);
        }
        // Two of these contents are needed by nobody else; the second file shares one.
        let other = top.join("b.conf");
        fs::write(&other, "version 1").unwrap();
        store.take(&other, Take::default()).unwrap();
        store.make_current(ids[0].id).unwrap();
        let hour = Duration::from_secs(3600);
        let left = |store: &Store| -> Vec<u64> {
            store.all().unwrap().into_iter().filter(|s| s.path == path).map(|s| s.id).collect()
        };

        assert_eq!(store.prune(Limits { versions: 3, age: hour }).unwrap(), 3);
        assert_eq!(left(&store), [ids[0].id, ids[4].id, ids[5].id]);
        store.check_object(&ids[0].known.digest).unwrap();
        store.check_object(&ids[1].known.digest).unwrap();
        assert!(store.check_object(&ids[2].known.digest).is_err());

        assert_eq!(store.prune(Limits { versions: 3, age: Duration::ZERO }).unwrap(), 2);
        assert_eq!(left(&store), [ids[0].id]);
        assert_eq!(store.current().unwrap().len(), 2);
        assert_eq!(store.prune(Limits { versions: 1, age: Duration::ZERO }).unwrap(), 0);
    }
}
