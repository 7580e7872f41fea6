//! What a restore of a secret displaced: sealed where it lies, and taken back from there.
//!
//! What lay in the secret's place may hold most of the secret. It is read by Grace alone, so it is sealed with the key for
//! secrets as the versions are; mode, owner, attributes and times stay on the sealed file, so that nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, fsync};
use rustix::io::Errno;

use super::objects::{Form, Sync};
use super::{Store, StoreError, Take, Taken};
use crate::file_meta::{self, MAX_CONTENT};
use crate::file_state::{ContentKind, KnownGood};
use crate::sha256::each_block;

/// Bytes that are read at once.
const BLOCK: u64 = 64 << 10;

/// How the names of sealed files end. `age -d -i secret.key` opens them.
pub const SEALED: &str = ".age";

impl Store {
    /// Seals the regular file at `path`, which lies in a folder of Grace's own: the sealed one, with `.age` behind its name, is
    /// durable before the other one is removed. Says where it lies. Anything else than a regular file stays as it is.
    ///
    /// # Errors
    /// Where it cannot be read, is too large, or the sealed one cannot be written: then it lies there as before.
    pub fn seal_displaced(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let failed = |source: io::Error| StoreError::Read { path: path.to_owned(), source };
        if !path.symlink_metadata().map_err(failed)?.is_file() {
            return Ok(path.to_owned());
        }
        let mut file = open(path).map_err(failed)?;
        let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
        let size = file_meta::size(&stat);
        if size > MAX_CONTENT {
            return Err(StoreError::TooLarge { path: path.to_owned(), size });
        }
        let attributes = |source| StoreError::Attributes { path: path.to_owned(), source };
        let meta = file_meta::read(&file, &stat).map_err(attributes)?;
        let mut name = path.as_os_str().to_owned();
        name.push(SEALED);
        let to = PathBuf::from(name);
        let unwritten = |source: io::Error| StoreError::Seal { path: to.clone(), source };
        let sealed =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(unwritten)?;
        let mut write = || -> Result<(), StoreError> {
            let mut sealer = self.objects.sealer(sealed.try_clone().map_err(unwritten)?, &to)?;
            each_block(&mut file, size, MAX_CONTENT, |block| sealer.write_all(block)).map_err(unwritten)?;
            sealer.finish().map_err(unwritten)?;
            file_meta::put(&sealed, &meta, file_meta::mtime_ns(&stat)).map_err(attributes)?;
            fsync(&sealed).map_err(|errno| unwritten(errno.into()))
        };
        write().inspect_err(|_| drop(fs::remove_file(&to)))?;
        let folder = File::open(path.parent().unwrap_or(Path::new("/"))).map_err(unwritten)?;
        fsync(&folder).map_err(|errno| unwritten(errno.into()))?;
        fs::remove_file(path).map_err(failed)?;
        fsync(&folder).map_err(|errno| failed(errno.into()))?;
        Ok(to)
    }

    /// Keeps what a restore displaced, and what lies at `from` now, as a version of `path`, and makes that its current one.
    ///
    /// # Errors
    /// As [`Store::take`], about `from`.
    pub fn take_displaced(&self, path: &Path, from: &Path, take: Take) -> Result<Taken, StoreError> {
        let is_sealed = from.as_os_str().as_encoded_bytes().ends_with(SEALED.as_bytes());
        if take.kind != ContentKind::Secret || !is_sealed {
            return self.take_from(path, from, take);
        }
        let _changing = super::lock(&self.changing);
        let Take { kind, writers, reason, author } = take;
        let failed = |source: io::Error| StoreError::Read { path: from.to_owned(), source };
        let file = open(from).map_err(failed)?;
        let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
        let mut meta = file_meta::read(&file, &stat)
            .map_err(|source| StoreError::Attributes { path: from.to_owned(), source })?;
        let content = self.objects.unseal(file)?.map_err(|err| failed(io::Error::other(err)))?;
        let mut content = content.take(MAX_CONTENT + 1);
        let mut incoming = self.objects.begin(Form::of(kind, 0))?;
        let mut refused = None;
        let read = each_block(&mut content, BLOCK, u64::MAX, |block| {
            incoming.write(block).map_err(|err| {
                refused = Some(err);
                io::Error::from(Errno::IO)
            })
        });
        if let Some(err) = refused {
            return Err(err.into());
        }
        meta.size = read.map_err(failed)?;
        if meta.size > MAX_CONTENT {
            return Err(StoreError::TooLarge { path: from.to_owned(), size: meta.size });
        }
        let digest = incoming.keep(Sync::Now)?;
        let known =
            KnownGood { snapshot: 0, digest, meta, mtime_ns: file_meta::mtime_ns(&stat), kind, writers };
        self.add(path, known, &reason, &author)
    }
}

/// Opens what lies in a folder of Grace's own, without following or waiting for anything.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    // Only what is Grace's own reading: a device would answer for ever.
    if file.metadata()?.mode() & libc::S_IFMT == libc::S_IFREG {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}
