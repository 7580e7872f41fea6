//! The contents of snapshots: one file each, named by its SHA-256, so that equal contents are kept once and a damaged
//! one betrays itself.
//!
//! A content lies there in one of three forms: as it is, compressed (`.zst`), or sealed with the key for secrets
//! (`.age`). Its name is the digest of the content itself, whatever its form.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{fsync, ioctl_ficlone};
use rustix::rand::{GetRandomFlags, getrandom};

use super::keys::{KeyError, Keys};
use crate::file_meta::MAX_CONTENT;
use crate::file_state::{ContentKind, Digest};
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
    /// The key for secrets cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// See the message.
    #[error("cannot remove `{}`", path.display())]
    Remove {
        /// The object.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ObjectError {
    /// What a failed read of the content `digest` means: where the kernel did not refuse, what it gave was not a whole
    /// compressed or sealed content.
    #[must_use]
    pub fn of_read(digest: &Digest, source: io::Error) -> Self {
        let digest = digest.clone();
        if source.raw_os_error().is_none() { Self::Damaged { digest } } else { Self::Read { digest, source } }
    }
}

/// When a content that is kept becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// When it is kept.
    Now,
    /// When the caller has synced the file system: it must not be acknowledged before.
    Later,
}

/// How a content lies in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Plain,
    /// Compressed with zstd.
    Packed,
    /// Sealed with the key for secrets.
    Sealed,
}

impl Form {
    /// How a content of `kind` with `size` bytes is kept. What fits into a block of the file system takes no less when
    /// it is compressed; weights hardly compress.
    #[must_use]
    pub fn of(kind: ContentKind, size: u64) -> Self {
        match kind {
            ContentKind::Secret => Self::Sealed,
            ContentKind::Config if size > BLOCK => Self::Packed,
            ContentKind::Config | ContentKind::Weights => Self::Plain,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Packed => ".zst",
            Self::Sealed => ".age",
        }
    }
}

/// The folder of contents.
#[derive(Debug)]
pub struct Objects {
    path: PathBuf,
    keys: Keys,
}

/// A content on its way in. Dropped without [`Incoming::keep`], it leaves nothing.
pub struct Incoming<'a> {
    objects: &'a Objects,
    form: Form,
    sink: Sink,
    temp: Temp,
    hasher: Sha256,
}

/// Where the content goes. What is to be sealed reaches no disk otherwise.
enum Sink {
    Plain(File),
    Packed(Box<zstd::Encoder<'static, File>>),
    Sealed(Box<age::stream::StreamWriter<File>>),
}

/// The name of a content that is not complete; removed when dropped.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // After `keep` renamed it, it is not there any more. Otherwise the next start removes what stays.
        drop(fs::remove_file(&self.0));
    }
}

