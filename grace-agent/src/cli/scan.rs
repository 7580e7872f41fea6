//! `grace scan`: everything once. An agent, where there is one, makes every trigger look; the source trees are checked
//! here, by this program's own user.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::ask::{Failure, absolute, with_agent};
use super::run::default_state;
use super::show::{Out, scan_picture, thousands};
use super::{Answer, Global};
use crate::api::client::ClientError;
use crate::api::view::{ScanItem, ScanState, ScanView, SyntaxView};
use crate::clock::{Stopwatch, wall_rfc3339};
use crate::config::Config;
use crate::error_chain::chain;
use crate::firing::{Rung, RungState, Subject};
use crate::snapshots;
use crate::sources::look::look;
use crate::syntax::{self, Cache, Counters, Scanned, told_path};

/// How often the progress is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// Arguments of `grace scan`.
#[derive(Debug, Args)]
pub struct Scan {
    /// Source trees and files [default: the [[repo]] paths, else the current folder]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Where results of earlier scans are kept [default: the agent's state folder for root, else $XDG_CACHE_HOME/grace]
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Parse every file, also those that have not changed since an earlier scan
    #[arg(long)]
    fresh: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Scan {
    pub(super) fn go(self, global: &Global, out: &mut Out) -> Answer {
        let mut view = ScanView { state: ScanState::Done, ..ScanView::default() };
        let asked: Result<(ScanView, Config), Failure> = with_agent(&global.socket, async |agent| {
            // The configuration first: an agent that is there but does not know scans is another version.
            let config: Config = agent.get("/v1/config").await?;
            Ok((agent.post("/v1/scan", &serde_json::json!({})).await?, config))
        });
        let config = match asked {
            Ok((of_agent, config)) => {
                view = of_agent;
                Some(config)
            }
            Err(Failure::Client(err)) => {
                let why = match &err {
                    ClientError::NoAgent(path) => format!("no agent at {}", path.display()),
                    other => other.to_string(),
                };
                view.not_done.push(format!("triggers were not asked: {why}"));
                without_agent(&mut view);
                match Config::load(None) {
                    Ok((config, _)) => Some(config),
                    Err(err) => {
                        view.not_done.push(format!("the configuration cannot be read: {}", chain(&err)));
                        None
                    }
                }
            }
            Err(other) => return Err(other),
        };
        let roots = self.roots(config.as_ref());
        let mut cache = match self.cache.clone().map(|file| absolute(&file)).or_else(cache_file) {
            Some(file) if !self.fresh => Cache::open(&file),
            _ => Cache::none(),
        };
        let options = syntax::Options {
            roots,
            // By its own link: the file may have been replaced by another version since this one started.
            program: PathBuf::from("/proc/self/exe"),
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(16)),
        };
        let scanned = watched(&options, &mut cache, out.quiet)?;
        join(&mut view, scanned);
        view.at = Some(wall_rfc3339());
        view.found = view.self_healing.len() + view.coding_agent.len();
        if self.json {
            out.document(&view)?;
        } else if !out.quiet || view.found > 0 {
            out.line(scan_picture(&view, out.color).trim_end())?;
        }
        Ok(u8::from(view.found > 0))
    }

    fn roots(&self, config: Option<&Config>) -> Vec<PathBuf> {
        if !self.paths.is_empty() {
            return self.paths.iter().map(|path| absolute(path)).collect();
        }
        let repos: Vec<PathBuf> = config.map(Config::scan_paths).unwrap_or_default();
        if repos.is_empty() { vec![absolute(&PathBuf::from("."))] } else { repos }
    }
}

/// Where results of earlier scans lie: the agent's state folder for root, else among the user's caches.
fn cache_file() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    if root && let Some(folder) = default_state().ok().filter(|folder| folder.is_dir()) {
        return Some(folder.join(syntax::CACHE_FILE));
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("grace").join(syntax::CACHE_FILE))
}

