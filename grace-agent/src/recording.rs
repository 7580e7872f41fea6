//! The recorded event stream: what `grace replay` reads.
//!
//! JSON lines in segments of bounded size. Each segment begins with a header (the configuration in force) and a
//! preamble (start, mode, owned files, declared processes), so that it replays by itself. Not fsynced: the journal
//! holds what must survive; this is for asking "what would another threshold have done".

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::event::{Event, Kind, Timestamp};

/// A segment is ended when it is larger than this, in bytes.
const SEGMENT: u64 = 4 << 20;

/// First line of a segment.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// Format of what follows: 1.
    grace_recording: u32,
    config: Config,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first line is no header.
    #[error("{path} is not a recording of grace (its first line must be a header with `grace_recording`)", path = .0.display())]
    NotARecording(PathBuf),
    /// A line is no event.
    #[error("{path}:{line}: not an event", path = .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The events of the recording at `path` and the configuration under which they were recorded. A last line that was
/// cut (the agent was killed) is left out.
pub fn read(path: &Path) -> Result<(Config, Vec<Event>), ReadError> {
    let fail = |source| ReadError::Read { path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(fail)?).lines();
    let first = lines.next().transpose().map_err(fail)?.unwrap_or_default();
    let header: Header = serde_json::from_str(&first).or(Err(ReadError::NotARecording(path.to_owned())))?;
    let mut events = Vec::new();
    let mut lines = lines.enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        match serde_json::from_str(&line.map_err(fail)?) {
            Ok(event) => events.push(event),
            Err(err) if err.is_eof() && lines.peek().is_none() => {}
            Err(source) => return Err(ReadError::Line { path: path.to_owned(), line: index + 2, source }),
        }
    }
    Ok((header.config, events))
}

/// Writes the stream.
pub struct Recorder {
    folder: PathBuf,
    config: Config,
    max_bytes: u64,
    file: Option<BufWriter<File>>,
    written: u64,
    /// At how many bytes the next segment begins.
    full_at: u64,
    segments: VecDeque<PathBuf>,
    next: u64,
    /// The latest event of each kind that a segment must begin with, by what it is about.
    preamble: BTreeMap<(u8, String), Event>,
    /// Why the last event could not be written.
    trouble: Option<String>,
}

