//! Hashes files of any size in bounded memory on as many threads as are allowed: all of a file once for its manifest, or only
//! chunks that are in doubt.
//!
//! Chunks are hashed in any order; what needs their order (the digest of the file, those of its tensors) gets them from two
//! threads of their own. A buffer is taken before its chunk, so the chunk that is waited for always has one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::chunks::Reader;
use super::layout::{Layout, Opened, Tensor, read_layout};
use super::manifest::{CHUNK, Hash, Manifest, chunk_count, root};
use crate::clock::Stopwatch;
use crate::file_state::Digest;
use crate::prompt::patient;
use crate::sha256::hex;

/// How far a hash has come; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    began: Mutex<Option<Stopwatch>>,
}

impl Progress {
    /// Begins to count towards `total` bytes.
    pub fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stopwatch::start());
    }

    /// Nothing is under way any more.
    pub fn end(&self) {
        self.total.store(0, Ordering::Relaxed);
    }

    /// Whatever counts here shall end early, with an error.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    /// How far, how fast, and how long it takes still; none where nothing is under way.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let (total, done) = (self.total.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        let elapsed =
            self.began.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Stopwatch::elapsed);
        let seconds = elapsed.filter(|_| total > 0)?.as_secs_f64().max(1e-3);
        let rate = done as f64 / seconds;
        let left = if rate > 0.0 { total.saturating_sub(done) as f64 / rate } else { 0.0 };
        let left = humantime::format_duration(Duration::from_secs(left as u64));
        Some(format!(
            "{:.0} % of {}, {}/s, {left} left",
            done as f64 / total as f64 * 100.0,
            size_in_words(total),
            size_in_words(rate as u64)
        ))
    }
}

/// A size as people read it: `1.5 GiB`.
#[must_use]
pub fn size_in_words(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// How many threads hash: as many as this process may use.
#[must_use]
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Hashes the first `size` bytes of `file` and reads what it is made of; `path` helps to tell the format. That nothing
/// changes meanwhile is the caller's to prove.
///
/// # Errors
/// Those of reading; `UnexpectedEof` where the file became shorter.
pub fn manifest(file: &File, size: u64, path: &std::path::Path, progress: &Progress) -> io::Result<Manifest> {
    let (layout, malformed) = match read_layout(&Opened { file, size }, path) {
        Ok(layout) => (Some(layout), None),
        Err(err) => (None, Some(err.to_string())),
    };
    let tensors = layout.as_ref().map(|l| l.tensors.as_slice()).unwrap_or_default();
    progress.begin(size);
    let result = all(file, size, tensors, progress);
    progress.end();
    let (digest, chunks, digests) = result?;
    let layout = layout.map(|layout| Layout {
        tensors: layout
            .tensors
            .into_iter()
            .zip(digests)
            .map(|(tensor, digest)| Tensor { digest: Some(digest), ..tensor })
            .collect(),
        ..layout
    });
    Ok(Manifest { digest, size, root: root(&chunks), chunks, layout, malformed })
}

/// A chunk's bytes on their way to those who need them in order; the last one to drop it gives the buffer back.
struct Block {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl Drop for Block {
    fn drop(&mut self) {
        // Nobody waits for it at the end.
        drop(self.back.send(std::mem::take(&mut self.bytes)));
    }
}

type Numbered = (u64, Arc<Block>);

fn all(
    file: &File,
    size: u64,
    tensors: &[Tensor],
    progress: &Progress,
) -> io::Result<(Digest, Vec<Hash>, Vec<Digest>)> {
    let count = chunk_count(size);
    let hashers = threads();
    let reader = Reader::default();
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let hashes = Mutex::new(vec![Hash::default(); usize::try_from(count).unwrap_or(0)]);
    let (back, free) = channel::<Vec<u8>>();
    for _ in 0..(hashers + AHEAD) {
        drop(back.send(Vec::new()));
    }
    let free = Mutex::new(free);
    let (to_whole, whole) = channel::<Numbered>();
    let (to_tensors, in_tensors) = channel::<Numbered>();
    std::thread::scope(|scope| {
        let whole = scope.spawn(move || {
            patient();
            in_order(&whole, Sha256::new(), |hasher, _, bytes| hasher.update(bytes)).finalize()
        });
        let digests = scope.spawn(move || {
            patient();
            of_tensors(&in_tensors, tensors)
        });
        let workers: Vec<_> = (0..hashers)
            .map(|_| {
                let (back, to_whole, to_tensors) = (back.clone(), to_whole.clone(), to_tensors.clone());
                let (reader, next, failed, hashes, free) = (&reader, &next, &failed, &hashes, &free);
                scope.spawn(move || -> io::Result<()> {
                    patient();
                    loop {
                        // The lock is held while waiting, so the order of buffers is the order of chunks.
                        let (mut bytes, index) = {
                            let free = free.lock().unwrap_or_else(PoisonError::into_inner);
                            let Ok(bytes) = free.recv() else { return Ok(()) };
                            (bytes, next.fetch_add(1, Ordering::Relaxed))
                        };
                        if index >= count || failed.load(Ordering::Relaxed) {
                            // The next one shall see the end, too.
                            drop(back.send(bytes));
                            return Ok(());
                        }
                        if let Err(err) = read_chunk(reader, file, size, index, &mut bytes, progress) {
                            failed.store(true, Ordering::Relaxed);
                            drop(back.send(bytes));
                            return Err(err);
                        }
                        let hash: Hash = Sha256::digest(&bytes).into();
                        let at = usize::try_from(index).unwrap_or(usize::MAX);
                        if let Some(slot) = hashes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at)
                        {
                            *slot = hash;
                        }
                        progress.add(bytes.len() as u64);
                        let block = Arc::new(Block { bytes, back: back.clone() });
                        drop(to_tensors.send((index, Arc::clone(&block))));
                        drop(to_whole.send((index, block)));
                    }
                })
            })
            .collect();
        drop((to_whole, to_tensors));
        let mut result = Ok(());
        for worker in workers {
            result = result.and(worker.join().unwrap_or_else(|_| Err(panicked())));
        }
        let whole = whole.join().map_err(|_panic| panicked());
        let digests = digests.join().map_err(|_panic| panicked());
        result?;
        let hashes = std::mem::take(&mut *hashes.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((Digest(hex(&whole?)), hashes, digests?))
    })
}

/// Buffers beyond one for each thread that hashes: these wait for the two that need the order.
const AHEAD: usize = 6;

fn panicked() -> io::Error {
    io::Error::other("a thread that hashes panicked")
}

/// Reads chunk `index` whole.
fn read_chunk(
    reader: &Reader,
    file: &File,
    size: u64,
    index: u64,
    bytes: &mut Vec<u8>,
    progress: &Progress,
) -> io::Result<()> {
    if progress.stop.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "was told to end"));
    }
    let start = index.saturating_mul(CHUNK);
    let length = usize::try_from(size.saturating_sub(start).min(CHUNK)).unwrap_or(0);
    bytes.resize(length, 0);
    if reader.read(file, start, bytes)? < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter while it was read"));
    }
    Ok(())
}

