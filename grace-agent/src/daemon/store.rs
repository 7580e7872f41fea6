//! What people ask about what is kept: differences from a version, the way back from a repair, the store's health.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use similar::{ChangeTag, TextDiff};

use super::control::Agent;
use super::gate::Gate;
use crate::actions::quarantine;
use crate::api::control::{Control, ControlError, FiringsQuery, Peer};
use crate::api::store::{DiffContent, DiffView, StoreView, UndoView};
use crate::api::view::FiringView;
use crate::error_chain::chain;
use crate::file_state::{ContentKind, FileState};
use crate::firing::{FiringId, RungState, Subject};
use crate::safe_path::{Entry, Parent};
use crate::snapshots::Take;
use crate::sources::look::look;

/// Contents up to this size are compared line by line.
const TEXT_MAX: u64 = 4 << 20;
/// After this time a difference is no longer made as small as it could be.
const DIFF_TIME: Duration = Duration::from_secs(2);
/// Firings among which an incident is looked for.
const FIRINGS: usize = 100_000;

impl Agent {
    /// The file at `path` as it is against version `at`, or the current one.
    pub(super) fn difference(&self, path: &Path, at: Option<u64>) -> Result<DiffView, ControlError> {
        let failed = |err: &dyn std::error::Error| ControlError::Failed(chain(err));
        let store = &self.executor.store;
        let path = self.owned_name(path);
        let current = store.current_of(&path).map_err(|err| failed(&err))?;
        let current =
            current.ok_or_else(|| ControlError::NotFound(format!("{}: not owned", path.display())))?;
        // What is a secret now was one before, whatever it was called.
        let secret = current.known.kind == ContentKind::Secret;
        let version = match at {
            None => current,
            Some(id) => {
                let version = store.get(id).map_err(|err| failed(&err))?.filter(|s| s.path == path);
                version.ok_or_else(|| {
                    ControlError::NotFound(format!("{}: it has no snapshot {id}", path.display()))
                })?
            }
        };
        let known = &version.known;
        let seen = look(&path, Some(known));
        if let FileState::Unreadable { why } = &seen {
            return Err(ControlError::Failed(format!("{}: {why}", path.display())));
        }
        let mut view = DiffView {
            snapshot: version.id,
            content: DiffContent::Missing,
            drift: known.drift(&seen),
            diff: String::new(),
            added: 0,
            removed: 0,
            path,
        };
        let FileState::Regular { meta, digest, .. } = &seen else { return Ok(view) };
        view.content = if digest.as_ref() == Some(&known.digest) {
            DiffContent::Same
        } else if secret || known.kind == ContentKind::Secret {
            DiffContent::Secret
        } else if meta.size.max(known.meta.size) > TEXT_MAX {
            DiffContent::TooLarge
        } else {
            DiffContent::Text
        };
        if view.content != DiffContent::Text {
            return Ok(view);
        }
        let mut old = Vec::new();
        let mut content = store.read(&known.digest).map_err(|err| failed(&err))?.take(TEXT_MAX);
        content.read_to_end(&mut old).map_err(|err| failed(&err))?;
        let new = read_now(&view.path)
            .map_err(|why| ControlError::Failed(format!("{}: {why}", view.path.display())))?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        let (Some(old), Some(new)) = (text(old), text(new)) else {
            view.content = DiffContent::Binary;
            return Ok(view);
        };
        let diff = TextDiff::configure().timeout(DIFF_TIME).diff_lines(&old, &new);
        for change in diff.iter_all_changes() {
            match change.tag() {
                ChangeTag::Insert => view.added += 1,
                ChangeTag::Delete => view.removed += 1,
                ChangeTag::Equal => {}
            }
        }
        let name = view.path.display().to_string();
        let (before, now) = (format!("{name} (snapshot {})", view.snapshot), format!("{name} (now)"));
        view.diff = diff.unified_diff().header(&before, &now).to_string();
        Ok(view)
    }

    /// Takes back what was done for the incident that `id` belongs to, the newest first.
    pub(super) fn take_back(&self, id: FiringId, peer: Peer) -> Result<Vec<UndoView>, ControlError> {
        let query = FiringsQuery { limit: Some(FIRINGS), ..FiringsQuery::default() };
        let incidents = self.incidents(&query)?;
        let incident = incidents.into_iter().find(|incident| incident.firings.iter().any(|f| f.id == id));
        let incident = incident
            .ok_or_else(|| ControlError::NotFound(format!("no firing {id}: `grace incidents` lists them")))?;
        // The incident by its first firing; any other one means just itself.
        let mut firings: Vec<FiringView> =
            incident.firings.into_iter().filter(|f| incident.id == id || f.id == id).collect();
        firings.sort_by_key(|f| std::cmp::Reverse(f.id));
        let mut out = Vec::new();
        for firing in firings {
            for rung in firing.remedy.iter().filter(|rung| rung.state == RungState::Done) {
                let (done, error, quarantined) = match self.take_back_one(&firing, &rung.action, peer) {
                    Ok((done, quarantined)) => (Some(done), None, quarantined),
                    Err(why) => (None, Some(why), None),
                };
                let result = done.as_ref().or(error.as_ref()).cloned().unwrap_or_default();
                self.journal.note(
                    "command",
                    format!("undo of {} for {} by uid {}: {result}", rung.action, firing.id, peer.uid),
                );
                out.push(UndoView {
                    firing: firing.id,
                    subject: firing.subject.clone(),
                    action: rung.action.clone(),
                    done,
                    error,
                    quarantined,
                });
            }
        }
        Ok(out)
    }

