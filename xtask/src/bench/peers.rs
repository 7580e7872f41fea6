//! The tools that Grace is measured against: got where they are missing, started, ended.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::guard::{Guard, program, spawn, spawn_pipe};
use crate::places::on_path;
use crate::{process, setup};

/// The program `name`, from Debian's package `package` where it is missing; an error says why it cannot be had.
pub(super) fn get(name: &str, package: &str) -> Result<PathBuf> {
    if on_path(name).is_none() {
        setup::install(&[package.to_owned()])?;
    }
    on_path(name).with_context(|| format!("{package} has no {name}"))
}

/// Which versions of these packages were measured, in words.
pub(super) fn versions(packages: &[&str]) -> String {
    let mut ask = process::program("dpkg-query");
    ask.args(["-W", "-f", "${Package} ${Version}\\n"]).args(packages);
    match process::text(&mut ask) {
        Ok(text) => format!("Peers: {}.", text.replace('\n', ", ")),
        Err(_) => "The peers' versions are not known here.".to_owned(),
    }
}

/// Starts Monit in `dir`, which it looks at every second, with these checks.
pub(super) fn monit(dir: &Path, checks: &str) -> Result<Guard> {
    let monit = get("monit", "monit")?;
    let config = dir.join("monitrc");
    let text = format!(
        "set daemon 1\nset logfile {0}/monit.log\nset idfile {0}/id\nset statefile {0}/state\nset pidfile {0}/pid\n\
         {checks}",
        dir.display()
    );
    fs::write(&config, text).with_context(|| config.display().to_string())?;
    // It insists.
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
    spawn(program(monit).arg("-I").arg("-c").arg(&config), dir, &dir.join("log"))
}

/// Monit's checks for files that are to be as in the folder `good`.
pub(super) fn monit_files(good: &Path, files: &[PathBuf]) -> String {
    let check = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().display().to_string();
        let file = file.display();
        format!(
            "check file {name} with path {file}\n  if changed sha1 checksum then exec \"/bin/cp {}/{name} {file}\"\n",
            good.display()
        )
    };
    files.iter().map(check).collect()
}

/// Starts the loop that one would write: `inotifywait` says a name, `cp` and `mv` put the good file back.
/// `renamed`: files are replaced by others, not written to. `durable` adds `sync` of the file and its folder.
pub(super) fn shell_loop(
    dir: &Path,
    watched: &Path,
    good: &Path,
    renamed: bool,
    durable: bool,
) -> Result<[Guard; 2]> {
    let inotifywait = get("inotifywait", "inotify-tools")?;
    let aside = dir.join("aside");
    fs::create_dir_all(&aside)?;
    // Its own mv is a rename too: there the loop must compare first, or it would feed itself.
    let (event, compare) =
        if renamed { ("moved_to", "cmp -s \"$g/$f\" \"$d/$f\" || ") } else { ("close_write", "") };
    let (sync_file, sync_dir) = if durable { ("sync \"$t\" && ", " && sync \"$d\"") } else { ("", "") };
    let script = format!(
        "d='{}'; g='{}'; a='{}'; while IFS= read -r f; do t=\"$a/$f\"; {compare}{{ cp -p \"$g/$f\" \"$t\" && \
         {sync_file}mv -f \"$t\" \"$d/$f\"{sync_dir}; }}; done",
        watched.display(),
        good.display(),
        aside.display()
    );
    let mut wait = program(inotifywait);
    wait.args(["-m", "-q", "-e", event, "--format", "%f"]).arg(watched);
    spawn_pipe(&mut wait, program("bash").args(["-c", &script]), dir, &dir.join("log"))
}
