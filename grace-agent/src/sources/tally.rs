//! Counts faults by signature until the engine is told: at most one event a second for each, whatever comes in.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{Kind, Timestamp};
use crate::faults::Fault;

/// Signatures told of one process in a second.
const SIGNATURES: usize = 64;
/// A trace is told again after this time.
const TRACE_AGAIN: Duration = Duration::from_secs(10);
/// Signatures whose trace was told lately.
const TOLD: usize = 256;

/// The errors of one process, unit or source.
#[derive(Default)]
pub(super) struct Tally {
    process: Option<String>,
    counted: BTreeMap<String, Counted>,
    told: BTreeMap<String, Timestamp>,
}

struct Counted {
    fault: Fault,
    source: &'static str,
    count: u64,
}

impl Tally {
    /// Of a process or a unit.
    pub(super) fn of(process: Option<&str>) -> Self {
        Self { process: process.map(str::to_owned), ..Self::default() }
    }

    /// Counts one fault that was seen in `source`; false where there is no room for another signature.
    #[must_use]
    pub(super) fn add(&mut self, fault: Fault, source: &'static str) -> bool {
        let signature = fault.signature_in(self.process.as_deref());
        if let Some(counted) = self.counted.get_mut(&signature) {
            counted.count += 1;
            counted.fault = fault;
            return true;
        }
        if self.counted.len() >= SIGNATURES {
            return false;
        }
        self.counted.insert(signature, Counted { fault, source, count: 1 });
        true
    }

    /// What was counted since the last time.
    pub(super) fn drain(&mut self, now: Timestamp) -> Vec<Kind> {
        let counted = std::mem::take(&mut self.counted);
        counted
            .into_iter()
            .map(|(signature, counted)| {
                let fault = counted.fault;
                let told = self.told.get(&signature).is_some_and(|at| now < at.after(TRACE_AGAIN));
                if !told {
                    if self.told.len() >= TOLD {
                        self.told.retain(|_, at| now < at.after(TRACE_AGAIN));
                    }
                    if self.told.len() < TOLD {
                        self.told.insert(signature.clone(), now);
                    }
                }
                Kind::ErrorSeen {
                    signature,
                    language: fault.language.name().to_owned(),
                    kind: fault.kind,
                    message: fault.message,
                    frames: fault.frames,
                    source: counted.source.to_owned(),
                    process: self.process.clone(),
                    trace: if told { Vec::new() } else { fault.trace },
                    count: counted.count,
                }
            })
            .collect()
    }
}