    fn take_back_one(
        &self,
        firing: &FiringView,
        action: &str,
        peer: Peer,
    ) -> Result<(String, Option<PathBuf>), String> {
        match (action, &firing.subject) {
            ("restore_file", Subject::File(path)) => self.take_back_restore(firing, path, peer),
            ("accept_file", Subject::File(_)) => {
                Err("a version was taken, nothing was changed: `grace restore PATH --at ID` puts an earlier one back".into())
            }
            ("start_process" | "restart_process", _) => {
                Err("a process that ended cannot be brought back; the one that was started runs on".into())
            }
            ("shed_load", _) => Err("what was shed is given back by itself when the pressure clears".into()),
            ("file_task", _) => Err("a task was filed: `grace tasks` lists it".into()),
            (other, _) => Err(format!("{other} cannot be taken back")),
        }
    }

    /// Makes what a restore displaced the known-good state, and puts it back.
    fn take_back_restore(
        &self,
        firing: &FiringView,
        path: &Path,
        peer: Peer,
    ) -> Result<(String, Option<PathBuf>), String> {
        let executor = &self.executor;
        let name = path.file_name().ok_or("it has no name")?;
        let folder = executor.quarantine.canonicalize().map_err(|err| format!("the quarantine: {err}"))?;
        let displaced = quarantine::displaced_by(&folder, &firing.id.to_string(), name)
            .map_err(|err| format!("the quarantine cannot be read: {err}"))?;
        let Some(kept) = displaced.into_iter().next() else {
            return Err(if firing.measured == "missing" {
                "nothing lay there that could be put back: to be without the file, `grace forget` it and remove it".into()
            } else {
                "what lay there is not in the quarantine (any more)".to_owned()
            });
        };
        let shown = kept.display();
        let meta = kept.symlink_metadata().map_err(|err| format!("{shown}: {err}"))?;
        if !meta.is_file() {
            return Err(format!(
                "what lay there is no regular file, and Grace owns no others: it is kept in {shown}; `grace forget` the file \
                 and move that there"
            ));
        }
        let store = &executor.store;
        let current = store.current_of(path).map_err(|err| chain(&err))?;
        let current =
            current.ok_or_else(|| format!("not owned any more; what lay there is kept in {shown}"))?;
        if current.at > firing.at {
            return Err(format!(
                "a newer known-good state was taken since (snapshot {}); what lay there is kept in {shown}",
                current.id
            ));
        }
        let seen = look(path, Some(&current.known));
        let drift = current.known.drift(&seen);
        if !drift.is_empty() || !matches!(seen, FileState::Regular { .. }) {
            return Err(format!(
                "it has changed since ({}); what lay there is kept in {shown}",
                drift.join(", ")
            ));
        }
        let _rest = executor.files.rest(path);
        // First what shall be, written down: after a crash the next start puts it there.
        let take = Take {
            kind: current.known.kind,
            writers: current.known.writers.clone(),
            reason: format!("undo of {} by uid {} (pid {})", firing.id, peer.uid, peer.pid),
            author: format!("uid {}", peer.uid),
        };
        let taken = store.take_displaced(path, &kept, take).map_err(|err| chain(&err))?.snapshot;
        let tag = format!("undo-{}", firing.id);
        let restored = match executor.restore(path, &taken.known, seen.id(), &tag, &Gate::opened()) {
            Ok(restored) => restored,
            Err(why) => {
                store.make_current(current.id).map_err(|err| format!("{why}; and then: {}", chain(&err)))?;
                return Err(why);
            }
        };
        executor.own(path, taken.known.clone());
        let drift = taken.known.drift(&look(path, Some(&taken.known)));
        if !drift.is_empty() {
            return Err(format!("put back, but changed again at once: {}", drift.join(", ")));
        }
        let done = format!(
            "what lay there is back, digest matches; it is snapshot {} and the known-good state (before: `grace restore \
             {} --at {}`)",
            taken.id,
            path.display(),
            current.id
        );
        Ok((done, restored.quarantined))
    }

    /// Reads the whole store.
    pub(super) fn read_store(&self) -> Result<StoreView, ControlError> {
        self.scrub.look(|_| {}).map_err(|err| ControlError::Failed(chain(&err)))
    }
}

/// The content of the file at `path`, without following a link.
fn read_now(path: &Path) -> Result<Vec<u8>, String> {
    let parent = Parent::open(path).map_err(|err| chain(&err))?;
    let Entry::Regular(file, _) = parent.entry().map_err(|errno| errno.to_string())? else {
        return Err("it is no regular file any more".into());
    };
    let mut out = Vec::new();
    file.take(TEXT_MAX).read_to_end(&mut out).map_err(|err| err.to_string())?;
    Ok(out)
}
