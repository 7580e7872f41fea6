//! A recorded stream judged again: the same events give the same firings, and another configuration shows what it
//! would have done.

use crate::config::Config;
use crate::engine::{Effect, Engine};
use crate::event::{Event, Kind};
use crate::firing::{Firing, FiringId};

/// What a stream led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// Every effect in order.
    pub effects: Vec<Effect>,
    /// The last state of each firing, by number.
    pub firings: Vec<Firing>,
    /// How many events were judged.
    pub events: usize,
}

/// Judges `events` under `config`.
#[must_use]
pub fn replay(config: &Config, events: &[Event]) -> Replayed {
    let mut engine = Engine::new(config);
    let mut effects = Vec::new();
    for event in events {
        // The mode is part of the configuration that is tried.
        let event = match &event.kind {
            Kind::Mode { .. } => Event { at: event.at, kind: Kind::Mode { mode: config.mode } },
            _ => event.clone(),
        };
        effects.extend(engine.step(&event));
    }
    let mut firings = std::collections::BTreeMap::<FiringId, Firing>::new();
    for effect in &effects {
        if let Effect::Firing(firing) = effect {
            firings.insert(firing.id, firing.clone());
        }
    }
    Replayed { effects, firings: firings.into_values().collect(), events: events.len() }
}
