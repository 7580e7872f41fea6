//! Looking for rot in the store itself: every content is read and compared with its name, and one that is damaged is
//! taken anew from a file that still is what it should be.

use std::path::PathBuf;

use super::objects::{ObjectError, Sync};
use super::{Store, StoreError, database, lock};
use crate::file_state::{ContentKind, Digest};

/// What became of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is what its name says; so many bytes were read.
    Sound(u64),
    /// It was damaged or missing, and was taken anew from this file.
    Mended {
        /// What was wrong.
        why: String,
        /// The file.
        from: PathBuf,
    },
    /// It is damaged or missing, and no file is there to take it from.
    Lost {
        /// What is wrong.
        why: String,
        /// Files whose version it is: they cannot be restored to it.
        needed_by: Vec<PathBuf>,
    },
    /// It is not needed any more.
    Gone,
}

impl Store {
    /// Digests of all contents that versions need, in order, after `after`; at most `limit`.
    ///
    /// # Errors
    /// As SQLite says it.
    pub fn digests(&self, after: Option<&Digest>, limit: u32) -> Result<Vec<Digest>, StoreError> {
        let doing = "list the contents";
        let db = lock(&self.db);
        let mut statement = db
            .prepare_cached(
                "SELECT DISTINCT digest FROM snapshots WHERE digest > ?1 ORDER BY digest LIMIT ?2",
            )
            .map_err(database(doing))?;
        let after = after.map_or("", |digest| digest.0.as_str());
        let rows = statement.query_map(rusqlite::params![after, limit], |row| Ok(Digest(row.get(0)?)));
        rows.and_then(Iterator::collect).map_err(database(doing))
    }

    /// Reads the content `digest`, calling `rest` with the size of each block, and mends it where it can. No lock is held
    /// while a sound content is read.
    ///
    /// # Errors
    /// Where it cannot be said: the disk refuses to read, or the key for secrets cannot be used.
    pub fn scrub(&self, digest: &Digest, rest: impl FnMut(u64)) -> Result<Health, StoreError> {
        let why = match self.objects.check_slowly(digest, rest) {
            Ok(bytes) => return Ok(Health::Sound(bytes)),
            // Of weights a manifest may be all that is kept.
            Err(ObjectError::Missing { .. }) if self.is_by_manifest_alone(digest)? => {
                return Ok(Health::Sound(0));
            }
            Err(err @ (ObjectError::Damaged { .. } | ObjectError::Missing { .. })) => err.to_string(),
            Err(ObjectError::Read { digest, source }) => {
                // A disk that cannot read it back has lost it; the file may lie elsewhere.
                format!("the kept content {} cannot be read: {source}", digest.short())
            }
            Err(err) => return Err(err.into()),
        };
        let _changing = lock(&self.changing);
        let versions = self.versions_of(digest)?;
        if versions.is_empty() {
            return Ok(Health::Gone);
        }
        let files: std::collections::BTreeMap<PathBuf, ContentKind> = versions.into_iter().collect();
        for (path, kind) in &files {
            if *kind == ContentKind::Weights {
                if self.copy_again(path, digest).is_ok_and(|copied| copied) {
                    return Ok(Health::Mended { why, from: path.clone() });
                }
                continue;
            }
            // Taken in under the digest that it has: another content makes an object that the next line drops again.
            let Ok((found, ..)) = self.read_in(path, *kind, Sync::Now) else { continue };
            if found == *digest && self.objects.check(digest).is_ok() {
                return Ok(Health::Mended { why, from: path.clone() });
            }
            self.drop_unneeded(&found)?;
        }
        Ok(Health::Lost { why, needed_by: files.into_keys().collect() })
    }

    /// Whether all versions with this content are weights of which a sound manifest is there.
    fn is_by_manifest_alone(&self, digest: &Digest) -> Result<bool, StoreError> {
        let versions = self.versions_of(digest)?;
        let weights = versions.iter().all(|(_, kind)| *kind == ContentKind::Weights);
        Ok(weights && !versions.is_empty() && self.manifests.read(digest).is_ok())
    }

    fn versions_of(&self, digest: &Digest) -> Result<Vec<(PathBuf, ContentKind)>, StoreError> {
        let doing = "find the versions of a content";
        self.list(doing, &format!("{} WHERE s.digest = '{}'", super::SELECT, plain(digest)))
            .map(|all| all.into_iter().map(|s| (s.path, s.known.kind)).collect())
    }

    fn drop_unneeded(&self, digest: &Digest) -> Result<(), StoreError> {
        if self.versions_of(digest)?.is_empty() {
            self.objects.remove(digest)?;
        }
        Ok(())
    }
}