/// Scans, and draws how far it is where somebody watches.
fn watched(options: &syntax::Options, cache: &mut Cache, quiet: bool) -> Result<Scanned, Failure> {
    let counters = Counters::default();
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let draw = !quiet && std::io::stderr().is_terminal();
    let clock = Stopwatch::start();
    let result = std::thread::scope(|scope| {
        let drawing = draw.then(|| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let files = counters.files.load(Ordering::Relaxed);
                    let found = counters.found.load(Ordering::Relaxed);
                    let rate = files as f64 / clock.elapsed().as_secs_f64().max(0.001);
                    let text = format!(
                        "\r\x1b[K  scanning   {} files, {} files/s, {} found",
                        thousands(files),
                        thousands(rate as u64),
                        thousands(found)
                    );
                    drop(std::io::stderr().write_all(text.as_bytes()));
                    std::thread::park_timeout(REDRAW);
                }
                drop(std::io::stderr().write_all(b"\r\x1b[K"));
            })
        });
        let result = syntax::scan(options, cache, &counters, &stop);
        done.store(true, Ordering::Release);
        if let Some(drawing) = drawing {
            drawing.thread().unpark();
        }
        result
    });
    result.map_err(|err| Failure::Usage(chain(&err)))
}

/// What can be said without an agent: whether the owned files are as they should be.
fn without_agent(view: &mut ScanView) {
    let owned = match default_state().map(|folder| snapshots::peek(&folder)) {
        Ok(Ok(owned)) => owned,
        Ok(Err(err)) => {
            view.not_done.push(format!("owned files were not compared: {}", chain(&err)));
            return;
        }
        Err(_) => return,
    };
    for snapshot in owned {
        let state = look(&snapshot.path, Some(&snapshot.known));
        let drift = snapshot.known.drift(&state);
        if drift.is_empty() {
            continue;
        }
        view.self_healing.push(ScanItem {
            trigger: "config_drift".to_owned(),
            title: format!("restore file {}", snapshot.path.display()),
            summary: drift.join(", "),
            subject: Subject::File(told_path(&snapshot.path)),
            firing: None,
            remedy: vec![Rung {
                action: "restore_file".to_owned(),
                state: RungState::Held,
                why: Some("no agent runs".to_owned()),
                took_us: None,
            }],
            language: None,
            errors: Vec::new(),
        });
    }
}

/// Adds what the syntax scan found. What the agent's own scan says of the same files is older.
fn join(view: &mut ScanView, scanned: Scanned) {
    let seen_now = |item: &ScanItem| match &item.subject {
        Subject::File(path) => scanned.roots.iter().any(|root| path.starts_with(root)),
        _ => false,
    };
    let (old, other): (Vec<ScanItem>, Vec<ScanItem>) =
        view.coding_agent.drain(..).partition(|item| item.trigger == "syntax" && seen_now(item));
    view.coding_agent = other;
    view.syntax = Some(syntax_view(&scanned));
    view.not_done.extend(scanned.unreadable.iter().map(|why| format!("not read: {why}")));
    view.not_done.extend(scanned.not_remembered.iter().map(|why| {
        format!("the next scan will parse everything again: what was found cannot be kept ({why})")
    }));
    view.coding_agent.extend(scanned.broken.into_iter().map(|broken| {
        let item = ScanItem::of_syntax(told_path(&broken.path), broken.language.name(), broken.errors);
        // The agent knows it too, perhaps.
        let known = old.iter().find(|known| known.subject == item.subject);
        let (firing, remedy) = known.map_or((None, Vec::new()), |k| (k.firing, k.remedy.clone()));
        ScanItem { firing, remedy, ..item }
    }));
}

/// The counts of a scan as a document.
#[must_use]
pub fn syntax_view(scanned: &Scanned) -> SyntaxView {
    let counts = &scanned.counts;
    let named = |of: &std::collections::BTreeMap<&'static str, u64>| {
        of.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    };
    SyntaxView {
        roots: scanned.roots.iter().map(|root| told_path(root)).collect(),
        files: counts.files,
        parsed: counts.parsed,
        cached: counts.cached,
        broken: scanned.broken.len() as u64,
        took_ms: u64::try_from(scanned.took.as_millis()).unwrap_or(u64::MAX),
        languages: named(&counts.languages),
        skipped: named(&counts.skipped),
        unreadable: counts.unreadable,
    }
}
