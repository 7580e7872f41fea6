//! Packages of npm: what lies in `node_modules`, or else what `package-lock.json` says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Packages, text};

/// Bytes of a lock file and of a package's own file.
const MAX_LOCK: u64 = 64 << 20;
const MAX_PACKAGE: u64 = 1 << 20;

/// What is installed in the project at `path`.
pub(super) fn read(path: &Path) -> io::Result<Packages> {
    match fs::read_dir(path.join("node_modules")) {
        Ok(entries) => installed(entries),
        Err(err) if err.kind() == io::ErrorKind::NotFound => locked(&path.join("package-lock.json")),
        Err(err) => Err(err),
    }
}

/// What changes when something is installed or removed.
pub(super) fn marks(path: &Path) -> Vec<PathBuf> {
    ["package-lock.json", "node_modules", "node_modules/.package-lock.json"]
        .iter()
        .map(|name| path.join(name))
        .collect()
}

fn installed(entries: fs::ReadDir) -> io::Result<Packages> {
    let mut out = Packages::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('@') {
            for scoped in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let inner = scoped.file_name().to_string_lossy().into_owned();
                out.extend(version(&scoped.path()).map(|version| (format!("{name}/{inner}"), version)));
            }
        } else if !name.starts_with('.') {
            out.extend(version(&entry.path()).map(|version| (name, version)));
        }
    }
    Ok(out)
}

fn version(package: &Path) -> Option<String> {
    let text = text(&package.join("package.json"), MAX_PACKAGE).ok()?;
    let document: Value = serde_json::from_str(&text).ok()?;
    document.get("version")?.as_str().map(str::to_owned)
}

fn locked(path: &Path) -> io::Result<Packages> {
    let document: Value = serde_json::from_str(&text(path, MAX_LOCK)?)
        .map_err(|err| io::Error::other(format!("{}: {err}", path.display())))?;
    let mut out = Packages::new();
    let version = |about: &Value| about.get("version").and_then(Value::as_str).map(str::to_owned);
    // Since npm 7 by place; before by name.
    let places = document.get("packages").and_then(Value::as_object).into_iter().flatten();
    for (place, about) in places {
        let name = place.strip_prefix("node_modules/").filter(|name| !name.contains("node_modules/"));
        out.extend(name.and_then(|name| Some((name.to_owned(), version(about)?))));
    }
    if out.is_empty() {
        let names = document.get("dependencies").and_then(Value::as_object).into_iter().flatten();
        out.extend(names.filter_map(|(name, about)| Some((name.clone(), version(about)?))));
    }
    Ok(out)
}
