//! Sink `spool`: a folder with one folder a task: `task.md`, `task.json`, and each item of evidence as a file.
//!
//! The folder is named by the fingerprint, and each file is replaced as a whole: told twice is told once, and a reader never
//! sees half a file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Sink;
use crate::tasks::{Delivery, Entry, file_name, render};

/// Writes the task as it is now.
pub(super) fn deliver(config: &Sink, entry: &Entry) -> Delivery {
    let Some(spool) = config.path.as_deref() else {
        return Delivery::Refused("no folder is configured".to_owned());
    };
    match write(spool, entry) {
        Ok(()) => Delivery::Sent,
        Err((path, err)) => Delivery::Later(format!("{}: {err}", path.display()), None),
    }
}

fn write(spool: &Path, entry: &Entry) -> Result<(), (PathBuf, io::Error)> {
    let task = &entry.task;
    let name = file_name(task.fingerprint.get(..16).unwrap_or(&task.fingerprint));
    let folder = spool.join(name);
    let evidence = folder.join("evidence");
    for path in [spool, &folder, &evidence] {
        make(path).map_err(|err| (path.to_owned(), err))?;
    }
    let document = serde_json::to_string_pretty(task).unwrap_or_default();
    let mut files = Vec::new();
    for (n, item) in task.evidence.iter().enumerate() {
        let name = format!("{n:02}-{}-{}.txt", file_name(&item.trust), file_name(&item.name));
        files.push((evidence.join(name), item.text.clone()));
    }
    // The document last: who sees it finds all that it names.
    files.push((folder.join("task.md"), render::markdown(task)));
    files.push((folder.join("task.json"), document));
    for (path, text) in &files {
        replace(path, text.as_bytes()).map_err(|err| (path.clone(), err))?;
    }
    // What an earlier version of the task had, and this one has not.
    for entry in fs::read_dir(&evidence).into_iter().flatten().flatten() {
        if !files.iter().any(|(path, _)| *path == entry.path()) {
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Replaces a file as a whole, durably.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    // What a crash left, or a link that somebody put there.
    drop(fs::remove_file(&temporary));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}
