//! What earlier scans found, by file: the next one parses only what has changed.
//!
//! One compact file, replaced as a whole. It is only ever a shortcut: one that is damaged, of another version or
//! missing means that everything is parsed again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::check::Checked;
use super::worker::Key;
use super::{PARSERS, RULES};

/// A cache larger than this is none of ours, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Files remembered at most.
const MAX_FILES: usize = 2_000_000;

/// What was found in a file when it was as its key says.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// [`super::Language`] by number; 0: none.
    pub(super) language: u8,
    pub(super) checked: Checked,
    /// This scan met it.
    met: AtomicBool,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    at: Option<PathBuf>,
    entries: HashMap<PathBuf, Entry>,
    changed: bool,
}

impl Cache {
    /// One that is not kept.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The one in the file `at`, empty where there is none that can be used.
    #[must_use]
    pub fn open(at: &Path) -> Self {
        let entries = read(at).unwrap_or_default();
        Self { at: Some(at.to_owned()), entries, changed: false }
    }

    /// What is known of the file at `path` as it is now.
    pub(super) fn get(&self, path: &Path, key: Key) -> Option<&Entry> {
        let entry = self.entries.get(path).filter(|entry| entry.key == key)?;
        entry.met.store(true, Ordering::Relaxed);
        Some(entry)
    }

    /// Remembers what was found.
    pub(super) fn put(&mut self, path: PathBuf, key: Key, language: u8, checked: Checked) {
        self.changed = true;
        if self.entries.len() < MAX_FILES {
            self.entries.insert(path, Entry { key, language, checked, met: AtomicBool::new(true) });
        }
    }

    /// Forgets what lies below `roots` and was not met since the last call, and keeps the rest for the next scan.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn keep(&mut self, roots: &[PathBuf]) -> io::Result<()> {
        let before = self.entries.len();
        self.entries.retain(|path, entry| {
            entry.met.swap(false, Ordering::Relaxed) || !roots.iter().any(|root| path.starts_with(root))
        });
        self.changed |= self.entries.len() != before;
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let Some(at) = &self.at else { return Ok(()) };
        write(at, &self.entries)
    }
}

/// What the file begins with: format, and all that decides how a file is judged.
fn header() -> Vec<u8> {
    format!("grace-syntax 1 {} {RULES} {PARSERS:?}\n", env!("CARGO_PKG_VERSION")).into_bytes()
}

fn write(at: &Path, entries: &HashMap<PathBuf, Entry>) -> io::Result<()> {
    let mut out = header();
    for (path, entry) in entries {
        let name = path.as_os_str().as_bytes();
        let found = match &entry.checked {
            Checked::Clean => Vec::new(),
            other => serde_json::to_vec(other)?,
        };
        out.extend_from_slice(&u32::try_from(name.len()).map_err(io::Error::other)?.to_le_bytes());
        out.extend_from_slice(&u32::try_from(found.len()).map_err(io::Error::other)?.to_le_bytes());
        let Key { dev, ino, size, mtime_ns, ctime_ns } = entry.key;
        for number in [dev, ino, size, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned()] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(entry.language);
        out.extend_from_slice(name);
        out.extend_from_slice(&found);
    }
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);

    let folder = at.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temp =
        folder.join(format!(".{}.{}", at.file_name().unwrap_or_default().display(), std::process::id()));
    let written = (|| {
        // A leftover of a scan that was killed, by the same process number.
        match fs::remove_file(&temp) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(&out)?;
        fs::rename(&temp, at)
    })();
    if written.is_err() {
        drop(fs::remove_file(&temp));
    }
    written
}

fn read(at: &Path) -> Option<HashMap<PathBuf, Entry>> {
    let file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(at).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).ok()?;
    let (body, digest) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(body)[..] != digest[..] {
        return None;
    }
    let mut rest = body.strip_prefix(header().as_slice())?;
    let mut entries = HashMap::new();
    while !rest.is_empty() {
        let name = u32::from_le_bytes(*take(&mut rest)?) as usize;
        let found = u32::from_le_bytes(*take(&mut rest)?) as usize;
        let mut number = || take(&mut rest).copied().map(u64::from_le_bytes);
        let (dev, ino, size) = (number()?, number()?, number()?);
        let (mtime_ns, ctime_ns) = (number()?.cast_signed(), number()?.cast_signed());
        let [language] = *take::<1>(&mut rest)?;
        let (path, after) = rest.split_at_checked(name)?;
        let (found, after) = after.split_at_checked(found)?;
        rest = after;
        let checked = if found.is_empty() { Checked::Clean } else { serde_json::from_slice(found).ok()? };
        let key = Key { dev, ino, size, mtime_ns, ctime_ns };
        entries.insert(
            PathBuf::from(OsStr::from_bytes(path)),
            Entry { key, language, checked, met: AtomicBool::new(false) },
        );
    }
    Some(entries)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::super::check::Skip;
    use super::*;
    use crate::event::SyntaxError;

    fn key(n: u64) -> Key {
        Key { dev: 1, ino: n, size: 3, mtime_ns: -4, ctime_ns: 5 }
    }

    #[test]
    fn what_was_found_is_found_again_and_what_was_not_met_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("new/syntax.cache");
        let error = SyntaxError { line: 1, column: 2, text: "x\u{1b}".into(), problem: "y".into() };
        let found =
            [Checked::Clean, Checked::Broken(vec![error]), Checked::Skipped(Skip::Python2), Checked::Clean];
        let names: Vec<PathBuf> = ["/r/a", "/r/b\n\u{1b}", "/r/c", "/other/d"].map(PathBuf::from).into();
        let mut cache = Cache::open(&at);
        for (n, (name, checked)) in names.iter().zip(&found).enumerate() {
            cache.put(name.clone(), key(n as u64), 3, checked.clone());
        }
        cache.keep(&[PathBuf::from("/r")]).unwrap();

        let mut cache = Cache::open(&at);
        for (n, (name, checked)) in names.iter().zip(&found).enumerate().take(2) {
            let entry = cache.get(name, key(n as u64)).unwrap();
            assert_eq!((&entry.checked, entry.language), (checked, 3));
            assert!(cache.get(name, key(9)).is_none(), "another content");
        }
        cache.keep(&[PathBuf::from("/r")]).unwrap();
        let cache = Cache::open(&at);
        assert!(cache.get(&names[0], key(0)).is_some());
        assert!(cache.get(&names[2], key(2)).is_none(), "not met: it is gone");
        assert!(cache.get(&names[3], key(3)).is_some(), "not below what was scanned");
    }

    #[test]
    fn a_cache_that_is_damaged_anywhere_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("c");
        let mut cache = Cache::open(&at);
        cache.put("/r/a".into(), key(1), 1, Checked::Skipped(Skip::Binary));
        cache.keep(&[]).unwrap();
        let whole = fs::read(&at).unwrap();
        assert_eq!(Cache::open(&at).entries.len(), 1);
        for at_byte in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at_byte] ^= 0x20;
            fs::write(&at, &bad).unwrap();
            assert!(Cache::open(&at).entries.is_empty(), "byte {at_byte}");
            fs::write(&at, &whole[..at_byte]).unwrap();
            assert!(Cache::open(&at).entries.is_empty(), "cut at {at_byte}");
        }
    }
}