/// Feeds `state` with the blocks in the order of their numbers.
fn in_order<S>(from: &Receiver<Numbered>, mut state: S, mut each: impl FnMut(&mut S, u64, &[u8])) -> S {
    let mut early: BTreeMap<u64, Arc<Block>> = BTreeMap::new();
    let mut next = 0;
    while let Ok((index, block)) = from.recv() {
        early.insert(index, block);
        while let Some(block) = early.remove(&next) {
            each(&mut state, next, &block.bytes);
            next += 1;
        }
    }
    state
}

/// The digest of each tensor; `tensors` are in the order of their place and do not overlap.
fn of_tensors(from: &Receiver<Numbered>, tensors: &[Tensor]) -> Vec<Digest> {
    let state = (Vec::new(), Sha256::new());
    let (mut done, open) = in_order(from, state, |(done, open), index, bytes| {
        let (start, end) = (index * CHUNK, index * CHUNK + bytes.len() as u64);
        while let Some(tensor) = tensors.get(done.len()).filter(|t| t.start < end || t.end <= end) {
            let part = |at: u64| usize::try_from(at.clamp(start, end) - start).unwrap_or(0);
            if let Some(piece) = bytes.get(part(tensor.start)..part(tensor.end)) {
                open.update(piece);
            }
            if tensor.end > end {
                break;
            }
            done.push(Digest(hex(&std::mem::take(open).finalize())));
        }
    });
    // Of an empty file, and of tensors that were cut short.
    if done.len() < tensors.len() {
        done.push(Digest(hex(&open.finalize())));
        done.resize_with(tensors.len(), || Digest(hex(&Sha256::digest(b""))));
    }
    done
}

/// Which of the chunks `which` are not what `manifest` says; in their order. A chunk that the file is too short for is one.
///
/// # Errors
/// Those of reading.
pub fn check(file: &File, manifest: &Manifest, which: &[u64], progress: &Progress) -> io::Result<Vec<u64>> {
    let total = which.iter().map(|index| manifest.range(*index)).map(|(start, end)| end - start).sum();
    // Of a chunk or two the start of threads would take longer than the hashing.
    let hashers = threads().min(which.len().div_ceil(2)).max(1);
    let reader = Reader::default();
    let next = AtomicU64::new(0);
    let bad = Mutex::new(Vec::new());
    let work = || -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
            let Some(index) = which.get(at).copied() else { return Ok(()) };
            match read_chunk(&reader, file, manifest.size, index, &mut bytes, progress) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => bytes.clear(),
                Err(err) => return Err(err),
            }
            progress.add(bytes.len() as u64);
            let good = usize::try_from(index).ok().and_then(|i| manifest.chunks.get(i));
            if good.is_none_or(|good| Sha256::digest(&bytes)[..] != good[..]) {
                bad.lock().unwrap_or_else(PoisonError::into_inner).push(index);
            }
        }
    };
    progress.begin(total);
    let result = if hashers == 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..hashers)
                .map(|_| {
                    scope.spawn(|| {
                        patient();
                        work()
                    })
                })
                .collect();
            let ended = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(panicked())));
            ended.fold(Ok(()), Result::and)
        })
    };
    progress.end();
    result?;
    let mut bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    bad.sort_unstable();
    Ok(bad)
}

