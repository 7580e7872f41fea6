//! Other names of an object that a restore displaced: hard links, and mounts of the file itself. A restore puts another
//! object at one name; the others keep naming what lay there, and people must know.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, statat};

use crate::file_meta;
use crate::file_state::FileId;

/// How many names the regular file `name` in `folder` has beside this one.
pub(super) fn links(folder: BorrowedFd<'_>, name: &OsStr) -> u64 {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .ok()
        .filter(|stat| file_meta::kind(stat) == "regular file")
        .map_or(0, |stat| stat.st_nlink.saturating_sub(1))
}

/// What should be known of the other names of the object `judged`, which had `links` hard links beside the name that
/// was restored; none where it had no other name.
pub(super) fn told(judged: FileId, links: u64) -> Option<String> {
    let mut said = Vec::new();
    if links > 0 {
        let names = if links == 1 { "another name" } else { "other names" };
        said.push(format!(
            "it had {links} {names} (hard links), which still show what lay there: own them too, or link them anew"
        ));
    }
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for place in mounts_of(&table, judged) {
        said.push(format!(
            "it is mounted at {} (a bind mount), which still shows what lay there: mount it anew",
            place.display()
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// True where the file at `path` has more names than this one.
#[must_use]
pub fn has_other_links(path: &std::path::Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| file_meta::kind(&stat) == "regular file" && stat.st_nlink > 1)
}

/// Places where the object `id` itself is mounted. Only mounts of its own device are looked at: a dead network mount
/// would make this wait.
fn mounts_of(table: &[u8], id: FileId) -> Vec<PathBuf> {
    let device = format!("{}:{}", rustix::fs::major(id.dev), rustix::fs::minor(id.dev));
    let mut out = Vec::new();
    for line in table.split(|b| *b == b'\n') {
        let mut words = line.split(|b| *b == b' ').skip(2);
        let (Some(dev), Some(_root), Some(place)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if dev != device.as_bytes() {
            continue;
        }
        let place = PathBuf::from(std::ffi::OsString::from_vec(unescape(place)));
        if rustix::fs::lstat(&place).is_ok_and(|stat| file_meta::id(&stat) == id) {
            out.push(place);
        }
    }
    out
}

/// proc_pid_mountinfo(5): space, tab, newline and backslash are octal there.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal = text.get(at + 1..at + 4).filter(|_| text[at] == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c\011d"), b"/a b\\c\td");
        assert_eq!(unescape(br"/a\9zz\04"), br"/a\9zz\04");
    }
}
