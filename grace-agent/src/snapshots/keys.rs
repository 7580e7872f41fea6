//! The key for secrets: an age x25519 identity in the state folder, made when it is first needed.
//!
//! The file is what `age-keygen` writes, so that a sealed content can be opened without Grace: `age -d -i secret.key`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};
use rustix::fs::fsync;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// See the message.
    #[error("cannot {doing} the key for secrets `{}`", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The key file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error(
        "the key for secrets `{}` has mode {mode:04o} and owner {owner}: it must be 0600 and the agent's own",
        path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Whose it is.
        owner: u32,
    },
    /// See the message.
    #[error("`{}` holds no age identity (AGE-SECRET-KEY-1…): put the right key back, or take the snapshots of secrets again without it", path.display())]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
    /// See the message.
    #[error("the key for secrets `{}` is gone: put it back, or forget the secrets and take their snapshots again", path.display())]
    Missing {
        /// The key file.
        path: PathBuf,
    },
}

/// The key, read when it is needed.
pub(super) struct Keys {
    path: PathBuf,
    identity: Mutex<Option<Identity>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Keys {
    /// The key in `state`, which need not be there yet.
    pub(super) fn new(state: &Path) -> Self {
        Self { path: state.join(NAME), identity: Mutex::new(None) }
    }

    /// To whom secrets are sealed; makes the key where there is none.
    pub(super) fn recipient(&self) -> Result<Recipient, KeyError> {
        match self.identity() {
            Ok(identity) => Ok(identity.to_public()),
            Err(KeyError::Missing { .. }) => {
                self.create()?;
                self.identity().map(|identity| identity.to_public())
            }
            Err(err) => Err(err),
        }
    }

    /// What opens them.
    pub(super) fn identity(&self) -> Result<Identity, KeyError> {
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = &*known {
            return Ok(identity.clone());
        }
        let identity = self.load()?;
        *known = Some(identity.clone());
        Ok(identity)
    }

    fn load(&self) -> Result<Identity, KeyError> {
        let path = || self.path.clone();
        let opened =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { path: path() });
            }
            Err(source) => return Err(KeyError::Io { doing: "open", path: path(), source }),
        };
        let failed = |source| KeyError::Io { doing: "read", path: path(), source };
        let meta = file.metadata().map_err(failed)?;
        let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
        if mode & 0o077 != 0 || owner != rustix::process::geteuid().as_raw() {
            return Err(KeyError::Exposed { path: path(), mode, owner });
        }
        let mut text = String::new();
        file.take(16 << 10).read_to_string(&mut text).map_err(failed)?;
        text.lines()
            .map(str::trim)
            .find(|line| line.starts_with("AGE-SECRET-KEY-"))
            .and_then(|line| line.parse().ok())
            .ok_or(KeyError::NotAKey { path: path() })
    }

    /// Durable before anything is sealed with it: what cannot be opened after a power loss was not kept.
    fn create(&self) -> Result<(), KeyError> {
        let failed = |source| KeyError::Io { doing: "create", path: self.path.clone(), source };
        let identity = Identity::generate();
        let temp = self.path.with_extension("new");
        // Of a run that crashed; nothing was sealed with it.
        match fs::remove_file(&temp) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(err)),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(failed)?;
        let text =
            format!("# public key: {}\n{}\n", identity.to_public(), identity.to_string().expose_secret());
        file.write_all(text.as_bytes()).map_err(failed)?;
        fsync(&file).map_err(|errno| failed(errno.into()))?;
        // Only this process writes here: the state folder's lock is held.
        fs::rename(&temp, &self.path).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let folder = File::open(folder).map_err(failed)?;
        fsync(&folder).map_err(|errno| failed(errno.into()))
    }
}

/// Its name in the state folder.
const NAME: &str = "secret.key";
