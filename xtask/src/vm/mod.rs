//! `cargo xtask vm`: a command as root in another kernel, with this machine's files, in a few seconds.
//!
//! Stock Debian kernels under QEMU's software emulation, which needs no virtualisation and gives everything that
//! one host or another refuses: every kind of BPF program, kprobes, all cgroup controllers.

mod fetch;
mod file_systems;
mod guest;
mod initrd;

use std::env::{self, consts::ARCH};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::fetch::{Kernel, kernel};
pub(crate) use self::file_systems::SCRATCH;
pub(crate) use self::guest::{Ended, Guest};
use crate::setup::{self, Part};
use crate::{places, process};

/// The kernels that the tests are run in: the oldest that is supported, the distributions' and the newest.
pub(crate) const TESTED: [&str; 4] = ["5.10-cloud", "6.1-cloud", "6.12-cloud", "6.18-cloud"];
/// Those for every day: the oldest, and the one that most machines have.
pub(crate) const DEFAULT: [&str; 2] = ["5.10-cloud", "6.12-cloud"];

/// Runs a command in another kernel; `vm list` says which are there.
///
/// KERNEL is a Debian series: 6.12, or 6.12-cloud for the small variant. The newest of it is fetched once, from
/// the mirror that apt uses, and not installed. In the guest, / is this machine's, with what is written kept in
/// memory; the current folder is the real one; /mnt/grace-test (TMPDIR) is an empty ext4, beside /mnt/grace-xfs,
/// -btrfs and -tmpfs; $GRACE_TEST_FS says which of them this kernel has (ext4=/mnt/grace-test,…). Exit status:
/// the command's; 124 out of time; 125 if the guest died.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for all of it
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Keep the guest's kernel log in this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Such as 6.12-cloud; or `list`
    kernel: String,
    /// What to run (default: uname -a)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.kernel == "list" {
        return list();
    }
    ready()?;
    let Some(kernel) = kernel(&args.kernel)? else {
        bail!(
            "no kernel {} on apt's mirror: it has moved on, or the name is not a Debian series",
            args.kernel
        );
    };
    let mut command = args.command.clone();
    if command.is_empty() {
        command = vec!["uname".into(), "-a".into()];
    }
    let here = env::current_dir()?;
    let guest = Guest {
        command,
        folders: vec![here.clone()],
        directory: here,
        environment: process::environment().chain([("TMPDIR".into(), SCRATCH.into())]).collect(),
        timeout: Duration::from_secs(args.timeout),
        log: args.log.clone(),
    };
    Ok(match guest.run(&kernel, io::stdout(), io::stderr())? {
        Ended::Status(status) => ExitCode::from(status),
        Ended::OutOfTime => {
            eprintln!("vm: {}: out of time after {} s", args.kernel, args.timeout);
            ExitCode::from(124)
        }
        Ended::Died(how) => {
            eprintln!("vm: {}: {how}", args.kernel);
            ExitCode::from(125)
        }
    })
}

/// Whether guests can be had here; an error says why not and what to do. As root, gets what is missing.
pub(crate) fn ready() -> Result<()> {
    if ARCH != "x86_64" {
        bail!("guests run the host's programs and their kernels are for x86_64; this machine is {ARCH}");
    }
    if !process::is_root() {
        bail!("guests need root (their file server reads the whole machine): start this as root");
    }
    setup::ensure(Part::Guests)
}

fn dir() -> Result<PathBuf> {
    Ok(places::cache()?.join("vm"))
}

fn list() -> Result<ExitCode> {
    let dir = dir()?;
    let mut there: Vec<String> = match fs::read_dir(&dir) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| dir.join(name).join(fetch::PACKAGE).exists())
            .collect(),
        Err(_) => Vec::new(),
    };
    there.sort();
    for name in &there {
        let package = fs::read_to_string(dir.join(name).join(fetch::PACKAGE))?;
        println!("{name:<12} {}", package.trim());
    }
    for name in TESTED.iter().filter(|name| !there.iter().any(|have| have == *name)) {
        println!("{name:<12} not fetched yet");
    }
    println!("(in {}; remove a folder there to fetch that kernel anew)", dir.display());
    Ok(ExitCode::SUCCESS)
}

/// A busybox that needs no library.
pub(crate) fn busybox() -> Option<PathBuf> {
    let path = places::on_path("busybox")?;
    // An interpreter in its program headers means a dynamic one, of no use in an initramfs.
    let file = fs::read(&path).ok()?;
    (!file.windows(8).take(4096).any(|bytes| bytes == b"/ld-linu")).then_some(path)
}

/// The file server for guests: the Rust one of its own package, or the one that came with QEMU until 7.2.
pub(crate) fn virtiofsd() -> Option<PathBuf> {
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
