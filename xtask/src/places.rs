//! Where things are: the workspace, and the cache that outlives it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    // The one that cargo runs us for, which may not be the one we were built in: a target folder can be shared.
    let ours =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    ours.parent().map_or_else(|| ours.clone(), Path::to_path_buf)
}

/// Where the eBPF object is put: `grace-agent/build.rs` looks there.
pub(crate) fn bpf_dir() -> PathBuf {
    root().join("target/bpf")
}

/// Tools and kernels, kept from one checkout to the next.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set("GRACE_CACHE") {
        return std::path::absolute(&named).with_context(|| format!("$GRACE_CACHE ({})", named.display()));
    }
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(base.context("no place for the cache: set $GRACE_CACHE (or $HOME)")?.join("grace"))
}

/// The program that `name` would start, if there is one.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    // Debian keeps system programs where a user's PATH may not look.
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}
