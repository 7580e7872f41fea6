//! `cargo xtask setup`: what building and testing need and this machine lacks.
//!
//! On Debian, as root, the packages are installed; anywhere else the command to type is said. The user's Rust
//! is never changed. bpf-linker is built into the cache, once for each LLVM.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::build_ebpf::route::{self, Compiler};
use crate::places::on_path;
use crate::{mcp_python, places, process, vm};

/// The bpf-linker that is built here.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The LLVMs that it can be built for.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Gets what building and testing need: system packages (as root, with apt) and bpf-linker.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is there and what is missing; exit status 1 if something is
    #[arg(long)]
    check: bool,
}

/// What a task may need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// To compile the agent.
    Agent,
    /// To compile the kernel probes.
    Ebpf,
    /// To boot other kernels.
    Guests,
    /// To run applications as they would.
    Clients,
    /// To write weights with the libraries that people use.
    Weights,
}

impl Part {
    const ALL: [Self; 5] = [Self::Agent, Self::Ebpf, Self::Guests, Self::Clients, Self::Weights];

    fn purpose(self) -> &'static str {
        match self {
            Self::Agent => "to build the agent",
            Self::Ebpf => "to build the eBPF object",
            Self::Guests => "to test in other kernels",
            Self::Clients => "to test clients and services",
            Self::Weights => "to test with real weights",
        }
    }
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let mut complete = true;
    for part in Part::ALL {
        let state = if args.check { check(part) } else { ensure(part) };
        match state {
            Ok(()) => println!("{}: all there", part.purpose()),
            Err(err) => {
                complete = false;
                println!("{}: {err:#}", part.purpose());
            }
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what a part lacks, as an error.
pub(crate) fn check(part: Part) -> Result<()> {
    let packages = missing(part);
    if !packages.is_empty() {
        bail!(
            "missing: {}; `cargo xtask setup` as root gets it, or {}",
            packages.join(" "),
            by_hand(&packages)
        );
    }
    if part == Part::Clients && !mcp_python::is_there() {
        bail!("missing: the Python package mcp; `cargo xtask setup` gets it");
    }
    if part == Part::Weights && !weights_python() {
        bail!("missing: {}; `cargo xtask setup` gets them", WEIGHTS_PACKAGES.join(" "));
    }
    if part == Part::Ebpf && !route::object_is_named() {
        let compiler = route::compiler().map_err(|reasons| anyhow::anyhow!(reasons.join("; ")))?;
        if let Err(why) = route::linker(compiler.llvm) {
            bail!("missing: {why}; `cargo xtask setup` builds it");
        }
    }
    Ok(())
}

/// Gets what a part lacks; an error says what could not be had, and what to type for it.
pub(crate) fn ensure(part: Part) -> Result<()> {
    // What is missing can depend on what was just installed: a compiler decides on the LLVM.
    let mut before = Vec::new();
    loop {
        let packages = missing(part);
        if packages.is_empty() {
            break;
        }
        if packages == before {
            let why = match part {
                Part::Ebpf => route::compiler().err().unwrap_or_default().join("; "),
                _ => "is it on PATH?".to_owned(),
            };
            bail!("{} is installed, yet does not serve: {why}", packages.join(" "));
        }
        install(&packages)?;
        before = packages;
    }
    if part == Part::Clients && !mcp_python::is_there() {
        mcp_python::make()?;
    }
    if part == Part::Weights && !weights_python() {
        make_weights_python().context("could not get the libraries of weights")?;
    }
    if part == Part::Ebpf && !route::object_is_named() {
        let compiler = route::compiler().map_err(|reasons| anyhow::anyhow!(reasons.join("; ")))?;
        if route::linker(compiler.llvm).is_err() {
            build_linker(&compiler)?;
        }
    }
    Ok(())
}

/// What is put into the Python that tests write weights with.
const WEIGHTS_PACKAGES: [&str; 4] = ["numpy", "safetensors", "gguf", "onnx"];

/// The folder of that Python.
fn weights_folder() -> PathBuf {
    places::root().join("target/weights-python")
}

/// Whether it is there, with everything.
fn weights_python() -> bool {
    let import = format!("import {}", WEIGHTS_PACKAGES.join(", "));
    let found = process::program(weights_folder().join("bin/python")).args(["-c", &import]).output();
    found.is_ok_and(|out| out.status.success())
}

/// Makes it.
fn make_weights_python() -> Result<()> {
    eprintln!("setup: getting {} with pip…", WEIGHTS_PACKAGES.join(" "));
    process::run(process::program("python3").args(["-m", "venv"]).arg(weights_folder()))?;
    let mut pip = process::program(weights_folder().join("bin/pip"));
    process::run(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(WEIGHTS_PACKAGES))
}

/// The Debian packages for what is not there.
fn missing(part: Part) -> Vec<String> {
    let unless = |there: bool, package: &str| (!there).then(|| package.to_owned());
    let tool = |program: &str, package: &str| unless(on_path(program).is_some(), package);
    let compiler_tools = || {
        let headers = unless(Path::new("/usr/include/stdio.h").exists(), "libc6-dev");
        tool("cc", "gcc").into_iter().chain(headers).chain(tool("pkg-config", "pkg-config"))
    };
    match part {
        Part::Agent => compiler_tools().collect(),
        Part::Ebpf if route::object_is_named() => Vec::new(),
        Part::Ebpf => match route::compiler() {
            Err(_) => vec!["rustc-web".to_owned(), "libstd-rust-web-dev-bpf".to_owned()],
            Ok(compiler) if route::linker(compiler.llvm).is_ok() => Vec::new(),
            Ok(compiler) => {
                let llvm = llvm_prefix(compiler.llvm).join("include/llvm-c").is_dir();
                compiler_tools().chain(unless(llvm, &format!("llvm-{}-dev", compiler.llvm))).collect()
            }
        },
        Part::Guests => {
            let mut packages: Vec<String> = [
                tool("strace", "strace"),
                tool("qemu-system-x86_64", "qemu-system-x86"),
                unless(vm::busybox().is_some(), "busybox-static"),
                tool("modprobe", "kmod"),
                tool("xz", "xz-utils"),
                tool("lz4", "lz4"),
                tool("zstd", "zstd"),
                tool("mke2fs", "e2fsprogs"),
                tool("mkfs.xfs", "xfsprogs"),
                tool("mkfs.btrfs", "btrfs-progs"),
                tool("dmsetup", "dmsetup"),
            ]
            .into_iter()
            .flatten()
            .collect();
            // Debian 12's qemu brings its own; later ones have a package for it.
            if packages.is_empty() {
                packages.extend(unless(vm::virtiofsd().is_some(), "virtiofsd"));
            }
            packages
        }
        // Not redis-server: that package starts a service. Its program is this one by another name.
        Part::Clients => [
            tool("python3", "python3"),
            tool("redis-check-rdb", "redis-tools"),
            tool("dbus-daemon", "dbus-daemon"),
        ]
        .into_iter()
        .flatten()
        .collect(),
        // Its module `venv` is a package of its own.
        Part::Weights if weights_python() => Vec::new(),
        Part::Weights => {
            let venv = process::program("python3").args(["-c", "import ensurepip, venv"]).output();
            let there = venv.is_ok_and(|out| out.status.success());
            tool("python3", "python3").into_iter().chain(unless(there, "python3-venv")).collect()
        }
    }
}

fn by_hand(packages: &[String]) -> String {
    match on_path("apt-get") {
        Some(_) => format!(
            "type: sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        ),
        None => {
            format!("install by hand what Debian calls {} (this system has no apt-get)", packages.join(" "))
        }
    }
}

pub(crate) fn install(packages: &[String]) -> Result<()> {
    static LISTS_ARE_NEW: AtomicBool = AtomicBool::new(false);
    if !process::is_root() || on_path("apt-get").is_none() {
        bail!("missing: {}; {}", packages.join(" "), by_hand(packages));
    }
    eprintln!("setup: installing {}…", packages.join(" "));
    let apt = || {
        let mut command = process::program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]);
        command.args(["-o", "DPkg::Lock::Timeout=120"]).stdout(process::to_stderr());
        command
    };
    if !LISTS_ARE_NEW.swap(true, Ordering::Relaxed) {
        process::run(apt().arg("update")).context("the package lists could not be had")?;
    }
    process::run(apt().args(["install", "-y", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("could not install; to see why, {}", by_hand(packages)))
}

fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// The folder of our own bpf-linker for an LLVM.
pub(crate) fn linker_dir(llvm: u32) -> Result<PathBuf> {
    Ok(places::cache()?.join(format!("tools/bpf-linker-{LINKER_VERSION}-llvm-{llvm}")))
}

fn build_linker(compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm;
    if !LINKER_LLVMS.contains(&llvm) {
        bail!(
            "{} is built on LLVM {llvm}, and bpf-linker {LINKER_VERSION} links the bitcode of LLVM {} to {} only",
            compiler.version,
            LINKER_LLVMS.start(),
            LINKER_LLVMS.end()
        );
    }
    let to = linker_dir(llvm)?;
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    // Two checkouts may want it at the same time.
    let lock =
        fs::File::create(to.join("lock")).with_context(|| format!("cannot write in {}", to.display()))?;
    lock.lock()?;
    if route::linker(llvm).is_ok() {
        return Ok(());
    }
    eprintln!("setup: building bpf-linker {LINKER_VERSION} for LLVM {llvm} (a minute or three, once)…");
    let mut cargo = process::cargo();
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"]);
    cargo.args(["--features", &format!("llvm-{llvm}"), "--force", "--root"]).arg(&to);
    // Not in the workspace's target folder: whoever builds there would wait for this.
    cargo.arg("--target-dir").arg(to.join("build")).env("LLVM_PREFIX", llvm_prefix(llvm));
    // The flags of someone's own build are not for the tool, and its target may not be this machine.
    for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().contains("RUSTFLAGS")) {
        cargo.env_remove(key);
    }
    process::run(&mut cargo).context("bpf-linker could not be built")?;
    fs::remove_dir_all(to.join("build")).context("removing what is left of bpf-linker's build")?;
    route::linker(llvm)
        .map(drop)
        .map_err(|why| anyhow::anyhow!("bpf-linker was built but does not serve: {why}"))
}
