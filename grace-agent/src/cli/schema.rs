//! `grace schema`: JSON Schema of what `--json` prints.

use clap::Args;
use schemars::schema_for;

use super::ask::Failure;
use super::show::{Out, escape};
use super::{Answer, Global};
use crate::api::gpu::{GpusView, PressureView};
use crate::api::store::{DiffView, StoreView, UndoView};
use crate::api::tasks::{OutboxView, UnfiledView};
use crate::api::view::{
    ClaimedView, DependencyView, EndpointView, ExplainView, FiringView, GoodView, IncidentView, PathAnswer,
    PauseView, RecordsAnswer, RiskView, ScanView, SnapshotView, StatusView, TaskView, TriggerView,
    VerifyView,
};
use crate::cli::doctor::Report;
use crate::config::Config;

/// Arguments of `grace schema`.
#[derive(Debug, Args)]
pub struct Schema {
    /// Which document; none: their names
    name: Option<String>,
}

const NAMES: &[&str] = &[
    "answer", "claimed", "config", "deps", "diff", "doctor", "endpoint", "explain", "firing", "good", "gpu",
    "incident", "outbox", "pause", "pressure", "records", "refused", "risk", "scan", "snapshot", "status",
    "store", "task", "trigger", "undo", "verify",
];

impl Schema {
    pub(super) fn go(self, _global: &Global, out: &mut Out) -> Answer {
        let Some(name) = self.name else {
            for name in NAMES {
                out.line(name)?;
            }
            return Ok(0);
        };
        let schema = match name.as_str() {
            "answer" => schema_for!(PathAnswer),
            "config" => schema_for!(Config),
            "deps" => schema_for!(DependencyView),
            "diff" => schema_for!(DiffView),
            "doctor" => schema_for!(Report),
            "endpoint" => schema_for!(EndpointView),
            "good" => schema_for!(GoodView),
            "gpu" => schema_for!(GpusView),
            "pressure" => schema_for!(PressureView),
            "risk" => schema_for!(RiskView),
            "explain" => schema_for!(ExplainView),
            "firing" => schema_for!(FiringView),
            "incident" => schema_for!(IncidentView),
            "pause" => schema_for!(PauseView),
            "records" => schema_for!(RecordsAnswer),
            "refused" => schema_for!(UnfiledView),
            "outbox" => schema_for!(OutboxView),
            "scan" => schema_for!(ScanView),
            "snapshot" => schema_for!(SnapshotView),
            "status" => schema_for!(StatusView),
            "store" => schema_for!(StoreView),
            "claimed" => schema_for!(ClaimedView),
            "task" => schema_for!(TaskView),
            "trigger" => schema_for!(TriggerView),
            "undo" => schema_for!(UndoView),
            "verify" => schema_for!(VerifyView),
            _ => {
                return Err(Failure::Usage(format!(
                    "no schema `{}`; there are: {}",
                    escape(&name),
                    NAMES.join(", ")
                )));
            }
        };
        out.document(&schema)?;
        Ok(0)
    }
}
