//! The snapshots: which files Grace owns, and every known-good version of them.
//!
//! Contents lie in [`objects`], found by their digest; the versions lie in the database. A version is acknowledged
//! once its content and its row are on disk, in this order: whatever happens in between, every row has its object.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rustix::fs::fstat;
use rustix::io::Errno;

use crate::clock;
use crate::file_meta::{self, MAX_CONTENT, MetaError};
use crate::file_state::{ContentKind, Digest, KeepCopy, KnownGood, Meta};
use crate::safe_path::{Entry, Parent, PathError};
use crate::sha256::each_block;
use crate::state_dir::{StateDir, StateError};
use crate::weights::hash::Progress;
use crate::weights::{ManifestError, Manifests};

mod batch;
pub mod displaced;
mod keys;
pub mod objects;
pub mod retention;
mod rows;
pub mod scrub;
mod weights;

use objects::{Form, ObjectError, Objects, Sync};
use rows::{SCHEMA, SELECT, add, begin, by_id, current_of, describe, forget, migrate, set_current, snapshot};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state folder refused.
    #[error(transparent)]
    State(#[from] StateError),
    /// The object store refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The path cannot be walked to.
    #[error(transparent)]
    Walk(#[from] PathError),
    /// See the message.
    #[error("`{}` is not there", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// See the message.
    #[error("`{}` is a {what}: only regular files are kept", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// See the message.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// See the message.
    #[error("cannot read the attributes of `{}`", path.display())]
    Attributes {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        source: MetaError,
    },
    /// See the message.
    #[error("cannot seal `{}`", path.display())]
    Seal {
        /// The sealed file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// See the message.
    #[error("`{}` has {size} bytes: at most {} MiB are kept of a config or secret", path.display(), MAX_CONTENT >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// See the message.
    #[error("`{}` changes while it is read: take the snapshot when its writer is done", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The manifest of weights cannot be kept or read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// See the message.
    #[error("the database could not {doing}")]
    Database {
        /// What was asked of it.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// See the message.
    #[error("`{}` was not kept, nor were the others of its batch: {why}", path.display())]
    Together {
        /// The file.
        path: PathBuf,
        /// What happened to all of them.
        why: String,
    },
    /// See the message.
    #[error("there is no snapshot {id}: `grace snapshots` lists them")]
    NoSuchSnapshot {
        /// Its number.
        id: u64,
    },
}

/// One known-good version of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its number, unique for good.
    pub id: u64,
    /// Absolute path.
    pub path: PathBuf,
    /// When it was taken: RFC 3339, UTC.
    pub at: String,
    /// Why it was taken.
    pub reason: String,
    /// Who took it, or whose change it is; empty where an older agent took it.
    pub author: String,
    /// True for the version that is kept up now.
    pub current: bool,
    /// Content, owner, mode.
    pub known: KnownGood,
}

/// How to take a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Take {
    /// What kind of content.
    pub kind: ContentKind,
    /// Executables whose change becomes the new known-good.
    pub writers: Vec<String>,
    /// Why it is taken; shown to people.
    pub reason: String,
    /// Who takes it, or whose change it is; shown to people.
    pub author: String,
}

/// What [`Store::take`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The version that is current now.
    pub snapshot: Snapshot,
    /// False where the current version already was what lies there: none was added.
    pub added: bool,
}

/// The snapshots of one state folder. All methods may be called from any thread.
#[derive(Debug)]
pub struct Store {
    objects: Objects,
    manifests: Manifests,
    /// Held while objects are added or removed, so that none is removed between its coming and its row's.
    /// Taken before `db` where both are.
    changing: Mutex<()>,
    db: Mutex<Connection>,
}

