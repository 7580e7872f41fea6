//! `grace verify --against`: a file's SHA-256 against one that others published. Needs no agent.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::Answer;
use super::ask::Failure;
use super::show::{Out, escape, paint};
use crate::file_state::Digest;
use crate::weights::hash::{Progress, whole};
use crate::weights::published::{LIST_MAX, Published, in_path, in_text};

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Compares each of `paths` with what `against` says of it. Exit code 1 where one is another file.
pub(super) fn verify(paths: &[PathBuf], against: &Path, json: bool, out: &mut Out) -> Answer {
    let list = if against == Path::new("hub") { None } else { Some(read_list(against)?) };
    let mut code = 0;
    for given in paths {
        let path = given.canonicalize().with_context(|| format!("cannot find {}", given.display()))?;
        let name = given.file_name().unwrap_or_default().to_string_lossy();
        let published = match &list {
            Some(text) => in_text(text, &name),
            None => in_path(&path),
        };
        let Some(published) = published else {
            return Err(Failure::No(format!(
                "{}: {} names no SHA-256 of it",
                given.display(),
                if list.is_some() { against.display().to_string() } else { "its path".to_owned() }
            )));
        };
        let (actual, size) = digest(&path)?;
        let same = actual == published.digest && published.size.is_none_or(|wanted| wanted == size);
        code |= u8::from(!same);
        show(given, &published, &actual, size, same, json, out)?;
    }
    Ok(code)
}

fn show(
    path: &Path,
    published: &Published,
    actual: &Digest,
    size: u64,
    same: bool,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    if json {
        return out.json(&json!({
            "path": path,
            "verdict": if same { "ok" } else { "drift" },
            "expected": published.digest,
            "actual": actual,
            "size": size,
            "found": published.found,
        }));
    }
    let word = if same { paint("ok        ", "32", out.color) } else { paint("drift     ", "31", out.color) };
    let shown = path.display().to_string();
    let how = if same {
        format!("sha256 {} as in {}", actual.short(), published.found)
    } else {
        format!("sha256 {} instead of {} as in {}", actual.short(), published.digest.short(), published.found)
    };
    out.line(&format!("{word} {}  {how}", escape(&shown)))
}

fn read_list(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIST_MAX).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The digest of the file at `path`, with progress on a terminal.
fn digest(path: &Path) -> Result<(Digest, u64), Failure> {
    let context = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(context)?;
    let size = file.metadata().with_context(context)?.len();
    let progress = Arc::new(Progress::default());
    let (done, ended) = channel::<()>();
    let shown = Arc::clone(&progress);
    let shower = std::io::stderr().is_terminal().then(|| {
        std::thread::spawn(move || {
            while ended.recv_timeout(SHOW_EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Some(told) = shown.told() {
                    // A terminal that is gone is no reason to stop.
                    drop(write!(std::io::stderr(), "\r{told}\x1b[K"));
                }
            }
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        })
    });
    let digest = whole(&file, size, &progress);
    drop(done);
    if let Some(shower) = shower {
        drop(shower.join());
    }
    Ok((digest.with_context(context)?, size))
}
