//! Distributions of Python: `*.dist-info` and `*.egg-info` below `site-packages`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Packages, text};

/// Bytes of a distribution's metadata and of its list of files that are read.
const MAX_METADATA: u64 = 64 << 10;
const MAX_RECORD: u64 = 16 << 10;
/// Files of a distribution of which one must be there.
const PROBED: usize = 5;

/// What is installed below `path`, a venv or a folder of packages itself.
pub(super) fn read(path: &Path) -> io::Result<Packages> {
    let mut out = Packages::new();
    let folders = folders(path);
    if folders.is_empty() {
        let why = format!("{}: no venv and no folder of packages", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    for folder in folders {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?.path();
            let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { continue };
            let metadata = if name.ends_with(".dist-info") {
                entry.join("METADATA")
            } else if name.ends_with(".egg-info") && entry.is_dir() {
                entry.join("PKG-INFO")
            } else if name.ends_with(".egg-info") {
                entry.clone()
            } else {
                continue;
            };
            let Ok(text) = text(&metadata, MAX_METADATA) else { continue };
            let field = |key: &str| {
                let head = text.lines().take_while(|line| !line.is_empty());
                head.filter_map(|line| line.strip_prefix(key)).next().map(|value| value.trim().to_owned())
            };
            if let (Some(name), Some(version)) = (field("Name:"), field("Version:"))
                && has_files(&folder, &entry)
            {
                out.insert(normal(&name), version);
            }
        }
    }
    Ok(out)
}

/// What changes when something is installed or removed.
pub(super) fn marks(path: &Path) -> Vec<PathBuf> {
    folders(path)
}

/// The folders of packages of a venv, or `path` itself.
fn folders(path: &Path) -> Vec<PathBuf> {
    if matches!(path.file_name().and_then(|n| n.to_str()), Some("site-packages" | "dist-packages")) {
        return if path.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    }
    let mut out: Vec<PathBuf> = fs::read_dir(path.join("lib"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python"))
        .map(|entry| entry.path().join("site-packages"))
        .filter(|folder| folder.is_dir())
        .collect();
    out.sort();
    out
}

/// Whether any of the first files that the distribution lists is there: its metadata may have outlived them.
fn has_files(folder: &Path, info: &Path) -> bool {
    let Ok(record) = text(&info.join("RECORD"), MAX_RECORD) else { return true };
    let inside = |line: &&str| {
        let own = line.split('/').next().is_some_and(|first| first.ends_with(".dist-info"));
        !own && !line.starts_with(['.', '/', '"']) && !line.contains("..")
    };
    let files: Vec<&str> =
        record.lines().filter_map(|line| line.split(',').next()).filter(inside).take(PROBED).collect();
    files.is_empty() || files.iter().any(|file| folder.join(file).exists())
}

/// PEP 503: one name for all spellings.
fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}
