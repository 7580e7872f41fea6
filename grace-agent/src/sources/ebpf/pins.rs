//! Hot restart: the probes' maps and links live on as pins in bpffs while no agent runs, so that events are still
//! collected (up to the size of the rings; the rest is counted) and the next agent goes on where the last one ended.
//!
//! `/sys/fs/bpf/grace/NAME/BUILD/`: NAME stands for the state folder, BUILD for the object with the probes. The pins
//! of another build have another layout and cannot be read: they are taken away once the new probes are attached.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData};

use super::PodOwner;
use crate::sha256;

/// Where bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Type of bpffs (`BPF_FS_MAGIC`, include/uapi/linux/magic.h).
const MAGIC: u64 = 0xcafe_4a11;
/// The folder of all agents.
const TOP: &str = "grace";
/// Digits of a digest in a name.
const DIGITS: usize = 16;

/// Bytes of the map `OWNER`: the state folder, NUL padded.
pub(super) const OWNER_LEN: usize = 512;

/// The pins of one agent and build.
#[derive(Debug)]
pub(super) struct Pins {
    /// The folder of this build.
    dir: PathBuf,
    /// True: an earlier agent left them, complete.
    pub(super) adopted: bool,
}

impl Pins {
    /// The pins of the agent with this state folder; those that an earlier one left half made are removed.
    pub(super) fn open(state: &Path, object: &[u8]) -> Result<Self, String> {
        let fs = rustix::fs::statfs(BPFFS).map_err(|err| format!("{BPFFS}: {err}"))?;
        if u64::try_from(fs.f_type).ok() != Some(MAGIC) {
            return Err(format!("{BPFFS} has no bpffs: mount -t bpf bpf {BPFFS}"));
        }
        let state = owner_bytes(state);
        let dir = Self::of_agent(&state).join(name(object));
        let adopted = owner(&dir).is_some_and(|path| owner_bytes(&path) == state);
        if !adopted && dir.exists() {
            remove(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|err| format!("{}: {err}", dir.display()))?;
        // Made by somebody else before: then the pins would be theirs to change.
        for folder in dir.ancestors().take(3) {
            let meta = fs::symlink_metadata(folder).map_err(|err| format!("{}: {err}", folder.display()))?;
            if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
                return Err(format!("{} is not root's alone", folder.display()));
            }
        }
        Ok(Self { dir, adopted })
    }

    /// Where the pins of the agent with this state folder lie, all builds.
    fn of_agent(state: &[u8; OWNER_LEN]) -> PathBuf {
        Path::new(BPFFS).join(TOP).join(name(state))
    }

    /// Where the map `name` is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(format!("map_{name}"))
    }

    /// Where the program `name` is pinned.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(format!("prog_{name}"))
    }

    /// Where the link of the program `name` is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.dir.join(format!("link_{name}"))
    }

    /// Takes the pins of the program `name` and its link away, if there are any.
    pub(super) fn forget(&self, name: &str) {
        drop(fs::remove_file(self.link(name)));
        drop(fs::remove_file(self.program(name)));
    }

    /// Where the note of the owner is pinned: the last one to be made, so that it tells that all others are there.
    pub(super) fn owner(&self) -> PathBuf {
        self.dir.join("owner")
    }

    /// Takes all pins of this agent away: what no file descriptor holds is then detached.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(&self.dir)?;
        // Held by nothing else now, unless another build's pins are left.
        if let Some(agent) = self.dir.parent() {
            drop(fs::remove_dir(agent));
        }
        Ok(())
    }

    /// Takes away what other builds of this agent left, and agents whose state folder is gone. What was taken, in
    /// words.
    pub(super) fn sweep(&self) -> Vec<String> {
        let mut out = Vec::new();
        let Some(mine) = self.dir.parent() else { return out };
        for build in folders(mine).into_iter().filter(|build| *build != self.dir) {
            out.push(taken(&build, "the pinned probes of another version"));
        }
        for agent in mine.parent().map(folders).unwrap_or_default().into_iter().filter(|a| a != mine) {
            for build in folders(&agent) {
                // Without a note it may be one that is being made right now.
                if let Some(state) = owner(&build)
                    && !state.exists()
                {
                    out.push(taken(
                        &build,
                        &format!("the pinned probes of an agent whose {} is gone", state.display()),
                    ));
                    drop(fs::remove_dir(&agent));
                }
            }
        }
        out
    }
}

/// A name made of the digest of `bytes`. bpffs allows no dots in names, and paths are longer.
fn name(bytes: &[u8]) -> String {
    sha256::of_bytes(bytes).0.chars().take(DIGITS).collect()
}

/// The state folders of agents whose probes are pinned now, whether such an agent runs or not.
pub(super) fn pinned() -> Vec<PathBuf> {
    let agents = folders(&Path::new(BPFFS).join(TOP));
    agents.iter().flat_map(|agent| folders(agent)).filter_map(|build| owner(&build)).collect()
}

/// Takes away whatever agents with this state folder left pinned; how many sets there were. No such agent may run.
pub(super) fn clear_all(state: &Path) -> io::Result<usize> {
    let agent = Pins::of_agent(&owner_bytes(state));
    let builds = folders(&agent);
    for build in &builds {
        remove(build)?;
    }
    if agent.exists() {
        fs::remove_dir(agent)?;
    }
    Ok(builds.len())
}

fn taken(dir: &Path, what: &str) -> String {
    match remove(dir) {
        Ok(()) => format!("{what} were detached"),
        Err(err) => format!("{what} cannot be detached: {}: {err}", dir.display()),
    }
}

/// The state folder, padded for the map.
pub(super) fn owner_bytes(state: &Path) -> [u8; OWNER_LEN] {
    let mut out = [0; OWNER_LEN];
    for (to, from) in out.iter_mut().zip(state.as_os_str().as_encoded_bytes()) {
        *to = *from;
    }
    out
}

/// The state folder of the agent that left `dir` complete.
fn owner(dir: &Path) -> Option<PathBuf> {
    let map = MapData::from_pin(dir.join("owner")).ok()?;
    let map: Array<MapData, PodOwner> = Array::try_from(aya::maps::Map::Array(map)).ok()?;
    let bytes = map.get(&0, 0).ok()?.0;
    let length = bytes.iter().position(|b| *b == 0)?;
    if length == 0 {
        return None;
    }
    use std::os::unix::ffi::OsStrExt;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[..length])))
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Removes a folder of pins. Links first: a probe must not run on into maps that nobody can find again.
fn remove(dir: &Path) -> io::Result<()> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        fs::remove_file(name)?;
    }
    fs::remove_dir(dir)
}
