//! The contents of snapshots: one file each, named by its SHA-256, so that equal contents are kept once and a damaged
//! one betrays itself.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{fsync, ioctl_ficlone};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::file_state::Digest;
use crate::sha256::{self, Sha256, hex};

/// Why a content cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// See the message.
    #[error("the kept content {} is damaged: it is not what its name says; take the snapshot again", digest.short())]
    Damaged {
        /// What it should be.
        digest: Digest,
    },
    /// See the message.
    #[error("the kept content {} is missing: take the snapshot again", digest.short())]
    Missing {
        /// What it should be.
        digest: Digest,
    },
    /// See the message.
    #[error("cannot read the kept content {}", digest.short())]
    Read {
        /// Which one.
        digest: Digest,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("`{}` is not a SHA-256 digest: Grace's state is damaged", digest.0.escape_debug())]
    NotADigest {
        /// As it was kept.
        digest: Digest,
    },
    /// See the message.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The object, or the folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("cannot remove `{}`", path.display())]
    Remove {
        /// The object.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The folder of contents.
#[derive(Debug)]
pub struct Objects {
    path: PathBuf,
}

/// A content on its way in. Dropped without [`Incoming::keep`], it leaves nothing.
#[derive(Debug)]
pub struct Incoming<'a> {
    objects: &'a Objects,
    file: File,
    temp: PathBuf,
    hasher: Sha256,
}

impl Objects {
    /// Opens the folder at `path`, which is there, and removes contents that a crash cut short.
    ///
    /// # Errors
    /// Where the folder cannot be read or a left-over not be removed.
    pub fn open(path: PathBuf) -> Result<Self, ObjectError> {
        let failed = |source| ObjectError::Write { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(TEMP.as_bytes()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|source| ObjectError::Remove { path, source })?;
            }
        }
        Ok(Self { path })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a new content.
    ///
    /// # Errors
    /// Where no file can be made.
    pub fn begin(&self) -> Result<Incoming<'_>, ObjectError> {
        let mut random = [0_u8; 8];
        let failed = |source| ObjectError::Write { path: self.path.clone(), source };
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let temp = self.path.join(format!("{TEMP}{}", hex(&random)));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)
            .map_err(|source| ObjectError::Write { path: temp.clone(), source })?;
        Ok(Incoming { objects: self, file, temp, hasher: Sha256::default() })
    }

    /// Opens a content; its digest is not checked.
    ///
    /// # Errors
    /// Where it is missing or cannot be opened.
    pub fn read(&self, digest: &Digest) -> Result<File, ObjectError> {
        let path = self.path_of(digest)?;
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(
            |source| match source.kind() {
                io::ErrorKind::NotFound => ObjectError::Missing { digest: digest.clone() },
                _ => ObjectError::Read { digest: digest.clone(), source },
            },
        )
    }

    /// Reads a content and compares its digest.
    ///
    /// # Errors
    /// Where it is missing, cannot be read, or is damaged.
    pub fn check(&self, digest: &Digest) -> Result<(), ObjectError> {
        let mut file = self.read(digest)?;
        let failed = |source| ObjectError::Read { digest: digest.clone(), source };
        let size = file.metadata().map_err(failed)?.len();
        let (found, _) = sha256::of_reader(&mut file, size, u64::MAX).map_err(failed)?;
        if found == *digest { Ok(()) } else { Err(ObjectError::Damaged { digest: digest.clone() }) }
    }

    /// Removes a content; one that is not there is removed already.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn remove(&self, digest: &Digest) -> Result<(), ObjectError> {
        let path = self.path_of(digest)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ObjectError::Remove { path, source }),
        }
    }

    /// Where a content lies: `ab/abcd…`, so that no folder grows too large to list.
    fn path_of(&self, digest: &Digest) -> Result<PathBuf, ObjectError> {
        let plain = digest.0.len() == 64
            && digest.0.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !plain {
            return Err(ObjectError::NotADigest { digest: digest.clone() });
        }
        Ok(self.path.join(&digest.0[..2]).join(&digest.0))
    }
}

impl Incoming<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// As the kernel says it; a full disk among them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| ObjectError::Write { path: self.temp.clone(), source })
    }

    /// Makes it share the blocks of `file`, instead of being written.
    ///
    /// # Errors
    /// Where the file system cannot, or they lie on two.
    pub fn share(&self, file: &File) -> io::Result<()> {
        Ok(ioctl_ficlone(&self.file, file)?)
    }

    /// Makes a content that was shared durable under `digest`, which is the caller's to know.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn keep_as(self, digest: &Digest) -> Result<(), ObjectError> {
        self.place(digest)
    }

    /// Makes the content durable under its digest. A sound copy that is already there stays; a damaged one is
    /// replaced.
    ///
    /// # Errors
    /// As the kernel says it. A failed sync is never tried again: the kernel forgets the pages that it could not
    /// write, so a second one would lie. Nothing is kept then.
    pub fn keep(self) -> Result<Digest, ObjectError> {
        let digest = self.hasher.clone().finish();
        let path = self.objects.path_of(&digest)?;
        let folder = path.parent().unwrap_or(&self.objects.path);
        if self.objects.check(&digest).is_ok() {
            // It may have come from a run that crashed before its folder was synced.
            sync_folder(folder)?;
            sync_folder(&self.objects.path)?;
            return Ok(digest);
        }
        self.place(&digest)?;
        Ok(digest)
    }

    fn place(&self, digest: &Digest) -> Result<(), ObjectError> {
        let path = self.objects.path_of(digest)?;
        let folder = path.parent().unwrap_or(&self.objects.path);
        let failed = |source: io::Error| ObjectError::Write { path: path.clone(), source };
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(source)),
        }
        // Also where the folder was there: a run that crashed may not have come to syncing it.
        sync_folder(&self.objects.path)?;
        self.file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
        fsync(&self.file).map_err(|errno| failed(errno.into()))?;
        fs::rename(&self.temp, &path).map_err(failed)?;
        sync_folder(folder)
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // After `keep` renamed it, it is not there any more. Otherwise the next start removes what stays.
        drop(fs::remove_file(&self.temp));
    }
}

fn sync_folder(path: &Path) -> Result<(), ObjectError> {
    let failed = |source| ObjectError::Write { path: path.to_owned(), source };
    let folder = File::open(path).map_err(failed)?;
    fsync(&folder).map_err(|errno| failed(errno.into()))
}

/// Names of contents that are not complete.
const TEMP: &str = "incoming-";
