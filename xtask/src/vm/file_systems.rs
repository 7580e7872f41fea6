//! File systems of a guest's own: its root is an overlay of the host's files, which behaves like none of those that
//! real configs lie on.
//!
//! The images are made anew for every guest, in its run's folder: with a few milliseconds each that costs less
//! than to keep and copy them, and they go with the folder.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::write;
use crate::{places, process};

/// Where the guest has its ext4, and TMPDIR.
pub(crate) const SCRATCH: &str = "/mnt/grace-test";

/// Set in a guest: `ext4=/mnt/grace-test,xfs=…` for the file systems that are mounted.
pub(super) const VARIABLE: &str = "GRACE_TEST_FS";

/// A file system that a guest mounts.
struct FileSystem {
    /// Its type, and the name of its image.
    kind: &'static str,
    /// Where it is mounted.
    at: &'static str,
    /// The image's size; none where there is no disk.
    megabytes: Option<u64>,
}

const ALL: [FileSystem; 4] = [
    FileSystem { kind: "ext4", at: SCRATCH, megabytes: Some(256) },
    // mkfs.xfs refuses less than 300.
    FileSystem { kind: "xfs", at: "/mnt/grace-xfs", megabytes: Some(320) },
    FileSystem { kind: "btrfs", at: "/mnt/grace-btrfs", megabytes: Some(256) },
    FileSystem { kind: "tmpfs", at: "/mnt/grace-tmpfs", megabytes: None },
];

/// Makes the images in a run's folder, and the list that the guest mounts them by. The images, in the order in
/// which the guest counts its disks.
pub(super) fn make(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    let mut list = String::new();
    for (FileSystem { kind, at, megabytes }, letter) in ALL.iter().zip('a'..) {
        let mut device = (*kind).to_owned();
        if let Some(megabytes) = megabytes {
            let image = dir.join(format!("{kind}.img"));
            File::create(&image)
                .and_then(|file| file.set_len(megabytes << 20))
                .with_context(|| image.display().to_string())?;
            format(kind, &image)?;
            images.push(image);
            device = format!("/dev/vd{letter}");
        }
        writeln!(list, "{kind} {device} {at}")?;
    }
    write(&dir.join("file-systems"), list)?;
    Ok(images)
}

/// Each so that the oldest of the tested kernels knows it.
fn format(kind: &str, image: &Path) -> Result<()> {
    match kind {
        "ext4" => mkfs("mke2fs", &["-q", "-F", "-t", "ext4", "-L", "grace-test"], image),
        "btrfs" => mkfs("mkfs.btrfs", &["-q", "-f", "-m", "single", "-L", "grace-btrfs"], image),
        // Newer features are on by default in newer tools and unknown to older ones, which have only 5.10's.
        "xfs" => mkfs("mkfs.xfs", &["-q", "-f", "-i", "nrext64=0,exchange=0", "-n", "parent=0"], image)
            .or_else(|_| mkfs("mkfs.xfs", &["-q", "-f", "-i", "nrext64=0"], image))
            .or_else(|_| mkfs("mkfs.xfs", &["-q", "-f"], image)),
        _ => anyhow::bail!("nothing makes a {kind}"),
    }
}

fn mkfs(program: &str, options: &[&str], image: &Path) -> Result<()> {
    let program = places::on_path(program).with_context(|| format!("there is no {program}"))?;
    process::output(process::program(program).args(options).arg(image)).map(drop)
}

/// Whether the guest sets this variable itself: what it says about the host's mounts is wrong there.
pub(super) fn is_ours(variable: &OsStr) -> bool {
    variable == VARIABLE
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn disks_come_first() {
        // The guest counts disks only: one after a file system without a disk would get another's letter.
        assert!(ALL.is_sorted_by_key(|fs| fs.megabytes.is_none()));
    }
}
