//! Crates of a `Cargo.lock`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Packages, text};

/// Bytes of a lock file.
const MAX_LOCK: u64 = 16 << 20;

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None: part of the workspace itself.
    source: Option<String>,
}

/// The lock file that `path` names, itself or by its folder.
pub(super) fn file(path: &Path) -> PathBuf {
    if path.file_name().is_some_and(|name| name == "Cargo.lock") {
        path.to_owned()
    } else {
        path.join("Cargo.lock")
    }
}

/// What is locked; several versions of one crate stand beside each other.
pub(super) fn read(path: &Path) -> io::Result<Packages> {
    let path = file(path);
    let lock: Lock = toml::from_str(&text(&path, MAX_LOCK)?)
        .map_err(|err| io::Error::other(format!("{}: {}", path.display(), err.message())))?;
    let mut out = Packages::new();
    for package in lock.package.into_iter().filter(|package| package.source.is_some()) {
        out.entry(package.name)
            .and_modify(|versions| {
                versions.push_str(", ");
                versions.push_str(&package.version);
            })
            .or_insert(package.version);
    }
    Ok(out)
}