/// SHA-256 of the first `size` bytes of `file` alone.
///
/// # Errors
/// Those of reading; `UnexpectedEof` where the file became shorter.
pub fn whole(file: &File, size: u64, progress: &Progress) -> io::Result<Digest> {
    let reader = Reader::default();
    let (mut hasher, mut bytes) = (Sha256::new(), Vec::new());
    progress.begin(size);
    for index in 0..chunk_count(size) {
        read_chunk(&reader, file, size, index, &mut bytes, progress)?;
        hasher.update(&bytes);
        progress.add(bytes.len() as u64);
    }
    progress.end();
    Ok(Digest(hex(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use super::*;
    use crate::sha256;

    /// A safetensors file of a bit more than three chunks: a tensor within a chunk, one over three, an empty one.
    fn file() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let (a, b) = (1000, 3 * CHUNK);
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[{a}],"data_offsets":[0,{a}]}},"b":{{"dtype":"U8","shape":[{b}],"data_offsets":[{a},{}]}},"e":{{"dtype":"U8","shape":[0],"data_offsets":[{},{}]}}}}"#,
            a + b,
            a + b,
            a + b
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..a + b).map(|i| (i * 31 % 251) as u8));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        (dir, path, bytes)
    }

    #[test]
    fn a_manifest_holds_the_digests_of_file_chunks_and_tensors() {
        let (_dir, path, bytes) = file();
        let file = File::open(&path).unwrap();
        let made = manifest(&file, bytes.len() as u64, &path, &Progress::default()).unwrap();
        assert_eq!(made.digest, sha256::of_bytes(&bytes));
        assert_eq!(made.chunks.len(), 4);
        let second = &bytes[CHUNK as usize..2 * CHUNK as usize];
        assert_eq!(hex(&made.chunks[1]), sha256::of_bytes(second).0);
        let layout = made.layout.unwrap();
        for tensor in &layout.tensors {
            let piece = &bytes[tensor.start as usize..tensor.end as usize];
            assert_eq!(tensor.digest, Some(sha256::of_bytes(piece)), "{}", tensor.name);
        }
        assert_eq!(layout.tensors.len(), 3);
        assert_eq!(whole(&file, bytes.len() as u64, &Progress::default()).unwrap(), made.digest);
    }

    #[test]
    fn what_differs_is_found_and_what_is_cut_is_told() {
        let (_dir, path, bytes) = file();
        let size = bytes.len() as u64;
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let made = manifest(&file, size, &path, &Progress::default()).unwrap();
        let every: Vec<u64> = (0..4).collect();
        let progress = Progress::default();
        assert_eq!(check(&file, &made, &every, &progress).unwrap(), [0; 0]);
        file.write_all_at(b"?", 2 * CHUNK + 7).unwrap();
        assert_eq!(check(&file, &made, &every, &progress).unwrap(), [2]);
        assert_eq!(check(&file, &made, &[0, 1], &progress).unwrap(), [0; 0]);
        file.set_len(CHUNK + 1).unwrap();
        assert_eq!(check(&file, &made, &every, &progress).unwrap(), [1, 2, 3]);
        let err = manifest(&file, size, &path, &progress).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
        progress.stop();
        assert!(check(&file, &made, &every, &progress).is_err());
    }

    #[test]
    fn a_file_of_nothing_and_one_of_an_unknown_kind_have_a_manifest() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, malformed) in [("empty.bin", "", false), ("bad.safetensors", "no", true)] {
            let path = dir.path().join(name);
            let mut file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let made = manifest(&file, content.len() as u64, Path::new(name), &Progress::default()).unwrap();
            assert_eq!(made.digest, sha256::of_bytes(content.as_bytes()));
            assert_eq!(made.malformed.is_some(), malformed, "{made:?}");
        }
    }

    #[test]
    fn progress_tells_how_far_how_fast_and_how_long() {
        let progress = Progress::default();
        assert_eq!(progress.told(), None);
        progress.begin(4 << 30);
        progress.add(1 << 30);
        std::thread::sleep(Duration::from_millis(2));
        let told = progress.told().unwrap();
        assert!(told.starts_with("25 % of 4.0 GiB, ") && told.ends_with(" left"), "{told}");
        assert_eq!(size_in_words(1 << 50), "1024.0 TiB");
    }
}
