//! The thread of the engine: events in, one at a time; effects to the journal; orders to the executor, behind a gate
//! that opens once the journal holds them.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::{Executor, lock};
use super::gate::Gate;
use crate::action::Order;
use crate::clock;
use crate::config::Config;
use crate::engine::{Duty, Effect, Engine};
use crate::event::{Event, Kind, Timestamp};
use crate::journal::{Journal, Record};
use crate::recording::Recorder;

/// The engine may sleep this long when nothing is pending.
const IDLE: Duration = Duration::from_secs(3600);

/// What the thread shares with `status`.
pub(super) type Duties = Arc<Mutex<Vec<Duty>>>;

/// Everything that the thread owns.
pub(super) struct Judge {
    pub(super) engine: Engine,
    pub(super) inbox: Receiver<Event>,
    pub(super) recorder: Option<Recorder>,
    pub(super) journal: Arc<Journal>,
    pub(super) executor: Arc<Executor>,
    pub(super) duties: Duties,
    /// Blocking threads for orders.
    pub(super) pool: tokio::runtime::Handle,
    /// A configuration to record under from now on.
    pub(super) reloaded: Arc<Mutex<Option<Config>>>,
}

impl Judge {
    /// Judges until every sender is gone or the agent stops.
    pub(super) fn run(mut self, stop: &std::sync::atomic::AtomicBool) {
        let mut last = Timestamp::default();
        while !stop.load(std::sync::atomic::Ordering::Acquire) {
            let now = clock::boottime();
            let wait = self.engine.wake().map_or(IDLE, |at| at.since(now));
            let mut event = match self.inbox.recv_timeout(wait) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => Event { at: clock::boottime(), kind: Kind::Tick },
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // Sources stamp for themselves; the engine's time never steps back.
            event.at = event.at.max(last);
            last = event.at;
            if let (Some(config), Some(recorder)) = (lock(&self.reloaded).take(), &mut self.recorder) {
                recorder.set_config(&config);
            }
            self.step(&event);
            if let Some(recorder) = &mut self.recorder {
                recorder.record(&event);
                recorder.flush();
            }
        }
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
