//! The vocabulary of files: what a file is now, and what it should be.
//!
//! Plain data, compared by [`KnownGood::drift`]: the one place that says what counts as a change.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SHA-256 as lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Digest(pub String);

impl Digest {
    /// The first 12 digits: what people are shown.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which object a name pointed at: enough to tell that a restore displaces the object that was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileId {
    /// `st_dev` as user space sees it.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// What lies at a path now. Taken without following a symbolic link in the last component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum FileState {
    /// Nothing.
    Missing,
    /// Something that is not a regular file.
    NotRegular {
        /// `directory`, `symlink`, `fifo`, `socket`, `device`.
        what: String,
        /// Which object.
        id: FileId,
    },
    /// A regular file.
    Regular {
        /// Which object.
        id: FileId,
        /// Owner, mode, size, extended attributes.
        meta: Meta,
        /// Content; absent where the size alone, or a part of it, told that it differs.
        digest: Option<Digest>,
        /// Of weights: which parts differ, where only parts were compared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hurt: Option<Box<Hurt>>,
    },
    /// It could not be looked at: never a drift, always said.
    Unreadable {
        /// Why, such as `permission denied`.
        why: String,
    },
}

impl FileState {
    /// Which object was judged; none where there is none.
    #[must_use]
    pub fn id(&self) -> Option<FileId> {
        match self {
            Self::NotRegular { id, .. } | Self::Regular { id, .. } => Some(*id),
            Self::Missing | Self::Unreadable { .. } => None,
        }
    }

    /// Content digest where it was taken.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Regular { digest, .. } => digest.as_ref(),
            _ => None,
        }
    }
}

/// Which parts of a file of weights are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hurt {
    /// The chunks that differ, from 0; capped.
    pub chunks: Vec<u64>,
    /// How many differ.
    pub count: u64,
    /// How many chunks the file has.
    pub of: u64,
    /// Tensors that they touch, `the header`, `padding`: names quoted, escaped, capped.
    pub touched: Vec<String>,
    /// Layers that they touch, the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// Why the header cannot be read any more, where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malformed: Option<String>,
    /// True: every chunk was compared. False: those in doubt, and more may differ.
    pub complete: bool,
}

impl Hurt {
    /// In one phrase.
    #[must_use]
    pub fn in_words(&self) -> String {
        let least = if self.complete { "" } else { "at least " };
        let mut out = format!("content: {least}{} of {} chunks", self.count, self.of);
        if !self.touched.is_empty() {
            out.push_str(&format!(", in {}", self.touched.join(", ")));
        }
        if !self.layers.is_empty() {
            out.push_str(&format!(" (layers {})", self.layers.join(", ")));
        }
        if let Some(why) = &self.malformed {
            out.push_str(&format!("; its header is malformed: {why}"));
        }
        out
    }
}

/// Whether a copy of weights is kept beside their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeepCopy {
    /// One that shares the file's blocks; else a real one where it is small for the disk; else none.
    #[default]
    Auto,
    /// One in any case.
    Always,
    /// None: digests only, and repairs from a replica.
    Never,
}

/// What `chmod`, `chown` and `setfattr` change, and the size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Meta {
    /// In bytes.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky (`st_mode & 0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes (ACLs, SELinux label, capabilities among them), values in hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// What kind of content a snapshot holds; decides how it is shown and repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ContentKind {
    /// A configuration file.
    #[default]
    Config,
    /// A secret: content is never shown, only digests.
    Secret,
    /// A model's weights.
    Weights,
}

impl ContentKind {
    /// What a file of this name most likely holds, where nobody says.
    #[must_use]
    pub fn by_name(path: &std::path::Path) -> Self {
        let weights = ["safetensors", "gguf", "pt", "pth", "onnx", "ckpt"];
        match path.extension().and_then(|e| e.to_str()) {
            Some(extension) if weights.contains(&extension) => Self::Weights,
            _ => Self::Config,
        }
    }
}

/// The known-good state of an owned file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KnownGood {
    /// The snapshot that holds the content.
    pub snapshot: u64,
    /// Content.
    pub digest: Digest,
    /// Owner, mode, size, extended attributes.
    pub meta: Meta,
    /// Modification time to put back: nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// What kind of content.
    #[serde(default)]
    pub kind: ContentKind,
    /// Executables (paths, `*` allowed) whose change becomes the new known-good instead of a drift.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<String>,
}

impl KnownGood {
    /// What differs between `seen` and the known-good state, in words; empty where nothing does.
    ///
    /// Modification time does not count: it says that something happened, not that something is wrong.
    #[must_use]
    pub fn drift(&self, seen: &FileState) -> Vec<String> {
        match seen {
            FileState::Missing => vec!["missing".into()],
            FileState::NotRegular { what, .. } => vec![format!("type: {what} instead of a regular file")],
            FileState::Unreadable { .. } => Vec::new(),
            FileState::Regular { meta, digest, hurt, .. } => {
                let mut out = Vec::new();
                if let Some(hurt) = hurt {
                    out.push(hurt.in_words());
                } else if meta.size != self.meta.size {
                    out.push(format!("content: {} bytes instead of {}", meta.size, self.meta.size));
                } else if digest.as_ref().is_some_and(|d| *d != self.digest) {
                    out.push("content".into());
                }
                if meta.mode != self.meta.mode {
                    out.push(format!("mode: {:04o} instead of {:04o}", meta.mode, self.meta.mode));
                }
                if (meta.uid, meta.gid) != (self.meta.uid, self.meta.gid) {
                    out.push(format!(
                        "owner: {}:{} instead of {}:{}",
                        meta.uid, meta.gid, self.meta.uid, self.meta.gid
                    ));
                }
                for (name, value) in &self.meta.xattrs {
                    match meta.xattrs.get(name) {
                        Some(now) if now == value => {}
                        Some(_) => out.push(format!("xattr {name}: changed")),
                        None => out.push(format!("xattr {name}: removed")),
                    }
                }
                for name in meta.xattrs.keys().filter(|n| !self.meta.xattrs.contains_key(*n)) {
                    out.push(format!("xattr {name}: added"));
                }
                out
            }
        }
    }
}
