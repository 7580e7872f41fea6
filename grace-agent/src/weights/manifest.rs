//! What is kept of a file of weights that is known to be good: its digest, one of each chunk of 4 MiB, and where its tensors
//! lie. Found by the digest of the whole file; owns one folder.
//!
//! The chunks' digests are the leaves of a Merkle tree (RFC 9162: leaves and nodes hashed with different prefixes), whose
//! root stands for all of them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::fsync;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::Layout;
use crate::file_state::Digest;
use crate::sha256::{hex, unhex};

/// Bytes of a chunk.
pub const CHUNK: u64 = 4 << 20;

/// The largest manifest that is read: of a file of 4 TiB with a million tensors.
const MANIFEST_MAX: u64 = 1 << 30;

/// SHA-256 as bytes.
pub type Hash = [u8; 32];

/// What is kept of a file that is known to be good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// SHA-256 of the whole file: what hubs and Git LFS publish.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Root of the tree over its chunks.
    pub root: Digest,
    /// SHA-256 of each chunk of [`CHUNK`] bytes; the last one may be shorter.
    #[serde(with = "in_hex")]
    pub chunks: Vec<Hash>,
    /// What it is made of; none where that could not be read, see `malformed`.
    pub layout: Option<Layout>,
    /// Why its header could not be read, where it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malformed: Option<String>,
}

impl Manifest {
    /// Where chunk `index` lies: begin and end in bytes of the file.
    #[must_use]
    pub fn range(&self, index: u64) -> (u64, u64) {
        let start = index.saturating_mul(CHUNK);
        (start.min(self.size), start.saturating_add(CHUNK).min(self.size))
    }
}

/// How many chunks a file of `size` bytes has.
#[must_use]
pub fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK)
}

/// Root of the Merkle tree over `leaves`.
#[must_use]
pub fn root(leaves: &[Hash]) -> Digest {
    let mut level: Vec<Hash> = leaves.iter().map(|leaf| hash(&[&[0], leaf])).collect();
    if level.is_empty() {
        level.push(hash(&[]));
    }
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => hash(&[&[1], left, right]),
                // A node without a partner goes up as it is.
                rest => rest.first().copied().unwrap_or_default(),
            })
            .collect();
    }
    Digest(hex(&level.first().copied().unwrap_or_default()))
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// Why a manifest cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// See the message.
    #[error("cannot keep the manifest {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("cannot read the manifest {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("the manifest {} is damaged: take the snapshot of its model again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// See the message.
    #[error("there is no manifest of {}: take the snapshot of its model again", digest.short())]
    Missing {
        /// Of which content.
        digest: Digest,
    },
}

/// The folder of manifests.
#[derive(Debug, Clone)]
pub struct Manifests {
    folder: Arc<PathBuf>,
}

