//! Programs and the shared libraries that they load: whether they are there, and whether a program has other bytes.
//!
//! Libraries are found as the loader finds them: by RPATH and RUNPATH, by `ld.so.cache`, in its default folders. Nothing is
//! run. Of libraries only that they are there counts: their versions are those of packages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, FileHeader64, PT_DYNAMIC, PT_LOAD};
use object::read::StringTable;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};

use super::{Packages, regular, text};
use crate::sha256;

/// What stands in the place of a library's version.
pub(super) const LIBRARY: &str = "a library";

/// Libraries of one program that are looked for.
const MAX_LIBRARIES: usize = 512;
/// Bytes of a program that is hashed; of a larger one size and time count.
const MAX_HASHED: u64 = 512 << 20;
/// Where a bare name is looked for, and where the loader looks by itself.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const LIBRARIES: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// The program with its digest, the interpreter of a script, and the libraries.
pub(super) fn read(path: &Path) -> io::Result<Packages> {
    let mut out = Packages::new();
    let program = find(path)?;
    if !program.exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("no program {}", program.display())));
    }
    let mut programs = vec![program.clone()];
    let mut head = String::new();
    if let Ok(first) = text(&program, 256)
        && let Some(line) = first.strip_prefix("#!").and_then(|rest| rest.lines().next())
    {
        head = line.trim().to_owned();
    }
    let mut words = head.split_whitespace().map(Path::new);
    match (words.next(), words.next()) {
        // `env` finds it by its name.
        (Some(env), Some(name)) if env.file_name().is_some_and(|n| n == "env") => programs.extend(find(name)),
        (Some(interpreter), _) if interpreter.is_absolute() => programs.push(interpreter.to_owned()),
        _ => {}
    }
    for program in programs {
        match digest(&program) {
            Ok(digest) => {
                out.insert(program.display().to_string(), digest);
                for library in libraries(&program) {
                    out.insert(library.display().to_string(), LIBRARY.to_owned());
                }
            }
            // It is gone: that it is not among the packages says so.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(out)
}

/// What changes with the program and its libraries.
pub(super) fn marks(path: &Path) -> Vec<PathBuf> {
    let program = find(path).unwrap_or_else(|_| path.to_owned());
    let mut out = vec![program.clone(), PathBuf::from(LOADER_CACHE)];
    let libraries = libraries(&program);
    // A library that vanishes takes no other file's time along.
    out.extend(libraries);
    out
}

fn find(path: &Path) -> io::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let found = PATH.iter().map(|folder| Path::new(folder).join(path)).find(|path| path.is_file());
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no program {} in the usual folders", path.display()))
    })
}

/// Inode, size, time of change and its nanoseconds.
type Look = (u64, u64, i64, i64);

/// Digests of programs that did not change since.
static DIGESTS: LazyLock<Mutex<BTreeMap<PathBuf, (Look, String)>>> = LazyLock::new(Mutex::default);

fn digest(program: &Path) -> io::Result<String> {
    let mut file = regular(program)?;
    let meta = file.metadata()?;
    if meta.len() > MAX_HASHED {
        return Ok(format!("{} bytes, changed at {}", meta.len(), meta.mtime()));
    }
    let look = (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec());
    let digests = || DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((before, digest)) = digests().get(program)
        && *before == look
    {
        return Ok(digest.clone());
    }
    let (digest, _) = sha256::of_reader(&mut file, meta.len(), MAX_HASHED)?;
    let digest = format!("sha256 {}", digest.0);
    let mut digests = digests();
    if digests.len() > 4096 {
        digests.clear();
    }
    digests.insert(program.to_owned(), (look, digest.clone()));
    Ok(digest)
}

/// What a program or library asks the loader for.
#[derive(Debug, Default)]
struct Needs {
    machine: u16,
    names: Vec<String>,
    folders: Vec<PathBuf>,
}

/// The libraries that `program` loads, and those that they load; what is not found is left out.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let Some(first) = needs(program) else { return found };
    let cache = loader_cache(&fs::read(LOADER_CACHE).unwrap_or_default());
    let machine = first.machine;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut queue = VecDeque::from([first]);
    while let Some(needs) = queue.pop_front() {
        for name in needs.names {
            if seen.len() >= MAX_LIBRARIES || !seen.insert(name.clone()) {
                continue;
            }
            let own = needs.folders.iter().map(|folder| folder.join(&name));
            let cached = cache.get(&name).into_iter().flatten().cloned();
            let usual = LIBRARIES.iter().map(|folder| Path::new(folder).join(&name));
            let fits = |path: &PathBuf| self::needs(path).filter(|needs| needs.machine == machine);
            let library = own.chain(cached).chain(usual).find_map(|path| Some((fits(&path)?, path)));
            if let Some((below, path)) = library {
                found.insert(path);
                queue.push_back(below);
            }
        }
    }
    found
}

