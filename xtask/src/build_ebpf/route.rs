//! The compilers and linkers that could make the eBPF object here, each with the reason if it cannot.
//!
//! Two things must fit: the compiler needs a `core` for BPF, prebuilt or as source, and bpf-linker must be built
//! on the LLVM major version of that compiler, because bitcode is what passes between them.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::places::on_path;
use crate::{process, setup};

/// The least Rust that the probes compile with: the workspace's.
const LEAST: &str = env!("CARGO_PKG_RUST_VERSION");
/// Where Debian's own rustc is, whatever comes first on PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that makes BPF.
#[derive(Clone)]
pub(crate) struct Compiler {
    /// How it is run.
    pub(crate) route: Route,
    /// Its first line of `-V`.
    pub(crate) version: String,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

/// How a compiler is run.
#[derive(Clone)]
pub(crate) enum Route {
    /// Of this rustup toolchain, with `core` built from source.
    Nightly(String),
    /// This program, with Debian's prebuilt `core`.
    Debian(PathBuf),
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Nightly(toolchain) => write!(f, "{} (toolchain {toolchain})", self.version),
            Route::Debian(path) => write!(f, "{} ({})", self.version, path.display()),
        }
    }
}

/// A bpf-linker for a certain LLVM.
pub(crate) struct Linker {
    /// The program.
    pub(crate) path: PathBuf,
    version: String,
    llvm: u32,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for LLVM {} ({})", self.version, self.llvm, self.path.display())
    }
}

/// The object that the environment names.
pub(crate) fn named_object() -> Option<PathBuf> {
    env::var_os("GRACE_BPF_OBJECT").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Whether nothing needs to be compiled.
pub(crate) fn object_is_named() -> bool {
    named_object().is_some()
}

/// The compilers in the order of preference, or why not.
pub(crate) fn compilers() -> Vec<Result<Compiler, String>> {
    vec![nightly(), debian()]
}

/// The compiler to get a linker for: the first with one already, else the last that is there, which is the one
/// whose LLVM Debian has too.
pub(crate) fn compiler() -> Result<Compiler, Vec<String>> {
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for compiler in compilers() {
        match compiler {
            Ok(compiler) => found.push(compiler),
            Err(why) => reasons.push(why),
        }
    }
    let ready = found.iter().position(|compiler| linker(compiler.llvm).is_ok());
    match ready {
        Some(ready) => Ok(found.swap_remove(ready)),
        None => found.pop().ok_or(reasons),
    }
}

fn nightly() -> Result<Compiler, String> {
    if on_path("rustup").is_none() {
        return Err("no nightly (no rustup)".to_owned());
    }
    // Only what is there: asking for a toolchain by name could install it.
    let rustup = |args: &[&str]| {
        let mut command = process::program("rustup");
        process::text(command.args(args).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTUP_TOOLCHAIN"))
    };
    let listed = rustup(&["toolchain", "list"]).map_err(|err| format!("no nightly ({err:#})"))?;
    let toolchain = listed.split_whitespace().find(|word| word.starts_with("nightly"));
    let Some(toolchain) = toolchain else {
        return Err("no nightly (rustup has none)".to_owned());
    };
    let ask = |what: &[&str]| rustup(&[&["run", toolchain, "rustc"], what].concat());
    let sysroot =
        ask(&["--print", "sysroot"]).map_err(|err| format!("{toolchain} does not run ({err:#})"))?;
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library").is_dir() {
        return Err(format!("{toolchain} has no rust-src"));
    }
    let version = ask(&["-vV"]).map_err(|err| format!("{toolchain} does not run ({err:#})"))?;
    judge(&version, Route::Nightly(toolchain.to_owned()))
}

fn debian() -> Result<Compiler, String> {
    let path = Path::new(DEBIAN_RUSTC);
    if !path.exists() {
        return Err(format!("no {DEBIAN_RUSTC} (Debian's rustc-web)"));
    }
    let ask = |what: &[&str]| {
        let answer = process::text(process::program(path).args(what));
        answer.map_err(|err| format!("{DEBIAN_RUSTC} does not run ({err:#})"))
    };
    let compiler = judge(&ask(&["-vV"])?, Route::Debian(path.to_path_buf()))?;
    let libraries = ask(&["--print", "target-libdir", "--target", super::TARGET])?;
    let has_core = std::fs::read_dir(libraries).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
    });
    if !has_core {
        return Err(format!("{DEBIAN_RUSTC} has no core for BPF (libstd-rust-web-dev-bpf)"));
    }
    Ok(compiler)
}

