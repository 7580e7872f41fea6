//! Finds the object with the kernel probes and hands it to `sources/ebpf`, which embeds it.
//!
//! `$GRACE_BPF_OBJECT` wins; else `target/bpf/grace.bpf.o`, where `cargo xtask build-ebpf` puts it; else none:
//! the agent then builds all the same, runs without kernel probes and says so.

use std::env;
use std::path::PathBuf;
use std::{fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=GRACE_BPF_OBJECT");
    // At run time: a build script that was copied with its target folder must not look into the tree it came from.
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let built = workspace.join("target/bpf/grace.bpf.o");
    let object = match env::var_os("GRACE_BPF_OBJECT").filter(|v| !v.is_empty()) {
        Some(named) => Some(PathBuf::from(named)),
        None => built.exists().then(|| built.clone()),
    };
    // The folder is watched too, so that an object built later is noticed.
    println!("cargo::rerun-if-changed={}", object.as_deref().unwrap_or(&built).display());

    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("grace.bpf.o");
    match object {
        Some(path) => {
            fs::copy(&path, &out).map_err(|err| io::Error::other(format!("{}: {err}", path.display())))?;
        }
        None => {
            println!(
                "cargo::warning=no eBPF object: `cargo xtask build-ebpf` makes it; without it grace has no kernel probes"
            );
            fs::write(&out, b"")?;
        }
    }
    println!("cargo::rustc-env=GRACE_BPF_EMBEDDED={}", out.display());
    Ok(())
}