impl Store {
    /// Opens the snapshots in `state`, and ends what a crash left half done.
    ///
    /// # Errors
    /// Where the database or the object folder refuses.
    pub fn open(state: &StateDir) -> Result<Self, StoreError> {
        let db = state.db()?;
        db.execute_batch(SCHEMA).map_err(database("create its tables"))?;
        migrate(&db).map_err(database("bring its tables up to date"))?;
        let objects = Objects::open(state.objects(), state.path())?;
        let manifests = Manifests::open(state.path().join("manifests"))?;
        let this = Self { objects, manifests, changing: Mutex::new(()), db: Mutex::new(db) };
        this.drop_doomed()?;
        // An older agent kept them in the open, or a crash came in between. Nothing else is worse for it.
        if let Err(err) = this.seal_secrets() {
            tracing::error!(%err, "contents of secrets lie unsealed in the state folder");
        }
        Ok(this)
    }

    /// Keeps the file at `path` as it is now and makes that its current version. Once this returns, the version
    /// survives a crash and a power loss.
    ///
    /// # Errors
    /// Where the file is not a regular one of at most [`MAX_CONTENT`], cannot be read, or keeps changing, and where
    /// the store cannot write. Nothing is added then.
    pub fn take(&self, path: &Path, take: Take) -> Result<Taken, StoreError> {
        self.take_from(path, path, take)
    }

    /// Keeps the file at `from` as a version of `path`, and makes that its current one: what a restore displaced becomes
    /// known-good.
    ///
    /// # Errors
    /// As [`Store::take`], about `from`.
    pub fn take_from(&self, path: &Path, from: &Path, take: Take) -> Result<Taken, StoreError> {
        if take.kind == ContentKind::Weights {
            let taken = self.take_weights_from(path, from, take, KeepCopy::Auto, &Progress::default());
            return taken.map(|(taken, _note)| taken);
        }
        let _changing = lock(&self.changing);
        let Take { kind, writers, reason, author } = take;
        let (digest, meta, mtime_ns) = self.read_in(from, kind, Sync::Now)?;
        let known = KnownGood { snapshot: 0, digest, meta, mtime_ns, kind, writers };
        let taken = self.add(path, known, &reason, &author)?;
        if kind == ContentKind::Secret {
            // Also what was kept before the file was said to be one.
            self.seal_secrets()?;
        }
        Ok(taken)
    }

