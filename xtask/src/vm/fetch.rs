//! Stock Debian kernels, from the mirror that this machine's apt uses, unpacked into the cache.
//!
//! apt does the work (signatures, mirrors, proxies) with lists of its own, so that this machine's are untouched
//! and kernels of other releases can be had.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};

use super::{dir, initrd, read, write};
use crate::process;

/// In a kernel's folder: which package it is of. Written last.
pub(crate) const PACKAGE: &str = "package";

/// Where the kernels come from: the releases' own archive, and their security archive. A release that has left
/// the mirror costs its kernels and nothing else.
const RELEASES: [&str; 5] = ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"];
const SECURITY: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];

/// A kernel that is ready to boot.
pub(crate) struct Kernel {
    /// Name and version of its package.
    pub(crate) package: String,
    /// Its folder in the cache.
    pub(super) dir: PathBuf,
    /// Its initramfs.
    pub(super) initrd: PathBuf,
}

/// The newest kernel of a series, such as `6.12-cloud`: the cached one, else fetched. `None` if the mirror has none.
pub(crate) fn kernel(name: &str) -> Result<Option<Kernel>> {
    let (series, flavour) = split(name)?;
    let dir = dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let lock =
        File::create(dir.join(".lock")).with_context(|| format!("cannot write in {}", dir.display()))?;
    lock.lock()?;

    let at = dir.join(name);
    if !at.join(PACKAGE).exists() {
        let index = index(&dir)?;
        let Some(found) = newest(&index, series, flavour)? else { return Ok(None) };
        eprintln!("vm: fetching {} {}…", found.name, found.version);
        unpack(&dir, &index, found, &at)?;
    }
    let initrd = initrd::initrd(&at)?;
    let package = String::from_utf8_lossy(&read(&at.join(PACKAGE))?).trim().to_owned();
    Ok(Some(Kernel { package, dir: at, initrd }))
}

/// `6.12-cloud` is series 6.12, ending in `-cloud-amd64`.
fn split(name: &str) -> Result<(&str, &'static str)> {
    let (series, flavour) = match name.strip_suffix("-cloud") {
        Some(series) => (series, "-cloud-amd64"),
        None => (name, "-amd64"),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if series.split('.').count() != 2 || !series.split('.').all(is_number) {
        bail!("{name:?} is no kernel: give a series such as 6.12, or 6.12-cloud");
    }
    Ok((series, flavour))
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
}

fn apt(dir: &Path, program: &str) -> std::process::Command {
    let mut command = process::program(program);
    command.env("APT_CONFIG", dir.join(".apt/apt.conf"));
    command
}

/// All kernel packages of all releases. Asked of the mirror once a run.
fn index(dir: &Path) -> Result<BTreeSet<Package>> {
    static KNOWN: Mutex<Option<BTreeSet<Package>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(index) = &*known {
        return Ok(index.clone());
    }
    configure(dir)?;
    eprintln!("vm: asking apt's mirror for its kernels…");
    if process::run(apt(dir, "apt-get").args(["-qq", "update"]).stdout(process::to_stderr())).is_err() {
        eprintln!("vm: some of the lists could not be had; going on with the others");
    }
    let lists: Vec<PathBuf> = fs::read_dir(dir.join(".apt/lists"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("_Packages")))
        .collect();
    if lists.is_empty() {
        bail!("apt's mirror gave no package list: is it to be reached? (`apt-get update` tells more)");
    }
    let text = process::output(apt(dir, "/usr/lib/apt/apt-helper").arg("cat-file").args(&lists))?;
    let index = kernels(&String::from_utf8_lossy(&text));
    *known = Some(index.clone());
    Ok(index)
}

fn configure(dir: &Path) -> Result<()> {
    let ours = dir.join(".apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(ours.join(part)).with_context(|| ours.display().to_string())?;
    }
    let format = "$(LABEL)\t$(REPO_URI)";
    let mut targets = process::program("apt-get");
    let targets = process::text(targets.args(["indextargets", "--format", format, "Origin: Debian"]))?;
    let mirror = |label| targets.lines().find_map(|line| line.split_once('\t').filter(|(l, _)| *l == label));
    let Some((_, main)) = mirror("Debian") else {
        bail!("apt knows no Debian mirror: `apt-get update` first, or this system is not Debian");
    };
    let options = "[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let mut sources = String::new();
    for suite in RELEASES {
        writeln!(sources, "deb {options} {main} {suite} main")?;
    }
    if let Some((_, security)) = mirror("Debian-Security") {
        for suite in SECURITY {
            writeln!(sources, "deb {options} {security} {suite} main")?;
        }
    }
    write(&ours.join("sources.list"), sources)?;
    let ours = ours.display();
    let conf = format!(
        "Dir::State::Lists \"{ours}/lists\";\n\
         Dir::Cache \"{ours}/cache\";\n\
         Dir::Etc::SourceList \"{ours}/sources.list\";\n\
         Dir::Etc::SourceParts \"/nonexistent\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    write(&dir.join(".apt/apt.conf"), conf)
}

/// The packages that kernels are made of. Since 7.3 an image is split in several.
fn kernels(lists: &str) -> BTreeSet<Package> {
    let mut found = BTreeSet::new();
    for stanza in lists.split("\n\n") {
        let field = |key: &str| stanza.lines().find_map(|line| line.strip_prefix(key));
        if let (Some(name), Some(version)) = (field("Package: "), field("Version: "))
            && PARTS.iter().any(|part| {
                name.strip_prefix(part).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
            })
            && name.ends_with("-amd64")
            && !name.ends_with("-rt-amd64")
        {
            found.insert(Package { name: name.to_owned(), version: version.to_owned() });
        }
    }
    found
}

const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

fn newest<'a>(index: &'a BTreeSet<Package>, series: &str, flavour: &str) -> Result<Option<&'a Package>> {
    let mut best: Option<&Package> = None;
    for package in index {
        let of_series = package.name.strip_prefix(PARTS[0]).and_then(|name| name.strip_prefix(series));
        let right = of_series.is_some_and(|rest| {
            rest.starts_with('.')
                && rest.ends_with(flavour)
                && rest.contains("-cloud") == flavour.contains("-cloud")
        });
        if right && best.is_none_or(|best| is_newer(&package.version, &best.version)) {
            best = Some(package);
        }
    }
    Ok(best)
}

