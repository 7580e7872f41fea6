//! `config_drift`: a config or secret that Grace owns is not what it should be.
//!
//! Sees `FileSeen` against `FileKnown`. Fires on any difference in content, mode, owner, type or extended attributes,
//! unless a legitimate writer made it; clears when the file is *seen* to be right again. Remedy: restore; but when the
//! same change keeps coming back it is a fight with another controller, and Grace stops and files a task.

mod strangers;

use super::{Spec, Trigger};
use crate::config;
use crate::event::Event;
use crate::file_state::ContentKind;
use crate::firing::{Route, Verdict};
use crate::owned::{OwnedFiles, Terms};
use strangers::Strangers;

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "config_drift",
    summary: "a snapshotted config or secret differs from its known-good state",
    help: "Watches every file that was given to Grace by `grace snapshot` or a [[file]] table. Fires at once when its \
           content, mode, owner, type or extended attributes differ from the snapshot and the writer is not in the \
           file's `writers` and no package manager, nor was started by one; such a change becomes the new known-good. \
           Of a watched folder every file is owned, and a new one is told, never deleted. Repairs by putting the known-good state back atomically; what lay there is kept in \
           quarantine. Clears when the file is seen to be right again. When the same writer or the same content comes \
           back `conflict_count` times within `conflict_window`, another controller owns the file too: Grace stops \
           restoring it, files a task that names the writer, and begins again only after `grace restore` or \
           `grace snapshot`, or when nobody touched the file for `conflict_window`.",
    subjects: "owned files",
    remedy: "restore the snapshot → after 3 returns: stop, file a task",
    needs: "fanotify (root) and the file_dirty probe; without them inotify and a sweep, which do not say who wrote",
    evidence: &["file", "fanotify", "inotify"],
    route: Route::SelfHealing,
};

/// The trigger.
pub struct ConfigDrift {
    owned: OwnedFiles,
    strangers: Strangers,
    package_managers: Vec<String>,
}

impl ConfigDrift {
    /// Without files.
    #[must_use]
    pub fn new(settings: config::ConfigDrift) -> Self {
        let package_managers = settings.package_managers;
        let terms = Terms {
            package_managers: package_managers.clone(),
            conflict_count: settings.conflict_count,
            conflict_window: settings.conflict_window.get(),
            title: "Find out why an owned file keeps changing, and make one side own it",
            acceptance: "the file equals its snapshot, or a new snapshot was taken, and config_drift stays clear for 10 \
                         minutes",
        };
        let owned = OwnedFiles::new(terms, |kind| kind != ContentKind::Weights);
        Self { owned, strangers: Strangers::default(), package_managers }
    }
}

impl Trigger for ConfigDrift {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.owned.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        // A stranger that was just taken over is cleared before the file is judged as an owned one.
        let mut out = self.strangers.on_event(event, &self.package_managers);
        out.extend(self.owned.on_event(event));
        out
    }
}
