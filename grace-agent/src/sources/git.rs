//! Reads git repos without running git, whoever they belong to.
//!
//! A repo of another user is that user's text: no configuration of it is trusted (gix opens it isolated, with reduced
//! trust), no include is followed, no filter, hook or pager is known, and every object's size is asked before it is
//! unpacked. Files of the working tree are opened without following a link (`safe_path.rs`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use gix::ObjectId;
use gix::objs::tree::EntryKind;
use gix::sec::Trust;
use rustix::fs::{AtFlags, Stat, readlinkat, statat};
use rustix::io::Errno;

use crate::safe_path::{Entry, Parent};

/// Files of one commit or index.
const MAX_FILES: usize = 300_000;
/// Bytes of one tree or commit object.
const MAX_OBJECT: u64 = 64 << 20;
/// Folders in folders.
const MAX_DEPTH: usize = 64;

/// Why a repo cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Something is no regular file or folder: it might make the reader wait for ever.
    #[error("`{}` in the repo is a fifo, socket or device: it is not read", .0.display())]
    Special(PathBuf),
    /// gix says why.
    #[error("cannot {what}: {why}")]
    Git {
        /// Such as `open the repo`.
        what: &'static str,
        /// What gix says.
        why: String,
    },
    /// More than is looked at.
    #[error("{0}: more than Grace looks at")]
    TooMuch(&'static str),
    /// The working tree cannot be read.
    #[error("cannot read the working tree")]
    Work(#[from] Errno),
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> GitError {
    move |err| GitError::Git { what, why: err.to_string() }
}

/// A file in a commit or an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// Its content.
    pub id: ObjectId,
    /// Regular, executable or link.
    pub kind: FileKind,
    /// What the index knows of the file on disk.
    pub stat: Option<gix::index::entry::Stat>,
}

/// What git tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Plain,
    /// An executable file.
    Executable,
    /// A symbolic link.
    Link,
}

/// A repo, open for reading.
pub struct Git {
    repo: gix::Repository,
    root: PathBuf,
}