fn needs(path: &Path) -> Option<Needs> {
    let file = regular(path).ok()?;
    read_needs(file, path.parent()?)
}

/// The dynamic section of an ELF file of 64 bits; none where it is no such file or a damaged one.
fn read_needs(file: File, origin: &Path) -> Option<Needs> {
    let cache = ReadCache::new(file);
    let data = &cache;
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut out = Needs { machine: header.e_machine(endian), ..Needs::default() };
    let segments = header.program_headers(endian, data).ok()?;
    let Some(entries) = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_DYNAMIC)
        .find_map(|segment| segment.dynamic(endian, data).ok().flatten())
    else {
        return Some(out);
    };
    let value = |tag: i64| {
        let entry = entries.iter().find(|entry| entry.tag32(endian).map(i64::from) == Some(tag));
        entry.map(|entry| entry.d_val(endian))
    };
    let (address, size) = (value(DT_STRTAB)?, value(DT_STRSZ)?);
    let offset = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).find_map(|segment| {
        let below = address.checked_sub(segment.p_vaddr(endian))?;
        (below < segment.p_filesz(endian)).then(|| segment.p_offset(endian).checked_add(below))?
    })?;
    if offset.checked_add(size)? > data.len().ok()? {
        return None;
    }
    let strings = StringTable::new(data, offset, offset + size);
    for entry in entries.iter().take(MAX_LIBRARIES) {
        let Some(tag @ (DT_NEEDED | DT_RPATH | DT_RUNPATH)) = entry.tag32(endian).map(i64::from) else {
            continue;
        };
        let Ok(bytes) = entry.string(endian, strings) else { continue };
        let Ok(text) = std::str::from_utf8(bytes) else { continue };
        if tag == DT_NEEDED {
            out.names.push(text.to_owned());
            continue;
        }
        let folders = text.split(':').map(|folder| {
            let here = origin.to_string_lossy();
            PathBuf::from(folder.replace("$ORIGIN", &here).replace("${ORIGIN}", &here))
        });
        out.folders.extend(folders.filter(|folder| folder.is_absolute()));
    }
    Some(out)
}

/// Paths by name, as `ldconfig` found them. Anything but the format of today (glibc 2.2 and later) has none.
fn loader_cache(bytes: &[u8]) -> BTreeMap<String, Vec<PathBuf>> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    let mut out: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    // An old table may stand before it.
    let Some(start) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) else { return out };
    let cache = bytes.get(start..).unwrap_or_default();
    let number = |at: usize| {
        let bytes = cache.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
    };
    let string = |at: usize| {
        let rest = cache.get(at..)?;
        let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok().map(str::to_owned)
    };
    let count = number(MAGIC.len()).unwrap_or(0).min(100_000);
    for i in 0..count {
        let at = 48 + i * 24;
        if let (Some(name), Some(path)) = (number(at + 4).and_then(string), number(at + 8).and_then(string)) {
            out.entry(name).or_default().push(PathBuf::from(path));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_those_that_the_loader_finds() {
        // This very test is a program that loads libc.
        let me = std::env::current_exe().unwrap();
        let found: Vec<String> = libraries(&me).iter().map(|p| p.display().to_string()).collect();
        assert!(found.iter().any(|path| path.contains("libc.so") || path.contains("libc.musl")), "{found:?}");
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        for library in &found {
            // The same files as are loaded, whatever links lead there.
            let real = Path::new(library).canonicalize().unwrap();
            assert!(maps.contains(real.to_str().unwrap()), "{library} is not loaded");
        }
        let packages = read(&me).unwrap();
        assert!(packages[&me.display().to_string()].starts_with("sha256 "));
    }

    #[test]
    fn damaged_programs_and_caches_give_nothing_and_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut whole = Vec::new();
        File::open(std::env::current_exe().unwrap()).unwrap().take(8192).read_to_end(&mut whole).unwrap();
        for at in 0..600 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            fs::write(&path, &bytes).unwrap();
            let _ = libraries(&path);
        }
        let cache = fs::read(LOADER_CACHE).unwrap_or_default();
        for cut in (0..cache.len()).step_by(977) {
            let _ = loader_cache(&cache[..cut]);
        }
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(read(&path).unwrap().contains_key("/bin/sh"));
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert_eq!(find(Path::new("no-such-program")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
