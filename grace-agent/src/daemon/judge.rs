//! The thread of the engine: events in, one at a time; effects to the journal; orders to the executor, behind a gate
//! that opens once the journal holds them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::{Executor, lock};
use super::gate::Gate;
use crate::action::Order;
use crate::clock::{self, Stopwatch};
use crate::config::Config;
use crate::engine::{Duty, Effect, Engine};
use crate::event::{Event, Kind, Timestamp};
use crate::journal::{Journal, Record};
use crate::recording::Recorder;

/// The engine may sleep this long when nothing is pending.
const IDLE: Duration = Duration::from_secs(3600);

/// What triggers have learned is kept this often, and when the agent stops.
const KEEP: Duration = Duration::from_secs(300);

/// What people are told of a trigger's learning is at most this old.
const NOTES: Duration = Duration::from_secs(1);

/// The host slept where the clocks say that it slept longer than this; they are not read at the same moment.
const SLEPT: Duration = Duration::from_millis(500);
/// The agent did not get to run where it was woken so much later than it asked for.
const LATE: Duration = Duration::from_secs(5);

/// What the thread shares with `status`.
pub(super) type Duties = Arc<Mutex<Vec<Duty>>>;
/// By trigger.
pub(super) type Notes = Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>;

/// Time of the last event that was judged, in nanoseconds of the boot clock.
pub(super) type Judged = Arc<AtomicU64>;

/// Everything that the thread owns.
pub(super) struct Judge {
    pub(super) engine: Engine,
    pub(super) inbox: Receiver<Event>,
    pub(super) recorder: Option<Recorder>,
    pub(super) journal: Arc<Journal>,
    pub(super) executor: Arc<Executor>,
    pub(super) judged: Judged,
    pub(super) duties: Duties,
    pub(super) notes: Notes,
    /// Blocking threads for orders.
    pub(super) pool: tokio::runtime::Handle,
    /// A configuration to record under from now on.
    pub(super) reloaded: Arc<Mutex<Option<Config>>>,
}

impl Judge {
    /// Judges until every sender is gone or the agent stops.
    pub(super) fn run(mut self, stop: &std::sync::atomic::AtomicBool) {
        let mut last = Timestamp::default();
        let mut slept = clock::slept();
        let mut keep = clock::boottime().after(KEEP);
        // When the notes are told next; none: nothing happened since they were.
        let mut tell: Option<Timestamp> = None;
        while !stop.load(Ordering::Acquire) {
            let now = clock::boottime();
            let due = self.engine.wake();
            let next = due.into_iter().chain(tell).chain([keep]).min();
            let wait = next.map_or(IDLE, |at| at.since(now));
            let watch = Stopwatch::start();
            let event = match self.inbox.recv_timeout(wait) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let (Some(config), Some(recorder)) = (lock(&self.reloaded).take(), &mut self.recorder) {
                recorder.set_config(&config);
            }
            let sleeps = clock::slept();
            let away = away(sleeps.saturating_sub(slept), wait, watch.elapsed());
            slept = sleeps;
            let now = clock::boottime();
            let resumed = away
                .map(|away| Kind::Resumed { away_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX) });
            let tick = due.filter(|due| event.is_none() && *due <= now).map(|_| Kind::Tick);
            let by_clock = resumed.into_iter().chain(tick).map(|kind| Event { at: now, kind });
            for mut event in by_clock.chain(event) {
                // Sources stamp for themselves; the engine's time never steps back.
                event.at = event.at.max(last);
                last = event.at;
                self.step(&event);
                self.judged.store(event.at.0, Ordering::Release);
                if let Some(recorder) = &mut self.recorder {
                    recorder.record(&event);
                    recorder.flush();
                }
                tell.get_or_insert(now.after(NOTES));
            }
            if tell.is_some_and(|at| at <= now) {
                tell = None;
                *lock(&self.notes) = self.engine.notes();
                *lock(&self.duties) = self.engine.duties();
            }
            if keep <= now {
                keep = now.after(KEEP);
                self.keep();
            }
        }
        self.keep();
    }

    /// Keeps what the triggers have learned.
    fn keep(&mut self) {
        let mut records = Vec::new();
        for (trigger, state) in self.engine.learned() {
            if let Some(recorder) = &mut self.recorder {
                recorder.learned(clock::boottime(), trigger, &state);
            }
            records.push(Record::Learned { trigger, state: state.to_string() });
        }
        self.journal.append(records, None);
    }

    fn step(&mut self, event: &Event) {
        let effects = self.engine.step(event);
        let mut records = Vec::new();
        let mut orders: Vec<Order> = Vec::new();
        if let Kind::Outcome(outcome) = &event.kind {
            records.push(Record::Outcome { at: event.at, outcome: outcome.clone() });
        }
        for effect in effects {
            match effect {
                Effect::Firing(firing) => {
                    // Of several states that one event led through, the last one counts.
                    records.retain(|r| !matches!(r, Record::Firing(earlier) if earlier.id == firing.id));
                    records.push(Record::Firing(Box::new(firing)));
                }
                Effect::Decision { firing, subject, action, admitted } => {
                    records.push(Record::Decision { at: event.at, firing, subject, action, admitted });
                }
                Effect::Run(order) => orders.push(order),
            }
        }
        if records.is_empty() && orders.is_empty() {
            return;
        }
        let gate = Gate::default();
        let opener = gate.clone();
        // A journal that cannot be written is said in `status`; it is no reason to leave a host broken.
        let open = move |_durable: Result<(), String>| opener.open();
        let then =
            (!orders.is_empty()).then(|| -> Box<dyn FnOnce(Result<(), String>) + Send> { Box::new(open) });
        self.journal.append(records, then);
        for order in orders {
            let (executor, gate) = (Arc::clone(&self.executor), gate.clone());
            self.pool.spawn_blocking(move || executor.perform(order, &gate));
        }
        *lock(&self.duties) = self.engine.duties();
    }
}

/// How long nobody listened, where it matters: the host slept for `slept`, or the thread wanted to wait for `wait` and was
/// awake again only after `waited`, which does not count the sleep.
fn away(slept: Duration, wait: Duration, waited: Duration) -> Option<Duration> {
    let slept = Some(slept).filter(|slept| *slept > SLEPT);
    let late = Some(waited.saturating_sub(wait)).filter(|late| *late > LATE);
    (slept.is_some() || late.is_some()).then(|| slept.unwrap_or_default() + late.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_and_standstill_are_told_and_a_wait_is_neither() {
        let s = Duration::from_secs;
        assert_eq!(away(s(0), s(10), s(10)), None);
        assert_eq!(away(s(0), s(10), s(0)), None, "an event came");
        assert_eq!(away(s(0), s(0), s(3)), None, "a busy host");
        assert_eq!(
            away(Duration::from_millis(1), s(10), s(10)),
            None,
            "two clocks, read one after the other"
        );
        assert_eq!(away(s(3600), s(10), s(10)), Some(s(3600)), "suspended");
        assert_eq!(away(s(0), s(10), s(70)), Some(s(60)), "stopped, or its machine was paused");
        assert_eq!(away(s(3600), s(10), s(70)), Some(s(3660)));
    }
}
