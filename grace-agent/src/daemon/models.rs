//! What is configured of models: which files are their weights, how these are repaired, who is told after.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use grace_common::InodeKey;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::executor::{Executor, lock};
use crate::actions::restore_file::Restored;
use crate::actions::restore_weights::{self, Plan};
use crate::clock;
use crate::config::{self, Config, Model, Notify, Repair};
use crate::error_chain::chain;
use crate::event::{Kind, Timestamp};
use crate::file_state::{ContentKind, FileId, KeepCopy, KnownGood};
use crate::journal::Journal;
use crate::safe_path::own_name;
use crate::snapshots::Take;
use crate::sources::ebpf::kernel_dev;
use crate::sources::look::MAX_CONTENT;
use crate::sources::mapped::mappers;
use crate::weights::hash::Progress;

/// Files of one model at most.
const FILES_MAX: usize = 10_000;

/// The largest index of shards that is read, in bytes.
const INDEX_MAX: u64 = 64 << 20;

/// The models as they are configured, each with its weights as they were last found.
#[derive(Debug, Default)]
pub(super) struct Models(Mutex<Vec<(Model, Vec<PathBuf>)>>);

impl Models {
    /// Takes over the models of `config`, with the weights that are there now.
    pub(super) fn set(&self, config: &Config, journal: &Journal) {
        let found = config.model.iter().map(|model| (model.clone(), weights_of(model, journal))).collect();
        *lock(&self.0) = found;
    }

    /// All, with their weights.
    pub(super) fn all(&self) -> Vec<(Model, Vec<PathBuf>)> {
        lock(&self.0).clone()
    }

    /// The model to which the weights at `path` belong.
    pub(super) fn of(&self, path: &Path) -> Option<Model> {
        lock(&self.0)
            .iter()
            .find(|(_, files)| files.iter().any(|f| f == path))
            .map(|(model, _)| model.clone())
    }
}

/// The weights of `model` that are there now, by their real names.
fn weights_of(model: &Model, journal: &Journal) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for path in glob::glob(&model.path).into_iter().flatten().filter_map(Result::ok) {
        let shards = if is_index(&path) { shards(&path) } else { vec![path] };
        // A link stands for the file behind it: caches of hubs are made of them.
        let files =
            shards.into_iter().filter_map(|path| path.canonicalize().ok()).filter(|path| path.is_file());
        found.extend(files.take(FILES_MAX));
        if found.len() >= FILES_MAX {
            break;
        }
    }
    if found.is_empty() {
        let (name, path) = (model.name.escape_debug(), model.path.escape_debug());
        tracing::warn!(model = %name, %path, "no weights are there");
        journal.note("config", format!("model {name}: no regular file matches {path}"));
    }
    found.into_iter().take(FILES_MAX).collect()
}

fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}

/// The shards that an index names, beside it; what would lie elsewhere is left out.
fn shards(index: &Path) -> Vec<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let mut text = String::new();
    let read = std::fs::File::open(index).and_then(|file| file.take(INDEX_MAX).read_to_string(&mut text));
    let parsed = read.map_err(|err| err.to_string()).and_then(|_bytes| {
        serde_json::from_str::<Index>(&text).map_err(|err| err.to_string().escape_debug().to_string())
    });
    match parsed {
        Ok(parsed) => {
            let names: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
            let plain = |name: &&str| !name.contains('/') && !matches!(*name, "" | "." | "..");
            names.into_iter().filter(plain).map(|name| index.with_file_name(name)).collect()
        }
        Err(why) => {
            tracing::warn!(index = %index.display(), why, "the index of shards cannot be read");
            Vec::new()
        }
    }
}

/// Takes a snapshot of all weights that have none yet, large ones in a thread of their own, and says which belong to whom.
pub(super) fn declare(executor: &Arc<Executor>) {
    let mut large = Vec::new();
    for (model, files) in executor.models.all() {
        executor.send(Kind::ModelDeclared {
            name: model.name.clone(),
            files: files.clone(),
            lower_is_better: model.lower_is_better,
        });
        for path in files {
            match executor.store.current_of(&path) {
                Ok(Some(_)) => {}
                Ok(None) if path.metadata().is_ok_and(|meta| meta.len() <= MAX_CONTENT) => {
                    own(executor, &path, model.copy);
                }
                Ok(None) => large.push((path, model.copy)),
                Err(err) => tracing::error!(why = %chain(&err), "the owned files cannot be listed"),
            }
        }
    }
    if large.is_empty() {
        return;
    }
    let executor = Arc::clone(executor);
    let started = std::thread::Builder::new().name("grace-manifest".into()).spawn(move || {
        for (path, keep) in large {
            own(&executor, &path, keep);
        }
    });
    if let Err(err) = started {
        tracing::error!(%err, "large weights are not owned: no thread to hash them");
    }
}

