//! Packages of the operating system: dpkg's status file, and rpm's database where it is SQLite.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{Packages, regular, text};

/// Bytes of dpkg's status file.
const MAX_STATUS: u64 = 128 << 20;

/// Where dpkg and rpm keep what they know, below the root.
const DPKG: &str = "var/lib/dpkg/status";
const RPM: [&str; 2] = ["var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"];

/// What is installed below `root`.
pub(super) fn read(root: &Path) -> io::Result<Packages> {
    let status = root.join(DPKG);
    if status.exists() {
        return Ok(dpkg(&text(&status, MAX_STATUS)?));
    }
    match RPM.iter().map(|path| root.join(path)).find(|path| path.exists()) {
        Some(database) => rpm(&database),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{}: neither dpkg's status file nor an SQLite database of rpm is there (older ones are not read)",
                root.display()
            ),
        )),
    }
}

/// What changes when something is installed or removed.
pub(super) fn marks(root: &Path) -> Vec<PathBuf> {
    let wal = RPM.iter().map(|path| root.join(format!("{path}-wal")));
    [DPKG].iter().chain(&RPM).map(|path| root.join(path)).chain(wal).collect()
}

/// The installed packages of a status file. One that is there for two architectures has both in its name.
fn dpkg(status: &str) -> Packages {
    let mut out = Packages::new();
    for stanza in status.split("\n\n") {
        let field = |key: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
        };
        let installed = field("Status:").is_some_and(|status| status.ends_with(" installed"));
        let (Some(name), Some(version)) = (field("Package:"), field("Version:")) else { continue };
        if !installed {
            continue;
        }
        let both = match (out.contains_key(&name), field("Architecture:")) {
            (true, Some(architecture)) => format!("{name}:{architecture}"),
            _ => name,
        };
        out.insert(both, version);
    }
    out
}

/// The installed packages of an rpm database: each row is a package's header.
fn rpm(path: &Path) -> io::Result<Packages> {
    let failed = |err: rusqlite::Error| io::Error::other(format!("{}: {err}", path.display()));
    // It must be one that can be read at all; SQLite itself would open a fifo.
    drop(regular(path)?);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    let mut sql = db.prepare("SELECT blob FROM Packages").map_err(failed)?;
    let mut rows = sql.query([]).map_err(failed)?;
    let mut out = Packages::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let blob =
            row.get_ref(0).map_err(failed)?.as_blob().map_err(|err| io::Error::other(err.to_string()))?;
        if let Some((name, version)) = header(blob) {
            out.entry(name)
                .and_modify(|versions| {
                    versions.push_str(", ");
                    versions.push_str(&version);
                })
                .or_insert(version);
        }
    }
    Ok(out)
}

/// Name and version of an rpm header: counts, an index of 16 bytes a tag, then the values.
fn header(blob: &[u8]) -> Option<(String, String)> {
    let number = |at: usize| {
        let bytes = blob.get(at..at.checked_add(4)?)?;
        Some(usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?)).unwrap_or(usize::MAX))
    };
    let tags = number(0)?.min(65_536);
    let values = tags.checked_mul(16)?.checked_add(8)?;
    let value = |wanted: usize| {
        let at = (0..tags).map(|i| 8 + i * 16).find(|at| number(*at) == Some(wanted))?;
        Some((number(at + 4)?, values.checked_add(number(at + 8)?)?))
    };
    let string = |wanted| {
        let (_, at) = value(wanted).filter(|(kind, _)| *kind == 6)?;
        let rest = blob.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(std::str::from_utf8(rest.get(..end)?).ok()?.to_owned())
    };
    let (name, version, release) = (string(1000)?, string(1001)?, string(1002)?);
    let epoch = value(1003).filter(|(kind, _)| *kind == 4).and_then(|(_, at)| number(at));
    let epoch = epoch.map_or_else(String::new, |epoch| format!("{epoch}:"));
    Some((name, format!("{epoch}{version}-{release}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_has_installed_counts() {
        let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.0-1\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 3\n\n\
                      Package: a\nStatus: hold ok installed\nArchitecture: i386\nVersion: 1:2.0-2\n\nnonsense";
        let packages = dpkg(status);
        assert_eq!(
            packages.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "1:2.0-1".to_owned()), ("a:i386".to_owned(), "1:2.0-2".to_owned())]
        );
    }

    /// A header as rpm writes it.
    fn blob(values: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (mut index, mut data) = (Vec::new(), Vec::new());
        for (tag, kind, value) in values {
            for number in [*tag, *kind, u32::try_from(data.len()).unwrap(), 1] {
                index.extend(number.to_be_bytes());
            }
            data.extend(*value);
        }
        let counts = [u32::try_from(values.len()).unwrap(), u32::try_from(data.len()).unwrap()];
        counts.iter().flat_map(|n| n.to_be_bytes()).chain(index).chain(data).collect()
    }

    #[test]
    fn headers_of_rpm_are_read_and_damaged_ones_are_left_out() {
        let whole = blob(&[
            (1000, 6, b"bash\0"),
            (1001, 6, b"5.2\0"),
            (1002, 6, b"3.el9\0"),
            (1003, 4, &[0, 0, 0, 2]),
        ]);
        assert_eq!(header(&whole), Some(("bash".to_owned(), "2:5.2-3.el9".to_owned())));
        for cut in 0..whole.len() {
            // Cut anywhere it must not panic.
            let _ = header(&whole[..cut]);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpmdb.sqlite");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)").unwrap();
        for content in [whole.clone(), vec![0xff; 40], Vec::new()] {
            db.execute("INSERT INTO Packages (blob) VALUES (?1)", [content]).unwrap();
        }
        assert_eq!(
            rpm(&path).unwrap().into_iter().collect::<Vec<_>>(),
            [("bash".to_owned(), "2:5.2-3.el9".to_owned())]
        );
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