impl Objects {
    /// Opens the folder at `path`, which is there, and removes contents that a crash cut short. `state` is the folder of
    /// the key for secrets.
    ///
    /// # Errors
    /// Where the folder cannot be read or a left-over not be removed.
    pub fn open(path: PathBuf, state: &Path) -> Result<Self, ObjectError> {
        let failed = |source| ObjectError::Write { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(TEMP.as_bytes()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|source| ObjectError::Remove { path, source })?;
            }
        }
        Ok(Self { path, keys: Keys::new(state) })
    }

    /// Begins a new content, to be kept in `form`.
    ///
    /// # Errors
    /// Where no file can be made, or the key for secrets not be used.
    pub fn begin(&self, form: Form) -> Result<Incoming<'_>, ObjectError> {
        let mut random = [0_u8; 8];
        let failed = |source| ObjectError::Write { path: self.path.clone(), source };
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let temp = self.path.join(format!("{TEMP}{}", hex(&random)));
        let failed = |source| ObjectError::Write { path: temp.clone(), source };
        // Before there is a file: without the key there shall be none.
        if form == Form::Sealed {
            self.keys.recipient()?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(failed)?;
        let removed = Temp(temp.clone());
        let sink = match form {
            Form::Sealed => Sink::Sealed(Box::new(self.sealer(file, &temp)?)),
            Form::Packed => {
                let mut packer = zstd::Encoder::new(file, LEVEL).map_err(failed)?;
                packer.include_checksum(true).map_err(failed)?;
                Sink::Packed(Box::new(packer))
            }
            Form::Plain => Sink::Plain(file),
        };
        Ok(Incoming { objects: self, form, sink, temp: removed, hasher: Sha256::default() })
    }

    /// What is written to it reaches `file`, which lies at `path`, sealed with the key for secrets.
    ///
    /// # Errors
    /// Where the key cannot be used, or the file not be written.
    pub(super) fn sealer(
        &self,
        file: File,
        path: &Path,
    ) -> Result<age::stream::StreamWriter<File>, ObjectError> {
        let failed = |source| ObjectError::Write { path: path.to_owned(), source };
        let recipient = self.keys.recipient()?;
        let to = std::iter::once(&recipient as &dyn age::Recipient);
        let sealer = age::Encryptor::with_recipients(to).map_err(|err| failed(io::Error::other(err)))?;
        sealer.wrap_output(file).map_err(failed)
    }

    /// The content of a sealed `file`.
    ///
    /// # Errors
    /// Where the key cannot be used. The inner one: another key, or bytes that are none of age's.
    pub(super) fn unseal(
        &self,
        file: File,
    ) -> Result<Result<Box<dyn Read + Send>, age::DecryptError>, ObjectError> {
        let identity = self.keys.identity()?;
        let opened = age::Decryptor::new_buffered(io::BufReader::new(file))
            .and_then(|sealed| sealed.decrypt(std::iter::once(&identity as &dyn age::Identity)));
        Ok(opened.map(|content| Box::new(content) as Box<dyn Read + Send>))
    }

    /// In which form a content is kept; none where it is not.
    ///
    /// # Errors
    /// Where it cannot be looked for.
    pub fn form(&self, digest: &Digest) -> Result<Option<Form>, ObjectError> {
        for form in FORMS {
            let path = self.path_of(digest, form)?;
            match fs::symlink_metadata(&path) {
                Ok(_) => return Ok(Some(form)),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ObjectError::Read { digest: digest.clone(), source }),
            }
        }
        Ok(None)
    }

    /// Opens a content; its digest is not checked. A read that fails means what [`ObjectError::of_read`] says.
    ///
    /// # Errors
    /// Where it is missing, or cannot be opened or unsealed.
    pub fn read(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ObjectError> {
        let Some((form, file)) = self.open_file(digest)? else {
            return Err(ObjectError::Missing { digest: digest.clone() });
        };
        let failed = |source| ObjectError::of_read(digest, source);
        Ok(match form {
            Form::Plain => Box::new(file),
            Form::Packed => Box::new(zstd::Decoder::new(file).map_err(failed)?.take(MAX_CONTENT + 1)),
            Form::Sealed => match self.unseal(file)? {
                Ok(content) => content,
                Err(age::DecryptError::Io(source)) => return Err(failed(source)),
                // Another key, or bytes that are none of age's.
                Err(_) => return Err(ObjectError::Damaged { digest: digest.clone() }),
            },
        })
    }

    /// The file of a content that is kept as it is, for whoever reads parts of it; none where it is kept otherwise, or
    /// not at all. Its digest is not checked.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn plain(&self, digest: &Digest) -> Result<Option<File>, ObjectError> {
        Ok(self.open_file(digest)?.filter(|(form, _)| *form == Form::Plain).map(|(_, file)| file))
    }

    /// The file that holds a content, and its form.
    fn open_file(&self, digest: &Digest) -> Result<Option<(Form, File)>, ObjectError> {
        for form in FORMS {
            let path = self.path_of(digest, form)?;
            match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
                Ok(file) => return Ok(Some((form, file))),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ObjectError::Read { digest: digest.clone(), source }),
            }
        }
        Ok(None)
    }

    /// Reads a content and compares its digest.
    ///
    /// # Errors
    /// Where it is missing, cannot be read, or is damaged.
    pub fn check(&self, digest: &Digest) -> Result<(), ObjectError> {
        self.check_slowly(digest, |_| {}).map(drop)
    }

    /// The same, calling `rest` with the size of each block that was read; says how many bytes there were.
    ///
    /// # Errors
    /// As [`Objects::check`].
    pub fn check_slowly(&self, digest: &Digest, mut rest: impl FnMut(u64)) -> Result<u64, ObjectError> {
        let mut content = self.read(digest)?;
        let mut hasher = Sha256::default();
        let total = sha256::each_block(&mut content, CHUNK, u64::MAX, |block| {
            hasher.update(block);
            rest(block.len() as u64);
            Ok(())
        })
        .map_err(|source| ObjectError::of_read(digest, source))?;
        if hasher.finish() == *digest {
            Ok(total)
        } else {
            Err(ObjectError::Damaged { digest: digest.clone() })
        }
    }

    /// Keeps a content sealed that is kept otherwise.
    ///
    /// # Errors
    /// Where it is missing or damaged, or cannot be written.
    pub fn seal(&self, digest: &Digest) -> Result<(), ObjectError> {
        if self.form(digest)? == Some(Form::Sealed) {
            return Ok(());
        }
        let mut content = self.read(digest)?;
        let mut incoming = self.begin(Form::Sealed)?;
        let mut refused = None;
        let read = sha256::each_block(&mut content, CHUNK, u64::MAX, |block| {
            incoming.write(block).map_err(|err| {
                refused = Some(err);
                io::Error::from(io::ErrorKind::Other)
            })
        });
        if let Some(err) = refused {
            return Err(err);
        }
        read.map_err(|source| ObjectError::of_read(digest, source))?;
        if incoming.hasher.clone().finish() != *digest {
            return Err(ObjectError::Damaged { digest: digest.clone() });
        }
        incoming.keep(Sync::Now).map(drop)
    }

    /// The folder, open.
    ///
    /// # Errors
    /// As the kernel says it.
    pub(super) fn folder(&self) -> Result<File, ObjectError> {
        File::open(&self.path).map_err(|source| ObjectError::Write { path: self.path.clone(), source })
    }

    /// The folder's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a content in every form; one that is not there is removed already.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn remove(&self, digest: &Digest) -> Result<(), ObjectError> {
        FORMS.into_iter().try_for_each(|form| self.remove_form(digest, form))
    }

    fn remove_form(&self, digest: &Digest, form: Form) -> Result<(), ObjectError> {
        let path = self.path_of(digest, form)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ObjectError::Remove { path, source }),
        }
    }

    /// Where a content lies: `ab/abcd…`, so that no folder grows too large to list.
    fn path_of(&self, digest: &Digest, form: Form) -> Result<PathBuf, ObjectError> {
        let plain = digest.0.len() == 64
            && digest.0.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !plain {
            return Err(ObjectError::NotADigest { digest: digest.clone() });
        }
        Ok(self.path.join(&digest.0[..2]).join(format!("{digest}{}", form.suffix())))
    }
}

