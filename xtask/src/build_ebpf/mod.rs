//! `cargo xtask build-ebpf`: grace-ebpf, compiled to `target/bpf/grace.bpf.o` by whatever can do it here.
//!
//! The object is written only when it differs, so that cargo builds the agent anew only then; and nothing is
//! compiled when sources, compiler and linker are those of the last time. Beside it lies a note of how it was made.

mod elf;
pub(crate) mod route;

use std::env::{self, consts::ARCH};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use self::route::{Compiler, Linker, Route};
use crate::{places, process};

/// The object's name in [`places::bpf_dir`].
pub(crate) const OBJECT: &str = "grace.bpf.o";
const NOTE: &str = "grace.bpf.txt";

/// Compiles the kernel probes to target/bpf/grace.bpf.o.
///
/// Takes the first of these that is there: an object named by --object or $GRACE_BPF_OBJECT; a nightly Rust with
/// rust-src; Debian's rustc-web with libstd-rust-web-dev-bpf. `cargo xtask setup` gets the last.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take this object instead of compiling one
    #[arg(long, value_name = "FILE", env = "GRACE_BPF_OBJECT")]
    object: Option<PathBuf>,
    /// Compile even if nothing has changed
    #[arg(long)]
    force: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    Plan::make(args.object.as_deref())?.carry_out(args.force)?;
    Ok(ExitCode::SUCCESS)
}

/// How the object will be had, and why not in the ways that come before.
pub(crate) struct Plan {
    source: Source,
    passed_over: Vec<String>,
}

enum Source {
    Named(PathBuf),
    Compiled(Compiler, Linker),
}

impl Plan {
    /// Chooses; an error says why each way is closed.
    pub(crate) fn make(named: Option<&Path>) -> Result<Self> {
        if let Some(path) = named.map(Path::to_path_buf).or_else(route::named_object) {
            return Ok(Self { source: Source::Named(path), passed_over: Vec::new() });
        }
        let mut passed_over = vec!["no object named ($GRACE_BPF_OBJECT, --object)".to_owned()];
        for found in route::compilers() {
            let usable = found.and_then(|compiler| Ok((route::linker(compiler.llvm)?, compiler)));
            match usable {
                Ok((linker, compiler)) => {
                    return Ok(Self { source: Source::Compiled(compiler, linker), passed_over });
                }
                Err(why) => passed_over.push(why),
            }
        }
        bail!("{}. `cargo xtask setup` gets what is missing", passed_over.join("; "))
    }

    /// Makes the object, unless it is there and still right.
    pub(crate) fn carry_out(&self, force: bool) -> Result<()> {
        let to = places::bpf_dir().join(OBJECT);
        let how = match &self.source {
            Source::Named(path) => format!("the object named {}", path.display()),
            Source::Compiled(compiler, linker) => format!("{compiler} and {linker}"),
        };
        let reasons = match &self.passed_over[..] {
            [] => String::new(),
            reasons => format!(" [{}]", reasons.join("; ")),
        };
        let (verdict, object) = match &self.source {
            Source::Named(path) => {
                let object = fs::read(path)
                    .with_context(|| format!("{} (from --object or $GRACE_BPF_OBJECT)", path.display()))?;
                elf::check(&object).with_context(|| path.display().to_string())?;
                (store(&how, "none: not compiled here", &object)?, object)
            }
            Source::Compiled(compiler, linker) => {
                let inputs = inputs(compiler, linker)?;
                if !force && let Some(object) = up_to_date(&inputs) {
                    ("is up to date", object)
                } else {
                    let object = compile(compiler, linker, force)?;
                    (store(&how, &inputs, &object)?, object)
                }
            }
        };
        let named = to.strip_prefix(places::root()).unwrap_or(&to);
        eprintln!("eBPF: {} ({} bytes) {verdict}: {how}{reasons}", named.display(), object.len());
        if !elf::has_section(&object, ".BTF") {
            eprintln!(
                "eBPF: warning: the object has no .BTF section, so no probe in it can use kernel types"
            );
        }
        Ok(())
    }
}

