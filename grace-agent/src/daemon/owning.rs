//! What the configuration gives Grace to own: single files, the files of folders and patterns. Weights: `models.rs`.

use std::path::Path;

use crate::config::Config;
use crate::error_chain::chain;
use crate::file_state::ContentKind;
use crate::journal::Journal;
use crate::safe_path::own_name;
use crate::snapshots::{Snapshot, Store, StoreError, Take};
use crate::sources::folders::Folder;

/// What is owned.
pub(super) struct Owned {
    /// The current version of every owned file, whoever gave it to Grace.
    pub(super) files: Vec<Snapshot>,
    /// Watched folders.
    pub(super) folders: Vec<Folder>,
}

/// Takes a snapshot of every `[[file]]` that has none yet, and returns all that is owned.
pub(super) fn own_configured(config: &Config, store: &Store, journal: &Journal) -> Result<Owned, StoreError> {
    let refused = |path: &Path, why: &str| {
        tracing::warn!(path = %path.display(), %why, "cannot be owned");
        journal.note("config", format!("{} cannot be owned: {why}", path.display()));
    };
    let mut folders = Vec::new();
    for file in &config.file {
        let kind = if file.secret { ContentKind::Secret } else { ContentKind::Config };
        match Folder::parse(&file.path, &file.except) {
            Ok(None) => own(store, &file.path, kind, &file.writers, &refused)?,
            Ok(Some(mut folder)) => {
                (folder.kind, folder.writers) = (kind, file.writers.clone());
                folder.max_files = usize::try_from(file.max_files).unwrap_or(usize::MAX);
                own_folder(store, journal, &folder, &refused)?;
                folders.push(folder);
            }
            Err(why) => refused(&file.path, &why),
        }
    }
    Ok(Owned { files: store.current()?, folders })
}

/// Owns the file at `path`, which may be owned already.
fn own(
    store: &Store,
    path: &Path,
    kind: ContentKind,
    writers: &[String],
    refused: &impl Fn(&Path, &str),
) -> Result<(), StoreError> {
    if let Some(snapshot) = store.current_of(path)? {
        let as_said = snapshot.known.kind == kind && snapshot.known.writers == writers;
        return if as_said { Ok(()) } else { store.describe(snapshot.id, kind, writers) };
    }
    let take = taking(kind, writers);
    let taken = own_name(path, Path::new("/"))
        .map_err(|err| chain(&err))
        .and_then(|path| store.take(&path, take).map_err(|err| chain(&err)));
    if let Err(why) = taken {
        refused(path, &why);
    }
    Ok(())
}

fn taking(kind: ContentKind, writers: &[String]) -> Take {
    Take {
        kind,
        writers: writers.to_vec(),
        reason: "config file".to_owned(),
        author: "the configuration".to_owned(),
    }
}

/// Owns the files of `folder`: all of them when it is seen for the first time. Later, what is not owned has come since,
/// and is told.
fn own_folder(
    store: &Store,
    journal: &Journal,
    folder: &Folder,
    refused: &impl Fn(&Path, &str),
) -> Result<(), StoreError> {
    let walk = folder.walk();
    if let Some(why) = &walk.capped {
        tracing::warn!(folder = %folder.pattern, %why, "not all of it is owned");
        journal.note("config", format!("{}: not all of it is owned: {why}", folder.pattern));
    }
    let first = !store.is_adopted(&folder.pattern)?;
    if first {
        let mut new = Vec::new();
        for (path, what) in walk.files {
            if !what.starts_with("regular file") {
                refused(&path, &format!("it is a {}", what.split(',').next().unwrap_or_default()));
            } else if store.current_of(&path)?.is_none() {
                new.push((path, taking(folder.kind, &folder.writers)));
            }
        }
        for (path, taken) in store.take_all(new) {
            if let Err(err) = taken {
                refused(&path, &chain(&err));
            }
        }
    }
    // Files that are gone just now are owned, too.
    let as_said = |s: &Snapshot| s.known.kind == folder.kind && s.known.writers == folder.writers;
    let differs = |s: &&Snapshot| folder.means(&s.path) && !as_said(s);
    for snapshot in store.current()?.iter().filter(differs) {
        store.describe(snapshot.id, folder.kind, &folder.writers)?;
    }
    if first {
        store.adopt(&folder.pattern)?;
        journal.note("config", format!("{}: its files are owned from now on", folder.pattern));
    }
    Ok(())
}