impl Recorder {
    /// Records into `folder`, as `config.record` says; none where it is off.
    #[must_use]
    pub fn new(folder: &Path, config: &Config) -> Option<Self> {
        if !config.record.enabled {
            return None;
        }
        let mut segments: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| number(path).is_some())
            .collect();
        segments.sort();
        let next = segments.last().and_then(|path| number(path)).map_or(1, |n| n + 1);
        Some(Self {
            folder: folder.to_owned(),
            config: config.clone(),
            max_bytes: u64::from(config.record.max_mib) << 20,
            file: None,
            written: 0,
            full_at: 0,
            segments: segments.into(),
            next,
            preamble: BTreeMap::new(),
            trouble: None,
        })
    }

    /// Records under another configuration from now on, in a new segment.
    pub fn set_config(&mut self, config: &Config) {
        self.config = config.clone();
        self.file = None;
    }

    /// Records one event. A full disk is said once and does not stop anything.
    pub fn record(&mut self, event: &Event) {
        let result = self.write(event);
        self.remember(event);
        match result {
            Ok(()) => self.trouble = None,
            Err(err) => {
                if self.trouble.is_none() {
                    tracing::warn!(%err, folder = %self.folder.display(), "events cannot be recorded");
                }
                self.trouble = Some(err.to_string());
                self.file = None;
            }
        }
    }

    /// What a trigger has learned by now: the next segment begins with it.
    pub fn learned(&mut self, at: Timestamp, trigger: &str, state: &serde_json::Value) {
        let kind = Kind::Learned { trigger: trigger.to_owned(), state: state.clone() };
        self.remember(&Event { at, kind });
    }

    /// Hands what is buffered to the kernel.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(err) = file.flush()
        {
            self.trouble = Some(err.to_string());
            self.file = None;
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        if self.file.is_none() || self.written > self.full_at {
            self.begin()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let line = serde_json::to_vec(event)?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        self.written += line.len() as u64 + 1;
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        // What the last segment still holds is written by its drop.
        self.file = None;
        let path = self.folder.join(format!("{:08}.jsonl", self.next));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        self.next += 1;
        self.segments.push_back(path);
        let mut file = BufWriter::new(file);
        let header = serde_json::to_vec(&Header { grace_recording: 1, config: self.config.clone() })?;
        file.write_all(&header)?;
        file.write_all(b"\n")?;
        self.written = header.len() as u64;
        for event in self.preamble.values() {
            let line = serde_json::to_vec(event)?;
            file.write_all(&line)?;
            file.write_all(b"\n")?;
            self.written += line.len() as u64 + 1;
        }
        self.file = Some(file);
        // Of a host with very many files the beginning alone is longer than that: it must not be written for every event.
        self.full_at = SEGMENT.max(2 * self.written);
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        let mut total: u64 = self.segments.iter().map(size).sum();
        // The one before stays: what has just happened is not forgotten.
        while total > self.max_bytes && self.segments.len() > 2 {
            if let Some(oldest) = self.segments.pop_front() {
                total = total.saturating_sub(size(&oldest));
                fs::remove_file(oldest)?;
            }
        }
        Ok(())
    }

    fn remember(&mut self, event: &Event) {
        let key = match &event.kind {
            Kind::Start { .. } => (0, String::new()),
            Kind::Mode { .. } => (1, String::new()),
            Kind::FileKnown { path, .. } => {
                self.preamble.remove(&(40, path.to_string_lossy().into_owned()));
                (2, path.to_string_lossy().into_owned())
            }
            Kind::FileForgotten { path } => {
                self.preamble.remove(&(2, path.to_string_lossy().into_owned()));
                return;
            }
            Kind::FileUnowned { path, what: Some(_), .. } => (40, path.to_string_lossy().into_owned()),
            Kind::FileUnowned { path, what: None, .. } => {
                self.preamble.remove(&(40, path.to_string_lossy().into_owned()));
                return;
            }
            Kind::ProcessDeclared { name, .. } => (3, name.clone()),
            Kind::ProcessForgotten { name } => {
                self.preamble.remove(&(50, name.clone()));
                self.preamble.remove(&(51, name.clone()));
                self.preamble.remove(&(3, name.clone()));
                self.preamble.remove(&(4, name.clone()));
                self.preamble.remove(&(12, format!("logs {name}")));
                return;
            }
            Kind::ErrorSource { source, process, .. } => {
                (12, format!("{source} {}", process.as_deref().unwrap_or_default()))
            }
            Kind::ProcessStarted { name, pid: now } => {
                if let Some(Event { kind: Kind::ProcessDeclared { pid, .. }, .. }) =
                    self.preamble.get_mut(&(3, name.clone()))
                {
                    *pid = Some(*now);
                }
                return;
            }
            Kind::ProcessNeeds { name, .. } => (50, name.clone()),
            Kind::ScaleDeclared { name, .. } => (51, name.clone()),
            Kind::Scaled { name, to } => {
                if let Some(Event { kind: Kind::ScaleDeclared { now, .. }, .. }) =
                    self.preamble.get_mut(&(51, name.clone()))
                {
                    *now = *to;
                }
                return;
            }
            // Right after the start, as it was.
            Kind::Learned { trigger, .. } => (0, trigger.clone()),
            Kind::ProcessExpects { name, .. } => (4, name.clone()),
            Kind::QueueDeclared { name, .. } => (5, name.clone()),
            Kind::RouteDeclared { name, .. } => (6, name.clone()),
            Kind::ModelDeclared { name, .. } => (7, name.clone()),
            Kind::LoadShed { process, step } => (8, format!("{process} {step:?}")),
            Kind::LoadGivenBack { process } => {
                self.preamble
                    .retain(|_, e| !matches!(&e.kind, Kind::LoadShed { process: p, .. } if p == process));
                return;
            }
            Kind::Paused { scope, .. } => (9, scope.to_string()),
            Kind::Unpaused { scope } => {
                self.preamble.remove(&(9, scope.to_string()));
                return;
            }
            Kind::EndpointDeclared { name, .. } => (13, name.clone()),
            Kind::EndpointKnown { name, .. } => (14, name.clone()),
            Kind::EndpointForgotten { name } => {
                self.preamble.remove(&(13, name.clone()));
                self.preamble.remove(&(14, name.clone()));
                return;
            }
            _ => return,
        };
        self.preamble.insert(key, event.clone());
    }
}

/// Number of a segment, if `path` is one.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_longer_than_a_segment_is_not_written_for_every_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(dir.path(), &Config::default()).unwrap();
        let forgotten = |n: u64| Event {
            at: Timestamp(n),
            kind: Kind::FileUnowned {
                path: PathBuf::from(format!("/{}/{n}", "x".repeat(1000))),
                pattern: "/x".into(),
                what: Some("regular file".into()),
                writer: None,
                writers: Vec::new(),
                via: crate::event::Via::Sweep,
            },
        };
        (0..10_000).for_each(|n| recorder.record(&forgotten(n)));
        recorder.flush();
        let sizes: u64 =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        // Some 12 MB of events; each segment begins with what is known by then, and holds as much again.
        assert!(recorder.next <= 5, "{} segments of {sizes} bytes", recorder.next - 1);
    }
}
