//! Watched folders: which files a `[[file]]` with a folder or a pattern means, and what lies there that is not owned.
//!
//! The files of a watched folder are owned like any others. What comes newly is told once it has stayed for a moment:
//! programs write beside and rename, and that is nobody's concern. Everything is bounded; no link is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use crate::event::{Actor, Timestamp};
use crate::file_state::ContentKind;

/// What came newly is looked at after this time.
const SETTLE: Duration = Duration::from_secs(1);
/// Folders below a watched one, and how deep.
const FOLDERS_MAX: usize = 2_000;
const DEPTH_MAX: usize = 32;
/// Things that are told of at the same time; more are counted.
const STRANGERS_MAX: usize = 1_000;

/// A folder, or a pattern of paths, all files of which are owned.
#[derive(Debug, Clone)]
pub struct Folder {
    /// As the configuration writes it, but a folder with `/` at its end.
    pub pattern: String,
    /// What its files hold.
    pub kind: ContentKind,
    /// Executables whose change becomes the new known-good.
    pub writers: Vec<String>,
    /// Files in it that are owned at most.
    pub max_files: usize,
    /// The folder that all of its files are below.
    root: PathBuf,
    matcher: GlobMatcher,
    except: Vec<GlobMatcher>,
    /// Whether folders below the root are walked, too.
    deep: bool,
}

/// What lies in a watched folder.
#[derive(Debug, Default)]
pub struct Walk {
    /// Files that the pattern means, and what they are: by path.
    pub files: BTreeMap<PathBuf, String>,
    /// The folder and those below it.
    pub folders: Vec<PathBuf>,
    /// What was left out, in words; none: nothing.
    pub capped: Option<String>,
}

impl Folder {
    /// The folder or pattern `path`; none where it is the path of a single file. `except` are names of files that are
    /// left alone.
    ///
    /// # Errors
    /// Where it, or one of `except`, is no pattern: why.
    pub fn parse(path: &Path, except: &[String]) -> Result<Option<Self>, String> {
        let text = path.to_str().ok_or("a pattern must be UTF-8")?;
        let is_pattern = text.contains(['*', '?', '[', '{']);
        let is_folder =
            !is_pattern && (text.ends_with('/') || path.symlink_metadata().is_ok_and(|m| m.is_dir()));
        if !is_pattern && !is_folder {
            return Ok(None);
        }
        let given = if is_folder { format!("{}/", text.trim_end_matches('/')) } else { text.to_owned() };
        // Its folder by its real name: below it no link is followed.
        let fixed: PathBuf = Path::new(&given)
            .components()
            .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']))
            .collect();
        let root = fixed.canonicalize().unwrap_or_else(|_| fixed.clone());
        let rest = given
            .strip_prefix(fixed.to_str().unwrap_or_default())
            .unwrap_or_default()
            .trim_start_matches('/');
        let rest = if rest.is_empty() { "**" } else { rest };
        let matcher = glob(&format!("{}/{rest}", escaped(&root)?))?;
        let except = except.iter().map(|name| glob(name)).collect::<Result<_, _>>()?;
        Ok(Some(Self {
            deep: rest.contains('/') || rest.contains("**"),
            pattern: given,
            kind: ContentKind::default(),
            writers: Vec::new(),
            max_files: 1_000,
            root,
            matcher,
            except,
        }))
    }

    /// Whether `path` is one of its files, by name.
    #[must_use]
    pub fn means(&self, path: &Path) -> bool {
        let Some(name) = path.file_name() else { return false };
        let graces = name.as_encoded_bytes().starts_with(b".grace-");
        !graces
            && self.matcher.is_match(path)
            && !self.except.iter().any(|except| except.is_match(Path::new(name)))
    }

    /// What lies there now.
    #[must_use]
    pub fn walk(&self) -> Walk {
        let mut out = Walk::default();
        let mut next = vec![(self.root.clone(), 0)];
        while let Some((folder, depth)) = next.pop() {
            if out.folders.len() >= FOLDERS_MAX || depth > DEPTH_MAX {
                out.capped = Some(format!("more than {FOLDERS_MAX} folders, or deeper than {DEPTH_MAX}"));
                break;
            }
            if !folder.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            // One that cannot be read is watched all the same; root can read all.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            out.folders.push(folder);
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    if self.deep {
                        next.push((path, depth + 1));
                    }
                } else if self.means(&path) {
                    if out.files.len() >= self.max_files {
                        out.capped = Some(format!("more than {} files (max_files)", self.max_files));
                        return out;
                    }
                    out.files.insert(path, describe(&meta));
                }
            }
        }
        out
    }
}

fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    // A `*` stays within its folder, `**` does not.
    let built = GlobBuilder::new(pattern).literal_separator(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|err| err.to_string())
}

/// A path as a pattern that means just it.
fn escaped(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or("a pattern must be UTF-8")?;
    let mut out = String::new();
    for c in text.trim_end_matches('/').chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '!' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    Ok(out)
}

fn describe(meta: &fs::Metadata) -> String {
    let kind = meta.file_type();
    let what = if kind.is_file() {
        "regular file"
    } else if kind.is_symlink() {
        "symlink"
    } else {
        "special file"
    };
    format!(
        "{what}, {} bytes, mode {:04o}, owner {}:{}",
        meta.len(),
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid()
    )
}

/// Something in a watched folder that is to be told.
#[derive(Debug, PartialEq)]
pub(super) struct Stranger {
    pub(super) path: PathBuf,
    pub(super) pattern: String,
    /// What it is; none: it is gone.
    pub(super) what: Option<String>,
    pub(super) writers: Vec<String>,
    pub(super) writer: Option<Actor>,
}

/// All watched folders, and what lies there that is not owned.
#[derive(Default)]
pub(super) struct Folders {
    all: Vec<Folder>,
    /// Folders whose entries are watched.
    pub(super) marked: BTreeSet<PathBuf>,
    /// What was told, by path: as what.
    told: BTreeMap<PathBuf, String>,
    /// What came lately, when to look at it, and who was seen at it.
    due: BTreeMap<PathBuf, (Timestamp, Option<Actor>)>,
    capped: Option<String>,
    untold: usize,
}

impl Folders {
    /// Watches these from now on, and no others.
    pub(super) fn set(&mut self, all: Vec<Folder>) {
        self.all = all;
    }