/// A hash of everything that decides what the object is.
fn inputs(compiler: &Compiler, linker: &Linker) -> Result<String> {
    let root = places::root();
    if !root.join("grace-ebpf/Cargo.lock").exists() {
        // Made now, so that it is part of the first hash too.
        process::run(process::cargo().arg("generate-lockfile").arg("--manifest-path").arg(manifest()))?;
    }
    // The workspace's own manifest has grace-common's edition.
    let mut files = vec![root.join("Cargo.toml")];
    for part in ["grace-ebpf", "grace-common"] {
        files_below(&root.join(part), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    hash.update(format!("{}\n{linker}\n{}\n", compiler.version, flags(Path::new("")).join("\n")));
    for file in files {
        let content = fs::read(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(&root).unwrap_or(&file).display();
        hash.update(format!("{name}\n{}\n", content.len()));
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        // Not what builds and editors leave behind.
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The object that is there, if its note says that it was made of these inputs and it is what was written then.
fn up_to_date(inputs: &str) -> Option<Vec<u8>> {
    let dir = places::bpf_dir();
    let note = fs::read_to_string(dir.join(NOTE)).ok()?;
    let object = fs::read(dir.join(OBJECT)).ok()?;
    let says = |line: String| note.lines().any(|l| l == line);
    (says(format!("inputs: sha256 {inputs}")) && says(object_line(&object))).then_some(object)
}

fn object_line(object: &[u8]) -> String {
    format!("object: sha256 {} ({} bytes)", hex(&Sha256::digest(object)), object.len())
}

/// Writes object and note; says what became of the object.
fn store(how: &str, inputs: &str, object: &[u8]) -> Result<&'static str> {
    let dir = places::bpf_dir();
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let verdict = if fs::read(dir.join(OBJECT)).is_ok_and(|there| there == object) {
        "is the same as before"
    } else {
        replace(&dir.join(OBJECT), object)?;
        "written"
    };
    let note = format!(
        "# How {OBJECT} was made, by `cargo xtask build-ebpf`.\nwith: {how}\ninputs: sha256 {inputs}\n{}\n",
        object_line(object)
    );
    replace(&dir.join(NOTE), note.as_bytes())?;
    Ok(verdict)
}

/// A reader sees the old file or the new one, whole.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let written = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn manifest() -> PathBuf {
    places::root().join("grace-ebpf/Cargo.toml")
}

const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// The compiler's flags. Type information comes of debug information, hence both.
fn flags(linker: &Path) -> [String; 4] {
    [
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ]
}

fn compile(compiler: &Compiler, linker: &Linker, anew: bool) -> Result<Vec<u8>> {
    let work = places::root().join("target/bpf-build");
    if anew {
        match fs::remove_dir_all(&work) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("cannot remove {}", work.display()));
            }
            _ => {}
        }
    }
    let mut cargo = match &compiler.route {
        Route::Nightly(toolchain) => {
            let mut rustup = process::program("rustup");
            // Ours are the flags and the target below, not those that someone set for the host.
            rustup.args(["run", toolchain, "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
            rustup
        }
        Route::Debian(rustc) => {
            let mut cargo = process::cargo();
            // aya-ebpf uses one unstable feature (BPF's inline assembly); the name opens it for that crate alone.
            cargo.arg("build").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf");
            cargo
        }
    };
    cargo.current_dir(places::root().join("grace-ebpf"));
    cargo.args(["--release", "--target", TARGET, "--manifest-path"]).arg(manifest());
    cargo.arg("--target-dir").arg(&work);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&linker.path).join("\x1f"));
    for wrapper in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        if env::var_os(wrapper).is_some() {
            cargo.env_remove(wrapper);
        }
    }
    process::run(cargo.stdout(process::to_stderr())).context("the kernel probes do not compile")?;
    let made = work.join(TARGET).join("release/grace-ebpf");
    let object = fs::read(&made).with_context(|| made.display().to_string())?;
    elf::check(&object).with_context(|| made.display().to_string())?;
    Ok(object)
}