impl Incoming<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// As the kernel says it; a full disk among them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.hasher.update(bytes);
        let written = match &mut self.sink {
            Sink::Plain(file) => file.write_all(bytes),
            Sink::Packed(packer) => packer.write_all(bytes),
            Sink::Sealed(sealer) => sealer.write_all(bytes),
        };
        written.map_err(|source| ObjectError::Write { path: self.temp.0.clone(), source })
    }

    /// The digest of what was written so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Makes it share the blocks of `file`, instead of being written; only of a plain one.
    ///
    /// # Errors
    /// Where the file system cannot, or they lie on two.
    pub fn share(&self, file: &File) -> io::Result<()> {
        match &self.sink {
            Sink::Plain(own) => Ok(ioctl_ficlone(own, file)?),
            Sink::Packed(_) | Sink::Sealed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes a content durable under `digest`, which is the caller's to know where it was shared; in place of one that is
    /// there in any form, sealed ones too.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn keep_as(self, digest: &Digest) -> Result<(), ObjectError> {
        let there = self.objects.form(digest)?;
        self.place(digest, there, Sync::Now)
    }

    /// Makes the content durable under its digest. A sound copy that is already there stays, unless this one is sealed
    /// and that one is not; a damaged one is replaced.
    ///
    /// # Errors
    /// As the kernel says it. A failed sync is never tried again: the kernel forgets the pages that it could not
    /// write, so a second one would lie. Nothing is kept then.
    pub fn keep(self, sync: Sync) -> Result<Digest, ObjectError> {
        let objects = self.objects;
        let digest = self.digest();
        let path = objects.path_of(&digest, self.form)?;
        let there = objects.form(&digest)?;
        let fits = there == Some(Form::Sealed) || (there.is_some() && self.form != Form::Sealed);
        if fits && objects.check(&digest).is_ok() {
            // It may have come from a run that crashed before it, or its folder, was synced.
            if sync == Sync::Now {
                if let Some((_, file)) = objects.open_file(&digest)? {
                    fsync(&file)
                        .map_err(|errno| ObjectError::Write { path: path.clone(), source: errno.into() })?;
                }
                sync_folder(path.parent().unwrap_or(&objects.path))?;
                sync_folder(&objects.path)?;
            }
            return Ok(digest);
        }
        self.place(&digest, there, sync)?;
        Ok(digest)
    }

    /// Puts it at its name; `there` is the form in which one is there already.
    fn place(self, digest: &Digest, there: Option<Form>, sync: Sync) -> Result<(), ObjectError> {
        let Self { objects, form, sink, temp, .. } = self;
        let path = objects.path_of(digest, form)?;
        let folder = path.parent().unwrap_or(&objects.path);
        let sync_folder = |folder: &Path| if sync == Sync::Now { sync_folder(folder) } else { Ok(()) };
        let failed = |source: io::Error| ObjectError::Write { path: path.clone(), source };
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(source)),
        }
        // Also where the folder was there: a run that crashed may not have come to syncing it.
        sync_folder(&objects.path)?;
        let file = match sink {
            Sink::Plain(file) => file,
            Sink::Packed(packer) => packer.finish().map_err(failed)?,
            Sink::Sealed(sealer) => sealer.finish().map_err(failed)?,
        };
        file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
        if sync == Sync::Now {
            fsync(&file).map_err(|errno| failed(errno.into()))?;
        }
        fs::rename(&temp.0, &path).map_err(failed)?;
        sync_folder(folder)?;
        // Whichever comes first in FORMS is read: the others are damaged, or should not lie there in the open.
        if there.is_some_and(|there| there != form) {
            for other in FORMS.into_iter().filter(|other| *other != form) {
                objects.remove_form(digest, other)?;
            }
            sync_folder(folder)?;
        }
        Ok(())
    }
}

fn sync_folder(path: &Path) -> Result<(), ObjectError> {
    let failed = |source| ObjectError::Write { path: path.to_owned(), source };
    let folder = File::open(path).map_err(failed)?;
    fsync(&folder).map_err(|errno| failed(errno.into()))
}

/// All forms, in the order in which they are looked for.
const FORMS: [Form; 3] = [Form::Sealed, Form::Plain, Form::Packed];

/// What a small file takes on most file systems, in bytes.
const BLOCK: u64 = 4096;

/// Bytes that are read at once, where the size is not known.
const CHUNK: u64 = 128 << 10;

/// zstd's default: configs are written once and read by every restore.
const LEVEL: i32 = 3;

/// Names of contents that are not complete.
const TEMP: &str = "incoming-";
