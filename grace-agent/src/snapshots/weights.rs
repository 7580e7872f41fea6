//! Taking weights in: files of any size, with a manifest of their chunks, and a copy only as far as it is wanted and there is
//! room. A copy that shares the file's blocks costs nothing and cannot change under the hashing.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{fstat, fstatvfs};

use super::{Store, StoreError, TRIES, Taken, lock};
use crate::file_meta::{self, MAX_CONTENT, mtime_ns};
use crate::file_state::{Digest, KeepCopy, KnownGood};
use crate::safe_path::{Entry, Parent};
use crate::snapshots::Take;
use crate::snapshots::objects::{Form, ObjectError};
use crate::weights::chunks::Reader;
use crate::weights::hash::{self, Progress, size_in_words};
use crate::weights::layout::shown;
use crate::weights::{CHUNK, Manifest};

/// A copy that nobody asked for takes at most this part of what is free in the state folder's file system: one of so many.
const ROOM: u64 = 4;

/// What became of the copy.
enum Copied {
    /// It shares the file's blocks.
    Shared,
    /// It takes as much room again.
    Whole,
    /// The store had one.
    There,
    /// There is none, and why.
    None(String),
}

impl Store {
    /// Keeps the weights at `path` as they are now, as [`Store::take`] does: a manifest always, a copy as `keep` says. Says
    /// in words what it found and what it costs.
    ///
    /// # Errors
    /// Where the file is not a regular one, cannot be read, or keeps changing, and where the store cannot write.
    pub fn take_weights(
        &self,
        path: &Path,
        take: Take,
        keep: KeepCopy,
        progress: &Progress,
    ) -> Result<(Taken, String), StoreError> {
        self.take_weights_from(path, path, take, keep, progress)
    }

    /// The same, from the file at `from`: as [`Store::take_from`].
    pub(super) fn take_weights_from(
        &self,
        path: &Path,
        from: &Path,
        take: Take,
        keep: KeepCopy,
        progress: &Progress,
    ) -> Result<(Taken, String), StoreError> {
        let failed = |source: io::Error| StoreError::Read { path: path.to_owned(), source };
        let parent = Parent::open(from)?;
        let (file, mut before) = match parent.entry() {
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
            // Not under the lock: this may take minutes, and adds nothing that another could remove.
            // The name that it is known by helps to tell the format.
            let manifest = hash::manifest(&file, meta.size, path, progress);
            let after = fstat(&file).map_err(|errno| failed(errno.into()))?;
            if !file_meta::same(&before, &after) {
                before = after;
                continue;
            }
            let manifest = manifest.map_err(failed)?;
            let _changing = lock(&self.changing);
            let copied = self.copy(&file, &manifest, keep)?;
            let after = fstat(&file).map_err(|errno| failed(errno.into()))?;
            if !file_meta::same(&before, &after) {
                // What was copied may be of another moment; an object is never wrong, only of use to nobody.
                before = after;
                continue;
            }
            self.manifests.keep(&manifest)?;
            let note = describe(&manifest, &copied);
            let Take { kind, writers, reason, author } = take;
            let digest = manifest.digest;
            let known = KnownGood { snapshot: 0, digest, meta, mtime_ns: mtime_ns(&after), kind, writers };
            return Ok((self.add(path, known, &reason, &author)?, note));
        }
        Err(StoreError::Changing { path: path.to_owned() })
    }