    /// The current version of every owned file, by path.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn current(&self) -> Result<Vec<Snapshot>, StoreError> {
        self.list("list the owned files", &format!("{SELECT} WHERE c.id IS NOT NULL ORDER BY s.path"))
    }

    /// Every version of every file, by path, oldest first.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn all(&self) -> Result<Vec<Snapshot>, StoreError> {
        self.list("list the snapshots", &format!("{SELECT} ORDER BY s.path, s.id"))
    }

    /// The current version of `path`; none where it is not owned.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn current_of(&self, path: &Path) -> Result<Option<Snapshot>, StoreError> {
        current_of(&lock(&self.db), path).map_err(database("find the snapshot"))
    }

    /// The version with this number.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn get(&self, id: u64) -> Result<Option<Snapshot>, StoreError> {
        by_id(&lock(&self.db), id).map_err(database("find the snapshot"))
    }

    /// Makes an older version of a file its current one.
    ///
    /// # Errors
    /// Where there is no such version.
    pub fn make_current(&self, id: u64) -> Result<Snapshot, StoreError> {
        let doing = "change the current version";
        let mut db = lock(&self.db);
        let tx = begin(&mut db).map_err(database(doing))?;
        let snapshot = by_id(&tx, id).map_err(database(doing))?.ok_or(StoreError::NoSuchSnapshot { id })?;
        set_current(&tx, &snapshot.path, id).map_err(database(doing))?;
        tx.commit().map_err(database(doing))?;
        Ok(Snapshot { current: true, ..snapshot })
    }

    /// Changes what kind of content version `id` is and who may change it, in place: the content stays the same.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn describe(&self, id: u64, kind: ContentKind, writers: &[String]) -> Result<(), StoreError> {
        let _changing = lock(&self.changing);
        describe(&lock(&self.db), id, kind, writers).map_err(database("change how the file is owned"))?;
        if kind == ContentKind::Secret { self.seal_secrets().map(drop) } else { Ok(()) }
    }

    /// Whether the files of this watched folder were once taken over.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn is_adopted(&self, pattern: &str) -> Result<bool, StoreError> {
        lock(&self.db)
            .query_row("SELECT EXISTS (SELECT 1 FROM folders WHERE pattern = ?1)", [pattern], |row| {
                row.get(0)
            })
            .map_err(database("look for a watched folder"))
    }

    /// Remembers that the files of this watched folder were taken over: what is not owned from now on is new.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn adopt(&self, pattern: &str) -> Result<(), StoreError> {
        lock(&self.db)
            .execute(
                "INSERT OR IGNORE INTO folders (pattern, at) VALUES (?1, ?2)",
                [pattern, &clock::wall_rfc3339()],
            )
            .map(drop)
            .map_err(database("keep a watched folder"))
    }

    /// Does not own `path` any more: drops its versions, and the contents that no other version needs. Says how many
    /// versions there were; 0 where it was not owned.
    ///
    /// # Errors
    /// Where the database refuses (nothing is dropped then), or a content cannot be removed (the next start tries
    /// again).
    pub fn forget(&self, path: &Path) -> Result<usize, StoreError> {
        let doing = "forget the file";
        let _changing = lock(&self.changing);
        let dropped = {
            let mut db = lock(&self.db);
            let tx = begin(&mut db).map_err(database(doing))?;
            let dropped = forget(&tx, path).map_err(database(doing))?;
            tx.commit().map_err(database(doing))?;
            dropped
        };
        if dropped > 0 {
            self.drop_doomed()?;
        }
        Ok(dropped)
    }

    /// A content, opened for reading. It is not checked: whoever copies it compares the digest.
    ///
    /// # Errors
    /// Where it is missing, or cannot be opened or unsealed.
    pub fn read(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ObjectError> {
        self.objects.read(digest)
    }

    /// The file of a content that is kept as it is; see [`Objects::plain`].
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn plain(&self, digest: &Digest) -> Result<Option<File>, ObjectError> {
        self.objects.plain(digest)
    }

    /// Reads a content and compares its digest.
    ///
    /// # Errors
    /// Where it is missing, cannot be read, or is damaged; the error names it.
    pub fn check_object(&self, digest: &Digest) -> Result<(), ObjectError> {
        self.objects.check(digest)
    }

    /// Copies the content of `path` into the object store, together with a state that it had at one moment.
    fn read_in(&self, path: &Path, kind: ContentKind, sync: Sync) -> Result<(Digest, Meta, i64), StoreError> {
        let failed = |source: std::io::Error| StoreError::Read { path: path.to_owned(), source };
        let parent = Parent::open(path)?;
        let (mut file, mut before) = match parent.entry() {
            Ok(Entry::Regular(file, stat)) => (file, stat),
            Ok(Entry::Missing) => return Err(StoreError::Missing { path: path.to_owned() }),
            Ok(Entry::Other(stat)) => {
                return Err(StoreError::NotRegular { path: path.to_owned(), what: file_meta::kind(&stat) });
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        for _ in 0..TRIES {
            let meta = file_meta::read(&file, &before)
                .map_err(|source| StoreError::Attributes { path: path.to_owned(), source })?;
            if meta.size > MAX_CONTENT {
                return Err(StoreError::TooLarge { path: path.to_owned(), size: meta.size });
            }
            let mut incoming = self.objects.begin(Form::of(kind, meta.size))?;
            let mut refused = None;
            let read = each_block(&mut file, meta.size, meta.size + 1, |block| {
                incoming.write(block).map_err(|err| {
                    refused = Some(err);
                    std::io::Error::from(Errno::IO)
                })
            });
            if let Some(err) = refused {
                return Err(err.into());
            }
            let read = read.map_err(failed)?;
            let after = fstat(&file).map_err(|errno| failed(errno.into()))?;
            if read == meta.size && file_meta::same(&before, &after) {
                return Ok((incoming.keep(sync)?, meta, file_meta::mtime_ns(&after)));
            }
            before = after;
            file.rewind().map_err(failed)?;
        }
        Err(StoreError::Changing { path: path.to_owned() })
    }

    /// Seals every content of a file that is, or was, a secret; says how many lay there in the open.
    fn seal_secrets(&self) -> Result<usize, StoreError> {
        let doing = "list the secrets";
        let secret = serde_json::to_string(&ContentKind::Secret).unwrap_or_default();
        let digests: Vec<String> = {
            let db = lock(&self.db);
            let mut statement = db
                .prepare_cached(
                    "SELECT DISTINCT digest FROM snapshots
                     WHERE path IN (SELECT path FROM snapshots WHERE kind = ?1)",
                )
                .map_err(database(doing))?;
            let rows = statement.query_map([secret], |row| row.get(0));
            rows.and_then(Iterator::collect).map_err(database(doing))?
        };
        let mut sealed = 0;
        for digest in digests.into_iter().map(Digest) {
            if matches!(self.objects.form(&digest)?, Some(Form::Plain | Form::Packed)) {
                match self.objects.seal(&digest) {
                    Ok(()) => sealed += 1,
                    // The scrub tells of it; a damaged one has no secret to give away that it had not before.
                    Err(ObjectError::Damaged { .. } | ObjectError::Missing { .. }) => {}
                    Err(err) => return Err(err.into()),
                }
            }
        }
        Ok(sealed)
    }

    fn add(&self, path: &Path, known: KnownGood, reason: &str, author: &str) -> Result<Taken, StoreError> {
        let doing = "keep the snapshot";
        let mut db = lock(&self.db);
        let tx = begin(&mut db).map_err(database(doing))?;
        let taken = add(&tx, path, known, reason, author).map_err(database(doing))?;
        if taken.added {
            tx.commit().map_err(database(doing))?;
        }
        Ok(taken)
    }

    /// Removes the contents that `forget` marked. The marks make sure that a crash in between leaves none behind.
    fn drop_doomed(&self) -> Result<(), StoreError> {
        let doing = "drop what was forgotten";
        let doomed: Vec<(String, bool)> = {
            let db = lock(&self.db);
            let mut statement = db
                .prepare("SELECT digest, EXISTS(SELECT 1 FROM snapshots s WHERE s.digest = d.digest) FROM doomed d")
                .map_err(database(doing))?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.and_then(Iterator::collect).map_err(database(doing))?
        };
        for (digest, needed) in doomed {
            if !needed {
                self.objects.remove(&Digest(digest.clone()))?;
                self.manifests.remove(&Digest(digest.clone()))?;
            }
            lock(&self.db)
                .execute("DELETE FROM doomed WHERE digest = ?1", [&digest])
                .map_err(database(doing))?;
        }
        Ok(())
    }

    fn list(&self, doing: &'static str, sql: &str) -> Result<Vec<Snapshot>, StoreError> {
        let db = lock(&self.db);
        let mut statement = db.prepare(sql).map_err(database(doing))?;
        statement.query_map([], snapshot).and_then(Iterator::collect).map_err(database(doing))
    }
}

fn database(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { doing, source }
}

/// A thread that panicked while it held the lock rolled its transaction back: what it guards is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The current versions in the state folder `folder`, read without becoming its owner: for when no agent runs. None where
/// there is no such folder.
///
/// # Errors
/// Where it may not be read, or as SQLite says it.
pub fn peek(folder: &Path) -> Result<Vec<Snapshot>, StoreError> {
    let db = folder.join("state.db");
    match db.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::Read { path: db, source }),
    }
    let doing = "list the owned files";
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let db = Connection::open_with_flags(&db, flags).map_err(database(doing))?;
    let mut query =
        db.prepare(&format!("{SELECT} WHERE c.id IS NOT NULL ORDER BY s.path")).map_err(database(doing))?;
    let rows = query.query_map([], snapshot).map_err(database(doing))?;
    rows.collect::<Result<_, _>>().map_err(database(doing))
}

/// How often a file that changes while it is read is read.
const TRIES: u32 = 3;

#[cfg(test)]
mod tests;