/// Only what a digest is made of: it stands in a query.
fn plain(digest: &Digest) -> String {
    digest.0.chars().filter(char::is_ascii_hexdigit).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::snapshots::Take;
    use crate::state_dir::StateDir;

    /// The one object of the store.
    fn object(state: &StateDir) -> PathBuf {
        let folder = fs::read_dir(state.objects()).unwrap().next().unwrap().unwrap().path();
        fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    }

    fn rot(object: &Path, at: usize) {
        fs::set_permissions(object, fs::Permissions::from_mode(0o600)).unwrap();
        let mut bytes = fs::read(object).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 0x10;
        fs::write(object, bytes).unwrap();
    }

    #[test]
    fn a_flipped_bit_in_any_form_is_found_and_mended_from_the_file_or_told() {
        for kind in [ContentKind::Config, ContentKind::Secret, ContentKind::Weights] {
            for content in [&b"short"[..], "line of a config\n".repeat(2000).as_bytes()] {
                let dir = tempfile::tempdir().unwrap();
                let top = dir.path().canonicalize().unwrap();
                let state = StateDir::open(&top.join("state")).unwrap();
                let store = Store::open(&state).unwrap();
                let path = top.join("a.conf");
                fs::write(&path, content).unwrap();
                let take = Take { kind, ..Take::default() };
                let digest = store.take(&path, take).unwrap().snapshot.known.digest;
                let what = format!("{kind:?}, {} bytes", content.len());
                assert_eq!(
                    store.scrub(&digest, |_| {}).unwrap(),
                    Health::Sound(content.len() as u64),
                    "{what}"
                );
                assert_eq!(store.digests(None, 9).unwrap(), std::slice::from_ref(&digest));
                assert!(store.digests(Some(&digest), 9).unwrap().is_empty());
                let size = fs::metadata(object(&state)).unwrap().len() as usize;
                for at in [0, 1, size / 2, size - 1] {
                    rot(&object(&state), at);
                    let found = store.scrub(&digest, |_| {}).unwrap();
                    assert!(
                        matches!(&found, Health::Mended { from, .. } if *from == path),
                        "{what}, {at}: {found:?}"
                    );
                    store.check_object(&digest).unwrap();
                }
                rot(&object(&state), 3);
                fs::write(&path, "not it any more").unwrap();
                let found = store.scrub(&digest, |_| {}).unwrap();
                assert!(
                    matches!(&found, Health::Lost { needed_by, .. } if *needed_by == [path.clone()]),
                    "{found:?}"
                );
                let there = fs::read_dir(state.objects())
                    .unwrap()
                    .flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap());
                assert_eq!(there.count(), 1, "{what}: what was read to mend it stays");
                store.forget(&path).unwrap();
                assert_eq!(store.scrub(&digest, |_| {}).unwrap(), Health::Gone);
            }
        }
    }

    #[test]
    fn weights_of_which_only_digests_are_kept_are_sound_as_long_as_their_manifest_is() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let state = StateDir::open(&top.join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        let path = top.join("m.bin");
        fs::write(&path, [7; 9000]).unwrap();
        let take = Take { kind: ContentKind::Weights, ..Take::default() };
        let (never, idle) = (crate::file_state::KeepCopy::Never, crate::weights::hash::Progress::default());
        let digest = store.take_weights(&path, take, never, &idle).unwrap().0.snapshot.known.digest;
        assert_eq!(store.objects.form(&digest).unwrap(), None, "a copy is kept");
        assert_eq!(store.scrub(&digest, |_| {}).unwrap(), Health::Sound(0));
        rot(&state.path().join("manifests").join(&digest.0), 100);
        let found = store.scrub(&digest, |_| {}).unwrap();
        assert!(matches!(&found, Health::Lost { .. }), "{found:?}");
    }

    #[test]
    fn a_secret_lies_sealed_and_opens_again_with_the_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let state = StateDir::open(&top.join("state")).unwrap();
        let store = Store::open(&state).unwrap();
        let path = top.join("token");
        let secret = "hunter2 ".repeat(1000);
        fs::write(&path, &secret).unwrap();
        // First as a config, then said to be a secret: what was kept before is sealed, too.
        let first = store.take(&path, Take::default()).unwrap().snapshot;
        fs::write(&path, secret.clone() + "!").unwrap();
        store.take(&path, Take { kind: ContentKind::Secret, ..Take::default() }).unwrap();
        let key = state.path().join("secret.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
        let objects: Vec<PathBuf> = fs::read_dir(state.objects())
            .unwrap()
            .flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap().map(|e| e.unwrap().path()))
            .collect();
        assert_eq!(objects.len(), 2);
        for object in &objects {
            assert_eq!(object.extension().and_then(|e| e.to_str()), Some("age"));
            let bytes = fs::read(object).unwrap();
            assert!(bytes.starts_with(b"age-encryption.org/v1"), "{object:?}");
            assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"));
        }
        let mut out = String::new();
        std::io::Read::read_to_string(&mut store.read(&first.known.digest).unwrap(), &mut out).unwrap();
        assert_eq!(out, secret);

        drop(store);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let store = Store::open(&state).unwrap();
        let err = store.check_object(&first.known.digest).unwrap_err();
        assert!(err.to_string().contains("must be 0600"), "{err}");
        fs::rename(&key, top.join("away")).unwrap();
        let err = store.check_object(&first.known.digest).unwrap_err();
        assert!(err.to_string().contains("is gone"), "{err}");
    }
}