impl Git {
    /// Opens the repo whose working tree is `path`.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, GitError> {
        let root = path.canonicalize().map_err(failed("find the repo"))?;
        // What waits for a writer must not be opened by a thread that serves all repos.
        for name in ["", "HEAD", "config", "index", "packed-refs", "objects", "refs", "commondir", "shallow"]
        {
            let file = root.join(".git").join(name);
            if let Ok(meta) = file.metadata()
                && !(meta.is_file() || meta.is_dir())
            {
                return Err(GitError::Special(PathBuf::from(".git").join(name)));
            }
        }
        let options = gix::open::Options::isolated().with(Trust::Reduced);
        let mut repo = options.open(&root).map_err(failed("open the repo"))?.to_thread_local();
        repo.object_cache_size(4 << 20);
        Ok(Self { repo, root })
    }

    /// The folder, resolved.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of git itself.
    #[must_use]
    pub fn git_dir(&self) -> &Path {
        self.repo.git_dir()
    }

    /// Where the index lies.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.repo.index_path()
    }

    /// The commit that is checked out.
    ///
    /// # Errors
    /// Where there is none yet.
    pub fn head(&self) -> Result<ObjectId, GitError> {
        self.repo.head_id().map(|id| id.detach()).map_err(failed("find the commit that is checked out"))
    }

    /// The repo as gix sees it, for walks.
    #[must_use]
    pub fn gix(&self) -> &gix::Repository {
        &self.repo
    }

    /// The tree of a commit.
    ///
    /// # Errors
    /// Where the commit is not there or damaged.
    pub fn tree_of(&self, commit: ObjectId) -> Result<ObjectId, GitError> {
        self.check_size(commit)?;
        let commit = self.repo.find_commit(commit).map_err(failed("read a commit"))?;
        commit.tree_id().map(|id| id.detach()).map_err(failed("read a commit"))
    }

    /// All files of a commit, by path; paths that are no UTF-8 are left out.
    ///
    /// # Errors
    /// Where the commit is not there or damaged, or has too many files.
    pub fn commit_files(&self, commit: ObjectId) -> Result<BTreeMap<String, Tracked>, GitError> {
        let mut out = BTreeMap::new();
        self.walk(self.tree_of(commit)?, "", MAX_DEPTH, &mut out)?;
        Ok(out)
    }

    fn walk(
        &self,
        tree: ObjectId,
        below: &str,
        depth: usize,
        out: &mut BTreeMap<String, Tracked>,
    ) -> Result<(), GitError> {
        if depth == 0 {
            return Err(GitError::TooMuch("folders in folders"));
        }
        for entry in self.entries(tree)? {
            let path = format!("{below}{}", entry.name);
            match entry.kind {
                EntryKind::Tree => self.walk(entry.id, &format!("{path}/"), depth - 1, out)?,
                EntryKind::Commit => {}
                kind => {
                    if out.len() >= MAX_FILES {
                        return Err(GitError::TooMuch("files in a commit"));
                    }
                    out.insert(path, Tracked { id: entry.id, kind: file_kind(kind), stat: None });
                }
            }
        }
        Ok(())
    }

    /// Calls `take` with each file that differs between two trees: its path, and its content before and after.
    ///
    /// # Errors
    /// Where a tree is not there or damaged.
    pub fn differences(
        &self,
        old: Option<ObjectId>,
        new: Option<ObjectId>,
        take: &mut impl FnMut(&str, Option<ObjectId>, Option<ObjectId>),
    ) -> Result<(), GitError> {
        self.compare(old, new, "", MAX_DEPTH, take)
    }

    fn compare(
        &self,
        old: Option<ObjectId>,
        new: Option<ObjectId>,
        below: &str,
        depth: usize,
        take: &mut impl FnMut(&str, Option<ObjectId>, Option<ObjectId>),
    ) -> Result<(), GitError> {
        if old == new {
            return Ok(());
        }
        if depth == 0 {
            return Err(GitError::TooMuch("folders in folders"));
        }
        let read = |tree: Option<ObjectId>| tree.map_or_else(|| Ok(Vec::new()), |tree| self.entries(tree));
        let mut both: BTreeMap<String, [Option<TreeEntry>; 2]> = BTreeMap::new();
        for (side, entries) in [read(old)?, read(new)?].into_iter().enumerate() {
            for entry in entries {
                let name = entry.name.clone();
                both.entry(name).or_default()[side] = Some(entry);
            }
        }
        for (name, [old, new]) in both {
            let same = old.as_ref().zip(new.as_ref()).is_some_and(|(a, b)| a.id == b.id && a.kind == b.kind);
            if same {
                continue;
            }
            let path = format!("{below}{name}");
            let id = |entry: &Option<TreeEntry>, tree: bool| {
                entry
                    .as_ref()
                    .filter(|e| (e.kind == EntryKind::Tree) == tree && e.kind != EntryKind::Commit)
                    .map(|e| e.id)
            };
            let (old_tree, new_tree) = (id(&old, true), id(&new, true));
            self.compare(old_tree, new_tree, &format!("{path}/"), depth - 1, take)?;
            let (old_file, new_file) = (id(&old, false), id(&new, false));
            if old_file.is_some() || new_file.is_some() {
                take(&path, old_file, new_file);
            }
        }
        Ok(())
    }

    fn entries(&self, tree: ObjectId) -> Result<Vec<TreeEntry>, GitError> {
        self.check_size(tree)?;
        let tree = self.repo.find_tree(tree).map_err(failed("read a folder of a commit"))?;
        let decoded = tree.decode().map_err(failed("read a folder of a commit"))?;
        let entry = |e: &gix::objs::tree::EntryRef<'_>| {
            let name = std::str::from_utf8(e.filename).ok()?;
            // What could lead out of the repo is no file's name.
            let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
            plain.then(|| TreeEntry { name: name.to_owned(), id: e.oid.to_owned(), kind: e.mode.kind() })
        };
        Ok(decoded.entries.iter().filter_map(entry).collect())
    }

    /// All files of the index, by path; none where there is no index.
    ///
    /// # Errors
    /// Where it is damaged or has too many files.
    pub fn index_files(&self) -> Result<BTreeMap<String, Tracked>, GitError> {
        let path = self.index_path();
        match path.symlink_metadata() {
            Ok(meta) if meta.file_type().is_fifo() || meta.len() > MAX_OBJECT => {
                return Err(GitError::TooMuch("the index"));
            }
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(err) => return Err(failed("read the index")(err)),
        }
        let index = self.repo.open_index().map_err(failed("read the index"))?;
        if index.entries().len() > MAX_FILES {
            return Err(GitError::TooMuch("files in the index"));
        }
        let mut out = BTreeMap::new();
        for entry in index.entries() {
            use gix::index::entry::Mode;
            let kind = match entry.mode {
                Mode::FILE => FileKind::Plain,
                Mode::FILE_EXECUTABLE => FileKind::Executable,
                Mode::SYMLINK => FileKind::Link,
                _ => continue,
            };
            if let Ok(path) = std::str::from_utf8(entry.path(&index)) {
                out.insert(path.to_owned(), Tracked { id: entry.id, kind, stat: Some(entry.stat) });
            }
        }
        Ok(out)
    }

    /// The content of a file; none where it is larger than `limit` bytes.
    ///
    /// # Errors
    /// Where it is not there or damaged.
    pub fn blob(&self, id: ObjectId, limit: u64) -> Result<Option<Vec<u8>>, GitError> {
        let header = self.repo.find_header(id).map_err(failed("read a file of a commit"))?;
        if header.size() > limit {
            return Ok(None);
        }
        let mut object = self.repo.find_object(id).map_err(failed("read a file of a commit"))?;
        Ok(Some(std::mem::take(&mut object.data)))
    }

    /// The size of a file in bytes, where it can be told.
    #[must_use]
    pub fn blob_size(&self, id: ObjectId) -> Option<u64> {
        self.repo.find_header(id).ok().map(|header| header.size())
    }

    fn check_size(&self, id: ObjectId) -> Result<(), GitError> {
        let header = self.repo.find_header(id).map_err(failed("find an object"))?;
        if header.size() > MAX_OBJECT { Err(GitError::TooMuch("an object's size")) } else { Ok(()) }
    }

    /// What lies in the working tree under `path`.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn work_stat(&self, path: &str) -> Result<Option<Stat>, GitError> {
        let Some(parent) = self.parent(path)? else { return Ok(None) };
        match statat(parent.fd(), parent.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The content in the working tree: of a file up to `limit` bytes, of a link its target. None where there is neither,
    /// or it is larger.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn work_content(&self, path: &str, limit: u64) -> Result<Option<(FileKind, Vec<u8>)>, GitError> {
        let Some(parent) = self.parent(path)? else { return Ok(None) };
        match parent.entry()? {
            Entry::Missing => Ok(None),
            Entry::Other(_) => match readlinkat(parent.fd(), parent.name(), Vec::new()) {
                Ok(target) => Ok(Some((FileKind::Link, target.into_bytes()))),
                // A folder, or something that is no file at all.
                Err(_) => Ok(None),
            },
            Entry::Regular(file, stat) => {
                let kind = if stat.st_mode & 0o100 != 0 { FileKind::Executable } else { FileKind::Plain };
                let mut content = Vec::new();
                let read = file.take(limit + 1).read_to_end(&mut content);
                read.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
                Ok((content.len() as u64 <= limit).then_some((kind, content)))
            }
        }
    }

    /// The folder of `path` in the working tree, held open; none where it is not there, or a link stands in its place.
    fn parent(&self, path: &str) -> Result<Option<Parent>, GitError> {
        let full = self.root.join(OsStr::from_bytes(path.as_bytes()));
        match Parent::open(&full) {
            Ok(parent) => Ok(Some(parent)),
            Err(crate::safe_path::PathError::OpenFolder { source, .. }) => Err(source.into()),
            Err(_) => Ok(None),
        }
    }
}

/// One name in a tree.
#[derive(Debug, Clone)]
struct TreeEntry {
    name: String,
    id: ObjectId,
    kind: EntryKind,
}

fn file_kind(kind: EntryKind) -> FileKind {
    match kind {
        EntryKind::BlobExecutable => FileKind::Executable,
        EntryKind::Link => FileKind::Link,
        _ => FileKind::Plain,
    }
}

/// The id that git gives to a file with this content, in a repo that names objects as `like` does.
#[must_use]
pub fn id_of(content: &[u8], like: ObjectId) -> Option<ObjectId> {
    gix::objs::compute_hash(like.kind(), gix::objs::Kind::Blob, content).ok()
}
