//! Which package of dpkg a file belongs to.

use std::fs;
use std::path::{Path, PathBuf};

use super::text;

/// Bytes of one package's list of files.
const MAX_LIST: u64 = 16 << 20;

/// The package that installed `file`, without its architecture.
pub(super) fn owner(file: &Path) -> Option<String> {
    // Where /bin is /usr/bin a package may name either.
    let mut names: Vec<PathBuf> = vec![file.to_owned()];
    names.extend(file.strip_prefix("/usr").ok().map(|rest| Path::new("/").join(rest)));
    names.push(Path::new("/usr").join(file.strip_prefix("/").ok()?));
    let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    let lists = fs::read_dir("/var/lib/dpkg/info").ok()?.flatten().map(|entry| entry.path());
    lists.filter(|path| path.extension().is_some_and(|e| e == "list")).find_map(|path| {
        let list = text(&path, MAX_LIST).ok()?;
        let package = path.file_stem()?.to_str()?;
        let here = list.lines().any(|line| names.contains(&line));
        here.then(|| package.split(':').next().unwrap_or(package).to_owned())
    })
}
