//! Asks models what they were asked before, on schedule and after repairs, and tells the engine whether they answer as they
//! did.
//!
//! The first answers are the known-good ones, if no damage of the weights is known then; they are kept with the digests of
//! the weights, and hold as long as these stay the known-good state.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::executor::{Executor, lock};
use crate::actions::ask_canary::ask;
use crate::clock;
use crate::config::{Canary, Model};
use crate::error_chain::chain;
use crate::event::{Kind, Timestamp};
use crate::known::{CANARIES, Known};

/// Longest wait of the thread: configurations come and go.
const STEP: Duration = Duration::from_secs(1);

/// After a repair a server may need a moment to read its files again.
const SOON: Duration = Duration::from_millis(500);

/// What of answers is shown.
const SHOWN: usize = 120;

/// When each model is to be asked.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    due: Mutex<BTreeMap<String, Timestamp>>,
    thread: OnceLock<Thread>,
    stop: AtomicBool,
}

/// The known-good answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answers {
    /// Of the weights that gave them.
    weights: Vec<String>,
    /// The program that was asked.
    command: Vec<String>,
    text: String,
}

impl Canaries {
    /// Asks `model` shortly.
    pub(super) fn ask_soon(&self, model: &str) {
        lock(&self.due).insert(model.to_owned(), clock::boottime().after(SOON));
        self.wake();
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Starts the thread.
pub(super) fn start(
    executor: Arc<Executor>,
    known: Arc<Known>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let canaries = Arc::clone(&executor.canaries);
    let thread = std::thread::Builder::new().name("grace-canary".into()).spawn(move || {
        while !executor.canaries.stop.load(Ordering::Acquire) {
            round(&executor, &known);
            std::thread::park_timeout(STEP);
        }
    })?;
    // Set once: this is called once.
    drop(canaries.thread.set(thread.thread().clone()));
    Ok(thread)
}

fn round(executor: &Executor, known: &Known) {
    let models = executor.models.all();
    let named = |name: &str| models.iter().any(|(model, _)| model.name == name && model.canary.is_some());
    lock(&executor.canaries.due).retain(|name, _| named(name));
    for (model, files) in &models {
        let Some(canary) = &model.canary else { continue };
        let now = clock::boottime();
        let due = *lock(&executor.canaries.due).entry(model.name.clone()).or_insert(now);
        if due > now || executor.canaries.stop.load(Ordering::Acquire) {
            continue;
        }
        lock(&executor.canaries.due).insert(model.name.clone(), now.after(canary.every.get()));
        let owned = executor.files.weights();
        let weights: Vec<String> =
            files.iter().filter_map(|path| owned.get(path)).map(|known| known.digest.0.clone()).collect();
        let damaged = files.iter().any(|path| !executor.files.doubts().bad(path).is_empty());
        ask_one(executor, known, model, canary, weights, damaged);
    }
}

fn ask_one(
    executor: &Executor,
    known: &Known,
    model: &Model,
    canary: &Canary,
    weights: Vec<String>,
    damaged: bool,
) {
    let tell = |same, said: String| {
        executor.send(Kind::CanarySeen { model: model.name.clone(), same, said });
    };
    let text = match ask(&canary.command, canary.timeout.get()) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(err) => return tell(false, chain(&err)),
    };
    let good = known.get::<Answers>(CANARIES, &model.name).unwrap_or_else(|err| {
        tracing::warn!(why = %chain(&err), "known-good answers cannot be read");
        None
    });
    match good.filter(|good| good.weights == weights && good.command == canary.command) {
        Some(good) => match differs(&good.text, &text, canary.tolerance_percent) {
            None => tell(true, "its answers are the known-good ones".to_owned()),
            Some(how) => tell(false, how),
        },
        None if damaged => tell(false, "no known-good answers yet, and its weights are damaged".to_owned()),
        None => {
            let answers = Answers { weights, command: canary.command.clone(), text };
            if let Err(err) = known.put(CANARIES, &model.name, &answers) {
                tracing::warn!(why = %chain(&err), "known-good answers cannot be kept");
            }
            tell(true, "these answers are the known-good ones from now on".to_owned());
        }
    }
}

/// How `now` differs from `good`, in words; none where it does not: numbers by at most `tolerance` percent, all else not.
fn differs(good: &str, now: &str, tolerance: f64) -> Option<String> {
    if good == now {
        return None;
    }
    let (mut wanted, mut got) = (pieces(good), pieces(now));
    loop {
        match (wanted.next(), got.next()) {
            (None, None) => return None,
            (Some(a), Some(b)) if a == b || near(a, b, tolerance) => {}
            (a, b) => {
                let show = |piece: Option<&str>| match piece {
                    Some(text) => {
                        let cut: String = text.escape_debug().take(SHOWN).collect();
                        format!("`{cut}`")
                    }
                    None => "nothing more".to_owned(),
                };
                return Some(format!("it answers {} instead of {}", show(b), show(a)));
            }
        }
    }
}

fn near(a: &str, b: &str, tolerance: f64) -> bool {
    let (Ok(a), Ok(b)) = (a.parse::<f64>(), b.parse::<f64>()) else { return false };
    (a - b).abs() <= a.abs() * tolerance / 100.0
}

/// Words, without the white space between them.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let edge = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']' | '{' | '}' | ':' | '"');
    text.split(edge).filter(|piece| !piece.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_same_within_the_tolerance() {
        assert_eq!(differs("[1.00, 2.00] ok\n", "[1.00, 2.00] ok\n", 0.0), None);
        assert_eq!(differs("[1.00, 2.00] ok", "[1.01, 2.00] ok", 2.0), None);
        let how = differs("[1.00, 2.00] ok", "[1.05, 2.00] ok", 2.0).unwrap();
        assert_eq!(how, "it answers `1.05` instead of `1.00`");
        assert!(differs("a b", "a c", 50.0).is_some());
        assert!(differs("a b", "a", 50.0).unwrap().contains("nothing more"));
        assert!(differs("1", "NaN", 50.0).is_some());
    }
}
