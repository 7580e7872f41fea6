//! The kernel's own name of the file at a path: `super_block.s_dev` and `inode.i_ino`, which probes see.
//!
//! `st_dev` is something else on btrfs (a number for each subvolume) and on overlayfs (the file lies in the upper
//! layer, on another file system). The mount table knows `s_dev`; of an overlay it knows the upper layer.
#![expect(unsafe_code, reason = "FS_IOC_GETVERSION has no safe wrapper")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use grace_common::InodeKey;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, statx};

/// A mount, as far as it matters here.
struct Mount {
    /// `s_dev` as the kernel keeps it.
    dev: u32,
    /// The folder of its file system that is mounted, and where.
    root: PathBuf,
    point: PathBuf,
    /// Of an overlay: the upper layer's folder, if it has one.
    overlay: Option<Option<PathBuf>>,
}

/// What a file is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// The inode whose content it is; none where that cannot be told, or lies in an overlay's lower layer, where
    /// nobody may write.
    pub(super) key: Option<InodeKey>,
    /// Tells the inode from an earlier one with the same number, on file systems that count.
    pub(super) generation: Option<u32>,
    /// As `/proc/PID/maps` may name it instead: on an overlay its inode there.
    pub(super) shown: Option<InodeKey>,
    /// True on an overlay: another inode may hold the content after a change.
    pub(super) overlaid: bool,
}

impl Identity {
    /// Every inode that this file may be named by.
    pub(super) fn names(&self) -> Vec<InodeKey> {
        self.key.into_iter().chain(self.shown).collect()
    }
}

/// The mount table of our namespace. Poll it for PRI: it tells of changes.
pub(super) struct Mounts {
    file: File,
    table: HashMap<u64, Mount>,
}

impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Mounts {
    /// Reads it.
    pub(super) fn open() -> io::Result<Self> {
        let mut mounts = Self { file: File::open("/proc/self/mountinfo")?, table: HashMap::new() };
        mounts.reload()?;
        Ok(mounts)
    }

    /// Reads it again.
    pub(super) fn reload(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut text)?;
        self.table = text.split(|b| *b == b'\n').filter_map(parse).collect();
        Ok(())
    }

    /// What lies at `path`, without following a link. None where nothing does, or the kernel does not tell its mount
    /// (before 5.8).
    pub(super) fn identify(&self, path: &Path) -> Option<Identity> {
        let fd = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let (mount, ino, regular) = self.place(&fd)?;
        let shown = InodeKey { dev: mount.dev, _pad: 0, ino };
        let Some(upper) = &mount.overlay else {
            let generation = if regular { generation(&fd) } else { None };
            return Some(Identity { key: Some(shown), generation, shown: Some(shown), overlaid: false });
        };
        let below = upper.as_ref().and_then(|upper| self.upper(mount, upper, path));
        Some(Identity {
            key: below.map(|(key, _)| key),
            generation: below.and_then(|(_, generation)| generation),
            shown: Some(shown),
            overlaid: true,
        })
    }

    /// The inode in the upper layer `upper` of the overlay `mount` that is shown at `path`, if it is there.
    fn upper(&self, mount: &Mount, upper: &Path, path: &Path) -> Option<(InodeKey, Option<u32>)> {
        let inside = mount.root.strip_prefix("/").ok()?.join(path.strip_prefix(&mount.point).ok()?);
        let layer =
            openat(CWD, upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = openat2(layer, inside, flags, Mode::empty(), resolve).ok()?;
        let (mount, ino, regular) = self.place(&fd)?;
        // A whiteout is a device; an overlay on an overlay is not followed further.
        if !regular || mount.overlay.is_some() {
            return None;
        }
        Some((InodeKey { dev: mount.dev, _pad: 0, ino }, generation(&fd)))
    }

    fn place(&self, fd: &OwnedFd) -> Option<(&Mount, u64, bool)> {
        let asked = StatxFlags::MNT_ID | StatxFlags::INO | StatxFlags::TYPE;
        let stat = statx(fd, "", AtFlags::EMPTY_PATH, asked).ok()?;
        if stat.stx_mask & asked.bits() != asked.bits() {
            return None;
        }
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        Some((self.table.get(&stat.stx_mnt_id)?, stat.stx_ino, kind == FileType::RegularFile))
    }
}

/// The generation of the regular file behind the O_PATH descriptor `fd`.
fn generation(fd: &OwnedFd) -> Option<u32> {
    /// `_IOR('v', 1, long)`.
    const FS_IOC_GETVERSION: u64 =
        (2 << 30) | ((size_of::<libc::c_long>() as u64) << 16) | ((b'v' as u64) << 8) | 1;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).ok()?;
    let mut version = [0u32; 2];
    // SAFETY: the kernel writes an int, whatever the request's size says, at most a long; there is room for that.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION as _, version.as_mut_ptr()) };
    (rc == 0).then_some(version[0])
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<(u64, Mount)> {
    let mut words = line.split(|b| *b == b' ');
    let id = number(words.next()?)?;
    let dev = words.nth(1)?;
    let at = dev.iter().position(|b| *b == b':')?;
    let (major, minor) = (number(&dev[..at])?, number(&dev[at + 1..])?);
    let dev = u32::try_from((major << 20) | minor).ok()?;
    let (root, point) = (path(words.next()?), path(words.next()?));
    // Optional fields end with a lone hyphen.
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let kind = words.next()?;
    let options = words.nth(1).unwrap_or_default();
    let overlay = (kind == b"overlay").then(|| {
        options.split(|b| *b == b',').find_map(|option| option.strip_prefix(b"upperdir=")).map(path)
    });
    Some((id, Mount { dev, root, point, overlay }))
}

fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A path with its octal escapes undone.
fn path(bytes: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        rest = after;
        if let (b'\\', Some(digits)) = (*first, after.get(..3))
            && digits.iter().all(|d| (b'0'..=b'7').contains(d))
        {
            out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &after[3..];
        } else {
            out.push(*first);
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line = b"36 27 0:49 /a\\040b /mnt/x\\134y rw,relatime shared:1 - overlay none rw,lowerdir=/l,upperdir=/u\\054v,workdir=/w";
        let (id, mount) = parse(line).unwrap();
        assert_eq!((id, mount.dev), (36, 49));
        assert_eq!((mount.root, mount.point), (PathBuf::from("/a b"), PathBuf::from("/mnt/x\\y")));
        assert_eq!(mount.overlay, Some(Some(PathBuf::from("/u,v"))));
        let (_, disk) = parse(b"27 1 254:3 / / rw - ext4 /dev/vda rw").unwrap();
        assert_eq!((disk.dev, disk.overlay), ((254 << 20) | 3, None));
        assert!(parse(b"").is_none() && parse(b"x y z").is_none() && parse(b"1 2 3 / /").is_none());
    }

    #[test]
    fn a_file_is_identified_as_stat_does_on_a_plain_file_system() {
        let path = Path::new("/proc/version");
        let found = Mounts::open().unwrap().identify(path).unwrap();
        let stat = rustix::fs::lstat(path).unwrap();
        assert_eq!(found.key.unwrap().ino, stat.st_ino);
        assert_eq!(found.key.unwrap().dev, super::super::ebpf::kernel_dev(stat.st_dev));
        assert!(!found.overlaid);
        assert_eq!(Mounts::open().unwrap().identify(Path::new("/nonexistent/file")), None);
    }
}