/// Reads `rustc -vV`.
fn judge(answer: &str, route: Route) -> Result<Compiler, String> {
    let field = |name| answer.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim);
    let first = answer.lines().next().unwrap_or_default();
    let (Some(release), Some(llvm)) = (field("release:"), field("LLVM version:")) else {
        return Err(format!("`rustc -vV` says nothing that is understood: {first}"));
    };
    if numbers(release) < numbers(LEAST) {
        return Err(format!("{first} is older than {LEAST}"));
    }
    let llvm = numbers(llvm).first().copied().unwrap_or_default();
    // "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)": the first two parts tell all.
    let version = first.split_inclusive(')').next().unwrap_or(first).to_owned();
    Ok(Compiler { route, version, llvm })
}

/// The numbers of a version, as far as it has such: "1.97.0-nightly" is 1, 97, 0.
fn numbers(version: &str) -> Vec<u32> {
    let parts = version.split('.').map(|part| part.split(|c: char| !c.is_ascii_digit()).next());
    parts.map_while(|part| part?.parse().ok()).collect()
}

/// A bpf-linker for that LLVM, or why there is none: one on PATH that says which LLVM it has, else our own.
pub(crate) fn linker(llvm: u32) -> Result<Linker, String> {
    let ask = |path: &Path| process::text(process::program(path).arg("--version"));
    if let Some(path) = on_path("bpf-linker")
        && let Ok(version) = ask(&path)
        && llvm_named(&version) == Some(llvm)
    {
        let version = version.lines().next().unwrap_or_default().to_owned();
        return Ok(Linker { path, version, llvm });
    }
    let dir = setup::linker_dir(llvm).map_err(|err| format!("{err:#}"))?;
    let path = dir.join("bin/bpf-linker");
    if !path.exists() {
        return Err(format!("no bpf-linker {} for LLVM {llvm} ({})", setup::LINKER_VERSION, path.display()));
    }
    let version = ask(&path).map_err(|err| format!("bpf-linker does not run: {err:#}"))?;
    Ok(Linker { path, version, llvm })
}

/// The LLVM's major version, if the text names one ("LLVM 22.1", "llvm-22").
fn llvm_named(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let after = lower.split_once("llvm")?.1;
    let digits = after.trim_start_matches(|c: char| !c.is_ascii_digit());
    numbers(digits).first().copied()
}

#[cfg(test)]
mod tests {
    use super::{Route, judge, llvm_named, numbers};

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("1.100.0") > numbers("1.95"));
        assert_eq!(numbers("1.97.0-nightly"), [1, 97, 0]);
    }

    #[test]
    fn compiler_is_judged_by_its_own_words() {
        let says = |release: &str| {
            let answer =
                format!("rustc {release} (abc 2026-05-25) (built)\nrelease: {release}\nLLVM version: 22.1.8");
            judge(&answer, Route::Debian("/usr/bin/rustc".into()))
        };
        let good = says("1.99.0").expect("new enough");
        assert_eq!((good.llvm, good.version.as_str()), (22, "rustc 1.99.0 (abc 2026-05-25)"));
        assert!(says("1.63.0").err().expect("too old").contains("older"));
    }

    #[test]
    fn linker_must_name_its_llvm() {
        assert_eq!(llvm_named("bpf-linker 0.13.0"), None);
        assert_eq!(llvm_named("bpf-linker 0.14.0 (LLVM 22.1.8)"), Some(22));
        assert_eq!(llvm_named("bpf-linker, llvm-23"), Some(23));
    }
}
