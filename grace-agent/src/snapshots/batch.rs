//! Many versions at once: the contents of a folder are made durable by one sync and acknowledged by one commit, where
//! each file by itself would take several of both.

use std::path::{Path, PathBuf};

use rustix::fs::syncfs;

use super::objects::{ObjectError, Sync};
use super::{Store, StoreError, Take, Taken, add, begin, lock};
use crate::file_state::{ContentKind, KnownGood};

/// Files that are taken together. What a crash in between costs is the work on so many.
const BATCH: usize = 512;

/// Fewer are taken one by one: the one sync is of the whole file system, whoever wrote to it.
const FEW: usize = 8;

impl Store {
    /// Keeps each of `files` as [`Store::take`] does; what became of each, in the same order. What is acknowledged
    /// survives a crash and a power loss.
    pub fn take_all(&self, files: Vec<(PathBuf, Take)>) -> Vec<(PathBuf, Result<Taken, StoreError>)> {
        let mut out = Vec::with_capacity(files.len());
        let mut rest = files.into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Vec<(PathBuf, Take)> = rest.by_ref().take(BATCH).collect();
            // Weights are as large as many batches.
            let weights = batch.iter().any(|(_, take)| take.kind == ContentKind::Weights);
            if batch.len() < FEW || weights {
                out.extend(batch.into_iter().map(|(path, take)| {
                    let taken = self.take(&path, take);
                    (path, taken)
                }));
            } else {
                out.extend(self.take_batch(batch));
            }
        }
        out
    }

    fn take_batch(&self, batch: Vec<(PathBuf, Take)>) -> Vec<(PathBuf, Result<Taken, StoreError>)> {
        let _changing = lock(&self.changing);
        let secrets = batch.iter().any(|(_, take)| take.kind == ContentKind::Secret);
        let folder = match self.objects.folder() {
            Ok(folder) => folder,
            Err(err) => return refused(batch.into_iter().map(|(path, _)| path), &err.to_string()),
        };
        let read: Vec<_> = batch
            .into_iter()
            .map(|(path, take)| {
                let read = self.read_in(&path, take.kind, Sync::Later);
                (path, read.map(|(digest, meta, mtime_ns)| (take, digest, meta, mtime_ns)))
            })
            .collect();
        // Opened before the first was written, so that what could not be written meanwhile is told here.
        let synced = syncfs(&folder).map_err(|errno| {
            ObjectError::Write { path: self.objects.path().to_owned(), source: errno.into() }.to_string()
        });
        let added = synced.and_then(|()| {
            let mut db = lock(&self.db);
            let failed = |err: rusqlite::Error| format!("the database could not keep the snapshots: {err}");
            let tx = begin(&mut db).map_err(failed)?;
            let mut out = Vec::with_capacity(read.len());
            for (path, read) in &read {
                out.push(match read {
                    Ok((take, digest, meta, mtime_ns)) => {
                        let known = KnownGood {
                            snapshot: 0,
                            digest: digest.clone(),
                            meta: meta.clone(),
                            mtime_ns: *mtime_ns,
                            kind: take.kind,
                            writers: take.writers.clone(),
                        };
                        Some(add(&tx, path, known, &take.reason, &take.author).map_err(failed)?)
                    }
                    Err(_) => None,
                });
            }
            tx.commit().map_err(failed)?;
            Ok(out)
        });
        let added = match added {
            Ok(added) => added,
            Err(why) => return refused(read.into_iter().map(|(path, _)| path), &why),
        };
        if secrets && let Err(err) = self.seal_secrets() {
            tracing::error!(%err, "contents of secrets lie unsealed in the state folder");
        }
        read.into_iter()
            .zip(added)
            .map(|((path, read), added)| match (read, added) {
                (Ok(_), Some(taken)) => (path, Ok(taken)),
                (Err(err), _) => (path, Err(err)),
                (Ok(_), None) => {
                    let err = together(&path, "it was left out");
                    (path, Err(err))
                }
            })
            .collect()
    }
}

fn refused(paths: impl Iterator<Item = PathBuf>, why: &str) -> Vec<(PathBuf, Result<Taken, StoreError>)> {
    paths
        .map(|path| {
            let err = together(&path, why);
            (path, Err(err))
        })
        .collect()
}

fn together(path: &Path, why: &str) -> StoreError {
    StoreError::Together { path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state_dir::StateDir;

    #[test]
    fn many_files_become_versions_and_each_refusal_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let state = StateDir::open(&top.join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        let files: Vec<PathBuf> = (0..1100).map(|n| top.join(format!("{n}.conf"))).collect();
        for (n, path) in files.iter().enumerate() {
            // Many share a content, and one is not there.
            if n != 700 {
                fs::write(path, format!("content {}", n % 300)).unwrap();
            }
        }
        let wanted = || files.iter().map(|path| (path.clone(), Take::default())).collect();
        let taken = store.take_all(wanted());
        assert_eq!(taken.iter().map(|(path, _)| path).collect::<Vec<_>>(), files.iter().collect::<Vec<_>>());
        for (n, (path, taken)) in taken.iter().enumerate() {
            match taken {
                Ok(taken) => assert!(taken.added && store.check_object(&taken.snapshot.known.digest).is_ok()),
                Err(err) => assert!(n == 700 && matches!(err, StoreError::Missing { .. }), "{path:?}: {err}"),
            }
        }
        assert_eq!(store.current().unwrap().len(), 1099);
        assert_eq!(store.digests(None, 1000).unwrap().len(), 300);
        let again = store.take_all(wanted());
        assert!(again.iter().all(|(_, taken)| taken.as_ref().map_or(true, |taken| !taken.added)));
    }
}