    /// When something is to be looked at.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.due.values().map(|(at, _)| *at).min()
    }

    /// Whether what happens at `path` concerns a watched folder.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        !self.all.is_empty() && path.parent().is_some_and(|folder| self.marked.contains(folder))
    }

    /// An entry of a watched folder came or went.
    pub(super) fn hint(&mut self, path: &Path, writer: Option<Actor>, now: Timestamp) {
        if self.due.len() >= STRANGERS_MAX {
            // The sweep finds it.
            return;
        }
        let due = self.due.entry(path.to_owned()).or_insert((now.after(SETTLE), None));
        if writer.is_some() {
            due.1 = writer;
        }
    }

    /// What has become due. `owned` says which paths are owned.
    pub(super) fn due(&mut self, now: Timestamp, owned: impl Fn(&Path) -> bool) -> Vec<Stranger> {
        let ready: Vec<PathBuf> =
            self.due.iter().filter(|(_, (at, _))| *at <= now).map(|(path, _)| path.clone()).collect();
        let mut out = Vec::new();
        for path in ready {
            let Some((_, writer)) = self.due.remove(&path) else { continue };
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => out.extend(self.sweep(&owned)),
                Ok(meta) => out.extend(self.came(&path, describe(&meta), writer, &owned)),
                Err(_) => out.extend(self.went(&path)),
            }
        }
        out
    }

    /// Looks everywhere; what has come or gone since. `self.marked` is what must be watched after.
    pub(super) fn sweep(&mut self, owned: impl Fn(&Path) -> bool) -> Vec<Stranger> {
        let mut out = Vec::new();
        let (mut seen, mut marked) = (BTreeSet::new(), BTreeSet::new());
        (self.capped, self.untold) = (None, 0);
        for folder in self.all.clone() {
            let walk = folder.walk();
            marked.extend(walk.folders);
            if let Some(why) = walk.capped {
                self.capped = Some(format!("{}: {why}", folder.pattern));
            }
            for (path, what) in walk.files {
                // One that is about to be looked at is left to that look, which knows who it was.
                if !self.due.contains_key(&path) {
                    out.extend(self.came(&path, what, None, &owned));
                }
                seen.insert(path);
            }
        }
        self.marked = marked;
        let gone: Vec<PathBuf> = self.told.keys().filter(|path| !seen.contains(*path)).cloned().collect();
        if self.capped.is_none() {
            out.extend(gone.iter().filter_map(|path| self.went(path)));
        }
        out
    }

    /// The file at `path` is owned now.
    pub(super) fn owned(&mut self, path: &Path) {
        self.told.remove(path);
    }

    /// How it is, in words; none where nothing is watched. True: something is left out.
    pub(super) fn health(&self) -> Option<(String, bool)> {
        if self.all.is_empty() {
            return None;
        }
        let mut text = format!(
            "{} watched ({} folders), {} files there are not owned",
            self.all.len(),
            self.marked.len(),
            self.told.len() + self.untold
        );
        if let Some(why) = &self.capped {
            text.push_str(&format!("; not all of it: {why}"));
        }
        Some((text, self.capped.is_some() || self.untold > 0))
    }

    fn came(
        &mut self,
        path: &Path,
        what: String,
        writer: Option<Actor>,
        owned: &impl Fn(&Path) -> bool,
    ) -> Option<Stranger> {
        let folder = self.all.iter().find(|folder| folder.means(path))?;
        if owned(path) || self.told.get(path) == Some(&what) {
            return None;
        }
        if self.told.len() >= STRANGERS_MAX && !self.told.contains_key(path) {
            self.untold += 1;
            return None;
        }
        self.told.insert(path.to_owned(), what.clone());
        Some(Stranger {
            path: path.to_owned(),
            pattern: folder.pattern.clone(),
            what: Some(what),
            writers: folder.writers.clone(),
            writer,
        })
    }

    fn went(&mut self, path: &Path) -> Option<Stranger> {
        self.told.remove(path)?;
        Some(Stranger {
            path: path.to_owned(),
            pattern: String::new(),
            what: None,
            writers: Vec::new(),
            writer: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(walk: &Walk, top: &Path) -> Vec<String> {
        walk.files.keys().map(|p| p.strip_prefix(top).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_folder_a_pattern_and_a_file_mean_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("conf.d/deep")).unwrap();
        for name in ["a.conf", "conf.d/b.conf", "conf.d/c.yaml", "conf.d/deep/d.conf", "conf.d/.b.conf.swp"] {
            fs::write(top.join(name), name).unwrap();
        }
        symlink("/etc", top.join("conf.d/link")).unwrap();
        symlink(&top, top.join("conf.d/deep/up")).unwrap();
        let folder = |pattern: &str, except: &[&str]| {
            let except: Vec<String> = except.iter().map(|s| (*s).to_owned()).collect();
            Folder::parse(&top.join(pattern), &except).unwrap()
        };
        let all = |pattern: &str, except: &[&str]| names(&folder(pattern, except).unwrap().walk(), &top);
        assert!(folder("a.conf", &[]).is_none() && folder("none", &[]).is_none());
        assert_eq!(
            all("conf.d", &["*.swp", "link", "up"]),
            ["conf.d/b.conf", "conf.d/c.yaml", "conf.d/deep/d.conf"]
        );
        assert_eq!(all("conf.d/", &[]).len(), 6, "links are named, not followed");
        assert_eq!(all("conf.d/*.conf", &[]), ["conf.d/.b.conf.swp", "conf.d/b.conf"][1..]);
        assert_eq!(all("*/*.yaml", &[]), ["conf.d/c.yaml"]);
        assert_eq!(all("conf.d/**/*.conf", &[]), ["conf.d/b.conf", "conf.d/deep/d.conf"]);
        assert!(all("gone.d/", &[]).is_empty());
        assert!(Folder::parse(&top.join("a["), &[]).is_err());

        let mut few = folder("conf.d/", &[]).unwrap();
        few.max_files = 2;
        let walk = few.walk();
        assert_eq!((walk.files.len(), walk.capped.is_some()), (2, true));
    }

    #[test]
    fn what_comes_is_told_when_it_stays_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::write(top.join("owned.conf"), "").unwrap();
        let mut folders = Folders::default();
        folders.set(vec![Folder::parse(&top.join("*.conf"), &[]).unwrap().unwrap()]);
        let owned = |path: &Path| path.ends_with("owned.conf");
        assert!(folders.sweep(owned).is_empty());
        assert!(folders.marked.contains(&top) && folders.concerns(&top.join("x.conf")));

        let at = Timestamp(0);
        let (stays, goes) = (top.join("new.conf"), top.join("gone.conf"));
        fs::write(&stays, "12").unwrap();
        folders.hint(&stays, Some(Actor { pid: 7, ..Actor::default() }), at);
        folders.hint(&goes, None, at);
        folders.hint(&top.join("other.txt"), None, at);
        fs::write(top.join("other.txt"), "").unwrap();
        assert!(folders.due(at, owned).is_empty(), "not at once");
        let told = folders.due(at.after(SETTLE), owned);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((&told[0].path, told[0].writer.as_ref().unwrap().pid), (&stays, 7));
        assert!(told[0].what.as_ref().unwrap().starts_with("regular file, 2 bytes"));
        assert!(folders.sweep(owned).is_empty(), "once");
        assert!(folders.next().is_none());

        fs::remove_file(&stays).unwrap();
        let told = folders.sweep(owned);
        assert_eq!((told.len(), &told[0].what), (1, &None));
        assert!(folders.sweep(owned).is_empty());
    }
}