fn own(executor: &Executor, path: &Path, keep: KeepCopy) {
    let take = Take {
        kind: ContentKind::Weights,
        writers: Vec::new(),
        reason: "config file".to_owned(),
        author: "the configuration".to_owned(),
    };
    let result = own_name(path, Path::new("/")).map_err(|err| chain(&err)).and_then(|path| {
        let taken = executor.store.take_weights(&path, take, keep, &executor.hashing);
        taken.map_err(|err| chain(&err)).map(|taken| (path, taken))
    });
    match result {
        Ok((path, (taken, note))) => {
            executor.journal.note("config", format!("{}: {note}", path.display()));
            executor.own(&path, taken.snapshot.known);
        }
        Err(why) => {
            tracing::warn!(path = %path.display(), %why, "cannot be owned");
            executor.journal.note("config", format!("{} cannot be owned: {why}", path.display()));
        }
    }
}

impl Executor {
    /// Whether the weights at `path` are mended in place, and so keep their other names. Those of another size are not.
    pub(super) fn in_place(&self, path: &Path, known: &KnownGood) -> bool {
        self.models.of(path).is_none_or(|model| model.repair == Repair::Chunks)
            && path.symlink_metadata().is_ok_and(|meta| meta.len() == known.meta.size)
    }

    /// Puts the weights at `path` back and tells those who use them.
    pub(super) fn restore_weights(
        &self,
        path: &Path,
        known: &KnownGood,
        judged: Option<FileId>,
        tag: &str,
        go: &dyn Fn(),
    ) -> Result<Restored, String> {
        let model = self.models.of(path);
        let plan = Plan {
            in_place: model.as_ref().is_none_or(|model| model.repair == Repair::Chunks),
            replicas: model.iter().flat_map(|m| m.replica.iter().chain(&m.hub)).cloned().collect(),
        };
        let bad = self.files.doubts().bad(path);
        // Before: a file that is replaced is another one to them.
        let inode = judged.map(|id| InodeKey { dev: kernel_dev(id.dev), _pad: 0, ino: id.ino });
        let users = inode.map(|key| mappers(&[key])).unwrap_or_default();
        let began = clock::boottime();
        let restored = restore_weights::restore(
            &self.store,
            &self.quarantine,
            path,
            known,
            judged,
            &plan,
            &bad,
            tag,
            go,
        )
        .map_err(|err| chain(&err))?;
        let mut notes: Vec<String> = restored.note.iter().cloned().collect();
        if !users.is_empty() {
            let pids: Vec<String> = users.iter().take(8).map(u32::to_string).collect();
            notes.push(format!("mapped by {} processes (pid {})", users.len(), pids.join(", ")));
        }
        if let Some(model) = model {
            notes.extend(self.tell_users(&model, &users, inode, began));
            self.canaries.ask_soon(&model.name);
        }
        Ok(Restored { note: (!notes.is_empty()).then(|| notes.join("; ")), ..restored })
    }

    fn tell_users(
        &self,
        model: &config::Model,
        users: &[u32],
        inode: Option<InodeKey>,
        began: Timestamp,
    ) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some((signal, key)) = model.signal.zip(inode) {
            let signal = match signal {
                Notify::Hup => Signal::HUP,
                Notify::Usr1 => Signal::USR1,
                Notify::Usr2 => Signal::USR2,
            };
            for pid in users {
                let opened = i32::try_from(*pid).ok().and_then(Pid::from_raw);
                let Some(Ok(fd)) = opened.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { continue };
                // The number may be another's by now: only who still has it mapped is meant. One whose file was replaced
                // keeps the displaced one.
                if !mappers(&[key]).contains(pid) {
                    continue;
                }
                notes.push(match pidfd_send_signal(&fd, signal) {
                    Ok(()) => format!("pid {pid} got its signal"),
                    Err(err) => format!("pid {pid} could not be signalled: {err}"),
                });
            }
        }
        for name in &model.restart {
            notes.push(match self.restart(name, began) {
                Ok(done) => format!("{name} restarted: {done}"),
                Err(why) => format!("{name} could not be restarted: {why}"),
            });
        }
        notes
    }
}

/// How far hashing for manifests has come.
pub(super) fn hashing(progress: &Progress) -> Option<String> {
    progress.told().map(|told| format!("hashing: {told}"))
}
