//! What `error_feed` keeps over a restart of the agent: how often each error came within its window, so that a restart
//! is no way to lose count. Times are those of one boot; another boot begins anew.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Known, Seen};
use crate::event::Timestamp;

/// Version of what is kept; another one is not read.
const VERSION: u32 = 1;
/// Errors that are kept: the newest.
const MAX_KEPT: usize = 256;
/// Lines kept of a trace.
const MAX_TRACE: usize = 20;

/// The counts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    version: u32,
    boot_id: String,
    errors: BTreeMap<String, KeptError>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptError {
    last: Seen,
    first_trace: Vec<String>,
    first: Timestamp,
    at: Timestamp,
    slices: VecDeque<(Timestamp, u64)>,
}

impl Kept {
    /// What shall be kept of `errors`, the newest last.
    pub(super) fn of<'a>(
        boot_id: &str,
        newest_first: impl Iterator<Item = (&'a str, &'a Known)>,
    ) -> serde_json::Result<serde_json::Value> {
        let cut = |trace: &[String]| trace[trace.len().saturating_sub(MAX_TRACE)..].to_vec();
        let errors = newest_first
            .filter(|(_, known)| !known.slices.is_empty())
            .take(MAX_KEPT)
            .map(|(signature, known)| {
                let kept = KeptError {
                    last: Seen { trace: cut(&known.last.trace), ..known.last.clone() },
                    first_trace: cut(&known.first_trace),
                    first: known.first,
                    at: known.at,
                    slices: known.slices.clone(),
                };
                (signature.to_owned(), kept)
            })
            .collect();
        serde_json::to_value(Self { version: VERSION, boot_id: boot_id.to_owned(), errors })
    }

    /// The errors of this boot; none of another boot or version. Nothing holds: the next occurrence says whether it does.
    pub(super) fn read(state: &serde_json::Value, boot_id: &str) -> Vec<(String, Known)> {
        match serde_json::from_value::<Self>(state.clone()) {
            Ok(kept) if kept.version == VERSION && kept.boot_id == boot_id => kept
                .errors
                .into_iter()
                .map(|(signature, kept)| {
                    let total = kept.slices.iter().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n));
                    let known = Known {
                        last: kept.last,
                        first_trace: kept.first_trace,
                        first: kept.first,
                        at: kept.at,
                        slices: kept.slices,
                        holds: None,
                        again: 0,
                        total,
                    };
                    (signature, known)
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}
