//! Reads a large file without disturbing whoever else reads it, and finds which of its chunks are dirty.
//!
//! What lies in the page cache is read from there and stays; what does not is read and leaves no trace (RWF_DONTCACHE, Linux
//! 6.14; before that, pages that were not cached are dropped again as far as cachestat(2), Linux 6.5, can tell).
#![expect(unsafe_code, reason = "cachestat(2) has no safe wrapper")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use super::manifest::CHUNK;

/// Include/uapi/linux/fs.h.
const RWF_DONTCACHE: u32 = 0x80;

/// include/uapi/asm-generic/unistd.h: the same number on every architecture.
const SYS_CACHESTAT: i64 = 451;

/// What of a file lies in the page cache (`struct cachestat`, include/uapi/linux/mman.h), in pages.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Cached {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// What of `length` bytes at `offset` lies in the page cache; none where this kernel or file system does not tell.
fn cached(file: &File, offset: u64, length: u64) -> Option<Cached> {
    let range = Range { offset, length };
    let mut out = Cached::default();
    // SAFETY: the descriptor is open while `file` lives; both structures have the layout that the call asks for and outlive
    // it; the last argument must be 0.
    let rc = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut out, 0) };
    (rc == 0).then_some(out)
}

/// The chunks of the first `size` bytes of which a page is dirty or on its way to the disk; none where this kernel does not
/// tell.
#[must_use]
pub fn dirty(file: &File, size: u64) -> Option<BTreeSet<u64>> {
    let mut out = BTreeSet::new();
    // A question walks over every page that is cached of what it asks about, whatever the answer is: each is asked about once.
    for index in 0..size.div_ceil(CHUNK) {
        let seen = cached(file, index.saturating_mul(CHUNK), CHUNK)?;
        if seen.dirty != 0 || seen.writeback != 0 {
            out.insert(index);
        }
    }
    Some(out)
}

/// Whether the kernel and the file system know RWF_DONTCACHE; asked once for each reader.
#[derive(Debug, Default)]
pub struct Reader {
    plain: AtomicBool,
}

impl Reader {
    /// Fills `out` from `at` on, but no further than the file goes; says how many bytes that were.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, file: &File, at: u64, out: &mut [u8]) -> io::Result<usize> {
        let plain = self.plain.load(Ordering::Relaxed);
        // Nobody can say what was cached before: then nothing is dropped.
        let absent = plain && cached(file, at, out.len() as u64).is_some_and(|seen| seen.cached == 0);
        let mut done = 0;
        while done < out.len() {
            let rest = &mut out[done..];
            let place = at + done as u64;
            let result = if self.plain.load(Ordering::Relaxed) {
                pread(file, rest, place)
            } else {
                let flags = ReadWriteFlags::from_bits_retain(RWF_DONTCACHE);
                preadv2(file, &mut [IoSliceMut::new(rest)], place, flags)
            };
            match result {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
                    if !self.plain.load(Ordering::Relaxed) =>
                {
                    self.plain.store(true, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        if absent
            && let Some(length) = NonZeroU64::new(done as u64)
            && let Err(err) = fadvise(file, at, Some(length), Advice::DontNeed)
        {
            tracing::debug!(%err, "pages that were read stay in the cache");
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn dirty_chunks_are_found_and_reading_leaves_the_cache_as_it_was() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        let size = 5 * CHUNK + 100;
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        for _ in 0..5 {
            file.write_all(&vec![1; usize::try_from(CHUNK).unwrap()]).unwrap();
        }
        file.write_all(&[1; 100]).unwrap();
        file.sync_all().unwrap();
        let Some(none) = dirty(&file, size) else { return };
        assert!(none.is_empty(), "{none:?}");
        file.write_all_at(b"x", 3 * CHUNK + 5).unwrap();
        file.write_all_at(b"x", 5 * CHUNK + 5).unwrap();
        assert_eq!(dirty(&file, size).unwrap(), BTreeSet::from([3, 5]));

        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let mut first = [0; 4096];
        file.read_exact_at(&mut first, 0).unwrap();
        let before = cached(&file, 0, size).unwrap().cached;
        let reader = Reader::default();
        let mut chunk = vec![0; usize::try_from(CHUNK).unwrap()];
        for index in 0..6 {
            reader.read(&file, index * CHUNK, &mut chunk).unwrap();
        }
        let after = cached(&file, 0, size).unwrap().cached;
        assert!(before > 0 && after <= before, "{before} pages before, {after} after");
    }
}
