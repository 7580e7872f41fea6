//! Who has a file mapped shared and writable: stores into a page that is dirty already call no hook, so this is all that
//! can be known of their author. It says who could, not who did.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use grace_common::InodeKey;

use crate::clock::Stopwatch;

/// Of one process at most so much of its table is read: one with more mappings is taken for unknown.
const MAPS_MAX: u64 = 16 << 20;

/// All processes at most so long.
const TIME_MAX: std::time::Duration = std::time::Duration::from_millis(500);

/// The one process that has one of `inodes` mapped shared and writable. None where nobody, or more than one has it,
/// or not all could be looked at.
pub(super) fn sole_mapper(inodes: &[InodeKey]) -> Option<u32> {
    let watch = Stopwatch::start();
    let mut found = None;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if watch.elapsed() > TIME_MAX {
            return None;
        }
        match maps(pid, inodes) {
            Answer::Yes if found.is_some() => return None,
            Answer::Yes => found = Some(pid),
            Answer::No => {}
            Answer::Unknown => return None,
        }
    }
    // Who has ended meanwhile may have been followed by another with its number.
    found.filter(|pid| matches!(maps(*pid, inodes), Answer::Yes))
}

/// True where `pid` has one of `inodes` mapped shared and writable.
pub(super) fn is_mapped_by(pid: u32, inodes: &[InodeKey]) -> bool {
    matches!(maps(pid, inodes), Answer::Yes)
}

/// The processes that have one of `inodes` mapped in any way, except this one. Those that could not be looked at in time
/// are not among them.
#[must_use]
pub fn mappers(inodes: &[InodeKey]) -> Vec<u32> {
    let watch = Stopwatch::start();
    let mut out = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if watch.elapsed() > TIME_MAX || out.len() == MAPPERS_MAX {
            break;
        }
        if pid != std::process::id() && matches!(table(pid, inodes, false), Answer::Yes) {
            out.push(pid);
        }
    }
    out
}

/// Processes that [`mappers`] tells at most.
const MAPPERS_MAX: usize = 1024;

enum Answer {
    Yes,
    No,
    Unknown,
}

fn maps(pid: u32, inodes: &[InodeKey]) -> Answer {
    table(pid, inodes, true)
}

/// Reads the table of `pid`; `stores`: only mappings count whose stores reach the file.
fn table(pid: u32, inodes: &[InodeKey], stores: bool) -> Answer {
    let path = Path::new("/proc").join(pid.to_string()).join(OsStr::new("maps"));
    // Gone, or a kernel thread.
    let Ok(file) = File::open(path) else { return Answer::No };
    let mut lines = BufReader::new(file).take(MAPS_MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) if lines.limit() == 0 => return Answer::Unknown,
            Ok(0) | Err(_) => return Answer::No,
            Ok(_) => {}
        }
        if maps_one_of(&line, inodes, stores) {
            return Answer::Yes;
        }
    }
}

/// A line of proc_pid_maps(5): range, permissions, offset, device, inode, and then a name, which is not looked at: it is
/// whatever the file's owner chose, with its line breaks escaped by the kernel.
fn maps_one_of(line: &[u8], inodes: &[InodeKey], stores: bool) -> bool {
    let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let mut found = || {
        let permissions = words.nth(1)?;
        if stores && (permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's')) {
            return None;
        }
        let device = std::str::from_utf8(words.nth(1)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let ino: u64 = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        Some((major.checked_mul(1 << 20)? | minor, ino))
    };
    found().is_some_and(|(dev, ino)| inodes.iter().any(|key| (key.dev, key.ino) == (dev, ino)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_writable_mappings_of_the_file_count() {
        let key = [InodeKey { dev: (0xfe << 20) | 3, _pad: 0, ino: 42 }];
        let line = |text: &str| maps_one_of(text.as_bytes(), &key, true);
        assert!(line("7f00-7f10 rw-s 00000000 fe:03 42 /etc/a\n"));
        assert!(line("7f00-7f10 -w-s 00000000 fe:03 42                 /a (deleted)\n"));
        assert!(!line("7f00-7f10 r--s 00000000 fe:03 42 /etc/a\n"));
        assert!(!line("7f00-7f10 rw-p 00000000 fe:03 42 /etc/a\n"));
        assert!(!line("7f00-7f10 rw-s 00000000 fe:03 43 /x rw-s 0 fe:03 42\n"));
        assert!(!line("7f00-7f10 rw-p 00000000 00:00 0 rw-s 00000000 fe:03 42\n"));
        assert!(maps_one_of(b"7f00-7f10 r--p 00000000 fe:03 42 /etc/a\n", &key, false));
        assert!(!maps_one_of(b"7f00-7f10 r--p 00000000 fe:03 43 /etc/a\n", &key, false));
        assert!(!line("rw-s") && !line("") && !line("a rw-s 0 ffffffffff:0 42"));
    }
}