impl Manifests {
    /// Opens the folder, and makes it where it is not there.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(folder: PathBuf) -> Result<Self, ManifestError> {
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(ManifestError::Write { path: folder, source })
            }
            _ => Ok(Self { folder: Arc::new(folder) }),
        }
    }

    /// Keeps `manifest`, durably, in place of one of the same content.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn keep(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let path = self.path_of(&manifest.digest)?;
        let failed = |source| ManifestError::Write { path: path.clone(), source };
        let text = serde_json::to_vec(manifest).map_err(|err| failed(err.into()))?;
        let temp = path.with_extension("new");
        let write = || {
            let mut file = File::create(&temp)?;
            file.write_all(hex(&hash(&[&text])).as_bytes())?;
            file.write_all(b"\n")?;
            file.write_all(&text)?;
            fsync(&file)?;
            fs::rename(&temp, &path)?;
            fsync(File::open(&*self.folder)?)?;
            Ok(())
        };
        write().map_err(failed)
    }

    /// The manifest of the content `digest`.
    ///
    /// # Errors
    /// Where there is none, or it is damaged.
    pub fn read(&self, digest: &Digest) -> Result<Manifest, ManifestError> {
        let path = self.path_of(digest)?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ManifestError::Missing { digest: digest.clone() },
            _ => ManifestError::Read { path: path.clone(), source },
        };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        BufReader::new(file).take(MANIFEST_MAX).read_to_end(&mut text).map_err(failed)?;
        let damaged = || ManifestError::Damaged { path: path.clone() };
        let (sum, text) = text.split_at_checked(65).ok_or_else(damaged)?;
        if sum.strip_suffix(b"\n") != Some(hex(&hash(&[text])).as_bytes()) {
            return Err(damaged());
        }
        let manifest: Manifest = serde_json::from_slice(text).ok().ok_or_else(damaged)?;
        let whole = manifest.digest == *digest && manifest.chunks.len() as u64 == chunk_count(manifest.size);
        if whole { Ok(manifest) } else { Err(damaged()) }
    }

    /// Removes the manifest of `digest`, where there is one.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn remove(&self, digest: &Digest) -> Result<(), ManifestError> {
        let path = self.path_of(digest)?;
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ManifestError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    fn path_of(&self, digest: &Digest) -> Result<PathBuf, ManifestError> {
        // From the database: it must not lead elsewhere.
        let plain = digest.0.len() == 64 && unhex(&digest.0).is_some();
        if plain {
            Ok(self.folder.join(&digest.0))
        } else {
            Err(ManifestError::Missing { digest: digest.clone() })
        }
    }
}

/// The chunks' digests as one text.
mod in_hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Hash;
    use crate::sha256::{hex, unhex};

    pub(super) fn serialize<S: Serializer>(chunks: &[Hash], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(chunks.as_flattened()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Hash>, D::Error> {
        let bytes = unhex(&String::deserialize(d)?).ok_or_else(|| D::Error::custom("no hex"))?;
        match bytes.as_chunks::<32>() {
            (chunks, []) => Ok(chunks.to_vec()),
            _ => Err(D::Error::custom("no whole digests")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_one_of_rfc_9162() {
        // An empty tree is the digest of nothing; one leaf its digest with the prefix 0.
        assert_eq!(root(&[]).short(), "e3b0c44298fc");
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        let leaf = |l: &Hash| hash(&[&[0], l]);
        let two = hash(&[&[1], &leaf(&a), &leaf(&b)]);
        assert_eq!(root(&[a]).0, hex(&leaf(&a)));
        assert_eq!(root(&[a, b]).0, hex(&two));
        assert_eq!(root(&[a, b, c]).0, hex(&hash(&[&[1], &two, &leaf(&c)])));
    }

    #[test]
    fn a_manifest_is_kept_and_a_damaged_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let manifests = Manifests::open(dir.path().join("weights")).unwrap();
        let chunks = vec![[7; 32], [8; 32]];
        let digest = Digest("ab".repeat(32));
        let manifest = Manifest {
            digest: digest.clone(),
            size: CHUNK + 5,
            root: root(&chunks),
            chunks,
            layout: None,
            malformed: Some("cut".into()),
        };
        assert!(matches!(manifests.read(&digest), Err(ManifestError::Missing { .. })));
        manifests.keep(&manifest).unwrap();
        assert_eq!(manifests.read(&digest).unwrap(), manifest);
        assert_eq!(manifest.range(1), (CHUNK, CHUNK + 5));
        let path = dir.path().join("weights").join(&digest.0);
        let mut text = fs::read(&path).unwrap();
        let last = text.len() - 20;
        text[last] ^= 1;
        fs::write(&path, text).unwrap();
        assert!(matches!(manifests.read(&digest), Err(ManifestError::Damaged { .. })));
        manifests.remove(&digest).unwrap();
        manifests.remove(&digest).unwrap();
        assert!(manifests.read(&Digest("../../etc/passwd".into())).is_err());
    }
}
