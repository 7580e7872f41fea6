//! Settings of what Grace keeps: versions, displaced files, the checks of the store; and what may change owned files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::load::{Invalid, Step};
use super::{File, Span};

/// How long versions and displaced files are kept, and how the store is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshots {
    /// Versions of each file that are kept, with the one that is kept up, which always is. Default 100.
    pub versions: u32,
    /// An older version than this goes. Default `365d`.
    pub version_age: Span,
    /// Things that restores displaced and that are kept. Default 1000.
    pub displaced: u32,
    /// Their size at most, in MiB. Default 1024.
    pub displaced_mib: u32,
    /// What was displaced longer ago goes. Default `90d`.
    pub displaced_age: Span,
    /// How often every kept content is read and compared with its digest. Default `24h`.
    pub scrub_every: Span,
    /// At most so fast, in MiB a second. 0: never. Default 4.
    pub scrub_mib_per_s: u32,
    /// What a restore does to a file that has other names (hard links). Default `cut`.
    pub hard_links: HardLinks,
}

/// What a restore does to a file that has other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HardLinks {
    /// Put the known-good file at the one name, atomically; the others keep naming what lay there, which is said.
    #[default]
    Cut,
    /// Leave the file alone and say why.
    Hold,
}

impl Default for Snapshots {
    fn default() -> Self {
        let days = |n: u64| Span::secs(n * 86_400);
        Self {
            versions: 100,
            version_age: days(365),
            displaced: 1_000,
            displaced_mib: 1_024,
            displaced_age: days(90),
            scrub_every: days(1),
            scrub_mib_per_s: 4,
            hard_links: HardLinks::default(),
        }
    }
}

impl Snapshots {
    /// What is wrong with it.
    pub(super) fn validate(&self) -> Vec<Invalid> {
        let mut out = Vec::new();
        let mut wrong = |key: &'static str, why: &str| {
            out.push(Invalid {
                at: vec![Step::Key("snapshots"), Step::Key(key)],
                message: format!("{key}: {why}"),
            });
        };
        if self.versions == 0 {
            wrong("versions", "must be at least 1: the version that is kept up");
        }
        let hour = Span::secs(3_600);
        for (key, span) in [("version_age", self.version_age), ("displaced_age", self.displaced_age)] {
            if span < hour {
                wrong(key, "must be at least `1h`: what is needed to understand an incident would be gone");
            }
        }
        if self.scrub_every < Span::secs(60) {
            wrong("scrub_every", "must be at least `1m`");
        }
        out
    }
}

/// What is wrong with the keys of a `[[file]]`, number `i` from 0, that only a folder or a pattern has.
pub(super) fn validate_folder(file: &File, i: usize) -> Vec<Invalid> {
    let at = |key: &'static str| vec![Step::Key("file"), Step::Index(i), Step::Key(key)];
    let mut out = Vec::new();
    let glob = |pattern: &str| globset::Glob::new(pattern).map(drop).map_err(|err| err.to_string());
    let path = file.path.to_string_lossy();
    if path.contains(['*', '?', '[', '{'])
        && let Err(why) = glob(&path)
    {
        out.push(Invalid { at: at("path"), message: format!("path: {why}") });
    }
    for (n, name) in file.except.iter().enumerate() {
        let mut at = at("except");
        at.push(Step::Index(n));
        if name.contains('/') {
            let name = name.escape_debug();
            out.push(Invalid { at, message: format!("except: `{name}` must be a file's name, without `/`") });
        } else if let Err(why) = glob(name) {
            out.push(Invalid { at, message: format!("except: {why}") });
        }
    }
    if file.max_files == 0 || file.max_files > 100_000 {
        out.push(Invalid { at: at("max_files"), message: "max_files: must be 1 to 100000".into() });
    }
    out
}

/// Package managers by the paths that distributions give them; of those that are scripts, the script's.
pub(super) fn package_managers() -> Vec<String> {
    [
        "/usr/bin/dpkg",
        "/bin/dpkg",
        "/usr/bin/rpm",
        "/bin/rpm",
        "/usr/bin/dnf*",
        "/usr/bin/yum",
        "/usr/bin/microdnf",
        "/usr/bin/zypper",
        "/usr/bin/pacman",
        "/sbin/apk",
        "/usr/sbin/apk",
        "/usr/bin/apk",
    ]
    .map(str::to_owned)
    .to_vec()
}
