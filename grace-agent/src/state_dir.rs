//! The folder that holds everything Grace must not lose, and the lock that says whose it is.
//!
//! One agent at a time: [`StateDir`] holds an exclusive lock while it lives. The database is checked once, when the
//! folder is opened; a damaged one is set aside, never deleted, and a new one begun.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock, fsync};
use rustix::io::Errno;

use crate::clock;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// See the message.
    #[error("cannot create the state folder `{}`", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("cannot look at `{}`", path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error(
        "`{}` is not a folder (a symbolic link, perhaps): give `--state-dir` the real folder", path.display()
    )]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// See the message.
    #[error(
        "`{}` belongs to user {owner}, but Grace runs as user {agent}: \
         change its owner or choose another `--state-dir`", path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who Grace is.
        agent: u32,
    },
    /// See the message.
    #[error("cannot make `{}` private (mode 0700)", path.display())]
    Protect {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("another agent (pid {pid}) uses `{}`: stop it, or choose another `--state-dir`", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Its process id, as it wrote it; `unknown` where it could not be read.
        pid: String,
    },
    /// See the message.
    #[error("cannot lock `{}`", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("cannot open the database `{}`", path.display())]
    OpenDatabase {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// See the message.
    #[error("the database `{}` is damaged and cannot be set aside", path.display())]
    SetAside {
        /// The database.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("cannot make `{}` durable", path.display())]
    Sync {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The state folder, locked by this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    damaged: Option<String>,
    /// Held, not used: the write-ahead log goes when the last connection does, and SQLite takes no notice when it
    /// cannot sync the folder for a new one. So it is made, and its name synced, once.
    _keeper: Mutex<Connection>,
    /// Held, not read: the lock ends with it.
    _lock: File,
}

impl StateDir {
    /// Opens `path`, or creates it, private to this user, with its subfolders, and takes the lock.
    ///
    /// # Errors
    /// Where it is not a private folder of this user's, another agent holds it, or the disk refuses.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        private_folder(path, true)?;
        for sub in ["objects", "quarantine", "logs", "events"] {
            private_folder(&path.join(sub), false)?;
        }
        let lock = lock(path)?;
        let db = path.join(DB);
        let damaged = set_aside_if_damaged(path, &db)?;
        let keeper = open_db(&db)?;
        sync_folder(path)?;
        Ok(Self { path: path.to_owned(), damaged, _keeper: Mutex::new(keeper), _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Contents of snapshots, by digest.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// What restores displaced.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    /// Output of declared processes.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Recorded events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    /// What was found damaged and where it lies now, in words; none where everything was sound.
    #[must_use]
    pub fn damaged(&self) -> Option<&str> {
        self.damaged.as_deref()
    }

    /// A connection to `state.db`: write-ahead log, every commit on disk before it is acknowledged, at most 5 s of
    /// waiting for another connection.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn db(&self) -> Result<Connection, StateError> {
        open_db(&self.path.join(DB))
    }
}

fn open_db(path: &Path) -> Result<Connection, StateError> {
    // SQLite would create it with the umask's mode; `-wal` and `-shm` then take over the database's.
    let created = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    created.map_err(|source| StateError::Protect { path: path.to_owned(), source })?;
    let failed = |source| StateError::OpenDatabase { path: path.to_owned(), source };
    let db = connect(path).map_err(failed)?;
    // The first read makes the write-ahead log.
    let _: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    Ok(db)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -512; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
    )?;
    Ok(db)
}

/// Makes or checks a folder: real, this user's, 0700. `parents`: those of the state folder are made, too.
fn private_folder(path: &Path, parents: bool) -> Result<(), StateError> {
    if parents && let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(|source| StateError::Create { path: path.to_owned(), source })?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(StateError::Create { path: path.to_owned(), source }),
    }
    let meta =
        fs::symlink_metadata(path).map_err(|source| StateError::Look { path: path.to_owned(), source })?;
    if !meta.is_dir() {
        return Err(StateError::NotAFolder { path: path.to_owned() });
    }
    let agent = rustix::process::geteuid().as_raw();
    if meta.uid() != agent {
        return Err(StateError::Foreign { path: path.to_owned(), owner: meta.uid(), agent });
    }
    if meta.mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(|source| StateError::Protect { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// How often a lock that is held is tried again, and after what time.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

fn lock(folder: &Path) -> Result<File, StateError> {
    let path = folder.join("lock");
    let failed = |source| StateError::Lock { path: path.clone(), source };
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    // What an agent that has just ended was starting holds its lock until it runs its program.
    let mut locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    for _ in 0..LOCK_TRIES {
        if locked != Err(Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only for the message: a lock without a readable pid is still a lock.
            let read = (&mut file).take(20).read_to_string(&mut pid);
            let pid = pid.trim().parse::<u32>().ok().filter(|_| read.is_ok());
            return Err(StateError::InUse {
                path: folder.to_owned(),
                pid: pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()),
            });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Sets a database that SQLite cannot make sense of aside; says in words what was done.
fn set_aside_if_damaged(folder: &Path, db: &Path) -> Result<Option<String>, StateError> {
    let size = match fs::symlink_metadata(db) {
        Ok(meta) => meta.len(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Look { path: db.to_owned(), source }),
    };
    let why = match check(db, size) {
        Ok(None) => return Ok(None),
        Ok(Some(why)) => why,
        Err(err) if is_damage(&err) => err.to_string(),
        Err(source) => return Err(StateError::OpenDatabase { path: db.to_owned(), source }),
    };
    let stamp = clock::wall_rfc3339().replace(':', "-");
    let aside = format!("{DB}.damaged-{stamp}");
    // The log and its index belong to the damaged database: a new one must not replay them.
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (folder.join(format!("{DB}{suffix}")), folder.join(format!("{aside}{suffix}")));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StateError::SetAside { path: from, source }),
        }
    }
    sync_folder(folder)?;
    Ok(Some(format!(
        "the database {} was damaged ({why}); it was kept as {} and a new one begun: \
         snapshots, firings and tasks of before are not known any more",
        db.display(),
        folder.join(aside).display()
    )))
}

/// Why SQLite finds the database unsound; none where it is sound.
fn check(db: &Path, size: u64) -> rusqlite::Result<Option<String>> {
    let connection = connect(db)?;
    let _: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    // Reading every page of a large journal would hold up the start; damage deeper in it is met, and said, by
    // whoever reads it.
    if size > CHECK_MAX {
        return Ok(None);
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((verdict != "ok").then_some(verdict))
}

fn is_damage(err: &rusqlite::Error) -> bool {
    matches!(
        err.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

fn sync_folder(path: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::Sync { path: path.to_owned(), source };
    let folder = File::open(path).map_err(failed)?;
    fsync(&folder).map_err(|errno| failed(errno.into()))
}

const DB: &str = "state.db";

/// Databases up to this size are checked whole at start.
const CHECK_MAX: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_folder_and_all_in_it_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.damaged(), None);
        for folder in [state.path(), &state.objects(), &state.quarantine(), &state.logs(), &state.events()] {
            assert_eq!(mode(folder), 0o700, "{}", folder.display());
        }
        assert!(path.join("state.db-wal").exists(), "its name would not be durable");
        let db = state.db().unwrap();
        db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
        for file in ["state.db", "state.db-wal", "state.db-shm", "lock"] {
            assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        }
        let pragma = |name: &str| {
            db.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, rusqlite::types::Value>(0))
        };
        assert_eq!(pragma("synchronous").unwrap(), 2.into());
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        assert_eq!(pragma("foreign_keys").unwrap(), 1.into());
    }

    #[test]
    fn a_folder_that_others_could_read_is_made_private_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(mode(state.path()), 0o700);
    }

    #[test]
    fn a_second_agent_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let err = StateDir::open(dir.path()).unwrap_err();
        let StateError::InUse { pid, .. } = &err else { panic!("{err:?}") };
        assert_eq!(*pid, std::process::id().to_string());
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_link_and_a_foreign_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(StateDir::open(&link), Err(StateError::NotAFolder { .. })));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&real, Some(12345), None).unwrap();
            let err = StateDir::open(&real).unwrap_err();
            assert!(matches!(err, StateError::Foreign { owner: 12345, agent: 0, .. }), "{err:?}");
        }
    }

    #[test]
    fn a_damaged_database_is_kept_and_a_new_one_begun() {
        let dir = tempfile::tempdir().unwrap();
        let rows = |state: &StateDir| {
            state.db().unwrap().query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get::<_, i64>(0))
        };
        let state = StateDir::open(dir.path()).unwrap();
        state.db().unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        assert_eq!(rows(&state).unwrap(), 1);
        drop(state);

        let db = dir.path().join(DB);
        let mut bytes = fs::read(&db).unwrap();
        bytes[..200].fill(0xee);
        fs::write(&db, &bytes).unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let said = state.damaged().unwrap().to_owned();
        assert!(said.contains("state.db.damaged-"), "{said}");
        assert_eq!(rows(&state).unwrap(), 0);
        let kept = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()).find(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.starts_with("state.db.damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        });
        assert_eq!(fs::read(kept.unwrap().path()).unwrap(), bytes);
        drop(state);
        assert_eq!(StateDir::open(dir.path()).unwrap().damaged(), None);
    }
}