    /// The manifest of weights with this content.
    ///
    /// # Errors
    /// Where there is none, or it is damaged.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, StoreError> {
        Ok(self.manifests.read(digest)?)
    }

    /// The folder of manifests.
    #[must_use]
    pub fn manifests(&self) -> &crate::weights::Manifests {
        &self.manifests
    }

    /// Keeps a copy of `file`, of which `manifest` was just made, as `keep` says.
    fn copy(&self, file: &File, manifest: &Manifest, keep: KeepCopy) -> Result<Copied, StoreError> {
        if keep == KeepCopy::Never {
            return Ok(Copied::None("as it is configured".to_owned()));
        }
        match self.objects.form(&manifest.digest)? {
            // Parts of it cannot be read, and a second copy in the open would give it away.
            Some(Form::Sealed) => return Ok(Copied::None("a secret has the same content".to_owned())),
            Some(Form::Plain) if self.is_whole(manifest) => return Ok(Copied::There),
            _ => {}
        }
        let incoming = self.objects.begin(Form::Plain)?;
        match incoming.share(file) {
            // It is checked by chunks before it is ever used.
            Ok(()) => {
                incoming.keep_as(&manifest.digest)?;
                return Ok(Copied::Shared);
            }
            Err(err) => tracing::debug!(%err, "no shared copy"),
        }
        if keep == KeepCopy::Auto
            && let Some(why) = self.no_room(manifest.size)
        {
            return Ok(Copied::None(why));
        }
        // Where it became of another content, the caller sees that the file has changed.
        self.copy_whole(file, manifest)?;
        Ok(Copied::Whole)
    }

    /// Copies `file`, block by block; false, and nothing is kept, where it is not what `manifest` says.
    fn copy_whole(&self, file: &File, manifest: &Manifest) -> Result<bool, StoreError> {
        let mut incoming = self.objects.begin(Form::Plain)?;
        let (reader, mut block, mut at) = (Reader::default(), vec![0; CHUNK as usize], 0);
        let unread = |source| ObjectError::Read { digest: manifest.digest.clone(), source };
        while at < manifest.size {
            let n = reader.read(file, at, &mut block).map_err(unread)?;
            if n == 0 {
                break;
            }
            incoming.write(&block[..n])?;
            at += n as u64;
        }
        let same = incoming.digest() == manifest.digest;
        if same {
            incoming.keep_as(&manifest.digest)?;
        }
        Ok(same)
    }

    /// Takes the copy of the content `digest` anew from the weights at `path`; false where these are not it.
    pub(super) fn copy_again(&self, path: &Path, digest: &Digest) -> Result<bool, StoreError> {
        let Ok(Entry::Regular(file, stat)) = Parent::open(path)?.entry() else { return Ok(false) };
        let manifest = self.manifests.read(digest)?;
        if file_meta::size(&stat) != manifest.size || self.objects.form(digest)? == Some(Form::Sealed) {
            return Ok(false);
        }
        let incoming = self.objects.begin(Form::Plain)?;
        if incoming.share(&file).is_err() {
            return self.copy_whole(&file, &manifest);
        }
        incoming.keep_as(digest)?;
        Ok(self.objects.check(digest).is_ok())
    }

    /// Whether the copy that is there has the size that it should have. What it holds is compared by chunks before it is
    /// ever used, and by the scrub.
    fn is_whole(&self, manifest: &Manifest) -> bool {
        let there = self.objects.plain(&manifest.digest).ok().flatten();
        there.is_some_and(|file| file.metadata().is_ok_and(|meta| meta.len() == manifest.size))
    }

    /// Why a copy of `size` bytes would take too much of the file system, if it would.
    fn no_room(&self, size: u64) -> Option<String> {
        let folder = File::open(self.objects.path()).ok()?;
        let fs = fstatvfs(&folder).ok()?;
        let left = fs.f_bavail.saturating_mul(fs.f_frsize);
        (size > MAX_CONTENT && size > left / ROOM).then(|| {
            format!(
                "a copy takes {}, of {} that are free in the state folder's file system",
                size_in_words(size),
                size_in_words(left)
            )
        })
    }
}

fn describe(manifest: &Manifest, copied: &Copied) -> String {
    let what = match (&manifest.layout, &manifest.malformed) {
        (Some(layout), _) if layout.tensors.is_empty() => layout.format.name().to_owned(),
        (Some(layout), _) => format!("{}, {} tensors", layout.format.name(), layout.tensors.len()),
        (None, Some(why)) => format!("MALFORMED: {}", shown(why)),
        (None, None) => "unknown format".to_owned(),
    };
    let size = size_in_words(manifest.size);
    let copy = match copied {
        Copied::Shared => "its copy shares the file's blocks and takes no room".to_owned(),
        Copied::Whole => format!("its copy takes {size}"),
        Copied::There => "the store had a copy already".to_owned(),
        Copied::None(why) => format!("digests only, no copy ({why}): it can be repaired from a replica"),
    };
    format!("{what}, {size} in {} chunks; {copy}", manifest.chunks.len())
}