/// By Debian's own rules.
fn is_newer(version: &str, than: &str) -> bool {
    let mut dpkg = process::program("dpkg");
    dpkg.args(["--compare-versions", version, "gt", than]).status().is_ok_and(|status| status.success())
}

fn unpack(dir: &Path, index: &BTreeSet<Package>, image: &Package, to: &Path) -> Result<()> {
    let work = dir.join(".new");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    }
    let (debs, root) = (work.join("debs"), work.join("root"));
    fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
    fs::create_dir_all(&root).with_context(|| root.display().to_string())?;

    let release = image.name.trim_start_matches(PARTS[0]);
    let mut download = apt(dir, "apt-get");
    download.current_dir(&debs).args(["-qq", "download"]).stdout(process::to_stderr());
    for part in PARTS {
        let package = Package { name: format!("{part}{release}"), version: image.version.clone() };
        if index.contains(&package) {
            download.arg(format!("{}={}", package.name, package.version));
        }
    }
    process::run(&mut download).with_context(|| format!("could not fetch {}", image.name))?;
    for deb in fs::read_dir(&debs)? {
        process::run(process::program("dpkg-deb").arg("-x").arg(deb?.path()).arg(&root))?;
    }
    fs::remove_dir_all(&debs)?;
    initrd::unpack_kernel(&root)?;
    write(&root.join(PACKAGE), format!("{} {}\n", image.name, image.version))?;
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| to.display().to_string())?;
    }
    fs::rename(&root, to).with_context(|| format!("cannot move {} to {}", root.display(), to.display()))?;
    fs::remove_dir(&work).with_context(|| work.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::{kernels, newest, split};

    #[test]
    fn names_are_series() {
        assert_eq!(split("6.12-cloud").expect("good"), ("6.12", "-cloud-amd64"));
        assert_eq!(split("6.1").expect("good"), ("6.1", "-amd64"));
        for bad in ["", "6", "6.12.3", "../6.12", "six-cloud", "6.-cloud"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_right_flavour_of_the_right_series() {
        let index = kernels(
            "Package: linux-image-6.1.0-9-cloud-amd64\nVersion: 6.1.27-1\n\n\
             Package: linux-image-6.12.9-cloud-amd64\nVersion: 6.12.9-1\n\n\
             Package: linux-image-6.1.0-9-rt-amd64\nVersion: 6.1.27-1\n\n\
             Package: linux-image-amd64\nVersion: 6.1.1\n\n\
             Package: linux-image-6.1.0-9-amd64\nSource: x\nVersion: 6.1.27-1\n",
        );
        assert_eq!(index.len(), 3);
        let name =
            |series, flavour| newest(&index, series, flavour).expect("runs").map(|found| found.name.as_str());
        assert_eq!(name("6.1", "-cloud-amd64"), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(name("6.1", "-amd64"), Some("linux-image-6.1.0-9-amd64"));
        assert_eq!(name("5.10", "-amd64"), None);
    }
}
